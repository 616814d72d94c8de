"""The topographic matrix W: which (time, position) cells of a capsule share variance.

A capsule has cells (s, d), s in 0..S-1 (time), d in 0..D-1 (position), both circular. W acts inside each capsule:

    v[s, c, d] = sum over neighbours (s', d') of (s, d) of u[s', c, d']**2,    t = (z + mu) / sqrt(v + epsilon)

A window of k cells has the offsets -((k-1)//2) ... k//2, so an even window reaches one further forward than back.
Signs: one frame later, one position higher; a capsule that rolls by +1 per frame therefore has constant energy.

Keller & Welling 2021 (arXiv 2109.01394), section 4; the released settings are reproduced exactly.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import numpy as np
from array_api_compat import array_namespace, is_torch_array
from numpy.typing import ArrayLike, NDArray

from ppl_tvae.errors import UserError

_LARGEST = 1e30  # of an entry of W


@dataclass(frozen=True, eq=False)
class Lattice:
    """W over the cells of one capsule.

    neighborhood: (S*D, S*D), non-negative, no zero row; row (s, d) weighs the cells that share variance with (s, d);
    cells are numbered s*D + d. Zeros and ones for every named lattice.
    """

    neighborhood: NDArray[np.float64]
    num_timesteps: int
    capsule_dim: int
    _on_device: dict[tuple[Any, Any], Any] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "neighborhood", _checked(self.neighborhood, self.num_timesteps * self.capsule_dim))

    @property
    def degrees_of_freedom(self) -> NDArray[np.int64]:
        """(S, D): how many cells share variance with each.

        With zeros and ones in W, standard normals and mu = 0, sqrt(nu) t is Student-t with nu degrees.
        """
        return (self.neighborhood > 0).sum(axis=1).reshape(self.num_timesteps, self.capsule_dim)

    @property
    def time_offsets(self) -> tuple[int, ...]:
        """By how many timesteps, modulo S, cells that share variance lie apart, in both directions; 0 comes first."""
        by_time = self.neighborhood.reshape(self.num_timesteps, self.capsule_dim, self.num_timesteps, self.capsule_dim)
        row, column = np.nonzero(by_time.any(axis=(1, 3)))
        apart = {int(offset) for offset in (column - row) % self.num_timesteps}
        return tuple(sorted({0} | apart | {-offset % self.num_timesteps for offset in apart}))

    def energy(self, u: Any, weights: Any = None) -> Any:
        """W u**2, the sum of squares over the neighbours: (..., S, C, D) -> (..., S, C, D), for any array library.

        weights: (S*D, S*D) in u's library; each entry of W is multiplied by its own.
        """
        xp = array_namespace(u)
        by_capsule = xp.swapaxes(u * u, -3, -2)  # not moveaxis, for which torch's vmap has no rule
        cells = xp.reshape(by_capsule, (*by_capsule.shape[:-2], -1))
        neighborhood = self._weights_like(u)
        summed = cells @ (neighborhood if weights is None else neighborhood * weights.T)
        return xp.swapaxes(xp.reshape(summed, by_capsule.shape), -2, -3)

    def _weights_like(self, u: Any) -> Any:
        """W transposed in the library, dtype and place of u: a copy to a GPU happens once, not once per step."""
        if not is_torch_array(u):
            return self.neighborhood.T.astype(u.dtype)  # a constant of the compiled step in JAX
        key = (u.dtype, u.device)
        if key not in self._on_device:
            xp = array_namespace(u)
            weights = np.ascontiguousarray(self.neighborhood.T)
            self._on_device[key] = xp.asarray(weights, dtype=u.dtype, device=u.device)
        return self._on_device[key]


def shifting(num_timesteps: int, capsule_dim: int, window: int, band: int = 0, closed: bool = False) -> Lattice:
    """Shifting coherence: (s, d) shares with (s + i, d + j), i and j both offsets of `window`, |i - j| <= band.

    The band is cut at its two ends, as in the released code (37 ones in a row for window 13, band 1, not 39), also
    where the window covers the whole circle. `closed` lets j leave the window (39 ones), which on the full circle
    makes the band a ring.
    """
    _check_window(window, num_timesteps, "temporal window", "timesteps")
    _check_window(window, capsule_dim, "temporal window", "positions in a capsule")
    if band < 0:
        raise UserError(f"expected a band of 0 or more positions either side, found {band}")
    offsets = _offsets(window)
    if closed:
        pairs = {(i, i + k) for i in offsets for k in range(-band, band + 1)}
    else:
        pairs = {(i, j) for i, j in product(offsets, offsets) if abs(i - j) <= band}
    return _circular(num_timesteps, capsule_dim, pairs)


def stationary(num_timesteps: int, capsule_dim: int, temporal_window: int, spatial_width: int) -> Lattice:
    """Stationary coherence ("bubble"): a block of temporal_window x spatial_width cells that does not move."""
    _check_window(temporal_window, num_timesteps, "temporal window", "timesteps")
    _check_window(spatial_width, capsule_dim, "spatial width", "positions in a capsule")
    return _circular(num_timesteps, capsule_dim, set(product(_offsets(temporal_window), _offsets(spatial_width))))


def static(num_timesteps: int, capsule_dim: int, spatial_width: int) -> Lattice:
    """No temporal coherence: neighbours in space at the same time only."""
    return stationary(num_timesteps, capsule_dim, 1, spatial_width)


def torus(height: int, width: int, spatial_width: int) -> Lattice:
    """A 2-D torus of height x width cells for single frames (S = 1), neighbourhoods of k x k (the paper's figure 3).

    The position within the capsule is h * width + w.
    """
    _check_window(spatial_width, min(height, width), "spatial width", "cells on a side of the torus")
    grid = _circular(height, width, set(product(_offsets(spatial_width), _offsets(spatial_width))))
    return Lattice(grid.neighborhood, 1, height * width)


def from_matrix(matrix: ArrayLike, num_timesteps: int, capsule_dim: int) -> Lattice:
    """Your own W: (S*D, S*D), finite, non-negative, at least one positive entry in each row. Raises UserError."""
    return Lattice(np.asarray(matrix), num_timesteps, capsule_dim)


def from_graph(edges: Iterable[tuple[int, int]], num_timesteps: int, capsule_dim: int) -> Lattice:
    """Your own graph over the cells s*D + d, undirected; a cell always shares with itself."""
    cells = num_timesteps * capsule_dim
    matrix = np.eye(cells)
    for a, b in edges:
        if not (0 <= a < cells and 0 <= b < cells):
            raise UserError(f"expected edges between cells 0..{cells - 1}, found ({a}, {b}); cell (s, d) is s*D + d")
        matrix[a, b] = matrix[b, a] = 1
    return Lattice(matrix, num_timesteps, capsule_dim)


def _offsets(window: int) -> range:
    return range(-((window - 1) // 2), window // 2 + 1)


def _circular(rows: int, columns: int, offsets: Iterable[tuple[int, int]]) -> Lattice:
    s, d = np.divmod(np.arange(rows * columns), columns)
    matrix = np.zeros((rows * columns, rows * columns))
    for i, j in offsets:
        matrix[np.arange(rows * columns), ((s + i) % rows) * columns + (d + j) % columns] = 1
    return Lattice(matrix, rows, columns)


def _check_window(window: int, size: int, name: str, of: str) -> None:
    if not 1 <= window <= size:
        raise UserError(f"expected a {name} between 1 and the {size} {of}, found {window}")


def _checked(matrix: ArrayLike, cells: int) -> NDArray[np.float64]:
    """The matrix as float64, or the sentence that says what is wrong with it."""
    matrix = np.asarray(matrix)
    if matrix.dtype.kind not in "biuf":
        raise UserError(f"expected a lattice matrix of numbers, found dtype {matrix.dtype}")
    if matrix.shape != (cells, cells):
        raise UserError(
            f"expected a lattice matrix of shape ({cells}, {cells}), one row per (time, position) cell, "
            f"found {matrix.shape}"
        )
    matrix = matrix.astype(np.float64)
    if not np.isfinite(matrix).all() or (matrix < 0).any():
        row, column = np.argwhere(~(matrix >= 0) | np.isinf(matrix))[0]
        raise UserError(
            f"expected a lattice matrix without negative or non-finite entries, "
            f"found {matrix[row, column]} at row {row}, column {column}"
        )
    if ((matrix > 0) & ((matrix < 1 / _LARGEST) | (matrix > _LARGEST))).any():
        raise UserError(
            f"expected positive entries of a lattice matrix between {1 / _LARGEST:g} and {_LARGEST:g}, which single "
            f"precision can add up, found {matrix[matrix > 0].min():g} to {matrix.max():g}; scale the matrix"
        )
    if (empty := np.flatnonzero(matrix.sum(axis=1) == 0)).size:
        raise UserError(
            f"expected at least one neighbour for each cell, found a zero row {empty[0]} in the lattice matrix; "
            f"let the cell share with itself"
        )
    return matrix
