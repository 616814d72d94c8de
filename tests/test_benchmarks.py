"""The plain twins compute what ours compute, and the table is made of the times that were measured."""

import json
from dataclasses import replace
from time import sleep

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax.tree_util import tree_map

from benchmarks import evaluation, gpu, growth, plain_jax, plain_torch, torch_contenders
from benchmarks.released_step import Released
from benchmarks.released_step import Trainer as ReleasedTrainer
from benchmarks.rounds import interleaved, ratio
from benchmarks.setting import (
    COMPILED,
    PLAIN,
    PPL,
    PRODUCTS,
    RECORDED,
    RELEASED,
    RENDERING,
    UNRECORDED,
    digit_sequences,
    latent_shape,
    layers,
    paper_experiment,
)
from benchmarks.training_step import beside_released, cells, rows_of
from ppl_tvae.assembly import assemble, lattice_of
from ppl_tvae.inference.numpyro import objectives as numpyro_objectives
from ppl_tvae.inference.numpyro import tracing as numpyro_tracing
from ppl_tvae.inference.numpyro.device import on_device as on_jax
from ppl_tvae.inference.pyro import objectives as pyro_objectives
from ppl_tvae.inference.pyro import tracing as pyro_tracing
from ppl_tvae.inference.pyro.device import on_device as on_torch
from tests.small import FRAME, random_parameters, small_experiment, small_frames
from tests.small_runs import small_training
from tests.weights import pyro_log_weights_at

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
            ours.append(pyro_log_weights_at(program, values, torch.tensor(frames), latents).numpy())
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


def test_released_code_sums_the_neighbours_of_our_lattice():
    """W u**2 of the paper's MNIST model: 13 frames, 3 positions, circular."""
    experiment = paper_experiment("pyro")
    shape = latent_shape(experiment)
    u = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        released = torch_contenders.released_model().energy(u.reshape(-1, shape[1] * shape[2], 1, 1))
    np.testing.assert_allclose(released.reshape(u.shape), lattice_of(experiment).energy(u), rtol=1e-5)


def ours_of(released):
    """The released code's convolutions as parameters of the twin, whose pixels are flattened channel last."""

    def weight(layer, transposed):
        own = layer.weight.transpose(0, 1) if transposed else layer.weight  # (out, in, height, width)
        if transposed:
            return own.permute(2, 3, 0, 1).flatten(0, 2)
        return own.permute(0, 2, 3, 1).flatten(1)

    found = {"mu": released.mu}
    for name, network in {
        "guide.z": released.encoder_z,
        "guide.u": released.encoder_u,
        "decoder": released.decoder,
    }.items():
        for index in (0, 2, 4):
            found[f"{name}.{index}.weight"] = weight(network[index], name == "decoder")
            height, width = network[index].kernel_size if name == "decoder" else (1, 1)
            found[f"{name}.{index}.bias"] = network[index].bias.repeat(height * width)
    return found


def test_released_code_has_our_loss():
    """At the same parameters, grey frames and noise; its log-variances are held at zero, for ours saturate."""
    experiment = small_experiment(capsule_dim=4, spatial_width=1, hidden=(24, 16))
    shape, cells_ = latent_shape(experiment), 8
    with on_torch("cpu", "float64"), torch.no_grad():
        torch.manual_seed(0)
        released = Released(*shape, window=3, width=1, size=6, mu=30.0)
        for encoder in (released.encoder_z, released.encoder_u):
            encoder[4].weight[cells_:], encoder[4].bias[cells_:] = 0.0, 0.0
        settings = (lattice_of(experiment).neighborhood, shape, experiment.hidden, 6 * 6 * 3, 30.0, 1e-6)
        plain = plain_torch.TVAE(*settings)
        plain.load_state_dict(ours_of(released))
        frames = torch.rand(BATCH, shape[0], 6, 6, 3)
        torch.manual_seed(1)
        found = released.loss(frames.flatten(0, 1).permute(0, 3, 1, 2))
        torch.manual_seed(1)
        expected = plain.loss(frames, torch.stack([torch.randn(BATCH, *shape) for _ in "zu"]))
    np.testing.assert_allclose(float(found), float(expected), rtol=1e-12)


