"""A contact sheet: sequences as rows, frames as columns, to look at what a data set or a model shows."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ppl_tvae.errors import UserError


def contact_sheet(frames: np.ndarray, row_labels: Sequence[str], path: Path, title: str) -> None:
    """Write a PNG of (B, S, H, W, channel) frames in [0, 1]: one row per sequence, one column per frame.

    `row_labels` names the B rows, such as "7, rotation". Channels are 1 (grey) or 3 (RGB).
    Raises UserError if the shapes do not fit together.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    sheet = _sheet(frames, row_labels)
    batch, time = frames.shape[:2]
    cell = 0.62  # inches; a row label beside it stays legible
    margin = 0.35 + 0.085 * max(len(label) for label in row_labels)
    figure = Figure(figsize=(margin + cell * time + 0.1, cell * batch + 0.85), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.imshow(
        sheet, cmap="gray", vmin=0, vmax=1, interpolation="nearest", extent=(-0.5, time - 0.5, batch - 0.5, -0.5)
    )
    axes.set_aspect((sheet.shape[0] / batch) / (sheet.shape[1] / time))
    _label(axes, row_labels, time)
    axes.set_title(title)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def _sheet(frames: np.ndarray, row_labels: Sequence[str]) -> np.ndarray:
    """The frames side by side, with a light line between them: one (rows, columns[, 3]) image."""
    if frames.ndim != 5 or frames.shape[-1] not in (1, 3) or 0 in frames.shape or len(row_labels) != len(frames):
        raise UserError(
            f"expected frames (B, S, H, W, 1 or 3) with B row labels, found {frames.shape} with {len(row_labels)}; "
            "reshape the frames or name each row."
        )
    lined = np.pad(frames, ((0, 0), (0, 0), (0, 1), (0, 1), (0, 0)), constant_values=0.5)
    batch, time, height, width, channels = lined.shape
    sheet = lined.transpose(0, 2, 1, 3, 4).reshape(batch * height, time * width, channels)
    return np.clip(sheet[..., 0] if channels == 1 else sheet, 0, 1)


def _label(axes: Any, row_labels: Sequence[str], time: int) -> None:
    step = 1 if time <= 24 else -(-time // 18)
    axes.set_xticks(range(0, time, step))
    axes.set_yticks(range(len(row_labels)), row_labels)
    axes.set_xlabel("time s (frames)")
    axes.tick_params(length=0)
