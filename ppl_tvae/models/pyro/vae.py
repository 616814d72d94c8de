"""The plain VAE on sequences: the topographic program without u, t = z (the paper's baseline).

z[s,c,d] ~ Normal(0, 1)
x[s] ~ likelihood(decoder(z[s]))
"""

from collections.abc import Callable, Sequence
from typing import Any

import pyro
from torch import Tensor

from ppl_tvae.models.pyro.networks import decoder


def vae(
    prior_z: Callable[[Tensor], Any], hidden: Sequence[int], likelihood: Callable[[Tensor], Any]
) -> Callable[[Tensor], None]:
    """The model of frames (batch, S, height, width, channel); z and t have event shape (S, C, D)."""

    def model(frames: Tensor) -> None:
        with pyro.plate("sequences", frames.shape[0]):
            z = pyro.sample("z", prior_z(frames))
            t = pyro.deterministic("t", z, event_dim=3)
            logits = decoder(t, hidden, frames.shape[-3:])
            pyro.sample("x", likelihood(logits), obs=frames)

    return model
