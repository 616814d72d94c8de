"""The command line: what it prints, and one sentence with exit code 2 for every mistake, nothing lost and nothing left.

The ways in which data files can be wrong are many and tested in tests/data; here a few of them stand for all.
"""

import errno
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from ppl_tvae import files
from ppl_tvae.cli import main
from ppl_tvae.runs import open_run
from tests.small_runs import BACKENDS, files_in, outcome, small_arguments

CELLS = 4 * 4  # of the small program: timesteps times positions


def fails(arguments: Sequence[object], capsys: pytest.CaptureFixture[str], code: int = 2) -> str:
    """The one sentence of a command that fails."""
    capsys.readouterr()
    try:
        found = main([str(argument) for argument in arguments])
    except SystemExit as leaving:  # argparse's own mistakes
        found = leaving.code
    printed = capsys.readouterr()
    assert found == code, printed
    assert printed.out == ""
    assert printed.err.startswith("ppl-tvae")
    assert printed.err.count("\n") == 1
    return printed.err


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    assert main(small_arguments(folder, "pyro", folder / "run")) == 0
    return folder


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A trained run of one's own."""
    return Path(shutil.copytree(trained / "run", tmp_path / "run"))


def saved(folder: Path, **arrays: object) -> Path:
    path = folder / "own.npz"
    np.savez(path, **arrays)
    return path


