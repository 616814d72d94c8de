"""Priors of the latents: each a function (site name, event shape) -> distribution with that event shape."""

from collections.abc import Callable, Sequence
from typing import Any

import pyro.distributions as dist
import torch


def normal(name: str, shape: Sequence[int]) -> Any:
    """Independent standard normals (the paper's, for z and u)."""
    return dist.Normal(torch.zeros(()), torch.ones(())).expand(tuple(shape)).to_event(len(shape))


PRIORS: dict[str, Callable[[str, Sequence[int]], Any]] = {"normal": normal}
