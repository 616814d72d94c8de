"""The Topographic VAE in JAX and optax alone, as one would write it without a probabilistic programming language.

The yardstick of `ppl_tvae.models.numpyro`: the same networks, diagonal normal guide, binarised pixels, ELBO with
analytic KL, and Adam, a chunk of steps in one compiled loop. Parameters have the flat names of ours. It uses
nothing of ppl_tvae but how a step is compiled (XLA's options, and products in fewer bits where they are asked for); W
and the function that renders frames are handed in.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ppl_tvae.inference.numpyro.device import jit_step

LOG_SCALE_BOUND = 7.0

Parameters = Mapping[str, jax.Array]


def initial_parameters(
    rng_key: jax.Array, shape: Sequence[int], hidden: Sequence[int], num_pixels: int, mu: float
) -> dict[str, jax.Array]:
    """shape: (S, C, D); hidden: sizes from the frames inwards, mirrored outwards."""
    size = shape[1] * shape[2]
    key_z, key_u, key_decoder = jax.random.split(rng_key, 3)
    return {
        "mu": jnp.asarray(mu, dtype=float),  # a weakly typed scalar would have the step compiled three times
        **_initial_mlp(key_z, "guide.z", [num_pixels, *hidden, 2 * size]),
        **_initial_mlp(key_u, "guide.u", [num_pixels, *hidden, 2 * size]),
        **_initial_mlp(key_decoder, "decoder", [size, *reversed(hidden), num_pixels]),
    }


def loss(
    parameters: Parameters, frames: jax.Array, noise: jax.Array, neighborhood: np.ndarray, epsilon: float
) -> jax.Array:
    """Minus the ELBO, nats per frame, mean over sequences.

    frames: (batch, S, height, width, channel) of zeros and ones; noise: (2, batch, S, C, D) standard normal, z then u;
    neighborhood: W, (S*D, S*D).
    """
    pixels = frames.reshape(*frames.shape[:2], -1)
    z, kl_z = _draw(parameters, "guide.z", pixels, noise[0])
    u, kl_u = _draw(parameters, "guide.u", pixels, noise[1])
    t = (z + parameters["mu"]) / jnp.sqrt(_energy(u, neighborhood) + epsilon)
    logits = _mlp(parameters, "decoder", t.reshape(*t.shape[:2], -1))
    cross_entropy = jnp.sum(jax.nn.softplus(logits) - pixels * logits)
    return (cross_entropy + kl_z + kl_u) / (frames.shape[0] * frames.shape[1])


def log_weights(
    parameters: Parameters,
    noise: jax.Array | None,
    rng_key: jax.Array,
    frames: jax.Array,
    num_particles: int,
    chunk: int,
    shape: Sequence[int],
    neighborhood: np.ndarray,
    epsilon: float,
) -> jax.Array:
    """log importance weights (num_particles, batch), nats per sequence; the encoders run once.

    noise: (num_particles, 2, batch, S, C, D), z then u, in place of what is drawn with the key.
    """
    pixels = frames.reshape(*frames.shape[:2], -1)
    posteriors = [_posterior(_mlp(parameters, name, pixels), shape) for name in ("guide.z", "guide.u")]

    def weight(particle: tuple[jax.Array, jax.Array | None]) -> jax.Array:
        key, given = particle
        drawn = jax.random.normal(key, (2, len(frames), *shape)) if given is None else given
        z, u = (loc + jnp.exp(log_scale) * eps for (loc, log_scale), eps in zip(posteriors, drawn, strict=True))
        t = (z + parameters["mu"]) / jnp.sqrt(_energy(u, neighborhood) + epsilon)
        logits = _mlp(parameters, "decoder", t.reshape(*t.shape[:2], -1))
        log_ratio = sum(
            log_scale + 0.5 * (eps**2 - x**2) for x, eps, (_, log_scale) in zip((z, u), drawn, posteriors, strict=True)
        )
        return jnp.sum(pixels * logits - jax.nn.softplus(logits), (1, 2)) + jnp.sum(log_ratio, (1, 2, 3))

    return jax.lax.map(weight, (jax.random.split(rng_key, num_particles), noise), batch_size=chunk)


def networks(parameters: Parameters, frames: jax.Array, num_particles: int, chunk: int) -> jax.Array:
    """What of it the networks are: the encoders once, the decoder for each particle's code; a number of no meaning."""
    pixels = frames.reshape(*frames.shape[:2], -1)
    codes = sum(_mlp(parameters, name, pixels) for name in ("guide.z", "guide.u"))
    code = codes[..., : parameters["decoder.0.weight"].shape[1]]

    def decoded(particle: jax.Array) -> jax.Array:
        return jnp.sum(_mlp(parameters, "decoder", code + particle), axis=(1, 2))

    return jax.lax.map(decoded, jnp.arange(num_particles, dtype=float), batch_size=chunk)


