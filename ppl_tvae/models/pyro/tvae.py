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
from pyro.distributions import constraints
from torch import Tensor

from ppl_tvae.models.lattice import Lattice
from ppl_tvae.models.pyro.networks import decoder


def tvae(
    lattice: Lattice,
    prior_z: Callable[[Tensor], Any],
    prior_u: Callable[[Tensor], Any],
    hidden: Sequence[int],
    likelihood: Callable[[Tensor], Any],
    *,
    mu: float,
    mu_shape: Sequence[int],
    epsilon: float,
    learn_lattice: bool,
) -> Callable[[Tensor], None]:
    """The model of frames (batch, S, height, width, channel); z, u and t have event shape (S, C, D).

    The priors are of one sequence, and read the shape of the frames at most. mu_shape: (), (C, 1) or (C, D).
    learn_lattice: each entry of W is multiplied by a learned positive weight, which starts at 1.
    """

    def model(frames: Tensor) -> None:
        shift = pyro.param("mu", lambda: torch.full(tuple(mu_shape), float(mu)))
        weights = None
        if learn_lattice:
            ones = torch.ones(lattice.neighborhood.shape)
            weights = pyro.param("lattice.weight", lambda: ones, constraint=constraints.positive)
        with pyro.plate("sequences", frames.shape[0]):
            z = pyro.sample("z", prior_z(frames))
            u = pyro.sample("u", prior_u(frames))
            t = pyro.deterministic("t", (z + shift) / torch.sqrt(lattice.energy(u, weights) + epsilon), event_dim=3)
            logits = decoder(t, hidden, frames.shape[-3:])
            pyro.sample("x", likelihood(logits), obs=frames)

    return model
