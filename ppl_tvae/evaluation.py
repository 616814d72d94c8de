"""Asking a trained run how likely held-out sequences are, in either backend."""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ppl_tvae import catalogue
from ppl_tvae.assembly import data_of
from ppl_tvae.config import check_seed
from ppl_tvae.data import Plan, SequenceData, check_split, parts
from ppl_tvae.errors import Interrupted, UserError, check_count, check_is, unknown_name
from ppl_tvae.files import check_writable
from ppl_tvae.inference import bounds, reliability
from ppl_tvae.inference.annealing import Annealing, check_annealing
from ppl_tvae.inference.interfaces import Evaluator
from ppl_tvae.inference.unamortised import Unamortised, check_unamortised
from ppl_tvae.progress import progress
from ppl_tvae.records import estimate_name
from ppl_tvae.runs import Run, run_at
from ppl_tvae.trained import asking

_LOWER, _UPPER = "lower bound of log p(x)", "upper bound of log p(x)"
_OF_WEIGHTS = ("elbo", "iwae", "log-evidence")
_NOTES_IN_NATS = ("mean_bias_added", "mean_gap", "gap_standard_error")
_MOST_PARTICLES = 10_000_000  # weights of a batch of sequences are in memory together


class _Request(NamedTuple):
    """Everything that determines the numbers, beside the run itself."""

    estimators: Sequence[str]
    particles: Sequence[int]
    annealing: Annealing
    guide: Unamortised | None
    split: str
    max_sequences: int
    seed: int

    def check(self) -> None:
        """Raises UserError."""
        if not self.estimators:
            raise UserError(f"expected at least one estimator, found none; choose of {', '.join(catalogue.ESTIMATORS)}")
        for name in self.estimators:
            if name not in catalogue.ESTIMATORS:
                raise unknown_name("estimator", name, catalogue.ESTIMATORS)
        check_split(self.split)
        if not self.particles:
            raise UserError("expected at least one number of particles, found none; give one, such as 100")
        for each in self.particles:
            check_count("a number of particles", each, most=_MOST_PARTICLES)
        if "log-evidence" in self.estimators and max(self.particles) < 2:
            raise UserError(f"expected at least 2 particles for log-evidence, found {max(self.particles)}")
        check_count("max_sequences", self.max_sequences)
        check_is("annealing", self.annealing, Annealing)
        check_annealing(self.annealing)
        if self.guide is not None:
            check_is("guide", self.guide, Unamortised)
            check_unamortised(self.guide)
            if other := [name for name in self.estimators if name not in _OF_WEIGHTS]:
                raise UserError(
                    f"expected only {', '.join(_OF_WEIGHTS)} with a guide fitted to each sequence, found {other[0]}"
                )
        check_seed(self.seed)


