"""Inference in Pyro, for any program."""

import os

# torch's threads wait for each other hundreds of times in a step. By default they spin for milliseconds before they
# sleep, and where other work shares the cores, those that are waited for do not run meanwhile. After so many turns (73
# microseconds on an AMD EPYC) they sleep. GNU's OpenMP reads this as torch is loaded, so it has to be said before.
if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & set(os.environ):  # what a user has said stays
    os.environ["GOMP_SPINCOUNT"] = "3000"
