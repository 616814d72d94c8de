"""The user's own data: one .npz file with `images` or `sequences`, and perhaps `labels` and `test`.

images: (N, H, W) or (N, H, W, channel), 1 or 3 channels; uint8, or floats in [0, 1], which are stored in 8 bits
    (rounded to the nearest k/255), so that a data set of images always fits beside the model.
sequences: (N, S, H, W, channel), any channels; uint8, or floats in [0, 1], kept exactly (as float32).
labels: (N,) integers.  test: indices, or a boolean mask (N,), of the test set; without it a fixed random 20 % is.
Other keys are left alone, unless they look like one of these misspelt.
"""

import hashlib
import zipfile
import zlib
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ppl_tvae.data.images import Source, random_test_split
from ppl_tvae.errors import UserError

_KEYS = ("images", "sequences", "labels", "test")


def read_archive(path: Path) -> Source:
    """The source in a .npz file; nothing in it is ever unpickled. Raises UserError, in one sentence, for bad files."""
    arrays = _arrays(path)
    if ("images" in arrays) == ("sequences" in arrays):
        keys = _keys(path)
        found = f"the keys {', '.join(keys)}" if keys else "no keys"
        raise UserError(f"expected either 'images' or 'sequences' in {path}, found {found}; save one of the two.")
    pixels = _images(arrays["images"], path) if "images" in arrays else _sequences(arrays["sequences"], path)
    labels = _labels(arrays.get("labels"), len(pixels), path)
    train, test = _split(arrays.get("test"), len(pixels), path)
    kind: Literal["images", "sequences"] = "images" if "images" in arrays else "sequences"
    return Source(path.stem, kind, pixels, labels, train, test, digest=_digest(pixels, labels, train, test))


def _digest(*arrays: np.ndarray) -> str:
    """Of their shapes, types and values."""
    found = hashlib.sha256()
    for array in arrays:
        found.update(f"{array.shape}{array.dtype}".encode())
        found.update(np.ascontiguousarray(array).data)
    return found.hexdigest()[:16]


def _keys(path: Path) -> list[str]:
    with np.load(path, allow_pickle=False) as archive:
        return sorted(archive.files)


def _arrays(path: Path) -> dict[str, np.ndarray]:
    """Only the keys that mean something are read; others may hold anything, unless they look like one misspelt."""
    try:
        if path.stat().st_size == 0:
            raise UserError(f"expected a .npz file, found an empty file at {path}; save it again.")
        with zipfile.ZipFile(path):  # np.load would take other formats for pickles, and say so confusingly
            pass
        with np.load(path, allow_pickle=False) as archive:
            for key in sorted(set(archive.files) - set(_KEYS)):
                if close := get_close_matches(key.lower(), _KEYS, n=1, cutoff=0.8):
                    raise UserError(f"expected '{close[0]}' in {path}, found '{key}'; rename it, or leave it out.")
            arrays = {key: archive[key] for key in _KEYS if key in archive.files}
            if not all(isinstance(array, np.ndarray) for array in arrays.values()):  # then they are plain bytes
                raise ValueError("a member that is no array")
            return arrays
    except UserError:
        raise
    except OSError as error:
        found = error.strerror or error
        raise UserError(f"expected a .npz file at {path}, found '{found}'; check the path.") from None
    except MemoryError as error:
        raise UserError(f"expected arrays that fit in memory in {path}, found: {error}; save fewer.") from None
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, ValueError, OverflowError) as error:
        if "pickle" in str(error):
            raise UserError(f"expected plain arrays in {path}, found Python objects; save numeric arrays.") from None
        raise UserError(f"expected a .npz file, found a damaged or different one at {path}; save it again.") from None


def _images(images: np.ndarray, path: Path) -> np.ndarray:
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4 or images.shape[-1] not in (1, 3):
        raise UserError(
            f"expected 'images' of shape (N, H, W) or (N, H, W, 1 or 3), found {images.shape} in {path}; reshape them."
        )
    _check_pixels("images", images, path)
    return images if images.dtype == np.uint8 else np.round(images * 255.0).astype(np.uint8)


def _sequences(sequences: np.ndarray, path: Path) -> np.ndarray:
    if sequences.ndim != 5:
        raise UserError(
            f"expected 'sequences' of shape (N, S, H, W, channel), found {sequences.shape} in {path}; reshape them."
        )
    _check_pixels("sequences", sequences, path)
    return sequences if sequences.dtype == np.uint8 else sequences.astype(np.float32)


def _check_pixels(key: str, pixels: np.ndarray, path: Path) -> None:
    if 0 in pixels.shape:
        raise UserError(f"expected at least one pixel of '{key}', found shape {pixels.shape} in {path}; save some.")
    if pixels.dtype == np.uint8:
        if pixels.max() <= 1:
            raise UserError(
                f"expected uint8 '{key}' as grey levels up to 255, found none above {pixels.max()} in {path}; save "
                f"zeros and ones as floats."
            )
        return
    if pixels.dtype.kind != "f":
        raise UserError(
            f"expected '{key}' as uint8 or as floats in [0, 1], found {pixels.dtype} in {path}; convert them."
        )
    if not np.isfinite(pixels).all():
        raise UserError(f"expected '{key}' to be finite, found NaN or infinity in {path}; remove or fill them.")
    if pixels.min() < 0 or pixels.max() > 1:
        raise UserError(
            f"expected '{key}' in [0, 1], found {pixels.min():.13g} to {pixels.max():.13g} in {path}; rescale them."
        )


def _labels(labels: Any, number: int, path: Path) -> np.ndarray:
    if labels is None:
        return np.full(number, -1, np.int32)
    if labels.shape != (number,) or labels.dtype.kind not in "iu":
        raise UserError(
            f"expected {number} whole-number 'labels', found shape {labels.shape} of {labels.dtype} in {path}; "
            "save one integer per image."
        )
    limits = np.iinfo(np.int32)
    if labels.min() < limits.min or labels.max() > limits.max:
        raise UserError(f"expected 'labels' of 32 bits, found {labels.min()} to {labels.max()} in {path}; number them.")
    return labels.astype(np.int32)


def _split(test: Any, number: int, path: Path) -> tuple[np.ndarray, np.ndarray]:
    if test is None:
        train, held_out = random_test_split(number, max(1, round(0.2 * number)))
    else:
        mask = _test_mask(test, number, path)
        train, held_out = np.flatnonzero(~mask).astype(np.int32), np.flatnonzero(mask).astype(np.int32)
    if not len(train) or not len(held_out):
        raise UserError(
            f"expected something to train on and something to test on, found {len(train)} and {len(held_out)} of "
            f"{number} in {path}; add data or change 'test'."
        )
    return train, held_out


def _test_mask(test: np.ndarray, number: int, path: Path) -> np.ndarray:
    if test.dtype == bool and test.shape == (number,):
        return test
    whole = test.dtype.kind in "iu" and test.ndim == 1
    if not whole or (len(test) and (test.min() < 0 or test.max() >= number)):
        raise UserError(
            f"expected 'test' as indices in 0..{number - 1} or as a mask of {number}, found shape {test.shape} of "
            f"{test.dtype} in {path}; save one of the two."
        )
    if len(np.unique(test)) < len(test):
        raise UserError(
            f"expected 'test' as indices, each once, or as a boolean mask of {number}, found repeated integers in "
            f"{path}; save a mask as bool."
        )
    mask = np.zeros(number, bool)
    mask[test] = True
    return mask
