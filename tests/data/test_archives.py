"""The user's .npz: what is accepted, kept and split, and one sentence for every way to get it wrong."""

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest

from ppl_tvae.data import load_source
from ppl_tvae.errors import UserError

IMAGES = np.arange(10 * 4 * 5, dtype=np.uint8).reshape(10, 4, 5)


def saved(folder: Path, **arrays: object) -> str:
    path = folder / "own.npz"
    np.savez(path, **arrays)
    return str(path)


def test_grey_images(tmp_path: Path) -> None:
    source = load_source(saved(tmp_path, images=IMAGES))
    assert source.kind == "images"
    assert source.name == "own"
    np.testing.assert_array_equal(source.pixels, IMAGES[..., None])
    assert (source.labels == -1).all()


def test_without_a_test_set_a_fixed_fifth_is_held_out(tmp_path: Path) -> None:
    first, second = (load_source(saved(tmp_path, images=IMAGES)) for _ in range(2))
    assert len(first.test) == 2
    np.testing.assert_array_equal(first.test, second.test)
    np.testing.assert_array_equal(np.sort(np.concatenate([first.train, first.test])), np.arange(10))


@pytest.mark.parametrize("test", [[3, 7], np.isin(np.arange(10), [3, 7])], ids=["indices", "mask"])
def test_own_test_set(tmp_path: Path, test: object) -> None:
    source = load_source(saved(tmp_path, images=IMAGES, test=test, labels=np.arange(10)))
    np.testing.assert_array_equal(source.test, [3, 7])
    np.testing.assert_array_equal(source.train, [0, 1, 2, 4, 5, 6, 8, 9])
    np.testing.assert_array_equal(source.labels, np.arange(10))


def test_a_digest_is_of_all_that_matters_and_of_nothing_else(tmp_path: Path) -> None:
    """Pixels, their shape, labels and the split; as they are read, not as they were saved."""
    own = {"images": IMAGES, "labels": np.arange(10), "test": [3, 7]}
    digest = load_source(saved(tmp_path, **own)).digest
    same = own | {"images": IMAGES / 255, "test": np.isin(np.arange(10), [3, 7]), "notes": np.arange(3)}
    assert load_source(saved(tmp_path, **same)).digest == digest
    others = [
        own | {"images": np.maximum(IMAGES, 1)},
        own | {"images": IMAGES.reshape(len(IMAGES), -1, 1)},
        own | {"labels": np.arange(10)[::-1]},
        own | {"test": [3, 8]},
    ]
    assert len({digest, *(load_source(saved(tmp_path, **other)).digest for other in others)}) == 5


def test_float_images_are_rounded_to_eight_bits(tmp_path: Path) -> None:
    levels = np.linspace(0, 1, 10 * 6).reshape(10, 2, 3)
    source = load_source(saved(tmp_path, images=levels))
    assert source.pixels.dtype == np.uint8
    np.testing.assert_allclose(source.pixels[..., 0] / 255, levels, atol=0.5 / 255 + 1e-9)


def test_float_sequences_are_kept_exactly(tmp_path: Path) -> None:
    sequences = np.random.default_rng(0).random((6, 3, 4, 5, 2)).astype(np.float32)
    source = load_source(saved(tmp_path, sequences=sequences))
    assert source.kind == "sequences"
    np.testing.assert_array_equal(source.pixels, sequences)


def test_other_keys_are_not_read(tmp_path: Path) -> None:
    assert load_source(saved(tmp_path, images=IMAGES, notes=np.array([{"a": 1}], object))).kind == "images"


