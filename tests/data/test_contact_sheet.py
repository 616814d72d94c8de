"""The contact sheet: a readable PNG of the right layout."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ppl_tvae.diagnostics.contact_sheet import contact_sheet
from ppl_tvae.errors import UserError


@pytest.mark.parametrize("channels", [1, 3])
def test_rows_are_sequences_and_columns_frames(tmp_path: Path, channels: int) -> None:
    """Two sequences of three frames; only the second's last frame is lit, and so lies at the lower right."""
    frames = np.zeros((2, 3, 8, 8, channels))
    frames[1, 2] = 1
    contact_sheet(frames, ["7, rotation", "3, hue"], tmp_path / "new" / "sheet.png", "test sequences")
    with Image.open(tmp_path / "new" / "sheet.png") as image:
        grey = np.asarray(image.convert("L"), int)
    # Inside the axes every pixel row and column of black frames is mostly black; paper is white.
    black_rows, black_columns = (np.flatnonzero((grey < 5).mean(axis) > 0.3) for axis in (1, 0))
    panel = grey[black_rows[0] : black_rows[-1], black_columns[0] :]
    assert panel.shape[0] > 60
    lit = np.argwhere(panel > 250)
    lit = lit[lit[:, 1] < 3 * panel.shape[0] / 2]  # drop the margin at the right of the axes
    assert lit[:, 0].mean() > panel.shape[0] * 0.6


@pytest.mark.parametrize(
    ("shape", "labels"), [((2, 3, 8, 8), 2), ((2, 3, 8, 8, 2), 2), ((2, 3, 8, 8, 3), 1), ((0, 3, 8, 8, 3), 0)]
)
def test_shapes_that_do_not_fit(tmp_path: Path, shape: tuple[int, ...], labels: int) -> None:
    with pytest.raises(UserError, match="row labels, found"):
        contact_sheet(np.zeros(shape), ["a"] * labels, tmp_path / "sheet.png", "")
