"""Runs that take seconds: a tiny program on images of six by six pixels, and what of a run does not tell the time."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from ppl_tvae.config import Experiment
from ppl_tvae.runs import Run

BACKENDS = ("numpyro", "pyro")
TIMING = ("frames_per_second", "seconds")


def small_images(folder: Path) -> Path:
    path = folder / "images.npz"
    rng = np.random.default_rng(0)
    np.savez(path, images=rng.integers(0, 256, (40, 6, 6), dtype=np.uint8))
    return path


def small_training(folder: Path, backend: str, **settings: object) -> Experiment:
    experiment = Experiment(
        backend=backend, data=str(small_images(folder)), num_timesteps=4, num_capsules=2, capsule_dim=4, hidden=(8,),
        batch_size=4, validation_sequences=8, log_every=7, evaluate_every=20, steps=40, seed=3,
    )  # fmt: skip
    return replace(experiment, **settings)


def small_arguments(folder: Path, backend: str, out: Path | str, **settings: object) -> list[str]:
    """The same on the command line; a setting that is None is left out."""
    shown = {
        "backend": backend, "data": small_images(folder), "num-timesteps": 4, "num-capsules": 2, "capsule-dim": 4,
        "hidden": 8, "batch-size": 4, "validation-sequences": 8, "log-every": 7, "evaluate-every": 20, "steps": 40,
        "seed": 3, "out": out,
    }  # fmt: skip
    shown |= {name.replace("_", "-"): value for name, value in settings.items()}
    return ["train", *(f"--{name}={value}" for name, value in shown.items() if value is not None)]


def outcome(run: Run) -> dict[str, object]:
    """Everything in a run directory that is a function of its experiment, floats as bits."""
    checkpoint = run.checkpoint()
    assert checkpoint is not None
    arrays = {f"parameters {name}": value for name, value in run.parameters().items()}
    arrays |= {f"state {name}": value for name, value in checkpoint.arrays.items()}
    return {
        **{name: (str(value.dtype), value.shape, value.tobytes()) for name, value in arrays.items()},
        "progress": {name: value for name, value in checkpoint.progress.items() if "seconds" not in name},
        "step": checkpoint.step,
        "metrics": [{name: v for name, v in row.items() if name not in TIMING} for row in run.metrics()],
    }


def files_in(folder: Path) -> dict[str, bytes]:
    """The content of every file in a folder, to see that nothing was lost or changed."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
