"""Distributions on the unit sphere of D dimensions, which neither host has.

The power spherical distribution of De Cao & Aziz 2020 (arXiv 2006.04437), a relative of von Mises-Fisher's with a
density in closed form and draws without rejection, as the posterior of hyperspherical capsules (Davidson et al. 2018,
arXiv 1804.00891); and the uniform distribution, as their prior.
"""

import math

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor
from torch.distributions import register_kl

_NO_LENGTH = 1e-24  # squared: a shorter vector is taken for zero


class PowerSpherical(dist.TorchDistribution):
    """p(x) proportional to (1 + loc . x) ** concentration; loc (..., D) of length 1, concentration (...,) positive."""

    arg_constraints = {"loc": constraints.sphere, "concentration": constraints.positive}  # noqa: RUF012 - the host's
    support = constraints.sphere
    has_rsample = True

    def __init__(self, loc: Tensor, concentration: Tensor, validate_args: bool | None = None) -> None:
        self.loc, self.concentration = loc, concentration
        super().__init__(concentration.shape, loc.shape[-1:], validate_args=validate_args)

    def expand(self, batch_shape: torch.Size, _instance: object = None) -> "PowerSpherical":
        """The same for a larger batch."""
        return PowerSpherical(
            self.loc.expand(*batch_shape, *self.event_shape), self.concentration.expand(batch_shape), False
        )

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008 - the host's
        """Draws (sample_shape, ..., D), differentiable in both parameters."""
        alpha, beta = self._shape_parameters()
        along = dist.Beta(alpha, torch.full_like(alpha, beta)).rsample(sample_shape)[..., None]
        across = torch.randn(*along.shape[:-1], self.event_shape[0] - 1, dtype=along.dtype, device=along.device)
        across = across / torch.linalg.norm(across, dim=-1, keepdim=True)
        # 2 sqrt(b (1 - b)) is sqrt(1 - (2 b - 1)**2); the least number keeps its derivative finite.
        height = 2 * torch.sqrt(torch.clamp(along * (1 - along), min=torch.finfo(along.dtype).tiny))
        return _around(self.loc, torch.cat([2 * along - 1, height * across], dim=-1))

    def log_prob(self, value: Tensor) -> Tensor:
        """Nats, with respect to the area of the sphere: (...,)."""
        cosine = torch.clamp(torch.sum(self.loc * value, dim=-1), -1 + 4 * torch.finfo(value.dtype).eps, 1)
        return self.concentration * torch.log1p(cosine) - self._log_normalizer()

    def entropy(self) -> Tensor:
        """Nats: (...,). De Cao & Aziz 2020, equation 17."""
        alpha, beta = self._shape_parameters()
        mean_log = math.log(2) + torch.digamma(alpha) - torch.digamma(alpha + beta)
        return self._log_normalizer() - self.concentration * mean_log

    def _shape_parameters(self) -> tuple[Tensor, float]:
        """Of the beta distribution of (1 + loc . x) / 2."""
        half = (self.event_shape[0] - 1) / 2
        return half + self.concentration, half

    def _log_normalizer(self) -> Tensor:
        alpha, beta = self._shape_parameters()
        total = (alpha + beta) * math.log(2) + beta * math.log(math.pi)
        return total + torch.lgamma(alpha) - torch.lgamma(alpha + beta)


class HypersphericalUniform(dist.TorchDistribution):
    """Every direction in D dimensions alike, for each place of a batch."""

    arg_constraints: dict[str, object] = {}  # noqa: RUF012 - the host's
    support = constraints.sphere
    has_rsample = True

    def __init__(self, dimension: int, batch_shape: tuple[int, ...] = (), validate_args: bool | None = None) -> None:
        super().__init__(torch.Size(batch_shape), torch.Size((dimension,)), validate_args=validate_args)

    def expand(self, batch_shape: torch.Size, _instance: object = None) -> "HypersphericalUniform":
        """The same for a larger batch."""
        return HypersphericalUniform(self.event_shape[0], tuple(batch_shape), False)

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008 - the host's
        """Draws (sample_shape, ..., D)."""
        drawn = torch.randn(*sample_shape, *self.batch_shape, *self.event_shape)
        return drawn / torch.linalg.norm(drawn, dim=-1, keepdim=True)

    def log_prob(self, value: Tensor) -> Tensor:
        """Minus the log of the sphere's area, nats: (...,)."""
        dimension = self.event_shape[0]
        log_area = math.log(2) + dimension / 2 * math.log(math.pi) - math.lgamma(dimension / 2)
        return torch.full(value.shape[:-1], -log_area, dtype=value.dtype, device=value.device)


@register_kl(PowerSpherical, HypersphericalUniform)
def _kl_power_spherical_uniform(p: PowerSpherical, q: HypersphericalUniform) -> Tensor:
    return -p.entropy() - q.log_prob(p.loc)


def direction(vector: Tensor) -> Tensor:
    """The vector (..., D) at length 1; where it is zero, as an untrained encoder's of a black frame, the first axis.

    There the gradient is zero: no direction is nearer than another.
    """
    squared = torch.sum(vector**2, dim=-1, keepdim=True)
    known = squared > _NO_LENGTH
    return torch.where(known, vector / torch.sqrt(torch.where(known, squared, 1)), _first_axis(vector))


def _first_axis(like: Tensor) -> Tensor:
    first = torch.zeros_like(like)
    first[..., 0].fill_(1)
    return first


def _around(loc: Tensor, x: Tensor) -> Tensor:
    """x, drawn around the first axis, around loc instead: mirrored from that axis to loc.

    Where loc is nearer to that axis than to its opposite, x is first turned to the opposite: mirrors of two vectors
    that almost agree lose all digits, and their gradients have no limit.
    """
    first, sign = _first_axis(loc), torch.where(loc[..., :1] > 0, -1, 1)
    turned = torch.cat([sign * x[..., :1], x[..., 1:]], dim=-1)
    normal = sign * first - loc
    squared = torch.sum(normal**2, dim=-1, keepdim=True)
    return turned - 2 * torch.sum(normal * turned, dim=-1, keepdim=True) / squared * normal
