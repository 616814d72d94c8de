"""Priors of the latents: each a function (site name, event shape) -> distribution with that event shape."""

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from numpyro.distributions import constraints

DEGREES_OF_FREEDOM = 5.0
COMPONENTS = 4


def normal(name: str, shape: Sequence[int]) -> dist.Distribution:
    """Independent standard normals (the paper's, for z and u)."""
    return dist.Normal(0.0, 1.0).expand(tuple(shape)).to_event(len(shape))


def laplace(name: str, shape: Sequence[int]) -> dist.Distribution:
    """Independent Laplace of variance 1."""
    return dist.Laplace(0.0, 0.5**0.5).expand(tuple(shape)).to_event(len(shape))


def student_t(name: str, shape: Sequence[int]) -> dist.Distribution:
    """Independent Student-t of `DEGREES_OF_FREEDOM`, scaled to variance 1."""
    scale = ((DEGREES_OF_FREEDOM - 2) / DEGREES_OF_FREEDOM) ** 0.5
    cell = dist.StudentT(DEGREES_OF_FREEDOM, 0.0, scale)
    return cell.expand(tuple(shape)).to_event(len(shape))


def mixture(name: str, shape: Sequence[int]) -> dist.Distribution:
    """Each cell a mixture of `COMPONENTS` normals with learned weights, places and scales; one mixture for a site."""
    logits = numpyro.param(f"prior.{name}.logits", lambda _: jnp.zeros(COMPONENTS))
    loc = numpyro.param(f"prior.{name}.loc", lambda _: jnp.linspace(-1.0, 1.0, COMPONENTS))
    scale = numpyro.param(f"prior.{name}.scale", lambda _: 0.7 * jnp.ones(COMPONENTS), constraint=constraints.positive)
    cell = dist.MixtureSameFamily(dist.Categorical(logits=logits), dist.Normal(loc, scale))
    return cell.expand(tuple(shape)).to_event(len(shape))


PRIORS: dict[str, Callable[[str, Sequence[int]], Any]] = {
    "normal": normal,
    "laplace": laplace,
    "student-t": student_t,
    "mixture": mixture,
}
