"""A program of your own in NumPyro: the Topographic VAE with heavier tails in u. Copy this file and edit the copy.

    ppl-tvae train --model examples/own_program_numpyro.py --backend numpyro

    z[s,c,d] ~ Normal(0, 1)        u[s,c,d] ~ Laplace(0, 1/sqrt(2))        the edit: the paper's u is Normal(0, 1)
    t = (z + mu) / sqrt(W u**2 + epsilon)
    x[s] ~ Bernoulli(decoder(t[s]))

What is asked of a program: functions `model(frames)` and `guide(frames)`; the model observes the frames at the site
"x"; every site lies in the plate "sequences". frames: (batch, S, height, width, channel), values in [0, 1].
The twin in Pyro is own_program_pyro.py; its parameters have the same names.
"""

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist

from ppl_tvae.models.lattice import shifting
from ppl_tvae.models.numpyro.networks import decoder, encoder

NUM_TIMESTEPS, NUM_CAPSULES, CAPSULE_DIM = 18, 18, 18
SHAPE = (NUM_TIMESTEPS, NUM_CAPSULES, CAPSULE_DIM)
HIDDEN = (972, 648)  # of the encoders; the decoder mirrors them

# Edit here for other neighbours: `stationary`, `static`, or `from_matrix` and `from_graph` for a W of your own.
LATTICE = shifting(NUM_TIMESTEPS, CAPSULE_DIM, window=13, band=1)


# Edit here for another prior. It is given the whole event shape (S, C, D), so cells may depend on each other.
def prior_of_u() -> dist.Distribution:
    return dist.Laplace(0.0, 0.5**0.5).expand(SHAPE).to_event(3)  # variance 1, as the normal's


# Edit here for another likelihood, and name on the command line what it observes: `--likelihood bernoulli` (the
# default) hands the program binarised pixels, every other name grey ones. It also labels the results.
def likelihood(logits: jax.Array) -> dist.Distribution:
    return dist.Bernoulli(logits=logits).to_event(4)


def model(frames: jax.Array) -> None:
    """p(x, z, u)."""
    mu = numpyro.param("mu", jnp.asarray(30.0))
    with numpyro.plate("sequences", frames.shape[0]):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0).expand(SHAPE).to_event(3))
        u = numpyro.sample("u", prior_of_u())
        t = numpyro.deterministic("t", (z + mu) / jnp.sqrt(LATTICE.energy(u) + 1e-6))
        logits = decoder(t, HIDDEN[::-1], frames.shape[-3:])
        numpyro.sample("x", likelihood(logits), obs=frames)


# Edit here for another guide. It draws every latent of the model, by the same names.
def guide(frames: jax.Array) -> None:
    """q(z | x) q(u | x), frame by frame."""
    with numpyro.plate("sequences", frames.shape[0]):
        for name in ("z", "u"):
            loc, scale = encoder(name, frames, HIDDEN, SHAPE)
            numpyro.sample(name, dist.Normal(loc, scale).to_event(3))
