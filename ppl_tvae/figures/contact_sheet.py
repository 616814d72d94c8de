"""A contact sheet: sequences as rows, frames as columns, to look at what a data set or a model shows."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ppl_tvae.errors import UserError
from ppl_tvae.figures.charts import blank_figure, png


def contact_sheet(frames: np.ndarray, row_labels: Sequence[str], title: str) -> bytes:
    """A PNG of (B, S, H, W, channel) frames in [0, 1]: one row per sequence, one column per frame.

    `row_labels` names the B rows, such as "7, rotation". Sequences of a single frame stand side by side, each under its
    label; channels are shown as `as_picture` says. Raises UserError if the shapes do not fit together.
    """
    if frames.ndim != 5 or 0 in frames.shape or len(row_labels) != len(frames):
        raise UserError(
            f"expected frames (B, S, H, W, channel) with B row labels, found {frames.shape} with {len(row_labels)}; "
            "reshape the frames or name each row."
        )
    shown = as_picture(frames)
    figure = _side_by_side(shown[:, 0], row_labels) if shown.shape[1] == 1 else _rows(shown, row_labels)
    figure.suptitle(title)
    figure.set_figwidth(max(figure.get_figwidth(), 0.09 * len(title)))
    return png(figure)


def as_picture(frames: np.ndarray) -> np.ndarray:
    """Frames (..., channel) in [0, 1] as (..., 3), RGB, where there are three channels, else the mean of all, grey."""
    return np.clip(frames if frames.shape[-1] == 3 else frames.mean(axis=-1), 0, 1)


def _rows(frames: np.ndarray, labels: Sequence[str]) -> Any:
    """A figure of (B, S, H, W[, 3]): a row for each sequence."""
    batch, time = frames.shape[:2]
    cell = 0.62  # inches; a row label beside it stays legible
    margin = 0.35 + 0.085 * max(map(len, labels))
    figure = blank_figure(margin + cell * time + 0.1, cell * batch + 0.85)
    axes = figure.add_subplot()
    extent = (-0.5, time - 0.5, batch - 0.5, -0.5)
    axes.imshow(tiled(frames), cmap="gray", vmin=0, vmax=1, interpolation="nearest", extent=extent)
    axes.set_aspect((frames.shape[2] + 1) / (frames.shape[3] + 1))
    axes.set_xticks(range(0, time, 1 if time <= 24 else -(-time // 18)))
    axes.set_yticks(range(batch), labels)
    axes.set_xlabel("time s (frames)")
    axes.tick_params(length=0)
    return figure


def tiled(frames: np.ndarray) -> np.ndarray:
    """Pictures (rows, columns, H, W[, 3]) side by side, with a light line between them: one picture."""
    lined = np.pad(frames, ((0, 0), (0, 0), (0, 1), (0, 1), *((0, 0),) * (frames.ndim - 4)), constant_values=0.5)
    return np.concatenate([np.concatenate(list(row), axis=1) for row in lined])


def _side_by_side(images: np.ndarray, labels: Sequence[str]) -> Any:
    """A figure of (B, H, W[, 3]): images in lines of up to a dozen, each under its label."""
    columns = min(len(images), 12)
    lines = -(-len(images) // columns)
    cell = 0.95  # inches; as wide as a label
    figure = blank_figure(cell * columns, (cell + 0.2) * lines + 0.4)
    panels = figure.subplots(lines, columns, squeeze=False).ravel()
    for axes in panels:
        axes.set_axis_off()
    for axes, image, label in zip(panels, images, labels, strict=False):
        axes.imshow(image, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        axes.set_title(label, fontsize=7)
    return figure
