"""Does the code roll while the image moves? The paper's two measures, for any array library.

capsules: (B, S, C, D), the topographic code t; any floating-point type. One frame later is one position higher, so a
code that follows its images perfectly is `roll(+1)` per frame along D, circular. Every function returns one number per
sequence or per capsule, and leaves averages over sequences, with their standard errors, to the caller.

Keller & Welling 2021, "Topographic VAEs learn Equivariant Capsules" (arXiv 2109.01394), section 6: E_eq and CapCorr.
"""

import math
from typing import Any, TypeGuard

from array_api_compat import array_namespace

from ppl_tvae.data.placement import beside
from ppl_tvae.errors import UserError


def rolls(code: Any, num_timesteps: int) -> TypeGuard[Any]:
    """Whether a site's values (or None) are a code whose capsules can roll: (B, S, C, D), S and D above 1."""
    return code is not None and code.ndim == 4 and code.shape[1] == num_timesteps and min(code.shape[1::2]) > 1


def equivariance_error(capsules: Any, centred: bool = False) -> Any:
    """E_eq, how far capsules are from rolling by one position per frame: (B, S, C, D) -> (B,). Lower is better.

    Each capsule has unit L2 norm (one of zeros stays zeros). For every pair of times l < m, the L1 distance between the
    capsule at l rolled by m - l positions and the capsule at m; summed over pairs, capsules and positions. No unit.

    A capsule that is nearly constant over positions scores near zero whatever the images do. `centred` takes each
    capsule's mean over positions away first. What is then left of a constant capsule is rounding (a norm up to 4 D eps
    times its largest entry), which has no direction: a pair in which either capsule has none scores the mean distance
    of two independent directions. So a code that says nothing scores what noise does, 13,275 at S = C = D = 18.

    Values that are not finite give nan. Raises UserError for another shape or type, fewer than two times, or centred
    capsules of a single position.
    """
    _check_capsules(capsules)
    _, num_timesteps, _, capsule_dim = capsules.shape
    if num_timesteps < 2:
        raise UserError("expected capsules at two or more times to compare, found one; take longer sequences.")
    if centred and capsule_dim < 2:
        raise UserError("expected capsules of two or more positions, found one, which centring leaves nothing of.")
    xp = array_namespace(capsules)
    unit, directed = _directions(capsules, centred)
    # Rolling both of two capsules does not change their distance: each is rolled once, back by its own time.
    aligned = xp.stack([xp.roll(unit[:, s, ...], -s, axis=-1) for s in range(num_timesteps)], axis=1)
    total = 0.0
    # One lag after the other, since all pairs at once are S times the memory. Times lie on a circle here, so that the
    # lags k and S - k meet the same pairs, and k = S - k meets each pair twice.
    for lag in range(1, num_timesteps // 2 + 1):
        distance = xp.sum(xp.abs(xp.roll(aligned, lag, axis=1) - aligned), axis=-1)
        if centred:
            both = xp.roll(directed, lag, axis=1) & directed
            distance = xp.where(both, distance, _independent_distance(capsule_dim))
        total = total + xp.sum(distance, axis=(1, 2)) * (0.5 if 2 * lag == num_timesteps else 1.0)
    return total


def rolled_from(capsules: Any, start: int) -> Any:
    """The capsules at time `start` rolled to every time: (B, S, C, D), entry s rolled by s - start, back and forth.

    Decoded, it is a capsule traversal: what the sequence would be if the code did nothing but roll. Raises UserError.
    """
    _check_capsules(capsules)
    num_timesteps = capsules.shape[1]
    if not 0 <= start < num_timesteps:
        raise UserError(f"expected a time to start from in 0..{num_timesteps - 1}, found {start}")
    xp = array_namespace(capsules)
    return xp.stack([xp.roll(capsules[:, start, ...], s - start, axis=-1) for s in range(num_timesteps)], axis=1)


def estimated_offsets(capsules: Any, first: Any, other: Any) -> Any:
    """By how many positions each capsule has rolled between two times: (B, C) whole numbers in 0..D-1.

    first, other: (B,) times in 0..S-1, whole numbers. The argmax over k of the periodic cross-correlation
    sum_d first[d - k] other[d], the smallest k of those that are equal as rounded. A capsule that is constant at either
    time has no direction and estimates 0. Raises UserError also for values that are not finite, for which there is no
    argmax.
    """
    _check_capsules(capsules)
    batch, num_timesteps, _, capsule_dim = capsules.shape
    for name, times in (("first", first), ("other", other)):
        if times.shape != (batch,):
            raise UserError(f"expected times '{name}' of shape ({batch},), one a sequence, found {tuple(times.shape)}")
        _check_range(times, num_timesteps, f"times '{name}'")
    xp = array_namespace(capsules, first, other)
    sequence = xp.arange(batch, **beside(capsules))
    source, target = capsules[sequence, first, ...], capsules[sequence, other, ...]
    if not bool(xp.all(xp.isfinite(source) & xp.isfinite(target))):
        raise UserError("expected finite capsules, found nan or infinity at one of the two times; look at the code t.")
    # Centring adds a constant to the correlation and scaling a factor: neither moves the argmax, but beside the square
    # of a large mean (mu = 30) single precision would not see the differences.
    (source, _), (target, _) = _directions(source, centred=True), _directions(target, centred=True)
    products = [xp.sum(xp.roll(source, k, axis=-1) * target, axis=-1) for k in range(capsule_dim)]
    return xp.argmax(xp.stack(products, axis=-1), axis=-1)


def pooled_offset(offsets: Any, capsule_dim: int) -> Any:
    """The most frequent offset over the capsules, the smallest of equally frequent ones: (B, C) -> (B,), in 0..D-1."""
    if offsets.ndim != 2:
        raise UserError(f"expected offsets of shape (batch, capsule), found {tuple(offsets.shape)}")
    _check_range(offsets, capsule_dim, "offsets")
    xp = array_namespace(offsets)
    votes = offsets[:, :, None] == xp.arange(capsule_dim, **beside(offsets))
    return xp.argmax(xp.sum(xp.astype(votes, xp.int32), axis=1), axis=-1)


def capsule_correlation(estimated: Any, true: Any) -> Any:
    """CapCorr, Pearson's correlation over sequences of estimated and true offsets. Higher is better, at most 1.

    estimated: (B,) pooled over capsules, for a scalar; or (B, C), for (C,), one correlation per capsule. true: (B,).
    Where either is the same in all sequences, the correlation is 0 by definition. Offsets count as points on a line,
    as in the paper: 0 and D - 1 are far apart, although one roll leads from one to the other.
    """
    _check_offsets(estimated, true, at_least=2)
    xp = array_namespace(estimated, true)
    a, b = _deviations(estimated), _deviations(true)
    b = xp.reshape(b, (-1,) + (1,) * (a.ndim - 1))
    return _pearson(xp.sum(a * b, axis=0), xp.sum(a * a, axis=0), xp.sum(b * b, axis=0))


def capsule_correlation_standard_error(estimated: Any, true: Any, num_draws: int = 1) -> Any:
    """Standard error of `capsule_correlation` by the jackknife over sequences; same arguments, same shape.

    sqrt((B - 1) / B * sum over i of (r_i - mean r)**2), r_i the correlation without sequence i (Efron & Stein 1981).
    num_draws: where there are several codes of each of B sequences, one after the other, (B * num_draws, ...): they
    have the true offset in common, and are left out together.
    """
    return _jackknife(_correlations_without_each(estimated, true, num_draws))


def mean_capsule_correlation_standard_error(estimated: Any, true: Any, num_draws: int = 1) -> Any:
    """Jackknife standard error of the mean over capsules of `capsule_correlation`: (B * num_draws, C), ... -> ().

    Capsules see the same sequences, so their correlations do not err independently; their mean is jackknifed as one.
    """
    without = _correlations_without_each(estimated, true, num_draws)
    return _jackknife(array_namespace(without).mean(without, axis=1))


def _correlations_without_each(estimated: Any, true: Any, num_draws: int) -> Any:
    """`capsule_correlation` without each sequence in turn: (B,) or (B, C)."""
    _check_offsets(estimated, true, at_least=3 * num_draws)
    xp = array_namespace(estimated, true)
    a, b = _deviations(estimated), _deviations(true)
    b = xp.reshape(b, (-1,) + (1,) * (a.ndim - 1))
    return _pearson(_left_out(a, b, num_draws), _left_out_squares(a, num_draws), _left_out_squares(b, num_draws))


def _jackknife(without: Any) -> Any:
    xp = array_namespace(without)
    batch = without.shape[0]
    return xp.sqrt((batch - 1) / batch * xp.sum((without - xp.mean(without, axis=0)) ** 2, axis=0))


def _directions(capsules: Any, centred: bool) -> tuple[Any, Any]:
    """Capsules of unit norm (..., D), zeros where they have no direction; and whether they have one (...)."""
    xp = array_namespace(capsules)
    largest = xp.max(xp.abs(capsules), axis=-1, keepdims=True)
    # at the scale of 1, squares neither vanish nor overflow, and rounding is the same for every capsule
    scaled = capsules / xp.where(largest == 0, 1.0, largest)
    if centred:
        scaled = scaled - xp.mean(scaled, axis=-1, keepdims=True)
    norm = xp.sqrt(xp.sum(scaled * scaled, axis=-1, keepdims=True))
    rounding = 4 * capsules.shape[-1] * xp.finfo(capsules.dtype).eps  # of a mean of D numbers, with a margin
    directed = ~(norm <= rounding)  # nan is not "no direction": it has to stay visible
    unit = xp.where(directed, scaled / xp.where(directed, norm, 1.0), 0.0)
    return unit, directed[..., 0]


def _independent_distance(capsule_dim: int) -> float:
    """Mean L1 distance between independent directions, uniform among the unit vectors of mean zero with D positions.

    They lie on the unit sphere in n = D - 1 dimensions. The difference of two has the mean length
    2**(n-1) G(n/2)**2 / (sqrt(pi) G(n - 1/2)) and again a uniform direction, whose coordinates have the mean size
    G(n/2) / (sqrt(pi) G((n+1)/2)); a position is such a coordinate times sqrt(1 - 1/D). G is the gamma function.
    """
    n = capsule_dim - 1
    log_length = (n - 1) * math.log(2) + 2 * math.lgamma(n / 2) - math.lgamma(n - 0.5)
    log_coordinate = math.lgamma(n / 2) - math.lgamma((n + 1) / 2)
    return capsule_dim * math.sqrt(1 - 1 / capsule_dim) * math.exp(log_length + log_coordinate) / math.pi


def _deviations(values: Any) -> Any:
    """Floating-point deviations from the mean over sequences; exactly zero where all are the same."""
    xp = array_namespace(values)
    constant = xp.max(values, axis=0) == xp.min(values, axis=0)
    floats = values * 1.0  # offsets are whole numbers, and each library has its own default of precision
    return xp.where(constant, 0.0, floats - xp.mean(floats, axis=0))


def _pearson(products: Any, squares: Any, other_squares: Any) -> Any:
    """A correlation from sums of products of deviations; 0 where one of the two does not vary."""
    xp = array_namespace(products)
    scale = xp.sqrt(squares) * xp.sqrt(other_squares)
    return xp.where(scale == 0, 0.0, products / xp.where(scale == 0, 1.0, scale))


def _left_out(a: Any, b: Any, num_draws: int) -> Any:
    """Sums of a*b without each sequence in turn, about the mean of the others; a and b deviations from the whole mean.

    In closed form: B correlations of B sequences each would take a minute at 10,000 sequences.
    """
    xp = array_namespace(a, b)
    products, others = a * b, a.shape[0] - num_draws

    def of_sequence(values: Any) -> Any:
        return xp.sum(xp.reshape(values, (-1, num_draws, *values.shape[1:])), axis=1)

    return xp.sum(products, axis=0) - of_sequence(products) - of_sequence(a) * of_sequence(b) / others


def _left_out_squares(a: Any, num_draws: int) -> Any:
    """`_left_out(a, a)`, zero where rounding is all that is left: without the only sequence that differed."""
    xp = array_namespace(a)
    left = _left_out(a, a, num_draws)
    rounding = a.shape[0] * xp.finfo(a.dtype).eps * xp.sum(a * a, axis=0)
    return xp.where(left <= rounding, 0.0, left)


def _check_capsules(capsules: Any) -> None:
    xp = array_namespace(capsules)
    if capsules.ndim != 4:
        raise UserError(
            f"expected capsules of shape (batch, time, capsule, position), found {tuple(capsules.shape)}; "
            f"a single sequence is a batch of one."
        )
    if not xp.isdtype(capsules.dtype, "real floating"):
        raise UserError(f"expected capsules of a floating-point type, found {capsules.dtype}; convert them first.")


def _check_range(indices: Any, size: int, name: str) -> None:
    """Whole numbers in 0..size-1. Not left to the library: beyond the end JAX would take the last entry instead."""
    xp = array_namespace(indices)
    if not xp.isdtype(indices.dtype, "integral"):
        raise UserError(f"expected {name} as whole numbers, found {indices.dtype}; convert them first.")
    wrong = (indices < 0) | (indices >= size)
    if bool(xp.any(wrong)):
        raise UserError(f"expected {name} in 0..{size - 1}, found {int(indices[wrong][0])}")


def _check_offsets(estimated: Any, true: Any, at_least: int) -> None:
    if true.ndim != 1 or estimated.ndim not in (1, 2) or estimated.shape[0] != true.shape[0]:
        raise UserError(
            f"expected estimated offsets of shape (batch,) or (batch, capsule) beside true ones of shape (batch,), "
            f"found {tuple(estimated.shape)} and {tuple(true.shape)}"
        )
    if true.shape[0] < at_least:
        raise UserError(f"expected {at_least} or more sequences to correlate, found {true.shape[0]}; take more.")
