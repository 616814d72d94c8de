"""Where torch computes and in which precision."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyro
import torch

from ppl_tvae.errors import UserError


@contextmanager
def on_device(device: str, precision: str) -> Iterator[None]:
    """Tensors made in this context live on "cpu" or "cuda" ("auto": a GPU where there is one). Raises UserError.

    The host's checks of values, the global random stream and the default dtype are put back afterwards.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("expected a GPU for device 'cuda', found none that torch can use; take --device cpu")
    place = "cuda" if device != "cpu" and torch.cuda.is_available() else "cpu"
    dtype, default_device = torch.get_default_dtype(), torch.get_default_device()
    torch.set_default_dtype(getattr(torch, precision))
    torch.set_default_device(None if place == "cpu" else place)
    try:
        with torch.random.fork_rng(), pyro.validation_enabled(False):
            yield
    finally:
        torch.set_default_dtype(dtype)
        torch.set_default_device(None if default_device.type == "cpu" else default_device)


def to_device(tree: Any) -> Any:
    """A named tuple of NumPy arrays as a named tuple of tensors on the default device."""
    device = torch.get_default_device()
    return type(tree)(*(torch.as_tensor(array, device=device) for array in tree))
