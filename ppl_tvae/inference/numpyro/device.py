"""Where JAX computes and in which precision."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import numpyro

from ppl_tvae.errors import UserError
from ppl_tvae.inference.numpyro.products import BFLOAT16, RoundedProducts

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

    matmul: how float32 products are computed, see `products`. The host's checks of values are on, since only with them
    has what lies beyond a support no density there; they are put back afterwards.
    """
    place = None if device == "auto" else devices_of(device)[0]
    with (
        jax.default_device(place),
        jax.enable_x64(precision == "float64"),
        products("float32" if precision == "float64" else matmul),
        numpyro.validation_enabled(True),
    ):
        yield


def devices_of(device: str) -> list[jax.Device]:
    """All devices of a kind: "cpu", "cuda", or "auto", those that JAX prefers. Raises UserError if there are none."""
    try:
        return jax.local_devices(backend={"auto": None, "cuda": "gpu"}.get(device, device))
    except RuntimeError:
        what, other = {"cuda": ("a GPU", "cpu"), "cpu": ("a CPU", "cuda")}.get(device, ("a device", "cpu"))
        raise UserError(
            f"expected {what} for device '{device}', found none that JAX can use; take --device {other}"
        ) from None


def products(matmul: str) -> AbstractContextManager[Any]:
    """float32 products, summed in float32, of operands with 10 bits of mantissa ("tf32"), 7 ("bfloat16") or all 23.

    A CPU has no "tf32" and computes float32. It has "bfloat16" in what `jit_step` compiles, and nowhere else.
    """
    return jax.default_matmul_precision({"tf32": "tensorfloat32", "bfloat16": BFLOAT16}.get(matmul, matmul))


def jit_step(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """`jax.jit` of what trains on the default device, with products as the context has them; options as there."""
    if on_gpu():
        return jax.jit(function, compiler_options=STEP_OPTIONS, **options)
    # JAX gives its config an attribute for each setting when it is imported, where a type checker does not see it.
    asked_for = jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]
    return (RoundedProducts if asked_for == BFLOAT16 else jax.jit)(function, **options)


def on_gpu() -> bool:
    """Whether the default device is a GPU."""
    (device,) = jnp.zeros(()).devices()
    return device.platform == "gpu"


def to_device(tree: Any) -> Any:
    """A tree of NumPy arrays as a tree of JAX arrays."""
    return jax.tree.map(jnp.asarray, tree)
