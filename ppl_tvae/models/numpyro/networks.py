"""The networks of the paper: multilayer perceptrons with ReLU, applied frame by frame.

Parameters have flat names with torch's layouts: `NAME.0.weight` (out, in), `NAME.0.bias` (out,), `NAME.2.weight`, ...
(odd numbers are the ReLUs). Weights start LeCun-normal and biases at zero, which learns in a few hundred steps where
torch's default uniform initialisation, used by the released code, takes thousands.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpyro

from ppl_tvae.models.initial import shared_normal

# Scales of the guide lie within exp(-LOG_SCALE_BOUND) ... exp(LOG_SCALE_BOUND): an unbounded log-variance ends in NaN.
LOG_SCALE_BOUND = 7.0


def lecun_normal(name: str, shape: tuple[int, int]) -> Callable[[Any], jax.Array]:
    """Normal draws of variance 1 / fan-in, for a weight of shape (out, in)."""

    def initial(rng_key: Any) -> jax.Array:
        shared = shared_normal(name, shape)
        if shared is None:
            return jax.random.normal(rng_key, shape) / shape[1] ** 0.5
        # Scaled by NumPy: the hosts' own divisions differ in the last bit.
        return jnp.asarray(shared / shape[1] ** 0.5)

    return initial


def linear(name: str, x: jax.Array, features: int) -> jax.Array:
    """(..., in) -> (..., features)."""
    weight = numpyro.param(f"{name}.weight", lecun_normal(f"{name}.weight", (features, x.shape[-1])))
    bias = numpyro.param(f"{name}.bias", lambda _: jnp.zeros(features))
    return x @ weight.T + bias


def mlp(name: str, x: jax.Array, hidden: Sequence[int], features: int) -> jax.Array:
    """(..., in) -> (..., features) through hidden layers of the given sizes."""
    return linear(f"{name}.{2 * len(hidden)}", hidden_layers(name, x, hidden), features)


def hidden_layers(name: str, x: jax.Array, hidden: Sequence[int]) -> jax.Array:
    """(..., in) -> (..., last of the given sizes), with ReLU after each."""
    for layer, width in enumerate(hidden):
        x = jax.nn.relu(linear(f"{name}.{2 * layer}", x, width))
    return x


def decoder(t: jax.Array, hidden: Sequence[int], frame_shape: Sequence[int]) -> jax.Array:
    """Logits of the pixels: t (..., S, C, D) -> (..., S, height, width, channel), each frame by itself."""
    height, width, channel = frame_shape
    logits = mlp("decoder", t.reshape(*t.shape[:-2], -1), hidden, height * width * channel)
    return logits.reshape(*t.shape[:-2], height, width, channel)


def encoder(name: str, frames: jax.Array, hidden: Sequence[int], shape: Sequence[int]) -> tuple[jax.Array, jax.Array]:
    """loc and scale of a latent, (batch, S, C, D) each, from frames (batch, S, height, width, channel)."""
    return moments(outputs(name, features(name, frames, hidden), hidden, shape), shape)


def features(name: str, frames: jax.Array, hidden: Sequence[int]) -> jax.Array:
    """An encoder's last hidden layer, (batch, S, hidden), each frame by itself."""
    return hidden_layers(f"guide.{name}", frames.reshape(*frames.shape[:2], -1), hidden)


def outputs(name: str, last_hidden: jax.Array, hidden: Sequence[int], shape: Sequence[int]) -> jax.Array:
    """An encoder's last layer, (batch, S, 2 * C * D), to be read by `moments`."""
    return linear(f"guide.{name}.{2 * len(hidden)}", last_hidden, 2 * shape[-2] * shape[-1])


def moments(outputs: jax.Array, shape: Sequence[int]) -> tuple[jax.Array, jax.Array]:
    """loc and scale, (batch, S, C, D) each, from (batch, S, 2 * C * D).

    The second half of the output is the log-variance while it is small; beyond that it saturates smoothly.
    """
    _, capsules, positions = shape
    loc, raw = jnp.split(outputs.reshape(*outputs.shape[:2], 2 * capsules, positions), 2, axis=2)
    return loc, jnp.exp(LOG_SCALE_BOUND * jnp.tanh(raw / (2 * LOG_SCALE_BOUND)))