NAN = np.full((10, 4, 5), np.nan)
SEQUENCES = np.full((4, 3, 4, 5, 1), 99, np.uint8)


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"pictures": IMAGES}, "found the keys pictures"),
        ({}, "found no keys"),
        (
            {"images": IMAGES, "sequences": SEQUENCES},
            "'images' or 'sequences'.*found the keys images, sequences",
        ),
        ({"images": IMAGES[0]}, r"found \(4, 5\)"),
        ({"images": IMAGES[..., None, None]}, r"found \(10, 4, 5, 1, 1\)"),
        ({"images": np.zeros((3, 4, 5, 2), np.uint8)}, r"1 or 3\), found \(3, 4, 5, 2\)"),
        ({"sequences": IMAGES}, r"\(N, S, H, W, channel\), found \(10, 4, 5\)"),
        ({"images": IMAGES.astype(np.int64)}, "found int64"),
        ({"images": IMAGES.astype(np.complex64)}, "found complex64"),
        ({"images": IMAGES.astype(str)}, "found <U"),
        ({"images": IMAGES * 1.0}, r"in \[0, 1\], found 0 to 199"),
        ({"sequences": SEQUENCES - 99.5}, r"in \[0, 1\], found -0.5 to -0.5"),
        ({"images": NAN}, "NaN"),
        ({"images": NAN + np.inf}, "NaN or infinity"),
        ({"images": IMAGES[:0]}, r"at least one pixel.*\(0, 4, 5, 1\)"),
        ({"images": IMAGES[:1]}, "found 0 and 1"),
        ({"images": IMAGES, "labels": np.arange(9)}, r"expected 10 whole-number 'labels', found shape \(9,\)"),
        ({"images": IMAGES, "labels": np.zeros(10)}, "float64"),
        ({"images": IMAGES, "test": [10]}, r"0\.\.9"),
        ({"images": IMAGES, "test": [-1]}, r"0\.\.9"),
        ({"images": IMAGES, "test": [0.5]}, "float64"),
        ({"images": IMAGES, "test": np.zeros(9, bool)}, "mask of 10"),
        ({"images": IMAGES, "test": np.ones(10, bool)}, "found 0 and 10"),
        ({"images": IMAGES, "test": np.zeros(10, bool)}, "found 10 and 0"),
        ({"images": np.array([IMAGES, None], object)}, "Python objects"),
        ({"images": IMAGES, "test": [3, 3]}, "repeated integers"),
        ({"images": IMAGES, "test": (np.arange(10) > 7).astype(int)}, "a mask as bool"),
        (
            {"images": (IMAGES > 9).astype(np.uint8)},
            "found none above 1 .*zeros and ones as f",
        ),
        ({"images": IMAGES, "labels": np.arange(10) + 3_000_000_000}, "of 32 bits, found 3000000000 to 3000000009"),
        ({"images": IMAGES, "labels": np.arange(10) - 3_000_000_000}, "of 32 bits, found -3000000000 to -2999999991"),
        ({"images": IMAGES, "label": np.arange(10)}, "expected 'labels' in .*found 'label'"),
        ({"images": IMAGES, "tests": [1]}, "expected 'test' in .*found 'tests'"),
    ],
)
def test_wrong_contents(tmp_path: Path, arrays: dict, words: str) -> None:
    path = saved(tmp_path, **arrays)
    with pytest.raises(UserError, match=words) as caught:
        load_source(path)
    assert path in str(caught.value)
    assert "\n" not in str(caught.value)


def damaged(content: bytes) -> list[tuple[bytes, str]]:
    middle = len(content) // 2
    return [
        (b"", "empty file"),
        (content[:middle], "damaged or different"),
        (b"\x93NUMPY plain", "damaged or different"),
        (b"pickle or whatever", "damaged or different"),
        (content[:150] + b"\xff\xfe" * 4 + content[158:], "damaged or different"),
    ]


@pytest.mark.parametrize("kind", range(5), ids=["empty", "truncated", "npy", "no zip", "flipped bytes"])
def test_damaged_files(tmp_path: Path, kind: int) -> None:
    path = Path(saved(tmp_path, images=IMAGES))
    content, words = damaged(path.read_bytes())[kind]
    path.write_bytes(content)
    with pytest.raises(UserError, match=words):
        load_source(str(path))


def npy_header(shape: tuple[int, ...]) -> bytes:
    """Of an array of bytes that is not there."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return header.getvalue()


@pytest.mark.parametrize(
    ("member", "words"),
    [
        (b"hello", "damaged or different"),
        (npy_header((100, 6, 6)), "damaged or different"),
        (npy_header((10**13, 6, 6)), "expected arrays that fit in memory in .*, found: Unable to allocate"),
        (npy_header((10**30, 6, 6)), "damaged or different"),
    ],
)
def test_members_that_are_no_arrays(member: bytes, words: str, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "own.npz", "w") as archive:
        archive.writestr("images.npy", member)
    with pytest.raises(UserError, match=words):
        load_source(str(tmp_path / "own.npz"))


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No such file"):
        load_source(str(tmp_path / "absent.npz"))
    (tmp_path / "folder.npz").mkdir()
    with pytest.raises(UserError, match="directory"):
        load_source(str(tmp_path / "folder.npz"))
