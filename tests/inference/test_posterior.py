"""Frames simulated from a model: draws of its joint distribution, also where frames depend on frames or are masked."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as numpyro_dist
import pyro
import pyro.distributions as pyro_dist
import pytest
import torch

from ppl_tvae.assembly import assemble
from ppl_tvae.data import Plan
from ppl_tvae.errors import UserError
from ppl_tvae.inference.annealing import Annealing
from ppl_tvae.inference.numpyro import posterior as numpyro_posterior
from ppl_tvae.inference.numpyro.device import on_device as on_jax
from ppl_tvae.inference.numpyro.evaluator import Evaluator as NumpyroEvaluator
from ppl_tvae.inference.pyro import posterior as pyro_posterior
from ppl_tvae.inference.pyro.device import on_device as on_torch
from ppl_tvae.inference.pyro.evaluator import Evaluator as PyroEvaluator
from ppl_tvae.program import Program
from tests.conftest import STANDARD_ERRORS
from tests.small import FRAME, random_parameters, small_experiment

BACKENDS = ("numpyro", "pyro")
HOSTS = {"numpyro": (numpyro, numpyro_dist, jnp), "pyro": (pyro, pyro_dist, torch)}


def simulated(backend, program, frames, parameters=None):
    """A draw from the model, as arrays."""
    if backend == "numpyro":
        values = jax.tree.map(jnp.asarray, parameters or {})
        drawn = numpyro_posterior.prior_draw(program, ())(values, jax.random.key(0), jnp.asarray(frames, jnp.float32))
    else:
        torch.manual_seed(0)
        values = {name: torch.tensor(value, dtype=torch.float32) for name, value in (parameters or {}).items()}
        drawn = pyro_posterior.prior_draw(program, ())(values, torch.tensor(frames, dtype=torch.float32))
    return drawn._replace(
        sites={name: np.asarray(value) for name, value in drawn.sites.items()}, frames=np.asarray(drawn.frames)
    )


def looking_at(backend, neighbours):
    """z ~ Normal(0, 1); x_t ~ Normal(z + half of the sum of its neighbours, 1), neighbours(frames) of their shape."""
    host, dist, xp = HOSTS[backend]

    def model(frames):
        with host.plate("sequences", frames.shape[0]):
            z = host.sample("z", dist.Normal(0.0, 1.0).expand((1, 1, 1, 1)).to_event(4))
            host.sample("x", dist.Normal(z + 0.5 * neighbours(xp, frames), 1.0).to_event(4), obs=frames)

    return Program(model, model)


def before(xp, frames):
    return xp.concatenate([xp.zeros_like(frames[:, :1]), frames[:, :-1]], 1)


def around(xp, frames):
    return before(xp, frames) + xp.concatenate([frames[:, 1:], xp.zeros_like(frames[:, :1])], 1)


@pytest.mark.parametrize("backend", BACKENDS)
def test_simulated_frames_are_numbers_as_in_training(backend):
    experiment = small_experiment("tvae", "bernoulli")
    program, parameters = assemble(experiment, backend), random_parameters(experiment, np.random.default_rng(0))
    drawn = simulated(backend, program, np.zeros((2, experiment.num_timesteps, *FRAME)), parameters)
    assert drawn.frames.dtype == np.float32  # Bernoulli distributions of NumPyro draw integers
    assert set(np.unique(drawn.frames)) == {0.0, 1.0}


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_model_that_looks_back_is_simulated_in_time(backend):
    """x_t = z + x_(t-1) / 2 + noise: frames are a linear map of z and the noise, which gives their covariance."""
    given = 100 * np.random.default_rng(1).random((20_000, 3, 1, 1, 1))  # what is given must not matter
    drawn = simulated(backend, looking_at(backend, before), given)
    z, x = drawn.sites["z"].reshape(-1, 1), drawn.frames.reshape(-1, 3)
    noise = x - z - 0.5 * np.concatenate([np.zeros_like(z), x[:, :-1]], axis=1)
    found = np.cov(np.concatenate([z, noise], axis=1).T)
    np.testing.assert_allclose(found, np.eye(4), atol=STANDARD_ERRORS * np.sqrt(2 / len(x)))
    np.testing.assert_allclose(np.mean(noise, axis=0), 0, atol=STANDARD_ERRORS / np.sqrt(len(x)))
    expected = -0.5 * (noise**2 + np.log(2 * np.pi)).sum(axis=1)
    np.testing.assert_allclose(np.asarray(drawn.log_likelihood), expected, rtol=1e-4, atol=1e-4)


class Tables(NamedTuple):
    frames: np.ndarray


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_sandwich_of_a_model_that_looks_back_brackets_its_evidence(backend):
    """Frames are A (z + noise), so E[log p(x)] over the model's own is minus the entropy of a normal."""
    count = 1000
    plan = Plan(*(np.zeros(count, np.int32) for _ in Plan._fields))
    tables, like = Tables(np.full((1, 3, 1, 1, 1), 50.0)), (lambda tables, plan: tables.frames[plan.image])
    kind = {"numpyro": NumpyroEvaluator, "pyro": PyroEvaluator}[backend]
    with on_jax("cpu", "float64"), on_torch("cpu", "float64"):
        ready = kind(looking_at(backend, before), {}, like, tables, plan, "float64", 0)
        lower, upper = ready.bracketed(plan, 0, Annealing("prior", num_temperatures=40), lambda _: None)
    recurrence = np.linalg.inv(np.eye(3) - 0.5 * np.eye(3, k=-1))
    covariance = recurrence @ (np.ones((3, 3)) + np.eye(3)) @ recurrence.T
    truth = -0.5 * np.linalg.slogdet(2 * np.pi * np.e * covariance)[1]
    low, high = lower.log_weights[0], upper.log_weights[0]
    error = np.std([low, high], axis=1).max() / count**0.5
    assert low.mean() < truth + STANDARD_ERRORS * error
    assert high.mean() > truth - STANDARD_ERRORS * error
    assert 0 < (high - low).mean() < 0.2


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_looks_both_ways_is_not_simulated(backend):
    with pytest.raises(UserError, match="still change when drawn beside themselves for 4 rounds"):
        simulated(backend, looking_at(backend, around), np.zeros((5, 3, 1, 1, 1)))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("masked_by", ["distribution", "sequences", "handler"])
