"""Two of the host's distributions, with log-densities that keep their digits in single precision."""

import math

import pyro.distributions as dist
import torch
from torch import Tensor

from ppl_tvae.models.densities import student_t_log_gamma_ratio


class LowRankNormal(dist.LowRankMultivariateNormal):
    """The host's normal with covariance F Fᵀ + diag(d): its draws and its entropy.

    The host has the squared distance as the difference of two terms (Woodbury), which loses whole nats where d is small
    beside F Fᵀ. Here it is their sum: with A = d**-1/2 F, b = d**-1/2 (x - loc) and y = (I + AᵀA)**-1 Aᵀ b, it is
    |b - A y|**2 + |y|**2.
    """

    def log_prob(self, value: Tensor) -> Tensor:
        """Nats: (...,)."""
        scale = torch.sqrt(self.cov_diag)
        a, b = self.cov_factor / scale[..., None], (value - self.loc) / scale
        tril = self._capacitance_tril
        right = torch.einsum("...dr,...d->...r", a, b)[..., None]
        y = torch.cholesky_solve(right, tril)[..., 0]
        rest = b - torch.einsum("...dr,...r->...d", a, y)
        squared = torch.sum(rest**2, dim=-1) + torch.sum(y**2, dim=-1)
        diagonal = torch.diagonal(tril, dim1=-2, dim2=-1)
        log_det = 2 * torch.sum(torch.log(diagonal), dim=-1) + torch.sum(torch.log(self.cov_diag), dim=-1)
        return -0.5 * (self.event_shape[0] * math.log(2 * math.pi) + log_det + squared)


class StudentT(dist.StudentT):
    """The host's, whose two log-gammas cancel where there are many degrees of freedom, and their gradients before."""

    def log_prob(self, value: Tensor) -> Tensor:
        """Nats: (...,)."""
        y = (value - self.loc) / self.scale
        normalizer = student_t_log_gamma_ratio(self.df) - 0.5 * torch.log(self.df * math.pi) - torch.log(self.scale)
        return normalizer - 0.5 * (self.df + 1) * torch.log1p(y**2 / self.df)
