"""JSON that every reader takes: numbers that are none, which it has not, as "nan", "inf" and "-inf"; NumPy's as any."""

import json
import math
from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any

_NO_NUMBERS = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


def to_json(value: Any, indent: int | None = None) -> str:
    """Plain values as JSON."""
    return json.dumps(_named(value), indent=indent, allow_nan=False)


def from_json(content: bytes | str) -> Any:
    """What `to_json` was given. Raises ValueError where it is no JSON."""
    return _numbered(json.loads(content))


def _named(value: Any) -> Any:
    if isinstance(value, bool):
        return value
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return float(value) if math.isfinite(value) else str(float(value))
    return _in_each(_named, value)


def _numbered(value: Any) -> Any:
    if isinstance(value, str):
        return _NO_NUMBERS.get(value, value)
    return _in_each(_numbered, value)


def _in_each(change: Any, value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: change(each) for name, each in value.items()}
    return [change(each) for each in value] if isinstance(value, list | tuple) else value
