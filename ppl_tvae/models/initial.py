"""Initial values of weights: the same numbers in both backends, drawn by NumPy from (seed, name of the parameter).

Within `shared_draws(seed)`, the backends' initialisers take their standard normal draws from here, so that a run in
Pyro and one in NumPyro start from the same parameters. Outside of it (a program used with the host's own SVI) they
draw from the host's random stream.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

_seed: ContextVar[int | None] = ContextVar("seed", default=None)


@contextmanager
def shared_draws(seed: int) -> Iterator[None]:
    """Initialise the parameters met in this context from `seed`, each by its own name."""
    token = _seed.set(seed)
    try:
        yield
    finally:
        _seed.reset(token)


def shared_normal(name: str, shape: tuple[int, ...]) -> NDArray[np.float64] | None:
    """Standard normal draws for the parameter `name`, or None outside `shared_draws`."""
    seed = _seed.get()
    if seed is None:
        return None
    return np.random.default_rng([seed, crc32(name.encode())]).standard_normal(shape)