def test_released_code_takes_steps():
    """Frames are drawn, parameters move, and W stays as it is."""
    torch.manual_seed(0)
    model = Released(4, 2, 4, window=3, width=1, size=6, mu=30.0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    images = np.random.default_rng(0).integers(0, 256, (5, 6, 6), dtype=np.uint8)
    ReleasedTrainer(model, images, 2).advance(2)
    moved = {name for name, value in model.state_dict().items() if (value != before[name]).any()}
    assert moved == before.keys() - {"sum_of_neighbours.weight"}


def test_steps_on_a_cpu_need_no_graph_also_where_they_say_how_they_multiply():
    with on_torch("cpu", "float32", "bfloat16"):
        run = torch_contenders.contenders(digit_sequences(), 1)[PPL, True]
        assert len(run(1)) == 1


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
        "/ released": "", "products": "50%", "rendering": "8.3%",
    }  # fmt: skip


def test_a_step_with_a_graph_is_compared_with_the_twin_that_has_one():
    times = {
        (PPL, True): [3.0], (UNRECORDED, True): [8.0], (PLAIN, True): [4.0], (RECORDED, True): [2.0],
        (COMPILED, True): [5.0], (RENDERING, True): [1.0], (PRODUCTS, False): [1.0],
    }  # fmt: skip
    rows = rows_of(times, {PLAIN: "PyTorch alone"}, 8, 144)
    to_plain = {row["kind"]: row["to_plain"] for row in rows if "to_plain" in row}
    assert to_plain == {PPL: 1.5, UNRECORDED: 2.0, PLAIN: 1.0, RECORDED: 0.5, COMPILED: 1.25}


def test_speed_beside_the_released_code():
    """Of the same batch, for whatever draws its data, in either process; the parts of a step have none."""
    parts = {(PLAIN, True): [4.0], (PLAIN, False): [3.0], (RENDERING, True): [1.0], (PRODUCTS, False): [1.0]}
    numpyro = rows_of(parts, {PLAIN: "JAX alone"}, 8, 144) + rows_of(parts, {PLAIN: "JAX alone"}, 512, 9216)
    torch_rows = rows_of(parts | {(RELEASED, True): [8.0]}, {PLAIN: "PyTorch alone"}, 8, 144)
    found = [
        (row["batch"], cells(row)["contender"], cells(row)["/ released"])
        for row in beside_released(numpyro + torch_rows)
    ]
    assert [row for row in found if row[2]] == [
        (8, "JAX alone", "2.0"),
        (8, "PyTorch alone", "2.0"),
        (8, f"{RELEASED} (PyTorch)", "1.0"),
    ]


def test_contenders_take_turns():
    turns = []
    runs = {name: lambda num_steps, name=name: turns.append(name) for name in "abc"}
    times = interleaved(runs, 0.0)
    assert turns[9:] == [*"abc", *"cba", *"abc"]  # the first nine are the warm-up
    assert {name: len(rounds) for name, rounds in times.items()} == dict.fromkeys("abc", 3)


def test_a_slow_contender_warms_up_once(monkeypatch):
    """Twice in all: to compile, and to find how many steps a chunk has. A longer chunk would be compiled anew."""
    monkeypatch.setattr("benchmarks.rounds.SECONDS_PER_CHUNK", 0.01)
    for shortest_chunk in (1, 4):
        lengths = []
        interleaved({"slow": lambda count, lengths=lengths: lengths.append(count) or sleep(0.02)}, 0.0, shortest_chunk)
        assert lengths == 5 * [shortest_chunk]


def test_projection_of_the_papers_run():
    """Two seconds to begin and a millisecond a step: 602 seconds."""
    assert gpu.projection("numpyro", 3, (1, 1.0), (2, 2.0)).startswith("numpyro, 3 seeds at once: 600,000 steps")
    sentence = gpu.projection("pyro", 1, (1_000, 3.0), (11_000, 13.0))
    assert sentence.startswith(
        "pyro: 600,000 steps of 8 sequences would take 10.0 minutes: 2.0 s to begin, 1.000 ms a step"
    )


def test_the_run_that_is_projected_is_the_papers():
    experiment = gpu.papers_run("numpyro", "cpu").resolved()
    assert (experiment.steps, experiment.optimizer, experiment.temporal_window) == (gpu.PAPER_STEPS, "sgd", 13)


def test_no_projection_from_noise():
    assert "no projection, 22 steps took no longer than 2" in gpu.projection("pyro", 1, (2, 3.0), (22, 2.0))


