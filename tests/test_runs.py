"""A run directory: what is written comes back, damage is seen, nothing already written is lost."""

import errno
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tomli_w

from ppl_tvae import files
from ppl_tvae.assembly import assemble, lattice_of
from ppl_tvae.config import Experiment, read_toml
from ppl_tvae.errors import UserError
from ppl_tvae.records import is_diagnosis, is_estimate
from ppl_tvae.runs import METRICS, Checkpoint, Run, create_run, open_run
from tests.small_runs import files_in

ARRAYS = {
    "a": np.arange(6, dtype=np.float32).reshape(2, 3).T,
    "step": np.asarray(4),
    "key": np.arange(2, dtype=np.uint32),
}
PROGRESS = {"best": -np.inf, "pending": [0.1, 1 / 3]}
RECORD = {
    "estimator": "iwae", "num_particles": 10, "value": -1.0, "standard_error": 0.1, "num_sequences": 2, "notes": {},
    "per_sequence": [-1.1, -0.9], "transforms": ["hue"], "seconds": 3,
}  # fmt: skip


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return create_run(tmp_path / "run", Experiment().resolved())


def checkpoint_at(step: int) -> Checkpoint:
    return Checkpoint(step, {**ARRAYS, "at": np.asarray(step)}, PROGRESS)


def row(step: int, **values: object) -> dict[str, object]:
    return {"step": step, "loss": 0.1 * step, "learning_rate": 1e-3, "seconds": 1.5, **values}


def states(run: Run) -> list[int]:
    return sorted(int(path.name[:9]) for path in (run.path / "state").iterdir())


def test_a_run_opens_as_it_was_created(run):
    assert open_run(run.path) == run


def test_checkpoints_come_back_with_types_shapes_and_numbers(run):
    run.save_checkpoint(checkpoint_at(4))
    found = run.checkpoint()
    assert (found.step, found.progress) == (4, PROGRESS)
    for name, array in ARRAYS.items():
        assert found.arrays[name].dtype == array.dtype
        np.testing.assert_array_equal(found.arrays[name], array)


def test_the_last_two_checkpoints_stay(run):
    for step in (0, 20, 40):
        run.save_checkpoint(checkpoint_at(step))
    (run.path / "state" / "000000030-torn.safetensors.0123abcd.part").write_bytes(b"torn")
    run.save_checkpoint(checkpoint_at(60))
    assert states(run) == [40, 60]
    assert not list((run.path / "state").glob("*.part"))


