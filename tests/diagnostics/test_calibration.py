"""Calibration: the ranks of an exact posterior are uniform, those of wrong ones are flagged, in both backends."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as numpyro_dist
import pyro
import pyro.distributions as pyro_dist
import pytest
import torch

from ppl_tvae.data import Plan
from ppl_tvae.diagnostics.calibration import calibration, normalised_ranks, simulated_ranks
from ppl_tvae.inference.numpyro.device import on_device as on_jax
from ppl_tvae.inference.numpyro.evaluator import Evaluator as NumpyroEvaluator
from ppl_tvae.inference.pyro.device import on_device as on_torch
from ppl_tvae.inference.pyro.evaluator import Evaluator as PyroEvaluator
from ppl_tvae.program import Program


class Tables(NamedTuple):
    """Frames of shape (1, 2, 1, 1, 1)."""

    frames: np.ndarray


def program(host, dist, zeros, shift, width):
    """z ~ N(0, 1), x_s ~ N(z, 1) twice, so z | x ~ N(sum x / 3, 1/3); the guide is off by `shift` and `width`."""

    def model(frames):
        with host.plate("sequences", frames.shape[0]):
            z = host.sample("z", dist.Normal(zeros((1,)), 1.0).to_event(1))
            host.sample("x", dist.Normal(z[..., None, None, None] + zeros((2, 1, 1, 1)), 1.0).to_event(4), obs=frames)

    def guide(frames):
        with host.plate("sequences", frames.shape[0]):
            loc = frames.reshape(frames.shape[0], 2).sum(-1)[:, None] / 3 + shift
            host.sample("z", dist.Normal(loc, width * 3**-0.5).to_event(1))

    return Program(model, guide)


def ranks(backend, shift, width, num_sequences=400):
    tables, plan = Tables(np.zeros((1, 2, 1, 1, 1))), Plan(*(np.zeros(1, np.int32) for _ in Plan._fields))
    arguments = ({}, lambda tables, plan: tables.frames[plan.image], tables, plan, "float64", 0)
    with on_jax("cpu", "float64"), on_torch("cpu", "float64"):
        if backend == "numpyro":
            ready = NumpyroEvaluator(program(numpyro, numpyro_dist, jnp.zeros, shift, width), *arguments)
        else:
            ready = PyroEvaluator(program(pyro, pyro_dist, torch.zeros, shift, width), *arguments)
        return simulated_ranks(ready, plan, num_sequences, 31, seed=3, quiet=True)


@pytest.mark.parametrize("backend", ["numpyro", "pyro"])
def test_an_exact_posterior_is_calibrated(backend):
    found = ranks(backend, 0.0, 1.0)
    assert set(found) == {"z", "log p(x | latents)"}
    for values in found.values():
        assert values.shape == (400,)
        assert calibration(values).calibrated


def test_as_many_ranks_as_were_asked_for():
    """Sequences are simulated a batch at a time."""
    assert {len(own) for own in ranks("pyro", 0.0, 1.0, num_sequences=13).values()} == {13}


@pytest.mark.parametrize("backend", ["numpyro", "pyro"])
@pytest.mark.parametrize(
    ("shift", "width", "words"),
    [
        (0.0, 0.5, "too narrow"),
        (0.0, 2.0, "too wide"),
        (0.5, 1.0, "below the draws"),
        (-0.5, 1.0, "above the draws"),
    ],
)
def test_a_wrong_posterior_is_flagged_with_what_is_wrong(shift, width, words, backend):
    assert words in calibration(ranks(backend, shift, width)["z"]).verdict


def test_ranks_are_uniform_also_with_ties():
    rng = np.random.default_rng(0)
    draws, truth = rng.integers(3, size=(9, 20_000)), rng.integers(3, size=20_000)
    counts = np.histogram(normalised_ranks(truth, draws, rng), bins=10, range=(0, 1))[0]
    assert (np.abs(counts - 2000) < 5 * np.sqrt(2000 * 0.9)).all()
    assert normalised_ranks(np.zeros(3), np.ones((4, 3)), rng).max() < 0.2


def test_the_band_has_its_probability():
    rng = np.random.default_rng(1)
    inside = [calibration(rng.random(40)).calibrated for _ in range(100)]
    assert sum(inside) >= 94  # 99 expected; fewer than 94 of 100 has probability below 1e-4


def test_what_is_no_number_is_not_judged():
    truth, draws = np.zeros(200), np.random.default_rng(0).standard_normal((9, 200))
    draws[0, :3], truth[5] = np.nan, np.nan
    found = calibration(normalised_ranks(truth, draws, np.random.default_rng(1)))
    assert found.verdict == "not to be judged: values of 4 sequences are not numbers"
    assert not found.calibrated
    assert not calibration(np.full(8, np.nan)).calibrated
