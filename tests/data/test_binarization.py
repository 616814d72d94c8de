"""The hash as a source of uniforms: right frequencies, no correlation, the same in every backend."""

import math

import jax.numpy as jnp
import numpy as np
import pytest
import torch

from ppl_tvae.data import binarization
from ppl_tvae.data.binarization import binarized, mix, uniforms

STANDARD_ERRORS = 5
SHAPE = (6, 12, 12, 3)
# Words of neighbouring integers, of a generator, and the extremes.
NOISE = np.concatenate([
    np.arange(-32, 32), np.random.default_rng(0).integers(-(2**31), 2**31, 190), [2**31 - 1, -(2**31)]
]).astype(np.int32)  # fmt: skip


@pytest.fixture(scope="module")
def drawn() -> np.ndarray:
    return uniforms(NOISE, SHAPE)


def lowbias32(word: int) -> int:
    """The published function, in Python's own unbounded integers."""
    word ^= word >> 16
    word = word * 0x7FEB352D & 0xFFFFFFFF
    word ^= word >> 15
    word = word * 0x846CA68B & 0xFFFFFFFF
    return word ^ word >> 16


def test_mix_is_lowbias32() -> None:
    mixed = mix(NOISE).astype(np.int64) & 0xFFFFFFFF
    assert mixed.tolist() == [lowbias32(int(word) & 0xFFFFFFFF) for word in NOISE]


def test_backends_agree(drawn: np.ndarray) -> None:
    np.testing.assert_array_equal(np.asarray(uniforms(jnp.asarray(NOISE), SHAPE)), drawn)
    np.testing.assert_array_equal(uniforms(torch.from_numpy(NOISE), SHAPE).numpy(), drawn)


def test_uniform_in_the_half_open_interval(drawn: np.ndarray) -> None:
    assert drawn.dtype == np.float32
    assert 0 <= drawn.min() <= drawn.max() < 1
    counts = np.histogram(drawn, bins=64, range=(0, 1))[0]
    chi_square = ((counts - drawn.size / 64) ** 2 / (drawn.size / 64)).sum()
    assert abs(chi_square - 63) < STANDARD_ERRORS * math.sqrt(2 * 63)


@pytest.mark.parametrize("level", [0.0, 1 / 255, 0.1, 0.5, 0.9, 254 / 255, 1.0])
def test_frequency_of_a_grey_level(level: float) -> None:
    frames = np.full((len(NOISE), *SHAPE), level, np.float32)
    ones = binarized(frames, NOISE)
    assert set(np.unique(ones)) <= {0.0, 1.0}
    error = math.sqrt(level * (1 - level) / frames.size)
    assert abs(ones.mean(dtype=np.float64) - level) <= STANDARD_ERRORS * error


@pytest.mark.parametrize("axis", range(5), ids=["sequence", "time", "row", "column", "channel"])
def test_neighbours_are_uncorrelated(drawn: np.ndarray, axis: int) -> None:
    centred = np.moveaxis(drawn.astype(np.float64) - 0.5, axis, 0)
    for lag in (1, 2, 4):
        if lag < centred.shape[0]:
            products = centred[lag:] * centred[:-lag]
            # A product of two centred uniforms has mean 0 and standard deviation 1/12.
            assert abs(products.mean()) < STANDARD_ERRORS / 12 / math.sqrt(products.size)


def test_each_pixel_is_uniform_over_sequences(drawn: np.ndarray) -> None:
    means = drawn.astype(np.float64).mean(axis=0)
    assert np.abs(means - 0.5).max() < 5.5 / math.sqrt(12 * len(NOISE))


def test_words_decide() -> None:
    same, other = uniforms(np.array([7, 7, 8], np.int32), SHAPE)[1:]
    np.testing.assert_array_equal(uniforms(np.array([7], np.int32), SHAPE)[0], same)
    assert (same != other).mean() > 0.999


def test_black_stays_black_and_white_white(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a uniform is the least or the largest that there is."""
    extremes = np.array([0, 1 - 2.0**-24], np.float32).reshape(1, 2, 1, 1, 1)
    monkeypatch.setattr(binarization, "uniforms", lambda noise, shape: extremes)
    for level in (0.0, 1.0):
        assert (binarized(np.full(extremes.shape, level, np.float32), NOISE[:1]) == level).all()
