"""Guides q(latents | frames): each a builder (latents, hidden sizes, time offsets) -> guide(frames).

latents: event shape (S, C, D) of each latent site. time offsets: of frames whose latents share variance (`Lattice`).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions.transforms import AffineAutoregressive
from torch import Tensor

from ppl_tvae.models import autoregressive
from ppl_tvae.models.pyro.networks import encoder, features, lecun_normal, linear, moments, outputs

RANK = 4  # of low-rank: directions in each capsule in which positions vary together
FLOW_STEPS = 2  # of iaf

Guide = Callable[[Tensor], None]
Latents = Mapping[str, Sequence[int]]


def mean_field(latents: Latents, hidden: Sequence[int], time_offsets: Sequence[int]) -> Guide:
    """The paper's guide: q(z | x_s) q(u | x_s), diagonal normals from an encoder each, frame by frame."""

    def posterior(name: str, frames: Tensor, shape: Sequence[int]) -> dist.TorchDistribution:
        return dist.Normal(*encoder(name, frames, hidden, shape)).to_event(3)

    return _sampled(latents, posterior)


def smoother(latents: Latents, hidden: Sequence[int], time_offsets: Sequence[int]) -> Guide:
    """Diagonal normals as in `mean_field`, which also see the frames that share variance with theirs.

    The true posterior of u depends on all of these. Each frame is summarised in an eighth of the hidden units; what a
    frame's neighbours say is added to what its own encoder says, so with that at zero it is the mean-field guide. Time
    is circular, as in W. A model without W has no such neighbours; there the addition sees the frame itself.
    """

    def posterior(name: str, frames: Tensor, shape: Sequence[int]) -> dist.TorchDistribution:
        own = features(name, frames, hidden)
        summary = torch.relu(linear(f"guide.{name}.summary", own, max(1, own.shape[-1] // 8)))
        window = torch.cat([torch.roll(summary, -offset, dims=1) for offset in time_offsets], dim=-1)
        context = torch.relu(linear(f"guide.{name}.window", window, own.shape[-1]))
        added = linear(f"guide.{name}.correction", context, 2 * shape[-2] * shape[-1])
        return dist.Normal(*moments(outputs(name, own, hidden, shape) + added, shape)).to_event(3)

    return _sampled(latents, posterior)


def low_rank(latents: Latents, hidden: Sequence[int], time_offsets: Sequence[int]) -> Guide:
    """Normals whose covariance within each capsule at each time is diagonal plus a matrix of rank `RANK`."""

    def posterior(name: str, frames: Tensor, shape: Sequence[int]) -> dist.TorchDistribution:
        own = features(name, frames, hidden)
        loc, scale = moments(outputs(name, own, hidden, shape), shape)
        factor = linear(f"guide.{name}.factor", own, shape[-2] * shape[-1] * RANK).reshape(*loc.shape, RANK)
        # A tenth, so that at the start the diagonal leads.
        return dist.LowRankMultivariateNormal(loc, 0.1 * factor, scale**2).to_event(2)

    return _sampled(latents, posterior)


def iaf(latents: Latents, hidden: Sequence[int], time_offsets: Sequence[int]) -> Guide:
    """Inverse autoregressive flows (Kingma et al. 2016, arXiv 1606.04934) over the positions of each capsule.

    From the mean-field normal through `FLOW_STEPS` flows in alternating order, each given an encoding of the frame.
    """

    def posterior(name: str, frames: Tensor, shape: Sequence[int]) -> dist.TorchDistribution:
        own = features(name, frames, hidden)
        loc, scale = moments(outputs(name, own, hidden, shape), shape)
        context = linear(f"guide.{name}.context", own, shape[-2] * shape[-1]).reshape(loc.shape)
        steps = [_flow(f"guide.{name}.flow.{step}", context, step % 2 == 1) for step in range(FLOW_STEPS)]
        return dist.TransformedDistribution(dist.Normal(loc, scale).to_event(3), steps)

    return _sampled(latents, posterior)


GUIDES: dict[str, Callable[[Latents, Sequence[int], Sequence[int]], Guide]] = {
    "mean-field": mean_field,
    "smoother": smoother,
    "low-rank": low_rank,
    "iaf": iaf,
}


def _sampled(latents: Latents, posterior: Callable[[str, Tensor, Sequence[int]], Any]) -> Guide:
    def guide(frames: Tensor) -> None:
        with pyro.plate("sequences", frames.shape[0]):
            for name, shape in latents.items():
                pyro.sample(name, posterior(name, frames, shape))

    return guide


def _flow(name: str, context: Tensor, reverse: bool) -> AffineAutoregressive:
    """x -> mean(x) + exp(log_scale(x)) * x over the last dimension; the identity before training."""
    size = context.shape[-1]
    width = 4 * size
    into, out = autoregressive.masks(size, width, reverse)
    given = linear(f"{name}.context", context, width)
    weight_into = pyro.param(f"{name}.0.weight", lecun_normal(f"{name}.0.weight", (width, size)))
    weight_out = pyro.param(f"{name}.2.weight", lambda: torch.zeros((2 * size, width)))
    bias_out = pyro.param(f"{name}.2.bias", lambda: torch.zeros(2 * size))
    weight_into = weight_into * torch.as_tensor(into).to(weight_into)
    weight_out = weight_out * torch.as_tensor(out).to(weight_out)

    def autoregressive_nn(x: Tensor) -> tuple[Tensor, Tensor]:
        hidden = torch.relu(x @ weight_into.T + given)
        mean, log_scale = torch.chunk(hidden @ weight_out.T + bias_out, 2, dim=-1)
        return mean, log_scale

    # The order in which the host inverts the flow.
    autoregressive_nn.permutation = range(size)[::-1] if reverse else range(size)  # type: ignore[attr-defined]
    return AffineAutoregressive(autoregressive_nn)
