"""Training objectives: bounds of log p(x), one per sequence, from the traces of a program."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from numpyro.distributions.kl import kl_divergence

from ppl_tvae.inference.numpyro.tracing import Site, Trace, latent_sites, log_joint, log_prob, observed_sites
from ppl_tvae.inference.numpyro.tracing import per_sequence as summed


def elbo(guide_trace: Trace, model_trace: Trace) -> jax.Array:
    """The evidence lower bound of each sequence, (batch,), nats: E_q[log p(x | z)] - KL(q || p), one draw.

    The KL divergence of a site is analytic where the host knows it, otherwise log q - log p at the draw. Analytic
    terms are unbiased only while a site's prior does not depend on latents that the guide draws after it, so where
    model and guide have their sites in different orders, all of it is sampled.
    """
    prior, posterior = latent_sites(model_trace), latent_sites(guide_trace)
    if list(prior) != list(posterior):
        return log_joint(model_trace) - log_joint(guide_trace)
    evidence = sum((log_prob(site) for site in observed_sites(model_trace).values()), start=jnp.zeros(()))
    return evidence - sum(_kl(posterior[name], prior[name]) for name in prior)


def _kl(posterior: Site, prior: Site) -> jax.Array:
    try:
        return summed(prior, kl_divergence(posterior["fn"], prior["fn"]))
    except NotImplementedError:
        return log_prob(posterior) - log_prob(prior)


OBJECTIVES: dict[str, Callable[[Trace, Trace], jax.Array]] = {"elbo": elbo}
