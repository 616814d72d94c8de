"""Reading dSprites (Matthey et al. 2017), all 737,280 images in their order, without unpacking them all at once.

Two archives are understood. The original, dsprites_ndarray_co1sh3sc6or40x32y32_64x64.npz, holds `imgs`
(737280, 64, 64) uint8, three gigabytes once unpacked; its other arrays follow from the order and are not read (one of
them is a pickle). A packed one holds `imgs_packed` (737280, 64, 8) uint8, `np.packbits` of the same along a row.
"""

import zipfile
import zlib
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import IO

import numpy as np

from ppl_tvae.data.downloads import FILE_SETS, fetch, named_folder
from ppl_tvae.errors import UserError
from ppl_tvae.progress import progress

FACTORS = ("shape", "scale", "orientation", "posX", "posY")
SIZES = (3, 6, 40, 32, 32)  # values of each factor in the archive; posY is the fastest
ROW_SHAPES = {"imgs": (64, 64), "imgs_packed": (64, 8)}


def read_dsprites(picked: Sequence[np.ndarray], data_dir: Path | None = None) -> np.ndarray:
    """(N, 64, 8) uint8 packed images of every combination of the picked indices of each factor, the last fastest.

    The files are looked for as `downloads.fetch` says; a packed archive in the folder DIR/dsprites serves where the
    original is not in the folder that the user named. Raises UserError.
    """
    named = named_folder(data_dir)
    (original,) = FILE_SETS["dsprites"].files
    at_hand = named is not None and any((folder / original.name).is_file() for folder in (named / "dsprites", named))
    packed = None if named is None or at_hand else packed_archive(named / "dsprites")
    if packed is not None:
        return _read(packed, "imgs_packed", picked)
    (path,) = fetch("dsprites", data_dir).values()
    return _read(path, "imgs", picked)


def packed_archive(folder: Path) -> Path | None:
    """The first .npz of a folder, in order of names, that holds `imgs_packed` of all images."""
    for path in sorted(folder.glob("*.npz")):
        try:
            with zipfile.ZipFile(path) as archive, archive.open("imgs_packed.npy") as member:
                if _header(member)[0] == (int(np.prod(SIZES)), *ROW_SHAPES["imgs_packed"]):
                    return path
        except (OSError, KeyError, ValueError, zipfile.BadZipFile, zlib.error):
            continue
    return None


def _read(path: Path, key: str, picked: Sequence[np.ndarray]) -> np.ndarray:
    try:
        with zipfile.ZipFile(path) as archive, archive.open(f"{key}.npy") as member:
            expected = (int(np.prod(SIZES)), *ROW_SHAPES[key])
            found, fortran, dtype = _header(member)
            if found != expected or fortran or dtype != np.uint8:
                raise UserError(
                    f"expected '{key}' of shape {expected} and uint8 in {path}, found {found} of {dtype}; fetch it."
                )
            return _rows(member, ROW_SHAPES[key], picked)
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"expected to read {path}, found '{error.strerror or error}'; check the file.") from None
    except (KeyError, ValueError, EOFError, zipfile.BadZipFile, zlib.error):
        raise UserError(
            f"expected dSprites' '{key}' in {path}, found a damaged or other file; fetch it anew."
        ) from None


def _header(member: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, order and type of an array in the .npy format; raises ValueError for another one."""
    version = np.lib.format.read_magic(member)
    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in read:
        raise ValueError(f"version {version}")
    return read[version](member)


def _rows(member: IO[bytes], row_shape: tuple[int, ...], picked: Sequence[np.ndarray]) -> np.ndarray:
    """Block after block of all positions, since a compressed file has to be read in its order."""
    *slow, columns, rows = SIZES
    within = (np.asarray(picked[3])[:, None] * rows + np.asarray(picked[4])).ravel()
    wanted = set(product(*(map(int, each) for each in picked[:3])))
    kept = []
    for place in progress(list(product(*map(range, slow))), what="dsprites", leave=False):
        size = columns * rows * int(np.prod(row_shape))
        block = member.read(size)
        if len(block) < size:
            raise EOFError
        if place in wanted:
            images = np.frombuffer(block, np.uint8).reshape(-1, *row_shape)[within]
            kept.append(images if row_shape == ROW_SHAPES["imgs_packed"] else np.packbits(images, axis=-1))
    return np.concatenate(kept)
