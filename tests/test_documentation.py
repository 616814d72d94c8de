"""What the documentation says runs, runs: its commands, its snippets and the examples."""

import re
import runpy
import shutil
from dataclasses import fields, replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as numpyro_dist
import pyro
import pyro.distributions as pyro_dist
import pytest
import torch

import ppl_tvae
from ppl_tvae import arguments as command_line
from ppl_tvae import catalogue, cli, data
from ppl_tvae.assembly import assemble, lattice_of
from ppl_tvae.config import Experiment
from ppl_tvae.inference.numpyro.device import on_device as on_jax
from ppl_tvae.inference.pyro.device import on_device as on_torch
from ppl_tvae.inference.pyro.tracing import program_traces
from ppl_tvae.models.numpyro import likelihoods as numpyro_likelihoods
from ppl_tvae.models.numpyro import networks as numpyro_networks
from ppl_tvae.models.pyro import likelihoods as pyro_likelihoods
from ppl_tvae.models.pyro import networks as pyro_networks
from ppl_tvae.own_program import load_program
from ppl_tvae.program import Program
from tests.conftest import STANDARD_ERRORS
from tests.documents import DOCUMENTS, README, ROOT, blocks, command_lines, commands
from tests.small import FRAME, random_latents, random_parameters, small_experiment, small_frames
from tests.weights import numpyro_log_weights_at, pyro_log_weights_at

DATA_PAGE = ROOT / "docs/data.md"

FEW = ("--steps", "2", "--batch-size", "2", "--validation-sequences", "2")
SMALL = ("--hidden", "8", "--num-capsules", "2", "--capsule-dim", "4")


def shrunk(arguments):
    """The same command with a budget of seconds; of an option that is given twice, the last counts."""
    command = arguments[0]
    if command == "evaluate":
        annealed = any(name in argument.split(",") for argument in arguments for name in ("ais", "sandwich"))
        few = ["--max-sequences", "2"]
        return [*arguments, *few, *(["--temperatures", "4"] if annealed else ["--particles", "2"])]
    if command == "data":
        return [*arguments, "--sequences", "2"]
    if command == "diagnose":
        return [*arguments, "--draws", "2", "--sequences", "2", "--max-sequences", "2", "--simulated", "8"]
    if command != "train":
        return arguments
    if "--resume" in arguments:
        return [*arguments, "--steps", "4"]
    own_program = any(argument.endswith(".py") for argument in arguments)
    return [*arguments, *FEW, *(() if own_program else SMALL)]


@pytest.fixture
def small_api(monkeypatch):
    """What is called of ppl_tvae, with a budget of seconds."""
    train, evaluate, own_training = ppl_tvae.train, ppl_tvae.evaluate, ppl_tvae.OwnTraining
    few = {"steps": 2, "batch_size": 2, "validation_sequences": 2}
    small = {"hidden": (8,), "num_capsules": 2, "capsule_dim": 4}

    def small_train(experiment, out):
        return train(replace(experiment, **few, **small), out)

    def small_evaluate(run, particles=(1, 10)):
        return evaluate(run, particles=particles[:2], max_sequences=2)

    monkeypatch.setattr(ppl_tvae, "train", small_train)
    monkeypatch.setattr(ppl_tvae, "evaluate", small_evaluate)
    monkeypatch.setattr(ppl_tvae, "OwnTraining", lambda experiment: own_training(replace(experiment, **small)))


