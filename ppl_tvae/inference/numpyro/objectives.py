"""Training objectives: bounds of log p(x), one per sequence, never one for a batch.

Each is a function (objective, program, parameters, rng_key, frames, step) -> (batch,), nats, up. Its value is the
bound at fresh draws from the guide, its gradient an estimate of the derivative of the bound's expectation. The hosts'
RenyiELBO turns into one bound for the whole batch where a site lies outside the plate, without a word; here such a
program is refused.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from numpyro.distributions.kl import kl_divergence
from numpyro.primitives import Messenger

from ppl_tvae.inference.mistakes import check_reparameterised
from ppl_tvae.inference.numpyro.tracing import (
    Trace,
    latent_sites,
    log_joint,
    log_prob,
    observed_sites,
    program_traces,
    replayed,
    total,
    traced,
)
from ppl_tvae.inference.numpyro.tracing import per_sequence as summed
from ppl_tvae.inference.objective import Objective, kl_weight
from ppl_tvae.inference.sites import Site, along_plate, has_inexact_kl
from ppl_tvae.program import Program

Parameters = Mapping[str, jax.Array]
Latents = Mapping[str, jax.Array]


def elbo(guide_trace: Trace, model_trace: Trace, kl_weight: Any = 1.0) -> jax.Array:
    """The evidence lower bound of each sequence, (batch,), nats: E_q[log p(x | z)] - KL(q || p), one draw.

    The KL divergence of a site is analytic where the host knows it, otherwise log q - log p at the draw. Analytic
    terms are unbiased only while a site's prior does not depend on latents that the guide draws after it, so where
    model and guide have their sites in different orders, all of it is sampled; so is that of a masked site, and of
    those of which `has_inexact_kl` speaks. With a kl_weight other than 1 it is a bound no longer.
    """
    prior, posterior = latent_sites(model_trace), latent_sites(guide_trace)
    evidence = total(observed_sites(model_trace))
    if list(prior) != list(posterior):
        return evidence - kl_weight * (total(posterior) - total(prior))
    return evidence - kl_weight * sum(_kl(posterior[name], prior[name]) for name in prior)


def mean_elbo(
    objective: Objective, program: Program, parameters: Parameters, rng_key: jax.Array, frames: jax.Array, step: Any
) -> jax.Array:
    """The ELBO, averaged over particles, its KL part weighted as the warm-up says."""

    def one_particle(key: jax.Array) -> jax.Array:
        return elbo(*_drawn_traces(program, parameters, key, frames), kl_weight(objective, step))

    return jnp.mean(_over_particles(one_particle, rng_key, objective.num_particles), axis=0)


def renyi(
    objective: Objective, program: Program, parameters: Parameters, rng_key: jax.Array, frames: jax.Array, step: Any
) -> jax.Array:
    """The variational Renyi bound of Li & Turner 2016; its gradient is the derivative of the bound at the draws."""

    def one_particle(key: jax.Array) -> jax.Array:
        guide_trace, model_trace = _drawn_traces(program, parameters, key, frames)
        return log_joint(model_trace) - log_joint(guide_trace)

    return renyi_bound(_over_particles(one_particle, rng_key, objective.num_particles), objective.alpha)


def iwae(
    objective: Objective, program: Program, parameters: Parameters, rng_key: jax.Array, frames: jax.Array, step: Any
) -> jax.Array:
    """IWAE-K, log 1/K sum_k w_k, of Burda et al. 2016 (arXiv 1509.00519), with its plain gradient."""
    return renyi(objective._replace(alpha=0.0), program, parameters, rng_key, frames, step)


def iwae_dreg(
    objective: Objective, program: Program, parameters: Parameters, rng_key: jax.Array, frames: jax.Array, step: Any
) -> jax.Array:
    """IWAE-K with the doubly reparameterised gradient (Tucker et al. 2019, arXiv 1810.04152, equation 8).

    With normalised weights v_k, a parameter's gradient is sum_k v_k d log p(x, z_k), as in IWAE, plus what reaches it
    through the draws, sum_k v_k**2 (d log w_k / d z_k) d z_k; the score d log q(z_k) drops out, for it is zero in
    expectation once reparameterised, and with it the noise that grows with K. log q is therefore evaluated again with
    constant parameters; a guide must be deterministic but for its sites.
    """
    keys = _keys(rng_key, objective.num_particles)

    def drawn(key: jax.Array) -> Mapping[str, Site]:
        key_guide, _ = jax.random.split(key)
        latents = latent_sites(traced(program.guide, parameters, key_guide, frames))
        check_reparameterised(latents)
        return latents

    def log_weight(parameters: Parameters, latents: Latents, key: jax.Array, frames: jax.Array) -> jax.Array:
        key_guide, key_model = jax.random.split(key)
        given = {name: site | {"value": latents[name]} for name, site in sites.items()}
        guide_trace = replayed(_constant(program.guide), parameters, key_guide, frames, given)
        model_trace = replayed(program.model, parameters, key_model, frames, guide_trace)
        return log_joint(model_trace) - log_joint(guide_trace)

    sites = drawn(keys[0])  # what is known of the latents but their values
    latents = jax.vmap(lambda key: {name: site["value"] for name, site in drawn(key).items()})(keys)
    log_weights = jax.vmap(log_weight, in_axes=(None, 0, 0, None))
    return _doubly_reparameterised(log_weights, sites)(parameters, latents, keys, frames)


def renyi_bound(log_weights: jax.Array, alpha: float) -> jax.Array:
    """The variational Renyi bound, log(1/K sum_k w_k ** (1 - alpha)) / (1 - alpha): (batch,), nats per sequence.

    log_weights: (num_particles, batch), nats. It falls with alpha: 0 is the IWAE bound, 1 (the limit) the ELBO; both
    are lower bounds of log p(x) in expectation, and so is what lies between, while alpha < 0 can lie above.
    Li & Turner 2016, arXiv 1602.02311, equation 14.
    """
    if alpha == 1:
        return jnp.mean(log_weights, axis=0)
    return log_mean_exp((1 - alpha) * log_weights) / (1 - alpha)


def log_mean_exp(log_weights: jax.Array) -> jax.Array:
    """log of the mean over particles of exp: (batch,). The host's own logsumexp, for its gradient.

    A gradient through a maximum that is taken and looked for in separately rounded copies can be 0/0.
    """
    return jax.nn.logsumexp(log_weights, axis=0) - math.log(log_weights.shape[0])


OBJECTIVES: dict[str, Callable[[Objective, Program, Parameters, jax.Array, jax.Array, Any], jax.Array]] = {
    "elbo": mean_elbo,
    "iwae": iwae,
    "iwae-dreg": iwae_dreg,
    "renyi": renyi,
}


def _kl(posterior: Site, prior: Site) -> jax.Array:
    if has_inexact_kl(posterior["fn"]) or has_inexact_kl(prior["fn"]):
        return log_prob(posterior) - log_prob(prior)
    try:
        return summed(prior, kl_divergence(posterior["fn"], prior["fn"]))
    except NotImplementedError:
        return log_prob(posterior) - log_prob(prior)


def _keys(rng_key: jax.Array, num_particles: int) -> jax.Array:
    return rng_key[None] if num_particles == 1 else jax.random.split(rng_key, num_particles)


def _over_particles(function: Callable[[jax.Array], jax.Array], rng_key: jax.Array, num_particles: int) -> jax.Array:
    """function(key) of every particle, (num_particles, ...); what does not depend on the key is computed once."""
    return jax.vmap(function)(_keys(rng_key, num_particles)) if num_particles > 1 else function(rng_key)[None]


def _drawn_traces(
    program: Program, parameters: Parameters, rng_key: jax.Array, frames: jax.Array
) -> tuple[Trace, Trace]:
    guide_trace, model_trace = program_traces(program, parameters, rng_key, frames)
    check_reparameterised(latent_sites(guide_trace))
    return guide_trace, model_trace


def _doubly_reparameterised(
    log_weights: Callable[..., jax.Array], sites: Mapping[str, Site]
) -> Callable[..., jax.Array]:
    """The IWAE bound of log_weights(parameters, latents, keys, frames), with the weights squared for the latents."""

    @jax.custom_vjp
    def bound(*arguments: Any) -> jax.Array:
        return log_mean_exp(log_weights(*arguments))

    def forward(parameters: Parameters, latents: Latents, *rest: Any) -> tuple[jax.Array, Any]:
        log_w, pull_back = jax.vjp(lambda *varied: log_weights(*varied, *rest), parameters, latents)
        return log_mean_exp(log_w), (jax.nn.softmax(log_w, axis=0), pull_back)

    def backward(residuals: Any, gradient: jax.Array) -> tuple[Any, ...]:
        weights, pull_back = residuals
        of_parameters, of_latents = pull_back(gradient * weights)
        return of_parameters, {name: attenuated(sites[name], of_latents[name], weights) for name in sites}, None, None

    def attenuated(site: Site, gradients: jax.Array, weights: jax.Array) -> jax.Array:
        return jax.vmap(lambda gradient, weight: gradient * along_plate(site, weight))(gradients, weights)

    bound.defvjp(forward, backward)
    return bound


class _constant(Messenger):
    """A function's parameters have their values and no gradient."""

    def postprocess_message(self, msg: Any) -> None:
        if msg["type"] == "param":
            msg["value"] = jax.lax.stop_gradient(msg["value"])
