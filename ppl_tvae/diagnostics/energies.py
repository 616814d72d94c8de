"""Which cells of a capsule are active together: what W says, and what a code does; for any array library.

A cell is a (time, position) pair, numbered s*D + d as in W.
"""

from typing import Any

from array_api_compat import array_namespace

from ppl_tvae.errors import UserError


def overlap(neighborhood: Any) -> Any:
    """W W^T with its diagonal scaled to 1: (S*D, S*D) -> (S*D, S*D), in [0, 1].

    The correlation of the energies W u**2 of two cells under any prior that draws the cells of u independently and
    alike: Cov(W u**2) = Var(u**2) W W^T, whatever that variance. Raises UserError for another shape.
    """
    if neighborhood.ndim != 2 or neighborhood.shape[0] != neighborhood.shape[1]:
        raise UserError(f"expected a square matrix over cells, found shape {tuple(neighborhood.shape)}")
    return _scaled(neighborhood @ array_namespace(neighborhood).matrix_transpose(neighborhood))


def cell_correlation(values: Any) -> Any:
    """Pearson's correlation between cells, over sequences, pooled within capsules: (N, S, C, D) -> (S*D, S*D).

    Deviations are from each capsule's own mean over sequences, and their products are summed over sequences and
    capsules, so that capsules of different level do not count as correlation. A cell that never varies has correlation
    0 with all others, and 1 with itself. Raises UserError for another shape or fewer than two sequences.
    """
    if values.ndim != 4 or values.shape[0] < 2:
        raise UserError(
            f"expected values (sequence, time, capsule, position) of 2 or more, found {tuple(values.shape)}"
        )
    xp = array_namespace(values)
    values = values - values[:1, ...]  # so that a cell that never varies is zero, and not what its mean is rounded by
    deviations = xp.moveaxis(values - xp.mean(values, axis=0), 2, 1)
    rows = xp.reshape(deviations, (-1, values.shape[1] * values.shape[3]))
    return _scaled(xp.matrix_transpose(rows) @ rows)


def by_offset(matrix: Any, rows: int, columns: int) -> Any:
    """A matrix between cells of a torus, averaged over where a pair lies: (rows*columns, ...) -> (rows, columns).

    Entry (i, j) is the mean over cells of their value with the cell i rows and j columns on, both circular. Raises
    UserError where the sizes do not fit.
    """
    cells = rows * columns
    if tuple(matrix.shape) != (cells, cells):
        raise UserError(f"expected a matrix of ({cells}, {cells}), found {tuple(matrix.shape)}")
    xp = array_namespace(matrix)
    grid = xp.reshape(matrix, (rows, columns, rows, columns))
    moved = [xp.roll(grid[r, c, ...], (-r, -c), axis=(0, 1)) for r in range(rows) for c in range(columns)]
    return sum(moved[1:], start=moved[0]) / cells


def _scaled(covariance: Any) -> Any:
    xp = array_namespace(covariance)
    variance = xp.linalg.diagonal(covariance)
    varies = variance > 0
    deviation = xp.sqrt(xp.where(varies, variance, 1.0))
    scaled = covariance / (deviation[:, None] * deviation[None, :])
    return scaled + xp.where(varies, 0.0, 1.0)[:, None] * xp.eye(covariance.shape[0], dtype=covariance.dtype)
