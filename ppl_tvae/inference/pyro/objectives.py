"""Training objectives: bounds of log p(x), one per sequence, never one for a batch.

Each is a function (objective, program, frames, step, vectorised=False) -> (batch,), nats, up. Its value is the bound at
fresh draws from the guide, its gradient an estimate of the derivative of the bound's expectation. vectorised: whether
the guide runs once for all particles, as it may where `is_vectorised` says so. The host's RenyiELBO turns into one
bound for the whole batch where a site lies outside the plate, without a word, and keeps a plate's scale inside the
logarithm; here the first is refused, and the second does not occur.
"""

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pyro
import torch
from torch import Tensor
from torch.distributions.kl import kl_divergence

from ppl_tvae.inference.mistakes import check_reparameterised
from ppl_tvae.inference.objective import Objective, kl_weight
from ppl_tvae.inference.pyro.particles import drawn, is_vectorisable, log_density_at, of_particles, repeated
from ppl_tvae.inference.pyro.tracing import (
    Trace,
    as_trace,
    latent_sites,
    log_joint,
    log_prob,
    observed_sites,
    program_traces,
    replayed,
    total,
)
from ppl_tvae.inference.pyro.tracing import per_sequence as summed
from ppl_tvae.inference.sites import Site, along_plate, has_inexact_kl
from ppl_tvae.program import Program


def elbo(guide_trace: Trace, model_trace: Trace, kl_weight: Any = 1.0) -> Tensor:
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


def mean_elbo(objective: Objective, program: Program, frames: Tensor, step: Any, vectorised: bool = False) -> Tensor:
    """The ELBO, averaged over particles, its KL part weighted as the warm-up says."""

    def bounds(frames: Tensor) -> Tensor:
        guide_trace, model_trace = program_traces(program, frames)
        check_reparameterised(latent_sites(guide_trace))
        return elbo(guide_trace, model_trace, kl_weight(objective, step)).expand(len(frames))

    size = objective.num_particles
    if vectorised:  # the model too: analytic KL divergences are between its distributions and the guide's
        return torch.mean(of_particles(partial(bounds, frames), size), dim=0)
    return torch.mean(bounds(repeated(frames, size)).unflatten(0, (size, -1)), dim=0)


def renyi(objective: Objective, program: Program, frames: Tensor, step: Any, vectorised: bool = False) -> Tensor:
    """The variational Renyi bound of Li & Turner 2016; its gradient is the derivative of the bound at the draws."""
    size = objective.num_particles
    latents, log_q = drawn(program, frames, size, _log_q, vectorised=vectorised)
    model_trace = replayed(program.model, repeated(frames, size), as_trace(latents))
    return renyi_bound(log_joint(model_trace).reshape(log_q.shape) - log_q, objective.alpha)


def iwae(objective: Objective, program: Program, frames: Tensor, step: Any, vectorised: bool = False) -> Tensor:
    """IWAE-K, log 1/K sum_k w_k, of Burda et al. 2016 (arXiv 1509.00519), with its plain gradient."""
    return renyi(objective._replace(alpha=0.0), program, frames, step, vectorised)


def iwae_dreg(objective: Objective, program: Program, frames: Tensor, step: Any, vectorised: bool = False) -> Tensor:
    """IWAE-K with the doubly reparameterised gradient (Tucker et al. 2019, arXiv 1810.04152, equation 8).

    With normalised weights v_k, a parameter's gradient is sum_k v_k d log p(x, z_k), as in IWAE, plus what reaches it
    through the draws, sum_k v_k**2 (d log w_k / d z_k) d z_k; the score d log q(z_k) drops out, for it is zero in
    expectation once reparameterised, and with it the noise that grows with K. log q is therefore evaluated again with
    constant parameters; a guide must be deterministic but for its sites.
    """
    size = objective.num_particles
    weight_of: dict[str, Tensor] = {}  # known when gradients come back; nothing whose own graph holds the hooks
    latents, _ = drawn(program, frames, size, _only_reparameterised, vectorised=vectorised)
    given = {name: _attenuated(value, partial(weight_of.__getitem__, name)) for name, value in latents.items()}
    with _constant_parameters():
        log_q = log_density_at(program, frames, size, given, log_joint, vectorised=vectorised)
    model_trace = replayed(program.model, repeated(frames, size), as_trace(given))
    log_w = log_joint(model_trace).reshape(log_q.shape) - log_q
    weights = torch.softmax(log_w.detach(), dim=0)
    weight_of |= {name: along_plate(model_trace.nodes[name], weights.reshape(-1)) for name in given}
    surrogate = torch.sum(torch.where(weights > 0, weights * log_w, 0.0), dim=0)  # where 0 times -inf would be nan
    return log_mean_exp(log_w.detach()) + (surrogate - surrogate.detach())


