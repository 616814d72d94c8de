"""Objectives as settings of a run, and in a trainer: the warm-up, resumption, the held-out ELBO."""

from dataclasses import replace
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as numpyro_dist
import pyro
import pyro.distributions as pyro_dist
import pytest
import torch

from ppl_tvae import trainers
from ppl_tvae.assembly import assemble, data_of
from ppl_tvae.catalogue import OBJECTIVES
from ppl_tvae.config import Experiment
from ppl_tvae.errors import UserError
from ppl_tvae.inference.numpyro import svi as numpyro_svi
from ppl_tvae.inference.numpyro.device import on_device as on_jax
from ppl_tvae.inference.numpyro.objectives import OBJECTIVES as NUMPYRO_OBJECTIVES
from ppl_tvae.inference.objective import ELBO, Objective, kl_weight
from ppl_tvae.inference.optimization import Optimization
from ppl_tvae.inference.pyro import svi as pyro_svi
from ppl_tvae.inference.pyro.device import on_device as on_torch
from ppl_tvae.inference.pyro.objectives import OBJECTIVES as PYRO_OBJECTIVES
from ppl_tvae.program import Program
from ppl_tvae.training import held_out_plan
from tests.small import small_experiment, small_frames
from tests.small_runs import small_training

BACKENDS = ("numpyro", "pyro")
SMALLEST = replace(small_experiment("vae"), hidden=(5,)).resolved()


@pytest.mark.parametrize("xp", [np, jnp, torch])
def test_weight_of_the_kl_part(xp):
    weights = [float(kl_weight(Objective("elbo", kl_warmup_steps=4), xp.asarray(step))) for step in (0, 1, 3, 4, 9)]
    assert weights == [0.0, 0.25, 0.75, 1.0, 1.0]
    assert kl_weight(Objective("elbo"), xp.asarray(0)) == 1.0


class Frames(NamedTuple):
    frames: np.ndarray


def trainer(backend, objective, program=None, first=None):
    """A trainer whose plans are its frames; of the small vae where no program is given."""
    module = {"numpyro": numpyro_svi, "pyro": pyro_svi}[backend]
    optimization = Optimization("adam", 1e-3, 0.9, 0.0, "constant", 0, 100)
    program, first = program or assemble(SMALLEST, backend), first or plans(1)[0]
    return module.Trainer(program, objective, optimization, lambda _, p: p.frames, Frames(np.zeros(1)), first, 0)


def plans(count):
    rng = np.random.default_rng(8)
    batches = [small_frames(SMALLEST, 3, rng).astype(np.float32) for _ in range(count)]
    return [Frames(batches[0]), Frames(np.stack(batches))]


@pytest.mark.parametrize("backend", BACKENDS)
def test_warm_up_goes_by_the_step_of_the_state_and_never_by_held_out_sequences(backend):
    """Not by the place in a chunk: chunks and resumption change no bit. Held out, all objectives have one ELBO."""
    objective, other = Objective("elbo", kl_warmup_steps=5), Objective("iwae-dreg", 3)
    on, batches = {"numpyro": on_jax, "pyro": on_torch}[backend], plans(8)[1].frames
    with on("cpu", "float32"):
        first = trainer(backend, objective)
        start, held_out = first.snapshot(), first.held_out_loss(Frames(batches))
        losses, whole = first.advance(Frames(batches)), first.parameters()
        first.rewind(start)
        beginning, middle = first.advance(Frames(batches[:3])), first.state()
        resumed = trainer(backend, objective)
        resumed.restore(middle)
        rest = resumed.advance(Frames(batches[3:]))
        np.testing.assert_array_equal(losses, np.concatenate([beginning, rest]))
        assert all((whole[name] == value).all() for name, value in resumed.parameters().items())
        assert losses[0] < held_out < 1.1 * losses[-1]  # without the KL part at first, with all of it at last
        assert trainer(backend, other).held_out_loss(Frames(batches)) == held_out


HOSTS = {"numpyro": (numpyro, numpyro_dist, jnp.zeros), "pyro": (pyro, pyro_dist, torch.zeros)}


