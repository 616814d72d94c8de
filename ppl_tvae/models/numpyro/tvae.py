"""The Topographic VAE (Keller & Welling 2021, arXiv 2109.01394) as a NumPyro program.

    z[s,c,d] ~ Normal(0, 1)        u[s,c,d] ~ Normal(0, 1)        independent
    t = (z + mu) / sqrt(W u**2 + epsilon)
    x[s] ~ likelihood(decoder(t[s]))

The paper writes z - mu; its released code adds mu, and so do we. `static`, `bubble` and `torus` are this program with
another lattice W.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpyro

from ppl_tvae.models.lattice import Lattice
from ppl_tvae.models.numpyro.networks import decoder


def tvae(
    lattice: Lattice,
    num_capsules: int,
    hidden: Sequence[int],
    prior: Callable[[str, Sequence[int]], Any],
    likelihood: Callable[[jax.Array], Any],
    mu: float,
    epsilon: float,
) -> Callable[[jax.Array], None]:
    """The model of frames (batch, S, height, width, channel); z, u and t have event shape (S, C, D)."""
    shape = (lattice.num_timesteps, num_capsules, lattice.capsule_dim)

    def model(frames: jax.Array) -> None:
        shift = numpyro.param("mu", jnp.asarray(float(mu)))
        with numpyro.plate("sequences", frames.shape[0]):
            z = numpyro.sample("z", prior("z", shape))
            u = numpyro.sample("u", prior("u", shape))
            t = numpyro.deterministic("t", (z + shift) / jnp.sqrt(lattice.energy(u) + epsilon))
            logits = decoder(t, hidden, frames.shape[-3:])
            numpyro.sample("x", likelihood(logits), obs=frames)

    return model
