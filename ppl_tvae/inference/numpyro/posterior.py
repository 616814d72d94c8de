"""Draws from the guide and what the model makes of them."""

from collections.abc import Callable, Mapping

import jax

from ppl_tvae.inference.numpyro.tracing import OBSERVED, program_traces
from ppl_tvae.program import Program


def reconstruction(program: Program) -> Callable[[Mapping[str, jax.Array], jax.Array, jax.Array], jax.Array]:
    """A compiled function (parameters, rng_key, frames) -> E[x | one draw of the latents from the guide]."""

    @jax.jit
    def mean_frames(parameters: Mapping[str, jax.Array], rng_key: jax.Array, frames: jax.Array) -> jax.Array:
        _, sites = program_traces(program, parameters, rng_key, frames)
        return sites[OBSERVED]["fn"].mean

    return mean_frames
