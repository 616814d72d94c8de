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
    place = None if device == "auto" else devices_of(device)[0]
    with jax.default_device(place), jax.enable_x64(precision == "float64"):
        yield


def devices_of(device: str) -> list[jax.Device]:
    """All devices of a kind: "cpu", "cuda", or "auto", those that JAX prefers. Raises UserError if there are none."""
    try:
        return jax.local_devices(backend={"auto": None, "cuda": "gpu"}.get(device, device))
    except RuntimeError:
        raise UserError("expected a GPU for device 'cuda', found none that JAX can use; take --device cpu") from None


def to_device(tree: Any) -> Any:
    """A tree of NumPy arrays as a tree of JAX arrays."""
    return jax.tree.map(jnp.asarray, tree)
