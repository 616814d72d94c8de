"""Importance weights of whole sequences: log w = log p(x, latents) - log q(latents | x), latents drawn from the guide.

Frames of a sequence share latents, so a weight belongs to the sequence, never to a frame (Burda et al. 2016,
arXiv 1509.00519, for the bound made of them).
"""

from collections.abc import Callable, Mapping
from functools import partial

import jax
import jax.numpy as jnp

from ppl_tvae.inference.numpyro.tracing import Trace, frame_log_joint, log_joint, program_traces
from ppl_tvae.program import Program

# Ctrl-C is heard between calls, which are waited for: seconds each at the paper's size.
_PARTICLES_PER_CALL = 512

LogWeights = Callable[[Mapping[str, jax.Array], jax.Array, jax.Array], jax.Array]


def log_weights(program: Program, num_particles: int, *, particles_per_chunk: int = 8) -> LogWeights:
    """A function (parameters, rng_key, frames (batch, ...)) -> log weights (num_particles, batch), nats.

    Particles are drawn in chunks, so memory does not grow with their number.
    """
    return _in_chunks(program, num_particles, particles_per_chunk, log_joint)


def frame_log_weights(program: Program, num_particles: int, *, particles_per_chunk: int = 8) -> LogWeights:
    """As `log_weights`, but per frame: (num_particles, batch, S). Weights of nothing where frames share latents.

    Only for `bounds.released_is`, the score of the authors' released code.
    """
    return _in_chunks(program, num_particles, particles_per_chunk, frame_log_joint)


def _in_chunks(
    program: Program, num_particles: int, chunk: int, log_density: Callable[[Trace], jax.Array]
) -> LogWeights:
    def one_particle(parameters: Mapping[str, jax.Array], rng_key: jax.Array, frames: jax.Array) -> jax.Array:
        guide_trace, model_trace = program_traces(program, parameters, rng_key, frames)
        return log_density(model_trace) - log_density(guide_trace)

    @jax.jit
    def some_particles(parameters: Mapping[str, jax.Array], keys: jax.Array, frames: jax.Array) -> jax.Array:
        draw = partial(one_particle, parameters, frames=frames)
        return jax.lax.map(draw, keys, batch_size=min(chunk, len(keys)))

    num_calls = -(-num_particles // max(chunk, _PARTICLES_PER_CALL))
    size = -(-num_particles // num_calls)  # the same for all calls, so that one program is compiled

    def all_particles(parameters: Mapping[str, jax.Array], rng_key: jax.Array, frames: jax.Array) -> jax.Array:
        keys = jax.random.split(rng_key, num_particles)
        # The last call may lack a few keys: it is given the first ones again, and what comes of these is dropped.
        keys = jnp.resize(keys, (num_calls, size))
        weights = [jax.block_until_ready(some_particles(parameters, some, frames)) for some in keys]
        return jnp.concatenate(weights)[:num_particles]

    return all_particles
