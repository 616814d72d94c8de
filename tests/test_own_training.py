"""A loop of the user's own: the frames it is given, and the run that it leaves."""

from dataclasses import replace
from functools import partial
from html import unescape
from itertools import islice

import jax
import numpy as np
import pyro
import pytest
import torch
from numpyro.infer import SVI, Trace_ELBO
from numpyro.optim import Adam

import ppl_tvae
from ppl_tvae.assembly import data_of, renderer
from ppl_tvae.config import OF_TRAINING, Experiment
from ppl_tvae.inference.numpyro.device import to_device as to_jax
from ppl_tvae.inference.pyro.device import to_device as to_torch
from ppl_tvae.runs import OWN_COPIES
from ppl_tvae.trained import evaluator
from tests.documents import ROOT
from tests.small_runs import BACKENDS, files_in, small_training
from tests.test_examples import imported
from tests.test_torch_modules import FORMS, PROGRAM

BY = "a loop of the test's, two steps"


def own_experiment(folder, backend="numpyro", **settings):
    """Of small runs, what is not of their training alone."""
    names = ("validation_sequences", "log_every", "evaluate_every", "steps")
    unset = {name: getattr(Experiment(), name) for name in names}
    return small_training(folder, backend, **unset | settings)


def of_modules(folder, form):
    """Sequences and a program with torch modules, in files of the folder."""
    networks, decoder, encoder = FORMS[form]
    (folder / "own.py").write_text(PROGRAM.format(networks=networks, decoder=decoder, encoder=encoder))
    np.savez(folder / "ready.npz", sequences=np.random.default_rng(0).random((20, 3, 2, 2, 1)))
    return Experiment(
        model=str(folder / "own.py"), backend="pyro", data=str(folder / "ready.npz"), likelihood="normal",
        batch_size=4,
    )  # fmt: skip


def evaluated(run, **asked):
    asked = {"estimators": ("elbo", "iwae"), "particles": (1, 5), "max_sequences": 6, "quiet": True} | asked
    return [record["per_sequence"] for record in ppl_tvae.evaluate(run, **asked)]


# Frames


@pytest.mark.parametrize(("place", "backend"), [(to_jax, "numpyro"), (to_torch, "pyro")])
@pytest.mark.parametrize("settings", [{}, {"likelihood": "normal"}, {"seed": 4}])
def test_batches_are_those_that_training_takes(tmp_path, place, backend, settings):
    own = ppl_tvae.OwnTraining(own_experiment(tmp_path, backend, **settings))
    data, first = data_of(own.experiment), 61  # across the plans that are drawn at once
    plans = data.train_plans(own.experiment.seed, first, 6, own.experiment.batch_size)
    tables, draw = place(data.tables), renderer(own.experiment)
    trained_on = [np.asarray(draw(tables, place(plans.at(step)))) for step in range(6)]
    np.testing.assert_array_equal(list(islice(own.batches(first), 6)), trained_on)
    np.testing.assert_array_equal(list(islice(own.batches(), first, first + 6)), trained_on)
    assert not np.array_equal(trained_on[0], trained_on[1])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("split", ["test", "validation"])
def test_sequences_are_those_that_are_evaluated(tmp_path, backend, split):
    own = ppl_tvae.OwnTraining(own_experiment(tmp_path, backend))
    run = ppl_tvae.train(small_training(tmp_path, backend, steps=1), tmp_path / "run", quiet=True)
    data = data_of(run.experiment)
    with evaluator(run, data, None, "cpu", seed=0) as ready:
        asked = ready.frames(data.plan(split, 5))
    np.testing.assert_array_equal(own.sequences(split, 5), asked)
    assert len(own.sequences(split)) == len(data.plan(split, 200).image) < 200


@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_frames_have_the_precision_of_the_experiment(tmp_path, precision):
    own = ppl_tvae.OwnTraining(own_experiment(tmp_path, precision=precision))
    assert next(own.batches()).dtype == own.sequences().dtype == precision


def test_length_of_ready_sequences_is_known_to_the_program(tmp_path):
    np.savez(tmp_path / "ready.npz", sequences=np.random.default_rng(0).random((20, 3, 6, 6, 1)))
    own = ppl_tvae.OwnTraining(Experiment(data=str(tmp_path / "ready.npz"), hidden=(8,), likelihood="normal"))
    assert own.experiment.num_timesteps == 3 == next(own.batches()).shape[1]


# A run