def written(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def matrix(folder: Path, values: np.ndarray) -> Path:
    np.save(folder / "w.npy", values)
    return folder / "w.npy"


GREY = np.full((10, 6, 6), 0.5)


def zero_row() -> np.ndarray:
    return np.diag([0.0] + [1.0] * (CELLS - 1))


def truncated_archive(folder: Path) -> Path:
    path = saved(folder, images=GREY)
    return written(path, path.read_bytes()[:300])


def idx_folder(folder: Path, content: bytes) -> Path:
    for name in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
        written(folder / f"{name}-ubyte", content)
    (folder / "mnist").mkdir()
    for path in folder.glob("*-ubyte"):
        path.rename(folder / "mnist" / path.name)
    return folder


def wrong_checksum(folder: Path) -> Path:
    idx_folder(folder, b"")
    written(folder / "mnist" / "train-images-idx3-ubyte.gz", b"not it")
    return folder


def program(folder: Path, text: str) -> Path:
    return written(folder / "own.py", text)


OWN = {"num_capsules": None, "capsule_dim": None, "hidden": None}  # which such a model does not use

# Settings that make `train` fail, given a folder for the files they need, and words of the sentence.
WRONG: dict[str, tuple[Callable[[Path], dict[str, object]], str]] = {
    "an archive as lattice": (lambda f: {"lattice": saved(f, images=GREY)}, "a matrix saved with numpy.save at"),
    "rank": (lambda f: {"data": saved(f, images=GREY[0])}, "expected 'images' of shape"),
    "dtype": (lambda f: {"data": saved(f, images=GREY.astype(int))}, "found int64"),
    "range": (lambda f: {"data": saved(f, images=3 * GREY)}, "expected 'images' in [0, 1], found 1.5 to 1.5"),
    "nan": (lambda f: {"data": saved(f, images=np.nan * GREY)}, "found NaN"),
    "no archive": (lambda f: {"data": f / "none.npz"}, "found 'No such file or directory'"),
    "empty archive": (lambda f: {"data": written(f / "own.npz", b"")}, "found an empty file"),
    "truncated archive": (lambda f: {"data": truncated_archive(f)}, "found a damaged or different one"),
    "empty idx": (lambda f: {"data": "mnist", "data_dir": idx_folder(f, b"")}, "found an empty file"),
    "truncated idx": (lambda f: {"data": "mnist", "data_dir": idx_folder(f, b"\0\0\x08\x03")}, "found only 4 bytes"),
    "checksum": (lambda f: {"data": "mnist", "data_dir": wrong_checksum(f)}, "expected md5"),
    "too few": (lambda f: {"data": saved(f, images=GREY[:3])}, "expected validation sequences, found none"),
    "lattice size": (lambda f: {"lattice": matrix(f, np.eye(5))}, "of shape (16, 16), one row per"),
    "lattice sign": (lambda f: {"lattice": matrix(f, -np.eye(CELLS))}, "without negative or non-finite entries"),
    "lattice nan": (lambda f: {"lattice": matrix(f, np.nan * np.eye(CELLS))}, "without negative or non-finite"),
    "lattice row": (lambda f: {"lattice": matrix(f, zero_row())}, "found a zero row 0"),
    "lattice text": (lambda f: {"lattice": matrix(f, np.full((CELLS, CELLS), "1"))}, "matrix of numbers"),
    "lattice small": (lambda f: {"lattice": matrix(f, 1e-300 * np.eye(CELLS))}, "between 1e-30 and 1e+30"),
    "no lattice": (lambda f: {"lattice": f / "none.npy"}, "found no such file"),
    "lattice file": (lambda f: {"lattice": written(f / "w.npy", b"1 2 3")}, "expected a matrix saved with numpy.save"),
    "backend": (lambda f: {"backend": "pyrho"}, "did you mean 'pyro'?"),
    "model": (lambda f: {"model": "statik"}, "did you mean 'static'?"),
    "likelihood": (lambda f: {"likelihood": "bernoulli-gray"}, "did you mean 'bernoulli-grey'?"),
    "data set": (lambda f: {"data": "digit"}, "did you mean 'digits'?"),
    "transform": (lambda f: {"transforms": "rotation,hu"}, "did you mean 'hue'?"),
    "no transform": (lambda f: {"transforms": ","}, "expected at least one transform"),
    "folder": (lambda f: {"data_dir": f / "none"}, "expected a folder of data files with --data-dir, found none at"),
    "hidden": (lambda f: {"hidden": "8,,8"}, "expected values between commas, found none in '8,,8'"),
    "mu": (lambda f: {"mu": 1e39}, "expected mu to be finite in float32, found 1e+39"),
    "seed": (lambda f: {"seed": -1}, "expected a seed between 0"),
    "default": (lambda f: {"model": "vae", "mu_per": "model"}, "expected no mu_per with model 'vae'"),
    "own guide": (lambda f: {**OWN, "model": program(f, ""), "guide": "mean-field"}, "expected no guide with model"),
    "config of vae": (
        lambda f: {"model": "vae", "config": written(f / "e.toml", "epsilon = 1e-6")},
        "expected no epsilon with model 'vae'",
    ),
    "window": (lambda f: {"temporal_window": 9}, "expected a temporal window between 1 and the 4 timesteps"),
    "number": (lambda f: {"steps": "many"}, "expected a whole number, found 'many'"),
    "steps": (lambda f: {"steps": 10**25, "schedule": "cosine"}, "expected steps of at most 2147483647, found 1"),
    "setting": (lambda f: {"stepz": 3}, "train: unrecognized arguments: --stepz=3; did you mean '--steps'?; see "),
    "config key": (lambda f: {"config": written(f / "e.toml", "lr = 1")}, "expected the name of a setting, found 'lr'"),
    "config type": (lambda f: {"config": written(f / "e.toml", "seed = 'x'")}, "expected int for the setting 'seed'"),
    "config syntax": (lambda f: {"config": written(f / "e.toml", "seed 3")}, "expected TOML in"),
    "no config": (lambda f: {"config": f / "none.toml"}, "found: No such file or directory"),
}


@pytest.mark.parametrize("mistake", WRONG)
def test_a_mistake_is_one_sentence_and_leaves_nothing_behind(mistake, tmp_path, capsys):
    settings, words = WRONG[mistake]
    (tmp_path / "files").mkdir()
    arguments = small_arguments(tmp_path, out=tmp_path / "run", **{"backend": "pyro", **settings(tmp_path / "files")})
    assert words in fails(arguments, capsys)
    assert not (tmp_path / "run").exists()


PROGRAMS = {
    "raises": ("raise ValueError('so\\nthere')", "found that running it raises ValueError"),
    "no guide": ("def model(frames): pass", "found no guide"),
    "syntax": ("def model(", "SyntaxError at line 1, 'def model(': '(' was never closed; mend"),
    "exits": ("import sys\nsys.exit(0)", "no file beside it, found that running it raises SystemExit at line 2"),
    "imports": ("import flux_capacitor", "none to lie beside it, found no module 'flux_capacitor'; install it, or put"),
    "says nothing": (
        "def model(frames):\n    assert False\nguide = model",
        "found AssertionError at line 2, 'assert False'; mend",
    ),
    "breaks": ("def model(frames):\n    return frames.nothing\nguide = model", "has no attribute 'nothing'"),
    "no plate": (
        "import pyro, pyro.distributions as d\n"
        "def guide(frames): pyro.sample('z', d.Normal(pyro.param('p', frames.mean()), 1.))\n"
        "def model(frames):\n"
        "    pyro.sample('z', d.Normal(0., 1.))\n"
        "    pyro.sample('x', d.Normal(0., 1.).expand(frames.shape), obs=frames)\n",
        "the plate 'sequences'",
    ),
    "no to_event": (
        "import pyro, torch, pyro.distributions as d\n"
        "def guide(frames): pyro.param('p', frames.mean())\n"
        "def model(frames):\n"
        "    with pyro.plate('sequences', len(frames)):\n"
        "        pyro.sample('z', d.Normal(torch.zeros(3, 5), 1.))\n",
        "and see that each distribution has its .to_event, for all dimensions but the plate's",
    ),
    "no parameters": (
        "import pyro, pyro.distributions as d\n"
        "def guide(frames):\n"
        "    with pyro.plate('sequences', len(frames)):\n"
        "        pyro.sample('z', d.Normal(0., 1.))\n"
        "def model(frames):\n"
        "    with pyro.plate('sequences', len(frames)):\n"
        "        z = pyro.sample('z', d.Normal(0., 1.)).reshape(-1, 1, 1, 1, 1)\n"
        "        pyro.sample('x', d.Bernoulli(logits=z).expand(frames.shape).to_event(4), obs=frames)\n",
        "expected a program with parameters",
    ),
}


@pytest.mark.parametrize("mistake", PROGRAMS)
def test_a_program_that_does_not_run_is_one_sentence(mistake, tmp_path, capsys):
    text, words = PROGRAMS[mistake]
    model = program(tmp_path, text)
    told = fails(small_arguments(tmp_path, "pyro", tmp_path / "run", model=model, **OWN), capsys)
    assert words in told
    assert ("at line 2" in told) == (mistake in ("breaks", "exits", "says nothing"))
    assert not (tmp_path / "run").exists()
    model.unlink()
    told = fails(small_arguments(tmp_path, "pyro", tmp_path / "run", model=model, **OWN), capsys)
    assert "expected a program file at" in told


def test_the_line_of_a_mistake_is_shown_for_a_relative_path_too(tmp_path, capsys, monkeypatch):
    program(tmp_path, PROGRAMS["breaks"][0])
    monkeypatch.chdir(tmp_path)
    told = fails(small_arguments(tmp_path, "numpyro", "run", model="own.py", **OWN), capsys)
    assert "AttributeError at line 2, 'return frames.nothing': " in told


@pytest.mark.parametrize(("backend", "other"), [("pyro", "numpyro"), ("numpyro", "pyro")])
def test_a_program_for_the_other_backend_is_recognised(backend, other, tmp_path, capsys):
    text = f"from {other} import sample\nimport {other}.distributions as dist\ndef model(frames): pass\nguide = model"
    told = fails(["check", program(tmp_path, text), "--backend", backend], capsys)
    assert f"expected a program for backend '{backend}'" in told
    assert f"found that it imports {other}; give --backend {other}" in told


def test_a_mistake_that_is_mended_does_not_block_the_next_try(tmp_path, capsys):
    fails(small_arguments(tmp_path, "pyro", tmp_path / "run", lattice=matrix(tmp_path, zero_row())), capsys)
    arguments = small_arguments(tmp_path, "pyro", tmp_path / "run", lattice=matrix(tmp_path, np.eye(CELLS)), steps=2)
    assert main(arguments) == 0
    assert "found that" in fails(arguments, capsys)


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_gpu(backend, tmp_path, capsys):
    told = fails(small_arguments(tmp_path, backend, tmp_path / "run", device="cuda"), capsys)
    assert "expected a GPU for device 'cuda', found none" in told
    assert not (tmp_path / "run").exists()


def test_a_run_that_exists_is_left_as_it_is(run, tmp_path, capsys):
    before = files_in(run)
    assert "expected a new directory for the run" in fails(small_arguments(tmp_path, "pyro", run), capsys)
    assert files_in(run) == before


@pytest.mark.parametrize("command", ["evaluate", "figures", "train"])
def test_what_is_not_a_run(command, tmp_path, capsys):
    arguments = [command, tmp_path] if command != "train" else [command, "--resume", "--out", tmp_path]
    assert "expected a run directory with a config.toml" in fails(arguments, capsys)


def test_resume_with_other_settings(run, tmp_path, capsys):
    before = files_in(run)
    told = fails(["train", "--resume", "--out", run, "--seed", "4"], capsys)
    assert "expected the run's own seed = 3 with --resume, found 4" in told
    config = written(tmp_path / "e.toml", "backend = 'pyro'\nmodel = 'static'")
    assert "found 'static'" in fails(["train", "--resume", "--out", run, "--config", config], capsys)
    assert "expected more steps than the 40" in fails(["train", "--resume", "--out", run, "--steps", "39"], capsys)
    assert "expected --out RUN with --resume" in fails(["train", "--resume"], capsys)
    assert files_in(run) == before


def test_the_same_command_with_resume_goes_on(trained, tmp_path, capsys):
    """Also with own files, of which the run has copies, and with the run's own config.toml."""
    own = {"lattice": matrix(tmp_path, np.eye(CELLS))}
    arguments = small_arguments(tmp_path, "pyro", tmp_path / "run", **own)
    assert main(arguments) == 0
    assert main([*arguments, "--resume", "--steps=50"]) == 0
    config = tmp_path / "run" / "config.toml"
    assert main(["train", "--resume", f"--out={tmp_path / 'run'}", f"--config={config}", "--steps=60"]) == 0
    assert open_run(tmp_path / "run").checkpoint().step == 60
    short = written(tmp_path / "short.toml", "backend = 'pyro'")  # in which no seed is written
    assert main(["train", "--resume", f"--out={tmp_path / 'run'}", f"--config={short}", "--steps=65"]) == 0
    matrix(tmp_path, 2 * np.eye(CELLS))
    assert "own lattice = " in fails([*arguments, "--resume", "--steps=70"], capsys)


def test_the_config_of_a_run_repeats_it(trained, tmp_path):
    assert main(["train", "--config", str(trained / "run" / "config.toml"), "--out", str(tmp_path / "again")]) == 0
    assert outcome(open_run(tmp_path / "again")) == outcome(open_run(trained / "run"))


def test_a_run_that_filled_the_disk_goes_on_when_there_is_room(trained, tmp_path, capsys, monkeypatch):
    fsync, calls = os.fsync, []

    def filling_fsync(file: int) -> None:
        calls.append(file)
        if len(calls) > 5:  # after the experiment, the parameters, the metrics and the state of step 0
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(file)

    monkeypatch.setattr(files.os, "fsync", filling_fsync)
    told = fails(small_arguments(tmp_path, "pyro", tmp_path / "run"), capsys)
    assert "found: No space left on device" in told
    monkeypatch.undo()
    assert main(["train", "--resume", "--out", str(tmp_path / "run")]) == 0
    assert outcome(open_run(tmp_path / "run")) == outcome(open_run(trained / "run"))


def test_no_permission_to_write(tmp_path, capsys, monkeypatch):
    def forbidden(path: Path, **_: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(Path, "mkdir", forbidden)
    told = fails(small_arguments(tmp_path, "pyro", tmp_path / "run"), capsys)
    assert "expected to be able to write to" in told
    assert "found: Permission denied" in told


@pytest.mark.parametrize("command", ["evaluate", "diagnose"])
def test_a_run_that_cannot_be_written_to_is_refused_before_the_work(command, trained, capsys, monkeypatch):
    def began(*_: object) -> None:
        raise AssertionError("computed what cannot be written")

    monkeypatch.setattr(f"ppl_tvae.{'evaluation' if command == 'evaluate' else 'diagnosis'}.asking", began)
    monkeypatch.setattr(files.os, "access", lambda *_: False)
    assert "expected to be able to write to" in fails([command, str(trained / "run")], capsys)


def test_a_diverged_run_exits_with_3(tmp_path, capsys):
    told = fails(small_arguments(tmp_path, "pyro", tmp_path / "run", learning_rate=1e30), capsys, code=3)
    assert "the loss at step" in told
    assert "start a new run with a smaller --learning-rate" in told


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (MemoryError(), "found: that it does not"),
        (MemoryError("Unable to allocate 14.9 GiB for an array"), "found: Unable to allocate 14.9 GiB for an array"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"), "allocate 9 bytes"),
        (RuntimeError("CUDA out of memory. Tried to allocate 20 GiB."), "found: CUDA out of memory. Tried"),
        (RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.\nBuffers:"), "Out of memory allocating 9"),
        (RuntimeError("INTERNAL: dispatching: Out of memory allocating 9 bytes."), "found: Out of memory allocating 9"),
    ],
)
def test_too_little_memory_is_one_sentence(error, words, tmp_path, capsys, monkeypatch):
    def train(*_: object) -> None:
        raise error

    monkeypatch.setattr("ppl_tvae.training.train", train)
    told = fails(small_arguments(tmp_path, "pyro", tmp_path / "run"), capsys)
    assert "expected what the command computes to fit in memory" in told
    assert words in told
    error.args = ("a defect",)
    if not isinstance(error, MemoryError):
        with pytest.raises(RuntimeError, match="a defect"):
            main(small_arguments(tmp_path, "pyro", tmp_path / "run"))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--estimators", "iwea"], "did you mean 'iwae'?"),
        (["--estimators", ","], "expected at least one estimator"),
        (["--particles", "0"], "expected a number of particles of at least 1, found 0"),
        (["--particles", "ten"], "argument --particles"),
        (["--particles", "99999999"], "expected a number of particles of at most 10000000, found 99999999"),
        (["--transforms", "none"], "frames of 3 channels, as in training, found none, with 1"),
        (["--split", "tset"], "did you mean 'test'?"),
        (["--max-sequences", "0"], "expected max_sequences of at least 1"),
        (["--backend", "numpiro"], "did you mean 'numpyro'?"),
        (["--device", "tpu"], "invalid choice: 'tpu'"),
        (["--device", "cuda"], "expected a GPU"),
        (["--seed", "-1"], "expected a seed between 0"),
        (["--estimators", "ais", "--temperatures", 10**12], "expected num_temperatures of at most 2147483647"),
        (["--temperatures", "5"], "expected ais or sandwich among --estimators with settings of their chains"),
        (["--estimators", "ais", "--particles", "5"], "expected an estimator of --particles among --estimators"),
    ],
)
def test_wrong_evaluations(options, words, trained, capsys):
    assert words in fails(["evaluate", trained / "run", *options], capsys)
    assert not (trained / "run" / "evaluation.json").exists()


