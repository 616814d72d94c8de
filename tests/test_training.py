"""Both backends train the same program from the same parameters on the same batches; only the noise differs."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from ppl_tvae.assembly import data_of
from ppl_tvae.config import Experiment
from ppl_tvae.data import Plan, render
from ppl_tvae.inference.numpyro import svi
from ppl_tvae.inference.numpyro.device import to_device as to_jax
from ppl_tvae.inference.pyro.device import to_device as to_torch
from ppl_tvae.trainers import first_plan, trainer_of
from tests.conftest import STANDARD_ERRORS
from tests.small_runs import BACKENDS

NUM_STEPS, NUM_NOISES, WINDOW = 60, 6, 20


def digits(model: str, backend: str) -> Experiment:
    experiment = Experiment(
        model=model, backend=backend, hidden=(32, 24), num_capsules=4, capsule_dim=6, num_timesteps=6, seed=1
    )
    return experiment.resolved()


def reseeded(state: dict[str, np.ndarray], noise: int) -> dict[str, np.ndarray]:
    """The same state with another random stream; in NumPyro it is a key, in Pyro torch's generator."""
    (name,) = [name for name in state if state[name].dtype in (np.uint32, np.uint8)]
    if state[name].dtype == np.uint32:
        return state | {name: np.asarray([noise, 17], np.uint32)}
    return state | {name: torch.Generator().manual_seed(noise).get_state().numpy()}


def curves(model: str, backend: str) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Initial parameters, and the loss of each step for several streams of noise, (noises, steps)."""
    experiment = digits(model, backend)
    data = data_of(experiment)
    with trainer_of(experiment, data) as trainer:
        initial, start = trainer.parameters(), trainer.state()
        plans = data.train_plans(experiment.seed, 0, NUM_STEPS, experiment.batch_size)
        losses = []
        for noise in range(NUM_NOISES):
            trainer.restore(reseeded(start, noise))
            losses.append(trainer.advance(plans))
    return initial, np.array(losses, np.float64)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["tvae", "bubble", "static", "vae"])
def test_backends_start_alike_and_learn_alike(model):
    """Mean losses over windows of steps, each averaged over several streams of noise, agree within standard errors.

    The noise moves parameters, so windows of one stream are dependent but streams are not: the standard error comes
    from the spread over streams. It must be small beside what was learned, or agreement would mean little.
    """
    (ours, our_losses), (theirs, their_losses) = (curves(model, backend) for backend in BACKENDS)
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert value.dtype == theirs[name].dtype == np.float32
        np.testing.assert_array_equal(value, theirs[name])
    windows = [losses.reshape(NUM_NOISES, -1, WINDOW).mean(axis=2) for losses in (our_losses, their_losses)]
    for losses in windows:
        assert np.isfinite(losses).all()
        assert (np.diff(losses, axis=1) < 0).all()
    error = np.sqrt(sum(losses.var(axis=0, ddof=1) for losses in windows) / NUM_NOISES)
    means = [losses.mean(axis=0) for losses in windows]
    assert (np.abs(means[0] - means[1]) < STANDARD_ERRORS * error).all()
    assert (STANDARD_ERRORS * error < 0.2 * (means[0][0] - means[0][-1])).all()


def test_frames_are_the_same_in_both_backends():
    """A plan is a function of seed and step, and its frames are the same bits wherever they are drawn."""
    data = data_of(digits("tvae", "numpyro"))
    plan = Plan(*(field[0] for field in data.train_plans(1, 5, 1, 8)))
    drawn = render(data.tables, plan, True)
    np.testing.assert_array_equal(np.asarray(render(to_jax(data.tables), to_jax(plan), True)), drawn)
    np.testing.assert_array_equal(render(to_torch(data.tables), to_torch(plan), True).numpy(), drawn)


def test_how_numpyro_groups_steps_changes_nothing(monkeypatch):
    """What a GPU is given (updates apart from products) are the steps of a CPU.

    So are those of two seeds at once, and chunks that one compiled call does not hold.
    """
    experiment = replace(digits("vae", "numpyro"), optimizer="sgd", learning_rate=1e-3, precision="float64")
    data = data_of(experiment)
    monkeypatch.setattr(svi, "_FEW", 5)
    monkeypatch.setattr(svi, "_MANY", 16)

    def plans(first_step, num_steps):
        return [data.train_plans(seed, first_step, num_steps, 4) for seed in (1, 2)]

    found = []
    for as_on_gpu in (False, True):
        monkeypatch.setattr(svi, "on_gpu", lambda as_on_gpu=as_on_gpu: as_on_gpu)
        with trainer_of(experiment, data) as first:
            seeds = [first, first.reseeded(first_plan(experiment, data), 2)]
            if as_on_gpu:
                parts = [svi.advance_together(seeds, plans(*part)) for part in ((0, 4), (4, 9), (13, 19))]
                losses = np.concatenate(parts, axis=1)
            else:
                losses = np.stack([trainer.advance(own) for trainer, own in zip(seeds, plans(0, 32), strict=True)])
            found.append([losses, first.advance(plans(32, 32)[0]), *first.parameters().values()])
    for plain, grouped in zip(*found, strict=True):
        assert plain.shape == grouped.shape
        np.testing.assert_allclose(grouped, plain, rtol=1e-9, atol=1e-12)
    assert found[0][0].shape == (2, 32)
    assert not np.array_equal(*found[0][0])
