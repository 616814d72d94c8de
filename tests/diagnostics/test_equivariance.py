"""E_eq and CapCorr against loops over their definitions, and against what noise and constants have to score."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from ppl_tvae.diagnostics.equivariance import (
    capsule_correlation,
    capsule_correlation_standard_error,
    equivariance_error,
    estimated_offsets,
    mean_capsule_correlation_standard_error,
    pooled_offset,
    rolled_from,
)
from ppl_tvae.errors import UserError
from tests.conftest import STANDARD_ERRORS

LIBRARIES = [np.asarray, jnp.asarray, torch.as_tensor]


def noise(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def rolling(batch, num_timesteps, num_capsules, capsule_dim, seed=0):
    """Capsules that roll by one position per frame, whatever they hold at time 0."""
    start = noise(batch, num_capsules, capsule_dim, seed=seed)
    return np.stack([np.roll(start, s, axis=-1) for s in range(num_timesteps)], axis=1)


def error_by_loops(sequence, centred):
    """E_eq of one sequence (S, C, D)."""
    total = 0.0
    for later in range(len(sequence)):
        for earlier in range(later):
            for capsule in range(sequence.shape[1]):
                a, b = sequence[earlier, capsule], sequence[later, capsule]
                if centred:
                    a, b = a - a.mean(), b - b.mean()
                a, b = a / np.linalg.norm(a), b / np.linalg.norm(b)
                total += sum(abs(a[(d - later + earlier) % len(a)] - b[d]) for d in range(len(a)))
    return total


def test_error_by_hand():
    moves_on = [[3.0, 4, 0], [0, 3, 4]]
    stays = [[0.0, 2, 0], [0, 7, 0]]  # rolled it is (0, 0, 1) beside (0, 1, 0)
    backwards = [[3.0, 4, 0], [4, 0, 3]]  # rolled it is (0, 0.6, 0.8) beside (0.8, 0, 0.6)
    vanishes = [[0.0, 0, 5], [0, 0, 0]]
    capsules = np.array([moves_on, stays, backwards, vanishes])[:, :, None, :]
    np.testing.assert_allclose(equivariance_error(capsules), [0, 2, 1.6, 1], atol=1e-15)


@pytest.mark.parametrize("shape", [(3, 2, 1, 2), (2, 5, 3, 4), (2, 4, 2, 7), (1, 8, 2, 3), (2, 6, 2, 6)])
@pytest.mark.parametrize("centred", [False, True])
def test_error_is_its_definition(shape, centred):
    capsules = noise(*shape) + 0.5
    expected = [error_by_loops(sequence, centred) for sequence in capsules]
    np.testing.assert_allclose(equivariance_error(capsules, centred), expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("centred", [False, True])
def test_rolling_capsules_have_no_error_and_rolling_back_has(centred):
    capsules = rolling(4, 6, 3, 5)
    np.testing.assert_allclose(equivariance_error(capsules, centred), 0, atol=1e-12)
    assert (equivariance_error(capsules[:, ::-1], centred) > 10).all()


@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("scale", [1e-30, -4.0, 1e30])
def test_error_does_not_know_the_scale(centred, scale):
    capsules = noise(3, 4, 2, 5).astype(np.float32)
    expected = equivariance_error(capsules, centred)
    np.testing.assert_allclose(equivariance_error(capsules * np.float32(scale), centred), expected, rtol=1e-5)


@pytest.mark.parametrize("make", LIBRARIES)
@pytest.mark.parametrize("constant", [0.1, 30.0, -1e-8, 7e12])
def test_a_constant_code_has_no_error_but_centred_the_error_of_independent_directions(make, constant):
    B, S, C, D = 4000, 2, 2, 6
    capsules = make(np.full((1, S, C, D), constant, np.float32))
    assert float(equivariance_error(capsules)[0]) == pytest.approx(0, abs=1e-5)
    independent = equivariance_error(noise(B, S, C, D), centred=True)
    allowed = STANDARD_ERRORS * independent.std() / np.sqrt(B)
    assert abs(float(equivariance_error(capsules, centred=True)[0]) - independent.mean()) < allowed


def test_rounding_is_no_direction_even_where_it_rolls():
    one_hot = np.stack([np.roll(np.eye(1, 5), s, axis=-1) for s in range(4)])[None].astype(np.float32)
    nothing = equivariance_error(np.zeros_like(one_hot), centred=True)
    last_place = np.where(one_hot > 0, np.nextafter(np.float32(30), np.float32(31)), np.float32(30))
    np.testing.assert_array_equal(equivariance_error(last_place, centred=True), nothing)
    assert equivariance_error(30 + one_hot / 100, centred=True) < 0.01 * nothing


@pytest.mark.parametrize("D", [2, 3, 18])
def test_a_pair_with_one_constant_capsule_counts_as_independent(D):
    capsules = noise(1, 3, 1, D)
    capsules[0, 1] = 30.0  # pairs (0, 1) and (1, 2); (0, 2) has its own distance
    without = equivariance_error(np.stack([capsules[:, 0], np.roll(capsules[:, 2], -1, axis=-1)], 1), centred=True)
    constant = equivariance_error(np.zeros((1, 2, 1, D)), centred=True)
    np.testing.assert_allclose(equivariance_error(capsules, centred=True), without + 2 * constant, rtol=1e-12)


@pytest.mark.parametrize("make", LIBRARIES)
def test_small_noise_beside_a_large_mean_scores_low_only_uncentred(make):
    capsules = make((30 + 0.1 * noise(8, 7, 20, 8)).astype(np.float32))
    nothing = float(equivariance_error(make(np.zeros((1, 7, 20, 8), np.float32)), centred=True)[0])
    assert (np.asarray(equivariance_error(capsules)) < 0.01 * nothing).all()
    assert (np.asarray(equivariance_error(capsules, centred=True)) > 0.9 * nothing).all()


def test_noise_scores_what_the_paper_measured_for_the_vae():
    errors = equivariance_error(noise(40, 18, 18, 18))
    assert errors.mean() == pytest.approx(13_270, rel=2e-3)
    assert equivariance_error(np.ones((1, 18, 18, 18)), centred=True)[0] == pytest.approx(13_275, abs=1)


@pytest.mark.parametrize("centred", [False, True])
def test_nan_stays_visible(centred):
    capsules = noise(3, 4, 2, 5)
    capsules[1, 2, 0, 3] = np.nan
    np.testing.assert_array_equal(np.isnan(equivariance_error(capsules, centred)), [False, True, False])


@pytest.mark.parametrize("D", [4, 7])
def test_rolled_from_any_time_is_the_whole_of_a_rolling_sequence(D):
    capsules = rolling(2, 5, 3, D)
    for start in range(5):
        np.testing.assert_array_equal(rolled_from(capsules, start), capsules)
    from_noise = rolled_from(noise(2, 5, 3, D), 3)
    np.testing.assert_array_equal(from_noise[:, 3], noise(2, 5, 3, D)[:, 3])
    np.testing.assert_allclose(equivariance_error(from_noise), 0, atol=1e-12)


def test_offsets_by_hand():
    capsules = np.zeros((2, 3, 2, 5))
    capsules[0, 0, :, 1] = capsules[0, 2, 0, 4] = capsules[0, 2, 1, 0] = 1  # from 1 to 4, and from 1 round to 0
    capsules[1, 2, :, 3] = capsules[1, 1, 0, 2] = 1  # from 3 back to 2; the other capsule has no direction
    first, other = np.array([0, 2]), np.array([2, 1])
    np.testing.assert_array_equal(estimated_offsets(capsules, first, other), [[3, 4], [4, 0]])


def test_the_offset_of_a_constant_capsule_is_zero():
    capsules = noise(50, 2, 3, 6)
    capsules[:, 0] = 0.1
    for first, other in ((0, 1), (1, 0)):
        assert (estimated_offsets(capsules, np.full(50, first), np.full(50, other)) == 0).all()


def test_offset_maximises_the_correlation():
    capsules = noise(20, 4, 3, 6) + 2
    first, other = np.arange(20) % 4, np.arange(20) // 5
    offsets = estimated_offsets(capsules, first, other)
    for b, c in np.ndindex(20, 3):
        products = [np.roll(capsules[b, first[b], c], k) @ capsules[b, other[b], c] for k in range(6)]
        assert offsets[b, c] == np.argmax(products)


def test_offsets_survive_a_large_mean_in_single_precision():
    capsules = (3000 + 0.02 * rolling(50, 18, 4, 18)).astype(np.float32)
    first, other = np.arange(50) % 18, np.arange(50) * 7 % 18
    offsets = estimated_offsets(capsules, first, other)
    np.testing.assert_array_equal(offsets, np.broadcast_to(((other - first) % 18)[:, None], (50, 4)))


def test_pooled_offset_is_the_mode_and_the_smallest_of_several():
    offsets = np.array([[3, 1, 3, 0], [2, 0, 2, 0], [4, 3, 2, 1], [4, 4, 4, 4]])
    np.testing.assert_array_equal(pooled_offset(offsets, 5), [3, 0, 1, 4])


def test_correlation_is_numpys_per_capsule_and_pooled():
    true = np.random.default_rng(1).integers(0, 15, 200)
    estimated = (true[:, None] + np.random.default_rng(2).integers(0, 9, (200, 4))) % 15
    expected = [np.corrcoef(column, true)[0, 1] for column in estimated.T]
    np.testing.assert_allclose(capsule_correlation(estimated, true), expected, rtol=1e-12)
    np.testing.assert_allclose(capsule_correlation(estimated[:, 1], true), expected[1], rtol=1e-12)


@pytest.mark.parametrize("make", LIBRARIES)
def test_a_rolling_code_has_correlation_one(make):
    B, S, D = 60, 9, 9
    phases = make(np.random.default_rng(3).integers(0, S, B))
    true = (S - phases) % S  # when the factor is at its first value
    capsules = make(rolling(B, S, 4, D).astype(np.float32))
    offsets = estimated_offsets(capsules, make(np.zeros(B, np.int64)), true)
    np.testing.assert_array_equal(offsets, np.broadcast_to(np.asarray(true)[:, None], (B, 4)))
    np.testing.assert_allclose(capsule_correlation(offsets, true), np.ones(4), rtol=1e-6)
    np.testing.assert_allclose(capsule_correlation(pooled_offset(offsets, D), true), 1, rtol=1e-6)
    np.testing.assert_allclose(capsule_correlation_standard_error(offsets, true), np.zeros(4), atol=1e-6)


def test_independent_rolls_do_not_correlate():
    B, S, C, D = 2000, 8, 3, 8
    true = np.random.default_rng(4).integers(0, S, B)
    offsets = estimated_offsets(noise(B, S, C, D), np.zeros(B, int), 1 + true % (S - 1))  # never a frame beside itself
    errors = capsule_correlation_standard_error(offsets, true)
    assert (abs(capsule_correlation(offsets, true)) < STANDARD_ERRORS * errors).all()
    np.testing.assert_allclose(errors, 1 / np.sqrt(B), rtol=0.1)


@pytest.mark.parametrize("make", LIBRARIES)
def test_a_constant_estimate_has_correlation_zero(make):
    true = make(np.arange(7))
    for constant in (0, 3, 0.1):
        estimated = make(np.full(7, constant))
        assert float(capsule_correlation(estimated, true)) == 0
        assert float(capsule_correlation(true, estimated)) == 0
        assert float(capsule_correlation_standard_error(estimated, true)) == 0


@pytest.mark.parametrize("make", LIBRARIES)
def test_standard_error_is_the_jackknife_by_loops(make):
    rng = np.random.default_rng(5)
    true = rng.integers(0, 15, 40)
    estimated = np.where(rng.random((40, 3)) < 0.5, true[:, None], rng.integers(0, 15, (40, 3)))
    estimated[:, 1] = 2
    estimated[:, 2] = 14 * (np.arange(40) == 11)  # without this sequence a constant
    rest = [np.arange(40) != i for i in range(40)]
    left_out = np.stack([capsule_correlation(estimated[keep], true[keep]) for keep in rest])
    expected = np.sqrt(39 * left_out.var(axis=0))
    found = capsule_correlation_standard_error(make(estimated), make(true))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-7)
    found = capsule_correlation_standard_error(make(estimated[:, 0]), make(true))
    np.testing.assert_allclose(found, expected[0], rtol=1e-4)
    found = mean_capsule_correlation_standard_error(make(estimated), make(true))
    np.testing.assert_allclose(found, np.sqrt(39 * left_out.mean(axis=1).var()), rtol=1e-4)


@pytest.mark.parametrize("make", LIBRARIES)
def test_several_codes_of_a_sequence_are_left_out_together(make):
    """Their errors are not independent: they have the true offset in common."""
    rng = np.random.default_rng(6)
    true = np.repeat(rng.integers(0, 15, 12), 5)
    estimated = np.where(rng.random((60, 2)) < 0.5, true[:, None], rng.integers(0, 15, (60, 2)))
    estimated[:, 1] = 14 * (np.arange(60) // 5 == 7) * (np.arange(60) % 5 > 2)  # without this sequence a constant
    rest = [np.arange(60) // 5 != i for i in range(12)]
    left_out = np.stack([capsule_correlation(estimated[keep], true[keep]) for keep in rest])
    found = capsule_correlation_standard_error(make(estimated), make(true), 5)
    np.testing.assert_allclose(found, np.sqrt(11 * left_out.var(axis=0)), rtol=1e-4, atol=1e-7)
    found = mean_capsule_correlation_standard_error(make(estimated), make(true), 5)
    np.testing.assert_allclose(found, np.sqrt(11 * left_out.mean(axis=1).var()), rtol=1e-4)


@pytest.mark.parametrize("make", LIBRARIES[1:])
def test_libraries_agree(make):
    capsules = noise(5, 6, 4, 7).astype(np.float32) + 1
    capsules[0, 2, 1] = 4
    capsules[1, 3, 2] = 0
    first, other = np.array([0, 1, 2, 3, 2]), np.array([5, 4, 0, 3, 1])
    for centred in (False, True):
        error = equivariance_error(make(capsules), centred)
        assert type(error) is type(make(capsules))
        np.testing.assert_allclose(error, equivariance_error(capsules, centred), rtol=1e-5)
    np.testing.assert_array_equal(rolled_from(make(capsules), 2), rolled_from(capsules, 2))
    offsets = estimated_offsets(make(capsules), make(first), make(other))
    np.testing.assert_array_equal(offsets, estimated_offsets(capsules, first, other))
    np.testing.assert_array_equal(pooled_offset(offsets, 7), pooled_offset(np.asarray(offsets), 7))
    expected = capsule_correlation(np.asarray(offsets), first)
    np.testing.assert_allclose(capsule_correlation(offsets, make(first)), expected, rtol=1e-5, atol=1e-6)


def test_error_can_be_compiled():
    capsules = jnp.asarray(noise(2, 5, 3, 4), jnp.float32)
    compiled = jax.jit(partial(equivariance_error, centred=True))(capsules)
    np.testing.assert_allclose(compiled, equivariance_error(capsules, centred=True), rtol=1e-5)


TIMES = np.zeros(2, int)
CAPSULES = noise(2, 3, 4, 5)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: equivariance_error(CAPSULES[0]), r"\(batch, time, capsule, position\), found \(3, 4, 5\)"),
        (lambda: equivariance_error(np.ones((2, 3, 4, 5), int)), "floating-point type, found int64"),
        (lambda: equivariance_error(CAPSULES[:, :1]), "two or more times"),
        (lambda: equivariance_error(CAPSULES[..., :1], centred=True), "two or more positions"),
        (lambda: rolled_from(CAPSULES[0], 0), r"found \(3, 4, 5\)"),
        (lambda: rolled_from(CAPSULES, 3), r"in 0\.\.2, found 3"),
        (lambda: rolled_from(CAPSULES, -1), r"in 0\.\.2, found -1"),
        (lambda: estimated_offsets(CAPSULES, TIMES, TIMES + 3), r"times 'other' in 0\.\.2, found 3"),
        (lambda: estimated_offsets(CAPSULES, TIMES - 1, TIMES), r"times 'first' in 0\.\.2, found -1"),
        (lambda: estimated_offsets(CAPSULES, TIMES[:1], TIMES), r"times 'first' of shape \(2,\)"),
        (lambda: estimated_offsets(CAPSULES, TIMES, TIMES * 1.0), "times 'other' as whole numbers, found float64"),
        (lambda: estimated_offsets(CAPSULES * np.inf, TIMES, TIMES), "found nan or infinity"),
        (lambda: pooled_offset(TIMES, 5), r"\(batch, capsule\), found \(2,\)"),
        (lambda: pooled_offset(np.array([[5, 0]]), 5), r"offsets in 0\.\.4, found 5"),
        (lambda: capsule_correlation(np.zeros((3, 2)), TIMES), r"found \(3, 2\) and \(2,\)"),
        (lambda: capsule_correlation(TIMES, np.zeros((2, 1))), r"found \(2,\) and \(2, 1\)"),
        (lambda: capsule_correlation(TIMES[:1], TIMES[:1]), "2 or more sequences to correlate, found 1"),
        (lambda: capsule_correlation_standard_error(TIMES, TIMES), "3 or more sequences to correlate, found 2"),
    ],
)
def test_errors_say_what_is_wrong(call, words):
    with pytest.raises(UserError, match=words):
        call()
