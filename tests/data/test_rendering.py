"""Frames against scipy's interpolation and colorsys, and NumPy against JAX and torch, bit for bit."""

import colorsys
from typing import Any

import jax
import numpy as np
import pytest
import torch
from scipy import ndimage

from ppl_tvae.data.plans import Plan, fixed_plan
from ppl_tvae.data.rendering import (
    SequenceTables,
    factor_indices,
    factor_tables,
    image_tables,
    plain_tables,
    render,
)
from ppl_tvae.data.transforms import perspective_coordinates, scales, source_coordinates

pytestmark = pytest.mark.machine_code

S = 18
GENERATOR = np.random.default_rng(0)
# Odd beside even, not square, and bright up to the edge: what a digit in a black margin would hide.
IMAGES = GENERATOR.integers(0, 256, (5, 9, 12, 1), dtype=np.uint8)
IMAGES[IMAGES < 60], IMAGES[IMAGES > 195] = 0, 255  # whose products fill the halves of a word
COLOUR_IMAGES = GENERATOR.integers(0, 256, (5, 9, 12, 3), dtype=np.uint8)
COLOUR_IMAGES[0, :4] = 77  # grey has no hue
COLOUR_IMAGES[0, 4:] = 0


def plan_of(fixed: np.ndarray, transform: int = 0, phase: int = 0, image: int = 0) -> Plan:
    """One sequence per row of `fixed` (B, 3)."""
    constants = [np.full(len(fixed), value, np.int32) for value in (image, transform, phase, 0)]
    return Plan(*constants[:3], np.asarray(fixed, np.int32), constants[3])


def affine(image: np.ndarray, degrees: float, scale: float) -> np.ndarray:
    """Turned counter-clockwise and magnified about its centre, by scipy; zero outside."""
    angle = np.deg2rad(degrees)
    matrix = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]]) / scale
    centre = (np.array(image.shape) - 1) / 2
    return ndimage.affine_transform(image, matrix, centre - matrix @ centre, order=1, mode="grid-constant")


