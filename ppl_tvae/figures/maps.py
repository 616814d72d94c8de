"""Maps over the cells of a capsule: which of them are active together, and what each of them prefers."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ppl_tvae.diagnostics.energies import by_offset
from ppl_tvae.figures.charts import COLOURS, blank_figure, png
from ppl_tvae.figures.contact_sheet import as_picture, tiled

# Okabe & Ito have eight colours; classes beyond them are told apart by their number alone.
_CLASS_COLOURS = (*COLOURS[:6], "#F0E442", "#999999", "#882255", "#44AA99")


def correlation_maps(matrices: Mapping[str, np.ndarray], grid: tuple[int, int], axes_names: tuple[str, str]) -> bytes:
    """A PNG: each matrix between cells, and beside it its mean by offset on the grid; one colour scale for all.

    matrices: title -> (rows*columns, rows*columns), correlations. grid: (rows, columns) on which cells lie, both
    circular; axes_names: what rows and columns are, such as ("time s", "position d").
    """
    rows, columns = grid
    figure = blank_figure(5.8, 0.8 + 2.62 * len(matrices))
    panels = figure.subplots(len(matrices), 2, squeeze=False)
    shown = None
    for (title, matrix), (left, right) in zip(matrices.items(), panels, strict=True):
        shown = left.imshow(matrix, cmap="RdBu_r", vmin=-1, vmax=1, interpolation="nearest")
        left.set_title(title, fontsize=9, loc="left")
        step = max(1, rows // 6)
        left.set_xticks(range(0, rows * columns, step * columns), range(0, rows, step), fontsize=8)
        left.set_yticks(range(0, rows * columns, step * columns), range(0, rows, step), fontsize=8)
        left.set_xlabel(f"cell, by {axes_names[0]}", fontsize=8)
        left.set_ylabel(f"cell, by {axes_names[0]}", fontsize=8)
        _offset_map(right, by_offset(matrix, rows, columns), axes_names)
    bar = {"location": "bottom", "shrink": 0.6, "aspect": 40, "pad": 0.02, "ticks": [-1, -0.5, 0, 0.5, 1]}
    figure.colorbar(shown, ax=panels, label="correlation", **bar)
    return png(figure)


def _offset_map(axes: Any, values: np.ndarray, axes_names: tuple[str, str]) -> None:
    """The mean correlation of cells that lie so far apart, no offset in the middle."""
    rows, columns = values.shape
    centred = np.roll(values, (rows // 2, columns // 2), axis=(0, 1))
    extent = (-(columns // 2) - 0.5, columns - columns // 2 - 0.5, rows - rows // 2 - 0.5, -(rows // 2) - 0.5)
    axes.imshow(centred, cmap="RdBu_r", vmin=-1, vmax=1, interpolation="nearest", extent=extent, aspect="auto")
    axes.set_box_aspect(1)
    axes.set_title("mean by offset", fontsize=9, loc="left")
    axes.set_xlabel(f"{axes_names[1]}, offset", fontsize=8)
    axes.set_ylabel(f"{axes_names[0]}, offset", fontsize=8)
    axes.tick_params(labelsize=8)
    _whole_ticks(axes)


def _whole_ticks(axes: Any) -> None:
    """Cells are counted: none is half way between two."""
    for axis in (axes.xaxis, axes.yaxis):
        axis.get_major_locator().set_params(integer=True)


def image_map(images: np.ndarray, grid: tuple[int, int], title: str) -> bytes:
    """A PNG: images (rows*columns, H, W, channel) in [0, 1] laid out on the grid, each at its cell."""
    rows, columns = grid
    laid = tiled(as_picture(images.reshape(rows, columns, *images.shape[1:])))
    height, width = laid.shape[0] // rows, laid.shape[1] // columns
    figure = blank_figure(6.0, max(2.5, 6.0 * rows * height / (columns * width) + 0.5))
    axes = figure.add_subplot()
    extent = (-0.5, columns - 0.5, rows - 0.5, -0.5)
    axes.imshow(laid, cmap="gray", vmin=0, vmax=1, extent=extent)
    axes.set_aspect(height / width)
    _torus_axes(axes, title)
    return png(figure)


def selectivity_map(dprime: np.ndarray, classes: Sequence[str], grid: tuple[int, int]) -> bytes:
    """A PNG: of each cell the class with the largest d', by number and colour, and below how large it is.

    dprime: (classes, rows*columns), `selectivity.class_selectivity`. The colour of a class is fainter where d' is
    smaller.
    """
    from matplotlib.colors import to_rgb

    best = dprime.argmax(axis=0).reshape(grid)
    finite = dprime[np.isfinite(dprime)]
    strength = np.clip(dprime.max(axis=0), 0, finite.max() if finite.size else 1).reshape(grid)
    colours = np.array([to_rgb(_CLASS_COLOURS[k % len(_CLASS_COLOURS)]) for k in range(len(classes))])
    faint = 0.15 + 0.85 * (strength / max(strength.max(), 1e-12))[..., None]
    figure = blank_figure(5.4, 10.6)
    upper, lower = figure.subplots(2, 1)
    upper.imshow(faint * colours[best] + (1 - faint), interpolation="nearest")
    for (row, column), k in np.ndenumerate(best):
        upper.text(column, row, classes[k], ha="center", va="center", fontsize=8, color="#000000")
    _torus_axes(upper, "class with the largest d', fainter where it is small")
    shown = lower.imshow(strength, cmap="cividis", vmin=0, interpolation="nearest")
    _torus_axes(lower, "how large it is")
    figure.colorbar(shown, ax=lower, label="d' (standard deviations)", location="bottom", shrink=0.8)
    return png(figure)


def _torus_axes(axes: Any, title: str) -> None:
    axes.set_title(title, fontsize=10)
    axes.set_xlabel("column of the torus (circular)")
    axes.set_ylabel("row of the torus (circular)")
    _whole_ticks(axes)
