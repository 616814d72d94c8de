"""Automatic guides fitted to single sequences, against the exact divergence of the best guide of their family."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as numpyro_dist
import pyro
import pyro.distributions as pyro_dist
import pytest
import torch

from ppl_tvae import cli, evaluate, train
from ppl_tvae.errors import UserError
from ppl_tvae.inference.numpyro.device import on_device as on_jax
from ppl_tvae.inference.numpyro.unamortised import unamortised_log_weights as numpyro_log_weights
from ppl_tvae.inference.pyro.device import on_device as on_torch
from ppl_tvae.inference.pyro.unamortised import unamortised_log_weights as pyro_log_weights
from ppl_tvae.inference.unamortised import Unamortised
from ppl_tvae.program import Program
from ppl_tvae.runs import open_run
from tests.inference import linear_gaussian
from tests.small_runs import BACKENDS, small_training

COUNT = 2000


def weights_of(backend, settings, parameters, frames, *plate_size, count=COUNT):
    host = {"numpyro": (numpyro, jnp.exp, numpyro_dist), "pyro": (pyro, torch.exp, pyro_dist)}[backend]
    program = linear_gaussian.program(*host, *plate_size)
    return weights_of_program(backend, program, settings, parameters, frames, count)


def weights_of_program(backend, program, settings, parameters, frames, count):
    if backend == "numpyro":
        with on_jax("cpu", "float64"):
            arguments = jax.tree.map(jnp.asarray, parameters), jax.random.key(1), jnp.asarray(frames)
            return np.asarray(numpyro_log_weights(program, *arguments, count, settings))
    with on_torch("cpu", "float64"):
        torch.manual_seed(1)
        values = {name: torch.tensor(value) for name, value in parameters.items()}
        return pyro_log_weights(program, values, torch.tensor(frames), count, settings).numpy()


def divergence_of_the_best_diagonal_normal(values):
    """KL of the diagonal normal with the precisions of the posterior from the posterior itself: nats."""
    coupling, loading = values["coupling"], values["loading"]
    prior = np.linalg.inv([[1, coupling], [coupling, 1 + coupling**2]])
    precision = prior + loading @ loading.T / linear_gaussian.NOISE**2
    return 0.5 * np.log(np.prod(np.diag(precision)) / np.linalg.det(precision))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["auto-normal", "auto-low-rank"])
def test_fitted_guides_have_the_divergence_of_the_best_of_their_family(name, backend):
    """A normal of rank one and a diagonal holds the posterior of two latents; a diagonal one misses by a known KL."""
    parameters, frames = linear_gaussian.parameters(), linear_gaussian.observations(2)
    settings = Unamortised(name, steps=1500, learning_rate=0.03)
    log_weights = weights_of(backend, settings, parameters, frames)
    assert log_weights.shape == (COUNT, 2)
    gap = linear_gaussian.log_evidence(parameters, frames) - log_weights.mean(axis=0)
    best = divergence_of_the_best_diagonal_normal(parameters) if name == "auto-normal" else 0.0
    assert best == 0 or best > 0.1
    np.testing.assert_allclose(gap, best, atol=0.04)  # what is left of Adam's noise, and 2000 draws


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["auto-normal", "auto-low-rank"])
def test_a_fit_by_default_reaches_latents_that_are_not_used(name, backend):
    """Twenty standard normal latents, of which the frame sees one: their posterior is a diagonal normal."""
    host, dist = {"numpyro": (numpyro, numpyro_dist), "pyro": (pyro, pyro_dist)}[backend]

    def model(frames):
        with host.plate("sequences", frames.shape[0]):
            z = host.sample("z", dist.Normal(0.0, 1.0).expand((20,)).to_event(1))
            host.sample("x", dist.Normal(z[..., 0], 0.5), obs=frames[:, 0, 0, 0, 0])

    def guide(frames):
        with host.plate("sequences", frames.shape[0]):
            host.sample("z", dist.Normal(0.0, 1.0).expand((20,)).to_event(1))

    frames = np.full((1, 1, 1, 1, 1), 0.7)
    log_weights = weights_of_program(backend, Program(model, guide), Unamortised(name), {}, frames, 500)
    truth = -0.5 * np.log(2 * np.pi * 1.25) - 0.5 * 0.7**2 / 1.25
    assert log_weights.shape == (500, 1)
    assert abs(log_weights.mean() - truth) < 0.02 * 20  # of each latent a hundredth of a nat, and Adam's noise


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["auto-normal", "auto-low-rank"])
def test_a_fit_begins_where_the_guide_is(name, backend):
    """From where the hosts would begin, within 2 of zero, twenty steps lead nowhere near to it."""
    host, dist = {"numpyro": (numpyro, numpyro_dist), "pyro": (pyro, pyro_dist)}[backend]

    def model(frames):
        with host.plate("sequences", frames.shape[0]):
            z = host.sample("z", dist.Normal(0.0, 100.0).expand((1,)).to_event(1))
            host.sample("x", dist.Normal(z[..., 0], 1.0), obs=frames[:, 0, 0, 0, 0])

    def guide(frames):
        with host.plate("sequences", frames.shape[0]):
            host.sample("z", dist.Normal(50.0, 0.1).expand((1,)).to_event(1))

    frames = np.full((1, 1, 1, 1, 1), 50.0)
    log_weights = weights_of_program(backend, Program(model, guide), Unamortised(name, 20), {}, frames, 50)
    truth = -0.5 * np.log(2 * np.pi * 10_001) - 0.5 * 50**2 / 10_001
    assert -5 < log_weights.mean() - truth < 0.5


@pytest.mark.parametrize("backend", BACKENDS)
def test_fits_have_noise_of_their_own_and_the_rate_that_is_asked_for(backend):
    """The same sequence twice."""
    parameters, frames = linear_gaussian.parameters(), np.repeat(linear_gaussian.observations(1), 2, axis=0)
    slow, fast = (
        weights_of(backend, Unamortised("auto-normal", 3, rate), parameters, frames, count=3) for rate in (1e-6, 0.3)
    )
    assert (np.abs(slow[:, 0] - slow[:, 1]) > 1e-6).all()
    assert (np.abs(slow - fast) > 1e-3).all()


def test_the_learning_rate_falls_to_a_hundredth():
    assert Unamortised("auto-normal", steps=300).decay ** 300 == pytest.approx(0.01)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_fit_beats_the_amortised_guide_and_leaves_the_run_alone(backend, tmp_path, capsys):
    run = train(small_training(tmp_path, backend), tmp_path / "run", quiet=True)
    before = run.parameters()
    settings = {"particles": (10,), "max_sequences": 2, "estimators": ("elbo",), "quiet": True}
    (own,) = evaluate(run, **settings)
    arguments = ["evaluate", str(run.path), "--estimators", "elbo", "--particles", "10", "--max-sequences", "2"]
    assert (
        cli.main([*arguments, "--guide", "auto-normal", "--guide-steps", "600", "--guide-learning-rate", "0.03"]) == 0
    )
    assert "elbo-auto-normal" in capsys.readouterr().out
    (_, fitted) = open_run(run.path).evaluations()
    assert (fitted["guide_name"], fitted["guide_steps"], fitted["guide_learning_rate"]) == ("auto-normal", 600, 0.03)
    assert min(np.subtract(fitted["per_sequence"], own["per_sequence"])) > 0
    assert all(np.array_equal(value, before[name]) for name, value in run.parameters().items())
    evaluate(run, **settings)  # asks the same question as the first time, and leaves the fitted record alone
    assert sorted(record.get("guide_name", "own") for record in open_run(run.path).evaluations()) == [
        "auto-normal",
        "own",
    ]


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_plate_of_more_sequences_than_there_are_frames_is_refused(backend):
    """Its scale would be that of the model's density and not of every automatic guide's."""
    parameters, frames = linear_gaussian.parameters(), linear_gaussian.observations(2)
    with pytest.raises(UserError, match=r"plate of as many sequences as there are frames.*found the scale 100"):
        weights_of(backend, Unamortised("auto-normal"), parameters, frames, 100)


def test_bad_settings(tmp_path, capsys):
    run = train(small_training(tmp_path, "pyro"), tmp_path / "run", quiet=True)
    for guide, word in ((Unamortised("auto-norm"), "auto-normal"), (Unamortised("auto-normal", 0), "step")):
        with pytest.raises(UserError, match=word):
            evaluate(run, guide=guide)
    with pytest.raises(UserError, match="found ais"):
        evaluate(run, guide=Unamortised("auto-normal"), estimators=("elbo", "ais"))
    with pytest.raises(UserError, match="positive learning rate"):
        evaluate(run, guide=Unamortised("auto-normal", learning_rate=float("inf")))
    assert cli.main(["evaluate", str(run.path), "--guide", ""]) == 2
    assert "automatic guide" in capsys.readouterr().err
    assert cli.main(["evaluate", str(run.path), "--guide-steps", "3"]) == 2
    assert "expected --guide with" in capsys.readouterr().err
