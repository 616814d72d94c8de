"""Public data files: found in a folder of the user's, or fetched once, with checksum, into the user's cache."""

import hashlib
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ppl_tvae.errors import UserError, unknown_name

FOLDER_VARIABLE = "PPL_TVAE_DATA"
# Seconds to connect, and between two pieces of the answer. Without a network the user should learn so at once.
TIMEOUT = (5, 30)


@dataclass(frozen=True)
class RemoteFile:
    """A file by its name on the mirrors, its md5, and where it is a gzip that of its content, if known."""

    name: str
    md5: str
    content_md5: str | None = None

    @property
    def unpacked_name(self) -> str:
        return self.name.removesuffix(".gz")


@dataclass(frozen=True)
class FileSet:
    """The files of one data set and the mirrors that offer them (URLs of folders, tried in order)."""

    name: str
    files: tuple[RemoteFile, ...]
    mirrors: tuple[str, ...]


FILE_SETS = {
    "mnist": FileSet(
        name="mnist",
        files=(
            RemoteFile(
                "train-images-idx3-ubyte.gz", "f68b3c2dcbeaaa9fbdd348bbdeb94873", "6bbc9ace898e44ae57da46a324031adb"
            ),
            RemoteFile(
                "train-labels-idx1-ubyte.gz", "d53e105ee54ea40749a09fcbcd1e9432", "a25bea736e30d166cdddb491f175f624"
            ),
            RemoteFile(
                "t10k-images-idx3-ubyte.gz", "9fb629c4189551a2d022fa330f9573f3", "2646ac647ad5339dbf082846283269ea"
            ),
            RemoteFile(
                "t10k-labels-idx1-ubyte.gz", "ec29112dd5afa0611ce80d1b7f02629c", "27ae3e4e09519cfbb04c329615203637"
            ),
        ),
        mirrors=(
            "https://ossci-datasets.s3.amazonaws.com/mnist/",
            "https://storage.googleapis.com/cvdf-datasets/mnist/",
        ),
    ),
    "fashion-mnist": FileSet(
        name="fashion-mnist",
        files=(
            RemoteFile("train-images-idx3-ubyte.gz", "8d4fb7e6c68d591d4c3dfef9ec88bf0d"),
            RemoteFile("train-labels-idx1-ubyte.gz", "25c81989df183df01b3e8a0aad5dffbe"),
            RemoteFile("t10k-images-idx3-ubyte.gz", "bef4ecab320f06d8554ea6380940ec79"),
            RemoteFile("t10k-labels-idx1-ubyte.gz", "bb300cfdad3c16e7a12a480ee83cd310"),
        ),
        mirrors=("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",),
    ),
    "dsprites": FileSet(
        name="dsprites",
        files=(RemoteFile("dsprites_ndarray_co1sh3sc6or40x32y32_64x64.npz", "7da33b31b13a06f4b04a70402ce90c2e"),),
        mirrors=("https://github.com/google-deepmind/dsprites-dataset/raw/master/",),
    ),
}


def fetch(name: str, data_dir: Path | None = None) -> dict[str, Path]:
    """The files of a public data set, unpacked name -> path, downloaded first if they are nowhere.

    They are looked for in `data_dir`, or else in the folder PPL_TVAE_DATA names, and then in the user's cache.
    Raises UserError for a name that is not in FILE_SETS, a wrong checksum, or when no mirror answers.
    """
    if name not in FILE_SETS:
        raise unknown_name("data set to fetch", name, FILE_SETS)
    return fetch_files(FILE_SETS[name], data_dir)


def fetch_files(files: FileSet, data_dir: Path | None = None) -> dict[str, Path]:
    """As `fetch`, for any set of files. Only the user's cache is ever written to."""
    named = named_folder(data_dir)
    if named is not None:
        found = {file.unpacked_name: _in_named_folder(files, file, named) for file in files.files}
        complete = {name: path for name, path in found.items() if path is not None}
        if len(complete) == len(found):
            return complete
    cache = cache_folder() / files.name
    return {file.unpacked_name: _in_cache(file, cache) or _download(files, file, cache, named) for file in files.files}


