"""Arithmetic on log importance weights, for any array library.

log_weights: (num_particles, batch), nats, one weight per whole sequence; see `importance.py` of either backend. Bounds
and scores go up when the model fits better, one number per sequence, nats; each function says its unit.
"""

import math
from typing import Any

from array_api_compat import array_namespace


def elbo(log_weights: Any) -> Any:
    """Mean over particles of log w: (batch,). A lower bound of log p(x) in expectation."""
    return array_namespace(log_weights).mean(log_weights, axis=0)


def log_mean_exp(log_weights: Any, axis: int = 0) -> Any:
    """log of the mean of exp over an axis, without leaving log space; nan where one of them is nan."""
    xp = array_namespace(log_weights)
    largest = xp.max(log_weights, axis=axis, keepdims=True)
    largest = xp.where(xp.isfinite(largest), largest, xp.zeros_like(largest))  # all -inf stays -inf, not nan
    total = xp.sum(xp.exp(log_weights - largest), axis=axis)
    logarithm = xp.where(total == 0, -xp.inf, xp.log(xp.where(total == 0, xp.ones_like(total), total)))
    return logarithm + xp.squeeze(largest, axis=axis) - math.log(log_weights.shape[axis])


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


def standard_error(values: Any) -> float | None:
    """Of the mean over sequences, values (batch,): sample standard deviation / sqrt(batch); None of a single one."""
    count = values.shape[0]
    return float(array_namespace(values).std(values, correction=1)) / math.sqrt(count) if count > 1 else None


def effective_sample_size(log_weights: Any) -> Any:
    """(sum w)^2 / sum w^2 over particles: (batch,), between 1 and num_particles (Kong 1992)."""
    return array_namespace(log_weights).exp(
        2 * log_mean_exp(log_weights) - log_mean_exp(2 * log_weights) + math.log(log_weights.shape[0])
    )


def jackknifed_log_evidence(log_weights: Any) -> tuple[Any, Any]:
    """log mean w with its bias removed to order 1/K, and the estimate of that bias: (batch,) each, nats.

    Neither bound: the jackknife takes away -Var(w) / (2 K p(x)^2), which is of use only while that is small
    (Nowozin 2018, "Debiasing evidence approximations", equation 7).
    """
    xp = array_namespace(log_weights)
    num_particles = log_weights.shape[0]
    if num_particles < 2:
        raise ValueError(f"expected at least 2 particles for the jackknife, found {num_particles}")
    whole = log_mean_exp(log_weights)
    share = xp.exp(log_weights - whole) / num_particles  # of each particle in the sum
    # The sum without one particle, over num_particles. The largest can be all of the sum that floats hold: without it
    # the others are added up; without one of those, what is left is no difference of nearly equal numbers.
    numbers = xp.reshape(xp.arange(num_particles), (-1, *[1] * (log_weights.ndim - 1)))
    is_largest = numbers == xp.argmax(log_weights, axis=0, keepdims=True)
    others = log_mean_exp(xp.where(is_largest, -xp.inf, log_weights))
    left = xp.where(is_largest, others, whole + xp.log1p(-xp.where(is_largest, 0.0, share)))
    without = left - math.log1p(-1 / num_particles)
    bias = (num_particles - 1) * (xp.mean(without, axis=0) - whole)
    return whole - bias, bias


def released_is(frame_log_weights: Any) -> Any:
    """The released code's score: logsumexp over K draws of per-frame weights, WITHOUT - log K, mean over frames.

    frame_log_weights: (num_particles, batch, S), nats; returns (batch,), nats per frame. No bound of log p(x): frames
    share u, so their weights do not multiply to a weight of the sequence, and log K is left in (2.30 at K = 10).
    """
    xp = array_namespace(frame_log_weights)
    score = log_mean_exp(frame_log_weights) + math.log(frame_log_weights.shape[0])
    return xp.mean(score, axis=-1)
