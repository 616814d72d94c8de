"""Reading IDX, the format of MNIST and Fashion-MNIST: a magic word, big-endian dimensions, then bytes."""

import gzip
import math
import zlib
from pathlib import Path

import numpy as np

from ppl_tvae.errors import UserError

UNSIGNED_BYTE = 0x08


def read_idx(path: Path, rank: int) -> np.ndarray:
    """The uint8 array in an IDX file, gzipped or not (told apart by content, not by name).

    `rank` is the number of dimensions expected: 3 for images, 1 for labels.
    Raises UserError for a file that is missing, empty, cut short, or not IDX of unsigned bytes.
    """
    content = _unpacked(path)
    header = 4 + 4 * rank
    if len(content) < header:
        raise UserError(f"expected an IDX file, found only {len(content)} bytes in {path}; fetch it again.")
    if content[:4] != bytes([0, 0, UNSIGNED_BYTE, rank]):
        expected = f"0000{UNSIGNED_BYTE:02x}{rank:02x}"
        raise UserError(
            f"expected an IDX file of {rank}-dimensional bytes (magic {expected}), found magic {content[:4].hex()} "
            f"in {path}; check that this is the right file."
        )
    shape = tuple(int(size) for size in np.frombuffer(content, ">u4", rank, offset=4))
    if len(content) - header != math.prod(shape):
        raise UserError(
            f"expected {math.prod(shape)} bytes of data for shape {shape}, found {len(content) - header} in {path}; "
            "the file is damaged: fetch it again."
        )
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def _unpacked(path: Path) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"expected a readable IDX file, found {error.strerror} at {path}; check the path.") from None
    if not content:
        raise UserError(f"expected an IDX file, found an empty file at {path}; fetch it again.")
    if content[:2] != b"\x1f\x8b":
        return content
    try:
        return gzip.decompress(content)
    except (EOFError, gzip.BadGzipFile, zlib.error):
        raise UserError(f"expected a whole gzip file, found a damaged one at {path}; fetch it again.") from None