@pytest.fixture(scope="module")
def every_view() -> np.ndarray:
    """(scale, rotation, H, W) in pure red: every angle at every scale."""
    fixed = [[0, scale, S // 2] for scale in range(S)]
    frames = render(image_tables(IMAGES, ("rotation",), S), plan_of(np.array(fixed)))
    assert (frames[..., 1:] == 0).all()
    return frames[..., 0]


def test_every_angle_and_scale_against_scipy(every_view: np.ndarray) -> None:
    """Coordinates are rounded to 1/256 pixel: at most 1/512 of the greatest step, 1, along each axis."""
    image = IMAGES[0, ..., 0] / 255
    for scale in range(S):
        for turn in range(S):
            np.testing.assert_allclose(
                every_view[scale, turn], affine(image, 20 * turn, scales(S)[scale]), rtol=0, atol=2 / 512 + 1e-6
            )


def test_interpolation_is_exact_at_the_rounded_coordinates(every_view: np.ndarray) -> None:
    image = IMAGES[0, ..., 0] / 255
    for scale in range(S):
        for turn in range(S):
            where = source_coordinates(9, 12, 20 * turn, scales(S)[scale])
            oracle = ndimage.map_coordinates(image, where, order=1, mode="grid-constant")
            np.testing.assert_allclose(every_view[scale, turn], oracle, rtol=0, atol=2e-7)


@pytest.mark.parametrize("size", [6, 7])
def test_quarter_turns_are_rot90(size: int) -> None:
    """S = 100 has scale 1.00 among its scales, at index 60, and every quarter turn."""
    images = GENERATOR.integers(0, 256, (1, size, size, 1), dtype=np.uint8)
    frames = render(image_tables(images, ("rotation",), 100), plan_of(np.array([[0, 60, 50]])))[0, ..., 0]
    grey = images[0, ..., 0] * np.float32(1 / 255)
    for quarter in range(4):
        np.testing.assert_array_equal(frames[25 * quarter], np.rot90(grey, quarter))


def test_four_frames_are_quarter_turns() -> None:
    """At S = 4 each frame is the first one turned by rot90, exactly, at whatever scale."""
    images = GENERATOR.integers(0, 256, (1, 8, 8, 1), dtype=np.uint8)
    frames = render(image_tables(images, ("rotation",), 4), plan_of(np.array([[0, k, 0] for k in range(4)])))
    for view in frames:
        for quarter in range(4):
            np.testing.assert_array_equal(view[quarter], np.rot90(view[0], quarter))


def test_hue_of_grey_images_against_colorsys() -> None:
    tables = image_tables(IMAGES, ("hue",), S)
    frames = render(tables, plan_of(np.array([[2, 7, 0]]), phase=5))[0]
    grey = frames.max(axis=-1)
    for time in range(S):
        colour = colorsys.hsv_to_rgb(((time + 5) * 20 - 180) / 360 % 1, 1, 1)
        np.testing.assert_allclose(frames[time], grey[time][..., None] * np.array(colour), atol=1e-6)


def test_hue_of_colour_images_against_colorsys() -> None:
    tables = image_tables(COLOUR_IMAGES, ("hue",), S)
    frames = render(tables, plan_of(np.array([[3, 9, 0]]), image=2))[0]
    unshifted = frames[S // 2]  # index 9 shifts by 0 degrees
    for time in range(S):
        for row, column in ((0, 0), (4, 5), (5, 6), (3, 7), (8, 11)):
            hue, saturation, value = colorsys.rgb_to_hsv(*unshifted[row, column].astype(float))
            colour = colorsys.hsv_to_rgb((hue + (time * 20 - 180) / 360) % 1, saturation, value)
            np.testing.assert_allclose(frames[time, row, column], colour, atol=2e-6)


def test_colour_images_without_a_shift_are_only_sampled() -> None:
    frames = render(image_tables(COLOUR_IMAGES, ("rotation",), S), plan_of(np.array([[0, 5, 9]]), image=2))[0]
    for channel in range(3):
        oracle = affine(COLOUR_IMAGES[2, ..., channel] / 255, 40, 0.79)
        np.testing.assert_allclose(frames[2, ..., channel], oracle, rtol=0, atol=2 / 512 + 1e-6)


def test_only_the_named_factors_move() -> None:
    tables = image_tables(IMAGES, ("scale", "rotation+hue"), S)
    fixed = np.array([[4, 5, 6], [7, 8, 9]], np.int32)
    zero = np.zeros(2, np.int32)
    indices = factor_indices(tables, Plan(zero, np.array([0, 1], np.int32), np.array([16, 3], np.int32), fixed, zero))
    time = np.arange(S)
    np.testing.assert_array_equal(indices[0], np.stack([0 * time + 4, (16 + time) % S, 0 * time + 6], -1))
    np.testing.assert_array_equal(indices[1], np.stack([(3 + time) % S, 0 * time + 8, (3 + time) % S], -1))


@pytest.mark.parametrize("transforms", [("perspective+hue",), ("perspective",), ("rotation", "perspective", "hue")])
def test_perspective_is_interpolated_as_rotation_is(transforms: tuple[str, ...]) -> None:
    """Also beside transforms that are not in perspective, which have tables of their own."""
    number = [name.startswith("perspective") for name in transforms].index(True)
    fixed = np.array([[0, 7, 9]])
    tables = image_tables(IMAGES, transforms, S)
    frames = render(tables, plan_of(fixed, transform=number, phase=3))[0]
    grey = frames.max(axis=-1)
    for time in range(S):
        where = perspective_coordinates(9, 12, 20 * (time + 3), scales(S)[7])
        oracle = ndimage.map_coordinates(IMAGES[0, ..., 0] / 255, where, order=1, mode="grid-constant")
        np.testing.assert_allclose(grey[time], oracle, rtol=0, atol=3e-7)
    if len(transforms) > 1:
        flat = image_tables(IMAGES, ("rotation", "hue"), S)
        np.testing.assert_array_equal(render(tables, plan_of(fixed, 2)), render(flat, plan_of(fixed, 1)))


def test_factors_by_hand() -> None:
    """Two shapes at three places; at each time the pixel of the image that the indices name is lit."""
    images = np.zeros((6, 2, 8), np.uint8)
    images[np.arange(6), np.arange(6) // 3, np.arange(6)] = 1
    moves = np.array([[False, True], [True, False]])
    tables = factor_tables(np.packbits(images, axis=-1), (2, 3), moves, 4)
    start, zero = np.array([4, 4], np.int32), np.zeros(2, np.int32)
    plan = Plan(start, np.array([0, 1], np.int32), zero, np.zeros((2, 3), np.int32), zero)
    assert factor_indices(tables, plan).tolist() == [
        [[1, 1], [1, 2], [1, 0], [1, 1]],
        [[1, 1], [0, 1], [1, 1], [0, 1]],
    ]
    frames = render(tables, plan)
    np.testing.assert_array_equal(frames[..., 0], images[[[4, 5, 3, 4], [4, 1, 4, 1]]])


def test_plain_images_are_repeated() -> None:
    frames = render(plain_tables(COLOUR_IMAGES, 4), plan_of(np.zeros((2, 3)), image=3))
    assert frames.shape == (2, 4, 9, 12, 3)
    np.testing.assert_allclose(frames, np.broadcast_to(COLOUR_IMAGES[3] / 255, frames.shape), atol=1e-7)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_ready_sequences_come_back(dtype: type) -> None:
    pixels = GENERATOR.random((4, 3, 5, 6, 2))
    stored = (pixels * 255).astype(np.uint8) if dtype == np.uint8 else pixels.astype(np.float32)
    frames = render(SequenceTables(stored), plan_of(np.zeros((2, 3)), image=1))
    expected = stored[1] / np.float32(255) if dtype == np.uint8 else stored[1]
    np.testing.assert_allclose(frames, np.stack([expected, expected]), rtol=0, atol=1e-7)


TABLES = {
    "grey": image_tables(IMAGES, ("rotation", "scale", "hue", "rotation+hue"), S),
    "colour": image_tables(COLOUR_IMAGES, ("rotation", "scale", "hue", "rotation+hue"), S),
    "plain": plain_tables(IMAGES, 3),
    "perspective": image_tables(IMAGES, ("rotation", "perspective", "scale", "perspective+hue"), S),
    "factors": factor_tables(
        GENERATOR.integers(0, 256, (3 * 18, 6, 2), dtype=np.uint8), (3, 18), GENERATOR.random((4, 2)) < 0.5, S
    ),
    "sequences": SequenceTables(GENERATOR.random((5, 4, 6, 7, 1)).astype(np.float32)),
}
PLAN = fixed_plan(np.tile(np.arange(5, dtype=np.int32), 8), "test", 4, S)


def by_jax(tables: Any, binarize: bool) -> np.ndarray:
    return np.asarray(render(jax.device_put(tables), jax.device_put(PLAN), binarize))


def by_jax_jit(tables: Any, binarize: bool) -> np.ndarray:
    """The plan is traced; the tables are closed over, and so constants that a compiler might fold."""
    return np.asarray(jax.jit(lambda plan: render(jax.device_put(tables), plan, binarize))(jax.device_put(PLAN)))


def by_torch(tables: Any, binarize: bool) -> np.ndarray:
    on_torch = type(tables)(*map(torch.from_numpy, tables))
    return render(on_torch, Plan(*map(torch.from_numpy, PLAN)), binarize).numpy()


@pytest.mark.parametrize("binarize", [False, True], ids=["levels", "binarized"])
@pytest.mark.parametrize("backend", [by_jax, by_jax_jit, by_torch])
@pytest.mark.parametrize("kind", ["grey", "plain", "sequences", "perspective", "factors"])
def test_backends_agree_bit_for_bit(kind: str, backend: Any, binarize: bool) -> None:
    frames = backend(TABLES[kind], binarize)
    expected = render(TABLES[kind], PLAN, binarize)
    assert frames.dtype == expected.dtype == np.float32
    np.testing.assert_array_equal(frames, expected)


@pytest.mark.parametrize("backend", [by_jax, by_jax_jit, by_torch])
def test_backends_agree_on_colour_images(backend: Any) -> None:
    """Hue shifts divide, and a compiler may fuse: the last bits are not promised here."""
    np.testing.assert_allclose(backend(TABLES["colour"], False), render(TABLES["colour"], PLAN), rtol=0, atol=2e-6)


@pytest.mark.parametrize("kind", TABLES)
def test_frames_are_levels_in_the_unit_interval(kind: str) -> None:
    frames = render(TABLES[kind], PLAN)
    assert frames.min() >= 0
    assert frames.max() <= 1


def test_double_precision_hosts_see_the_same_frames() -> None:
    """jax_enable_x64 must not promote anything."""
    with jax.enable_x64(True):
        np.testing.assert_array_equal(by_jax_jit(TABLES["grey"], True), render(TABLES["grey"], PLAN, True))