def test_damaged_parameters(run, capsys):
    written(run / "parameters.safetensors", b"")
    assert "found a damaged file" in fails(["evaluate", run], capsys)
    (run / "parameters.safetensors").unlink()
    assert "expected trained parameters in" in fails(["evaluate", run], capsys)
    assert "expected trained parameters in" in fails(["figures", run], capsys)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"{", "expected JSON in"),
        *(
            (text, "expected a list of records")
            for text in (b"[1, 2]", b"null", b'{"a": 1}', b'[{"estimator": "elbo", "value": -3}]')
        ),
    ],
)
def test_damaged_estimates_are_seen_before_anything_is_computed(content, words, run, capsys, monkeypatch):
    written(run / "evaluation.json", content)
    monkeypatch.setattr("ppl_tvae.evaluation.asking", None)
    for command in ("evaluate", "compare", "report"):
        assert words in fails([command, run], capsys)


@pytest.mark.parametrize(
    "content",
    ["[1]", '{"equivariance": [{}]}', '{"posterior": {}}', '{"calibration": {"z": 1}}', '{"by_transform": 1}'],
)
def test_a_diagnosis_that_is_none_is_named(content, run, capsys):
    written(run / "diagnosis.json", content)
    for command in ("report", "figures"):
        assert "expected an object with what was diagnosed" in fails([command, run], capsys)


