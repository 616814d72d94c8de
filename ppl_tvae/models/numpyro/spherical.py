"""Distributions on the unit sphere of D dimensions, which neither host has.

The power spherical distribution of De Cao & Aziz 2020 (arXiv 2006.04437), a relative of von Mises-Fisher's with a
density in closed form and draws without rejection, as the posterior of hyperspherical capsules (Davidson et al. 2018,
arXiv 1804.00891); and the uniform distribution, as their prior.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax.scipy.special import digamma, gammaln
from numpyro.distributions import constraints
from numpyro.distributions.kl import kl_divergence


class PowerSpherical(dist.Distribution):
    """p(x) proportional to (1 + loc . x) ** concentration; loc (..., D) of length 1, concentration (...,) positive."""

    arg_constraints = {"loc": constraints.sphere, "concentration": constraints.positive}  # noqa: RUF012 - the host's
    support = constraints.sphere
    reparametrized_params = ["loc", "concentration"]  # noqa: RUF012 - the host's

    def __init__(self, loc: jax.Array, concentration: jax.Array, *, validate_args: bool | None = None) -> None:
        self.loc, self.concentration = loc, concentration
        super().__init__(jnp.shape(concentration), jnp.shape(loc)[-1:], validate_args=validate_args)

    def sample(self, key: Any, sample_shape: tuple[int, ...] = ()) -> jax.Array:
        """Draws (sample_shape, ..., D), differentiable in both parameters."""
        key_along, key_across = jax.random.split(key)
        alpha, beta = self._shape_parameters()
        along = dist.Beta(alpha, jnp.broadcast_to(beta, alpha.shape)).sample(key_along, sample_shape)[..., None]
        across = jax.random.normal(key_across, (*along.shape[:-1], self.event_shape[0] - 1), along.dtype)
        across = across / jnp.linalg.norm(across, axis=-1, keepdims=True)
        # 2 sqrt(b (1 - b)) is sqrt(1 - (2 b - 1)**2); the least number keeps its derivative finite.
        height = 2 * jnp.sqrt(jnp.maximum(along * (1 - along), jnp.finfo(along.dtype).tiny))
        return _reflected(jnp.concatenate([2 * along - 1, height * across], axis=-1), self.loc)

    def log_prob(self, value: jax.Array) -> jax.Array:
        """Nats, with respect to the area of the sphere: (...,)."""
        cosine = jnp.clip(jnp.sum(self.loc * value, axis=-1), -1 + 4 * jnp.finfo(value.dtype).eps, 1)
        return self.concentration * jnp.log1p(cosine) - self._log_normalizer()

    def entropy(self) -> jax.Array:
        """Nats: (...,). De Cao & Aziz 2020, equation 17."""
        alpha, beta = self._shape_parameters()
        mean_log = math.log(2) + digamma(alpha) - digamma(alpha + beta)
        return self._log_normalizer() - self.concentration * mean_log

    def _shape_parameters(self) -> tuple[jax.Array, float]:
        """Of the beta distribution of (1 + loc . x) / 2."""
        half = (self.event_shape[0] - 1) / 2
        return half + self.concentration, half

    def _log_normalizer(self) -> jax.Array:
        alpha, beta = self._shape_parameters()
        return (alpha + beta) * math.log(2) + beta * math.log(math.pi) + gammaln(alpha) - gammaln(alpha + beta)


class HypersphericalUniform(dist.Distribution):
    """Every direction in D dimensions alike, for each place of a batch."""

    support = constraints.sphere

    def __init__(self, dimension: int, batch_shape: tuple[int, ...] = (), *, validate_args: bool | None = None) -> None:
        super().__init__(batch_shape, (dimension,), validate_args=validate_args)

    def sample(self, key: Any, sample_shape: tuple[int, ...] = ()) -> jax.Array:
        """Draws (sample_shape, ..., D)."""
        drawn = jax.random.normal(key, (*sample_shape, *self.batch_shape, *self.event_shape))
        return drawn / jnp.linalg.norm(drawn, axis=-1, keepdims=True)

    def log_prob(self, value: jax.Array) -> jax.Array:
        """Minus the log of the sphere's area, nats: (...,)."""
        dimension = self.event_shape[0]
        log_area = math.log(2) + dimension / 2 * math.log(math.pi) - math.lgamma(dimension / 2)
        return jnp.full(jnp.shape(value)[:-1], -log_area, value.dtype)


@kl_divergence.register(PowerSpherical, HypersphericalUniform)
def _kl_power_spherical_uniform(p: PowerSpherical, q: HypersphericalUniform) -> jax.Array:
    return -p.entropy() - q.log_prob(p.loc)


def direction(vector: jax.Array) -> jax.Array:
    """The vector (..., D) at length 1; the first axis where it is zero, as an untrained encoder's of a black frame."""
    shifted = vector + 1e-12 * _first_axis(vector)
    return shifted / jnp.linalg.norm(shifted, axis=-1, keepdims=True)


def _first_axis(like: jax.Array) -> jax.Array:
    return jnp.zeros_like(like).at[..., 0].set(1)


def _reflected(x: jax.Array, loc: jax.Array) -> jax.Array:
    """x, given around the first axis, around loc instead: the reflection that takes one to the other."""
    normal = _first_axis(loc) - loc
    squared = jnp.sum(normal**2, axis=-1, keepdims=True) + jnp.finfo(loc.dtype).tiny  # nothing to reflect is no 0/0
    return x - 2 * jnp.sum(normal * x, axis=-1, keepdims=True) / squared * normal
