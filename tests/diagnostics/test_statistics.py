"""Statistics of frames by hand and against loops, Bayesian p-values by counting, for three array libraries."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch

from ppl_tvae.diagnostics import statistics
from ppl_tvae.errors import UserError

LIBRARIES = [np.asarray, jnp.asarray, torch.as_tensor]

# Two frames of 2 x 3 pixels, one channel.
FRAMES = np.array([[[1.0, 0, 0], [1, 1, 0]], [[0, 0, 0], [1, 0, 0]]])[..., None]
BY_HAND = {
    "mean_intensity": 4 / 12,
    "contrast": (3 / 6 * 3 / 6 + 1 / 6 * 5 / 6) / 2,
    "fraction_on": 4 / 12,
    # neighbours in a column: |1-1|, |0-1|, |0-0|, then |0-1|, 0, 0; in a row: 1, 0, 0, 1, then 0, 0, 1, 0
    "edge_energy": (2 / 6 + 3 / 8) / 2,
    "frame_change": 2 / 6,
    "half_sequence_change": 2 / 6,
    "colourfulness": 0,
}


@pytest.mark.parametrize("make", LIBRARIES)
def test_statistics_by_hand(make):
    assert BY_HAND.keys() == statistics.STATISTICS.keys()
    for name, expected in BY_HAND.items():
        value = statistics.STATISTICS[name].function(make(FRAMES))
        np.testing.assert_allclose(float(value), expected, rtol=1e-6, atol=1e-12, err_msg=name)


def test_colours_and_lags_by_hand():
    frames = np.zeros((4, 1, 1, 3))
    frames[:, 0, 0, 0] = [0, 3, 1, 3]
    np.testing.assert_allclose(statistics.frame_change(frames), (9 + 4 + 4) / 9)
    np.testing.assert_allclose(statistics.half_sequence_change(frames), (1 + 0) / 6)
    np.testing.assert_allclose(statistics.half_sequence_change(frames[:3]), (9 + 4) / 6)  # S // 2 of three is one
    np.testing.assert_allclose(statistics.colourfulness(frames), np.mean([2 / 9 * v**2 for v in (0, 3, 1, 3)]))


@pytest.mark.parametrize("make", LIBRARIES)
def test_each_sequence_has_its_own_number(make):
    frames = np.random.default_rng(0).random((2, 3, 4, 5, 6, 3))
    for name, statistic in statistics.STATISTICS.items():
        together = np.asarray(statistic.function(make(frames)))
        alone = [[float(statistic.function(make(sequence))) for sequence in row] for row in frames]
        np.testing.assert_allclose(together, alone, rtol=1e-5, err_msg=name)


def test_which_statistics_say_something():
    grey = np.random.default_rng(1).random((2, 4, 3, 3, 3))
    assert statistics.applicable(grey).keys() == statistics.STATISTICS.keys()
    binary = statistics.applicable((grey[:, :1, ..., :1] > 0.5) * 1.0)
    assert list(binary) == ["mean_intensity", "contrast", "edge_energy"]


@pytest.mark.parametrize("make", LIBRARIES)
def test_p_values_by_counting(make):
    replicated = make(np.array([[1.0, 5], [2, 5], [3, 5]]))
    found = statistics.tail_probability(make(np.array([2.0, 9])), replicated)
    np.testing.assert_allclose(found, [(1 + 0.5 + 0.5) / 4, 0.5 / 4])


def test_p_values_of_a_true_model_are_uniform():
    rng = np.random.default_rng(2)
    found = statistics.tail_probability(rng.normal(size=20_000), rng.normal(size=(9, 20_000)))
    counts = np.unique(found, return_counts=True)[1]
    assert len(counts) == 10
    assert (abs(counts - 2000) < 5 * np.sqrt(2000 * 0.9)).all()


def test_shapes_that_do_not_fit_are_refused():
    for observed, replicated in [((2,), (4, 3)), ((2,), (2,)), ((2,), (0, 2))]:
        with pytest.raises(UserError, match="expected replicated statistics"):
            statistics.tail_probability(np.zeros(observed), np.zeros(replicated))


def test_a_frame_of_one_row_has_no_edges():
    frames = np.random.default_rng(0).random((2, 3, 1, 5, 1))
    assert "edge_energy" not in statistics.applicable(frames)
    assert "edge_energy" in statistics.applicable(np.swapaxes(np.repeat(frames, 2, axis=2), 2, 3))
