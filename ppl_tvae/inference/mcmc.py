"""Settings of Markov chain Monte Carlo on the latents of a sequence, and what it gives, the same for both backends."""

import math
from typing import Any, NamedTuple

from ppl_tvae.errors import UserError, check_count, check_is, unknown_name

KERNELS = ("nuts", "hmc")


class MCMC(NamedTuple):
    """Chains of the host's kernel on the posterior of each sequence alone, with all parameters fixed.

    kernel: "nuts" (Hoffman & Gelman 2014, arXiv 1111.4246) or "hmc"; num_warmup: iterations that adapt step size and
    diagonal mass matrix, and are thrown away; num_draws: kept, of each chain; num_chains: of each sequence, each with
    an adaptation of its own; max_tree_depth: of nuts, at most 2**max_tree_depth - 1 leapfrog steps in an iteration;
    trajectory_length: of hmc, leapfrog steps times step size, where a normal of unit scale has the period 2 pi (Pyro
    rounds the number of steps down, NumPyro changes the step to fit); target_acceptance: what steps are adapted to.
    """

    kernel: str = "nuts"
    num_warmup: int = 200
    num_draws: int = 200
    num_chains: int = 4
    max_tree_depth: int = 6
    trajectory_length: float = 2.0
    target_acceptance: float = 0.8


def check_mcmc(settings: MCMC) -> None:
    """Raises UserError where a number is out of range."""
    check_is("mcmc", settings, MCMC)
    if settings.kernel not in KERNELS:
        raise unknown_name("kernel of MCMC", settings.kernel, KERNELS)
    for name in ("num_warmup", "num_draws", "num_chains", "max_tree_depth"):
        check_count(name, getattr(settings, name))
    if not (0 < settings.trajectory_length < math.inf and 0 < settings.target_acceptance < 1):
        raise UserError("expected a positive trajectory_length and a target_acceptance between 0 and 1, found others")


class Chains(NamedTuple):
    """Draws of several chains for each sequence of a batch: a `Draw` without frames, and how they came about.

    sites: values of the latents and of what the model computes from them, by name, each (chain, draw, batch, ...).
    The others are (chain, draw, batch): log_likelihood: log p(x | latents), nats; log_joint: log p(x, latents) as a
    density in unconstrained space, nats; energy: of the trajectory, minus that plus kinetic energy, nats;
    acceptance_rate: averaged over the trajectory; diverging: whether its energy broke away; num_steps: leapfrog steps;
    step_size: after warm-up, the same for all draws of a chain.
    """

    sites: dict[str, Any]
    log_likelihood: Any
    log_joint: Any
    energy: Any
    acceptance_rate: Any
    diverging: Any
    num_steps: Any
    step_size: Any


def bad_start(name: str) -> UserError:
    """What is said where a chain cannot begin at a draw of the guide."""
    return UserError(
        f"expected draws from the guide at which the model's density is finite, to start MCMC from, found one where it "
        f"is not ({name}); give the guide the support of the prior, or train it further"
    )
