"""Draws from guide and prior, what the model makes of them, and what it makes of a site that is set by hand."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from numpyro.primitives import Messenger

from ppl_tvae.errors import UserError
from ppl_tvae.inference.draw import DRAWS_OF_A_MEAN, Draw, settled
from ppl_tvae.inference.numpyro.tracing import (
    Trace,
    deterministic_sites,
    draw_observed,
    latent_sites,
    log_joint,
    log_prob,
    program_traces,
    traced,
)
from ppl_tvae.inference.sites import Site
from ppl_tvae.program import OBSERVED, Program

Parameters = Mapping[str, jax.Array]


def posterior_draw(program: Program, computed: Sequence[str]) -> Callable[[Parameters, jax.Array, jax.Array], Draw]:
    """A compiled function (parameters, rng_key, frames) -> a draw from the guide.

    computed: the deterministic sites to keep, `computed_sites`.
    """

    @jax.jit
    def draw(parameters: Parameters, rng_key: jax.Array, frames: jax.Array) -> Draw:
        key_latents, key_frames = jax.random.split(rng_key)
        guide_trace, model_trace = program_traces(program, parameters, key_latents, frames)
        log_weights = log_joint(model_trace) - log_joint(guide_trace)
        log_guide = {name: log_prob(site) for name, site in latent_sites(guide_trace).items()}
        found = _draw(model_trace, computed, key_frames)
        return found._replace(log_weights=log_weights, log_guide=log_guide)

    return draw


def prior_draw(program: Program, computed: Sequence[str]) -> Callable[[Parameters, jax.Array, jax.Array], Draw]:
    """A function (parameters, rng_key, frames) -> a draw from the model.

    computed: as of `posterior_draw`. frames give the shape, and what a mask leaves out. Raises UserError where no
    frames can be simulated (`settled`).
    """

    @jax.jit
    def beside(parameters: Parameters, rng_key: jax.Array, frames: jax.Array) -> Draw:
        key_latents, key_frames = jax.random.split(rng_key)
        return _draw(traced(program.model, parameters, key_latents, frames), computed, key_frames)

    def draw(parameters: Parameters, rng_key: jax.Array, frames: jax.Array) -> Draw:
        return settled(partial(beside, parameters, rng_key), frames)

    return draw


def decoding(program: Program, site: str) -> Callable[[Parameters, jax.Array, jax.Array, jax.Array], jax.Array]:
    """A compiled function (parameters, rng_key, values, frames) -> E[x | the model's site has these values].

    values: (batch, ...) in place of what the model computes or draws at the site; frames: of their shape. What x
    depends on beside the site is drawn from the prior. Raises UserError where the model has no such site.
    """

    @jax.jit
    def decode(parameters: Parameters, rng_key: jax.Array, values: jax.Array, frames: jax.Array) -> jax.Array:
        with _set_by_hand(site, values):
            sites = traced(program.model, parameters, rng_key, frames)
        if site not in deterministic_sites(sites) | latent_sites(sites):
            raise UserError(
                f"expected a site '{site}' in the model, from which frames can be decoded, found none; register it "
                f'with numpyro.deterministic("{site}", ...)'
            )
        return _mean(sites[OBSERVED], jax.random.fold_in(rng_key, 1))

    return decode


def _mean(site: Site, rng_key: jax.Array) -> jax.Array:
    """E[x | latents]; of a distribution of which the host has no mean, the average of draws."""
    try:
        return site["fn"].mean
    except NotImplementedError:
        return jnp.mean(site["fn"].sample(rng_key, (DRAWS_OF_A_MEAN,)), axis=0)


def _draw(model_trace: Trace, computed: Sequence[str], rng_key: jax.Array) -> Draw:
    observed = model_trace[OBSERVED]
    key_mean, key_frames = jax.random.fold_in(rng_key, 1), rng_key
    return Draw(
        {name: jnp.asarray(model_trace[name]["value"]) for name in (*latent_sites(model_trace), *computed)},
        _mean(observed, key_mean),
        draw_observed(observed, key_frames),
        log_prob(observed),
        None,
        {name: log_prob(site) for name, site in latent_sites(model_trace).items()},
        {},
    )


class _set_by_hand(Messenger):
    """A latent or deterministic site has the given value."""

    def __init__(self, site: str, value: jax.Array) -> None:
        super().__init__()
        self._site, self._value = site, value

    def process_message(self, msg: Any) -> None:
        if msg["type"] in ("deterministic", "sample") and msg["name"] == self._site and not msg.get("is_observed"):
            msg["value"] = self._value