def test_settings_that_were_edited_do_not_fit_the_parameters(run, capsys):
    config = (run / "config.toml").read_text()
    written(run / "config.toml", re.sub(r"(?s)hidden = \[.*?\]", "hidden = [9]", config))
    told = fails(["evaluate", run, "--particles=2"], capsys)
    assert "of the program, found one of shape" in told
    assert "are not those that were trained" in told


def test_metrics_that_are_gone_are_not_made_up(run, capsys):
    (run / "metrics.csv").unlink()
    assert main(["train", "--resume", "--out", str(run), "--steps=41"]) == 0
    assert "held-out ELBO unknown before training" in capsys.readouterr().out


def test_data_that_have_changed_are_refused_and_welcome_back(run, capsys):
    """Other values, and other sizes; the same ones may be saved anew."""
    path = Path(open_run(run).experiment.data)
    before, images = path.read_bytes(), np.load(path)["images"]
    commands = ["evaluate", run, "--particles=2"], ["train", "--resume", "--out", run, "--steps=41"]
    for changed in (255 - images, images[:, :5]):
        np.savez(path, images=changed)
        for command in commands:
            assert "found others; put the former ones back" in fails(command, capsys)
    np.savez_compressed(path, images=images)
    for command in commands:
        assert main([str(argument) for argument in command]) == 0
    path.write_bytes(before)