@pytest.fixture
def newcomers_folder(tmp_path, monkeypatch):
    """A working directory with the examples of the repository, and nothing else in it."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
def test_readme_runs_from_top_to_bottom(newcomers_folder, small_api, capsys):
    executed = []
    for language, content in blocks(README):
        if language == "python" and "def model" not in content:
            exec(compile(content, "README.md", "exec"), {})
            executed.append("python")
        if language == "sh":
            for arguments in command_lines(content):
                assert cli.main(shrunk(arguments)) == 0, (arguments, capsys.readouterr().err)
                executed.append(arguments[0])
    assert {"python", "train", "evaluate", "figures", "data", "new", "diagnose", "compare", "report"} <= set(executed)
    for written in (
        "sheet.png",
        "runs/tvae/figures/reconstructions.png",
        "runs/own/program.py",
        "runs/mine/config.toml",
        "runs/own-loop/evaluation.json",
    ):
        assert (newcomers_folder / written).stat().st_size > 0, written
    run = ppl_tvae.open_run(Path("runs/tvae"))
    assert run.metrics()[-1]["step"] == 4
    assert {record["backend"] for record in run.evaluations()} == {"numpyro", "pyro"}


def test_own_archive_of_the_data_page_is_accepted(newcomers_folder):
    (snippet,) = [content for language, content in blocks(DATA_PAGE) if language == "python"]
    exec(compile(snippet, "data.md", "exec"), {})
    opened = data.open_data("images.npz", num_timesteps=4)
    assert len(opened.test) == 10
    assert cli.main(["data", "show", "images.npz", "--sequences", "1"]) == 0


def test_counts_of_motions_on_the_data_page():
    opened, text = data.open_data("sprites"), DATA_PAGE.read_text()
    held_out = [len(part) // len(opened.transforms) for part in (opened.test, opened.validation)]
    assert "{} and {} of each transform".format(*held_out) in text
    assert f"{len(opened.train):,} of them" in text
    assert f"{len(opened.labels):,} images" in text


def test_counts_of_images_on_the_data_page():
    opened = data.open_data("digits")
    counts = ", ".join(f"{len(part):,}" for part in (opened.train, opened.validation, opened.test))
    (row,) = [line for line in DATA_PAGE.read_text().splitlines() if line.startswith("| `digits`")]
    assert counts in row
    assert "{} × {} × {}".format(*opened.frame_shape) in row


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_command_is_understood(document, capsys):
    for arguments in commands(document):
        command_line.command_parser().parse_args(arguments)  # leaves with a message where it does not understand


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_names_after_an_option_are_in_its_catalogue(document):
    """`--likelihood normal`, `--optimizer sgd`, ... anywhere in a document."""
    for setting in fields(Experiment):
        kind, option = setting.metadata.get("kind"), setting.name.replace("_", "-")
        for name in re.findall(rf"--{option} ([a-z][a-z-]*)", document.read_text()) if kind else ():
            # `evaluate --guide` takes others than `train --guide`
            fitted = catalogue.AUTO_GUIDES if kind == "guide" else {}
            assert name in catalogue.KINDS[kind] or name in fitted, (option, name)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_options_exist(document):
    documented = ("train", "new", "check", "evaluate", "diagnose", "compare", "figures", "report", "reproduce", "data")
    known = {option for command in documented for option in _options_of(command)}
    known |= {"--nproc-per-node", "--nnodes", "--rdzv-backend", "--rdzv-endpoint", "--xla"}  # torchrun's and XLA's
    others = ("python -m benchmarks", "python examples/")
    lines = (line for line in document.read_text().splitlines() if not any(other in line for other in others))
    mentioned = {option for line in lines for option in re.findall(r"`?(--[a-z][a-z-]+)", line)}
    assert mentioned <= known, mentioned - known


def _options_of(command):
    (subparsers,) = [action for action in command_line.command_parser()._actions if action.choices]
    return {option for action in subparsers.choices[command]._actions for option in action.option_strings}


def test_make_targets_exist():
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    mentioned = {
        target
        for language, content in blocks(README)
        if language == "sh"
        for target in re.findall(r"\bmake (\w+)", content)
    }
    assert {"demo", "test"} <= mentioned <= targets


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_relative_links_exist(document):
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", document.read_text())
    missing = [link for link in links if "://" not in link and not (document.parent / link).exists()]
    assert not missing


# Editing


def test_editing_page_from_top_to_bottom(tmp_path, monkeypatch, capsys):
    """Each command with few steps, each diff as an edit of the file that it names."""
    monkeypatch.chdir(tmp_path)
    edits = []
    for language, content in blocks(ROOT / "docs/editing.md"):
        if language == "diff":
            name, *lines = content.splitlines()
            before, after = ("\n".join(line[1:] for line in lines if line[0] in kept) for kept in (" -", " +"))
            path = tmp_path / name.removeprefix("# ")
            assert path.read_text().count(before) == 1
            path.write_text(path.read_text().replace(before, after))
            edits.append([sum(line[0] == sign for line in lines) for sign in "-+"])
        if language == "sh":
            for copied in re.findall(r"^cp (\S+) (\S+)$", content, flags=re.MULTILINE):
                shutil.copyfile(*copied)
            for arguments in command_lines(content):
                assert cli.main(shrunk(arguments)) == 0, (arguments, capsys.readouterr().err)
    assert edits == [[1, 1]] * 3 + [[1, 23]]
    runs = {path.name: ppl_tvae.open_run(path) for path in sorted(Path("runs").iterdir())}
    with pytest.raises(ppl_tvae.UserError, match="'bernoulli' in 'laplace' and 'own-probability' in 'levels'"):
        ppl_tvae.compare(list(runs.values()))
    of_levels = runs.pop("levels")
    assert len(ppl_tvae.compare(list(runs.values())).estimates) == 4
    assert all(record["value"] < 0 for record in of_levels.evaluations())
    levels_are_probabilities(tmp_path / "levels.py")


def levels_are_probabilities(path):
    """Of all levels together 1, whatever their distribution."""
    loc, scale = np.float32([-0.3, 0.02, 0.5, 1.4]), np.float32([0.2, 0.001, 0.05, 0.3])
    pixels, levels = runpy.run_path(str(path))["Levels"](loc, scale), np.float32(np.arange(256) / 255)[:, None]
    masses = np.exp(pixels.log_prob(levels))
    np.testing.assert_allclose(masses.sum(axis=0), 1, atol=1e-4)
    drawn, means = pixels.sample(jax.random.key(0), (20000,)), (masses * levels).sum(axis=0)
    assert abs(drawn.mean(axis=0) - means).max() < STANDARD_ERRORS * 0.5 / 20000**0.5


# The story


def test_story_in_the_readme_is_the_packaged_program():
    """Each column, given the sizes and the networks, weighs like the package's tvae at the same latents."""
    stories = [content for language, content in blocks(README) if "def model" in content]
    assert [len(story.splitlines()) for story in stories] == [10, 10]
    rng = np.random.default_rng(3)
    experiment = small_experiment()
    parameters, latents = random_parameters(experiment, rng), random_latents(experiment, 3, rng)
    frames = small_frames(experiment, 3, rng)
    for story, weigh in zip(stories, (numpyro_weight, pyro_weight), strict=True):
        packaged, told = weigh(experiment, story, parameters, frames, latents)
        np.testing.assert_allclose(told, packaged, rtol=1e-12)
        assert len(set(np.round(told, 6))) == 3