def evaluate(
    run: Run | Path | str,
    *,
    estimators: str | Sequence[str] = ("elbo", "iwae"),
    particles: int | Sequence[int] = (1, 10, 100),
    annealing: Annealing = Annealing(),  # noqa: B008 - a tuple of plain values
    guide: Unamortised | None = None,
    split: str = "test",
    transforms: Sequence[str] | None = None,
    max_sequences: int = 200,
    seed: int = 0,
    backend: str | None = None,
    device: str = "auto",
    quiet: bool = False,
) -> list[dict[str, Any]]:
    """Estimates of log p(x) of whole sequences, nats per frame with a standard error over sequences.

    run: a run, or the path of its directory. particles: the K of each IWAE bound and of released-is; the largest is the
    number of weights drawn, and the ELBO is the mean of their logarithms. annealing: of ais and sandwich. guide: one of
    the host's automatic guides, fitted to each sequence alone, in place of the run's own. transforms: what moves in the
    sequences, where that is something else than in training. docs/likelihoods.md defines each estimator.
    Each record goes to evaluation.json as soon as it is there, with every setting needed to repeat it and the value of
    each sequence, for paired comparisons. After Ctrl-C so does that of the estimator at hand, over the sequences that
    are done. Raises UserError or Interrupted.
    """
    run = run_at(run)
    names = (estimators,) if isinstance(estimators, str) else estimators
    numbers = tuple(particles) if isinstance(particles, Iterable) else (particles,)
    request = _Request(names, numbers, annealing, guide, split, max_sequences, seed)
    request.check()
    # What keeps results from being written is said before they are computed.
    check_writable(run.path)
    run.evaluations()
    data = data_of(run.experiment, transforms)
    plan = data.plan(split, max_sequences)
    records = []
    with asking(run, data, split, seed, backend, device) as asked:
        for estimate in _estimates(asked.evaluator, plan, request, quiet):
            record = _record(estimate, run, data, request)
            record |= {"backend": asked.backend, "parameters": asked.parameters}
            if len(estimate.values) < len(plan.image):
                record["stopped_before"] = len(plan.image)  # by Ctrl-C
            run.add_evaluation(record)
            records.append(record)
    if records[-1]["num_sequences"] < len(plan.image):
        raise Interrupted(
            f"stopped after {records[-1]['num_sequences']} of {len(plan.image)} sequences; what these give is in "
            f"'{run.path / 'evaluation.json'}'"
        )
    return records


class _Estimate(NamedTuple):
    """One number to report: its name, its settings, and a value per sequence; it and the notes in nats per sequence."""

    estimator: str
    settings: dict[str, Any]
    side: str
    values: np.ndarray
    seconds: float
    notes: dict[str, Any]


def _estimates(ready: Evaluator, plan: Plan, request: _Request, quiet: bool) -> Iterator[_Estimate]:
    """All that is asked for; after Ctrl-C those that come of the sequences done by then are the last ones."""
    asked = request.estimators
    groups: list[Iterator[_Estimate]] = []
    if any(name in asked for name in _OF_WEIGHTS):
        groups.append(_from_weights(ready, plan, request, quiet))
    if "released-is" in asked:
        # A program without a score per frame is refused before anything else is computed.
        index, first = next(iter(parts(plan)))
        ready.log_weights(first, index, min(request.particles), per_frame=True)
        groups += [_released(ready, plan, k, quiet) for k in sorted(set(request.particles))]
    if "ais" in asked:
        groups.append(_annealed(ready, plan, request.annealing, quiet))
    if "sandwich" in asked:
        groups.append(_sandwich(ready, plan, request.annealing, quiet))
    for group in groups:
        for estimate in group:
            yield estimate
        if len(estimate.values) < len(plan.image):
            return


def _from_weights(ready: Evaluator, plan: Plan, request: _Request, quiet: bool) -> Iterator[_Estimate]:
    """ELBO, IWAE-K and log-evidence from one set of draws."""
    drawn, fitted = max(request.particles), request.guide

    def draw(part: Plan, index: int, _: Any) -> np.ndarray:
        if fitted is not None:
            return ready.unamortised_log_weights(part, index, drawn, fitted)
        return ready.log_weights(part, index, drawn)

    collected, seconds = _collect(plan, draw, "weights", 1, quiet)
    of_guide = {} if fitted is None else {f"guide_{key}": value for key, value in fitted._asdict().items()}
    log_weights = np.concatenate(collected, axis=1).astype(np.float64)
    if "elbo" in request.estimators:
        yield _Estimate("elbo", {"num_particles": drawn} | of_guide, _LOWER, bounds.elbo(log_weights), seconds, {})
    if "iwae" in request.estimators:
        trust = _trust(log_weights)
        for k in sorted(set(request.particles)):
            values = bounds.iwae_bound(log_weights, k)
            yield _Estimate("iwae", {"num_particles": k, "num_drawn": drawn} | of_guide, _LOWER, values, seconds, trust)
    if "log-evidence" in request.estimators:
        values, bias = bounds.jackknifed_log_evidence(log_weights)
        notes = {"mean_bias_added": float(np.mean(-bias))} | _trust(log_weights)
        yield _Estimate(
            "log-evidence", {"num_particles": drawn} | of_guide, "no bound (jackknife)", values, seconds, notes
        )


