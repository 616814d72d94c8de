"""The plain VAE on sequences: the topographic program without u, t = z (the paper's baseline).

z[s,c,d] ~ Normal(0, 1)
x[s] ~ likelihood(decoder(z[s]))
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpyro

from ppl_tvae.models.numpyro.networks import decoder


def vae(
    prior_z: Callable[[jax.Array], Any], hidden: Sequence[int], likelihood: Callable[[jax.Array], Any]
) -> Callable[[jax.Array], None]:
    """The model of frames (batch, S, height, width, channel); z and t have event shape (S, C, D)."""

    def model(frames: jax.Array) -> None:
        with numpyro.plate("sequences", frames.shape[0]):
            z = numpyro.sample("z", prior_z(frames))
            t = numpyro.deterministic("t", z)
            logits = decoder(t, hidden, frames.shape[-3:])
            numpyro.sample("x", likelihood(logits), obs=frames)

    return model
