"""An experiment of the paper, run: every row and seed an ordinary run directory, and one table of them all.

What is there already is kept: a finished run is not trained again, one that was interrupted goes on, and numbers that
stand in evaluation.json and diagnosis.json are read from there.
"""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from ppl_tvae.assembly import data_of
from ppl_tvae.config import Experiment, experiment_from
from ppl_tvae.diagnosis import equivariance_metrics
from ppl_tvae.errors import NoFrameScore, UserError, check_count, unknown_name
from ppl_tvae.evaluation import evaluate
from ppl_tvae.experiments import Column, Reproduction, experiment_of_the_paper
from ppl_tvae.figures import draw_figures, figure_file, old_figures
from ppl_tvae.files import alone_in, write
from ppl_tvae.plain import to_json
from ppl_tvae.records import estimate_name
from ppl_tvae.runs import Run, open_run
from ppl_tvae.seeds import MOST_SEEDS, run_of, train_seeds
from ppl_tvae.tables import aligned
from ppl_tvae.training import CHANGEABLE, resume, train

_PARTICLES = (10, 100)
# Of how many draws an estimate is, where its name does not say so.
_DRAWN = {"elbo": {"num_particles": max(_PARTICLES)}, "iwae": {"num_drawn": max(_PARTICLES)}}


@dataclass(frozen=True)
class Reproduced:
    """values: label -> column's name -> one number per seed. header: what was done, line by line."""

    header: tuple[str, ...]
    columns: tuple[Column, ...]
    values: Mapping[str, Mapping[str, Sequence[float]]]
    published: Mapping[str, Mapping[str, str]]


