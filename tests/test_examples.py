"""The example programs with other networks and another W, in both backends, and the script that predicts with them."""

import importlib.util
from collections import OrderedDict
from contextlib import contextmanager
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pyro
import pytest
import torch
from PIL import Image

import ppl_tvae
from ppl_tvae.inference.numpyro import checks as numpyro_checks
from ppl_tvae.inference.numpyro import importance as numpyro_importance
from ppl_tvae.inference.numpyro import tracing as numpyro_tracing
from ppl_tvae.inference.numpyro.device import on_device as on_jax
from ppl_tvae.inference.pyro import checks as pyro_checks
from ppl_tvae.inference.pyro import importance as pyro_importance
from ppl_tvae.inference.pyro import tracing as pyro_tracing
from ppl_tvae.inference.pyro.device import on_device as on_torch
from ppl_tvae.models.initial import shared_draws
from ppl_tvae.own_program import load_program
from tests.conftest import STANDARD_ERRORS
from tests.documents import ROOT
from tests.weights import numpyro_log_weights_at, pyro_log_weights_at

EXAMPLES = ("convolutional", "causal")
BACKENDS = ("numpyro", "pyro")
EACH = [(example, backend) for example in EXAMPLES for backend in BACKENDS]
S, C, D = 18, 18, 18  # as the examples fix them
GIVEN = 12


def program_file(example, backend):
    return ROOT / "examples" / f"{example}_{backend}.py"