def test_what_a_mask_leaves_out_stays_as_it_was(backend, masked_by):
    """By a distribution: the second channel says which pixels of the first are known. Else: every other sequence."""
    host, dist, xp = HOSTS[backend]
    handler = numpyro.handlers.mask if backend == "numpyro" else pyro.poutine.mask

    def model(frames):
        known = xp.stack([frames[..., 1] > 0, xp.zeros_like(frames[..., 1]) > 0], -1)
        with host.plate("sequences", frames.shape[0]):
            z = host.sample("z", dist.Normal(0.0, 1.0).expand((1, 1, 1, 1)).to_event(4))
            pixels = dist.Normal(z + xp.zeros_like(frames), 1.0)
            if masked_by == "distribution":
                host.sample("x", pixels.mask(known).to_event(4), obs=frames)
            elif masked_by == "sequences":
                host.sample("x", pixels.to_event(4).mask(xp.arange(len(frames)) % 2 > 0), obs=frames)
            else:
                with handler(mask=xp.arange(len(frames)) % 2 > 0):
                    host.sample("x", pixels.to_event(4), obs=frames)

    rng = np.random.default_rng(2)
    given = rng.random((50, 3, 2, 2, 2)).astype(np.float32)
    given[..., 1] = rng.random((50, 3, 2, 2)) < 0.5
    if masked_by == "distribution":
        kept = np.stack([given[..., 1] == 0, np.ones_like(given[..., 1], bool)], axis=-1)
    else:
        kept = np.broadcast_to((np.arange(len(given)) % 2 == 0).reshape(-1, 1, 1, 1, 1), given.shape)
    drawn = simulated(backend, Program(model, model), given)
    np.testing.assert_array_equal(drawn.frames == given, kept)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_likelihood_without_a_mean_is_drawn_from(backend):
    """Of a logit-normal no host has one: that of draws stands for it, here of x = sigmoid(z + noise)."""
    host, dist, xp = HOSTS[backend]

    def model(frames):
        with host.plate("sequences", frames.shape[0]):
            z = host.sample("z", dist.Normal(0.0, 1.0).expand((1, 1, 1, 1)).to_event(4))
            logits = dist.Normal(z + xp.zeros_like(frames), 1.0)
            pixels = dist.TransformedDistribution(logits, [dist.transforms.SigmoidTransform()])
            host.sample("x", pixels.to_event(4), obs=frames)

    drawn = simulated(backend, Program(model, model), np.full((500, 1, 2, 2, 1), 0.5))
    nodes, weights = np.polynomial.hermite_e.hermegauss(40)
    expected = (weights / (1 + np.exp(-drawn.sites["z"] - nodes))).sum(axis=-1, keepdims=True) / weights.sum()
    off = np.asarray(drawn.mean) - expected
    assert abs(off).max() < 0.25  # of single pixels, whose deviation is at most a quarter: 64 draws
    assert abs(off.mean()) < STANDARD_ERRORS * 0.25 / np.sqrt(64 * off.size)


