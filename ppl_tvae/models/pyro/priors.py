"""Priors of the latents: each a function (site name, event shape) -> distribution with that event shape."""

from collections.abc import Callable, Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints

DEGREES_OF_FREEDOM = 5.0
COMPONENTS = 4


def normal(name: str, shape: Sequence[int]) -> dist.TorchDistribution:
    """Independent standard normals (the paper's, for z and u)."""
    return dist.Normal(torch.zeros(()), torch.ones(())).expand(tuple(shape)).to_event(len(shape))


def laplace(name: str, shape: Sequence[int]) -> dist.TorchDistribution:
    """Independent Laplace of variance 1."""
    return dist.Laplace(torch.zeros(()), torch.tensor(0.5**0.5)).expand(tuple(shape)).to_event(len(shape))


def student_t(name: str, shape: Sequence[int]) -> dist.TorchDistribution:
    """Independent Student-t of `DEGREES_OF_FREEDOM`, scaled to variance 1."""
    scale = ((DEGREES_OF_FREEDOM - 2) / DEGREES_OF_FREEDOM) ** 0.5
    cell = dist.StudentT(torch.tensor(DEGREES_OF_FREEDOM), torch.zeros(()), torch.tensor(scale))
    return cell.expand(tuple(shape)).to_event(len(shape))


def mixture(name: str, shape: Sequence[int]) -> dist.TorchDistribution:
    """Each cell a mixture of `COMPONENTS` normals with learned weights, places and scales; one mixture for a site."""
    logits = pyro.param(f"prior.{name}.logits", lambda: torch.zeros(COMPONENTS))
    loc = pyro.param(f"prior.{name}.loc", lambda: torch.linspace(-1.0, 1.0, COMPONENTS))
    scale = pyro.param(f"prior.{name}.scale", lambda: 0.7 * torch.ones(COMPONENTS), constraint=constraints.positive)
    cell = dist.MixtureSameFamily(dist.Categorical(logits=logits), dist.Normal(loc, scale))
    return cell.expand(tuple(shape)).to_event(len(shape))


PRIORS: dict[str, Callable[[str, Sequence[int]], Any]] = {
    "normal": normal,
    "laplace": laplace,
    "student-t": student_t,
    "mixture": mixture,
}