def test_a_program_is_of_its_backend(run, capsys):
    written(run / "program.py", "")
    config = (run / "config.toml").read_text()
    kept = ("backend", "data ", "data_dir", "seed")
    own = [line for line in config.splitlines() if line.startswith(kept)]
    written(run / "config.toml", "\n".join(['model = "program.py"', *own]))
    assert "expected backend 'pyro', for which" in fails(["evaluate", run, "--backend", "numpyro"], capsys)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["data", "show"], "expected the name of a data set after 'data show'"),
        (["data", "show", "digitz"], "did you mean 'digits'?"),
        (["data", "fetch", "mnits"], "did you mean 'mnist'?"),
        (["data", "show", "digits", "--transforms", "scael"], "did you mean 'scale'?"),
        (["data", "show", "digits", "--sequences", "0"], "expected a limit of at least 1"),
        (["data", "show", "digits", "--out", "sheet.docx"], "ending in .png"),
        (["compare", "a", "--csv", "--markdown"], "expected one form of the table, found --csv and --markdown"),
        (["reproduce", "table1", "--rows", ","], "expected at least one row, found none; name of tvae-1-2, "),
        (["trian"], "invalid choice: 'trian'"),
        ([], "required: COMMAND"),
    ],
)
def test_other_wrong_commands(arguments, words, capsys):
    assert words in fails(arguments, capsys)


