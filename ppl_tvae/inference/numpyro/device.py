"""Where JAX computes and in which precision."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import jax
import jax.numpy as jnp

from ppl_tvae.errors import UserError

# Of training on a GPU (docs/performance.md has what each is worth). Products of small batches: left to its own kernels,
# XLA splits sums over tiles that do not divide them, and copies the weights of every layer to padded ones in each step.
STEP_OPTIONS = {"xla_gpu_enable_triton_gemm": False, "xla_gpu_command_buffer_scheduling_mode": "CONCURRENT"}


@contextmanager
def on_device(device: str, precision: str, matmul: str = "tf32") -> Iterator[None]:
    """Arrays made in this context live on "cpu" or "cuda" ("auto": whichever JAX prefers). Raises UserError.

    matmul: "tf32" or "float32", of float32 products on a GPU.
    """
    place = None if device == "auto" else devices_of(device)[0]
    on_gpu = (place or jax.devices()[0]).platform == "gpu"
    products = products_on_gpu(matmul) if on_gpu else nullcontext()
    with jax.default_device(place), jax.enable_x64(precision == "float64"), products:
        yield


def devices_of(device: str) -> list[jax.Device]:
    """All devices of a kind: "cpu", "cuda", or "auto", those that JAX prefers. Raises UserError if there are none."""
    try:
        return jax.local_devices(backend={"auto": None, "cuda": "gpu"}.get(device, device))
    except RuntimeError:
        raise UserError("expected a GPU for device 'cuda', found none that JAX can use; take --device cpu") from None


def products_on_gpu(matmul: str) -> AbstractContextManager[Any]:
    """float32 products on a GPU in "tf32", whose mantissa has 10 bits, or "float32"."""
    return jax.default_matmul_precision({"tf32": "tensorfloat32", "float32": "float32"}[matmul])


def jit_step(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """`jax.jit` of what trains on the default device; options as there."""
    (device,) = jnp.zeros(()).devices()
    return jax.jit(function, compiler_options=STEP_OPTIONS if device.platform == "gpu" else None, **options)


def to_device(tree: Any) -> Any:
    """A tree of NumPy arrays as a tree of JAX arrays."""
    return jax.tree.map(jnp.asarray, tree)
