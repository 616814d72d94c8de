"""The host's automatic guides, fitted to one sequence at a time while the model stays as it is.

How far the program's own guide is from the best of its family for a sequence is its amortisation gap (Cremer, Li &
Duvenaud 2018, arXiv 1801.03558). Automatic guides couple all that they see, so a fit never sees two sequences.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from numpyro.handlers import block, substitute
from numpyro.infer import SVI, Trace_ELBO, init_to_value
from numpyro.infer.autoguide import AutoLowRankMultivariateNormal, AutoNormal
from numpyro.optim import Adam

from ppl_tvae.inference.numpyro.tracing import (
    Trace,
    from_the_reals,
    latent_sites,
    latent_values,
    program_traces,
    replayed,
    traced,
)
from ppl_tvae.inference.unamortised import Unamortised, check_whole_plate
from ppl_tvae.program import Program

_GUIDES: dict[str, Any] = {"auto-normal": AutoNormal, "auto-low-rank": AutoLowRankMultivariateNormal}
_PARTICLES_PER_CHUNK = 8


def unamortised_log_weights(
    program: Program,
    parameters: Mapping[str, jax.Array],
    rng_key: jax.Array,
    frames: jax.Array,
    num_particles: int,
    settings: Unamortised,
) -> jax.Array:
    """log weights (num_particles, batch), nats per sequence, with a guide fitted to each; frames (batch, ...).

    A fit begins at a draw from the program's guide. Raises UserError for latents without unconstrained coordinates,
    and for a plate larger than the batch.
    """
    keys = jax.random.split(rng_key, len(frames))
    each = [
        _of_one(program, parameters, key, one[None], num_particles, settings)
        for key, one in zip(keys, frames, strict=True)
    ]
    return jnp.stack(each, axis=1)


def _of_one(
    program: Program, parameters: Mapping[str, jax.Array], rng_key: jax.Array, frames: jax.Array, count: int,
    settings: Unamortised,
) -> jax.Array:  # fmt: skip
    key_start, key_fit, key_draws = jax.random.split(rng_key, 3)
    drawn, modelled = program_traces(program, parameters, key_start, frames)
    for name, site in latent_sites(modelled).items():
        from_the_reals(name, site["fn"].support)
        check_whole_plate(name, site["scale"])
    start = latent_values(drawn)
    # The model's parameters are hidden, so that the fit leaves them alone.
    model = block(substitute(program.model, data=dict(parameters)), hide_fn=lambda site: site["type"] == "param")
    guide = _GUIDES[settings.name](model, init_loc_fn=init_to_value(values=start))
    optimizer = Adam(lambda step: settings.learning_rate * settings.decay**step)
    fit = SVI(model, guide, optimizer, Trace_ELBO())
    fitted = fit.run(key_fit, settings.steps, frames, progress_bar=False).params

    def log_weight(key: jax.Array) -> jax.Array:
        key_guide, key_model = jax.random.split(key)
        guide_trace = traced(guide, fitted, key_guide, frames)
        model_trace = replayed(model, {}, key_model, frames, guide_trace)
        return _log_prob_sum(model_trace) - _log_prob_sum(guide_trace)

    return jax.lax.map(log_weight, jax.random.split(key_draws, count), batch_size=min(count, _PARTICLES_PER_CHUNK))


def _log_prob_sum(sites: Trace) -> jax.Array:
    """log-probability of everything random in a trace of one sequence: plates have nothing to say here."""
    random = [site for site in sites.values() if site["type"] == "sample"]
    return sum((jnp.sum(site["fn"].log_prob(site["value"])) for site in random), start=jnp.zeros(()))