def imported(path):
    """The file as a module."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def small_frames(rng, side=8, batch=2):
    return (rng.random((batch, S, side, side, 3)) > 0.5).astype(np.float64)


@cache
def initial_parameters(example, backend, precision="float64"):
    """What a run with seed 7 starts from on frames of 8 x 8, by name, on the CPU."""
    program, frames = load_program(program_file(example, backend)), np.zeros((1, S, 8, 8, 3))
    with shared_draws(7):
        if backend == "numpyro":
            with on_jax("cpu", precision):
                parts = numpyro_tracing.program_traces(program, {}, jax.random.key(0), jnp.asarray(frames, precision))
                sites = {name: site for part in parts for name, site in part.items()}
                return {name: np.asarray(site["value"]) for name, site in sites.items() if site["type"] == "param"}
        with on_torch("cpu", precision), pyro.get_param_store().scope() as store, torch.no_grad():
            pyro_tracing.program_traces(program, torch.tensor(frames, dtype=getattr(torch, precision)))
    return {name: value.numpy(force=True) for name, value in store["params"].items()}


def moved(parameters, rng):
    """Not what a run starts from, where biases are zero, but a point nearby."""
    return {name: value + 0.05 * rng.standard_normal(value.shape) for name, value in parameters.items()}


# The programs


def check(example, backend, frames):
    program = load_program(program_file(example, backend))
    if backend == "numpyro":
        with on_jax("cpu", "float32"):
            numpyro_checks.check_program(program, jnp.asarray(frames, jnp.float32))
    else:
        with on_torch("cpu", "float32"):
            pyro_checks.check_program(program, torch.tensor(frames, dtype=torch.float32))


@pytest.mark.parametrize(("example", "backend"), EACH)
def test_programs_pass_the_check(example, backend):
    check(example, backend, small_frames(np.random.default_rng(0), side=28))


@pytest.mark.parametrize("backend", BACKENDS)
def test_sides_that_four_does_not_divide_are_refused(backend):
    frames = small_frames(np.random.default_rng(0), side=6)
    with pytest.raises(ppl_tvae.UserError, match="to have the shape of the frames"):
        check("convolutional", backend, frames)


@pytest.mark.parametrize("precision", ["float32", "float64"])
@pytest.mark.parametrize("example", EXAMPLES)
def test_backends_start_from_the_same_numbers(example, precision):
    ours, theirs = (initial_parameters(example, backend, precision) for backend in BACKENDS)
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert str(value.dtype) == precision
        np.testing.assert_array_equal(value, theirs[name], err_msg=name)


def test_convolutions_start_with_variance_one_over_fan_in():
    """A pixel of a transposed convolution with stride 2 meets a quarter of each kernel."""
    parameters = initial_parameters("convolutional", "numpyro")
    for name, fan_in in {
        "guide.z.0.weight": 3 * 16,
        "guide.u.2.weight": 32 * 16,
        "guide.z.4.weight": 64 * 4,  # of frames of 8 x 8
        "decoder.0.weight": C * D,
        "decoder.2.weight": 64 * 4,
        "decoder.4.weight": 32 * 4,
    }.items():
        draws = parameters[name] * fan_in**0.5
        assert abs(np.var(draws) - 1) < STANDARD_ERRORS * (2 / draws.size) ** 0.5, name
        assert not parameters[name.replace("weight", "bias")].any()


@pytest.mark.parametrize("example", EXAMPLES)
def test_backends_weigh_alike(example):
    """The same log weights at the same parameters, latents and frames."""
    rng = np.random.default_rng(2)
    frames = small_frames(rng)
    parameters = moved(initial_parameters(example, "pyro"), rng)
    latents = {name: rng.standard_normal((2, S, C, D)) for name in ("z", "u")}
    with on_torch("cpu", "float64"), torch.no_grad():
        program = load_program(program_file(example, "pyro"))
        arguments = jax.tree.map(torch.tensor, (parameters, frames, latents))
        theirs = pyro_log_weights_at(program, *arguments).numpy()
    with on_jax("cpu", "float64"):
        program = load_program(program_file(example, "numpyro"))
        arguments = jax.tree.map(jnp.asarray, (parameters, frames, latents))
        ours = np.asarray(numpyro_log_weights_at(program, *arguments))
    assert ours.shape == (2,)
    assert ours[0] != ours[1]
    np.testing.assert_allclose(ours, theirs, rtol=1e-10)


def test_convolutions_are_torchs_own_layers():
    """NumPyro's encoder and decoder, beside torch's modules that load the same parameters by name."""
    rng = np.random.default_rng(3)
    frames, z = small_frames(rng), rng.standard_normal((2, S, C, D))
    parameters = moved(initial_parameters("convolutional", "numpyro"), rng)
    with on_jax("cpu", "float64"):
        program = load_program(program_file("convolutional", "numpyro"))
        arguments = jax.tree.map(jnp.asarray, (parameters, frames, {"z": z, "u": z}))
        guided, modelled = numpyro_tracing.traces_at(program, *arguments)
        loc, logits = (np.asarray(value) for value in (
            guided["z"]["fn"].base_dist.loc, modelled["x"]["fn"].base_dist.logits
        ))  # fmt: skip
        t = np.asarray(modelled["t"]["value"])
    nn = torch.nn
    strided = {"kernel_size": 4, "stride": 2, "padding": 1}
    encoder = [nn.Conv2d(3, 32, **strided), nn.ReLU(), nn.Conv2d(32, 64, **strided), nn.ReLU(), nn.Linear(256, 648)]
    decoder = [nn.Linear(324, 256), nn.ReLU(), nn.ConvTranspose2d(64, 32, **strided), nn.ReLU(),
               nn.ConvTranspose2d(32, 3, **strided)]  # fmt: skip
    with torch.no_grad():
        network = with_parameters(encoder, parameters, "guide.z.", {4: nn.Flatten()})
        outputs = network(torch.tensor(frames.reshape(-1, 8, 8, 3).transpose(0, 3, 1, 2)))
        np.testing.assert_allclose(loc, outputs[:, : C * D].numpy().reshape(loc.shape), atol=1e-10)
        network = with_parameters(decoder, parameters, "decoder.", {2: nn.Unflatten(1, (64, 2, 2))})
        outputs = network(torch.tensor(t.reshape(-1, C * D))).numpy()
        np.testing.assert_allclose(logits, outputs.transpose(0, 2, 3, 1).reshape(logits.shape), atol=1e-10)


def with_parameters(layers, parameters, prefix, before):
    """The layers by number, other modules before some of them, loaded with the parameters of a prefix."""
    named = OrderedDict()
    for number, layer in enumerate(layers):
        if number in before:
            named[f"before_{number}"] = before[number]
        named[str(number)] = layer
    network = torch.nn.Sequential(named).double()
    own = {name.removeprefix(prefix): value for name, value in parameters.items() if name.startswith(prefix)}
    network.load_state_dict({name: torch.tensor(value) for name, value in own.items()})
    return network


@pytest.mark.parametrize(("example", "backend"), EACH)
def test_log_weights_are_drawn_by_jit_and_by_vmap(example, backend, monkeypatch):
    monkeypatch.setattr(pyro_importance, "is_vectorisable", lambda compute: compute() is not None)
    frames = small_frames(np.random.default_rng(4))
    parameters = initial_parameters(example, backend, "float32")
    program = load_program(program_file(example, backend))
    if backend == "numpyro":
        with on_jax("cpu", "float32"):
            parameters, frames = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), (parameters, frames))
            draw = numpyro_importance.log_weights(program, 3)
            weights = np.asarray(draw(parameters, jax.random.key(0), frames))
    else:
        with on_torch("cpu", "float32"):
            parameters, frames = jax.tree.map(lambda a: torch.tensor(a, dtype=torch.float32), (parameters, frames))
            weights = pyro_importance.log_weights(program, 3)(parameters, frames).numpy()
    assert weights.shape == (3, 2)
    assert np.isfinite(weights).all()
    assert len(np.unique(weights)) == 6


# The causal lattice


@pytest.mark.parametrize("backend", BACKENDS)
def test_causal_lattice_by_brute_force(backend):
    module = imported(program_file("causal", backend))
    expected = np.zeros((S, D, S, D))
    for s in range(S):
        for d in range(D):
            for back in range(module.WINDOW):
                for beside in range(-module.BAND, module.BAND + 1):
                    if s - back >= 0:
                        expected[s, d, s - back, (d - back + beside) % D] = 1
    W = module.LATTICE.neighborhood.reshape(S, D, S, D)
    np.testing.assert_array_equal(W, expected)
    assert not any(W[s, :, later].any() for s in range(S) for later in range(s + 1, S))
    assert all(W[s, d, s, d] for s in range(S) for d in range(D))
    per_frame = [(2 * module.BAND + 1) * min(s + 1, module.WINDOW) for s in range(S)]
    assert per_frame[0] < per_frame[1] < per_frame[-1]
    np.testing.assert_array_equal(module.LATTICE.degrees_of_freedom, np.repeat(per_frame, D).reshape(S, D))


@pytest.mark.parametrize("backend", BACKENDS)
def test_energy_rolls_with_u_once_the_past_is_whole(backend):
    """The sign of the shift: one frame later, one position higher."""
    module = imported(program_file("causal", backend))
    first = np.random.default_rng(5).standard_normal((C, D))
    u = np.stack([np.roll(first, s, axis=-1) for s in range(S)])
    energy = module.LATTICE.energy(u)
    for s in range(module.WINDOW, S):
        np.testing.assert_allclose(energy[s], np.roll(energy[s - 1], 1, axis=-1), rtol=1e-12)
    assert not np.allclose(energy[1], np.roll(energy[0], 1, axis=-1))


def drawn_t(example, backend, parameters, frames):
    """t of one draw from the guide, (batch, S, C, D); the same noise every time."""
    program = load_program(program_file(example, backend))
    if backend == "numpyro":
        with on_jax("cpu", "float64"):
            arguments = (jax.tree.map(jnp.asarray, parameters), jax.random.key(6), jnp.asarray(frames))
            return np.asarray(numpyro_tracing.program_traces(program, *arguments)[1]["t"]["value"])
    with on_torch("cpu", "float64"), torch.no_grad():
        torch.manual_seed(6)
        with pyro_tracing.parameters_as(jax.tree.map(torch.tensor, parameters)):
            return pyro_tracing.program_traces(program, torch.tensor(frames))[1].nodes["t"]["value"].numpy()


@pytest.mark.parametrize(("example", "backend"), EACH)
def test_only_the_causal_program_infers_t_without_later_frames(example, backend):
    rng = np.random.default_rng(6)
    frames = small_frames(rng)
    parameters = moved(initial_parameters(example, backend), rng)
    others = frames.copy()
    others[:, GIVEN:] = 1 - others[:, GIVEN:]
    t, t_of_others = (drawn_t(example, backend, parameters, each) for each in (frames, others))
    changed = (t != t_of_others).any(axis=(0, 2, 3))
    assert changed[GIVEN:].all()
    assert changed[:GIVEN].any() == (example == "convolutional")  # whose W is circular in time


# Training


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(example, backend) -> a run of thirty steps on squares in 16 x 16 pixels; each is trained once."""
    folder, runs = tmp_path_factory.mktemp("examples"), {}
    images = np.zeros((30, 16, 16), np.uint8)
    for number, (row, column) in enumerate(np.random.default_rng(7).integers(4, 8, (30, 2))):
        images[number, row : row + 4, column : column + 4] = 255
    np.savez(folder / "squares.npz", images=images)

    def run_of(example, backend):
        if (example, backend) not in runs:
            experiment = ppl_tvae.Experiment(
                backend=backend, model=str(program_file(example, backend)), data=str(folder / "squares.npz"),
                steps=30, batch_size=2, validation_sequences=4, log_every=10, evaluate_every=30, clip_norm=1.0,
                device="cpu",
            )  # fmt: skip
            runs[example, backend] = ppl_tvae.train(experiment, folder / f"{example}-{backend}", quiet=True)
        return runs[example, backend]

    return run_of


