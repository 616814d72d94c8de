"""d' by hand, against loops over its definition, and against what signal detection theory says of normals."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch

from ppl_tvae.diagnostics.selectivity import class_selectivity
from ppl_tvae.errors import UserError
from tests.conftest import STANDARD_ERRORS

LIBRARIES = [np.asarray, jnp.asarray, torch.as_tensor]


@pytest.mark.parametrize("make", LIBRARIES)
def test_by_hand(make):
    activations = make(np.array([[4.0, 1], [6, 1], [0, 1], [2, 1]]))
    found = class_selectivity(activations, make(np.array([0, 0, 1, 1])), 2)
    # means 5 and 1, variances 1 and 1; the second position answers alike to all
    np.testing.assert_allclose(found, [[4, 0], [-4, 0]])


@pytest.mark.parametrize("make", LIBRARIES)
def test_against_loops(make):
    rng = np.random.default_rng(0)
    activations, labels = 10 + rng.normal(size=(60, 4)), rng.integers(3, size=60)
    found = class_selectivity(make(activations), make(labels), 3)
    for k in range(3):
        for d in range(4):
            own, others = activations[labels == k, d], activations[labels != k, d]
            expected = (own.mean() - others.mean()) / np.sqrt((own.var() + others.var()) / 2)
            np.testing.assert_allclose(float(found[k, d]), expected, rtol=2e-4)


def test_a_position_that_never_fails_has_no_limit():
    activations = np.array([[1.0, 2.0, 0.0], [1.0, 2.0, 1.0], [0.0, 2.0, 0.0], [0.0, 2.0, 1.0]])
    found = class_selectivity(activations, np.array([0, 0, 1, 1]), 2)
    np.testing.assert_array_equal(found, [[np.inf, 0, 0], [-np.inf, 0, 0]])


@pytest.mark.parametrize("make", LIBRARIES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("number", [7, 11, 100, 1000])
def test_rounding_is_no_preference(number, dtype, make):
    """Constants whose means are not exact; and two answers, 0.1 to one class and 30.3 to the others."""
    labels = np.arange(number) % 3
    activations = np.stack([np.full(number, 0.1), np.full(number, 30.3), np.where(labels == 0, 0.1, 30.3)], axis=1)
    found = np.asarray(class_selectivity(make(activations.astype(dtype)), make(labels), 3))
    np.testing.assert_array_equal(found[:, :2], 0)
    assert found[0, 2] == -np.inf
    assert (found[1:, 2] > 0).all()
    assert np.isfinite(found[1:, 2]).all()


def test_normals_a_known_distance_apart():
    rng = np.random.default_rng(1)
    labels = np.repeat([0, 1], 10_000)
    activations = rng.normal(size=(20_000, 1)) + 1.5 * labels[:, None]
    # the means err by sqrt(2 / n), the spread by 1 / sqrt(4 n) of itself
    error = np.sqrt(2 / 10_000 + 1.5**2 / 40_000)
    assert abs(class_selectivity(activations, labels, 2)[1, 0] - 1.5) < STANDARD_ERRORS * error


@pytest.mark.parametrize(
    ("activations", "labels", "words"),
    [
        (np.zeros((3, 2)), np.zeros(2, int), "a label for each image"),
        (np.zeros((2, 2)), np.array([0, 2]), r"whole numbers in 0\.\.1"),
        (np.zeros((2, 2)), np.array([0.0, 1]), r"whole numbers in 0\.\.1"),
        (np.zeros((2, 2)), np.array([0, 0]), "two or more classes"),
    ],
)
def test_errors_say_what_is_wrong(activations, labels, words):
    with pytest.raises(UserError, match=words):
        class_selectivity(activations, labels, 2)
