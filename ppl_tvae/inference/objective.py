"""What is trained, as settings and arithmetic that both backends share; see `objectives.py` of either."""

from typing import Any, NamedTuple

from array_api_compat import array_namespace


class Objective(NamedTuple):
    """A bound of log p(x) of each sequence.

    name: "elbo", "iwae", "iwae-dreg" or "renyi"; num_particles: draws from the guide in each bound, K (of "elbo":
    averaged); alpha: of "renyi"; kl_warmup_steps: of "elbo", steps over which the KL part rises to its full weight.
    """

    name: str
    num_particles: int = 1
    alpha: float = 0.0
    kl_warmup_steps: int = 0


ELBO = Objective("elbo")


def kl_weight(objective: Objective, step: Any) -> Any:
    """What the KL part of the ELBO is multiplied with at a step, counted from 0; an array of any library.

    0 at the first step, rising linearly to 1 at step kl_warmup_steps (Bowman et al. 2016, arXiv 1511.06349).
    """
    if not objective.kl_warmup_steps:
        return 1.0
    return array_namespace(step).clip(step / objective.kl_warmup_steps, 0.0, 1.0)
