"""A run directory: the experiment, its parameters, what exact resumption needs, metrics and results.

    config.toml              the whole experiment, resolved
    program.py, lattice.npy  copies of the user's own files, where the experiment names any
    parameters.safetensors   the best parameters so far, flat names
    state/                   the last two checkpoints, each named by its step and the digest of its content
    metrics.csv              one row per log interval
    evaluation.json          estimates, each with its standard error and everything needed to repeat it
    figures/                 pictures

Files are written beside their place and moved into it, so that a crash leaves the old one or the new one, whole. There
is no pickle anywhere: opening a stranger's run executes nothing (a program.py is code, and runs when the run is used).
"""

import csv
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from ppl_tvae.config import Experiment, read_toml
from ppl_tvae.errors import UserError

Arrays = dict[str, np.ndarray]
METRICS = ("step", "loss", "elbo_per_frame", "learning_rate", "frames_per_second", "seconds")
_KEPT_CHECKPOINTS = 2


@dataclass(frozen=True)
class Checkpoint:
    """A state of training: the arrays of the trainer, and what the loop itself has to remember."""

    step: int
    arrays: Arrays
    progress: dict[str, Any]


@dataclass(frozen=True)
class Run:
    """A run directory that exists. `create_run` and `open_run` make one; the methods read and write its parts."""

    path: Path
    experiment: Experiment

    def save_parameters(self, parameters: Mapping[str, np.ndarray]) -> None:
        """Write the best parameters so far."""
        with _told(self.path):
            _write(self.path / "parameters.safetensors", save_tensors(_contiguous(parameters)))

    def parameters(self) -> Arrays:
        """The best parameters so far, by flat name. Raises UserError if there are none or the file is damaged."""
        path = self.path / "parameters.safetensors"
        try:
            return load_tensors(path.read_bytes())
        except FileNotFoundError:
            raise UserError(f"expected trained parameters in '{self.path}', found none; train the run first") from None
        except SafetensorError as error:
            raise UserError(f"expected parameters in '{path}', found a damaged file ({error})") from None

    def save_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Write a state; older ones but the last two go."""
        metadata = {"progress": json.dumps({"step": checkpoint.step, **checkpoint.progress})}
        content = save_tensors(_contiguous(checkpoint.arrays), metadata=metadata)
        name = f"{checkpoint.step:09d}-{_digest(content)}.safetensors"
        with _told(self.path):
            (self.path / "state").mkdir(exist_ok=True)
            _write(self.path / "state" / name, content)
            for old in self._checkpoint_files()[_KEPT_CHECKPOINTS:]:
                old.unlink()

    def checkpoint(self) -> Checkpoint | None:
        """The newest state whose content agrees with its digest; torn or truncated ones are passed over."""
        for path in self._checkpoint_files():
            content = path.read_bytes()
            if path.stem.split("-")[1] == _digest(content):
                progress = json.loads(_metadata(content)["progress"])
                return Checkpoint(progress.pop("step"), load_tensors(content), progress)
        return None

    def add_metrics(self, row: Mapping[str, Any]) -> None:
        """Append a row to metrics.csv."""
        path = self.path / "metrics.csv"
        with _told(self.path), path.open("a", newline="") as file:
            writer = csv.DictWriter(file, METRICS)
            if file.tell() == 0:
                writer.writeheader()
            writer.writerow(row)

    def metrics(self) -> list[dict[str, float]]:
        """The rows of metrics.csv; a value that was not measured at a row is absent from it."""
        path = self.path / "metrics.csv"
        if not path.exists():
            return []
        with path.open(newline="") as file:
            rows = [row for row in csv.DictReader(file) if None not in row.values()]  # a torn last line is passed over
        return [{name: float(value) for name, value in row.items() if value != ""} for row in rows]

    def forget_metrics_after(self, step: int) -> None:
        """Drop the rows that a resumed run will write again."""
        rows = [row for row in self.metrics() if row["step"] <= step]
        (self.path / "metrics.csv").unlink(missing_ok=True)
        for row in rows:
            self.add_metrics({**row, "step": int(row["step"])})

    def add_evaluation(self, record: Mapping[str, Any]) -> None:
        """Append a record to evaluation.json; one with the same settings is replaced."""
        results = ("value", "standard_error", "bits_per_dimension", "seconds")
        settings = {name: value for name, value in record.items() if name not in results}
        kept = [old for old in self.evaluations() if any(old.get(name) != value for name, value in settings.items())]
        with _told(self.path):
            _write(self.path / "evaluation.json", json.dumps([*kept, dict(record)], indent=2).encode())

    def evaluations(self) -> list[dict[str, Any]]:
        """The records of evaluation.json."""
        path = self.path / "evaluation.json"
        return json.loads(path.read_text()) if path.exists() else []

    def figure(self, name: str) -> Path:
        """The path of a figure; its folder exists afterwards."""
        with _told(self.path):
            (self.path / "figures").mkdir(exist_ok=True)
        return self.path / "figures" / name

    def with_steps(self, steps: int) -> "Run":
        """The same run, to be trained to another number of steps."""
        run = Run(self.path, replace(self.experiment, steps=steps))
        _write_config(run)
        return run

    def _checkpoint_files(self) -> list[Path]:
        """Newest first."""
        return sorted((self.path / "state").glob("*-*.safetensors"), reverse=True)


def create_run(path: Path, experiment: Experiment) -> Run:
    """A new run directory for a resolved experiment, with copies of the user's own files. Raises UserError."""
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(
            f"expected a new directory for the run, found that '{path}' exists; choose another --out, or --resume it"
        )
    with _told(path):
        path.mkdir(parents=True, exist_ok=True)
        run = Run(path, _with_own_files(experiment, path))
        _write_config(run)
    return run


def open_run(path: Path) -> Run:
    """An existing run directory. Raises UserError if it is not one."""
    if not (path / "config.toml").is_file():
        raise UserError(f"expected a run directory with a config.toml, found none at '{path}'")
    return Run(path, read_toml(path / "config.toml").resolved())


def _with_own_files(experiment: Experiment, path: Path) -> Experiment:
    """Copies of program and lattice, so that the run stays what it was when the originals are edited."""
    copies = {"lattice": (experiment.lattice, "lattice.npy"), "model": (experiment.program_file, "program.py")}
    for setting, (source, name) in copies.items():
        if source:
            if not Path(source).is_file():
                raise UserError(f"expected a file at '{source}' for the setting '{setting}', found none")
            shutil.copyfile(source, path / name)
            experiment = replace(experiment, **{setting: str(path / name)})
    return experiment


def _write_config(run: Run) -> None:
    with _told(run.path):
        _write(run.path / "config.toml", tomli_w.dumps(run.experiment.to_mapping()).encode())


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """A full disk or a missing permission, as a sentence."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"expected to be able to write to '{path}', found: {error.strerror}; what was written before is kept, "
            f"make room or choose another --out"
        ) from error


def _write(path: Path, content: bytes) -> None:
    """Replace a file's content in one step that survives a crash at any moment."""
    beside = path.with_name(path.name + ".part")
    try:
        with beside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except OSError:
        beside.unlink(missing_ok=True)
        raise


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _metadata(content: bytes) -> dict[str, str]:
    """The metadata in the header of a safetensors file: 8 bytes of length, then JSON."""
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length])["__metadata__"]


def _contiguous(arrays: Mapping[str, np.ndarray]) -> Arrays:
    return {name: np.ascontiguousarray(array).reshape(array.shape) for name, array in arrays.items()}
