"""IDX files: what is written comes back; what is damaged is named in one sentence."""

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest

from ppl_tvae.data.idx import read_idx
from ppl_tvae.errors import UserError


def idx_bytes(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


IMAGES = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_round_trip(tmp_path: Path, pack) -> None:
    path = tmp_path / "images"
    path.write_bytes(pack(idx_bytes(IMAGES)))
    np.testing.assert_array_equal(read_idx(path, rank=3), IMAGES)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "found an empty file"),
        (b"\0\0\x08", "found only 3 bytes"),
        (idx_bytes(IMAGES)[:-1], r"expected 24 bytes .* found 23"),
        (idx_bytes(IMAGES) + b"\0", r"expected 24 bytes .* found 25"),
        (idx_bytes(IMAGES[0]) + bytes(20), "magic 00000803.*found magic 00000802"),
        (b"<!DOCTYPE html><html></html>", "found magic 3c21444f"),
        (gzip.compress(idx_bytes(IMAGES))[:-9], "damaged"),
        (gzip.compress(b"")[:5], "damaged"),
        (gzip.compress(idx_bytes(IMAGES))[:-8] + bytes(8), "damaged"),
    ],
    ids=["empty", "header", "short", "long", "rank", "html", "cut gzip", "gzip header", "gzip checksum"],
)
def test_damaged_files(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "images-file"
    path.write_bytes(content)
    with pytest.raises(UserError, match=words) as caught:
        read_idx(path, rank=3)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No such file"):
        read_idx(tmp_path / "absent", rank=1)
