"""A topographic VAE in NumPyro, to edit.

    ppl-tvae check FILE.py --backend numpyro
    ppl-tvae train --model FILE.py --backend numpyro --out runs/mine

    z[s,c,d] ~ Normal(0, 1)        u[s,c,d] ~ Normal(0, 1)        independent
    t = (z + mu) / sqrt(W u**2 + epsilon)
    x[s] ~ Bernoulli(decoder(t[s]))

What is asked of a program: functions `model(frames)` and `guide(frames)`; the model observes the frames at the site
"x"; the guide draws every latent of the model by its name; all sites lie in the plate "sequences". frames: (batch, S,
height, width, channel), values in [0, 1]. All else, names of sites and parameters too, is yours.
"""

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist

from ppl_tvae.models.lattice import shifting

S, C, D = 18, 18, 18  # frames of a sequence, capsules, positions in a capsule
HIDDEN = (972, 648)  # of the encoders; the decoder mirrors them
MU, EPSILON = 30.0, 1e-6
LATTICE = shifting(S, D, window=13, band=1)  # W: edit it; from_matrix, of the same module, takes your own


def prior_of_z() -> dist.Distribution:
    return dist.Normal(0.0, 1.0).expand((S, C, D)).to_event(3)


def prior_of_u() -> dist.Distribution:
    return dist.Normal(0.0, 1.0).expand((S, C, D)).to_event(3)


# Name on the command line what this observes: `--likelihood bernoulli` (the default) hands the program binarised
# pixels, every other name grey ones. It also labels the results.
def likelihood(logits: jax.Array) -> dist.Distribution:
    return dist.Bernoulli(logits=logits).to_event(4)


def model(frames: jax.Array) -> None:
    """p(x, z, u)."""
    mu = numpyro.param("mu", jnp.asarray(MU))
    with numpyro.plate("sequences", frames.shape[0]):
        z = numpyro.sample("z", prior_of_z())
        u = numpyro.sample("u", prior_of_u())
        t = numpyro.deterministic("t", (z + mu) / jnp.sqrt(LATTICE.energy(u) + EPSILON))
        numpyro.sample("x", likelihood(decoder(t, frames.shape)), obs=frames)


def guide(frames: jax.Array) -> None:
    """q(z | x) q(u | x), frame by frame."""
    with numpyro.plate("sequences", frames.shape[0]):
        for name in ("z", "u"):
            loc, scale = encoder(f"guide.{name}", frames)
            numpyro.sample(name, dist.Normal(loc, scale).to_event(3))


def decoder(t: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Logits of the pixels, shaped as the frames."""
    height, width, channel = shape[-3:]
    logits = mlp("decoder", t.reshape(*t.shape[:-2], -1), (*HIDDEN[::-1], height * width * channel))
    return logits.reshape(*t.shape[:-2], height, width, channel)


def encoder(name: str, frames: jax.Array) -> tuple[jax.Array, jax.Array]:
    """loc and scale of a latent, (batch, S, C, D) each."""
    out = mlp(name, frames.reshape(*frames.shape[:2], -1), (*HIDDEN, 2 * C * D))
    loc, raw = jnp.split(out.reshape(*out.shape[:2], 2 * C, D), 2, axis=2)
    return loc, jnp.exp(7 * jnp.tanh(raw / 14))  # bounded: a scale that runs away ends in NaN


def mlp(name: str, x: jax.Array, sizes: tuple[int, ...]) -> jax.Array:
    """(..., in) -> (..., last size), with ReLUs between the layers."""
    for layer, size in enumerate(sizes):
        x = linear(f"{name}.{2 * layer}", jax.nn.relu(x) if layer else x, size)
    return x


def linear(name: str, x: jax.Array, size: int) -> jax.Array:
    """(..., in) -> (..., size)."""
    shape = (size, x.shape[-1])
    weight = numpyro.param(f"{name}.weight", lambda key: jax.random.normal(key, shape) / shape[1] ** 0.5)
    bias = numpyro.param(f"{name}.bias", lambda _: jnp.zeros(size))
    return x @ weight.T + bias
