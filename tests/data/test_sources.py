"""Public sources: the digits that come with scikit-learn, and four IDX files found in a folder."""

import os
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage
from sklearn.datasets import load_digits

from ppl_tvae.data import catalogue, load_source
from ppl_tvae.data.transforms import PAPER_SCALES
from ppl_tvae.errors import UserError

HAS_MNIST = (Path(os.environ.get("PPL_TVAE_DATA", "absent")) / "mnist" / "train-images-idx3-ubyte.gz").is_file()
needs_mnist = pytest.mark.skipif(not HAS_MNIST, reason="set PPL_TVAE_DATA to a folder that holds mnist/*.gz")


def idx_bytes(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def test_digits() -> None:
    source = load_source("digits")
    assert source.pixels.shape == (1797, 28, 28, 1)
    assert source.pixels.dtype == np.uint8
    assert (len(source.train), len(source.test)) == (1497, 300)
    assert not set(source.train) & set(source.test)
    np.testing.assert_array_equal(source.labels, load_digits().target)


def test_digits_are_the_small_ones_enlarged() -> None:
    """Linear interpolation of pixel areas, edges held, 17 levels spread over 0..255, a margin of 4 all round."""
    source, small = load_source("digits"), load_digits().images
    where = (np.arange(20) + 0.5) * 8 / 20 - 0.5
    grid = np.meshgrid(where, where, indexing="ij")
    for number in (0, 7, 1796):
        oracle = ndimage.map_coordinates(small[number] * 255 / 16, grid, order=1, mode="nearest")
        np.testing.assert_allclose(source.pixels[number, 4:24, 4:24, 0], oracle, rtol=0, atol=0.5 + 1e-9)
    inner = source.pixels[:, 4:24, 4:24]
    assert source.pixels.sum(dtype=np.int64) == inner.sum(dtype=np.int64)
    assert inner.max() == 255


def test_digits_stay_inside_at_the_largest_scale() -> None:
    assert 20 * max(PAPER_SCALES) < 28


def write_four_files(folder: Path, num_labels: int = 4) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (10, 28, 28), dtype=np.uint8)
    folder.mkdir()
    for part, images, labels in (
        ("train", pixels[:6], np.arange(6, dtype=np.uint8)),
        ("t10k", pixels[6:], np.arange(num_labels, dtype=np.uint8)),
    ):
        (folder / f"{part}-images-idx3-ubyte").write_bytes(idx_bytes(images))
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(idx_bytes(labels))


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
def test_four_unpacked_files(tmp_path: Path, name: str) -> None:
    write_four_files(tmp_path / name)
    source = load_source(name, tmp_path)
    np.testing.assert_array_equal(source.train, np.arange(6))
    np.testing.assert_array_equal(source.test, np.arange(6, 10))
    np.testing.assert_array_equal(source.labels, [0, 1, 2, 3, 4, 5, 0, 1, 2, 3])


def test_images_without_labels(tmp_path: Path) -> None:
    write_four_files(tmp_path / "mnist", num_labels=3)
    with pytest.raises(UserError, match="a label for each of 4 images, found 3"):
        load_source("mnist", tmp_path)


@needs_mnist
def test_real_mnist() -> None:
    source = load_source("mnist")
    assert source.pixels.shape == (70000, 28, 28, 1)
    assert np.bincount(source.labels[source.test]).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert source.pixels[source.train].mean() / 255 == pytest.approx(0.1307, abs=1e-4)


def test_unknown_names() -> None:
    with pytest.raises(UserError, match="did you mean 'digits'"):
        load_source("digit")
    with pytest.raises(UserError, match=r"path ending in .npz"):
        load_source("/some/where.csv")


def test_catalogue_names_what_loads() -> None:
    assert {"digits", "mnist", "fashion-mnist"} <= set(catalogue())
    assert all("\n" not in line for line in catalogue().values())


def test_importing_is_light() -> None:
    """Neither backend, nor anything that only some sources need."""
    heavy = {"torch", "jax", "sklearn", "pooch", "requests", "matplotlib", "scipy"}
    code = f"import sys, ppl_tvae.data; print({heavy!r} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"
