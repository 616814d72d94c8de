"""Arithmetic on log importance weights, for any array library.

log_weights: (num_particles, batch), nats, one weight per whole sequence; see `importance.py` of either backend. All
functions here go up when the model fits better, and return one number per sequence, nats per sequence.
"""

import math
from typing import Any

from array_api_compat import array_namespace


def elbo(log_weights: Any) -> Any:
    """Mean over particles of log w: (batch,). A lower bound of log p(x) in expectation."""
    return array_namespace(log_weights).mean(log_weights, axis=0)


def log_mean_exp(log_weights: Any, axis: int = 0) -> Any:
    """log of the mean of exp over an axis, without leaving log space."""
    xp = array_namespace(log_weights)
    largest = xp.max(log_weights, axis=axis, keepdims=True)
    largest = xp.where(xp.isfinite(largest), largest, xp.zeros_like(largest))  # all -inf stays -inf, not nan
    total = xp.sum(xp.exp(log_weights - largest), axis=axis)
    return xp.log(total) + xp.squeeze(largest, axis=axis) - math.log(log_weights.shape[axis])


def iwae_bound(log_weights: Any, num_particles: int) -> Any:
    """IWAE-K, E[log 1/K sum_k w_k] for K = num_particles: (batch,). A lower bound of log p(x) that rises with K.

    Where more particles were drawn than K, the mean over disjoint groups of K: unbiased for the bound, less noisy.
    Burda, Grosse & Salakhutdinov 2016, arXiv 1509.00519, equation 8.
    """
    xp = array_namespace(log_weights)
    groups = log_weights.shape[0] // num_particles
    if num_particles < 1 or groups < 1:
        raise ValueError(f"expected 1 <= num_particles <= {log_weights.shape[0]} drawn, found {num_particles}")
    used = log_weights[: groups * num_particles, ...]
    grouped = xp.reshape(used, (groups, num_particles, *log_weights.shape[1:]))
    return xp.mean(log_mean_exp(grouped, axis=1), axis=0)


def standard_error(values: Any) -> Any:
    """Standard error of the mean over sequences, values (batch,): sample standard deviation / sqrt(batch)."""
    xp = array_namespace(values)
    count = values.shape[0]
    return xp.std(values, correction=1) / math.sqrt(count) if count > 1 else math.nan
