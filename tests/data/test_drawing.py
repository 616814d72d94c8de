"""Drawn sprites against a pixel-by-pixel definition, and against images of the original dSprites."""

import os
from pathlib import Path

import numpy as np
import pytest

from ppl_tvae.data.drawing import SHAPES, SUBPIXELS, drawn, outline
from ppl_tvae.data.sprites import ORIENTATIONS, POSITIONS, SCALES

GENUINE = Path(os.environ.get("PPL_TVAE_DATA", "absent")) / "dsprites" / "dsprites-genuine-64834.npz"
needs_genuine = pytest.mark.skipif(not GENUINE.is_file(), reason=f"set PPL_TVAE_DATA to a folder that holds {GENUINE}")


def one(shape: str, scale: float = 1.0, orientation: float = 0.0, x: float = 0.5, y: float = 0.5) -> np.ndarray:
    values = (np.array([value]) for value in (scale, orientation, x, y))
    return np.unpackbits(drawn(SHAPES.index(shape), *values), axis=-1)[0]


def filled(corners: np.ndarray) -> np.ndarray:
    """(64, 64): for each pixel, in whole numbers, how many edges of a polygon lie left of its centre or on it."""
    (x0, y0), (x1, y1) = corners.T[..., None, None], np.roll(corners, -1, axis=0).T[..., None, None]
    row, column = np.mgrid[:64, :64] * SUBPIXELS + SUBPIXELS // 2
    beside = (np.minimum(y0, y1) < row) & (row <= np.maximum(y0, y1))
    on_or_right = np.sign(y1 - y0) * ((column - x0) * (y1 - y0) - (x1 - x0) * (row - y0)) >= 0
    return (beside & on_or_right).sum(axis=0) % 2


@pytest.mark.parametrize("shape", SHAPES)
def test_every_pixel_is_inside_by_definition(shape: str) -> None:
    generator = np.random.default_rng(0)
    scale, orientation = generator.uniform(0.5, 1, 40), generator.uniform(0, 2 * np.pi, 40)
    x, y = generator.random((2, 40))
    orientation[:3] = 0, np.pi / 2, np.pi  # edges along the rows and columns of pixels
    x[:3], y[:3] = 0.5 / 32, 0.9 / 32  # and through pixels' centres
    images = np.unpackbits(drawn(SHAPES.index(shape), scale, orientation, x, y), axis=-1)
    for n in range(40):
        cosine, sine = np.cos(orientation[n]), np.sin(orientation[n])
        turn = np.array([[cosine, -sine], [sine, cosine]])
        corners = outline(SHAPES.index(shape)) @ turn * scale[n] + 16 + 32 * np.array([x[n], y[n]])
        np.testing.assert_array_equal(images[n], filled(np.round(corners * SUBPIXELS).astype(int)), err_msg=str(n))


def test_a_square_by_hand() -> None:
    """Side 19.2 about (32, 32): centres from 22.5 to 41.5 lie inside."""
    expected = np.zeros((64, 64), np.uint8)
    expected[22:42, 22:42] = 1
    np.testing.assert_array_equal(one("square"), expected)


def test_left_and_lower_edges_are_inside() -> None:
    """Side 16 about (32.5, 32.5): all four edges pass through centres of pixels."""
    expected = np.zeros((64, 64), np.uint8)
    expected[25:41, 24:40] = 1
    np.testing.assert_array_equal(one("square", scale=8 / 9.6, x=16.5 / 32, y=16.5 / 32), expected)


def test_turns_are_counter_clockwise() -> None:
    """The heart's point is its lowest place, and after a quarter turn its rightmost."""
    for quarter in range(4):
        turned = np.rot90(one("heart", orientation=quarter * np.pi / 2), -quarter)
        rows, columns = np.nonzero(turned)
        assert abs(columns[rows.argmax()] - 31.5) <= 1
        assert abs(columns[rows.argmin()] - 31.5) > 3
    wide = one("ellipse").any(axis=0).sum(), one("ellipse").any(axis=1).sum()
    assert wide[0] > 1.5 * wide[1]


def test_positions_and_sizes() -> None:
    for shape in SHAPES:
        area = one(shape).sum()
        assert one(shape, scale=0.5).sum() == pytest.approx(area / 4, abs=np.sqrt(area))  # about a pixel at the rim
        np.testing.assert_array_equal(np.roll(one(shape), (8, -4), axis=(0, 1)), one(shape, x=0.375, y=0.75))
        np.testing.assert_array_equal(one(shape), one(shape, orientation=2 * np.pi))


def test_many_and_none() -> None:
    """More than are drawn at once, each as it is alone."""
    x = np.linspace(0, 1, 1500)
    ones = np.ones(1500)
    together = drawn(2, ones, 0.7 * ones, x, 1 - x)
    for n in (0, 1023, 1024, 1499):
        alone = drawn(2, ones[:1], 0.7 * ones[:1], x[n : n + 1], 1 - x[n : n + 1])[0]
        np.testing.assert_array_equal(together[n], alone)
    assert drawn(0, *np.empty((4, 0))).shape == (0, 64, 8)


@needs_genuine
def test_original_images() -> None:
    """Of all 64,834, 64,825 are the same, and nine differ by one pixel; here every fifth is looked at."""
    with np.load(GENUINE, allow_pickle=False) as archive:
        images, index = archive["imgs_packed"][::5], archive["index"][::5]
    shape, scale, orientation, x, y = np.unravel_index(index, (3, 6, 40, 32, 32))
    values = (SCALES[scale], ORIENTATIONS[orientation], POSITIONS[x], POSITIONS[y])
    ours = np.concatenate([drawn(kind, *(value[shape == kind] for value in values)) for kind in range(3)])
    theirs = np.concatenate([images[shape == kind] for kind in range(3)])
    different = np.bitwise_count(ours ^ theirs).sum(axis=(1, 2))
    assert different.max() <= 1
    assert different.sum() <= 9
