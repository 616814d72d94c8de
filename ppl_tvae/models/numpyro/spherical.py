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

_NO_LENGTH = 1e-24  # squared: a shorter vector is taken for zero


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
        return _around(self.loc, jnp.concatenate([2 * along - 1, height * across], axis=-1))

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
    """The vector (..., D) at length 1; where it is zero, as an untrained encoder's of a black frame, the first axis.

    There the gradient is zero: no direction is nearer than another.
    """
    squared = jnp.sum(vector**2, axis=-1, keepdims=True)
    known = squared > _NO_LENGTH
    return jnp.where(known, vector / jnp.sqrt(jnp.where(known, squared, 1)), _first_axis(vector))


def _first_axis(like: jax.Array) -> jax.Array:
    return jnp.zeros_like(like).at[..., 0].set(1)


def _around(loc: jax.Array, x: jax.Array) -> jax.Array:
    """x, drawn around the first axis, around loc instead: mirrored from that axis to loc.

    Where loc is nearer to that axis than to its opposite, x is first turned to the opposite: mirrors of two vectors
    that almost agree lose all digits, and their gradients have no limit.
    """
    first, sign = _first_axis(loc), jnp.where(loc[..., :1] > 0, -1, 1)
    turned = jnp.concatenate([sign * x[..., :1], x[..., 1:]], axis=-1)
    normal = sign * first - loc
    squared = jnp.sum(normal**2, axis=-1, keepdims=True)
    return turned - 2 * jnp.sum(normal * turned, axis=-1, keepdims=True) / squared * normal
