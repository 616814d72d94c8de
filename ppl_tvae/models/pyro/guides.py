"""Posteriors of the guide: each a function (latent, frames) -> q(latent | frames), a distribution per sequence."""

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions.transforms import AffineAutoregressive
from torch import Tensor

from ppl_tvae.models import autoregressive
from ppl_tvae.models.latent import Latent
from ppl_tvae.models.pyro.mixtures import DiagonalNormalMixture
from ppl_tvae.models.pyro.networks import features, lecun_normal, linear, moments, outputs
from ppl_tvae.models.pyro.spherical import PowerSpherical, direction
from ppl_tvae.models.pyro.stable import LowRankNormal

RANK = 4  # of low-rank: directions in each capsule in which positions vary together
FLOW_STEPS = 2  # of iaf
COMPONENTS = 4  # of mixture
MOST_CONCENTRATED = 1e4  # of power_spherical: directions within about a hundredth of a radian


def mean_field(latent: Latent, frames: Tensor) -> dist.TorchDistribution:
    """The paper's: q(z | x_s) q(u | x_s), diagonal normals from an encoder each, frame by frame."""
    _, loc, scale = _encoded(latent, frames)
    return dist.Normal(loc, scale).to_event(3)


def smoother(latent: Latent, frames: Tensor) -> dist.TorchDistribution:
    """Diagonal normals as in `mean_field`, which also see the frames that share variance with theirs.

    The true posterior of u depends on all of these. Each frame is summarised in an eighth of the hidden units; what a
    frame's neighbours say is added to what its own encoder says, so with that at zero it is the mean-field guide. Time
    is circular, as in W. A model without W has no such neighbours; there the addition sees the frame itself.
    """
    own = features(latent.name, frames, latent.hidden)
    summary = torch.relu(linear(f"guide.{latent.name}.summary", own, max(1, own.shape[-1] // 8)))
    window = torch.cat([torch.roll(summary, -offset, dims=1) for offset in latent.time_offsets], dim=-1)
    context = torch.relu(linear(f"guide.{latent.name}.window", window, own.shape[-1]))
    _, capsules, positions = latent.shape
    added = linear(f"guide.{latent.name}.correction", context, 2 * capsules * positions)
    both = outputs(latent.name, own, latent.hidden, latent.shape) + added
    return dist.Normal(*moments(both, latent.shape)).to_event(3)


def low_rank(latent: Latent, frames: Tensor) -> dist.TorchDistribution:
    """Normals whose covariance within each capsule at each time is diagonal plus a matrix of rank `RANK`."""
    own, loc, scale = _encoded(latent, frames)
    _, capsules, positions = latent.shape
    factor = linear(f"guide.{latent.name}.factor", own, capsules * positions * RANK).reshape(*loc.shape, RANK)
    # A tenth, so that at the start the diagonal leads.
    return LowRankNormal(loc, 0.1 * factor, scale**2).to_event(2)


def iaf(latent: Latent, frames: Tensor) -> dist.TorchDistribution:
    """Inverse autoregressive flows (Kingma et al. 2016, arXiv 1606.04934) over the positions of each capsule.

    From the mean-field normal through `FLOW_STEPS` flows in alternating order, each given an encoding of the frame.
    """
    own, loc, scale = _encoded(latent, frames)
    _, capsules, positions = latent.shape
    context = linear(f"guide.{latent.name}.context", own, capsules * positions).reshape(loc.shape)
    steps = [_flow(f"guide.{latent.name}.flow.{step}", context, step % 2 == 1) for step in range(FLOW_STEPS)]
    return dist.TransformedDistribution(dist.Normal(loc, scale).to_event(3), steps)


def mixture(latent: Latent, frames: Tensor) -> dist.TorchDistribution:
    """For each capsule at each time a mixture of `COMPONENTS` diagonal normals, around the mean-field normal."""
    own, loc, scale = _encoded(latent, frames)
    _, capsules, positions = latent.shape
    logits = linear(f"guide.{latent.name}.logits", own, capsules * COMPONENTS)
    added = linear(f"guide.{latent.name}.components", own, capsules * COMPONENTS * 2 * positions)
    added = added.reshape(*loc.shape[:3], COMPONENTS, 2 * positions)
    shift, stretch = torch.chunk(0.1 * added, 2, dim=-1)  # a tenth, so that at the start the mean-field normal leads
    return DiagonalNormalMixture(
        loc[..., None, :] + shift,
        scale[..., None, :] * torch.exp(torch.tanh(stretch)),
        logits.reshape(*loc.shape[:3], COMPONENTS),
    ).to_event(2)


def power_spherical(latent: Latent, frames: Tensor) -> dist.TorchDistribution:
    """For the prior `hyperspherical`: each capsule a direction and a concentration, from the mean-field encoder.

    The direction is that of loc; the concentration is the mean over positions of 1 / scale**2 while that is small, and
    saturates at `MOST_CONCENTRATED`: beyond, single precision loses the entropy among its large terms.
    """
    _, loc, scale = _encoded(latent, frames)
    precision = torch.mean(scale**-2, dim=-1)
    concentration = precision / (1 + precision / MOST_CONCENTRATED)
    return PowerSpherical(direction(loc), concentration).to_event(2)


Posterior = Callable[[Latent, Tensor], Any]
GUIDES: dict[str, Posterior] = {
    "mean-field": mean_field,
    "smoother": smoother,
    "low-rank": low_rank,
    "iaf": iaf,
    "mixture": mixture,
}


def guide_of(posteriors: Mapping[str, Callable[[Tensor], Any]]) -> Callable[[Tensor], None]:
    """The guide that draws each latent, by name, from its posterior given the frames."""

    def guide(frames: Tensor) -> None:
        with pyro.plate("sequences", frames.shape[0]):
            for name, posterior in posteriors.items():
                pyro.sample(name, posterior(frames))

    return guide


def _encoded(latent: Latent, frames: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The encoder's last hidden layer, and the loc and scale, (batch, S, C, D) each, that it gives."""
    own = features(latent.name, frames, latent.hidden)
    return own, *moments(outputs(latent.name, own, latent.hidden, latent.shape), latent.shape)


@cache
def _masks(size: int, width: int, reverse: bool, dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    """Kept on the device: a step that copies from the host cannot be recorded as a graph."""
    return [torch.as_tensor(mask, dtype=dtype, device=device) for mask in autoregressive.masks(size, width, reverse)]


def _flow(name: str, context: Tensor, reverse: bool) -> AffineAutoregressive:
    """x -> mean(x) + exp(log_scale(x)) * x over the last dimension; the identity before training.

    The host keeps log_scale between -5 and 3.
    """
    size = context.shape[-1]
    width = 4 * size
    into, out = _masks(size, width, reverse, context.dtype, context.device)
    given = linear(f"{name}.context", context, width)
    weight_into = pyro.param(f"{name}.0.weight", lecun_normal(f"{name}.0.weight", (width, size)))
    weight_out = pyro.param(f"{name}.2.weight", lambda: torch.zeros((2 * size, width)))
    bias_out = pyro.param(f"{name}.2.bias", lambda: torch.zeros(2 * size))
    weight_into, weight_out = weight_into * into, weight_out * out

    def autoregressive_nn(x: Tensor) -> tuple[Tensor, Tensor]:
        hidden = torch.relu(x @ weight_into.T + given)
        mean, log_scale = torch.chunk(hidden @ weight_out.T + bias_out, 2, dim=-1)
        return mean, log_scale

    # The order in which the host inverts the flow; it reads it off the network, which is a function here, not a module.
    autoregressive_nn.permutation = range(size)[::-1] if reverse else range(size)  # type: ignore[attr-defined]
    return AffineAutoregressive(autoregressive_nn)