def printed_json(arguments: Sequence[object], capsys: pytest.CaptureFixture[str]) -> object:
    def no_constant(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == 0
    return json.loads(capsys.readouterr().out, parse_constant=no_constant)


def test_json(run, tmp_path, capsys):
    trained = printed_json(["train", "--resume", "--out", run, "--steps", "45", "--json"], capsys)
    assert trained["run"] == str(run)
    assert trained["best_elbo_per_frame"] >= trained["first_elbo_per_frame"]
    options = ["--particles", "1,2", "--max-sequences", "1", "--json"]
    records = printed_json(["evaluate", run, *options], capsys)
    assert [(each["estimator"], each["num_particles"]) for each in records] == [("elbo", 2), ("iwae", 1), ("iwae", 2)]
    assert records[0]["standard_error"] is None  # of one sequence
    assert json.loads((run / "evaluation.json").read_text()) == records
    assert Path(printed_json(["figures", run, "--json"], capsys)["figures"][0]).is_file()
    assert "digits" in printed_json(["data", "list", "--json"], capsys)
    assert "tvae" in printed_json(["models", "--json"], capsys)["model"]
    shown = ["data", "show", saved(tmp_path, images=GREY), "--out", tmp_path / "sheet.png", "--sequences", "2"]
    found = printed_json([*shown, "--json"], capsys)
    assert Path(found["sheet"]).is_file()
    assert found["frame_shape"] == [*GREY.shape[1:], 3]
    assert sum(found["splits"].values()) == len(GREY)


def test_notes_stand_beside_the_estimates_that_they_are_of(run, capsys):
    chains = ["--temperatures=3", "--leapfrog-steps=1"]
    main(["evaluate", str(run), "--particles=2", "--max-sequences=3", "--estimators=elbo,iwae,ais,sandwich", *chains])
    told = capsys.readouterr().out
    assert [line for line in told.splitlines() if line.startswith("  of ")] == [
        "  of iwae:", "  of ais:", "  of sandwich-lower, sandwich-upper:"
    ]  # fmt: skip
    assert told.count("acceptance rate") == 4
    assert told.count("of simulated sequences") == 2


def test_text(run, tmp_path, capsys):
    main(["evaluate", str(run), "--particles=2", "--max-sequences=3", "--estimators=elbo"])
    assert "3 test sequences, likelihood bernoulli, nats per frame +- standard error" in capsys.readouterr().out
    sheet = tmp_path / "{braces}.png"
    assert main(["data", "show", str(saved(tmp_path, images=GREY)), "--out", str(sheet), "--sequences=2"]) == 0
    assert capsys.readouterr().out.startswith(
        f"{sheet}\n  sequences of 18 frames of 6x6x3; what moves: rotation, scale"
    )
    assert sheet.is_file()
    assert main(["models"]) == main(["data", "list"]) == 0


def test_a_reader_who_has_seen_enough_is_no_mistake():
    """As with `| head`: the pipe is closed before anything is written."""
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-c", "import sys; from ppl_tvae.cli import main; sys.exit(main(['models', '--json']))"]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("closed", [">&-", "2>&-"])
def test_a_closed_stream_is_no_mistake(closed):
    code = "import sys; from ppl_tvae.cli import main; sys.exit(main(['models']))"
    command = f"{shlex.quote(sys.executable)} -c {shlex.quote(code)} {closed}"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_fetch_says_where_the_files_are(capsys, monkeypatch):
    monkeypatch.setattr("ppl_tvae.data.fetch", lambda *_: {"images": Path("folder/images.gz")})
    assert printed_json(["data", "fetch", "mnist", "--json"], capsys) == {"files": ["folder/images.gz"]}


@pytest.mark.parametrize(
    ("backend", "code", "words"),
    [("numpyro", 2, "got invalid logits parameter"), ("pyro", 3, "held-out ELBO before the first step is")],
)
def test_a_number_that_the_program_cannot_bear_is_told(backend, code, words, tmp_path, capsys):
    """NumPyro looks at the parameters of distributions as they are made."""
    arguments = small_arguments(tmp_path, backend, tmp_path / "run", mu="3.4e38", steps=1)
    assert words in fails(arguments, capsys, code=code)