def _trust(log_weights: np.ndarray) -> dict[str, Any]:
    khats, sizes = reliability.khat(log_weights), bounds.effective_sample_size(log_weights)
    known = khats[~np.isnan(khats)]
    quantiles = np.quantile(known, (0.1, 0.5, 0.9), method="inverted_cdf") if len(known) else None
    return {
        "khat_quantiles": None if quantiles is None else [reliability.rounded(value) for value in quantiles],
        "median_effective_sample_size": round(float(np.median(sizes)), 2),
        "verdict": reliability.verdict(khats, sizes, len(log_weights)),
    }


def _released(ready: Evaluator, plan: Plan, num_particles: int, quiet: bool) -> Iterator[_Estimate]:
    def draw(part: Plan, index: int, _: Any) -> np.ndarray:
        return ready.log_weights(part, index, num_particles, per_frame=True)

    collected, seconds = _collect(plan, draw, "released-is", 1, quiet)
    per_frame = np.concatenate(collected, axis=1).astype(np.float64)
    values, settings = bounds.released_is(per_frame) * per_frame.shape[2], {"num_particles": num_particles}
    yield _Estimate("released-is", settings, "NO bound (the released code's score)", values, seconds, {})


def _annealed(ready: Evaluator, plan: Plan, annealing: Annealing, quiet: bool) -> Iterator[_Estimate]:
    def draw(part: Plan, index: int, progress: Any) -> Any:
        return ready.annealed(part, index, annealing, progress)

    walks, seconds = _collect(plan, draw, "ais", 2 * (annealing.num_temperatures - 2), quiet)
    log_weights = np.concatenate([walk.log_weights for walk in walks], axis=1).astype(np.float64)
    settings, notes = annealing._asdict(), _moves(walks)
    yield _Estimate("ais", settings, f"stochastic {_LOWER}", bounds.log_mean_exp(log_weights), seconds, notes)


def _sandwich(ready: Evaluator, plan: Plan, annealing: Annealing, quiet: bool) -> Iterator[_Estimate]:
    def draw(part: Plan, index: int, progress: Any) -> Any:
        return ready.bracketed(part, index, annealing, progress)

    pairs, seconds = _collect(plan, draw, "sandwich", 3 * (annealing.num_temperatures - 2), quiet)
    forward = np.concatenate([pair[0].log_weights for pair in pairs], axis=1).astype(np.float64)
    backward = np.concatenate([pair[1].log_weights for pair in pairs], axis=1).astype(np.float64)
    lower, upper = bounds.log_mean_exp(forward), -bounds.log_mean_exp(-backward)
    gap = {
        "mean_gap": float(np.mean(upper - lower)),
        "gap_standard_error": bounds.standard_error(upper - lower),
        "data": "simulated from the model",
    }
    settings, notes = annealing._asdict(), gap | _moves([pair[0] for pair in pairs])
    yield _Estimate("sandwich-lower", settings, f"stochastic {_LOWER}", lower, seconds, notes)
    yield _Estimate("sandwich-upper", settings, f"stochastic {_UPPER}", upper, seconds, notes)


def _moves(walks: Sequence[Any]) -> dict[str, Any]:
    rates = np.concatenate([walk.acceptance_rates for walk in walks])
    if not len(rates):
        return {}
    return {"acceptance_rate": round(float(rates.mean()), 3), "lowest_acceptance_rate": round(float(rates.min()), 3)}


def _collect(
    plan: Plan, draw: Callable[[Plan, int, Any], Any], name: str, ticks_per_batch: int, quiet: bool
) -> tuple[list[Any], float]:
    """draw(part, index, progress) for each batch of the plan; on Ctrl-C what is done so far, if anything is."""
    batches, started = list(parts(plan)), time.perf_counter()
    done: list[Any] = []
    with progress(what=name, quiet=quiet, total=len(batches) * max(1, ticks_per_batch)) as bar:
        try:
            for index, part in batches:
                done.append(draw(part, index, bar.update))
                bar.update((index + 1) * max(1, ticks_per_batch) - bar.n)
        except KeyboardInterrupt:
            if not done:
                raise
    return done, time.perf_counter() - started


