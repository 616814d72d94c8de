"""A run directory: the experiment, its parameters, what exact resumption needs, metrics and results.

    config.toml              the whole experiment, resolved; files that it names lie relative to it
    program.py, lattice.npy  copies of the user's own files, where the experiment names any
    parameters.safetensors   the best parameters so far, flat names
    state/                   the last two checkpoints, each named by its step and the digest of its content
    metrics.csv              one row per log interval
    evaluation.json          estimates, each with its standard error and everything needed to repeat it
    posterior.nc             draws from guide and prior, an ArviZ DataTree
    diagnosis.json           what `diagnose` found
    figures/                 pictures

Files are written beside their place and moved into it, so that a crash leaves the old one or the new one, whole. There
is no pickle anywhere: opening a stranger's run executes nothing (a program.py is code, and runs when the run is used).
"""

import csv
import io
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from ppl_tvae.config import OWN_DIGESTS, Experiment, read_toml
from ppl_tvae.errors import UserError
from ppl_tvae.files import alone_in, claimed, digest, read, write, writing_to
from ppl_tvae.plain import from_json, to_json
from ppl_tvae.records import is_diagnosis, is_estimate

Arrays = dict[str, np.ndarray]
# What an estimate found, as opposed to what was asked: two records that differ only in these are the same question.
_RESULTS = ("parameters", "value", "standard_error", "bits_per_dimension", "notes", "seconds", "per_sequence")
METRICS = ("step", "loss", "elbo_per_frame", "learning_rate", "frames_per_second", "seconds")
# The run's copies of the user's own files, by the setting that names them.
OWN_COPIES = {"model": "program.py", "lattice": "lattice.npy"}


@dataclass(frozen=True)
class Checkpoint:
    """A state of training: the arrays of the trainer, and what the loop has to remember (see `loop.Loop`), by name."""

    step: int
    arrays: Arrays
    progress: dict[str, Any]