def named_folder(data_dir: Path | None) -> Path | None:
    """The folder the user named: the argument, else the environment's PPL_TVAE_DATA, else None."""
    if data_dir is not None:
        return Path(data_dir).expanduser()
    variable = os.environ.get(FOLDER_VARIABLE)
    return Path(variable).expanduser() if variable else None


def cache_folder() -> Path:
    """Where downloads go: the operating system's cache folder of the user."""
    import pooch

    return Path(pooch.os_cache("ppl-tvae"))


def _in_named_folder(files: FileSet, file: RemoteFile, folder: Path) -> Path | None:
    """DIR/<name>/<file>, gzipped or not, else DIR/<file>. A gzip must have the right checksum."""
    own = folder / files.name
    if (own / file.name).is_file():
        _check(own / file.name, file, own)
        return own / file.name
    if (own / file.unpacked_name).is_file():
        return own / file.unpacked_name
    return _in_flat_folder(files, file, folder)


def _in_flat_folder(files: FileSet, file: RemoteFile, folder: Path) -> Path | None:
    """DIR/<file>. MNIST's files and Fashion-MNIST's have the same names, so here the content must tell."""
    packed, unpacked = folder / file.name, folder / file.unpacked_name
    if packed.is_file() and md5(packed) not in _checksums_of_others(files):
        _check(packed, file, folder / files.name)
        return packed
    return unpacked if unpacked.is_file() and md5(unpacked) == file.content_md5 else None


def _checksums_of_others(files: FileSet) -> set[str]:
    return {file.md5 for other in FILE_SETS.values() if other.name != files.name for file in other.files}


def _check(path: Path, file: RemoteFile, own: Path) -> None:
    found = md5(path)
    if found != file.md5:
        unpack = f", or unpack it as {own / file.unpacked_name} if you trust it"
        raise UserError(
            f"expected md5 {file.md5} of {path}, found {found}; delete the file"
            f"{unpack if file.unpacked_name != file.name else ' and fetch it again'}."
        )


def _in_cache(file: RemoteFile, cache: Path) -> Path | None:
    """A whole file in the cache. A damaged one is not the user's doing: it is fetched again."""
    packed, unpacked = cache / file.name, cache / file.unpacked_name
    if packed.is_file() and md5(packed) == file.md5:
        return packed
    return unpacked if unpacked != packed and unpacked.is_file() else None


def _download(files: FileSet, file: RemoteFile, cache: Path, named: Path | None) -> Path:
    failures = []
    for mirror in files.mirrors:
        for failure in _attempts(mirror.rstrip("/") + "/" + file.name, file, cache):
            if failure is None:
                return cache / file.name
            failures.append(f"{mirror}: {failure}")
    names = ", ".join(each.name for each in files.files)
    by_hand = cache if named is None else f"{named / files.name} or {cache}"
    raise UserError(
        f"expected to download {file.name} of {files.name}, found no mirror that delivers it ({'; '.join(failures)}); "
        f"check the network, or put {names} into {by_hand} by hand."
    )


def _attempts(url: str, file: RemoteFile, cache: Path) -> Iterator[str | None]:
    """Try a mirror, and once more if the transfer broke; yields None on success, else what went wrong.

    Pooch writes to a temporary file and moves it into place when its checksum is right, so a broken download leaves
    nothing behind.
    """
    import pooch
    import requests

    pooch.get_logger().setLevel("WARNING")
    downloader = pooch.HTTPDownloader(progressbar=bool(sys.stderr and sys.stderr.isatty()), timeout=TIMEOUT)
    for _ in range(2):
        try:
            pooch.retrieve(url, f"md5:{file.md5}", fname=file.name, path=cache, downloader=downloader)
            yield None
        except requests.exceptions.ChunkedEncodingError:
            yield "the connection broke"
        except requests.exceptions.HTTPError as error:
            yield f"status {error.response.status_code if error.response is not None else 'unknown'}"
            return
        except requests.exceptions.RequestException as error:
            yield f"no answer ({type(error).__name__})"
            return
        except ValueError:  # pooch's own, for a wrong checksum
            yield "the wrong checksum"
        except OSError as error:
            raise UserError(
                f"expected to write {file.name} into {cache}, found '{error.strerror or error}'; free or permit it."
            ) from None


def md5(path: Path) -> str:
    """The md5 of a file's content, in hexadecimal; guards against damage, not against malice."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
