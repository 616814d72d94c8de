"""Shared by all tests."""

import os
import signal
from pathlib import Path

import pytest

# The tests compare arithmetic, not devices, but for those that ask for a GPU (`make gpu`). Set before either backend is
# imported.
if os.environ.get("PPL_TVAE_GPU") != "1":
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
    # Machine code that LLVM does not optimise is there in half the time. Tests of bits and of single operations ask for
    # `machine_code_as_users_have_it`.
    os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
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


@pytest.fixture(scope="module")
def machine_code_as_users_have_it():
    """Optimised by LLVM, in what this process and those that it starts compile."""
    import jax

    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "0")
        yield
    jax.config.update("jax_disable_most_optimizations", before)