def renyi_bound(log_weights: Tensor, alpha: float) -> Tensor:
    """The variational Renyi bound, log(1/K sum_k w_k ** (1 - alpha)) / (1 - alpha): (batch,), nats per sequence.

    log_weights: (num_particles, batch), nats. It falls with alpha: 0 is the IWAE bound, 1 (the limit) the ELBO; both
    are lower bounds of log p(x) in expectation, and so is what lies between, while alpha < 0 can lie above.
    Li & Turner 2016, arXiv 1602.02311, equation 14.
    """
    if alpha == 1:
        return torch.mean(log_weights, dim=0)
    return log_mean_exp((1 - alpha) * log_weights) / (1 - alpha)


def log_mean_exp(log_weights: Tensor) -> Tensor:
    """log of the mean over particles of exp: (batch,). The host's own logsumexp, for its gradient.

    A gradient through a maximum that is taken and looked for in separately rounded copies can be 0/0.
    """
    return torch.logsumexp(log_weights, dim=0) - math.log(log_weights.shape[0])


OBJECTIVES: dict[str, Callable[..., Tensor]] = {
    "elbo": mean_elbo,
    "iwae": iwae,
    "iwae-dreg": iwae_dreg,
    "renyi": renyi,
}


def is_vectorised(objective: Objective, program: Program, frames: Tensor) -> bool:
    """Whether the guide can run once for all particles of an objective: tried on frames (batch, ...)."""
    several = objective._replace(num_particles=3)  # of two sequences: three fit nowhere by broadcasting

    def bound_and_gradient() -> None:
        leaves = [leaf for _, leaf in pyro.get_param_store().named_parameters() if leaf.requires_grad]
        with torch.enable_grad():
            bound = OBJECTIVES[objective.name](several, program, frames[:2], torch.zeros(()), vectorised=True)
            torch.autograd.grad(bound.sum(), leaves, allow_unused=True)

    return objective.num_particles > 1 and is_vectorisable(bound_and_gradient)


def _kl(posterior: Site, prior: Site) -> Tensor:
    masked = posterior["mask"] is not None or prior["mask"] is not None
    if masked or has_inexact_kl(posterior["fn"]) or has_inexact_kl(prior["fn"]):
        return log_prob(posterior) - log_prob(prior)
    try:
        return summed(prior, kl_divergence(posterior["fn"], prior["fn"]))
    except NotImplementedError:
        return log_prob(posterior) - log_prob(prior)


def _log_q(guide_trace: Trace) -> Tensor:
    check_reparameterised(latent_sites(guide_trace))
    return log_joint(guide_trace)


def _only_reparameterised(guide_trace: Trace) -> Tensor:
    check_reparameterised(latent_sites(guide_trace))
    return torch.zeros(())


def _attenuated(value: Tensor, weight: Callable[[], Tensor]) -> Tensor:
    """The same value, through which a gradient passes multiplied by a weight that is asked for then."""
    value = value.view_as(value)  # within the guide, gradients pass as they are
    if value.requires_grad:
        value.register_hook(lambda gradient: gradient * weight())
    return value


@contextmanager
def _constant_parameters() -> Iterator[None]:
    """Within the context, parameters have their values and no gradient, those inside of modules too."""
    leaves = [leaf for _, leaf in pyro.get_param_store().named_parameters() if leaf.requires_grad]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".* was not registered in the param store")
        for leaf in leaves:
            leaf.requires_grad_(False)
        try:
            yield
        finally:
            for leaf in leaves:
                leaf.requires_grad_(True)
