"""Pyro on a device that is not the CPU: everything lies there, and the numbers are those of the CPU."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from ppl_tvae import Annealing, UserError, diagnose, evaluate, resume, train
from ppl_tvae.catalogue import OBJECTIVES
from ppl_tvae.inference.mcmc import MCMC
from ppl_tvae.inference.pyro.device import on_device
from ppl_tvae.inference.unamortised import Unamortised
from ppl_tvae.starting_points import write_starting_point
from tests import another_device
from tests.small import EVERY_SWAP
from tests.small_runs import small_training

QUIETLY = {"device": "cpu", "quiet": True}
CASES = [
    *({"model": model, "guide": guide, "prior": prior} for model, guide, prior in EVERY_SWAP),
    *({"objective": objective} for objective in OBJECTIVES),
    {"model": "torus", "num_timesteps": 1, "num_capsules": 1, "capsule_dim": 25},
    {"lattice_weights": "learned", "mu_per": "cell", "clip_norm": 1.0},
    {"data": "sprites", "num_timesteps": 15, "precision": "float64"},
]


@pytest.fixture
def elsewhere(monkeypatch):
    """Where the package takes the CPU it takes the other device."""
    set_default_device = torch.set_default_device
    monkeypatch.setattr(torch, "set_default_device", lambda device: set_default_device(device or another_device.NAME))
    yield
    set_default_device(None)
    another_device.forget_unused()


def test_the_other_device_computes_and_keeps_to_itself(elsewhere):
    with on_device("cpu", "float32"):
        tensor = torch.arange(6.0).reshape(2, 3)
        weights = torch.ones(3, requires_grad=True)
        torch.sum((tensor @ weights) ** 2).backward()
    assert tensor.device.type == weights.grad.device.type == another_device.NAME
    assert weights.grad.tolist() == [72, 102, 132]
    with pytest.raises(RuntimeError, match=r"on (the same|one) device"):
        tensor + torch.ones(3, device="cpu")
    with pytest.raises(RuntimeError, match=r"on (the same|one) device"):
        tensor[torch.zeros(1, dtype=torch.int64, device="cpu")]
    with pytest.raises(TypeError, match="copy the tensor to host memory"):
        tensor.numpy()


@pytest.mark.parametrize("settings", CASES, ids=lambda settings: "-".join(map(str, settings.values())))
def test_what_is_trained_and_estimated_there_is_what_a_cpu_gives(settings, tmp_path, elsewhere, monkeypatch):
    here, there = tmp_path / "here", tmp_path / "there"
    there_too = _trained(there, settings)
    monkeypatch.undo()
    on_the_cpu = _trained(here, settings)
    for name, value in on_the_cpu[0].items():
        np.testing.assert_allclose(there_too[0][name], value, rtol=1e-4, atol=1e-6, err_msg=name)
    np.testing.assert_allclose(there_too[1], on_the_cpu[1], rtol=1e-4)


def _trained(folder, settings):
    """Parameters and estimates of a run that was resumed."""
    folder.mkdir()
    steps = {"steps": 4, "evaluate_every": 2, "log_every": 2, "validation_sequences": 4, "device": "cpu"}
    train(replace(small_training(folder, "pyro", **steps), **settings), folder / "run", quiet=True)
    run = resume(folder / "run", steps=6, quiet=True)
    estimators = ("elbo", "iwae") if settings.get("guide") == "iaf" else ("elbo", "iwae", "released-is")
    records = evaluate(run, particles=(1, 4), estimators=estimators, max_sequences=4, **QUIETLY)
    if settings.get("prior") != "hyperspherical":  # of which there are no unconstrained coordinates
        annealing = Annealing(num_temperatures=3, num_leapfrog_steps=2)
        records += evaluate(run, estimators=("ais", "sandwich"), annealing=annealing, max_sequences=2, **QUIETLY)
    return run.parameters(), [record["value"] for record in records]


def test_a_tensor_of_the_cpu_in_a_program_is_told_with_its_line(tmp_path, elsewhere):
    own = tmp_path / "own.py"
    write_starting_point("vae", own, "pyro")
    added = "        misplaced = frames + torch.ones(frames.shape, device='cpu')\n"
    line = '        pyro.sample("x", '
    assert line in own.read_text()
    own.write_text(own.read_text().replace(line, added + line))
    settings = {"device": "cpu", "model": str(own), "num_capsules": None, "capsule_dim": None, "hidden": None}
    with pytest.raises(UserError, match=r"misplaced = frames.*on (the same|one) device"):
        train(replace(small_training(tmp_path, "pyro"), **settings), tmp_path / "run", quiet=True)


def test_an_own_program_is_looked_at_and_diagnosed_there(tmp_path, elsewhere):
    write_starting_point("tvae", tmp_path / "own.py", "pyro")
    settings = {"model": str(tmp_path / "own.py"), "num_capsules": None, "capsule_dim": None, "hidden": None}
    settings |= {"device": "cpu", "data": "digits", "num_timesteps": None, "steps": 2}
    run = train(replace(small_training(tmp_path, "pyro"), **settings), tmp_path / "run", quiet=True)
    few = {"num_sequences": 2, "num_draws": 3, "metric_sequences": 2, "simulated_sequences": 8}
    chains = {"mcmc": MCMC("hmc", num_warmup=2, num_draws=4, num_chains=2), "mcmc_sequences": 1}
    gap = {"gap_guide": Unamortised("auto-low-rank", steps=2), "gap_sequences": 2}
    found = diagnose(run, **few, **chains, **gap, **QUIETLY)
    assert np.isfinite(found["amortisation_gap"]["value"])
    assert found["mcmc"]["num_divergences"] + found["mcmc"]["acceptance_rate"] > 0
    assert found["calibration"].keys() >= {"z", "u"}
