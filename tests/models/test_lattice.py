"""Every W against a loop over its definition, and the checks of a user's own."""

import array_api_compat.numpy as np_api
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from ppl_tvae.errors import UserError
from ppl_tvae.models import lattice


def offsets(k):
    return range(-((k - 1) // 2), k // 2 + 1)


def brute_force(rows, columns, is_neighbour):
    """W by looping over pairs of cells; is_neighbour gets the offsets of the second cell from the first, all images."""
    W = np.zeros((rows * columns, rows * columns))
    for s in range(rows):
        for d in range(columns):
            for i in range(-rows, rows + 1):
                for j in range(-columns, columns + 1):
                    if is_neighbour(i, j):
                        W[s * columns + d, ((s + i) % rows) * columns + (d + j) % columns] = 1
    return W


@pytest.mark.parametrize(("S", "D"), [(1, 1), (2, 5), (5, 4), (6, 6), (7, 9)])
@pytest.mark.parametrize("band", [0, 1, 2])
def test_shifting_is_its_definition(S, D, band):
    for window in range(1, min(S, D) + 1):
        k = offsets(window)
        expected = brute_force(S, D, lambda i, j, k=k: i in k and j in k and abs(i - j) <= band)
        np.testing.assert_array_equal(lattice.shifting(S, D, window, band).neighborhood, expected)
        closed = brute_force(S, D, lambda i, j, k=k: i in k and abs(i - j) <= band)
        if window + 2 * band <= D:
            np.testing.assert_array_equal(lattice.shifting(S, D, window, band, closed=True).neighborhood, closed)


@pytest.mark.parametrize(("S", "D"), [(1, 1), (2, 5), (5, 4), (6, 6)])
def test_stationary_and_static_are_their_definitions(S, D):
    for k_time in range(1, S + 1):
        for k_space in range(1, D + 1):
            a, b = offsets(k_time), offsets(k_space)
            expected = brute_force(S, D, lambda i, j, a=a, b=b: i in a and j in b)
            np.testing.assert_array_equal(lattice.stationary(S, D, k_time, k_space).neighborhood, expected)
            if k_time == 1:
                np.testing.assert_array_equal(lattice.static(S, D, k_space).neighborhood, expected)


@pytest.mark.parametrize(("H", "W", "k"), [(3, 3, 2), (4, 6, 3), (5, 5, 5), (6, 4, 4)])
def test_torus_is_its_definition(H, W, k):
    result = lattice.torus(H, W, k)
    expected = brute_force(H, W, lambda i, j: i in offsets(k) and j in offsets(k))
    np.testing.assert_array_equal(result.neighborhood, expected)
    assert (result.num_timesteps, result.capsule_dim) == (1, H * W)


@pytest.mark.parametrize(
    ("built", "ones"),
    [
        (lattice.shifting(18, 18, 13, 1), 37),
        (lattice.shifting(18, 18, 18, 1), 52),
        (lattice.shifting(18, 18, 5, 1), 13),
        (lattice.static(18, 18, 3), 3),
        (lattice.stationary(18, 18, 5, 3), 15),
        (lattice.shifting(15, 15, 10, 0), 10),
        (lattice.shifting(15, 15, 15, 0), 15),
        (lattice.shifting(15, 15, 5, 0), 5),
        (lattice.stationary(15, 15, 5, 5), 25),
        (lattice.torus(18, 18, 5), 25),
        (lattice.shifting(18, 18, 13, 1, closed=True), 39),
    ],
)
def test_released_settings_have_the_stated_degrees_of_freedom(built, ones):
    assert (built.degrees_of_freedom == ones).all()
    assert built.degrees_of_freedom.shape == (built.num_timesteps, built.capsule_dim)


def test_the_full_circle_closes_into_a_ring_only_on_request():
    opened, closed = lattice.shifting(6, 6, 6, 1), lattice.shifting(6, 6, 6, 1, closed=True)
    assert (opened.degrees_of_freedom == 16).all()
    assert (closed.degrees_of_freedom == 18).all()


@pytest.mark.parametrize("xp", [np_api, jnp, torch], ids=["numpy", "jax", "torch"])
def test_energy_is_the_sum_over_neighbours(xp):
    S, C, D = 4, 3, 5
    built = lattice.shifting(S, D, 4, 1)
    u = np.random.default_rng(0).standard_normal((2, S, C, D)).astype(np.float32)
    W = built.neighborhood.reshape(S, D, S, D)
    expected = np.zeros_like(u)
    for s in range(S):
        for d in range(D):
            for other_s in range(S):
                for other_d in range(D):
                    expected[:, s, :, d] += W[s, d, other_s, other_d] * u[:, other_s, :, other_d] ** 2
    result = built.energy(xp.asarray(u))
    np.testing.assert_allclose(np.asarray(result), expected, rtol=1e-5)
    assert result.dtype == xp.asarray(u).dtype


@pytest.mark.parametrize("xp", [np_api, jnp, torch], ids=["numpy", "jax", "torch"])
def test_each_entry_has_its_own_weight(xp):
    built = lattice.from_matrix(np.array([[1, 1, 0], [0, 1, 1], [0, 0, 1]]), 1, 3)
    weights, u = np.arange(1, 10, dtype=np.float32).reshape(3, 3), np.array([1, 2, 3], np.float32)
    found = built.energy(xp.asarray(u)[None, None], xp.asarray(weights))
    np.testing.assert_allclose(np.asarray(found)[0, 0], [1 * 1 + 2 * 4, 5 * 4 + 6 * 9, 9 * 9])


def test_a_lattice_serves_both_precisions():
    """In torch, for which it keeps a copy of W."""
    built, u = lattice.static(1, 3, 3), torch.tensor([1.0, 2, 3])[None, None]
    for dtype in (torch.float32, torch.float64, torch.float32):
        found = built.energy(u.to(dtype))
        assert found.dtype == dtype
        np.testing.assert_array_equal(found, np.full((1, 1, 3), 14))


def test_energy_of_a_capsule_that_rolls_by_one_per_frame_is_constant_in_time():
    S = D = 18
    row = np.random.default_rng(1).standard_normal(D)
    u = np.stack([np.roll(row, s) for s in range(S)])[:, None, :]
    energy = lattice.shifting(S, D, 13, 1).energy(u)
    rolled_back = np.stack([np.roll(energy[s, 0], -s) for s in range(S)])
    np.testing.assert_allclose(rolled_back, np.broadcast_to(rolled_back[0], (S, D)), rtol=1e-12)


def test_degrees_of_freedom_are_the_entries_of_a_row():
    """However large they are."""
    W = np.array([[2.5, 1, 0, 1], [0, 1, 0, 0], [0, 0, 0.5, 1], [1, 0, 0, 1]])
    np.testing.assert_array_equal(lattice.from_matrix(W, 2, 2).degrees_of_freedom, [[3, 1], [2, 2]])


def test_own_graph_shares_both_ways_and_with_itself():
    built = lattice.from_graph([(0, 1), (1, 3)], 2, 2)
    np.testing.assert_array_equal(built.neighborhood, [[1, 1, 0, 0], [1, 1, 0, 1], [0, 0, 1, 0], [0, 1, 0, 1]])


@pytest.mark.parametrize(
    ("matrix", "words"),
    [
        (np.eye(5), r"expected a lattice matrix of shape \(6, 6\).*found \(5, 5\)"),
        (np.ones(6), r"found \(6,\)"),
        (np.eye(6) - 2 * np.eye(6, k=1), "found -2.0 at row 0, column 1"),
        (np.where(np.eye(6) > 0, np.nan, 1), "found nan at row 0, column 0"),
        (np.where(np.eye(6) > 0, np.inf, 1), "found inf at row 0, column 0"),
        (np.diag([1, 1, 0, 1, 1, 1]), "found a zero row 2"),
        (np.array([["a"] * 6] * 6), "a lattice matrix of numbers, found dtype <U1"),
    ],
)
def test_own_matrix_is_checked(matrix, words):
    with pytest.raises(UserError, match=words):
        lattice.from_matrix(matrix, 2, 3)


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: lattice.shifting(4, 6, 5), "temporal window between 1 and the 4 timesteps, found 5"),
        (lambda: lattice.shifting(6, 4, 5), "between 1 and the 4 positions in a capsule, found 5"),
        (lambda: lattice.shifting(4, 4, 3, -1), "band of 0 or more"),
        (lambda: lattice.static(4, 4, 0), "spatial width between 1 and the 4 positions"),
        (lambda: lattice.torus(4, 3, 4), "cells on a side"),
        (lambda: lattice.from_graph([(0, 9)], 2, 2), r"between cells 0..3, found \(0, 9\)"),
    ],
)
def test_settings_are_checked(build, words):
    with pytest.raises(UserError, match=words):
        build()
