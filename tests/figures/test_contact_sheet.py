"""The contact sheet: a readable PNG of the right layout."""

import io

import numpy as np
import pytest
from PIL import Image

from ppl_tvae.errors import UserError
from ppl_tvae.figures.contact_sheet import as_picture, contact_sheet


def opened(content: bytes) -> Image.Image:
    return Image.open(io.BytesIO(content))


@pytest.mark.parametrize("channels", [1, 3])
def test_rows_are_sequences_and_columns_frames(channels: int) -> None:
    """Two sequences of three frames; only the second's last frame is lit, and so lies at the lower right."""
    frames = np.zeros((2, 3, 8, 8, channels))
    frames[1, 2] = 1
    with opened(contact_sheet(frames, ["7, rotation", "3, hue"], "test sequences")) as image:
        grey = np.asarray(image.convert("L"), int)
    # Inside the axes every pixel row and column of black frames is mostly black; paper is white.
    black_rows, black_columns = (np.flatnonzero((grey < 5).mean(axis) > 0.3) for axis in (1, 0))
    panel = grey[black_rows[0] : black_rows[-1], black_columns[0] :]
    assert panel.shape[0] > 60
    lit = np.argwhere(panel > 250)
    lit = lit[lit[:, 1] < 3 * panel.shape[0] / 2]  # drop the margin at the right of the axes
    assert lit[:, 0].mean() > panel.shape[0] * 0.6


@pytest.mark.parametrize(("shape", "labels"), [((2, 3, 8, 8), 2), ((2, 3, 8, 8, 3), 1), ((0, 3, 8, 8, 3), 0)])
def test_shapes_that_do_not_fit(shape: tuple[int, ...], labels: int) -> None:
    with pytest.raises(UserError, match="row labels, found"):
        contact_sheet(np.zeros(shape), ["a"] * labels, "")


def test_two_channels_are_shown_as_their_mean() -> None:
    frames = np.random.default_rng(0).random((2, 3, 4, 5, 2))
    np.testing.assert_allclose(as_picture(frames), frames.mean(-1))
    assert as_picture(frames[..., [0, 1, 1]]).shape == (2, 3, 4, 5, 3)


def test_single_frames_stand_side_by_side() -> None:
    """Four sequences of one frame; only the last is lit, and so black ones lie at its left."""
    frames = np.zeros((4, 1, 8, 8, 1))
    frames[3] = 1
    with opened(contact_sheet(frames, ["7, none"] * 4, "digits")) as image:
        grey = np.asarray(image.convert("L"), int)
    black_columns = np.flatnonzero((grey < 5).mean(axis=0) > 0.3)
    assert grey.shape[1] > 2 * grey.shape[0]
    assert grey.shape[1] * 0.6 < black_columns[-1] < grey.shape[1] * 0.78


@pytest.mark.parametrize("num_timesteps", [1, 2, 18])
def test_a_long_title_is_not_cut_off(num_timesteps: int) -> None:
    title = "hyperspherical on fashion-mnist: test sequences, and E[x | latents drawn from the guide]"
    with opened(contact_sheet(np.zeros((2, num_timesteps, 8, 8, 3)), ["a", "b"], title)) as image:
        grey = np.asarray(image.convert("L"), int)
    title_rows = grey[:40]
    assert (title_rows < 128).any()
    assert (title_rows[:, [0, 1, -2, -1]] > 250).all()
