"""The factors' values against the paper's lists, and the names that can be asked for."""

import numpy as np
import pytest

from ppl_tvae.data.transforms import (
    factor_values,
    hue_colours,
    moving_factors,
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


@pytest.mark.parametrize(
    ("transforms", "words"),
    [
        (("rotate",), "did you mean 'rotation'"),
        (("rotation+huge",), r"did you mean 'rotation\+hue'"),
        (("hue+hue",), "transform, found 'hue.hue'"),
        (("",), "choose one of"),
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
