"""Likelihoods of pixels: each a function logits (..., S, height, width, channel) -> distribution with 4 event dims.

The choice changes what log p(x) means: `bernoulli` is a probability of binarised pixels; `continuous-bernoulli` and
`normal` are densities on grey levels; `bernoulli-grey`, the paper's, is the cross-entropy of grey levels under a
Bernoulli, which is no density of anything (it does not integrate to one), so figures from it carry its name.
"""

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

from ppl_tvae.models import densities

FRAME_EVENT_DIMS = 4


class GreyBernoulli(dist.TorchDistribution):
    """Cross-entropy x log lambda + (1 - x) log(1 - lambda) for grey x in [0, 1], which Bernoulli itself refuses.

    Not normalised over [0, 1]. Samples are those of the Bernoulli with the same logits.
    """

    arg_constraints = {"logits": constraints.real}  # noqa: RUF012 - the host's interface
    support = constraints.unit_interval

    def __init__(self, logits: Tensor, validate_args: bool | None = None) -> None:
        self.logits = logits
        super().__init__(logits.shape, validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "GreyBernoulli":
        return type(self)(self.logits.expand(batch_shape), validate_args=False)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        return torch.bernoulli(torch.sigmoid(self.logits).expand(self._extended_shape(torch.Size(sample_shape))))

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        # the host's fused kernel of value * logits - softplus(logits)
        logits, value = torch.broadcast_tensors(self.logits, value)
        return -torch.nn.functional.binary_cross_entropy_with_logits(logits, value, reduction="none")

    @property
    def mean(self) -> Tensor:
        return torch.sigmoid(self.logits)


class ContinuousBernoulli(GreyBernoulli):
    """The normalised density on [0, 1] with the same exponent (Loaiza-Ganem & Cunningham 2019, arXiv 1907.06845)."""

    def sample(self, sample_shape: Any = ()) -> Tensor:
        shape = self._extended_shape(torch.Size(sample_shape))
        probability = torch.rand(shape, dtype=self.logits.dtype, device=self.logits.device)
        with torch.no_grad():
            return densities.continuous_bernoulli_quantile(self.logits.expand(shape), probability)

    def log_prob(self, value: Tensor) -> Tensor:
        return super().log_prob(value) + densities.continuous_bernoulli_log_normalizer(self.logits)

    @property
    def mean(self) -> Tensor:
        return densities.continuous_bernoulli_mean(self.logits)


def bernoulli(logits: Tensor) -> dist.TorchDistribution:
    """Binary pixels (a probability)."""
    return dist.Bernoulli(logits=logits).to_event(FRAME_EVENT_DIMS)


def bernoulli_grey(logits: Tensor) -> dist.TorchDistribution:
    """Grey pixels, cross-entropy (the paper's; not a normalised density)."""
    return GreyBernoulli(logits).to_event(FRAME_EVENT_DIMS)


def continuous_bernoulli(logits: Tensor) -> dist.TorchDistribution:
    """Grey pixels, a density on [0, 1]."""
    return ContinuousBernoulli(logits).to_event(FRAME_EVENT_DIMS)


def normal(logits: Tensor) -> dist.TorchDistribution:
    """Grey pixels, a density on the real line: mean sigmoid(logits), one learned scale for all pixels."""
    scale = pyro.param("likelihood.scale", lambda: torch.tensor(0.2), constraint=constraints.positive)
    return dist.Normal(torch.sigmoid(logits), scale).to_event(FRAME_EVENT_DIMS)


LIKELIHOODS: dict[str, Callable[[Tensor], Any]] = {
    "bernoulli": bernoulli,
    "bernoulli-grey": bernoulli_grey,
    "continuous-bernoulli": continuous_bernoulli,
    "normal": normal,
}
