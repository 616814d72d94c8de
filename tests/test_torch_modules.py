"""Programs whose networks are torch modules of the file: what is trained is what is evaluated, and --seed begins it."""

import numpy as np
import pyro
import pytest
import torch
from pyro.nn import PyroModule, PyroParam
from torch.distributions import constraints

from ppl_tvae import Experiment, evaluate, train
from ppl_tvae.assembly import data_of
from ppl_tvae.inference.pyro.tracing import parameters_as
from ppl_tvae.runs import open_run
from ppl_tvae.trained import evaluator

PROGRAM = """
from __future__ import annotations

from dataclasses import dataclass

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule
from torch import nn


@dataclass
class Networks:
    decoder: nn.Module
    encoder: nn.Module


def made():
    return Networks(LINEAR(2, 12), LINEAR(12, 2))


{networks}


def model(frames):
    {decoder}
    with pyro.plate("sequences", frames.shape[0]):
        z = pyro.sample("z", dist.Normal(0.0, 1.0).expand((2,)).to_event(1))
        mean = decoder(z).reshape(-1, 3, 2, 2, 1)
        pyro.sample("x", dist.Normal(mean, 0.5).to_event(4), obs=frames)


def guide(frames):
    {encoder}
    with pyro.plate("sequences", frames.shape[0]):
        pyro.sample("z", dist.Normal(encoder(frames.reshape(len(frames), -1)), 0.5).to_event(1))
"""
FORMS = {
    "kept": (
        "LINEAR = nn.Linear\nOWN = made()",
        "decoder = OWN.decoder; pyro.module('decoder', decoder)",
        "encoder = OWN.encoder; pyro.module('encoder', encoder)",
    ),
    "returned": (
        "LINEAR = nn.Linear\nOWN = made()",
        "decoder = pyro.module('decoder', OWN.decoder)",
        "encoder = pyro.module('encoder', OWN.encoder)",
    ),
    "PyroModule": (
        "LINEAR = PyroModule[nn.Linear]\nOWN = made()\n"
        "OWN.decoder._pyro_name, OWN.encoder._pyro_name = 'decoder', 'encoder'",
        "decoder = OWN.decoder",
        "encoder = OWN.encoder",
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_modules_are_evaluated_with_the_parameters_of_the_run(tmp_path, form):
    networks, decoder, encoder = FORMS[form]
    (tmp_path / "modules.py").write_text(PROGRAM.format(networks=networks, decoder=decoder, encoder=encoder))
    np.savez(tmp_path / "mine.npz", sequences=np.random.default_rng(0).random((40, 3, 2, 2, 1)))
    experiment = Experiment(
        model=str(tmp_path / "modules.py"), backend="pyro", data=str(tmp_path / "mine.npz"), likelihood="normal",
        steps=30, learning_rate=0.05, device="cpu",
    )  # fmt: skip
    runs = [train(experiment, tmp_path / name, quiet=True) for name in ("first", "second")]
    assert runs[0].metrics()[0]["elbo_per_frame"] == runs[1].metrics()[0]["elbo_per_frame"]

    run = open_run(tmp_path / "first")
    found = run.parameters()
    weight, bias = found["decoder.weight"], found["decoder.bias"]
    z = np.random.default_rng(1).normal(size=(5, 2)).astype(np.float32)
    with evaluator(run, data_of(run.experiment), None, "cpu", seed=0) as ready:
        np.testing.assert_allclose(ready.decode(z, "z").reshape(5, 12), z @ weight.T + bias, rtol=1e-4, atol=1e-5)
    first, second = (evaluate(run, estimators="elbo", particles=20, device="cpu", quiet=True)[0] for _ in range(2))
    assert first["value"] == second["value"]


def test_a_constrained_parameter_that_is_registered_twice_keeps_its_value():
    """A PyroParam is in the store under its name, and unconstrained under the module's where pyro.module has it."""

    class Encoder(PyroModule):
        def __init__(self):
            super().__init__()
            self.scale = PyroParam(torch.tensor(2.0), constraint=constraints.positive)

        def forward(self):
            return self.scale

    encoder = Encoder()

    def guide():
        pyro.module("encoder", encoder)
        return encoder()

    with pyro.get_param_store().scope(), torch.no_grad():
        guide()
        scale = pyro.get_param_store()["scale"]
        trained = {name: value.clone() for name, value in pyro.get_param_store().items()}
        assert len(trained) == 2
        for value in (3.0, 0.5):
            given = trained | {"scale": torch.tensor(value), "encoder$$$scale_unconstrained": torch.tensor(value).log()}
            for _ in range(2):  # the module has the tensors of the time before
                with parameters_as(given):
                    assert [guide().item() for _ in range(3)] == [value] * 3
                assert given["scale"].item() == value
    assert scale.item() == pytest.approx(2.0)