def test_what_the_projection_times(tmp_path, monkeypatch):
    """Whole trainings, one longer than the other by the number of steps that is asked for."""
    monkeypatch.setattr(gpu, "papers_run", lambda backend, device: small_training(tmp_path, backend, device=device))
    trained, train, train_seeds = [], gpu.train, gpu.train_seeds
    monkeypatch.setattr(gpu, "train", lambda *arguments: trained.append([train(*arguments)]))
    monkeypatch.setattr(gpu, "train_seeds", lambda *arguments: trained.append(train_seeds(*arguments)))
    gpu.timed_trainings("pyro", 1, "cpu", 30)
    found = gpu.timed_trainings("numpyro", 2, "cpu", 30)
    steps = [[run.experiment.steps for run in runs] for runs in trained]
    # The first loads libraries, and is not timed.
    assert steps == [[3], [3], [33], [3, 3], [3, 3], [33, 33]]
    assert [steps for steps, _ in found] == [3, 33]
    assert all(seconds > 0 for _, seconds in found)


def test_products_of_a_step():
    """By hand: 50 million operations a frame in the layers, frames needing no gradient, and those of W."""
    (base, *_), by_size = growth.settings("pyro", "cpu", "S"), {}
    weights = 2352 * 972, 972 * 648, 648 * 648, 324 * 648
    forward = 2 * (weights[0] + weights[1] + weights[2]) + weights[3] + weights[1] + weights[0]
    operations = 144 * 2 * (3 * forward - 2 * weights[0])
    assert operations / 144 == pytest.approx(49.6e6, rel=0.01)
    assert growth.products(base) == operations + 4 * 8 * 18 * 324**2
    for size in growth.SIZES:
        first, *others = map(growth.products, growth.settings("pyro", "cpu", size))
        by_size[size] = [other / first for other in others]
    assert by_size["batch"] == [2, 4]
    assert by_size["S"][0] > 2  # W grows as its square
    assert 1 < by_size["C"][0] < by_size["D"][0] < by_size["K"][0] < 2


def test_growth_is_measured_in_both_backends(tmp_path, monkeypatch):
    small = small_training(tmp_path, "numpyro", device="cpu", temporal_window=3)
    monkeypatch.setattr(growth, "paper_experiment", lambda backend: replace(small, backend=backend).resolved())
    monkeypatch.setattr(growth, "SIZES", {"C": "num_capsules", "batch": "batch_size"})
    monkeypatch.setattr(growth, "DOUBLINGS", (1, 2))
    begun, trainer_of = [], growth.trainer_of
    monkeypatch.setattr(growth, "trainer_of", lambda *arguments: begun.append(arguments[0]) or trainer_of(*arguments))
    for backend in ("numpyro", "pyro"):
        rows = growth.measured(backend, "cpu", 0.0)
        assert [row["value"] for row in rows] == [2, 4, 8, 16]
        assert [row["measured"] for row in rows[::2]] == [row["predicted"] for row in rows[::2]] == [1, 1]
        assert all(row["ms"] > 0 for row in rows)
    assert len(begun) == len(set(begun)) == 6  # what two sizes begin with is one trainer


def test_the_table_of_growth(monkeypatch, capsys, tmp_path):
    row = {"size": "C", "value": 36, "ms": 12.345, "measured": 1.25, "predicted": 1.13}
    monkeypatch.setattr(growth, "_in_own_process", lambda backend, options: [row])
    growth.main(["--backends", "pyro", "--json", str(tmp_path / "rows.json")])
    assert "| pyro | C | 36 | 12.35 | 1.25 | 1.13 |" in capsys.readouterr().out
    assert json.loads((tmp_path / "rows.json").read_text())["rows"] == [{"backend": "pyro", **row}]


def test_the_tables_of_evaluation(monkeypatch, capsys, tmp_path):
    asked = []
    found = {
        "train": None,
        "memory": {"sequences": 5, "mebibytes": 600.4, "seconds": 1.5},
        "time": {"ours_ms": 20.0, "plain_ms": 10.0, "to_plain": 2.0, "networks_share": 0.5},
    }
    monkeypatch.setattr(evaluation, "_in_own_process", lambda task: asked.append(task) or found[task[0]])
    evaluation.main(
        ["--backends", "pyro", "--particles", "10", "--sequences", "5", "--json", str(tmp_path / "rows.json")]
    )
    assert [task[-1] for task in asked if task[0] != "train"] == ["cpu", "cpu"]
    printed = capsys.readouterr().out
    assert "| pyro | 10 | 5 | 600 | 1.5 |" in printed
    assert "| pyro | 128 | 8 | 20 | 10 | 2.00 | 50% |" in printed
    assert json.loads((tmp_path / "rows.json").read_text())["memory"][0]["mebibytes"] == 600.4
