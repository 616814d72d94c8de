"""Learning-rate schedules against their definitions, what an optimiser is told and how far it goes."""

import math
from itertools import pairwise
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import optax
import pyro
import pyro.distributions as dist
import pytest
import torch

from ppl_tvae.assembly import data_of
from ppl_tvae.config import Experiment
from ppl_tvae.inference.numpyro import svi as numpyro_svi
from ppl_tvae.inference.objective import ELBO
from ppl_tvae.inference.optimization import Optimization, learning_rate_factor
from ppl_tvae.inference.pyro import svi as pyro_svi
from ppl_tvae.inference.pyro.device import on_device
from ppl_tvae.program import Program
from ppl_tvae.trainers import optimization_of, trainer_of
from tests.small_runs import BACKENDS, small_training


def factors(schedule, num_steps, warmup_steps=0, xp=np):
    optimization = Optimization("adam", 1.0, 0.9, 0.0, schedule, warmup_steps, num_steps)
    return np.asarray(learning_rate_factor(optimization, xp.arange(num_steps)))


def test_tripling_is_the_iwae_papers():
    """3**i epochs at 10**(-i/7), i = 0..7."""
    expected = np.concatenate([np.full(3**i, 10 ** (-i / 7)) for i in range(8)])
    np.testing.assert_allclose(factors("tripling", 3280), expected, rtol=1e-12)
    np.testing.assert_allclose(factors("tripling", 3280, xp=jnp), expected, rtol=1e-6)


@pytest.mark.parametrize("xp", [np, jnp], ids=["numpy", "jax"])
def test_constant_and_cosine_rise_linearly_while_they_warm_up(xp):
    """And the cosine begins after that: whole at its first step, at zero where the training ends."""
    steps = np.arange(40)
    rise = np.minimum((steps + 1) / 10, 1)
    np.testing.assert_allclose(factors("constant", 40, warmup_steps=10, xp=xp), rise, rtol=1e-6)
    done = np.clip((steps - 10) / 30, 0, 1)
    expected = rise * 0.5 * (1 + np.cos(np.pi * done))
    np.testing.assert_allclose(factors("cosine", 40, warmup_steps=10, xp=xp), expected, rtol=1e-5)
    beyond = Optimization("adam", 1.0, 0.9, 0.0, "cosine", 0, 40)
    assert abs(float(learning_rate_factor(beyond, xp.asarray(60)))) < 1e-6  # of a run that goes on


def test_tripling_begins_after_the_warm_up():
    found = factors("tripling", 3290, warmup_steps=10)
    np.testing.assert_allclose(found[:10], np.arange(1, 11) / 10)
    np.testing.assert_allclose(found[10:], factors("tripling", 3280))


def test_cosine_falls_from_one_to_zero():
    np.testing.assert_allclose(factors("cosine", 4), (1 + np.cos(np.pi * np.arange(4) / 4)) / 2)


@pytest.mark.parametrize("epsilon", [1e-8, 0.5])
def test_first_step_of_adam_is_the_gradient_over_its_size_and_epsilon(epsilon):
    optimization = Optimization("adam", 0.1, 0.9, 0.0, "constant", 0, 10, epsilon)
    gradient = np.array([2.0, -0.25], np.float32)
    expected = -0.1 * gradient / (np.abs(gradient) + epsilon)
    transformation = numpyro_svi._optimizer(optimization)
    parameters = {"w": jnp.zeros(2)}
    update, _ = transformation.update({"w": jnp.asarray(gradient)}, transformation.init(parameters))
    np.testing.assert_allclose(optax.apply_updates(parameters, update)["w"], expected, rtol=1e-5)
    parameter = torch.zeros(2, requires_grad=True)
    parameter.grad = torch.from_numpy(gradient.copy())
    pyro_svi._optimizer(optimization, [parameter], on_gpu=False).step()
    np.testing.assert_allclose(parameter.detach().numpy(), expected, rtol=1e-5)


def test_settings_reach_the_optimiser():
    settings = {"learning_rate": 0.02, "momentum": 0.7, "clip_norm": 3.0, "schedule": "cosine", "warmup_steps": 5}
    experiment = Experiment(optimizer="adam", steps=60, adam_epsilon=0.1, **settings).resolved()
    expected = settings | {"method": "adam", "num_steps": 60, "adam_epsilon": 0.1}
    assert optimization_of(experiment)._asdict() == expected


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_step_is_as_long_as_the_clipped_gradient(backend, tmp_path):
    """Of gradient descent without momentum; the norm is that of all parameters together."""
    settings = {"optimizer": "sgd", "momentum": 0.0, "learning_rate": 0.1, "clip_norm": 0.5, "precision": "float64"}
    experiment = small_training(tmp_path, backend, **settings).resolved()
    data = data_of(experiment)
    with trainer_of(experiment, data) as trainer:
        points = [trainer.parameters()]
        for step in range(2):
            trainer.advance(data.train_plans(3, step, 1, 4))
            points.append(trainer.parameters())
    for before, after in pairwise(points):
        moved = math.sqrt(sum(((after[name] - before[name]) ** 2).sum() for name in before))
        assert moved == pytest.approx(0.1 * 0.5, rel=1e-6)


class Frames(NamedTuple):
    """A plan that holds the frames themselves."""

    frames: Any


LAYOUTS = {
    "with gaps": lambda rows: torch.stack([rows, rows], dim=-1)[..., 0],
    "transposed": lambda rows: rows.T.contiguous().T,
    "one number, many times": lambda rows: rows[:1, :1].expand(rows.shape),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("method", ["adam", "sgd"])
def test_how_a_parameter_lies_in_memory_changes_nothing(method, layout):
    """Updates in one pass take memory as it lies; torch says nothing where that is not what the parameter is."""
    rows = LAYOUTS[layout](torch.arange(6.0).reshape(2, 3))

    def trained(initial):
        def model(frames):
            with pyro.plate("sequences", frames.shape[0]):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                loc = pyro.param("rows", initial) + z[:, None, None]
                pyro.sample("x", dist.Normal(loc, 1.0).to_event(2), obs=frames)

        def guide(frames):
            with pyro.plate("sequences", frames.shape[0]):
                pyro.sample("z", dist.Normal(pyro.param("loc", torch.zeros(())), 1.0))

        optimization = Optimization(method, 0.1, 0.9, 0.0, "constant", 0, 10)
        program, frames = Program(model, guide), np.arange(24, dtype=np.float32).reshape(4, 2, 3)
        with on_device("cpu", "float32"):
            first = Frames(frames)
            trainer = pyro_svi.Trainer(
                program, ELBO, optimization, lambda _, plan: plan.frames, Frames(()), first, 0, likelihood=None
            )
            return trainer.advance(Frames(np.stack([frames] * 5))), trainer.parameters()["rows"]

    losses, found = trained(rows)
    expected_losses, expected = trained(rows.clone(memory_format=torch.contiguous_format))
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-6)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert np.abs(found - rows.numpy()).min() > 1e-3