def _record(estimate: _Estimate, run: Run, data: SequenceData, request: _Request) -> dict[str, Any]:
    experiment, per_frame = run.experiment, estimate.values / data.num_timesteps
    value = float(per_frame.mean())
    grey, simulated = experiment.likelihood == "bernoulli-grey", estimate.estimator.startswith("sandwich")
    side = estimate.side + (" of simulated sequences" if simulated else "")
    if grey:
        side += ", of zeros and ones" if simulated else ", but of a score that is no log-density"
    bits = -value / math.log(2) / math.prod(data.frame_shape)
    notes = {
        name: note / data.num_timesteps if name in _NOTES_IN_NATS and note is not None else note
        for name, note in estimate.notes.items()
    }
    return {
        "estimator": estimate.estimator,
        **estimate.settings,
        "value": value,
        "standard_error": bounds.standard_error(per_frame),
        "unit": "nats per frame",
        "side": side,
        "bits_per_dimension": None if grey or simulated or estimate.estimator == "released-is" else bits,
        "likelihood": experiment.likelihood,
        "data": experiment.data,
        **({"data_digest": experiment.data_digest} if experiment.data_digest else {}),
        "transforms": list(data.transforms),
        "split": request.split,
        # Which training images are held out for validation; test sequences do not depend on it.
        **({"validation_fraction": experiment.validation_fraction} if request.split != "test" else {}),
        "num_sequences": len(per_frame),
        "num_timesteps": data.num_timesteps,
        "seed": request.seed,
        "notes": notes,
        "seconds": round(estimate.seconds, 1),
        "per_sequence": [round(float(nats), 4) for nats in per_frame],
    }


def as_text(records: Sequence[dict[str, Any]]) -> str:
    """The records of `evaluate` for people: a line each, and what is to be said of them."""
    first = records[0]
    simulated = all(record["estimator"].startswith("sandwich") for record in records)
    of = "simulated" if simulated else first["split"]
    what = f"{first['num_sequences']} {of} sequences, likelihood {first['likelihood']}"
    lines = [f"{what}, {first['unit']} +- standard error"]
    for record in records:
        error = "unknown" if record["standard_error"] is None else f"{record['standard_error']:.3f}"
        lines.append(f"  {estimate_name(record):15} {record['value']:10.3f} +- {error:7}  {record['side']}")
    for estimators, notes in _notes(records):
        lines.append(f"  of {', '.join(estimators)}:")
        lines += [
            f"    {_NOTES.get(note, note.replace('_', ' '))}: {_in_words(value)}" for note, value in notes.items()
        ]
    return "\n".join(lines)


def _notes(records: Sequence[dict[str, Any]]) -> list[tuple[list[str], dict[str, Any]]]:
    """What is to be said of the estimates, each with the names of the estimators that it holds for."""
    found: list[tuple[list[str], dict[str, Any]]] = []
    for record in records:
        notes = {note: value for note, value in record["notes"].items() if value is not None}
        if notes and (not found or found[-1][1] != notes):
            found.append(([record["estimator"]], notes))
        elif notes and record["estimator"] not in found[-1][0]:
            found[-1][0].append(record["estimator"])
    return found


_NOTES = {
    "khat_quantiles": "Pareto k-hat of the sequences, at 10, 50 and 90 %",
    "median_effective_sample_size": "effective sample size of the weights, median over sequences",
    "mean_bias_added": "added for the bias of a logarithm, nats per frame",
    "mean_gap": "gap of the sandwich, nats per frame",
    "gap_standard_error": "its standard error",
}


def _in_words(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_in_words, value))
    return f"{value:.3g}" if isinstance(value, float) else str(value)