@pytest.mark.parametrize("backend", BACKENDS)
def test_losses_are_nats_per_frame_and_means_over_all_sequences(backend):
    """x does not depend on z, whose guide is its prior: every bound is log p(x), without noise."""
    host, dist, zeros = HOSTS[backend]

    def model(frames):
        with host.plate("sequences", frames.shape[0]):
            z = host.sample("z", dist.Normal(zeros((1,)), 1.0).to_event(1))
            host.sample("x", dist.Normal(0 * z[..., None, None, None] + 0 * frames, 1.0).to_event(4), obs=frames)

    def guide(frames):
        loc = host.param("loc", zeros((1,)))
        with host.plate("sequences", frames.shape[0]):
            host.sample("z", dist.Normal(loc + 0 * frames[:, 0, 0, 0], 1.0).to_event(1))

    means = np.array([1.0, 2.0]).reshape(2, 1, 1, 1, 1, 1)
    batches = np.random.default_rng(0).normal(0, means, (2, 4, 3, 2, 5, 1)).astype(np.float32)
    expected = (0.5 * batches**2 + 0.5 * np.log(2 * np.pi)).sum(axis=(2, 3, 4, 5)).mean(axis=1) / 3
    with {"numpyro": on_jax, "pyro": on_torch}[backend]("cpu", "float32"):
        ready = trainer(backend, ELBO, Program(model, guide), Frames(batches[0]))
        assert ready.held_out_loss(Frames(batches)) == pytest.approx(expected.mean(), rel=1e-5)
        np.testing.assert_allclose(ready.advance(Frames(batches)), expected, rtol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_held_out_sequences_have_the_same_noise_at_every_call(backend, tmp_path):
    """Steps of no length: parameters stay, the random numbers of training go on."""
    experiment = small_training(tmp_path, backend, learning_rate=1e-30).resolved()
    data = data_of(experiment)
    held_out = held_out_plan(experiment, data)
    with trainers.trainer_of(experiment, data) as ready:
        before = ready.held_out_loss(held_out)
        ready.advance(data.train_plans(3, 0, 5, 4))
        assert ready.held_out_loss(held_out) == before


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"objective": "iwae", "alpha": 0.5}, "expected alpha only with objective 'renyi', found 0.5 with 'iwae'"),
        ({"objective": "iwae", "kl_warmup_steps": 9}, "expected kl_warmup_steps only with objective 'elbo'"),
        ({"kl_warmup_steps": 5, "steps": 5}, "expected fewer kl_warmup_steps than the 5 steps, found 5"),
        ({"num_particles": 0}, "expected num_particles of at least 1, found 0"),
        ({"objective": "iwea"}, "expected the name of an objective, found 'iwea'; did you mean 'iwae'"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, words):
    with pytest.raises(UserError, match=words):
        Experiment(**settings).resolved()


def test_settings_are_filled_in():
    found = {name: Experiment(objective=name).resolved() for name in OBJECTIVES}
    assert {name: e.num_particles for name, e in found.items()} == {"elbo": 1, "iwae": 10, "iwae-dreg": 10, "renyi": 10}
    assert {name: e.alpha for name, e in found.items()} == {"elbo": None, "iwae": None, "iwae-dreg": None, "renyi": 0.5}
    assert Experiment(objective="renyi", alpha=0.0).resolved().alpha == 0.0


def test_settings_reach_the_objective():
    renyi = Experiment(objective="renyi", alpha=0.3, num_particles=7).resolved()
    assert trainers._objective(renyi) == Objective("renyi", 7, alpha=0.3, kl_warmup_steps=0)
    warmed_up = Experiment(kl_warmup_steps=9).resolved()
    assert trainers._objective(warmed_up) == Objective("elbo", 1, alpha=0.0, kl_warmup_steps=9)


def test_catalogue_backends_and_settings_name_the_same_objectives():
    assert OBJECTIVES.keys() == NUMPYRO_OBJECTIVES.keys() == PYRO_OBJECTIVES.keys()
