"""Where JAX computes and in which precision."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp

from ppl_tvae.errors import UserError


@contextmanager
def on_device(device: str, precision: str) -> Iterator[None]:
    """Arrays made in this context live on "cpu" or "cuda" ("auto": whichever JAX prefers). Raises UserError."""
    try:
        place = None if device == "auto" else jax.devices("gpu" if device == "cuda" else "cpu")[0]
    except RuntimeError:
        raise UserError("expected a GPU for device 'cuda', found none that JAX can use; take --device cpu") from None
    with jax.default_device(place), jax.enable_x64(precision == "float64"):
        yield


def to_device(tree: Any) -> Any:
    """A tree of NumPy arrays as a tree of JAX arrays."""
    return jax.tree.map(jnp.asarray, tree)