@dataclass(frozen=True)
class Run:
    """A run directory that exists. `create_run` and `open_run` make one; the methods read and write its parts."""

    path: Path
    experiment: Experiment

    @property
    def name(self) -> str:
        """The name of the directory."""
        return self.path.resolve().name

    @contextmanager
    def in_training(self) -> Iterator[None]:
        """Held while a process trains the run. Raises UserError where another does, which would drop our states."""
        with claimed(self.path / "state", "trains"):
            yield

    def save_parameters(self, parameters: Mapping[str, np.ndarray]) -> None:
        """Write the best parameters so far."""
        write(self.path / "parameters.safetensors", save_tensors(_contiguous(parameters)))

    def parameters(self) -> Arrays:
        """The best parameters so far, by flat name. Raises UserError if there are none or the file is damaged."""
        return self.parameters_and_digest()[0]

    def parameters_and_digest(self) -> tuple[Arrays, str]:
        """The best parameters so far, and what tells them from others. Raises UserError as `parameters`.

        Both are of one reading: a training that goes on replaces the file.
        """
        content = self._parameters_file()
        try:
            return load_tensors(content), digest(content)
        except SafetensorError as error:
            raise UserError(
                f"expected parameters in '{self.path / 'parameters.safetensors'}', found a damaged file ({error}); "
                f"train again, or go on with the run where it can (--resume; of a finished one with more --steps), "
                f"which writes new ones"
            ) from None

    def has_parameters(self) -> bool:
        """Whether the best parameters are there and whole."""
        try:
            return bool(self.parameters())
        except UserError:
            return False

    def save_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Write a state; it and the one before it stay, all others go."""
        metadata = {"progress": to_json({"step": checkpoint.step, **checkpoint.progress})}
        content = save_tensors(_contiguous(checkpoint.arrays), metadata=metadata)
        place = self.path / "state" / f"{checkpoint.step:09d}-{digest(content)}.safetensors"
        with writing_to(self.path):
            place.parent.mkdir(exist_ok=True)
            write(place, content)
            # Later ones are damaged, or the run would have gone on from them.
            before = [path for path in self._checkpoint_files() if path.name[:9] < place.name[:9]]
            for path in set(place.parent.glob("*.safetensors*")) - {place, *before[:1]}:
                path.unlink()

    def checkpoint(self) -> Checkpoint | None:
        """The newest state whose content agrees with its digest; torn or truncated ones are passed over.

        None for a run that was ended before its first step. Raises UserError where steps were done and no whole state
        is left: beginning again would overwrite what the run has.
        """
        files = self._checkpoint_files()
        for path in files:
            if (checkpoint := _read_checkpoint(path)) is not None:
                return checkpoint
        if files or any(row["step"] > 0 for row in self.metrics()):
            raise UserError(
                f"expected a whole state to go on from in '{self.path / 'state'}', found "
                f"{f'{len(files)} damaged' if files else 'none'}; the best parameters can be evaluated still, but "
                f"training has to begin anew in another directory"
            )
        return None

    def add_metrics(self, row: Mapping[str, Any]) -> None:
        """Append a row to metrics.csv."""
        path = self.path / "metrics.csv"
        with writing_to(self.path), path.open("a", newline="") as file:
            writer = csv.DictWriter(file, METRICS)
            if file.tell() == 0:
                writer.writeheader()
            writer.writerow(row)

    def metrics(self) -> list[dict[str, float]]:
        """The rows of metrics.csv; a value that was not measured at a row is absent from it."""
        rows = [[text for text in row.items() if text[1]] for row in self._whole_rows()]
        return [{name: float(value) for name, value in row} for row in rows]

    @property
    def steps_done(self) -> int:
        """The last step with a row in metrics.csv, 0 before any."""
        return int(max((row["step"] for row in self.metrics()), default=0))

    @property
    def is_unfinished(self) -> bool:
        """Whether training has not reached its last step; an early stop counts as that too."""
        return self.experiment.trained_by is None and self.steps_done < self.experiment.steps

    def forget_metrics_after(self, step: int) -> None:
        """Drop the rows that a resumed run will write again, and a torn last line."""
        kept = [row for row in self._whole_rows() if int(row["step"]) <= step]
        content = io.StringIO(newline="")
        writer = csv.DictWriter(content, METRICS)
        writer.writeheader()
        writer.writerows(kept)
        write(self.path / "metrics.csv", content.getvalue().encode())

    def add_evaluation(self, record: Mapping[str, Any]) -> None:
        """Append a record to evaluation.json; one with the same settings is replaced, whatever its parameters."""
        with alone_in(self.path):
            kept = [old for old in self.evaluations() if _question(old) != _question(record)]
            lines = ",\n".join(to_json(each) for each in [*kept, dict(record)])
            write(self.path / "evaluation.json", f"[\n{lines}\n]\n".encode())

    def evaluations(self) -> list[dict[str, Any]]:
        """The records of evaluation.json. Raises UserError if the file is damaged."""
        records = self._json("evaluation.json", b"[]")
        if not isinstance(records, list) or not all(map(is_estimate, records)):
            path = self.path / "evaluation.json"
            raise UserError(f"expected a list of records of estimates in '{path}', found otherwise; mend or remove it")
        return records

    def present_evaluations(self) -> list[dict[str, Any]]:
        """Those records that are of the run's present parameters. Raises as `evaluations`."""
        records = self.evaluations()
        present = self.parameters_digest() if records else ""
        return [record for record in records if record.get("parameters") == present]

    def parameters_digest(self) -> str:
        """What tells the run's parameters from others: a digest of their file."""
        return digest(self._parameters_file())

    def parameters_time(self) -> int:
        """When the parameters were written, in nanoseconds as `os.stat` has it. Raises UserError if there are none."""
        self._parameters_file()
        return (self.path / "parameters.safetensors").stat().st_mtime_ns

    def save_diagnosis(self, found: Mapping[str, Any], parameters: str | None = None) -> None:
        """Write diagnosis.json, in place of what an earlier diagnosis found.

        parameters: the digest of those it is of; None for the present ones.
        """
        content = dict(found) | {"parameters": parameters or self.parameters_digest()}
        write(self.path / "diagnosis.json", (to_json(content, indent=1) + "\n").encode())

    def diagnosis(self) -> dict[str, Any]:
        """The content of diagnosis.json, empty if there is none. Raises UserError if the file is damaged."""
        found = self._json("diagnosis.json", b"{}")
        if not is_diagnosis(found):
            path = self.path / "diagnosis.json"
            raise UserError(f"expected an object with what was diagnosed in '{path}', found otherwise; remove it")
        return found

    def present_diagnosis(self) -> dict[str, Any]:
        """The same where it is of the run's present parameters, else empty. Raises as `diagnosis`."""
        found = self.diagnosis()
        return found if found and found.get("parameters") == self.parameters_digest() else {}

    def is_up_to_date(self, file: str) -> bool:
        """Whether a file of the run is there and no older than its parameters."""
        path, parameters = self.path / file, self.path / "parameters.safetensors"
        return path.exists() and parameters.exists() and path.stat().st_mtime >= parameters.stat().st_mtime

    def figure(self, name: str) -> Path:
        """The path of a figure; its folder exists afterwards."""
        with writing_to(self.path / "figures"):
            (self.path / "figures").mkdir(exist_ok=True)
        return self.path / "figures" / name

    def save_config(self) -> None:
        """Write the experiment: the run's own copies by name alone, so that the directory can be moved."""
        settings = self.experiment.to_mapping()
        for setting in self.experiment.own_files:
            settings[setting] = OWN_COPIES.get(setting, os.path.abspath(os.path.expanduser(settings[setting])))
        write(self.path / "config.toml", tomli_w.dumps(settings).encode())

    def _json(self, name: str, nothing: bytes) -> Any:
        path = self.path / name
        try:
            return from_json(read(path) or nothing)
        except ValueError as error:
            raise UserError(f"expected JSON in '{path}', found a mistake: {error}; mend or remove the file") from None

    def _parameters_file(self) -> bytes:
        content = read(self.path / "parameters.safetensors")
        if content is None:
            raise UserError(f"expected trained parameters in '{self.path}', found none; train the run first")
        return content

    def _checkpoint_files(self) -> list[Path]:
        """Newest first."""
        return sorted((self.path / "state").glob("*-*.safetensors"), reverse=True)

    def _whole_rows(self) -> list[dict[str, str]]:
        """The rows of metrics.csv as text; a last line without its end was torn. Raises UserError for other damage."""
        path = self.path / "metrics.csv"
        whole = (read(path) or b"").decode(errors="replace").rpartition("\n")[0]
        rows = list(csv.DictReader(whole.splitlines()))
        for number, row in enumerate(rows, start=2):
            if not _is_measured(row):
                raise UserError(
                    f"expected the columns {', '.join(METRICS)} in '{path}', found line {number} otherwise; mend it"
                )
        return rows