DAMAGES = {
    "truncated": lambda content: content[:-1],
    "empty": lambda content: b"",
    "longer": lambda content: content + b"\0",
    "one bit in the arrays": lambda content: content[:-3] + bytes([content[-3] ^ 1]) + content[-2:],
    "one bit in the header": lambda content: content[:20] + bytes([content[20] ^ 16]) + content[21:],
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_state_is_passed_over_and_then_dropped(damage, run):
    for step in (20, 40):
        run.save_checkpoint(checkpoint_at(step))
    newest = max((run.path / "state").iterdir())
    newest.write_bytes(DAMAGES[damage](newest.read_bytes()))
    assert run.checkpoint().step == 20
    run.save_checkpoint(checkpoint_at(30))  # Ctrl-C before the damaged one's step is reached again
    assert states(run) == [20, 30]
    oldest = min((run.path / "state").iterdir())
    newest = max((run.path / "state").iterdir())
    for path in (oldest, newest):
        path.write_bytes(DAMAGES[damage](path.read_bytes()))
    with pytest.raises(UserError, match="found 2 damaged; the best parameters can be evaluated still"):
        run.checkpoint()


def test_no_checkpoint_yet(run):
    assert run.checkpoint() is None
    run.add_metrics(row(0))
    assert run.checkpoint() is None
    run.add_metrics(row(50))
    with pytest.raises(UserError, match=r"expected a whole state .* found none"):
        run.checkpoint()


def test_metrics_come_back_without_what_was_not_measured(run):
    assert run.metrics() == []
    run.add_metrics({"step": 0, "elbo_per_frame": -1 / 3})
    run.add_metrics(row(50))
    assert run.metrics() == [{"step": 0, "elbo_per_frame": -1 / 3}, row(50)]


@pytest.mark.parametrize("torn", ["", "1", "100,0.1,-3.2,0.001,1", "100,0.1,-3.2,0.001,100.0,2"])
def test_a_torn_last_line_is_no_row(torn, run):
    """The last of these looks whole, but for the end of its line: its seconds were 25.0."""
    for step in (0, 50):
        run.add_metrics(row(step))
    with (run.path / "metrics.csv").open("a") as file:
        file.write(torn)
    assert [each["step"] for each in run.metrics()] == [0, 50]
    run.forget_metrics_after(50)
    run.add_metrics(row(100))
    assert [each["step"] for each in run.metrics()] == [0, 50, 100]


def test_rows_are_kept_to_the_letter(run):
    for step in (0, 50, 100):
        run.add_metrics(row(step, loss=1 / 3))
    whole = (run.path / "metrics.csv").read_text()
    run.forget_metrics_after(50)
    assert whole.startswith((run.path / "metrics.csv").read_text())


@pytest.mark.parametrize("content", ["step,loss\n1,2\n", f"{','.join(METRICS)}\n60.0,1,,1e-3,1,1\n"])
def test_metrics_that_are_something_else(content, run):
    (run.path / "metrics.csv").write_text(content)
    with pytest.raises(
        UserError, match=r"expected the columns step, loss, .* in '.*metrics.csv', found line 2 otherwise"
    ):
        run.metrics()


def test_parameters(run):
    with pytest.raises(UserError, match=r"expected trained parameters in .* found none"):
        run.parameters()
    run.save_parameters(ARRAYS)
    np.testing.assert_array_equal(run.parameters()["a"], ARRAYS["a"])
    (run.path / "parameters.safetensors").write_bytes(b"12")
    with pytest.raises(
        UserError, match=r"found a damaged file .* where it can \(--resume; of a finished one with more"
    ):
        run.parameters()


def test_evaluations_with_the_same_settings_are_replaced(run):
    run.add_evaluation(RECORD)
    run.add_evaluation({**RECORD, "value": -2.0})
    run.add_evaluation({**RECORD, "num_particles": 100})
    assert [(each["num_particles"], each["value"]) for each in run.evaluations()] == [(10, -2.0), (100, -1.0)]
    (run.path / "evaluation.json").write_text("[")
    with pytest.raises(UserError, match=r"expected JSON in .*evaluation.json"):
        run.add_evaluation(RECORD)
    assert (run.path / "evaluation.json").read_text() == "["


def test_what_was_found_is_no_part_of_the_question(run):
    whole = RECORD | {"parameters": "0", "bits_per_dimension": 0.2, "split": "test", "seed": 0}
    found = {
        "parameters": "1", "value": -2.0, "standard_error": 0.2, "bits_per_dimension": 0.3, "notes": {"verdict": "a"},
        "seconds": 4, "per_sequence": [-1.0, -2.0],
    }  # fmt: skip
    run.add_evaluation(whole)
    for name, value in found.items():
        run.add_evaluation(whole | {name: value})
        assert [each[name] for each in run.evaluations()] == [value]
    for count, (name, value) in enumerate({"split": "train", "seed": 1, "num_particles": 11}.items(), start=2):
        run.add_evaluation(whole | {name: value})
        assert len(run.evaluations()) == count


@pytest.mark.parametrize(
    ("beside", "required"),
    [
        ({"estimator": "elbo"}, set()),
        *(({"estimator": name}, {"num_particles"}) for name in ("iwae", "released-is", "log-evidence")),
        ({"estimator": "elbo", "data_digest": "0", "data": "own.npz"}, {"data"}),
        ({"estimator": "elbo", "guide_name": "auto-normal", "guide_steps": 5}, {"guide_steps"}),
        (
            {"estimator": "ais", "num_temperatures": 3, "start": "prior", "num_chains": 1, "num_particles": None},
            {"start", "num_chains"},
        ),
    ],
)
def test_an_estimate_lacks_nothing_that_it_is_read_for(beside, required):
    record = RECORD | beside
    assert is_estimate(record)
    required = required | (RECORD.keys() - {"num_particles", "seconds"})
    for name in record:
        assert is_estimate({key: value for key, value in record.items() if key != name}) == (name not in required)
        other = record | {name: [record[name]] if name in required else object()}
        assert is_estimate(other) == (name not in required)
    assert is_estimate(record | {"standard_error": None})
    for damage in ({"value": None}, {"per_sequence": [-1.1, "a"]}, {"per_sequence": [None, -1.1]}, {"notes": []}):
        assert not is_estimate(record | damage)


def test_a_diagnosis_has_all_of_each_part():
    measured = {"value": 1.0, "standard_error": None}
    whole = {
        "posterior": {"num_sequences": 2, "num_draws": 3, "khat": [0.1, None], "verdict": "reliable"},
        "calibration": {"z": {"ranks": [0.5], "verdict": "within"}, "u": {"ranks": [], "verdict": "within"}},
        "prior_ranks": {"z": [0.1, 0.2], "u": []},
        "amortisation_gap": {
            **measured, "unit": "nats", "verdict": "none", "num_sequences": 2, "guide_name": "a", "guide_steps": 5,
        },
    }  # fmt: skip
    assert is_diagnosis(whole)
    assert is_diagnosis({"parameters": "0"})
    for part, found in whole.items():
        assert not is_diagnosis(whole | {part: [found]})
        for name in found:
            missing = {key: value for key, value in found.items() if key != name}
            assert is_diagnosis(whole | {part: missing}) == (part in ("calibration", "prior_ranks"))  # names are free
            assert not is_diagnosis(whole | {part: found | {name: {"other": 1}}})


def test_processes_that_evaluate_side_by_side_lose_nothing(run):
    """Reading the file and writing it anew is one step, whoever else does it."""
    started = [
        subprocess.Popen([
            sys.executable, "-c",
            "import json, sys; from ppl_tvae.runs import open_run; run = open_run(sys.argv[1])\n"
            "for k in range(20): run.add_evaluation(json.loads(sys.argv[2]) | {'num_particles': k})",
            str(run.path), json.dumps(RECORD | {"estimator": name}),
        ])
        for name in ("ais", "iwae")
    ]  # fmt: skip
    assert [process.wait() for process in started] == [0, 0]
    assert len(run.evaluations()) == 40


def test_two_writers_of_one_file_do_not_meet(tmp_path):
    """Each has a place of its own, and the last one to end stays, whole."""
    path = tmp_path / "a [file].json"
    with files.replacing(path) as first:
        first.write_bytes(b"first")
        files.write(path, b"second, longer")
        assert path.read_bytes() == b"second, longer"
    assert files_in(tmp_path) == {path.name: b"first"}


def test_what_killed_writers_left_does_not_pile_up(tmp_path):
    path = tmp_path / "a [file].json"
    names = [f"{path.name}.0123abcd.part", f"{path.name}.4567cdef.part", "other.json.0123abcd.part"]
    for name in names:
        (tmp_path / name).write_bytes(b"torn")
    for name in (names[0], names[2]):
        os.utime(tmp_path / name, (0, 0))
    files.write(path, b"whole")  # the second may be another process's that writes just now
    assert set(files_in(tmp_path)) == {path.name, *names[1:]}


def test_a_diagnosis_of_earlier_parameters_is_known_as_one(run):
    run.save_parameters({"mu": np.asarray(1.0)})
    run.save_diagnosis({"calibration": {}})
    assert run.present_diagnosis() == run.diagnosis()
    os.utime(run.path / "diagnosis.json", (0, 0))  # as a copy may have it
    assert run.present_diagnosis()
    run.save_parameters({"mu": np.asarray(2.0)})
    os.utime(run.path / "parameters.safetensors", (0, 0))
    assert run.present_diagnosis() == {}
    assert run.diagnosis()["calibration"] == {}


def test_what_is_not_a_run(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path, tmp_path / "none", tmp_path / "file"):
        with pytest.raises(UserError, match=r"expected a run directory with a config\.toml, found none"):
            open_run(path)


def test_a_new_run_needs_a_new_directory(run, tmp_path):
    (tmp_path / "file").write_text("")
    before = files_in(run.path)
    for path in (run.path, tmp_path / "file"):
        with pytest.raises(UserError, match="expected a new directory for the run"):
            create_run(path, run.experiment)
    assert files_in(run.path) == before
    (tmp_path / "empty").mkdir()
    create_run(tmp_path / "empty", run.experiment)


@pytest.mark.parametrize("written", [0, 1])
@pytest.mark.parametrize("killed", [True, False])
def test_where_making_a_run_was_cut_short_the_same_makes_it(killed, written, tmp_path, monkeypatch):
    """By a full disk, or by a kill, which clears nothing away: in the lattice, or in the experiment."""
    np.save(tmp_path / "w.npy", np.eye(18 * 18))
    experiment, fsync, calls = Experiment(lattice=str(tmp_path / "w.npy")).resolved(), os.fsync, []

    def filling(file: int) -> None:
        calls.append(file)
        full() if len(calls) > written else fsync(file)

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "fsync", filling)
        if killed:
            patch.setattr(Path, "unlink", lambda *_, **__: None)
        with pytest.raises(UserError, match="No space left"):
            create_run(tmp_path / "run", experiment)
    assert any((tmp_path / "run").glob("*.part")) == killed
    run = create_run(tmp_path / "run", experiment)
    assert (run.path / "lattice.npy").read_bytes() == (tmp_path / "w.npy").read_bytes()
    assert open_run(run.path) == run


