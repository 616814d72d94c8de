"""Reading dSprites from small archives of the same layout, and from the real one where it is at hand."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ppl_tvae.data import downloads, dsprites, open_data
from ppl_tvae.data.dsprites import packed_archive, read_dsprites
from ppl_tvae.data.sprites import load_sprites
from ppl_tvae.errors import UserError

SIZES = (3, 6, 7, 7, 7)
NUMBER = int(np.prod(SIZES))
PICKED = (np.arange(3), np.arange(1, 6), *[np.array([0, 2, 5])] * 3)
REAL = Path(os.environ.get("PPL_TVAE_DATA", "absent")) / "dsprites"
NAME = downloads.FILE_SETS["dsprites"].files[0].name


def numbered() -> np.ndarray:
    """(N, 64, 64) images, each of which spells its number in the bits of its first row."""
    images = np.zeros((NUMBER, 64, 64), np.uint8)
    images[:, 0, :16] = (np.arange(NUMBER)[:, None] >> np.arange(16)) & 1
    return images


def numbers(packed: np.ndarray) -> np.ndarray:
    assert packed.shape[1:] == (64, 8)
    assert not packed[:, 1:].any()
    return np.unpackbits(packed[:, 0, :2], axis=-1) @ (1 << np.arange(16))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for archives of fewer images; no file is ever fetched."""
    monkeypatch.setattr(dsprites, "SIZES", SIZES)
    monkeypatch.setattr(downloads, "cache_folder", lambda: tmp_path / "cache")
    files = replace(downloads.FILE_SETS["dsprites"], mirrors=())
    monkeypatch.setitem(downloads.FILE_SETS, "dsprites", files)
    monkeypatch.delenv("PPL_TVAE_DATA", raising=False)
    (tmp_path / "dsprites").mkdir()
    return tmp_path


def save_original(folder: Path, monkeypatch: pytest.MonkeyPatch, **arrays: np.ndarray) -> Path:
    """An archive under the original's name, whose checksum is the expected one; its `metadata` is a pickle."""
    path = folder / "dsprites" / NAME
    np.savez_compressed(path, **arrays, metadata=np.array({"author": print}, dtype=object))
    file = downloads.RemoteFile(NAME, downloads.md5(path))
    monkeypatch.setitem(
        downloads.FILE_SETS, "dsprites", replace(downloads.FILE_SETS["dsprites"], files=(file,), mirrors=())
    )
    return path


def test_both_archives_give_what_was_picked(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = np.ravel_multi_index(np.meshgrid(*PICKED, indexing="ij"), SIZES).ravel()
    np.savez_compressed(folder / "dsprites" / "any-name.npz", imgs_packed=np.packbits(numbered(), axis=-1))
    np.testing.assert_array_equal(numbers(read_dsprites(PICKED, folder)), expected)
    save_original(folder, monkeypatch, imgs=numbered())
    monkeypatch.setattr(dsprites, "packed_archive", None)  # the original goes first
    np.testing.assert_array_equal(numbers(read_dsprites(PICKED, folder)), expected)


def test_the_set_of_a_folder(folder: Path) -> None:
    """Four values of each factor: scales 1 to 5, and every second one of the others."""
    np.savez_compressed(folder / "dsprites" / "packed.npz", imgs_packed=np.packbits(numbered(), axis=-1))
    data = open_data("dsprites", folder, num_timesteps=4)
    seconds = np.arange(0, 7, 2)
    expected = np.ravel_multi_index(np.meshgrid(np.arange(3), np.arange(1, 6), *[seconds] * 3, indexing="ij"), SIZES)
    np.testing.assert_array_equal(numbers(data.source.pixels), expected.ravel())
    np.testing.assert_array_equal(data.labels, np.repeat(np.arange(3), 320))


def test_only_whole_packed_archives_are_taken(folder: Path) -> None:
    own = folder / "dsprites"
    assert packed_archive(folder / "nowhere") is None
    (own / "a.npz").write_bytes(b"PK no archive")
    np.savez(own / "b.npz", imgs_packed=np.zeros((NUMBER - 1, 64, 8), np.uint8))
    np.savez(own / "c.npz", imgs=np.zeros(3))
    assert packed_archive(own) is None
    np.savez_compressed(own / "d.npz", imgs_packed=np.zeros((NUMBER, 64, 8), np.uint8))
    assert packed_archive(own) == own / "d.npz"


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"imgs": np.zeros((5, 64, 64), np.uint8)}, r"found \(5, 64, 64\) of uint8"),
        ({"imgs": np.zeros((NUMBER, 64, 64), np.int8)}, "of int8"),
        ({"other": np.zeros(3)}, "damaged or other file"),
    ],
)
def test_other_contents(folder: Path, monkeypatch: pytest.MonkeyPatch, arrays: dict, words: str) -> None:
    path = save_original(folder, monkeypatch, **arrays)
    with pytest.raises(UserError, match=words) as caught:
        read_dsprites(PICKED, folder)
    assert str(path) in str(caught.value)


def test_a_damaged_archive(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save_original(folder, monkeypatch, imgs=numbered())
    content = bytearray(path.read_bytes())
    content[2000:3000] = bytes(1000)
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"expected md5 .*; delete the file and fetch it again"):
        read_dsprites(PICKED, folder)
    path.rename(path.with_name("packed.npz"))
    packed = folder / "dsprites" / "packed.npz"
    np.savez_compressed(packed, imgs_packed=np.random.default_rng(0).integers(0, 256, (NUMBER, 64, 8), dtype=np.uint8))
    content = bytearray(packed.read_bytes())
    content[200_000:201_000] = bytes(1000)
    packed.write_bytes(content)
    with pytest.raises(UserError, match="damaged or other file"):
        read_dsprites(PICKED, folder)


def test_nowhere_to_be_found(folder: Path) -> None:
    with pytest.raises(UserError, match=f"expected to download {NAME}.*by hand"):
        open_data("dsprites", folder)


@pytest.mark.skipif(packed_archive(REAL) is None and not (REAL / NAME).is_file(), reason="set PPL_TVAE_DATA")
def test_the_real_set_is_the_drawn_one() -> None:
    """But for single pixels of a few images, whose outlines pass very near their centres."""
    real, ours = load_sprites("dsprites"), load_sprites("sprites")
    different = np.bitwise_count(real.pixels ^ ours.pixels).sum(axis=(1, 2))
    assert different.max() <= 1
    assert different.sum() < 50