class Trainer:
    """Adam on the loss; `advance` takes a chunk of steps in one compiled call that renders its own frames."""

    def __init__(
        self,
        parameters: Parameters,
        neighborhood: np.ndarray,
        shape: Sequence[int],
        epsilon: float,
        learning_rate: float,
        render: Callable[[Any, Any], jax.Array],
        tables: Any,
    ) -> None:
        """render(tables, plan) -> frames, traced into the compiled step."""
        optimizer = optax.adam(learning_rate)

        def step(tables: Any, carry: Any, plan: Any) -> tuple[Any, jax.Array]:
            parameters, moments, rng_key = carry
            frames = render(tables, plan)
            rng_key, key_noise = jax.random.split(rng_key)
            noise = jax.random.normal(key_noise, (2, len(frames), *shape))
            value, gradient = jax.value_and_grad(loss)(parameters, frames, noise, neighborhood, epsilon)
            update, moments = optimizer.update(gradient, moments)
            return (optax.apply_updates(parameters, update), moments, rng_key), value

        self._state = (parameters, optimizer.init(parameters), jax.random.key(0))
        self._tables = tables
        self._advance = jit_step(
            lambda state, tables, plans: jax.lax.scan(lambda s, p: step(tables, s, p), state, plans)
        )

    def advance(self, plans: Any) -> np.ndarray:
        """Train on plans with leading axis (steps, ...); the loss of each step, (steps,)."""
        self._state, losses = self._advance(self._state, self._tables, plans)
        return np.asarray(losses)


def _draw(parameters: Parameters, name: str, pixels: jax.Array, noise: jax.Array) -> tuple[jax.Array, jax.Array]:
    """A draw of a latent, and the KL divergence of its posterior from N(0, 1), summed over everything."""
    loc, log_scale = _posterior(_mlp(parameters, name, pixels), noise.shape[1:])
    scale = jnp.exp(log_scale)
    return loc + scale * noise, jnp.sum(0.5 * (loc**2 + scale**2 - 1) - log_scale)


def _posterior(outputs: jax.Array, shape: Sequence[int]) -> tuple[jax.Array, jax.Array]:
    """loc and log scale, (batch, S, C, D) each, of an encoder's outputs (batch, S, 2 * C * D)."""
    num_timesteps, capsules, positions = shape
    loc, raw = jnp.split(outputs.reshape(len(outputs), num_timesteps, 2 * capsules, positions), 2, axis=2)
    return loc, LOG_SCALE_BOUND * jnp.tanh(raw / (2 * LOG_SCALE_BOUND))


def _energy(u: jax.Array, neighborhood: np.ndarray) -> jax.Array:
    cells = jnp.moveaxis(u * u, -3, -2)
    summed = cells.reshape(*cells.shape[:-2], -1) @ neighborhood.T.astype(u.dtype)
    return jnp.moveaxis(summed.reshape(cells.shape), -2, -3)


def _mlp(parameters: Parameters, name: str, x: jax.Array) -> jax.Array:
    depth = sum(parameter.startswith(f"{name}.") and parameter.endswith(".weight") for parameter in parameters)
    for layer in range(depth):
        x = x @ parameters[f"{name}.{2 * layer}.weight"].T + parameters[f"{name}.{2 * layer}.bias"]
        x = jax.nn.relu(x) if layer < depth - 1 else x
    return x


def _initial_mlp(rng_key: jax.Array, name: str, sizes: Sequence[int]) -> dict[str, jax.Array]:
    parameters = {}
    for layer, key in enumerate(jax.random.split(rng_key, len(sizes) - 1)):
        weight = jax.random.normal(key, (sizes[layer + 1], sizes[layer])) * sizes[layer] ** -0.5
        parameters[f"{name}.{2 * layer}.weight"] = weight
        parameters[f"{name}.{2 * layer}.bias"] = jnp.zeros(sizes[layer + 1])
    return parameters
