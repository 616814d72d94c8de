"""Priors of the latents: each a function (site name, event shape) -> distribution with that event shape."""

from collections.abc import Callable, Sequence
from typing import Any

import numpyro.distributions as dist


def normal(name: str, shape: Sequence[int]) -> dist.Distribution:
    """Independent standard normals (the paper's, for z and u)."""
    return dist.Normal(0.0, 1.0).expand(tuple(shape)).to_event(len(shape))


PRIORS: dict[str, Callable[[str, Sequence[int]], Any]] = {"normal": normal}
