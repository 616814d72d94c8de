"""Shared by all tests."""

import os
import signal
from importlib.metadata import version
from pathlib import Path

import pytest

# The tests compare arithmetic, not devices, but for those that ask for a GPU (`make gpu`). Set before either backend is
# imported.
if os.environ.get("PPL_TVAE_GPU") != "1":
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
# Machine code that LLVM does not optimise and that is made without MLIR is there sooner, and slow.
# Tests of bits and of single operations are marked `machine_code` and run without it: they are about what users have.
if os.environ.get("PPL_TVAE_QUICK_CODE") == "1":
    os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
    if tuple(map(int, version("jaxlib").split(".")[:2])) < (0, 11):  # XLA of 0.11.2 and 0.12 aborts at the flag
        os.environ.setdefault("XLA_FLAGS", "--xla_cpu_use_fusion_emitters=false")
# On a busy machine torch's threads wait for each other, and these small programs take ten times as long as with one.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Nearly all the time of these tests goes into compiling small programs, often the same ones in another process.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parent.parent / ".jax_cache"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

# How many standard errors a statistical test allows. With about a hundred such comparisons and fixed seeds, five
# leaves a false alarm to about one in ten thousand changes of the random streams.
STANDARD_ERRORS = 5.0


@pytest.fixture(scope="session", autouse=True)
def heard_interrupts():
    """Ctrl-C as in a terminal: a shell that starts the tests in the background has them ignore it."""
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, previous)
