"""Shared by all tests."""

import os

# The tests compare arithmetic, not devices; set before either backend is imported.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
# On a busy machine torch's threads wait for each other, and these small programs take ten times as long as with one.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Nearly all the time of these tests goes into compiling small programs once: XLA need not optimise them.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

# How many standard errors a statistical test allows. With about a hundred such comparisons and fixed seeds, five
# leaves a false alarm to about one in ten thousand changes of the random streams.
STANDARD_ERRORS = 5.0