def check_new(path: Path) -> None:
    """Raises UserError unless a run can be made at `path`: where there is nothing, or what was left of making one."""
    with writing_to(path):
        if not path.exists() or (path.is_dir() and all(map(_is_left_of_making, path.iterdir()))):
            return
        hint = ", or go on with it by --resume" if (path / "config.toml").exists() else ""
    raise UserError(f"expected a new directory for the run, found that '{path}' exists; choose another --out{hint}")


def create_run(path: Path, experiment: Experiment) -> Run:
    """A new run directory for a resolved experiment, with copies of the user's own files. Raises UserError."""
    check_new(path)
    with writing_to(path):
        path.mkdir(parents=True, exist_ok=True)
        Run(path, _with_own_files(experiment, path)).save_config()
    return open_run(path)


def _is_left_of_making(path: Path) -> bool:
    """Whether a file may be of a run whose making was cut short: config.toml, without which it is none, comes last."""
    copies = tuple(OWN_COPIES.values())
    return path.name in copies or (path.suffix == ".part" and path.name.startswith((*copies, "config.toml")))


def open_run(path: Path | str) -> Run:
    """An existing run directory. Raises UserError if it is not one."""
    path = Path(path)
    if not (read(path / "config.toml") or b"").strip():
        raise UserError(f"expected a run directory with a config.toml, found none at '{path}'; check the path")
    return Run(path, read_toml(path / "config.toml").resolved())


def run_at(run: Run | Path | str) -> Run:
    """A run, or the one in the directory at a path. Raises UserError if it is not one."""
    return run if isinstance(run, Run) else open_run(run)


def runs_at(runs: Run | Path | str | Sequence[Run | Path | str]) -> list[Run]:
    """One run or several, by themselves or their paths.

    Raises UserError for none, for one that is none, and where two could not be told apart by their directories' names.
    """
    opened = [run_at(run) for run in ((runs,) if isinstance(runs, Run | Path | str) else runs)]
    if not opened:
        raise UserError("expected at least one run, found none; name a run directory")
    if len(names := [run.name for run in opened]) != len(set(names)):
        raise UserError(f"expected runs of different names, found {', '.join(names)}; rename a directory")
    return opened


def _with_own_files(experiment: Experiment, path: Path) -> Experiment:
    """Copies of program and lattice, so that the run stays what it was when the originals are edited.

    Raises UserError where one is there already that is another: it may be the user's own.
    """
    copies: dict[str, Any] = {}
    for setting in experiment.own_files:
        if setting in OWN_COPIES:
            original, copy = Path(getattr(experiment, setting)), path / OWN_COPIES[setting]
            content = original.read_bytes()
            if read(copy) not in (None, content):
                raise UserError(
                    f"expected no other file than a copy of '{original}' at '{copy}', found one; move it away, or "
                    f"choose another --out"
                )
            write(copy, content)
            copies |= {setting: str(copy), OWN_DIGESTS[setting]: digest(content)}
    return replace(experiment, **copies)


def _read_checkpoint(path: Path) -> Checkpoint | None:
    """The state in a file, None if it is damaged."""
    content = read(path) or b""
    if path.stem.split("-")[1] != digest(content):
        return None
    progress = from_json(_metadata(content)["progress"])
    return Checkpoint(progress.pop("step"), load_tensors(content), progress)


def _is_measured(row: Mapping[Any, Any]) -> bool:
    try:
        return (
            set(row) == set(METRICS)
            and all(math.isfinite(float(text or 0)) for text in row.values())
            and int(row["step"]) >= 0
        )
    except (TypeError, ValueError):
        return False


def _question(record: Mapping[str, Any]) -> dict[str, Any]:
    """What a record of evaluation.json answers, as it reads in the file."""
    asked = {name: value for name, value in record.items() if name not in _RESULTS}
    if "data_digest" in asked:  # wherever they lie
        del asked["data"]
    return json.loads(to_json(asked))


def _metadata(content: bytes) -> dict[str, str]:
    """The metadata in the header of a safetensors file: 8 bytes of length, then JSON."""
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length])["__metadata__"]


def _contiguous(arrays: Mapping[str, np.ndarray]) -> Arrays:
    return {name: np.asarray(array, order="C") for name, array in arrays.items()}
