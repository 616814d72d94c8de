"""Settings of annealed importance sampling, its inverse temperatures and what it gives, the same for both backends."""

import math
from typing import NamedTuple

import numpy as np

from ppl_tvae.errors import UserError, check_count, unknown_name

STARTS = ("prior", "guide")
TEMPERATURE_SCHEDULES = ("linear", "sigmoid")

# Wu et al. 2016 (arXiv 1611.04273), section 4.1, use a sigmoid of this steepness.
_SIGMOID_STEEPNESS = 4.0
ADAPTATION_RATE = 0.2  # of the log step size, for each unit that the acceptance rate is off its target


class Annealing(NamedTuple):
    """How the path from a distribution one can draw from to the posterior is walked.

    start: "prior" or "guide", where chains are drawn; num_temperatures: intermediate distributions, both ends counted,
    so that 2 is plain importance sampling from the start; schedule: "linear" or "sigmoid" spacing;
    num_leapfrog_steps: of the one HMC move per temperature; num_chains: per sequence; target_acceptance: what the
    pilot run steers towards, with one step size that it carries from temperature to temperature; step_size: the first.
    """

    start: str = "guide"
    num_temperatures: int = 200
    schedule: str = "sigmoid"
    num_leapfrog_steps: int = 10
    num_chains: int = 1
    target_acceptance: float = 0.65
    step_size: float = 0.05


class Annealed(NamedTuple):
    """log_weights: (num_chains, batch), nats per sequence; acceptance_rates, step_sizes: (T-2,), per temperature."""

    log_weights: np.ndarray
    acceptance_rates: np.ndarray
    step_sizes: np.ndarray


def check_annealing(annealing: Annealing) -> None:
    """Raises UserError for settings that make no path."""
    if annealing.start not in STARTS:
        raise unknown_name("start of annealing", annealing.start, STARTS)
    if annealing.schedule not in TEMPERATURE_SCHEDULES:
        raise unknown_name("schedule of temperatures", annealing.schedule, TEMPERATURE_SCHEDULES)
    for name, least in (("num_temperatures", 2), ("num_leapfrog_steps", 1), ("num_chains", 1)):
        check_count(name, getattr(annealing, name), least)
    if not (0 < annealing.step_size < math.inf and 0 < annealing.target_acceptance < 1):
        raise UserError("expected a positive step_size and a target_acceptance between 0 and 1, found others")


def inverse_temperatures(schedule: str, num_temperatures: int) -> np.ndarray:
    """beta_0 = 0 < ... < beta_{T-1} = 1, (T,). "sigmoid" spends more of them near both ends."""
    even = np.linspace(0.0, 1.0, num_temperatures)
    if schedule == "linear":
        return even
    rising = 1 / (1 + np.exp(-_SIGMOID_STEEPNESS * (2 * even - 1)))
    return (rising - rising[0]) / (rising[-1] - rising[0])


class Path(NamedTuple):
    """The moves of one direction: weigh by increments[0], then for each i move at betas[i], weigh by increments[i+1].

    increments: (T-1,); betas, step_sizes: (T-2,).
    """

    increments: np.ndarray
    betas: np.ndarray
    step_sizes: np.ndarray

    def reversed(self) -> "Path":
        """From the posterior back to the start; HMC moves are reversible, so each is its own reverse."""
        return Path(*(part[::-1] for part in self))


def forward_path(annealing: Annealing) -> Path:
    """From the start to the posterior, with the step size that adaptation begins with at every temperature."""
    betas = inverse_temperatures(annealing.schedule, annealing.num_temperatures)
    return Path(np.diff(betas), betas[1:-1], np.full(len(betas) - 2, annealing.step_size))
