"""The Topographic VAE with convolutional networks in NumPyro. Copy this file and edit the copy.

    ppl-tvae train --model examples/convolutional_numpyro.py --backend numpyro

    z[s,c,d] ~ Normal(0, 1)        u[s,c,d] ~ Normal(0, 1)
    t = (z + mu) / sqrt(W u**2 + epsilon)
    x[s] ~ Bernoulli(decoder(t[s]))

The packaged program, but for its networks: two convolutions that halve height and width, then a linear layer; the
decoder mirrors them. Frames (batch, S, height, width, channel) are of any size whose height and width 4 divides.
Weights have the layouts of torch's layers: `guide.z.0.weight` is (out, in, 4, 4), `decoder.2.weight` (in, out, 4, 4).
The twin in Pyro is convolutional_pyro.py; its parameters have the same names.
"""

import math

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist

from ppl_tvae.models.lattice import shifting
from ppl_tvae.models.numpyro.networks import lecun_normal, linear, moments

NUM_TIMESTEPS, NUM_CAPSULES, CAPSULE_DIM = 18, 18, 18
SHAPE = (NUM_TIMESTEPS, NUM_CAPSULES, CAPSULE_DIM)
LATTICE = shifting(NUM_TIMESTEPS, CAPSULE_DIM, window=13, band=1)

# Edit here for wider or deeper networks: each layer halves height and width, so 2**len(CHANNELS) has to divide them.
CHANNELS = (32, 64)  # of the encoders; the decoder mirrors them


def weight(name: str, shape: tuple[int, ...], fan_in: int) -> jax.Array:
    """A parameter of any shape that starts normal with variance 1 / fan-in."""
    draws = lecun_normal(name, (math.prod(shape) // fan_in, fan_in))
    return numpyro.param(name, lambda rng_key: draws(rng_key).reshape(shape))


def convolution(name: str, x: jax.Array, out: int) -> jax.Array:
    """(N, in, height, width) -> (N, out, height / 2, width / 2), with kernels of 4 x 4."""
    kernel = weight(f"{name}.weight", (out, x.shape[1], 4, 4), fan_in=16 * x.shape[1])
    bias = numpyro.param(f"{name}.bias", lambda _: jnp.zeros(out))
    return conv2d(x, kernel) + bias[:, None, None]


def transposed_convolution(name: str, x: jax.Array, out: int) -> jax.Array:
    """(N, in, height, width) -> (N, out, 2 height, 2 width); a pixel meets a quarter of each kernel of 4 x 4."""
    kernel = weight(f"{name}.weight", (x.shape[1], out, 4, 4), fan_in=4 * x.shape[1])
    bias = numpyro.param(f"{name}.bias", lambda _: jnp.zeros(out))
    large = jax.ShapeDtypeStruct((x.shape[0], out, 2 * x.shape[2], 2 * x.shape[3]), x.dtype)
    (x,) = jax.linear_transpose(lambda y: conv2d(y, kernel), large)(x)
    return x + bias[:, None, None]


def conv2d(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """As torch's with stride 2 and padding 1: matrix products over cells of 2 x 2 pixels, of which a kernel sees 2 x 2.

    XLA's own convolutions take ten times as long on a CPU inside a compiled loop, as training is (jax issue 12868).
    """
    height, width = x.shape[2] // 2, x.shape[3] // 2
    padded = jnp.pad(x, [(0, 0), (0, 0), (1, 1), (1, 1)])[:, :, : 2 * height + 2, : 2 * width + 2]
    cells = padded.reshape(*x.shape[:2], height + 1, 2, width + 1, 2)
    kernel = kernel.reshape(*kernel.shape[:2], 2, 2, 2, 2)
    return sum(
        jnp.einsum("nihawb,oiab->nohw", cells[:, :, i : i + height, :, j : j + width], kernel[:, :, i, :, j])
        for i, j in ((0, 0), (0, 1), (1, 0), (1, 1))
    )


def encoder(name: str, frames: jax.Array) -> tuple[jax.Array, jax.Array]:
    """loc and scale of a latent, (batch, S, C, D) each, from frames (batch, S, height, width, channel)."""
    x = jnp.moveaxis(frames, -1, 2).reshape(-1, frames.shape[-1], *frames.shape[2:4])
    for layer, channels in enumerate(CHANNELS):
        x = jax.nn.relu(convolution(f"guide.{name}.{2 * layer}", x, channels))
    x = x.reshape(*frames.shape[:2], -1)
    return moments(linear(f"guide.{name}.{2 * len(CHANNELS)}", x, 2 * NUM_CAPSULES * CAPSULE_DIM), SHAPE)


def decoder(t: jax.Array, frame_shape: tuple[int, ...]) -> jax.Array:
    """Logits of the pixels: t (batch, S, C, D) -> (batch, S, height, width, channel), each frame by itself."""
    height, width, channel = frame_shape
    smallest = (CHANNELS[-1], height // 2 ** len(CHANNELS), width // 2 ** len(CHANNELS))
    x = linear("decoder.0", t.reshape(*t.shape[:2], -1), math.prod(smallest)).reshape(-1, *smallest)
    for layer, channels in enumerate((*CHANNELS[-2::-1], channel), start=1):
        x = transposed_convolution(f"decoder.{2 * layer}", jax.nn.relu(x), channels)
    return jnp.moveaxis(x.reshape(*t.shape[:2], *x.shape[1:]), 2, -1)


def model(frames: jax.Array) -> None:
    """p(x, z, u)."""
    mu = numpyro.param("mu", jnp.asarray(30.0))
    with numpyro.plate("sequences", frames.shape[0]):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0).expand(SHAPE).to_event(3))
        u = numpyro.sample("u", dist.Normal(0.0, 1.0).expand(SHAPE).to_event(3))
        t = numpyro.deterministic("t", (z + mu) / jnp.sqrt(LATTICE.energy(u) + 1e-6))
        logits = decoder(t, frames.shape[-3:])
        numpyro.sample("x", dist.Bernoulli(logits=logits).to_event(4), obs=frames)


def guide(frames: jax.Array) -> None:
    """q(z | x) q(u | x), frame by frame."""
    with numpyro.plate("sequences", frames.shape[0]):
        for name in ("z", "u"):
            loc, scale = encoder(name, frames)
            numpyro.sample(name, dist.Normal(loc, scale).to_event(3))
