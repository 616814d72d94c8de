"""Settings of the optimiser, the same for both backends."""

import math
from typing import Any, NamedTuple

from array_api_compat import array_namespace


class Optimization(NamedTuple):
    """How parameters are updated.

    method: "adam" or "sgd"; momentum: of sgd, or the first decay rate of adam; clip_norm: largest global norm of the
    gradient, 0 for none; schedule: "constant", "cosine" (to zero at num_steps) or "tripling" (see below);
    warmup_steps: linear rise; adam_epsilon: added to the root of adam's second moment.
    """

    method: str
    learning_rate: float
    momentum: float
    clip_norm: float
    schedule: str
    warmup_steps: int
    num_steps: int
    adam_epsilon: float = 1e-8


def learning_rate_factor(optimization: Optimization, step: Any) -> Any:
    """What the learning rate is multiplied with at a step, counted from 0; an array of any library, elementwise."""
    xp = array_namespace(step)
    rise = xp.minimum((step + 1) / max(1, optimization.warmup_steps), xp.ones_like(step + 1.0))
    if optimization.schedule == "constant":
        return rise
    span = optimization.num_steps - optimization.warmup_steps
    done = xp.clip((step - optimization.warmup_steps) / span, 0.0, 1.0)
    if optimization.schedule == "tripling":
        return rise * 10 ** (-_stage(xp, done) / (TRIPLING_STAGES - 1))
    return rise * 0.5 * (1 + xp.cos(math.pi * done))


# Burda et al. 2016 (arXiv 1509.00519, section 5): 3**i epochs at 0.001 * 10**(-i/7), i = 0..7; 3280 epochs in all.
TRIPLING_STAGES = 8


def _stage(xp: Any, done: Any) -> Any:
    """The stage, 0.0 ... 7.0, at a share of the run in [0, 1]; each stage is three times as long as the one before."""
    ends = [(3**stage - 1) / (3**TRIPLING_STAGES - 1) for stage in range(1, TRIPLING_STAGES)]
    return sum((xp.where(done >= end, xp.ones_like(done), xp.zeros_like(done)) for end in ends), xp.zeros_like(done))
