"""Correlation between cells: by hand, against NumPy's, and W W^T against draws from the prior."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch

from ppl_tvae.diagnostics.energies import by_offset, cell_correlation, overlap
from ppl_tvae.errors import UserError
from ppl_tvae.models import lattice
from tests.conftest import STANDARD_ERRORS

LIBRARIES = [np.asarray, jnp.asarray, torch.as_tensor]


@pytest.mark.parametrize("make", LIBRARIES)
def test_overlap_by_hand(make):
    found = overlap(make(np.array([[1.0, 1, 0], [0, 1, 1], [0, 0, 2]])))
    expected = [[1, 1 / 2, 0], [1 / 2, 1, 2 / (2 * 2**0.5)], [0, 2 / (2 * 2**0.5), 1]]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("of_prior", [np.random.Generator.standard_normal, np.random.Generator.standard_exponential])
def test_overlap_is_the_priors_correlation_of_energies(of_prior):
    W = lattice.shifting(4, 5, 3, band=1)
    energies = W.energy(of_prior(np.random.default_rng(0), (20_000, 4, 2, 5)))
    # the error of a correlation of n pairs is 1 / sqrt(n) at most, here with heavier tails than a normal's
    limit = STANDARD_ERRORS * 2 / 40_000**0.5
    assert abs(cell_correlation(energies) - overlap(W.neighborhood)).max() < limit


@pytest.mark.parametrize("make", LIBRARIES)
def test_correlation_is_numpys_for_one_capsule(make):
    values = np.random.default_rng(1).normal(size=(30, 2, 1, 3))
    values[:, 1, 0, 2] += values[:, 0, 0, 0]
    expected = np.corrcoef(values[:, :, 0].reshape(30, 6), rowvar=False)
    np.testing.assert_allclose(cell_correlation(make(values)), expected, atol=1e-6)


def test_levels_of_capsules_and_constant_cells_do_not_correlate():
    values = np.random.default_rng(2).normal(size=(4000, 1, 3, 4)) + 100 * np.arange(3)[:, None]
    values[..., 1] = 7
    found = cell_correlation(values)
    off = found - np.eye(4)
    assert abs(off).max() < STANDARD_ERRORS / 12_000**0.5
    np.testing.assert_array_equal(found[1], [0, 1, 0, 0])


@pytest.mark.parametrize("make", LIBRARIES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("number", [7, 11, 100, 200])
def test_cells_that_never_vary_correlate_with_none(number, dtype, make):
    """Whatever their values: the mean of 0.1, seven times, is not 0.1 as floating-point numbers."""
    values = np.random.default_rng(4).normal(size=(number, 1, 2, 4)).astype(dtype)
    values[..., 1], values[..., 3] = 0.1, 30.3
    found = np.asarray(cell_correlation(make(values)))
    np.testing.assert_array_equal(found[[1, 3]], np.eye(4)[[1, 3]])


@pytest.mark.parametrize("make", LIBRARIES)
def test_offsets_by_loops(make):
    matrix = np.random.default_rng(3).normal(size=(6, 6))
    found = by_offset(make(matrix), 2, 3)
    for i in range(2):
        for j in range(3):
            pairs = [(3 * r + c, 3 * ((r + i) % 2) + (c + j) % 3) for r in range(2) for c in range(3)]
            np.testing.assert_allclose(float(found[i, j]), np.mean([matrix[a, b] for a, b in pairs]), rtol=1e-6)


def test_a_band_that_moves_is_a_diagonal_of_offsets():
    W = lattice.shifting(6, 6, 6)
    np.testing.assert_allclose(by_offset(overlap(W.neighborhood), 6, 6), np.eye(6))


def test_errors_say_what_is_wrong():
    with pytest.raises(UserError, match="expected a square matrix"):
        overlap(np.zeros((2, 3)))
    with pytest.raises(UserError, match="of 2 or more"):
        cell_correlation(np.zeros((1, 2, 3, 4)))
    with pytest.raises(UserError, match=r"\(6, 6\), found \(4, 4\)"):
        by_offset(np.zeros((4, 4)), 2, 3)
