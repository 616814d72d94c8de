"""Asking a trained run: likelihood estimates and reconstructions, in either backend."""

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ppl_tvae.data import Plan, SequenceData, open_data, render
from ppl_tvae.diagnostics.contact_sheet import contact_sheet
from ppl_tvae.errors import UserError, unknown_name
from ppl_tvae.inference import bounds
from ppl_tvae.models import catalogue
from ppl_tvae.models.assembly import assemble
from ppl_tvae.runs import Run
from ppl_tvae.training import data_of, renderer

SPLITS = ("train", "validation", "test")
_SEQUENCES_PER_BATCH = 8


@contextmanager
def evaluator(run: Run, data: SequenceData, backend: str | None, device: str, seed: int) -> Iterator[Any]:
    """The run's program with its best parameters, in its own backend or the other one. Raises UserError."""
    name = backend or run.experiment.backend
    if name not in catalogue.BACKENDS:
        raise unknown_name("backend", name, catalogue.BACKENDS)
    modules = [import_module(f"ppl_tvae.inference.{name}.{part}") for part in ("device", "evaluator")]
    with modules[0].on_device(device, run.experiment.precision):
        program, parameters = assemble(run.experiment, name), run.parameters()
        yield modules[1].Evaluator(
            program, parameters, renderer(run.experiment), data.tables, run.experiment.precision, seed
        )


def evaluate(
    run: Run,
    *,
    estimators: Sequence[str] = ("elbo", "iwae"),
    particles: Sequence[int] = (1, 10, 100),
    split: str = "test",
    max_sequences: int = 200,
    backend: str | None = None,
    device: str = "auto",
    seed: int = 0,
    quiet: bool = False,
) -> list[dict[str, Any]]:
    """Estimates of log p(x) on whole sequences, nats per frame with a standard error over sequences.

    particles: the K of each IWAE bound; the largest is the number of weights drawn, and the ELBO is the mean of their
    logarithms. The records go to evaluation.json too. Raises UserError.
    """
    _check(estimators, particles, split, max_sequences)
    data, started = data_of(run.experiment), time.perf_counter()
    plan = _plan_of(data, split, max_sequences)
    with evaluator(run, data, backend, device, seed) as ready:
        log_weights = _log_weights(ready, plan, max(particles), quiet)
    settings = {
        "split": split,
        "num_sequences": log_weights.shape[1],
        "likelihood": run.experiment.likelihood,
        "backend": backend or run.experiment.backend,
        "seed": seed,
    }
    records = [_record(name, k, values, data, settings) for name, k, values in _values(estimators, particles, log_weights)]
    for record in records:
        record["seconds"] = round(time.perf_counter() - started, 1)
        run.add_evaluation(record)
    return records


def reconstruction_sheet(run: Run, num_sequences: int = 6, backend: str | None = None, device: str = "auto") -> Path:
    """A PNG in the run's figures: test sequences, and below each what the model makes of the guide's latents."""
    data = data_of(run.experiment)
    plan = data.test_plan(num_sequences)
    with evaluator(run, data, backend, device, seed=0) as ready:
        pairs = np.stack([ready.frames(plan), ready.reconstruct(plan)], axis=1)
    rows = [text for label in _row_labels(data, plan) for text in (label, "reconstruction")]
    path = run.figure("reconstructions.png")
    title = f"{run.experiment.model} on {run.experiment.data}: test sequences, and E[x | latents drawn from the guide]"
    contact_sheet(np.clip(pairs.reshape(-1, *pairs.shape[2:]), 0, 1), rows, path, title)
    return path


def _log_weights(ready: Any, plan: Plan, num_particles: int, quiet: bool) -> np.ndarray:
    """(num_particles, sequences), float64."""
    parts = [Plan(*(field[start : start + _SEQUENCES_PER_BATCH] for field in plan)) for start in _starts(plan)]
    bar = tqdm(enumerate(parts), total=len(parts), unit="batch", disable=True if quiet else None)
    drawn = [ready.log_weights(part, index, num_particles) for index, part in bar]
    return np.concatenate(drawn, axis=1).astype(np.float64)


def _starts(plan: Plan) -> range:
    return range(0, len(plan.image), _SEQUENCES_PER_BATCH)


def _values(
    estimators: Sequence[str], particles: Sequence[int], log_weights: np.ndarray
) -> Iterator[tuple[str, int, np.ndarray]]:
    """(estimator, K, one value per sequence in nats) for everything that was asked."""
    if "elbo" in estimators:
        yield "elbo", log_weights.shape[0], bounds.elbo(log_weights)
    if "iwae" in estimators:
        for k in sorted(set(particles)):
            yield "iwae", k, bounds.iwae_bound(log_weights, k)


def _record(
    estimator: str, num_particles: int, values: np.ndarray, data: SequenceData, settings: dict[str, Any]
) -> dict[str, Any]:
    per_frame = values / data.num_timesteps
    value = float(per_frame.mean())
    normalised = settings["likelihood"] != "bernoulli-grey"
    bits = -value / math.log(2) / math.prod(data.frame_shape) if normalised else None
    return {
        "estimator": estimator,
        "num_particles": num_particles,
        "side": "lower bound of log p(x)" if normalised else "lower bound of a score that is no log-density",
        "unit": "nats per frame",
        "value": value,
        "standard_error": float(bounds.standard_error(per_frame)),
        "bits_per_dimension": bits,
        **settings,
    }


def _plan_of(data: SequenceData, split: str, limit: int) -> Plan:
    if split == "test":
        return data.test_plan(limit)
    if split == "validation":
        return data.validation_plan(limit)
    first = data.train_plans(0, 0, 1, min(limit, len(data.train)))
    return Plan(*(field[0] for field in first))


def _check(estimators: Sequence[str], particles: Sequence[int], split: str, max_sequences: int) -> None:
    for name in estimators:
        if name not in catalogue.ESTIMATORS:
            raise unknown_name("estimator", name, catalogue.ESTIMATORS)
    if split not in SPLITS:
        raise unknown_name("split", split, SPLITS)
    if not particles or min(particles) < 1:
        raise UserError(f"expected numbers of particles of at least 1, found {list(particles)}")
    if max_sequences < 1:
        raise UserError(f"expected max_sequences of at least 1, found {max_sequences}")


def data_sheet(
    name: str, data_dir: Path | None, transforms: Sequence[str] | None, num_sequences: int, path: Path
) -> Path:
    """A PNG of test sequences of a data set, as the programs see them, grey. Raises UserError."""
    data = open_data(name, data_dir, **({"transforms": tuple(transforms)} if transforms else {}))
    plan = data.test_plan(num_sequences)
    contact_sheet(render(data.tables, plan), _row_labels(data, plan), path, f"{name}, test sequences")
    return path


def _row_labels(data: SequenceData, plan: Plan) -> list[str]:
    names = [data.transforms[index] for index in plan.transform]
    return [f"{label}, {name}" for label, name in zip(data.labels[plan.image], names, strict=True)]
