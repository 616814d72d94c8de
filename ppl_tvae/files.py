"""Files that are there as a whole or not at all, and a sentence where one cannot be read or written."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ppl_tvae.errors import UserError

try:
    import fcntl
except ModuleNotFoundError:  # not on Windows
    fcntl = None  # type: ignore[assignment]  # a module or nothing


def read(path: Path) -> bytes | None:
    """A file's content, None if there is no such file. Raises UserError if it cannot be read."""
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise UserError(f"expected to be able to read '{path}', found: {error.strerror}; permit it") from None


def write(path: Path, content: bytes) -> None:
    """Replace a file's content in one step, which leaves the old or the new one at any crash. Raises UserError."""
    with replacing(path) as beside:
        beside.write_bytes(content)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """The same for what writes to a path by itself: where to write, which becomes `path` when the context ends."""
    beside = path.with_name(path.name + ".part")
    with writing_to(path):
        try:
            yield beside
            with beside.open("rb+") as file:
                os.fsync(file.fileno())
            beside.replace(path)
        except BaseException:
            with suppress(OSError):
                beside.unlink(missing_ok=True)
            raise


@contextmanager
def writing_to(path: Path) -> Iterator[None]:
    """A full disk or a missing permission, as a sentence."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"expected to be able to write to '{path}', found: {error.strerror or error}; what was written before is "
            f"kept: make room, permit it, or choose another place"
        ) from error


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Other processes that ask for the same wait until the context ends; where the system has no locks, they do not."""
    with writing_to(folder):
        descriptor = os.open(folder, os.O_RDONLY)
    try:
        if fcntl is not None:
            with suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def claimed(folder: Path, what: str) -> Iterator[None]:
    """No other process may claim the folder until the context ends; where the system has no locks, it may.

    what: is done in the folder, such as "trains". Raises UserError where another has claimed it.
    """
    with writing_to(folder):
        folder.mkdir(exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY)
    try:
        if fcntl is not None:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(
                    f"expected no other process that {what} in '{folder.parent}', found one; wait for its end"
                ) from None
            except OSError:
                pass
        yield
    finally:
        os.close(descriptor)


def digest(content: bytes) -> str:
    """What tells a content from others: 16 hexadecimal digits of its SHA-256."""
    return hashlib.sha256(content).hexdigest()[:16]
