"""The Topographic VAE (Keller & Welling 2021, arXiv 2109.01394) as a Pyro program.

    z[s,c,d] ~ Normal(0, 1)        u[s,c,d] ~ Normal(0, 1)        independent
    t = (z + mu) / sqrt(W u**2 + epsilon)
    x[s] ~ likelihood(decoder(t[s]))

The paper writes z - mu; its released code adds mu, and so do we. `static`, `bubble` and `torus` are this program with
another lattice W.
"""

from collections.abc import Callable, Sequence
from typing import Any

import pyro
import torch
from torch import Tensor

from ppl_tvae.models.lattice import Lattice
from ppl_tvae.models.pyro.networks import decoder


def tvae(
    lattice: Lattice,
    num_capsules: int,
    hidden: Sequence[int],
    prior: Callable[[str, Sequence[int]], Any],
    likelihood: Callable[[Tensor], Any],
    mu: float,
    epsilon: float,
) -> Callable[[Tensor], None]:
    """The model of frames (batch, S, height, width, channel); z, u and t have event shape (S, C, D)."""
    shape = (lattice.num_timesteps, num_capsules, lattice.capsule_dim)

    def model(frames: Tensor) -> None:
        shift = pyro.param("mu", lambda: torch.tensor(float(mu)))
        with pyro.plate("sequences", frames.shape[0]):
            z = pyro.sample("z", prior("z", shape))
            u = pyro.sample("u", prior("u", shape))
            t = pyro.deterministic("t", (z + shift) / torch.sqrt(lattice.energy(u) + epsilon), event_dim=3)
            logits = decoder(t, hidden, frames.shape[-3:])
            pyro.sample("x", likelihood(logits), obs=frames)

    return model
