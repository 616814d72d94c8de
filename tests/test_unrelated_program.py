"""A program that has nothing to do with capsules: Bayesian linear regression of each sequence on time."""

import random

import numpy as np
import pytest

from ppl_tvae import Experiment, cli
from ppl_tvae.assembly import assemble
from ppl_tvae.own_program import naming_the_program
from ppl_tvae.runs import open_run

PROGRAM = '''
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist

TIME = jnp.linspace(-1.0, 1.0, 6)
NOISE = 0.1


def model(frames):
    """y[s] = intercept + slope * time[s] + noise, in each sequence anew."""
    with numpyro.plate("sequences", frames.shape[0]):
        intercept = numpyro.sample("intercept", dist.Normal(0.5, 0.2))
        slope = numpyro.sample("slope", dist.Normal(0.0, 0.2))
        mean = intercept[..., None] + slope[..., None] * TIME
        numpyro.sample("x", dist.Normal(mean[..., None, None, None], NOISE).to_event(4), obs=frames)


def guide(frames):
    y = frames.reshape(frames.shape[0], -1)
    weight = numpyro.param("guide.weight", jnp.zeros((2, TIME.shape[0])))
    bias = numpyro.param("guide.bias", jnp.zeros(2))
    log_scale = numpyro.param("guide.log_scale", jnp.zeros(2) - 1.0)
    loc, scale = y @ weight.T + bias, jnp.exp(log_scale)
    with numpyro.plate("sequences", frames.shape[0]):
        numpyro.sample("intercept", dist.Normal(loc[:, 0], scale[0]))
        numpyro.sample("slope", dist.Normal(loc[:, 1], scale[1]))
'''


def exact_log_evidence(y):
    """(N,), nats per frame."""
    time = np.linspace(-1, 1, 6)
    covariance = 0.2**2 * (1 + np.outer(time, time)) + 0.1**2 * np.eye(6)
    residual = y - 0.5
    squares = np.einsum("ns,st,nt->n", residual, np.linalg.inv(covariance), residual)
    return -0.5 * (squares + np.linalg.slogdet(2 * np.pi * covariance)[1]) / 6


def test_regression_trains_and_is_evaluated_to_its_exact_evidence(tmp_path, monkeypatch, capsys):
    """Its posterior is in the guide's family (time is centred), so the bounds reach log p(x); ArviZ gets its draws."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "regression.py").write_text(PROGRAM)
    assert len(PROGRAM.strip().splitlines()) <= 40
    rng = np.random.default_rng(0)
    y = rng.normal(0.5, 0.2, (200, 1)) + rng.normal(0, 0.2, (200, 1)) * np.linspace(-1, 1, 6)
    y = np.clip(y + 0.1 * rng.standard_normal(y.shape), 0, 1)
    np.savez("lines.npz", sequences=y[..., None, None, None].astype(np.float32))
    settings = ["--data", "lines.npz", "--likelihood", "normal", "--steps", "3000", "--batch-size", "16"]
    more = ["--learning-rate", "0.01", "--schedule", "cosine", "--float", "float64", "--out", "run"]
    assert cli.main(["train", "--model", "regression.py", *settings, *more]) == 0
    assert cli.main(["evaluate", "run", "--particles", "1,500"]) == 0
    assert cli.main(["diagnose", "run", "--draws", "30", "--sequences", "2", "--simulated", "64"]) == 0
    assert "equivariance: not measured" in capsys.readouterr().out
    run = open_run("run")
    records = {(r["estimator"], r["num_particles"]): r for r in run.evaluations()}
    bound, many = (np.asarray(records[key]["per_sequence"]) for key in (("iwae", 1), ("iwae", 500)))
    from ppl_tvae.assembly import data_of

    data = data_of(run.experiment)
    exact = exact_log_evidence(data.source.pixels[data.test_plan(200).image].reshape(-1, 6).astype(np.float64))
    assert len(exact) == len(many) > 10
    np.testing.assert_allclose(many, exact, atol=0.01)
    assert (exact - bound).mean() == pytest.approx(0, abs=0.02)
    assert records["iwae", 500]["notes"]["verdict"].startswith("reliable")
    calibration = run.diagnosis()["calibration"]
    assert all(each["verdict"].startswith("within") for each in calibration.values())


@pytest.mark.parametrize("backend", ["numpyro", "pyro"])
def test_what_is_drawn_when_the_file_runs_is_of_the_seed(backend, tmp_path):
    """Each command runs the file anew: what it draws must be what the parameters were trained with."""
    path = tmp_path / "drawn.py"
    path.write_text(
        f"import random, {backend}, numpy\nDRAWN = random.random(), numpy.random.rand()\n"
        "def model(frames): return DRAWN\ndef guide(frames): return DRAWN\n"
    )

    def drawn(seed):
        return assemble(Experiment(model=str(path), backend=backend, seed=seed).resolved(), backend).model(None)

    before = random.getstate()
    assert drawn(0) == drawn(0)
    assert drawn(0)[0] != drawn(1)[0]
    assert drawn(0)[1] != drawn(1)[1]
    assert random.getstate() == before


def test_too_little_memory_is_not_the_programs_mistake(tmp_path):
    path = tmp_path / "program.py"
    path.write_text(PROGRAM)
    with pytest.raises(MemoryError), naming_the_program(Experiment(model=str(path))):
        raise MemoryError
