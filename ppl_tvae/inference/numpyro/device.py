"""Where JAX computes and in which precision."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import jax
import jax.numpy as jnp

from ppl_tvae.errors import UserError

# XLA's for training on a GPU, where a step of the paper's size is a hundred kernels of microseconds; what each of them
# saves is in docs/performance.md.
STEP_OPTIONS: dict[str, Any] = {
    # Its own products split sums over tiles that do not divide them, and pad the weights of most layers in every step.
    "xla_gpu_enable_triton_gemm": False,
    # Kernels that do not wait for each other, such as those of the two encoders, run side by side.
    "xla_gpu_command_buffer_scheduling_mode": "CONCURRENT",
    # Merging the encoders' first products into one would copy their weights into one in every step.
    "xla_gpu_dot_merger_threshold_mb": 0,
}


@contextmanager
def on_device(device: str, precision: str, matmul: str = "tf32") -> Iterator[None]:
    """Arrays made in this context live on "cpu" or "cuda" ("auto": whichever JAX prefers). Raises UserError.

    matmul: "tf32" or "float32", of float32 products on a GPU.
    """
    place = None if device == "auto" else devices_of(device)[0]
    with (
        jax.default_device(place),
        jax.enable_x64(precision == "float64"),
        products_on_gpu(matmul) if on_gpu() else nullcontext(),
    ):
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
    return jax.jit(function, compiler_options=STEP_OPTIONS if on_gpu() else None, **options)


def on_gpu() -> bool:
    """Whether the default device is a GPU."""
    (device,) = jnp.zeros(()).devices()
    return device.platform == "gpu"


def to_device(tree: Any) -> Any:
    """A tree of NumPy arrays as a tree of JAX arrays."""
    return jax.tree.map(jnp.asarray, tree)