def test_a_folder_with_a_file_of_the_users_is_left_as_it_is(tmp_path):
    """A program that is called as ours are may be one: it is not written over."""
    (tmp_path / "own.py").write_text("model = guide = print")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "program.py").write_text("import mine")
    with pytest.raises(UserError, match=r"expected no other file than a copy of .*own.py' at .*program.py', found one"):
        create_run(tmp_path / "folder", Experiment(model=str(tmp_path / "own.py")).resolved())
    (tmp_path / "folder" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"exists; choose another --out$"):
        create_run(tmp_path / "folder", Experiment().resolved())
    assert files_in(tmp_path / "folder") == {"program.py": b"import mine", "notes.txt": b"mine"}


def test_own_files_are_copied_and_the_directory_can_be_moved(tmp_path, monkeypatch):
    for name, content in (("own.py", "model = guide = print"), ("data.npz", "data")):
        (tmp_path / name).write_text(content)
    monkeypatch.chdir(tmp_path)
    create_run(Path("run"), Experiment(model="own.py", data="data.npz").resolved())
    (tmp_path / "own.py").unlink()
    shutil.move(tmp_path / "run", tmp_path / "moved")
    monkeypatch.chdir("/")
    found = open_run(tmp_path / "moved").experiment
    assert found.model == str(tmp_path / "moved" / "program.py")
    assert Path(found.model).read_text() == "model = guide = print"
    assert found.data == str(tmp_path / "data.npz")
    assert read_toml(tmp_path / "moved" / "config.toml").resolved() == found


