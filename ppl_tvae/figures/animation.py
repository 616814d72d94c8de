"""Sequences as an animated picture: rows and columns of frames that run side by side."""

import io
from collections.abc import Sequence

import numpy as np

from ppl_tvae.errors import UserError
from ppl_tvae.figures.charts import blank_figure, without_formulas
from ppl_tvae.figures.contact_sheet import as_picture, tiled

_MILLISECONDS = 180  # per frame
_COLOURS = 64  # of the palette; more make the file larger, and nobody sees them


def animation(frames: np.ndarray, row_labels: Sequence[str], column_labels: Sequence[str]) -> bytes:
    """A looping GIF of (rows, columns, S, H, W, channel) frames in [0, 1], time as time.

    Channels are shown as `as_picture` says. Raises UserError if the shapes do not fit together.
    """
    from PIL import Image

    counts = (len(row_labels), len(column_labels))
    if frames.ndim != 6 or frames.shape[:2] != counts or 0 in frames.shape:
        raise UserError(
            f"expected frames (rows, columns, S, H, W, channel) with a label for each row and column, found "
            f"{frames.shape} with {counts[0]} and {counts[1]}"
        )
    rows, columns, num_timesteps = frames.shape[:3]
    pictures_of = as_picture(frames)
    margin = 0.35 + 0.085 * max(map(len, row_labels))
    figure = blank_figure(margin + 1.1 * columns, 0.7 + 1.0 * rows)
    figure.set_dpi(100)
    axes = figure.add_subplot()
    shown = axes.imshow(
        tiled(pictures_of[:, :, 0]), cmap="gray", vmin=0, vmax=1, interpolation="nearest",
        extent=(-0.5, columns - 0.5, rows - 0.5, -0.5),
    )  # fmt: skip
    axes.set_aspect(frames.shape[3] / frames.shape[4])
    axes.set_yticks(range(rows), row_labels)
    axes.set_xticks(range(columns), column_labels, fontsize=8)
    axes.tick_params(length=0)
    without_formulas(figure)
    pictures = []
    for s in range(num_timesteps):
        shown.set_data(tiled(pictures_of[:, :, s]))
        axes.set_title(f"time s = {s:2d} of {num_timesteps} frames", fontsize=10)
        figure.canvas.draw()
        drawn = Image.fromarray(np.asarray(figure.canvas.buffer_rgba())[..., :3].copy())
        pictures.append(drawn.quantize(_COLOURS, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE))
    content = io.BytesIO()
    pictures[0].save(content, format="GIF", save_all=True, append_images=pictures[1:], duration=_MILLISECONDS, loop=0)
    return content.getvalue()
