"""float32 products by oneDNN in place of MKL, which torch takes and which is slow on AMD's processors with AVX-512."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

_IN_USE: list[torch.library.Library] = []
_WORTH_IT = 2**20  # multiplications; of fewer the call takes longer than the product


@cache
def onednn_is_faster() -> bool:
    """Whether torch would multiply by MKL on a processor of AMD's with AVX-512 (docs/performance.md has the figures).

    By the processor's name and not by trying: a resumed run has to multiply as the run did before.
    """
    try:
        processor = Path("/proc/cpuinfo").read_text()
    except OSError:  # not on Linux
        return False
    both = torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()
    known = "AuthenticAMD" in processor and "avx512f" in processor
    return known and both and hasattr(torch.ops.mkldnn, "_linear_pointwise")


@contextmanager
def by_onednn() -> Iterator[None]:
    """Matrix products of float32 on the CPU are oneDNN's, in whichever program and gradient they stand.

    torch has no setting for it: it takes oneDNN for float32 on ARM alone. So what the products of matrices call on a
    CPU is another function while the context lasts. Others than large ones of float32 go through torch's own products
    of batches, since the function that was there before cannot be called any more.
    """
    if _IN_USE:  # by a context around this one
        yield
        return
    library = torch.library.Library("aten", "IMPL")
    _IN_USE.append(library)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "(?s).*Overriding a previously registered kernel", UserWarning)
        library.impl("mm", _mm, "CPU")
        library.impl("addmm", _addmm, "CPU")
    try:
        yield
    finally:
        _IN_USE.clear()
        library._destroy()


def _mm(a: Tensor, b: Tensor) -> Tensor:
    if _is_worth_it(a, b):
        return torch.ops.mkldnn._linear_pointwise(a, b.t(), None, "none", [], "")
    return torch.bmm(a.unsqueeze(0), b.unsqueeze(0)).squeeze(0)


def _addmm(added: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    if beta == alpha == 1 and added.ndim == 1 and len(added) == b.shape[1] and _is_worth_it(a, b):
        return torch.ops.mkldnn._linear_pointwise(a, b.t(), added, "none", [], "")
    product = _mm(a, b) if alpha == 1 else alpha * _mm(a, b)
    return product if beta == 0 else product + beta * added


def _is_worth_it(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype == torch.float32 and a.numel() * b.shape[1] >= _WORTH_IT