@pytest.mark.parametrize(("example", "backend"), EACH)
def test_programs_learn(example, backend, trained):
    rows = trained(example, backend).metrics()
    losses = [row["loss"] for row in rows if "loss" in row]
    held_out = [row["elbo_per_frame"] for row in rows if "elbo_per_frame" in row]
    assert len(losses) == 3
    assert np.isfinite([*losses, *held_out]).all()
    assert losses[-1] < 0.8 * losses[0]
    assert held_out[-1] > held_out[0]


# Forward prediction

script = imported(ROOT / "examples/forward_prediction.py")


def test_prediction_is_the_last_t_rolled_by_one_position_per_frame():
    t = np.random.default_rng(8).standard_normal((2, 3, 4, 5))
    predicted = script.predict(t, 7)
    assert predicted.shape == (2, 7, 4, 5)
    for ahead in range(1, 8):
        for position in range(5):
            before = t[:, 2, :, (position - ahead) % 5]
            np.testing.assert_array_equal(predicted[:, ahead - 1, :, position], before)


def test_sequences_whose_capsules_roll_are_predicted_without_error(monkeypatch):
    """A decoder that shows t itself; of t after the given frames nothing is read."""
    first = np.random.default_rng(9).random((3, 4, 6))
    rolling = np.stack([np.roll(first, s, axis=-1) for s in range(6)], axis=1)

    class Shown:
        def latents(self, plan):
            return {"t": np.where(np.arange(6)[:, None, None] < 2, rolling, np.nan)}

        def decode(self, t, site):
            return t[..., None]

    @contextmanager
    def ready(*_, **__):
        yield Shown()

    monkeypatch.setattr(script, "evaluator", ready)
    frames = rolling[..., None]
    predicted = script.predictions(None, frames, given=2)
    errors = {name: script.squared_error(frames, each, 2) for name, each in predicted.items()}
    assert [each.shape for each in errors.values()] == [(3,)] * 3
    assert not errors.pop(script.ROLLED).any()
    repeated, mean = errors.values()
    np.testing.assert_allclose(repeated, np.mean((frames[:, 2:] - frames[:, [1]]) ** 2, axis=(1, 2, 3, 4)))
    mean_frame = (frames[:, [0]] + frames[:, [1]]) / 2
    np.testing.assert_allclose(mean, np.mean((frames[:, 2:] - mean_frame) ** 2, axis=(1, 2, 3, 4)))


