"""The plain twins compute what ours compute, and the table is made of the times that were measured."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax.tree_util import tree_map

from benchmarks import plain_jax, plain_torch
from benchmarks.rounds import interleaved, ratio
from benchmarks.setting import PLAIN, PPL, PRODUCTS, RENDERING, latent_shape, layers, paper_experiment
from benchmarks.training_step import cells, rows_of
from ppl_tvae.assembly import assemble, lattice_of
from ppl_tvae.inference.numpyro import objectives as numpyro_objectives
from ppl_tvae.inference.numpyro import tracing as numpyro_tracing
from ppl_tvae.inference.numpyro.device import on_device as on_jax
from ppl_tvae.inference.pyro import objectives as pyro_objectives
from ppl_tvae.inference.pyro import tracing as pyro_tracing
from ppl_tvae.inference.pyro.device import on_device as on_torch
from ppl_tvae.inference.pyro.importance import log_weights_at
from tests.small import FRAME, random_parameters, small_experiment, small_frames

BATCH = 3


@pytest.fixture
def case():
    """A small program, its parameters, frames, and the noise of z and u."""
    rng = np.random.default_rng(0)
    experiment = small_experiment()
    shape = latent_shape(experiment)
    frames, noise = small_frames(experiment, BATCH, rng), rng.standard_normal((2, BATCH, *shape))
    return experiment, shape, random_parameters(experiment, rng), frames, noise


def drawn(posteriors, noise):
    """Latents by site name from the noise."""
    return {name: posteriors[name].mean + posteriors[name].variance ** 0.5 * noise[k] for k, name in enumerate("zu")}


def test_plain_torch_has_the_loss_of_the_pyro_program(case):
    experiment, shape, parameters, frames, noise = case
    with on_torch("cpu", "float64"), torch.no_grad():
        parameters = {name: torch.tensor(value) for name, value in parameters.items()}
        frames, noise = torch.tensor(frames), torch.tensor(noise)
        neighborhood, pixels = lattice_of(experiment).neighborhood, int(np.prod(FRAME))
        plain = plain_torch.TVAE(neighborhood, shape, experiment.hidden, pixels, experiment.mu, experiment.epsilon)
        plain.load_state_dict(parameters)  # strict: the names and shapes are ours, all of them
        program = assemble(experiment, "pyro")
        with pyro_tracing.parameters_as(parameters):
            guide = pyro_tracing.latent_sites(pyro_tracing.program_traces(program, frames)[0])
            latents = drawn({name: site["fn"] for name, site in guide.items()}, noise)
            bounds = pyro_objectives.elbo(*pyro_tracing.traces_at(program, frames, latents))
        loss = plain.loss(frames, noise)
    expected = -np.asarray(bounds).mean() / experiment.num_timesteps
    np.testing.assert_allclose(np.asarray(loss), expected, rtol=1e-12)


def test_plain_jax_has_the_loss_of_the_numpyro_program(case):
    experiment, shape, parameters, frames, noise = case
    with on_jax("cpu", "float64"):
        parameters, frames, noise = tree_map(jnp.asarray, (parameters, frames, noise))
        initial = plain_jax.initial_parameters(jax.random.key(0), shape, experiment.hidden, int(np.prod(FRAME)), 30.0)
        assert tree_map(jnp.shape, initial) == tree_map(jnp.shape, parameters)
        program = assemble(experiment, "numpyro")
        traces = numpyro_tracing.program_traces(program, parameters, jax.random.key(0), frames)
        guide = numpyro_tracing.latent_sites(traces[0])
        latents = drawn({name: site["fn"] for name, site in guide.items()}, noise)
        bounds = numpyro_objectives.elbo(*numpyro_tracing.traces_at(program, parameters, frames, latents))
        loss = plain_jax.loss(parameters, frames, noise, lattice_of(experiment).neighborhood, experiment.epsilon)
    expected = -np.asarray(bounds).mean() / experiment.num_timesteps
    np.testing.assert_allclose(np.asarray(loss), expected, rtol=1e-12)


def test_plain_twins_have_the_log_weights_of_the_programs(case):
    """At the same noise, in chunks that do not divide."""
    experiment, shape, parameters, frames, _ = case
    noise = np.random.default_rng(1).standard_normal((5, 2, BATCH, *shape))
    neighborhood, pixels = lattice_of(experiment).neighborhood, int(np.prod(FRAME))
    with on_torch("cpu", "float64"), torch.no_grad():
        values = {name: torch.tensor(value) for name, value in parameters.items()}
        plain = plain_torch.TVAE(neighborhood, shape, experiment.hidden, pixels, experiment.mu, experiment.epsilon)
        plain.load_state_dict(values)
        by_torch = plain.log_weights(torch.tensor(frames), 5, 2, torch.tensor(noise)).numpy()
        assert plain.log_weights(torch.tensor(frames), 5, 2).shape == (5, BATCH)
        program, ours = assemble(experiment, "pyro"), []
        with pyro_tracing.parameters_as(values):
            guide = pyro_tracing.latent_sites(pyro_tracing.program_traces(program, torch.tensor(frames))[0])
        for particle in torch.tensor(noise):
            latents = drawn({name: site["fn"] for name, site in guide.items()}, particle)
            ours.append(log_weights_at(program, values, torch.tensor(frames), latents).numpy())
    with on_jax("cpu", "float64"):
        arrays = tree_map(jnp.asarray, (parameters, noise))
        settings = (5, 2, shape, neighborhood, experiment.epsilon)
        by_jax = plain_jax.log_weights(*arrays, jax.random.key(0), jnp.asarray(frames), *settings)
    np.testing.assert_allclose(by_torch, np.stack(ours), rtol=1e-10)
    np.testing.assert_allclose(np.asarray(by_jax), np.stack(ours), rtol=1e-10)


def test_plain_twins_learn(case):
    """Twenty steps on the same frames: a twin that forgets its update would be fast for the wrong reason."""
    experiment, shape, _, frames, _ = case
    neighborhood, pixels = lattice_of(experiment).neighborhood, int(np.prod(FRAME))
    with on_torch("cpu", "float64"):
        torch.manual_seed(0)
        model = plain_torch.TVAE(neighborhood, shape, experiment.hidden, pixels, experiment.mu, experiment.epsilon)
        losses = plain_torch.Trainer(model, 1e-2).advance([torch.tensor(frames)] * 20)
        assert losses[-5:].mean() < 0.9 * losses[:5].mean()
    with on_jax("cpu", "float64"):
        initial = plain_jax.initial_parameters(jax.random.key(0), shape, experiment.hidden, pixels, experiment.mu)
        traced = []
        fixed = (lambda tables, plan: traced.append(plan) or tables, jnp.asarray(frames))
        trainer = plain_jax.Trainer(initial, neighborhood, shape, experiment.epsilon, 1e-2, *fixed)
        losses = trainer.advance(jnp.zeros(20))
        assert losses[-5:].mean() < 0.9 * losses[:5].mean()
        compiled_for = len(traced)
        trainer.advance(jnp.zeros(20))
        assert len(traced) == compiled_for  # compiling again would be timed as training


def test_paper_layers():
    """Encoders 2352-972-648-648, decoder 324-648-972-2352; only the encoders' inputs need no gradient."""
    sizes = layers(paper_experiment("pyro"), 2352)
    encoder = [(2352, 972, False), (972, 648, True), (648, 648, True)]
    assert sizes == [*encoder, *encoder, (324, 648, True), (648, 972, True), (972, 2352, True)]


def test_ratios_are_taken_within_rounds():
    """A machine that is half as fast from the second round on changes no ratio."""
    times = {
        (PPL, True): [1.2, 2.4, 2.4],
        (PLAIN, True): [1.0, 2.0, 2.0],
        (RENDERING, True): [0.1, 0.2, 0.2],
        (PRODUCTS, False): [0.6, 1.2, 1.2],
    }
    assert ratio(times[PPL, True], times[PLAIN, True]) == pytest.approx(1.2)
    row = rows_of(times, {PPL: "Pyro", PLAIN: "PyTorch alone"}, 8, 144)[0]
    assert cells(row) == {
        "contender": "Pyro", "batch": "8", "data": "rendered", "ms/step": "2400.0", "frames/s": "60", "/ plain": "1.20",
        "products": "50%", "rendering": "8.3%",
    }  # fmt: skip


def test_contenders_take_turns():
    turns = []
    runs = {name: lambda num_steps, name=name: turns.append(name) for name in "abc"}
    times = interleaved(runs, 0.0)
    assert turns[9:] == [*"abc", *"cba", *"abc"]  # the first nine are the warm-up
    assert {name: len(rounds) for name, rounds in times.items()} == dict.fromkeys("abc", 3)
