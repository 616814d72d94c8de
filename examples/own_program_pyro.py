"""A program of your own in Pyro: the Topographic VAE with heavier tails in u. Copy this file and edit the copy.

    ppl-tvae train --model examples/own_program_pyro.py --backend pyro

    z[s,c,d] ~ Normal(0, 1)        u[s,c,d] ~ Laplace(0, 1/sqrt(2))        the edit: the paper's u is Normal(0, 1)
    t = (z + mu) / sqrt(W u**2 + epsilon)
    x[s] ~ Bernoulli(decoder(t[s]))

What is asked of a program: functions `model(frames)` and `guide(frames)`; the model observes the frames at the site
"x"; every site lies in the plate "sequences". frames: (batch, S, height, width, channel), values in [0, 1].
The twin in NumPyro is own_program_numpyro.py; its parameters have the same names.
"""

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from ppl_tvae.models.lattice import shifting
from ppl_tvae.models.pyro.networks import decoder, encoder

NUM_TIMESTEPS, NUM_CAPSULES, CAPSULE_DIM = 18, 18, 18
SHAPE = (NUM_TIMESTEPS, NUM_CAPSULES, CAPSULE_DIM)
HIDDEN = (972, 648)  # of the encoders; the decoder mirrors them

# Edit here for other neighbours: `stationary`, `static`, or `from_matrix` and `from_graph` for a W of your own.
LATTICE = shifting(NUM_TIMESTEPS, CAPSULE_DIM, window=13, band=1)


# Edit here for another prior. It is given the whole event shape (S, C, D), so cells may depend on each other.
def prior_of_u() -> dist.TorchDistribution:
    return dist.Laplace(0.0, 0.5**0.5).expand(SHAPE).to_event(3)  # variance 1, as the normal's


# Edit here for another likelihood, and name on the command line what it observes: `--likelihood bernoulli` (the
# default) hands the program binarised pixels, every other name grey ones. It also labels the results.
def likelihood(logits: Tensor) -> dist.TorchDistribution:
    return dist.Bernoulli(logits=logits).to_event(4)


def model(frames: Tensor) -> None:
    """p(x, z, u)."""
    mu = pyro.param("mu", lambda: torch.tensor(30.0))
    with pyro.plate("sequences", frames.shape[0]):
        z = pyro.sample("z", dist.Normal(0.0, 1.0).expand(SHAPE).to_event(3))
        u = pyro.sample("u", prior_of_u())
        t = pyro.deterministic("t", (z + mu) / torch.sqrt(LATTICE.energy(u) + 1e-6), event_dim=3)
        logits = decoder(t, HIDDEN[::-1], frames.shape[-3:])
        pyro.sample("x", likelihood(logits), obs=frames)


# Edit here for another guide. It draws every latent of the model, by the same names.
def guide(frames: Tensor) -> None:
    """q(z | x) q(u | x), frame by frame."""
    with pyro.plate("sequences", frames.shape[0]):
        for name in ("z", "u"):
            loc, scale = encoder(name, frames, HIDDEN, SHAPE)
            pyro.sample(name, dist.Normal(loc, scale).to_event(3))
