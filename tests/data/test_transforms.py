"""The factors' values against the paper's lists, and the names that can be asked for."""

import numpy as np
import pytest

from ppl_tvae.data.transforms import (
    factor_values,
    hue_colours,
    in_perspective,
    moving_factors,
    perspective_coordinates,
    rotation_degrees,
    sampling_tables,
    scales,
    source_coordinates,
)
from ppl_tvae.errors import UserError

# From the authors' configurations (tvae/experiments/tvae_Lpartial_mnist.py).
PAPER_SCALES = "0.60 0.64 0.68 0.72 0.76 0.79 0.83 0.87 0.91 0.95 0.99 1.03 1.07 1.11 1.14 1.18 1.22 1.26"


def test_the_paper_values() -> None:
    np.testing.assert_array_equal(rotation_degrees(18), np.arange(0, 360, 20))
    np.testing.assert_array_equal(scales(18), [float(value) for value in PAPER_SCALES.split()])
    np.testing.assert_allclose(scales(4), [0.60, 0.82, 1.04, 1.26])
    assert set(factor_values(18)) == {"rotation", "scale", "hue"}


def test_hues_start_at_cyan_and_pass_red_half_way() -> None:
    colours = hue_colours(18)
    np.testing.assert_array_equal(colours[[0, 3, 6, 9, 12, 15]], np.array(
        [[0, 1, 1], [0, 0, 1], [1, 0, 1], [1, 0, 0], [1, 1, 0], [0, 1, 0]], np.float32
    ))  # fmt: skip


def test_moving_factors() -> None:
    expected = [[True, False, False], [False, False, True], [True, False, True], [False, True, True]]
    assert moving_factors(("rotation", "hue", "rotation+hue", "hue+scale")).tolist() == expected


def test_perspective_takes_the_place_of_rotation() -> None:
    transforms, flat = ("perspective", "hue", "perspective+hue"), ("rotation", "hue", "rotation+hue")
    np.testing.assert_array_equal(moving_factors(transforms), moving_factors(flat))
    assert in_perspective((*transforms, "rotation")) == [True, False, True, False]
    np.testing.assert_array_equal(moving_factors(("perspective", "rotation")), [[True, False, False]] * 2)


def camera(degrees: float, height: int, width: int) -> np.ndarray:
    """(3, 3), the released code's matrices: a point (x, y, 1) of the image to space, turned, moved off, and projected.

    The focal length, which is also the distance, is half the diagonal over sin(angle).
    """
    cosine, sine = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    focal = np.hypot(height, width) / (2 * sine)
    to_space = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 1.0]])
    about_vertical = np.array([[cosine, 0, -sine, 0], [0, 1, 0, 0], [sine, 0, cosine, 0], [0, 0, 0, 1]])
    in_plane = np.array([[cosine, -sine, 0, 0], [sine, cosine, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    away = np.eye(4)
    away[2, 3] = focal
    projection = np.array([[focal, 0, 0, 0], [0, focal, 0, 0], [0, 0, 1, 0]])
    return projection @ away @ about_vertical @ in_plane @ to_space


@pytest.mark.parametrize("degrees", [20, 80, 100, 160, 200, 250, 340])
@pytest.mark.parametrize("scale", [0.6, 1.0])
def test_perspective_is_the_projection_of_a_turned_plane(degrees: float, scale: float) -> None:
    """Against the inverse of the matrix, wherever either says that a pixel shows the image."""
    rows, columns = perspective_coordinates(28, 26, degrees, scale)
    down, right = np.mgrid[:28, :26] - np.array([13.5, 12.5])[:, None, None]
    points = np.tensordot(np.linalg.inv(camera(degrees, 28, 26)), [right / scale, down / scale, 1 + 0 * down], axes=1)
    expected = points[1] / points[2] + 13.5, points[0] / points[2] + 12.5
    seen = [(r > -1) & (r < 28) & (c > -1) & (c < 26) for r, c in ((rows, columns), expected)]
    either = seen[0] | seen[1]
    assert either.sum() > 20
    for found, place in zip((rows, columns), expected, strict=True):
        np.testing.assert_allclose(found[either], place[either], rtol=0, atol=1 / 512 + 1e-9)


def test_perspective_at_no_turn_and_at_half_a_turn() -> None:
    image = np.arange(35).reshape(5, 7)
    for degrees, expected in ((0, image), (180, image[::-1])):
        rows, columns = perspective_coordinates(5, 7, degrees, 1.0)
        np.testing.assert_array_equal(image[rows.astype(int), columns.astype(int)], expected)
        assert (rows % 1 == 0).all()
        assert (columns % 1 == 0).all()


def test_perspective_at_its_edge_is_finite() -> None:
    """A quarter turn shows the plane from its side; a size with a pixel on the axis divides by zero there."""
    for size in (6, 7):
        for degrees in (90, 270):
            assert np.isfinite(perspective_coordinates(size, size, degrees, 0.8)).all()
        corner, _ = sampling_tables(size, size, 4, perspective=True)
        assert 0 <= corner.min() <= corner.max() < (size + 1) ** 2


@pytest.mark.parametrize(
    ("transforms", "words"),
    [
        (("rotate",), "did you mean 'rotation'"),
        (("rotation+huge",), r"did you mean 'rotation\+hue'"),
        (("hue+hue",), "transform, found 'hue.hue'"),
        (("",), "choose one of"),
        (("rotation+perspective",), "transform, found 'rotation.perspective'"),
        ((), "at least one transform"),
        (("none", "hue"), "expected 'none' alone"),
    ],
)
def test_wrong_names(transforms: tuple[str, ...], words: str) -> None:
    with pytest.raises(UserError, match=words):
        moving_factors(transforms)


@pytest.mark.parametrize("shape", [(28, 28), (7, 7), (6, 9)], ids=str)
@pytest.mark.parametrize("quarter", range(4))
def test_quarter_turns_land_on_the_grid(shape: tuple[int, int], quarter: int) -> None:
    """About the true centre, a quarter turn of a square maps pixels to pixels; no float noise may smear them."""
    rows, columns = source_coordinates(*shape, degrees=90 * quarter, scale=1.0)
    if shape[0] == shape[1] or quarter % 2 == 0:
        image = np.arange(shape[0] * shape[1]).reshape(shape)
        np.testing.assert_array_equal(image[rows.astype(int), columns.astype(int)], np.rot90(image, quarter))
        assert (rows % 1 == 0).all()
        assert (columns % 1 == 0).all()


def test_tables_stay_inside_the_padded_grid() -> None:
    corner, fraction = sampling_tables(5, 9, 6)
    assert corner.shape == fraction.shape == (36, 45)
    assert 0 <= corner.min() <= corner.max() < 6 * 10
    assert 0 <= fraction.min() <= fraction.max() < 1 << 16