def full(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


WRITES = {
    "a state": lambda run: run.save_checkpoint(checkpoint_at(40)),
    "parameters": lambda run: run.save_parameters({"other": np.zeros(3)}),
    "metrics": lambda run: run.forget_metrics_after(0),
    "an evaluation": lambda run: run.add_evaluation(RECORD | {"value": 2.0}),
    "the experiment": lambda run: run.save_config(),
}


@pytest.mark.parametrize("write", WRITES)
def test_without_space_what_was_written_stays(write, run, monkeypatch):
    run.save_checkpoint(checkpoint_at(20))
    run.save_parameters(ARRAYS)
    run.add_metrics(row(0))
    run.add_metrics(row(20))
    run.add_evaluation(RECORD)
    before = files_in(run.path)
    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(UserError, match="found: No space left on device; what was written before is kept"):
        WRITES[write](run)
    assert files_in(run.path) == before


def test_files_that_cannot_be_read_are_named(run, monkeypatch):
    run.save_parameters(ARRAYS)

    def forbidden(path: Path) -> bytes:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(Path, "read_bytes", forbidden)
    with pytest.raises(
        UserError, match=r"expected to be able to read .*parameters.safetensors', found: Permission denied"
    ):
        run.parameters()


def test_results_are_plain_json_and_toml(run):
    record = RECORD | {"value": -np.inf, "standard_error": None, "per_sequence": [1.0, float("nan")]}
    run.add_evaluation(record)
    refuse = {"parse_constant": lambda name: pytest.fail(f"{name} is no JSON")}
    (written,) = json.loads((run.path / "evaluation.json").read_text(), **refuse)
    assert (written["value"], written["standard_error"], written["per_sequence"]) == ("-inf", None, [1.0, "nan"])
    (read,) = run.evaluations()
    assert read["value"] == -np.inf
    assert np.isnan(read["per_sequence"][1])
    assert (run.path / "config.toml").read_text() == tomli_w.dumps(run.experiment.to_mapping())


def test_a_program_that_was_edited_is_not_that_of_the_run(tmp_path):
    (tmp_path / "own.py").write_text("def model(frames): pass\nguide = model")
    run = create_run(tmp_path / "run", Experiment(model=str(tmp_path / "own.py"), steps=3).resolved())
    (tmp_path / "own.py").write_text("def model(frames): return 1\nguide = model")
    assemble(open_run(run.path).experiment, "numpyro")
    (run.path / "program.py").write_text("def model(frames): return 1\nguide = model")
    with pytest.raises(UserError, match=r"whose digest is .* \(program_digest\) in '.*program.py', found another"):
        assemble(open_run(run.path).experiment, "numpyro")


def test_a_lattice_that_was_edited_is_not_that_of_the_run(tmp_path):
    np.save(tmp_path / "w.npy", np.eye(18 * 18))
    run = create_run(tmp_path / "run", Experiment(lattice=str(tmp_path / "w.npy")).resolved())
    np.save(tmp_path / "w.npy", 2 * np.eye(18 * 18))
    lattice_of(open_run(run.path).experiment)
    np.save(run.path / "lattice.npy", 2 * np.eye(18 * 18))
    with pytest.raises(UserError, match=r"whose digest is .* \(lattice_digest\) in '.*lattice.npy', found another"):
        lattice_of(open_run(run.path).experiment)
    config = (run.path / "config.toml").read_text()
    (run.path / "config.toml").write_text(re.sub("lattice_digest.*\n", "", config))  # then it may be any
    lattice_of(open_run(run.path).experiment)
