"""Likelihoods of pixels: each a function logits (..., S, height, width, channel) -> distribution with 4 event dims.

The choice changes what log p(x) means: `bernoulli` is a probability of binarised pixels; `continuous-bernoulli` and
`normal` are densities on grey levels; `bernoulli-grey`, the paper's, is the cross-entropy of grey levels under a
Bernoulli, which is no density of anything (it does not integrate to one), so figures from it carry its name.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from numpyro.distributions import constraints
from numpyro.distributions.util import validate_sample

from ppl_tvae.models import densities

FRAME_EVENT_DIMS = 4


class GreyBernoulli(dist.Distribution):
    """Cross-entropy x log lambda + (1 - x) log(1 - lambda) for grey x in [0, 1], which Bernoulli itself refuses.

    Not normalised over [0, 1]. Samples are those of the Bernoulli with the same logits.
    """

    arg_constraints = {"logits": constraints.real}  # noqa: RUF012 - the host's interface
    support = constraints.unit_interval

    def __init__(self, logits: jax.Array, *, validate_args: bool | None = None) -> None:
        self.logits = logits
        super().__init__(batch_shape=jnp.shape(logits), validate_args=validate_args)

    def sample(self, key: Any, sample_shape: tuple[int, ...] = ()) -> jax.Array:
        shape = sample_shape + self.batch_shape
        return jax.random.bernoulli(key, self.mean, shape).astype(self.logits.dtype)

    @validate_sample
    def log_prob(self, value: jax.Array) -> jax.Array:
        return value * self.logits - jax.nn.softplus(self.logits)

    @property
    def mean(self) -> jax.Array:
        return jax.nn.sigmoid(self.logits)


class ContinuousBernoulli(GreyBernoulli):
    """The normalised density on [0, 1] with the same exponent (Loaiza-Ganem & Cunningham 2019, arXiv 1907.06845)."""

    def sample(self, key: Any, sample_shape: tuple[int, ...] = ()) -> jax.Array:
        shape = sample_shape + self.batch_shape
        probability = jax.random.uniform(key, shape, dtype=self.logits.dtype)
        return densities.continuous_bernoulli_quantile(jnp.broadcast_to(self.logits, shape), probability)

    @validate_sample
    def log_prob(self, value: jax.Array) -> jax.Array:
        return super().log_prob(value) + densities.continuous_bernoulli_log_normalizer(self.logits)

    @property
    def mean(self) -> jax.Array:
        return densities.continuous_bernoulli_mean(self.logits)


class Bernoulli(dist.BernoulliLogits):
    """The host's, without its passes over the pixels that keep infinite logits from NaN; ours are finite.

    They also made grey values impossible. Here only validation does, which is off while we train and evaluate: the
    check before training refuses such frames.
    """

    @validate_sample
    def log_prob(self, value: jax.Array) -> jax.Array:
        return value * self.logits - jax.nn.softplus(self.logits)


def bernoulli(logits: jax.Array) -> dist.Distribution:
    """Binary pixels (a probability)."""
    return Bernoulli(logits=logits).to_event(FRAME_EVENT_DIMS)


def bernoulli_grey(logits: jax.Array) -> dist.Distribution:
    """Grey pixels, cross-entropy (the paper's; not a normalised density)."""
    return GreyBernoulli(logits).to_event(FRAME_EVENT_DIMS)


def continuous_bernoulli(logits: jax.Array) -> dist.Distribution:
    """Grey pixels, a density on [0, 1]."""
    return ContinuousBernoulli(logits).to_event(FRAME_EVENT_DIMS)


def normal(logits: jax.Array) -> dist.Distribution:
    """Grey pixels, a density on the real line: mean sigmoid(logits), one learned scale for all pixels."""
    scale = numpyro.param("likelihood.scale", jnp.asarray(0.2), constraint=constraints.positive)
    return dist.Normal(jax.nn.sigmoid(logits), scale).to_event(FRAME_EVENT_DIMS)


LIKELIHOODS: dict[str, Callable[[jax.Array], Any]] = {
    "bernoulli": bernoulli,
    "bernoulli-grey": bernoulli_grey,
    "continuous-bernoulli": continuous_bernoulli,
    "normal": normal,
}