@pytest.mark.parametrize("backend", BACKENDS)
def test_saved_parameters_are_evaluated_as_those_of_training(tmp_path, backend):
    trained = ppl_tvae.train(small_training(tmp_path, backend), tmp_path / "trained", quiet=True)
    own = ppl_tvae.OwnTraining(own_experiment(tmp_path, backend))
    saved = own.save_run(tmp_path / "saved", trained.parameters(), trained_by=BY)
    assert evaluated(saved) == evaluated(trained)
    assert evaluated(ppl_tvae.open_run(tmp_path / "saved"), estimators="ais") == evaluated(trained, estimators="ais")
    other = next(name for name in BACKENDS if name != backend)
    assert evaluated(saved, backend=other) == evaluated(trained, backend=other)


def host_loop(own):
    """Two steps of the host's SVI: the parameters as it has them."""
    model, guide = own.program
    if own.experiment.backend == "numpyro":
        svi = SVI(model, guide, Adam(1e-2), Trace_ELBO())
        state = svi.init(jax.random.key(0), next(own.batches()))
        for frames in islice(own.batches(), 2):
            state, _ = svi.update(state, frames)
        return svi.get_params(state)
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    svi = pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 1e-2}), pyro.infer.Trace_ELBO())
    for frames in islice(own.batches(), 2):
        svi.step(torch.from_numpy(frames))
    return pyro.get_param_store()


def as_numpy(found):
    return {name: np.asarray(v.detach() if isinstance(v, torch.Tensor) else v) for name, v in found.items()}


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_the_hosts_svi_finds_is_a_run(tmp_path, backend):
    own = ppl_tvae.OwnTraining(own_experiment(tmp_path, backend, likelihood="normal"))
    found = host_loop(own)
    run = own.save_run(tmp_path / "run", found, trained_by=BY)
    assert files_in(run.path).keys() == {"config.toml", "parameters.safetensors"}
    for name, value in as_numpy(found).items():  # constrained, as a scale is
        np.testing.assert_array_equal(run.parameters()[name], value)
    assert ppl_tvae.open_run(run.path).experiment.trained_by == BY
    assert np.isfinite(evaluated(run)).all()


@pytest.mark.parametrize("form", FORMS)
def test_modules_of_an_own_program_are_evaluated_with_the_loops_weights(tmp_path, form):
    own = ppl_tvae.OwnTraining(of_modules(tmp_path, form))
    found = host_loop(own)
    run = own.save_run(tmp_path / "run", found, trained_by=BY)
    assert set(run.parameters()) == {"decoder.weight", "decoder.bias", "encoder.weight", "encoder.bias"}
    weight = "decoder.weight" if form == "PyroModule" else "decoder$$$weight"  # as the host's store calls it
    np.testing.assert_array_equal(run.parameters()["decoder.weight"], as_numpy(found)[weight])
    moved = {name: value + 0.5 for name, value in run.parameters().items()}
    other = own.save_run(tmp_path / "other", moved)
    assert evaluated(run) != evaluated(other)
    assert (run.path / "program.py").read_bytes() == (tmp_path / "own.py").read_bytes()


def test_all_that_asks_a_run_asks_this_one(tmp_path):
    own = ppl_tvae.OwnTraining(own_experiment(tmp_path))
    run = own.save_run(tmp_path / "run", host_loop(own), trained_by=BY)
    other = ppl_tvae.train(small_training(tmp_path, "numpyro", steps=1), tmp_path / "other", quiet=True)
    for each in (run, other):
        evaluated(each)
    ppl_tvae.diagnose(run, num_sequences=4, num_draws=20, quiet=True)
    assert ppl_tvae.draw_figures(run)
    assert ppl_tvae.compare([run, other]).differences
    page = unescape(ppl_tvae.write_report([run, other]).read_text())
    assert f"run was trained by {BY}." in page
    assert "elsewhere" in page
    assert "not reached its last step" not in page
    assert "--config" not in page.partition("How to repeat run")[2].partition("How to repeat other")[0]
    alone = ppl_tvae.write_report(run).read_text()
    assert "training step" not in alone.partition("How likely")[0]


# What is refused


@pytest.mark.parametrize(
    "settings",
    [{"steps": 10}, {"optimizer": "sgd"}, {"learning_rate": 0.1}, {"objective": "iwae"}, {"matmul": "float32"},
     {"devices": 2}, {"num_particles": 3}, {"clip_norm": 1.0}, {"steps": 10, "patience": 2, "validation_sequences": 8}],
)  # fmt: skip
def test_settings_of_a_training_are_refused_together(tmp_path, settings):
    in_order = [name for name in OF_TRAINING if name in settings]
    with pytest.raises(ppl_tvae.UserError, match=f"only ppl_tvae.train follows, found {', '.join(in_order)};"):
        ppl_tvae.OwnTraining(own_experiment(tmp_path, **settings))
    config = replace(own_experiment(tmp_path, **settings), trained_by=BY)  # as somebody may write a run's
    with pytest.raises(ppl_tvae.UserError, match="with a loop of your own"):
        config.resolved()