def _told(story, surroundings):
    namespace = dict(surroundings)
    exec(compile(story, "README.md", "exec"), namespace)
    return namespace["model"]


def numpyro_weight(experiment, story, parameters, frames, latents):
    """log weights (batch,) of the packaged program and of the story."""
    with on_jax("cpu", "float64"):
        packaged = assemble(experiment, "numpyro")
        shape = (experiment.num_timesteps, experiment.num_capsules, experiment.capsule_dim)
        surroundings = {
            "numpyro": numpyro,
            "jnp": jnp,
            "lattice": lattice_of(experiment),
            "standard_normal": numpyro_dist.Normal(0.0, 1.0).expand(shape).to_event(3),
            "likelihood": numpyro_likelihoods.bernoulli,
            "decoder": lambda t: numpyro_networks.decoder(t, experiment.hidden[::-1], FRAME),
        }
        told = Program(_told(story, surroundings), packaged.guide)
        arguments = jax.tree.map(jnp.asarray, (parameters, frames, latents))
        return [np.asarray(numpyro_log_weights_at(program, *arguments)) for program in (packaged, told)]


def pyro_weight(experiment, story, parameters, frames, latents):
    """log weights (batch,) of the packaged program and of the story."""
    with on_torch("cpu", "float64"), torch.no_grad():
        packaged = assemble(experiment, "pyro")
        shape = (experiment.num_timesteps, experiment.num_capsules, experiment.capsule_dim)
        surroundings = {
            "pyro": pyro,
            "torch": torch,
            "lattice": lattice_of(experiment),
            "standard_normal": pyro_dist.Normal(0.0, 1.0).expand(shape).to_event(3),
            "likelihood": pyro_likelihoods.bernoulli,
            "decoder": lambda t: pyro_networks.decoder(t, experiment.hidden[::-1], FRAME),
        }
        told = Program(_told(story, surroundings), packaged.guide)
        arguments = jax.tree.map(torch.as_tensor, (parameters, frames, latents))
        return [pyro_log_weights_at(program, *arguments).numpy() for program in (packaged, told)]


# The examples


@pytest.mark.parametrize(
    ("example", "shapes"),
    [("iwae_one_layer", {"z": (18, 50)})],
)
def test_examples_are_twins(example, shapes):
    """The same parameters, and the same weights at the same latents."""
    rng = np.random.default_rng(4)
    latents = {name: rng.standard_normal((2, *shape)) for name, shape in shapes.items()}
    frames = (rng.random((2, 18, *FRAME)) > 0.5).astype(np.float64)
    with on_torch("cpu", "float64"), torch.no_grad():
        program = load_program(ROOT / f"examples/{example}_pyro.py")
        with pyro.get_param_store().scope() as store:
            program_traces(program, torch.tensor(frames))
        parameters = {name: value.numpy() for name, value in store["params"].items()}
        theirs = pyro_log_weights_at(program, *jax.tree.map(torch.tensor, (parameters, frames, latents)))
    with on_jax("cpu", "float64"):
        program = load_program(ROOT / f"examples/{example}_numpyro.py")
        ours = numpyro_log_weights_at(program, *jax.tree.map(jnp.asarray, (parameters, frames, latents)))
    np.testing.assert_allclose(np.asarray(ours), theirs.numpy(), rtol=1e-10)


@pytest.mark.parametrize("backend", ["numpyro", "pyro"])
def test_one_layer_protocol_of_the_iwae_paper_learns(backend, tmp_path):
    """Its file of settings, on the images that need no download."""
    settings = ROOT / "examples/iwae_one_layer.toml"
    model = ROOT / f"examples/iwae_one_layer_{backend}.py"
    few = ["--steps", "200", "--validation-sequences", "50", "--num-particles", "3", "--data", "digits"]
    own = ["--backend", backend, "--model", str(model), "--out", str(tmp_path / "run")]
    assert cli.main(["train", "--config", str(settings), *few, *own]) == 0
    run = ppl_tvae.open_run(tmp_path / "run")
    assert (run.experiment.schedule, run.experiment.adam_epsilon, run.experiment.batch_size) == ("tripling", 1e-4, 20)
    held_out = [row["elbo_per_frame"] for row in run.metrics() if "elbo_per_frame" in row]
    assert held_out[-1] > held_out[0] + 100
