"""Masks that make a network of one hidden layer autoregressive (Germain et al. 2015, arXiv 1502.03509)."""

import numpy as np
from numpy.typing import NDArray


def masks(size: int, width: int, reverse: bool) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Zeros and ones (width, size) for the weights into the hidden layer, and (2 * size, width) out of it.

    Both halves of the output, one after the other, have the order of the input: output d depends on inputs before d, or
    with `reverse` on those after it. size: at least 1; the first in order depends on nothing.
    """
    order = np.arange(size)[::-1] if reverse else np.arange(size)
    hidden = np.arange(width) % max(1, size - 1)
    into = hidden[:, None] >= order[None, :]
    out = order[:, None] > hidden[None, :]
    return into.astype(np.float64), np.concatenate([out, out]).astype(np.float64)
