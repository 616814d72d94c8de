"""Posteriors of the guide: each a function (latent, frames) -> q(latent | frames), a distribution per sequence."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from numpyro.distributions.flows import InverseAutoregressiveTransform
from numpyro.distributions.transforms import Transform

from ppl_tvae.models import autoregressive
from ppl_tvae.models.latent import Latent
from ppl_tvae.models.numpyro.mixtures import DiagonalNormalMixture
from ppl_tvae.models.numpyro.networks import features, lecun_normal, linear, moments, outputs
from ppl_tvae.models.numpyro.spherical import PowerSpherical, direction
from ppl_tvae.models.numpyro.stable import LowRankNormal

RANK = 4  # of low-rank: directions in each capsule in which positions vary together
FLOW_STEPS = 2  # of iaf
COMPONENTS = 4  # of mixture
MOST_CONCENTRATED = 1e4  # of power_spherical: directions within about a hundredth of a radian


def mean_field(latent: Latent, frames: jax.Array) -> dist.Distribution:
    """The paper's: q(z | x_s) q(u | x_s), diagonal normals from an encoder each, frame by frame."""
    _, loc, scale = _encoded(latent, frames)
    return dist.Normal(loc, scale).to_event(3)


def smoother(latent: Latent, frames: jax.Array) -> dist.Distribution:
    """Diagonal normals as in `mean_field`, which also see the frames that share variance with theirs.

    The true posterior of u depends on all of these. Each frame is summarised in an eighth of the hidden units; what a
    frame's neighbours say is added to what its own encoder says, so with that at zero it is the mean-field guide. Time
    is circular, as in W. A model without W has no such neighbours; there the addition sees the frame itself.
    """
    own = features(latent.name, frames, latent.hidden)
    summary = jax.nn.relu(linear(f"guide.{latent.name}.summary", own, max(1, own.shape[-1] // 8)))
    window = jnp.concatenate([jnp.roll(summary, -offset, axis=1) for offset in latent.time_offsets], axis=-1)
    context = jax.nn.relu(linear(f"guide.{latent.name}.window", window, own.shape[-1]))
    _, capsules, positions = latent.shape
    added = linear(f"guide.{latent.name}.correction", context, 2 * capsules * positions)
    both = outputs(latent.name, own, latent.hidden, latent.shape) + added
    return dist.Normal(*moments(both, latent.shape)).to_event(3)


def low_rank(latent: Latent, frames: jax.Array) -> dist.Distribution:
    """Normals whose covariance within each capsule at each time is diagonal plus a matrix of rank `RANK`."""
    own, loc, scale = _encoded(latent, frames)
    _, capsules, positions = latent.shape
    factor = linear(f"guide.{latent.name}.factor", own, capsules * positions * RANK).reshape(*loc.shape, RANK)
    # A tenth, so that at the start the diagonal leads.
    return LowRankNormal(loc, 0.1 * factor, scale**2).to_event(2)


def iaf(latent: Latent, frames: jax.Array) -> dist.Distribution:
    """Inverse autoregressive flows (Kingma et al. 2016, arXiv 1606.04934) over the positions of each capsule.

    From the mean-field normal through `FLOW_STEPS` flows in alternating order, each given an encoding of the frame.
    """
    own, loc, scale = _encoded(latent, frames)
    _, capsules, positions = latent.shape
    context = linear(f"guide.{latent.name}.context", own, capsules * positions).reshape(loc.shape)
    steps = [_flow(f"guide.{latent.name}.flow.{step}", context, step % 2 == 1) for step in range(FLOW_STEPS)]
    return dist.TransformedDistribution(dist.Normal(loc, scale).to_event(3), steps)


def mixture(latent: Latent, frames: jax.Array) -> dist.Distribution:
    """For each capsule at each time a mixture of `COMPONENTS` diagonal normals, around the mean-field normal."""
    own, loc, scale = _encoded(latent, frames)
    _, capsules, positions = latent.shape
    logits = linear(f"guide.{latent.name}.logits", own, capsules * COMPONENTS)
    added = linear(f"guide.{latent.name}.components", own, capsules * COMPONENTS * 2 * positions)
    added = added.reshape(*loc.shape[:3], COMPONENTS, 2 * positions)
    shift, stretch = jnp.split(0.1 * added, 2, axis=-1)  # a tenth, so that at the start the mean-field normal leads
    return DiagonalNormalMixture(
        loc[..., None, :] + shift,
        scale[..., None, :] * jnp.exp(jnp.tanh(stretch)),
        logits.reshape(*loc.shape[:3], COMPONENTS),
    ).to_event(2)


def power_spherical(latent: Latent, frames: jax.Array) -> dist.Distribution:
    """For the prior `hyperspherical`: each capsule a direction and a concentration, from the mean-field encoder.

    The direction is that of loc; the concentration is the mean over positions of 1 / scale**2 while that is small, and
    saturates at `MOST_CONCENTRATED`: beyond, single precision loses the entropy among its large terms.
    """
    _, loc, scale = _encoded(latent, frames)
    precision = jnp.mean(scale**-2, axis=-1)
    concentration = precision / (1 + precision / MOST_CONCENTRATED)
    return PowerSpherical(direction(loc), concentration).to_event(2)


Posterior = Callable[[Latent, jax.Array], Any]
GUIDES: dict[str, Posterior] = {
    "mean-field": mean_field,
    "smoother": smoother,
    "low-rank": low_rank,
    "iaf": iaf,
    "mixture": mixture,
}


def guide_of(posteriors: Mapping[str, Callable[[jax.Array], Any]]) -> Callable[[jax.Array], None]:
    """The guide that draws each latent, by name, from its posterior given the frames."""

    def guide(frames: jax.Array) -> None:
        with numpyro.plate("sequences", frames.shape[0]):
            for name, posterior in posteriors.items():
                numpyro.sample(name, posterior(frames))

    return guide


def _encoded(latent: Latent, frames: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The encoder's last hidden layer, and the loc and scale, (batch, S, C, D) each, that it gives."""
    own = features(latent.name, frames, latent.hidden)
    return own, *moments(outputs(latent.name, own, latent.hidden, latent.shape), latent.shape)


def _flow(name: str, context: jax.Array, reverse: bool) -> Transform:
    """x -> mean(x) + exp(log_scale(x)) * x over the last dimension; the identity before training.

    The host keeps log_scale between -5 and 3.
    """
    size = context.shape[-1]
    width = 4 * size
    into, out = autoregressive.masks(size, width, reverse)
    given = linear(f"{name}.context", context, width)
    weight_into = numpyro.param(f"{name}.0.weight", lecun_normal(f"{name}.0.weight", (width, size)))
    weight_out = numpyro.param(f"{name}.2.weight", lambda _: jnp.zeros((2 * size, width)))
    bias_out = numpyro.param(f"{name}.2.bias", lambda _: jnp.zeros(2 * size))
    weight_into = weight_into * into.astype(weight_into.dtype)
    weight_out = weight_out * out.astype(weight_out.dtype)

    def autoregressive_nn(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        hidden = jax.nn.relu(x @ weight_into.T + given)
        mean, log_scale = jnp.split(hidden @ weight_out.T + bias_out, 2, axis=-1)
        return mean, log_scale

    return InverseAutoregressiveTransform(autoregressive_nn)
