"""Importance weights of whole sequences: log w = log p(x, latents) - log q(latents | x), latents drawn from the guide.

Frames of a sequence share latents, so a weight belongs to the sequence, never to a frame (Burda et al. 2016,
arXiv 1509.00519, for the bound made of them).
"""

from collections.abc import Callable, Mapping

import jax

from ppl_tvae.inference.numpyro.tracing import log_joint, program_traces, traces_at
from ppl_tvae.program import Program

LogWeights = Callable[[Mapping[str, jax.Array], jax.Array, jax.Array], jax.Array]


def log_weights(program: Program, num_particles: int, *, particles_per_chunk: int = 8) -> LogWeights:
    """A compiled function (parameters, rng_key, frames (batch, ...)) -> log weights (num_particles, batch), nats.

    Particles are drawn in chunks, so memory does not grow with their number.
    """

    def one_particle(parameters: Mapping[str, jax.Array], rng_key: jax.Array, frames: jax.Array) -> jax.Array:
        guide_trace, model_trace = program_traces(program, parameters, rng_key, frames)
        return log_joint(model_trace) - log_joint(guide_trace)

    @jax.jit
    def all_particles(parameters: Mapping[str, jax.Array], rng_key: jax.Array, frames: jax.Array) -> jax.Array:
        keys = jax.random.split(rng_key, num_particles)
        chunk = min(particles_per_chunk, num_particles)
        return jax.lax.map(lambda key: one_particle(parameters, key, frames), keys, batch_size=chunk)

    return all_particles


def log_weights_at(
    program: Program, parameters: Mapping[str, jax.Array], frames: jax.Array, latents: Mapping[str, jax.Array]
) -> jax.Array:
    """log p(x, latents) - log q(latents | x) at given latents, by site name, each (batch, ...): (batch,), nats."""
    guide_trace, model_trace = traces_at(program, parameters, frames, latents)
    return log_joint(model_trace) - log_joint(guide_trace)
