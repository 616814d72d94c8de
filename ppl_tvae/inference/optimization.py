"""Settings of the optimiser, the same for both backends."""

import math
from typing import Any, NamedTuple

from array_api_compat import array_namespace


class Optimization(NamedTuple):
    """How parameters are updated.

    method: "adam" or "sgd"; momentum: of sgd, or the first decay rate of adam; clip_norm: largest global norm of the
    gradient, 0 for none; schedule: "constant", or "cosine" (to zero at num_steps); warmup_steps: linear rise.
    """

    method: str
    learning_rate: float
    momentum: float
    clip_norm: float
    schedule: str
    warmup_steps: int
    num_steps: int


def learning_rate_factor(optimization: Optimization, step: Any) -> Any:
    """What the learning rate is multiplied with at a step, counted from 0; an array of any library, elementwise."""
    xp = array_namespace(step)
    rise = xp.minimum((step + 1) / max(1, optimization.warmup_steps), xp.ones_like(step + 1.0))
    if optimization.schedule == "constant":
        return rise
    span = optimization.num_steps - optimization.warmup_steps
    done = xp.clip((step - optimization.warmup_steps) / span, 0.0, 1.0)
    return rise * 0.5 * (1 + xp.cos(math.pi * done))
