"""Where JAX computes and in which precision."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp

from ppl_tvae.errors import UserError


@contextmanager
def on_device(device: str, precision: str, matmul: str = "tf32") -> Iterator[None]:
    """Arrays made in this context live on "cpu" or "cuda" ("auto": whichever JAX prefers). Raises UserError.

    matmul: "tf32" or "float32", of float32 products on a GPU.
    """
    try:
        place = None if device == "auto" else jax.devices("gpu" if device == "cuda" else "cpu")[0]
    except RuntimeError:
        raise UserError("expected a GPU for device 'cuda', found none that JAX can use; take --device cpu") from None
    on_cpu = (place or jax.devices()[0]).platform == "cpu"
    products = None if on_cpu or precision == "float64" else {"tf32": "tensorfloat32"}.get(matmul, "float32")
    with jax.default_device(place), jax.enable_x64(precision == "float64"), jax.default_matmul_precision(products):
        yield


def to_device(tree: Any) -> Any:
    """A tree of NumPy arrays as a tree of JAX arrays."""
    return jax.tree.map(jnp.asarray, tree)
