"""The one-layer VAE of the IWAE paper (Burda et al. 2016, arXiv 1509.00519) in NumPyro, on single binarised images.

    ppl-tvae train --config examples/iwae_one_layer.toml --num-particles 50

    z ~ Normal(0, I), 50 of them      x ~ Bernoulli(decoder(z)), two hidden layers of 200 tanh each way

The twin in Pyro is iwae_one_layer_pyro.py; its parameters have the same names.
"""

import math

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist

from ppl_tvae.models.numpyro.networks import linear

NUM_LATENTS = 50
HIDDEN = (200, 200)


def tanh_mlp(name: str, x: jax.Array) -> jax.Array:
    """The last hidden layer: (..., in) -> (..., 200)."""
    for layer, width in enumerate(HIDDEN):
        x = jnp.tanh(linear(f"{name}.{layer}", x, width))
    return x


def model(frames: jax.Array) -> None:
    """p(x, z), each frame by itself."""
    shape = (frames.shape[1], NUM_LATENTS)
    with numpyro.plate("sequences", frames.shape[0]):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0).expand(shape).to_event(2))
        logits = linear("decoder.pixels", tanh_mlp("decoder", z), math.prod(frames.shape[2:])).reshape(frames.shape)
        numpyro.sample("x", dist.Bernoulli(logits=logits).to_event(4), obs=frames)


def guide(frames: jax.Array) -> None:
    """q(z | x), a diagonal normal."""
    hidden = tanh_mlp("guide", frames.reshape(*frames.shape[:2], -1))
    loc = linear("guide.loc", hidden, NUM_LATENTS)
    scale = jnp.exp(linear("guide.log_scale", hidden, NUM_LATENTS))
    with numpyro.plate("sequences", frames.shape[0]):
        numpyro.sample("z", dist.Normal(loc, scale).to_event(2))