@pytest.mark.parametrize("backend", BACKENDS)
def test_predictions_do_not_read_what_they_predict(backend, trained):
    run = trained("causal", backend)
    frames = small_frames(np.random.default_rng(10), side=16).astype(np.float32)
    others = frames.copy()
    others[:, GIVEN:] = 1 - others[:, GIVEN:]
    first, second = (script.predictions(run, each, GIVEN) for each in (frames, others))
    for name, predicted in first.items():
        assert predicted.shape == frames.shape
        np.testing.assert_array_equal(predicted, second[name])
    rolled = first[script.ROLLED]
    assert (rolled[:, GIVEN:] != rolled[:, [GIVEN - 1]]).any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_blanks_change_nothing_for_a_causal_program(backend, trained):
    """The reconstructions of the given frames are those of the whole sequences, draw for draw."""
    run = trained("causal", backend)
    frames = small_frames(np.random.default_rng(11), side=16).astype(np.float32)
    data, plan = script.blanked(frames, S)  # nothing is blank
    with script.evaluator(run, data, None, "cpu", seed=0) as ready:
        np.testing.assert_array_equal(ready.frames(plan), frames)
        whole = ready.reconstruct(plan)
    given = script.predictions(run, frames, GIVEN)[script.ROLLED][:, :GIVEN]
    np.testing.assert_allclose(given, whole[:, :GIVEN], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_script_prints_errors_and_draws_a_sheet(backend, trained, tmp_path, capsys):
    run, out = trained("causal", backend), tmp_path / "sheet.png"
    assert script.main([str(run.path), "--given", "10", "--sequences", "4", "--out", str(out)]) == 0
    title, *rows, last = capsys.readouterr().out.splitlines()
    assert "s = 10 to 17, 4 test sequences" in title
    assert last == str(out)
    assert out.read_bytes().startswith(b"\x89PNG")
    assert [row.count("+-") for row in rows] == [1, 2, 2]
    data = script.data_of(run.experiment)
    frames = script.render(data.tables, data.test_plan(4), binarize=True)
    errors = [np.mean([(frames[n, s] - frames[n, :10].mean(axis=0)) ** 2 for s in range(10, 18)]) for n in range(4)]
    assert f"{np.mean(errors):.4f} +- {np.std(errors, ddof=1) / 2:.4f}" in rows[2]


def test_script_refuses_in_a_sentence(trained, tmp_path, capsys):
    path = str(trained("causal", "numpyro").path)
    for arguments, sentence in [
        ([path, "--given", "18"], "expected between 1 and 17 given frames, found 18"),
        ([path, "--given", "0"], "expected between 1 and 17 given frames, found 0"),
        ([path, "--sequences", "1"], "at least 2 test sequences"),
        ([str(tmp_path)], "expected a run directory"),
    ]:
        assert script.main(arguments) == 2
        assert sentence in capsys.readouterr().err


# Traversals

traversal_script = imported(ROOT / "examples/traversals.py")


def test_traversals_roll_all_capsules_or_one():
    t = np.random.default_rng(12).standard_normal((2, 4, 3, 5))
    codes = traversal_script.traversals(t, 1, [2])
    for s in range(4):
        rolled = np.roll(t[:, 1], s - 1, axis=-1)
        np.testing.assert_array_equal(codes["all capsules"][:, s], rolled)
        np.testing.assert_array_equal(codes["capsule 2"][:, s, 2], rolled[:, 2])
        np.testing.assert_array_equal(codes["capsule 2"][:, s, :2], t[:, 1, :2])


@pytest.mark.parametrize("backend", BACKENDS)
def test_traversal_script_writes_a_sheet_and_an_animation(backend, trained, capsys):
    path = str(trained("causal", backend).path)
    arguments = [path, "--frame", "3", "--capsules", "1", "--sequences", "2"]
    assert traversal_script.main(arguments) == 0
    sheet, moving = capsys.readouterr().out.split()
    with Image.open(sheet) as picture:
        assert picture.format == "PNG"
    with Image.open(moving) as animation:
        assert (animation.format, animation.n_frames, animation.info["loop"]) == ("GIF", S, 0)
    for wrong, sentence in [(["--frame", "18"], "0..17, found 18"), (["--capsules", "18"], "capsules in 0..17")]:
        assert traversal_script.main([path, *wrong]) == 2
        assert sentence in capsys.readouterr().err
