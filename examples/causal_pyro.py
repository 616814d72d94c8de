"""A Topographic VAE whose neighbourhoods reach into the past only, in Pyro. Copy this file and edit the copy.

    ppl-tvae train --model examples/causal_pyro.py --backend pyro --out runs/causal
    python examples/forward_prediction.py runs/causal

    z[s,c,d] ~ Normal(0, 1)        u[s,c,d] ~ Normal(0, 1)
    t = (z + mu) / sqrt(W u**2 + epsilon)        W looks back: t[s] depends on u[s], u[s - 1], ..., u[s - WINDOW + 1]
    x[s] ~ Bernoulli(decoder(t[s]))

As in Predictive Coding with Topographic VAEs (Keller & Welling 2021, ICCV workshops), no frame is explained by later
ones: with a guide that goes frame by frame, the t of the first frames is inferred from these alone. What comes next is
then predicted by rolling the last t one position per frame; forward_prediction.py does that with a trained run. Here
nothing else is taken from that paper: the bound that is trained is the usual ELBO, which does not score predictions.
The twin in NumPyro is causal_numpyro.py; its parameters have the same names.
"""

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from ppl_tvae.models.lattice import Lattice, from_matrix
from ppl_tvae.models.pyro.networks import decoder, encoder

NUM_TIMESTEPS, NUM_CAPSULES, CAPSULE_DIM = 18, 18, 18
SHAPE = (NUM_TIMESTEPS, NUM_CAPSULES, CAPSULE_DIM)
HIDDEN = (972, 648)  # of the encoders; the decoder mirrors them

# Edit here for a longer memory, or a wider band of positions.
WINDOW, BAND = 13, 1  # frames that share variance, and positions to either side


# Edit here for other neighbours: any non-negative matrix over the cells s * CAPSULE_DIM + d.
def past_only() -> Lattice:
    """(s, d) shares with (s - i, d - i + j), 0 <= i < WINDOW and |j| <= BAND. Only positions are circular, not time.

    Frame 0 has no past: the first frames have fewer neighbours, so their t have heavier tails and are larger.
    """
    s, d = np.divmod(np.arange(NUM_TIMESTEPS * CAPSULE_DIM), CAPSULE_DIM)
    frames_back = s[:, None] - s[None, :]  # from a row's cell to a column's
    from_band = (d[:, None] - d[None, :] - frames_back) % CAPSULE_DIM
    in_band = np.minimum(from_band, CAPSULE_DIM - from_band) <= BAND
    return from_matrix((frames_back >= 0) & (frames_back < WINDOW) & in_band, NUM_TIMESTEPS, CAPSULE_DIM)


LATTICE = past_only()


def model(frames: Tensor) -> None:
    """p(x, z, u)."""
    mu = pyro.param("mu", lambda: torch.tensor(30.0))
    with pyro.plate("sequences", frames.shape[0]):
        z = pyro.sample("z", dist.Normal(0.0, 1.0).expand(SHAPE).to_event(3))
        u = pyro.sample("u", dist.Normal(0.0, 1.0).expand(SHAPE).to_event(3))
        t = pyro.deterministic("t", (z + mu) / torch.sqrt(LATTICE.energy(u) + 1e-6), event_dim=3)
        logits = decoder(t, HIDDEN[::-1], frames.shape[-3:])
        pyro.sample("x", dist.Bernoulli(logits=logits).to_event(4), obs=frames)


def guide(frames: Tensor) -> None:
    """q(z | x) q(u | x), frame by frame: no frame is told of later ones."""
    with pyro.plate("sequences", frames.shape[0]):
        for name in ("z", "u"):
            loc, scale = encoder(name, frames, HIDDEN, SHAPE)
            pyro.sample(name, dist.Normal(loc, scale).to_event(3))