def reproduce(
    name: str,
    *,
    budget: str = "short",
    seeds: Sequence[int] = (0,),
    together: bool = False,
    rows: Sequence[str] | None = None,
    max_sequences: int = 200,
    out: Path | str | None = None,
    quiet: bool = False,
    **changes: Any,
) -> Reproduced:
    """Train, evaluate and tabulate an experiment of the paper (`experiments.EXPERIMENTS`) over seeds.

    budget: "paper", its own optimiser and length, or "short". together: train all seeds of a row in one program, as
    `seeds.train_seeds` does, where none of them is there yet; seeds are consecutive then, and the backend is
    numpyro. rows: some of the rows, by the names of their run directories ("tvae-13-36", "vae"); all by default.
    max_sequences: held-out sequences in every number. out: the folder of the runs, by default runs/NAME-BUDGET; the
    table so far is in it after every seed. changes: settings of every run that differ from the experiment's, such as
    steps, guide, prior, backend, data, device or matmul; the table names them. Raises UserError, or Diverged or
    Interrupted of `loop`; called again, it goes on where it was.
    """
    experiment = _with_rows(experiment_of_the_paper(name), rows)
    if budget not in experiment.budgets:
        raise unknown_name("budget", budget, experiment.budgets)
    check_count("a number of seeds", len(seeds), most=MOST_SEEDS)
    check_count("max_sequences", max_sequences)
    if str(changes.get("data", "")).endswith(".npz"):
        changes["data"] = os.path.abspath(os.path.expanduser(changes["data"]))  # as the run directories have it
    experiment = _on_the_data_of(experiment, budget, changes)
    folder = Path(out or Path("runs") / f"{name}-{budget}")
    asked = list(_experiments(experiment, budget, seeds, changes))
    if together:
        _check_together(seeds, asked[0][1].backend)
    resolved = [planned.resolved() for _, planned in asked]  # so that all are checked before the first is trained
    count = len(data_of(resolved[0]).test_plan(max_sequences).image)
    values: dict[str, dict[str, list[float]]] = {label: {} for label in experiment.rows}
    drawn: dict[str, None] = {}  # in order; images without labels have no map of classes
    for number, (label, planned) in enumerate(asked, start=1):
        row = folder / _slug(label)
        if together and not any(run_of(row, seed).exists() for seed in seeds):
            train_seeds(planned, len(seeds), row, quiet=quiet)
        run = _trained(planned, run_of(row, planned.seed), quiet)
        for column, value in _numbers(run, experiment, count, planned.device, quiet).items():
            values[label].setdefault(column, []).append(value)
        moving = experiment.test_transforms
        draw_figures(run, old_figures(run, experiment.figures, moving), transforms=moving, device=planned.device)
        files = [figure_file(run.experiment, figure, moving) for figure in experiment.figures]
        drawn |= {file: None for file in files if (run.path / "figures" / file).exists()}
        if number % len(experiment.rows) == 0:
            done = seeds[: number // len(experiment.rows)]
            header = _header(experiment, budget, done, count, resolved[0], changes, list(drawn))
            reproduced = Reproduced(header, experiment.columns, values, experiment.published)
            _save(reproduced, folder)
    return reproduced


def _save(reproduced: Reproduced, folder: Path) -> None:
    write(folder / "table.md", (as_text(reproduced, markdown=True) + "\n").encode())
    write(folder / "table.json", (to_json(as_json(reproduced), indent=1) + "\n").encode())


def _on_the_data_of(experiment: Reproduction, budget: str, changes: Mapping[str, Any]) -> Reproduction:
    """On other data than the paper's, its title says so, and no number of the paper's stands beside ours."""
    own = {experiment.settings_of(label, budget)["data"] for label in experiment.rows}
    if changes.get("data") in (None, *own):
        return experiment
    return replace(experiment, title=f"{experiment.title}; but of {Path(changes['data']).name}", published={})


def _with_rows(experiment: Reproduction, chosen: Sequence[str] | None) -> Reproduction:
    if chosen is None:
        return experiment
    by_name = {_slug(label): label for label in experiment.rows}
    if not chosen:
        raise UserError(f"expected at least one row, found none; name of {', '.join(by_name)}")
    for name in chosen:
        if name not in by_name:
            raise unknown_name("row", name, by_name)
    return replace(experiment, rows={by_name[name]: experiment.rows[by_name[name]] for name in chosen})


def as_text(reproduced: Reproduced, markdown: bool = False) -> str:
    """The header, and a row per model: mean over seeds ± their standard deviation, where there are several."""
    columns = [column for column in reproduced.columns if any(column.name in own for own in reproduced.values.values())]
    cells = [["", *(f"{column.heading} [{column.convention}]" for column in columns)]]
    for label, own in reproduced.values.items():
        cells.append([label, *(_cell(own.get(column.name, ()), column, reproduced, label) for column in columns)])
    if markdown:
        return "\n\n".join(["\n".join(f"- {line}" for line in reproduced.header), aligned(cells, markdown=True)])
    return "\n".join([*reproduced.header, "", aligned(cells)])


def as_json(reproduced: Reproduced) -> dict[str, Any]:
    """The same as plain values, with one number per seed."""
    return {
        "header": list(reproduced.header),
        "columns": {column.name: column.convention for column in reproduced.columns},
        "values": {
            label: {name: list(seeds) for name, seeds in own.items()} for label, own in reproduced.values.items()
        },
        "published": {label: dict(own) for label, own in reproduced.published.items()},
    }


def _experiments(
    experiment: Reproduction, budget: str, seeds: Sequence[int], changes: Mapping[str, Any]
) -> Iterator[tuple[str, Experiment]]:
    """Every run, seed by seed, so that a table over the first seeds is there before the next begin."""
    for seed in seeds:
        for label in experiment.rows:
            yield label, experiment_from({**experiment.settings_of(label, budget), **changes, "seed": seed})


def _check_together(seeds: Sequence[int], backend: str) -> None:
    if backend != "numpyro":
        raise UserError(f"expected backend 'numpyro' to train seeds together, found '{backend}'; leave out --together")
    if list(seeds) != list(range(seeds[0], seeds[0] + len(seeds))):
        raise UserError(f"expected consecutive seeds to train together, found {', '.join(map(str, seeds))}")


def _trained(experiment: Experiment, path: Path, quiet: bool) -> Run:
    """The run of this experiment at this path: found finished, gone on with, or trained. Raises UserError."""
    if not (path / "config.toml").exists():
        return train(experiment, path, quiet=quiet)
    run = open_run(path)
    _check_is(run, experiment)
    if run.steps_done < experiment.steps:
        return resume(path, device=experiment.device, data_dir=experiment.data_dir or None, quiet=quiet)
    # Where its data are may have changed since.
    return replace(run, experiment=replace(run.experiment, data_dir=experiment.data_dir or run.experiment.data_dir))


def _check_is(run: Run, experiment: Experiment) -> None:
    """Raises UserError where the run at hand is another than the one that is asked for."""
    expected = experiment.resolved()
    for setting in fields(Experiment):
        found, value = getattr(run.experiment, setting.name), getattr(expected, setting.name)
        place = setting.name in CHANGEABLE and setting.name != "steps"
        if found != value and not place and value is not None:
            raise UserError(
                f"expected {setting.name} {value!r} in '{run.path}', found {found!r}: it is a run of other settings; "
                f"choose another --out"
            )


def _numbers(run: Run, experiment: Reproduction, count: int, device: str, quiet: bool) -> dict[str, float]:
    """Every number of the columns that the run has, measured now where it is not in its files yet."""
    wanted = {kind: {c.name for c in experiment.columns if c.of == kind} for kind in ("evaluation", "diagnosis")}
    moving = experiment.test_transforms
    tested = list(moving or run.experiment.transforms or ())
    asked: dict[str, Any] = {"num_sequences": count, "split": "test", "seed": 0, "transforms": tested}
    asked["backend"] = run.experiment.backend  # the other one has other draws
    place: dict[str, Any] = {"transforms": moving, "device": device, "quiet": quiet}
    missing = wanted["evaluation"] - set(_evaluated(run, asked))
    scores = {name for name in missing if name.startswith("released-is")}
    if missing - scores:
        evaluate(run, estimators=("elbo", "iwae"), particles=_PARTICLES, max_sequences=count, **place)
    if scores:
        with suppress(NoFrameScore):  # of some guides and priors: their cells stay empty
            evaluate(run, estimators="released-is", particles=_PARTICLES, max_sequences=count, **place)
    if not wanted["diagnosis"] <= set(_diagnosed(run, asked)):
        found = equivariance_metrics(run, num_sequences=count, **place)
        with alone_in(run.path):  # what a `diagnose` has found meanwhile stays
            run.save_diagnosis(run.present_diagnosis() | found)
    values = _evaluated(run, asked) | _diagnosed(run, asked)
    known = {name: value for name, value in values.items() if value is not None}
    return {column.name: known[column.name] for column in experiment.columns if column.name in known}


def _evaluated(run: Run, asked: dict[str, Any]) -> dict[str, float]:
    """Estimates of the present parameters, by column."""
    records = [r for r in run.present_evaluations() if (asked | _DRAWN.get(r["estimator"], {})).items() <= r.items()]
    return {estimate_name(record): record["value"] for record in records}


def _diagnosed(run: Run, asked: Mapping[str, Any]) -> dict[str, float | None]:
    """Metrics of the present parameters, by column; those of one transform as NAME[TRANSFORM], None of too few."""
    found = run.present_diagnosis()
    values = {r["metric"]: r["value"] for r in found.get("equivariance", []) if asked.items() <= r.items()}
    if not values:
        return {}  # those by transform were measured together with these
    of_transforms = {
        f"{name}[{record['transform']}]": measured["value"]
        for record in found.get("by_transform", [])
        for name, measured in record.items()
        if isinstance(measured, dict)
    }
    return values | of_transforms


def _header(
    experiment: Reproduction,
    budget: str,
    seeds: Sequence[int],
    count: int,
    first: Experiment,
    changes: Mapping[str, Any],
    figures: Sequence[str],
) -> tuple[str, ...]:
    """What was done, in words; first: one of the resolved experiments, which share what is said here.

    figures: the files that the runs' figures have.
    """
    own, paper = experiment.budgets[budget], experiment.budgets["paper"]
    length = f"{first.steps:,} steps of {first.batch_size} sequences, {first.optimizer} at {first.learning_rate:g}"
    if own["steps"] != first.steps:
        length += f" (the budget '{budget}' has {own['steps']:,} steps)"
    if budget != "paper":
        length += f"; the paper: {paper['steps']:,} of {paper['batch_size']}, {paper['optimizer']} at "
        length += f"{paper['learning_rate']:g}"
    over = f"mean ± standard deviation over {len(seeds)} seeds" if len(seeds) > 1 else "one seed: no spread is known"
    score = ", a score of grey pixels and no density" if first.likelihood == "bernoulli-grey" else ""
    exceptions = experiment.exceptions.get(budget, {})
    other = [
        f"{label}: with {_listed(exceptions[label])}, without which it may diverge"
        for label in experiment.rows
        if label in exceptions
    ]
    other += [f"changed: {_listed(changes)}"] if changes else []
    return (
        experiment.title,
        f"{first.backend}, data {first.data}, {length}",
        f"likelihood {first.likelihood}{score}; {count} held-out sequences; {over}",
        "likelihoods in nats per frame, up is better; released IS is no bound; of errors down is better",
        *([f"in each run's figures/: {', '.join(figures)}"] if figures else []),
        *other,
    )


def _listed(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} = {value}" for name, value in settings.items())


def _cell(values: Sequence[float], column: Column, reproduced: Reproduced, label: str) -> str:
    if not values:
        return "-"
    digits = 4 if "image" in column.name else 0 if "equivariance" in column.name else 2
    text = f"{mean(values):,.{digits}f}" + (f" ± {stdev(values):,.{digits}f}" if len(values) > 1 else "")
    published = reproduced.published.get(label, {}).get(column.heading)
    return f"{text} (paper {published})" if published else text


def _slug(label: str) -> str:
    """`tvae, L = 1/2 S` -> `tvae-1-2`."""
    return re.sub(r"[^a-z0-9]+", "-", re.sub(r"\b[LS]\b", " ", label)).strip("-")