def test_settings_of_a_training_are_not_noted(tmp_path):
    own = ppl_tvae.OwnTraining(own_experiment(tmp_path))
    noted = own.experiment.to_mapping()
    assert noted["trained_by"]
    assert {"steps", "optimizer", "learning_rate", "num_particles", "objective"}.isdisjoint(noted)
    assert replace(own.experiment).resolved() == own.experiment


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda values: values | {"stray": np.zeros(3)}, "expected 'stray' nowhere among the parameters.*found it of"),
        (lambda values: {name: values[name] for name in values if name != "mu"}, r"'mu' of shape \(\).*found it nowh"),
        (lambda values: values | {"mu": np.zeros(2)}, r"'mu' of shape \(\).*found it of shape \(2,\)"),
        (lambda values: values | {"mu": np.array(np.nan)}, "parameter 'mu' that are finite in float32, found others"),
        (lambda values: values | {"mu": "30"}, "expected parameters as arrays by name|expected real numbers.*'mu'"),
        (lambda values: values | {"mu": np.array(True)}, "expected real numbers for the parameter 'mu', found bool"),
        (lambda values: values | {"mu": np.array(1j)}, "expected real numbers for the parameter 'mu', found complex"),
        (lambda values: values | {"mu": 1e39}, "parameter 'mu' that are finite in float32"),
        (
            lambda values: values | {"likelihood.scale": np.array(-1.6)},
            "'likelihood.scale' within its constraint, ",
        ),
        (lambda values: list(values), "expected parameters as arrays by name.*found list"),
        (lambda values: None, "expected parameters as arrays by name.*found NoneType"),
    ],
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_other_parameters_are_refused_before_anything_is_written(tmp_path, backend, change, words):
    own = ppl_tvae.OwnTraining(own_experiment(tmp_path, backend, likelihood="normal"))
    values = as_numpy(host_loop(own))
    with pytest.raises(ppl_tvae.UserError, match=words):
        own.save_run(tmp_path / "run", change(values))
    assert not (tmp_path / "run").exists()
    own.save_run(tmp_path / "run", values)


@pytest.mark.parametrize("words", ["", " ", 3, "two\nlines", "\ud800"])
def test_a_run_says_what_trained_it(tmp_path, words):
    own = ppl_tvae.OwnTraining(own_experiment(tmp_path))
    with pytest.raises(ppl_tvae.UserError, match="trained_by"):
        own.save_run(tmp_path / "run", host_loop(own), trained_by=words)
    assert not (tmp_path / "run").exists()


def test_what_the_experiment_says_of_the_loop_is_kept(tmp_path):
    own = ppl_tvae.OwnTraining(replace(own_experiment(tmp_path), trained_by=BY))
    assert own.save_run(tmp_path / "run", host_loop(own)).experiment.trained_by == BY
    with pytest.raises(ppl_tvae.UserError, match="expected experiment as ppl_tvae"):
        ppl_tvae.OwnTraining("tvae")


@pytest.mark.parametrize("backend", BACKENDS)
def test_two_parameters_with_one_flat_name_are_refused(tmp_path, backend):
    own = ppl_tvae.OwnTraining(own_experiment(tmp_path, backend))
    values = as_numpy(host_loop(own))
    twice = {"decoder": {"0.weight": values["decoder.0.weight"]}} if backend == "numpyro" else {
        "decoder$$$0.weight": values["decoder.0.weight"]
    }  # fmt: skip
    with pytest.raises(ppl_tvae.UserError, match=r"found two with 'decoder\.0\.weight'"):
        own.save_run(tmp_path / "run", values | twice)


