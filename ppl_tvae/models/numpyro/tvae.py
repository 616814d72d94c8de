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
from numpyro.distributions import constraints

from ppl_tvae.models.lattice import Lattice
from ppl_tvae.models.numpyro.networks import decoder


def tvae(
    lattice: Lattice,
    prior_z: Callable[[jax.Array], Any],
    prior_u: Callable[[jax.Array], Any],
    hidden: Sequence[int],
    likelihood: Callable[[jax.Array], Any],
    *,
    mu: float,
    mu_shape: Sequence[int],
    epsilon: float,
    learn_lattice: bool,
) -> Callable[[jax.Array], None]:
    """The model of frames (batch, S, height, width, channel); z, u and t have event shape (S, C, D).

    The priors are of one sequence, and read the shape of the frames at most. mu_shape: (), (C, 1) or (C, D).
    learn_lattice: each entry of W is multiplied by a learned positive weight, which starts at 1.
    """

    def model(frames: jax.Array) -> None:
        shift = numpyro.param("mu", lambda _: jnp.full(tuple(mu_shape), float(mu)))
        weights = None
        if learn_lattice:
            ones = jnp.ones(lattice.neighborhood.shape)
            weights = numpyro.param("lattice.weight", ones, constraint=constraints.positive)
        with numpyro.plate("sequences", frames.shape[0]):
            z = numpyro.sample("z", prior_z(frames))
            u = numpyro.sample("u", prior_u(frames))
            t = numpyro.deterministic("t", (z + shift) / jnp.sqrt(lattice.energy(u, weights) + epsilon))
            logits = decoder(t, hidden, frames.shape[-3:])
            numpyro.sample("x", likelihood(logits), obs=frames)

    return model