@pytest.mark.parametrize("backend", BACKENDS)
def test_frames_are_decoded_from_what_is_drawn_and_from_what_is_computed(backend):
    """t = 2 z, and frames have the mean t + 1."""
    host, dist, xp = HOSTS[backend]

    def model(frames):
        with host.plate("sequences", frames.shape[0]):
            z = host.sample("z", dist.Normal(0.0, 1.0).expand((1, 1, 1, 1)).to_event(4))
            t = host.deterministic("t", 2 * z)
            host.sample("x", dist.Normal(t + 1 + xp.zeros_like(frames), 1.0).to_event(4), obs=frames)

    def decoded(site):
        decode = {"numpyro": numpyro_posterior, "pyro": pyro_posterior}[backend].decoding(Program(model, model), site)
        given = xp.asarray(values), xp.zeros((3, 2, 1, 1, 1))
        return np.asarray(decode({}, jax.random.key(0), *given) if backend == "numpyro" else decode({}, *given))

    values = np.arange(3, dtype=np.float32).reshape(3, 1, 1, 1, 1)
    shape = (3, 2, 1, 1, 1)
    np.testing.assert_array_equal(decoded("t"), np.broadcast_to(values + 1, shape))
    np.testing.assert_array_equal(decoded("z"), np.broadcast_to(2 * values + 1, shape))
    for site in ("x", "u"):
        with pytest.raises(UserError, match=f"expected a site '{site}' in the model, from which frames can be decoded"):
            decoded(site)


def test_one_draw_from_a_model_does_not_tell_the_next():
    """Each is drawn in rounds that have the same noise, and takes no number of torch's stream that the next one has."""
    program = looking_at("pyro", lambda xp, frames: xp.zeros_like(frames))
    draw, given = pyro_posterior.prior_draw(program, ()), torch.zeros(1, 1, 1, 1, 1)
    torch.manual_seed(0)
    drawn = [draw({}, given) for _ in range(600)]
    numbers = np.array([[float(each.sites["z"]), float(each.frames - each.sites["z"])] for each in drawn])
    numbers = np.concatenate([numbers, numbers**2], axis=1)
    numbers = (numbers - numbers.mean(axis=0)) / numbers.std(axis=0)
    assert abs(numbers[:-1].T @ numbers[1:]).max() / len(numbers) < STANDARD_ERRORS / len(numbers) ** 0.5


def test_pixels_in_plates_of_their_own_are_drawn():
    """Of which the host's mask is a number without axes."""

    def model(frames):
        with pyro.plate("sequences", len(frames), dim=-5):
            z = pyro.sample("z", pyro_dist.Normal(0.0, 1.0))
            with (
                pyro.plate("time", 3, dim=-4),
                pyro.plate("row", 2, dim=-3),
                pyro.plate("column", 2, dim=-2),
                pyro.plate("channel", 1, dim=-1),
            ):
                pyro.sample("x", pyro_dist.Bernoulli(logits=z + torch.zeros_like(frames)), obs=frames)

    drawn = simulated("pyro", Program(model, model), np.zeros((5, 3, 2, 2, 1)))
    assert set(np.unique(drawn.frames)) == {0.0, 1.0}
