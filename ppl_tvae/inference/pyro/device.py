"""Where torch computes and in which precision."""

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import cache, partial
from typing import Any

import pyro
import torch
from torch.utils._pytree import tree_map

from ppl_tvae.errors import UserError
from ppl_tvae.inference.pyro.onednn import by_onednn, onednn_is_faster


@contextmanager
def on_device(device: str, precision: str, matmul: str = "tf32") -> Iterator[None]:
    """Tensors made in this context live on "cpu" or "cuda" ("auto": a GPU where there is one). Raises UserError.

    matmul: how float32 products are computed, see `products`. On a CPU numbers too small for a full mantissa count as
    zero. The host's checks of values, the global random stream, the default dtype, the precision of products and small
    numbers are put back afterwards.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("expected a GPU for device 'cuda', found none that torch can use; take --device cpu")
    place = "cuda" if device != "cpu" and torch.cuda.is_available() else "cpu"
    if place == "cuda" and matmul == "bfloat16" and precision == "float32":
        raise UserError(
            "expected tf32 or float32 for --matmul of backend 'pyro' on a GPU, found 'bfloat16', which torch has there "
            "for bfloat16 tensors alone; take --device cpu, tf32, or --backend numpyro"
        )
    dtype, default_device = torch.get_default_dtype(), torch.get_default_device()
    torch.set_default_dtype(getattr(torch, precision))
    torch.set_default_device(None if place == "cpu" else place)
    try:
        small_numbers = denormals_as_zero() if place == "cpu" else nullcontext()
        with forked(), pyro.validation_enabled(False), products(matmul, place), small_numbers:
            yield
    finally:
        torch.set_default_dtype(dtype)
        torch.set_default_device(None if default_device.type == "cpu" else default_device)


def forked() -> Any:
    """Within the context the random streams of the CPU and of the default device may be drawn from and set at will.

    torch's own way without devices takes all GPUs: it warns where there are several, and starts them for a CPU's work.
    """
    device = torch.get_default_device()
    if device.type != "cuda":
        return torch.random.fork_rng(devices=[])
    return torch.random.fork_rng(devices=[torch.cuda.current_device() if device.index is None else device.index])


@contextmanager
def products(matmul: str, place: str) -> Iterator[None]:
    """float32 products, summed in float32, of operands with 10 bits of mantissa ("tf32"), 7 ("bfloat16") or all 23.

    A GPU has no "bfloat16". A CPU has no "tf32" and computes float32, by oneDNN where that is faster (`by_onednn`); so
    does one without AMX for "bfloat16", and one whose AMX torch may not use (`products_in_bfloat16`). Not by
    torch.set_float32_matmul_precision, which sets CPUs and GPUs together.
    """
    backends: Any = torch.backends
    places, name, value = {
        "cuda": ((backends.cuda.matmul, backends.cudnn), "allow_tf32", matmul == "tf32"),  # cuDNN's: of convolutions
        "cpu": ((backends.mkldnn.matmul,), "fp32_precision", "bf16" if matmul == "bfloat16" else "ieee"),
    }[place]
    whole_on_a_cpu = place == "cpu" and matmul != "bfloat16"
    before = [getattr(settings, name) for settings in places]
    for settings in places:
        setattr(settings, name, value)
    try:
        with by_onednn() if whole_on_a_cpu and onednn_is_faster() else nullcontext():
            yield
    finally:
        for settings, former in zip(places, before, strict=True):
            setattr(settings, name, former)


def products_in_bfloat16() -> str:
    """How steps multiply on a CPU that was told "bfloat16", after the words 'steps are'; empty where it was not.

    Found out by multiplying: a system may keep AMX from a processor that has it, and torch then computes float32
    without a word.
    """
    backends: Any = torch.backends
    if backends.mkldnn.matmul.fp32_precision != "bf16" or torch.get_default_dtype() != torch.float32:
        return ""
    finer = torch.full((256, 256), 1 + 2**-10, device="cpu")  # than bfloat16, in which it is 1
    if float((finer @ finer)[0, 0]) == 256:
        return "called one by one, with the operands of products in bfloat16"
    return (
        "called one by one, with products in float32, no faster than float32: torch cannot use AMX here, and rounds "
        "no operands on a CPU without it"
    )


@contextmanager
def denormals_as_zero() -> Iterator[None]:
    """Numbers below the smallest normal one count as zero on this CPU, as XLA has it always.

    The weights of all particles but one are about e**-90 or less, and a processor multiplies the denormal gradients
    that come of them many times more slowly: steps with K = 4 took three times as long (docs/performance.md).
    """
    before = bool(torch.tensor(1e-310, dtype=torch.float64) * 1.0 == 0)
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)


def to_device(tree: Any) -> Any:
    """A tree of NumPy arrays as a tree of tensors on the default device."""
    return tree_map(partial(torch.as_tensor, device=torch.get_default_device()), tree)


@cache
def keep_freed_memory() -> None:
    """Have glibc keep what torch frees, for its next tensor.

    By default it hands blocks of megabytes back to the system, and every elementwise pass then waits for fresh pages:
    a third of the time of rendering a batch (docs/performance.md). For the process, and for good; only for work whose
    tensors have the same sizes over and over, as in training: with others the kept memory splinters and grows.
    """
    trim_threshold, mmap_threshold = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h
    _glibc("mallopt", mmap_threshold, 32 << 20)  # the largest that it takes
    _glibc("mallopt", trim_threshold, 2**31 - 1)


def return_freed_memory() -> None:
    """Have glibc hand back to the system what torch has freed, also where `keep_freed_memory` was called.

    Thousands of draws splinter it: without this the memory of an evaluation creeps up with the number of its particles.
    """
    _glibc("malloc_trim", 0)


def _glibc(function: str, *arguments: int) -> None:
    """Call a function of the C library, where there is one of this name."""
    if sys.platform == "linux" and (found := getattr(ctypes.CDLL(None), function, None)) is not None:
        found(*arguments)
