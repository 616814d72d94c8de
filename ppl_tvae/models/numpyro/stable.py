"""Two of the host's distributions, with log-densities that keep their digits in single precision."""

import math

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax.scipy.linalg import cho_solve

from ppl_tvae.models.densities import student_t_log_gamma_ratio


class LowRankNormal(dist.LowRankMultivariateNormal):
    """The host's normal with covariance F Fᵀ + diag(d): its draws and its entropy.

    The host has the squared distance as the difference of two terms (Woodbury), which loses whole nats where d is small
    beside F Fᵀ. Here it is their sum: with A = d**-1/2 F, b = d**-1/2 (x - loc) and y = (I + AᵀA)**-1 Aᵀ b, it is
    |b - A y|**2 + |y|**2.
    """

    def log_prob(self, value: jax.Array) -> jax.Array:
        """Nats: (...,)."""
        scale = jnp.sqrt(self.cov_diag)
        a, b = self.cov_factor / scale[..., None], (value - self.loc) / scale
        tril = self._capacitance_tril
        right = jnp.einsum("...dr,...d->...r", a, b)[..., None]
        y = cho_solve((jnp.broadcast_to(tril, (*right.shape[:-2], *tril.shape[-2:])), True), right)[..., 0]
        rest = b - jnp.einsum("...dr,...r->...d", a, y)
        squared = jnp.sum(rest**2, axis=-1) + jnp.sum(y**2, axis=-1)
        diagonal = jnp.diagonal(tril, axis1=-2, axis2=-1)
        log_det = 2 * jnp.sum(jnp.log(diagonal), axis=-1) + jnp.sum(jnp.log(self.cov_diag), axis=-1)
        return -0.5 * (self.event_shape[0] * math.log(2 * math.pi) + log_det + squared)


class StudentT(dist.StudentT):
    """The host's, whose two log-gammas cancel where there are many degrees of freedom, and their gradients before."""

    def log_prob(self, value: jax.Array) -> jax.Array:
        """Nats: (...,)."""
        y = (value - self.loc) / self.scale
        normalizer = student_t_log_gamma_ratio(self.df) - 0.5 * jnp.log(self.df * math.pi) - jnp.log(self.scale)
        return normalizer - 0.5 * (self.df + 1) * jnp.log1p(y**2 / self.df)
