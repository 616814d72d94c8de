"""The Topographic VAE with convolutional networks in Pyro. Copy this file and edit the copy.

    ppl-tvae train --model examples/convolutional_pyro.py --backend pyro

    z[s,c,d] ~ Normal(0, 1)        u[s,c,d] ~ Normal(0, 1)
    t = (z + mu) / sqrt(W u**2 + epsilon)
    x[s] ~ Bernoulli(decoder(t[s]))

The packaged program, but for its networks: two convolutions that halve height and width, then a linear layer; the
decoder mirrors them. Frames (batch, S, height, width, channel) are of any size whose height and width 4 divides.
Weights have the layouts of torch's layers: `guide.z.0.weight` is (out, in, 4, 4), `decoder.2.weight` (in, out, 4, 4).
The twin in NumPyro is convolutional_numpyro.py; its parameters have the same names.
"""

import math

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor
from torch.nn import functional

from ppl_tvae.models.lattice import shifting
from ppl_tvae.models.pyro.networks import lecun_normal, linear, moments

NUM_TIMESTEPS, NUM_CAPSULES, CAPSULE_DIM = 18, 18, 18
SHAPE = (NUM_TIMESTEPS, NUM_CAPSULES, CAPSULE_DIM)
LATTICE = shifting(NUM_TIMESTEPS, CAPSULE_DIM, window=13, band=1)

# Edit here for wider or deeper networks: each layer halves height and width, so 2**len(CHANNELS) has to divide them.
CHANNELS = (32, 64)  # of the encoders; the decoder mirrors them


def weight(name: str, shape: tuple[int, ...], fan_in: int) -> Tensor:
    """A parameter of any shape that starts normal with variance 1 / fan-in."""
    draws = lecun_normal(name, (math.prod(shape) // fan_in, fan_in))
    return pyro.param(name, lambda: draws().reshape(shape))


def convolution(name: str, x: Tensor, out: int) -> Tensor:
    """(N, in, height, width) -> (N, out, height / 2, width / 2), with kernels of 4 x 4."""
    kernel = weight(f"{name}.weight", (out, x.shape[1], 4, 4), fan_in=16 * x.shape[1])
    bias = pyro.param(f"{name}.bias", lambda: torch.zeros(out))
    return functional.conv2d(x, kernel, bias, stride=2, padding=1)


def transposed_convolution(name: str, x: Tensor, out: int) -> Tensor:
    """(N, in, height, width) -> (N, out, 2 height, 2 width); a pixel meets a quarter of each kernel of 4 x 4."""
    kernel = weight(f"{name}.weight", (x.shape[1], out, 4, 4), fan_in=4 * x.shape[1])
    bias = pyro.param(f"{name}.bias", lambda: torch.zeros(out))
    return functional.conv_transpose2d(x, kernel, bias, stride=2, padding=1)


def encoder(name: str, frames: Tensor) -> tuple[Tensor, Tensor]:
    """loc and scale of a latent, (batch, S, C, D) each, from frames (batch, S, height, width, channel)."""
    x = torch.movedim(frames, -1, 2).reshape(-1, frames.shape[-1], *frames.shape[2:4])
    for layer, channels in enumerate(CHANNELS):
        x = torch.relu(convolution(f"guide.{name}.{2 * layer}", x, channels))
    x = x.reshape(*frames.shape[:2], -1)
    return moments(linear(f"guide.{name}.{2 * len(CHANNELS)}", x, 2 * NUM_CAPSULES * CAPSULE_DIM), SHAPE)


def decoder(t: Tensor, frame_shape: tuple[int, ...]) -> Tensor:
    """Logits of the pixels: t (batch, S, C, D) -> (batch, S, height, width, channel), each frame by itself."""
    height, width, channel = frame_shape
    smallest = (CHANNELS[-1], height // 2 ** len(CHANNELS), width // 2 ** len(CHANNELS))
    x = linear("decoder.0", t.reshape(*t.shape[:2], -1), math.prod(smallest)).reshape(-1, *smallest)
    for layer, channels in enumerate((*CHANNELS[-2::-1], channel), start=1):
        x = transposed_convolution(f"decoder.{2 * layer}", torch.relu(x), channels)
    return torch.movedim(x.reshape(*t.shape[:2], *x.shape[1:]), 2, -1)


def model(frames: Tensor) -> None:
    """p(x, z, u)."""
    mu = pyro.param("mu", lambda: torch.tensor(30.0))
    with pyro.plate("sequences", frames.shape[0]):
        z = pyro.sample("z", dist.Normal(0.0, 1.0).expand(SHAPE).to_event(3))
        u = pyro.sample("u", dist.Normal(0.0, 1.0).expand(SHAPE).to_event(3))
        t = pyro.deterministic("t", (z + mu) / torch.sqrt(LATTICE.energy(u) + 1e-6), event_dim=3)
        logits = decoder(t, frames.shape[-3:])
        pyro.sample("x", dist.Bernoulli(logits=logits).to_event(4), obs=frames)


def guide(frames: Tensor) -> None:
    """q(z | x) q(u | x), frame by frame."""
    with pyro.plate("sequences", frames.shape[0]):
        for name in ("z", "u"):
            loc, scale = encoder(name, frames)
            pyro.sample(name, dist.Normal(loc, scale).to_event(3))
