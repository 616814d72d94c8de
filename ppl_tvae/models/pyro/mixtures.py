"""Mixtures of diagonal normals through whose draws gradients pass. (Pyro's own has a biased one.)"""

import math

import pyro.distributions as dist
import torch
from torch import Tensor


class DiagonalNormalMixture(dist.MixtureSameFamily):
    """A mixture of K diagonal normals over D dimensions, its draws differentiable in all of its parameters.

    locs, scales: (..., K, D); logits: (..., K). The gradient of the logits in `pyro.distributions.MixtureOfDiagNormals`
    is not that of an expectation (tests/models/test_mixtures.py). Here a draw x is taken as the solution of
    F(x; parameters) = e, where F_d is the distribution function of x_d given x_1 ... x_(d-1) and e is uniform noise, so
    that dx = -(dF/dx)**-1 dF/dparameters (implicit reparameterisation: Graves 2016, arXiv 1607.05690; Figurnov, Mohamed
    & Mnih 2018, arXiv 1805.08498, section 4).
    """

    has_rsample = True

    def __init__(self, locs: Tensor, scales: Tensor, logits: Tensor, *, validate_args: bool | None = None) -> None:
        normals = dist.Normal(locs, scales, validate_args=validate_args).to_event(1)
        super().__init__(dist.Categorical(logits=logits), normals, validate_args=validate_args)

    def expand(self, batch_shape: torch.Size, _instance: object = None) -> "DiagonalNormalMixture":
        """The same for a larger batch."""
        normal, logits = self.component_distribution.base_dist, self.mixture_distribution.logits
        shape = (*batch_shape, *normal.loc.shape[-2:])
        return DiagonalNormalMixture(
            normal.loc.expand(shape), normal.scale.expand(shape), logits.expand(shape[:-1]), validate_args=False
        )

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008 - the host's
        """Draws (sample_shape, ..., D)."""
        normal, logits = self.component_distribution.base_dist, self.mixture_distribution.logits
        with torch.no_grad():
            known = torch.nan_to_num(logits)  # a draw by logits that are no numbers stops the host, on a GPU for good
            component = torch.distributions.Categorical(logits=known).sample(sample_shape)[..., None, None]
            shape = (*component.shape[:-2], *normal.loc.shape[-2:])
            loc, scale = (
                values.expand(shape).take_along_dim(component, -2)[..., 0, :] for values in (normal.loc, normal.scale)
            )
            drawn = loc + scale * torch.randn_like(loc)
        return _implicitly(drawn, normal.loc, normal.scale, logits)


def _implicitly(drawn: Tensor, locs: Tensor, scales: Tensor, logits: Tensor) -> Tensor:
    """The draws as they are, with the derivative of the implicit function."""
    x = drawn.detach()
    distribution_functions, jacobian = _conditionals(x, locs, scales, logits)
    jacobian = jacobian.detach()
    change = distribution_functions - distribution_functions.detach()  # zero, but for its derivative
    # Rows are divided by their diagonal, the conditional density, which may be small.
    density = torch.diagonal(jacobian, dim1=-2, dim2=-1)
    moved = torch.linalg.solve_triangular(
        jacobian / density[..., None], (change / density)[..., None], upper=False, unitriangular=True
    )
    return x - moved[..., 0]


def _conditionals(x: Tensor, locs: Tensor, scales: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
    """F_d(x_d | x_1 ... x_(d-1)), (..., D), and its Jacobian in x, lower triangular, (..., D, D)."""
    standard = (x[..., None, :] - locs) / scales
    log_densities = -0.5 * standard**2 - 0.5 * math.log(2 * math.pi) - torch.log(scales)
    before = torch.cumsum(log_densities, dim=-1) - log_densities
    weights = torch.softmax(logits[..., None] + before, dim=-2)  # of each component given x_1 ... x_(d-1)
    below = torch.special.ndtr(standard)
    functions = torch.sum(weights * below, dim=-2)
    scores = -standard / scales
    earlier = torch.einsum("...kd,...kj->...dj", weights * (below - functions[..., None, :]), scores)
    diagonal = torch.sum(weights * torch.exp(log_densities), dim=-2)
    return functions, torch.tril(earlier, -1) + torch.diag_embed(diagonal)
