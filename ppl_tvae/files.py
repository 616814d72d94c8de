"""Files that are there as a whole or not at all, and a sentence where one cannot be read or written."""

import hashlib
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path

from ppl_tvae.errors import UserError

try:
    import fcntl
except ModuleNotFoundError:  # not on Windows
    fcntl = None  # type: ignore[assignment]  # a module or nothing

# No file takes so long to write: what is older was left by a process that was killed.
_SECONDS_OF_A_WRITE = 3600.0


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
    """The same for what writes to a path by itself: where to write, which becomes `path` when the context ends.

    Where to write has a name that no other process has, in whatever container or on whatever host it runs.
    """
    if not path.name:
        raise UserError(f"expected the name of a file to write, found '{path}'; give one")
    beside = path.with_name(f"{path.name}.{secrets.token_hex(4)}.part")
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
    _forget_parts_of_the_killed(path)


def _forget_parts_of_the_killed(path: Path) -> None:
    with suppress(OSError):
        for part in path.parent.glob(f"{escape(path.name)}.{'[0-9a-f]' * 8}.part"):
            if part.stat().st_mtime < time.time() - _SECONDS_OF_A_WRITE:
                part.unlink()


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


def check_writable(folder: Path) -> None:
    """Raises UserError where nothing can be written to a folder: said before hours of work that would end in it."""
    if not os.access(folder, os.W_OK):
        raise UserError(f"expected to be able to write to '{folder}', found that it cannot be; permit it")


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