@pytest.mark.parametrize(("setting", "what"), [("model", "program"), ("lattice", "lattice")])
def test_files_are_those_that_the_loop_began_with(tmp_path, monkeypatch, setting, what):
    """A relative path is one from where the loop began; what was edited meanwhile is not what was trained."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    if setting == "model":
        experiment = replace(of_modules(tmp_path, "kept"), model="own.py", data="ready.npz")
        file = tmp_path / "own.py"
    else:
        file, experiment = tmp_path / "W.npy", own_experiment(tmp_path, lattice="W.npy")
        np.save(file, np.eye(16) + 1)
    own = ppl_tvae.OwnTraining(experiment)
    values, before = host_loop(own), file.read_bytes()
    monkeypatch.chdir(tmp_path / "elsewhere")
    file.write_bytes(before + b"\n")
    with pytest.raises(ppl_tvae.UserError, match=f"expected the {what} whose digest"):
        own.save_run("run", values)
    assert not (tmp_path / "elsewhere" / "run").exists()
    file.write_bytes(before)
    run = own.save_run("run", values)
    assert (tmp_path / "elsewhere" / "run" / OWN_COPIES[setting]).read_bytes() == before
    assert np.isfinite(evaluated(run)).all()


def test_an_existing_directory_is_left_alone(tmp_path):
    own = ppl_tvae.OwnTraining(own_experiment(tmp_path))
    run = own.save_run(tmp_path / "run", host_loop(own))
    before = files_in(run.path)
    with pytest.raises(ppl_tvae.UserError, match="expected a new directory"):
        own.save_run(run.path, host_loop(own))
    assert files_in(run.path) == before


def test_a_wrong_program_is_told_before_the_loop_begins(tmp_path):
    program = tmp_path / "own.py"
    program.write_text(
        "import numpyro\nimport numpyro.distributions as dist\n\n\n"
        "def model(frames):\n    a = numpyro.param('a', 0.5)\n"
        "    numpyro.sample('x', dist.Normal(a, 1.0).expand(frames.shape).to_event(5), obs=frames)\n\n\n"
        "def guide(frames):\n    pass\n"
    )
    own = ppl_tvae.OwnTraining(own_experiment(tmp_path, num_capsules=None, capsule_dim=None, hidden=None,
                                              model=str(program), likelihood="normal"))  # fmt: skip
    with pytest.raises(ppl_tvae.UserError, match="expected a model with latents to infer, found none"):
        _ = own.program
    with pytest.raises(ppl_tvae.UserError, match="expected a model with latents to infer, found none"):
        own.save_run(tmp_path / "run", {"a": np.array(0.5)})
    assert not (tmp_path / "run").exists()


def test_such_a_run_is_not_trained_by_us(tmp_path):
    own = ppl_tvae.OwnTraining(own_experiment(tmp_path))
    run = own.save_run(tmp_path / "run", host_loop(own), trained_by=BY)
    before = files_in(run.path)
    with pytest.raises(ppl_tvae.UserError, match=f"trained_by '{BY}'"):
        ppl_tvae.resume(run.path)
    with pytest.raises(ppl_tvae.UserError, match=f"trained_by '{BY}'"):
        ppl_tvae.resume(run.path, steps=10)
    with pytest.raises(ppl_tvae.UserError, match=f"trained_by '{BY}'"):
        ppl_tvae.train(run.experiment, tmp_path / "again", quiet=True)
    with pytest.raises(ppl_tvae.UserError, match=f"trained_by '{BY}'"):
        ppl_tvae.train_seeds(run.experiment, 2, tmp_path / "seeds", quiet=True)
    assert files_in(run.path) == before
    assert not (run.path / "state").exists()
    assert not (tmp_path / "again").exists()


@pytest.mark.parametrize(("asked", "words"), [
    (lambda own: own.batches(-1), "first_step of at least 0"),
    (lambda own: own.sequences("dev"), "split, found 'dev'"),
    (lambda own: own.sequences(limit=0), "limit of at least 1"),
])  # fmt: skip
def test_bad_requests_for_frames_are_told_at_once(tmp_path, asked, words):
    own = ppl_tvae.OwnTraining(own_experiment(tmp_path))
    with pytest.raises(ppl_tvae.UserError, match=words):
        asked(own)


# The example scripts


@pytest.mark.parametrize("backend", BACKENDS)
def test_example_loop_trains_and_evaluates(tmp_path, monkeypatch, capsys, backend):
    small = partial(Experiment, num_timesteps=3, num_capsules=2, capsule_dim=3, hidden=(8,))
    monkeypatch.setattr(ppl_tvae, "Experiment", small)
    script = imported(ROOT / "examples" / f"own_loop_{backend}.py")
    elbos = {}
    for steps in (1, 100):
        assert script.main([str(tmp_path / f"run{steps}"), "--steps", str(steps)]) == 0
        printed = capsys.readouterr()
        elbos[steps] = float(printed.out.partition("elbo: ")[2].split()[0])
    assert "step 100: loss" in printed.err
    assert elbos[100] > elbos[1] + 100  # nats per frame: it learns at least how bright pixels are
    again = evaluated(tmp_path / "run100", particles=10, max_sequences=200)
    assert np.mean(again[0]) == pytest.approx(elbos[100], abs=0.01)
    assert script.main([str(tmp_path / "run1"), "--steps", "1"]) == 2
    assert "expected a new directory" in capsys.readouterr().err
