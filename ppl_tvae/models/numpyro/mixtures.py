"""Mixtures of diagonal normals through whose draws gradients pass. (NumPyro's own has none.)"""

from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax.scipy.special import ndtr
from jax.scipy.stats import norm


class DiagonalNormalMixture(dist.MixtureSameFamily):
    """A mixture of K diagonal normals over D dimensions, its draws differentiable in all of its parameters.

    locs, scales: (..., K, D); logits: (..., K). NumPyro's mixture gives its draws no gradient. Here a draw x is taken
    as the solution of F(x; parameters) = e, where F_d is the distribution function of x_d given x_1 ... x_(d-1) and e
    is uniform noise, so that dx = -(dF/dx)**-1 dF/dparameters (implicit reparameterisation: Graves 2016, arXiv
    1607.05690; Figurnov, Mohamed & Mnih 2018, arXiv 1805.08498, section 4).
    """

    def __init__(self, locs: jax.Array, scales: jax.Array, logits: jax.Array) -> None:
        super().__init__(dist.Categorical(logits=logits), dist.Normal(locs, scales).to_event(1))

    @property
    def has_rsample(self) -> bool:
        """Gradients pass through draws."""
        return True

    def sample_with_intermediates(self, key: Any, sample_shape: tuple[int, ...] = ()) -> tuple[jax.Array, list[Any]]:
        """Draws, and the components that they came from."""
        drawn, components = super().sample_with_intermediates(key, sample_shape)
        normal = self.component_distribution.base_dist
        logits = self.mixing_distribution.logits
        return _implicitly(drawn, normal.loc, normal.scale, logits), components

    def sample(self, key: Any, sample_shape: tuple[int, ...] = ()) -> jax.Array:
        """Draws (sample_shape, ..., D)."""
        return self.sample_with_intermediates(key, sample_shape)[0]


def _implicitly(drawn: jax.Array, locs: jax.Array, scales: jax.Array, logits: jax.Array) -> jax.Array:
    """The draws as they are, with the derivative of the implicit function."""
    x = jax.lax.stop_gradient(drawn)
    distribution_functions, jacobian = _conditionals(x, locs, scales, logits)
    jacobian = jax.lax.stop_gradient(jacobian)
    change = distribution_functions - jax.lax.stop_gradient(distribution_functions)  # zero, but for its derivative
    # Rows are divided by their diagonal, the conditional density, which may be small.
    density = jnp.diagonal(jacobian, axis1=-2, axis2=-1)
    return x - _solved(jacobian / density[..., None], change / density)


def _solved(unit_lower: jax.Array, right: jax.Array) -> jax.Array:
    """The solution of L y = right by forward substitution; L (..., D, D) lower triangular, its diagonal taken as 1.

    Not by solve_triangular: two of them in one compiled step, with thousands of matrices of 18 x 18, can wait for each
    other for ever on a CPU (jax 0.10).
    """

    def next_position(solved: jax.Array, row_and_right: tuple[jax.Array, ...]) -> tuple[jax.Array, None]:
        position, row, value = row_and_right
        known = jnp.sum(row * solved, axis=-1)  # of the positions before; the others are zero yet
        return solved.at[..., position].set(value - known), None

    rows, values = jnp.moveaxis(unit_lower, -2, 0), jnp.moveaxis(right, -1, 0)
    return jax.lax.scan(next_position, jnp.zeros_like(right), (jnp.arange(right.shape[-1]), rows, values))[0]


def _conditionals(x: jax.Array, locs: jax.Array, scales: jax.Array, logits: jax.Array) -> tuple[jax.Array, jax.Array]:
    """F_d(x_d | x_1 ... x_(d-1)), (..., D), and its Jacobian in x, lower triangular, (..., D, D)."""
    standard = (x[..., None, :] - locs) / scales
    log_densities = norm.logpdf(standard) - jnp.log(scales)
    before = jnp.cumsum(log_densities, axis=-1) - log_densities
    weights = jax.nn.softmax(logits[..., None] + before, axis=-2)  # of each component given x_1 ... x_(d-1)
    below = ndtr(standard)
    functions = jnp.sum(weights * below, axis=-2)
    scores = -standard / scales
    earlier = jnp.einsum("...kd,...kj->...dj", weights * (below - functions[..., None, :]), scores)
    diagonal = jnp.sum(weights * jnp.exp(log_densities), axis=-2)
    return functions, jnp.tril(earlier, -1) + diagonal[..., None] * jnp.eye(x.shape[-1], dtype=x.dtype)
