"""Can an importance-sampling estimate be believed? Pareto k-hat per sequence, and a verdict in words."""

import math
import warnings

import numpy as np

from ppl_tvae.inference.bounds import effective_sample_size

# The fit to a fifth of them is drawn towards 0.5 as if ten more said so: 25 draws of a good guide are above the limit.
FEWEST_DRAWS = 100
_ALIKE = 0.9  # of the draws, an effective sample size
_UNDERFLOW = 700.0  # nats below the largest weight


def khat(log_weights: np.ndarray) -> np.ndarray:
    """Shape of the generalised Pareto fitted to the largest weights, (num_particles, batch) -> (batch,).

    Below 0.5 the weights have a variance, below `khat_limit` the estimate is usable, above 1 they have no mean to
    estimate from so few draws. -inf where the largest weights are equal (a perfect guide), inf where they lie so
    far apart that all but the first are zero as floating-point numbers, nan of fewer than `FEWEST_DRAWS` and where
    the largest is not finite. Where most are equal and a few are larger there is no tail to fit: then inf if those
    few carry the estimate (fewer effective draws than a fit would take), else -inf. Through arviz-stats.
    """
    from arviz_stats.base import array_stats

    if log_weights.shape[0] < FEWEST_DRAWS:
        return np.full(log_weights.shape[1], np.nan)
    values = []
    tail = _largest_that_are_fitted(len(log_weights))
    for of_sequence in np.asarray(log_weights, np.float64).T:
        largest = np.sort(of_sequence)[-tail - 1 :]  # one that is not a number is the last
        if not np.isfinite(largest[-1]):
            values.append(np.nan)
            continue
        spread, of_tail = largest[-1] - largest[0], largest[-1] - largest[1]
        if of_tail < 1e-9:  # nothing to fit
            values.append(-np.inf)
            continue
        # The fit would see zeros alone, and call it good.
        if spread > _UNDERFLOW:
            values.append(np.inf)
            continue
        # It divides by the lower quartile of what lies above the cut, and would call a zero good too.
        if largest[int(tail / 4 + 0.5)] - largest[0] < 1e-9:
            values.append(np.inf if effective_sample_size(of_sequence) < tail else -np.inf)
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # its advice on large k-hats is what the caller asks for as a number
            # it takes log-likelihoods, whose importance weights in leave-one-out are their inverse: hence the sign
            values.append(float(array_stats.psislw(-of_sequence)[1]))
    return np.asarray(values)


def khat_limit(num_particles: int) -> float:
    """min(1 - 1/log10 K, 0.7): above it K draws do not suffice, above 0.7 no practical number of them.

    Vehtari, Simpson, Gelman, Yao & Gabry 2024 (JMLR 25), section 3.2.4. 0.5 at 100 draws, 0.7 from 2,155 on.
    """
    return min(1 - 1 / math.log10(num_particles), 0.7)


def _largest_that_are_fitted(num_particles: int) -> int:
    """As arviz-stats counts them: rounded down, and by the square root above 225 draws."""
    return num_particles // 5 if num_particles <= 225 else math.floor(3 * math.sqrt(num_particles))


def rounded(khat: float) -> float | None:
    """A k-hat to three digits, None where it is not known."""
    return None if np.isnan(khat) else round(float(khat), 3)


def verdict(khats: np.ndarray, effective_sample_sizes: np.ndarray, num_particles: int) -> str:
    """One sentence on whether importance sampling has found the posterior of most sequences."""
    size = f"median effective sample size {np.median(effective_sample_sizes):.1f} of {num_particles}"
    if num_particles < FEWEST_DRAWS:
        return f"too few draws to judge, at least {FEWEST_DRAWS} are needed for k-hat; {size}"
    if (unknown := np.isnan(khats)).any():
        return f"unreliable: no k-hat for {np.mean(unknown):.0%} of sequences, whose weights are not all finite"
    limit = khat_limit(num_particles)
    bad = float(np.mean(khats > limit))
    found = f"k-hat above {limit:.2g} for {bad:.0%} of sequences, {size}"
    if np.median(effective_sample_sizes) > _ALIKE * num_particles:
        found += (
            "; weights this much alike come of a guide that is nearly the posterior, and of latents that say nothing "
            "of the frames: see the rate that diagnose prints"
        )
    if bad <= 0.05:
        return f"reliable: {found}"
    if bad <= 0.5:
        return f"doubtful: {found}; read the IWAE bounds as bounds, not as log p(x)"
    return f"unreliable: {found}; the IWAE bounds may be far below log p(x), use ais"
