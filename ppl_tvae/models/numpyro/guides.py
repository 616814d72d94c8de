"""Guides q(latents | frames): each a builder (latents, hidden sizes) -> guide(frames)."""

from collections.abc import Callable, Mapping, Sequence

import jax
import numpyro
import numpyro.distributions as dist

from ppl_tvae.models.numpyro.networks import encoder


def mean_field(latents: Mapping[str, Sequence[int]], hidden: Sequence[int]) -> Callable[[jax.Array], None]:
    """The paper's guide: q(z | x_s) q(u | x_s), diagonal normals from an encoder each, frame by frame.

    latents: event shape (S, C, D) of each latent site.
    """

    def guide(frames: jax.Array) -> None:
        with numpyro.plate("sequences", frames.shape[0]):
            for name, shape in latents.items():
                loc, scale = encoder(name, frames, hidden, shape)
                numpyro.sample(name, dist.Normal(loc, scale).to_event(3))

    return guide


GUIDES: dict[str, Callable[..., Callable[[jax.Array], None]]] = {"mean-field": mean_field}
