"""How far long work is, on stderr: a bar on a terminal; elsewhere, as in a log or a notebook, a line a minute."""

import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

_SECONDS_PER_LINE = 60.0
_LINE = "{desc}: {n:,.0f} of {total:,}{postfix}, {elapsed} elapsed, {remaining} left"


class _Lines:
    """A file for tqdm: what it would draw over what it drew before becomes a line of its own, unless it is the same."""

    last = ""

    def write(self, drawn: str) -> None:
        if drawn.strip() not in ("", self.last):
            self.last = drawn.strip()
            sys.stderr.write(self.last + "\n")

    def flush(self) -> None:
        sys.stderr.flush()


def progress(work: Iterable[Any] | None = None, *, what: str, quiet: bool = False, **settings: Any) -> Any:
    """A tqdm over `work`, or with a `total` to update. Work of less than a minute writes no line.

    what: is counted, in words. settings: tqdm's, for the bar.
    """
    quiet = quiet or sys.stderr is None  # as where a process was started with it closed
    if quiet or sys.stderr.isatty():
        return tqdm(work, desc=what, disable=quiet, **settings)
    lines = {"file": _Lines(), "bar_format": _LINE, "position": 0, "dynamic_ncols": False}
    rare = {"delay": _SECONDS_PER_LINE, "mininterval": _SECONDS_PER_LINE, "miniters": 1}
    return tqdm(work, desc=what, **settings | lines | rare)
