"""A topographic VAE in Pyro, to edit.

    ppl-tvae check FILE.py --backend pyro
    ppl-tvae train --model FILE.py --backend pyro --out runs/mine

    z[s,c,d] ~ Normal(0, 1)        u[s,c,d] ~ Normal(0, 1)        independent
    t = (z + mu) / sqrt(W u**2 + epsilon)
    x[s] ~ Bernoulli(decoder(t[s]))

What is asked of a program: functions `model(frames)` and `guide(frames)`; the model observes the frames at the site
"x"; the guide draws every latent of the model by its name; all sites lie in the plate "sequences". frames: (batch, S,
height, width, channel), values in [0, 1]. All else, names of sites and parameters too, is yours.
"""

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from ppl_tvae.models.lattice import shifting

S, C, D = 18, 18, 18  # frames of a sequence, capsules, positions in a capsule
HIDDEN = (972, 648)  # of the encoders; the decoder mirrors them
MU, EPSILON = 30.0, 1e-6
LATTICE = shifting(S, D, window=13, band=1)  # W: edit it; from_matrix, of the same module, takes your own


def prior_of_z() -> dist.TorchDistribution:
    return dist.Normal(torch.zeros(()), torch.ones(())).expand((S, C, D)).to_event(3)


def prior_of_u() -> dist.TorchDistribution:
    return dist.Normal(torch.zeros(()), torch.ones(())).expand((S, C, D)).to_event(3)


# Name on the command line what this observes: `--likelihood bernoulli` (the default) hands the program binarised
# pixels, every other name grey ones. It also labels the results.
def likelihood(logits: Tensor) -> dist.TorchDistribution:
    return dist.Bernoulli(logits=logits).to_event(4)


def model(frames: Tensor) -> None:
    """p(x, z, u)."""
    mu = pyro.param("mu", lambda: torch.tensor(MU))
    with pyro.plate("sequences", frames.shape[0]):
        z = pyro.sample("z", prior_of_z())
        u = pyro.sample("u", prior_of_u())
        t = pyro.deterministic("t", (z + mu) / torch.sqrt(LATTICE.energy(u) + EPSILON), event_dim=3)
        pyro.sample("x", likelihood(decoder(t, frames.shape)), obs=frames)


def guide(frames: Tensor) -> None:
    """q(z | x) q(u | x), frame by frame."""
    with pyro.plate("sequences", frames.shape[0]):
        for name in ("z", "u"):
            loc, scale = encoder(f"guide.{name}", frames)
            pyro.sample(name, dist.Normal(loc, scale).to_event(3))


def decoder(t: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Logits of the pixels, shaped as the frames."""
    height, width, channel = shape[-3:]
    logits = mlp("decoder", t.reshape(*t.shape[:-2], -1), (*HIDDEN[::-1], height * width * channel))
    return logits.reshape(*t.shape[:-2], height, width, channel)


def encoder(name: str, frames: Tensor) -> tuple[Tensor, Tensor]:
    """loc and scale of a latent, (batch, S, C, D) each."""
    out = mlp(name, frames.reshape(*frames.shape[:2], -1), (*HIDDEN, 2 * C * D))
    loc, raw = torch.chunk(out.reshape(*out.shape[:2], 2 * C, D), 2, dim=2)
    return loc, torch.exp(7 * torch.tanh(raw / 14))  # bounded: a scale that runs away ends in NaN


def mlp(name: str, x: Tensor, sizes: tuple[int, ...]) -> Tensor:
    """(..., in) -> (..., last size), with ReLUs between the layers."""
    for layer, size in enumerate(sizes):
        x = linear(f"{name}.{2 * layer}", torch.relu(x) if layer else x, size)
    return x


def linear(name: str, x: Tensor, size: int) -> Tensor:
    """(..., in) -> (..., size)."""
    shape = (size, x.shape[-1])
    weight = pyro.param(f"{name}.weight", lambda: torch.randn(shape) / shape[1] ** 0.5)
    bias = pyro.param(f"{name}.bias", lambda: torch.zeros(size))
    return torch.nn.functional.linear(x, weight, bias)
