"""One page on one or several runs: what was run and how to repeat it, what it is worth, pictures, warnings."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ppl_tvae import comparison
from ppl_tvae.diagnostics.predictive import extremes
from ppl_tvae.diagnostics.rate import signs_of_collapse
from ppl_tvae.errors import UserError
from ppl_tvae.figures import FIGURES, draw_figures, old_figures
from ppl_tvae.figures.charts import bounds_chart, training_curves
from ppl_tvae.files import write
from ppl_tvae.records import weights_verdict
from ppl_tvae.report.diagnosis import diagnosis_sections
from ppl_tvae.report.page import Code, Picture, Section, Table, Warning, page, with_error
from ppl_tvae.runs import Run, runs_at
from ppl_tvae.trained import check_place


def write_report(
    runs: Run | Path | str | Sequence[Run | Path | str],
    path: Path | str | None = None,
    *,
    backend: str | None = None,
    device: str = "auto",
) -> Path:
    """Write the page, by default to report.html in the first run's directory, and return its path.

    It shows what the runs hold; estimates and metrics that have not been made yet are named with the command that
    makes them. Pictures that are missing, or older than the parameters, are drawn (by `backend` on `device`). Raises
    UserError.
    """
    opened = runs_at(runs)
    check_place(backend, device)
    path = Path(path or opened[0].path / "report.html")
    for run in opened:
        draw_figures(run, old_figures(run, FIGURES), backend=backend, device=device)
    names = ", ".join(run.name for run in opened)
    sections = [_summary(opened), _training(opened), _estimates(opened), _equivariance(opened)]
    for run in opened:
        sections += [*diagnosis_sections(run), _pictures(run)]
    sections += [_repeat(run) for run in opened]
    write(path, page(f"ppl-tvae: {names}", sections).encode())
    return path


def _summary(runs: Sequence[Run]) -> Section:
    header = ("run", "model", "guide", "prior", "likelihood", "data", "backend", "steps", "seed", "parameters")
    rows = [[run.name, *_described(run)] for run in runs]
    return Section("What was run", [Table("one row per run", header, rows, range(1, 7)), *_warnings(runs)])


def _described(run: Run) -> list[str]:
    experiment = run.experiment
    own = experiment.program_file
    prior = " and ".join(dict.fromkeys(experiment.priors.values()))
    count = sum(value.size for value in run.parameters().values())
    return [
        own.name if own else experiment.model,
        "in the program" if own else experiment.guide,
        "in the program" if own else prior,
        experiment.likelihood,
        Path(experiment.data).name,
        experiment.backend,
        "elsewhere" if experiment.trained_by else f"{run.steps_done} of {experiment.steps}",
        str(experiment.seed),
        f"{count:,}",
    ]


def _warnings(runs: Sequence[Run]) -> list[Warning]:
    found = []
    for run in runs:
        name, experiment = run.name, run.experiment
        if experiment.likelihood == "bernoulli-grey":
            found.append(
                f"{name}: bernoulli-grey is a score of grey pixels, not a density; its figures are no log p(x)."
            )
        if run.is_unfinished:
            found.append(f"{name}: training has not reached its last step.")
        if len(run.present_evaluations()) < len(run.evaluations()):
            found.append(f"{name}: estimates of earlier parameters are left out; make them again.")
        if run.diagnosis() and not run.present_diagnosis():
            found.append(f"{name}: a diagnosis of earlier parameters is left out; make it again.")
        found += [f"{name}: {sentence}." for sentence in signs_of_collapse(run.present_diagnosis())]
        checks = run.present_diagnosis().get("predictive_checks", [])
        found += [f"{name}, {words}" for words in extremes(checks, experiment.likelihood)]
        verdicts = {words for record in run.present_evaluations() if (words := weights_verdict(record))}
        found += [
            f"{name}, importance weights: {words}." for words in sorted(verdicts) if not words.startswith("reliable")
        ]
    return [Warning(text) for text in found]


def _training(runs: Sequence[Run]) -> Section:
    elsewhere = [f"{run.name} was trained by {by}." for run in runs if (by := run.experiment.trained_by)]
    rows = {run.name: run.metrics() for run in runs if not run.experiment.trained_by}
    caption = (
        "The bound that is trained, on training batches, averaged over each log interval, and the held-out ELBO that "
        "chooses the best parameters. The first row, before training, is left out."
    )
    if any(run.experiment.kl_warmup_steps for run in runs):
        caption += " While the weight of the KL part rises (kl_warmup_steps), what is trained is no bound of log p(x)."
    return Section("Training", [*([Picture(training_curves(rows), caption)] if rows else []), *elsewhere])


def _estimates(runs: Sequence[Run]) -> Section:
    heading = "How likely held-out sequences are"
    measured = [run for run in runs if run.present_evaluations()]
    hints = [
        f"No estimates in {run.name} yet: ppl-tvae evaluate {shlex.quote(str(run.path))}"
        for run in runs
        if run not in measured
    ]
    if not measured:
        return Section(heading, hints)
    try:
        compared = comparison.compare(measured)
    except UserError as error:
        parts: list[Any] = [Warning(f"These runs are not ranked: {error}.")]
        for run in measured:
            parts += _compared(comparison.compare([run]))
        return Section(heading, [*parts, *hints])
    return Section(heading, [*_compared(compared), *hints])


def _compared(compared: comparison.Comparison) -> list[Any]:
    """A row per estimate, a column per run and per paired difference; and a chart of what all runs share."""
    first, *others = compared.estimates
    columns = compared.estimates | {f"{other} minus {first}": compared.differences.get(other, {}) for other in others}
    headings, cells = comparison.headings_and_cells(columns)
    header = ["estimate", *columns]
    rows = [[heading, *(own.get(key, "-") for own in cells.values())] for key, heading in headings.items()]
    paired = (
        f"; differences are paired over {comparison.paired_over(compared)}"
        if any(compared.differences.values())
        else ""
    )
    caption = compared.header + paired
    of_test_data = {
        run: {headings[key]: entry for key, entry in own.items() if not key.startswith(comparison.ON_OWN_DATA)}
        for run, own in compared.estimates.items()
    }
    parts: list[Any] = [Table(caption, header, rows), *_over_seeds(compared)]
    parts += [Warning(f"{words}.") for words in comparison.remarks(compared)]
    if any(of_test_data.values()):
        about = "The estimates on test data. Error bars are those of single runs; paired differences are narrower."
        parts.append(Picture(bounds_chart(of_test_data), about))
    return parts


def _over_seeds(compared: comparison.Comparison) -> list[Any]:
    """A row per estimate, a column per group of runs that differ in their seed alone, and per difference of groups."""
    if not compared.over_seeds:
        return []
    first, *_ = compared.over_seeds
    minus = {f"{other} minus {first}": own for other, own in compared.differences_over_seeds.items()}
    headings, cells = comparison.over_seeds_in_words(compared.over_seeds | minus)
    rows = [[heading, *(own.get(key, "-") for own in cells.values())] for key, heading in headings.items()]
    counts = ", ".join(f"{name} {count}" for name, count in comparison.seed_counts(compared).items())
    caption = f"mean ± standard deviation over seeds ({counts}); differences are paired by seed and sequence"
    return [Table(caption, ["estimate", *cells], rows)]


def _equivariance(runs: Sequence[Run]) -> Section:
    """One table of all runs that were measured on alike sequences; of runs that were not, one each."""
    parts: list[Any] = []
    groups: dict[str, dict[str, Sequence[Mapping[str, Any]]]] = {}
    for run in runs:
        if not (found := run.present_diagnosis()):
            command = f"ppl-tvae diagnose {shlex.quote(str(run.path))}"
            parts.append(f"No diagnosis of the parameters in {run.name} yet: {command}")
        elif not found.get("equivariance"):
            parts.append(
                f"Not measured for {run.name}: it has no site t of event shape (S, C, D) with S and D above 1."
            )
        else:
            groups.setdefault(_measured_on(found["equivariance"]), {})[run.name] = found["equivariance"]
    tables: list[Any] = [_metrics(measured_on, records) for measured_on, records in groups.items()]
    if tables:
        tables.append(
            "An image error of the rolled code that is not clearly below that of the code not rolled, of random rolls "
            "and of the mean frame shows no equivariance, however low E_eq is."
        )
    if len(groups) > 1:
        tables.insert(0, Warning("These runs were measured on unlike sequences; their numbers cannot be compared."))
    return Section("Does the code roll while the image moves?", [*tables, *parts])


def _measured_on(records: Sequence[Mapping[str, Any]]) -> str:
    first = records[0]
    return f"{first['num_sequences']} {first['split']} sequences ({', '.join(first['transforms'])})"


def _metrics(measured_on: str, records: Mapping[str, Sequence[Mapping[str, Any]]]) -> Table:
    meanings = {record["metric"]: record for own in records.values() for record in own}
    rows = [
        [name.replace("_", " "), *(_metric(own, name) for own in records.values()), record["unit"], record["meaning"]]
        for name, record in meanings.items()
    ]
    text_columns = (len(records) + 1, len(records) + 2)
    caption = f"mean ± standard error over {measured_on}"
    return Table(caption, ("metric", *records, "unit", "what it is"), rows, text_columns)


def _metric(records: Sequence[Mapping[str, Any]], name: str) -> str:
    for record in records:
        if record["metric"] == name:
            return with_error(record["value"], record["standard_error"])
    return "-"


def _pictures(run: Run) -> Section:
    shown = [
        Picture((run.path / "figures" / each.file).read_bytes(), each.caption)
        for each in FIGURES.values()
        if (run.path / "figures" / each.file).exists()
    ]
    return Section(f"Pictures: {run.name}", shown)


def _repeat(run: Run) -> Section:
    program, trained_by = run.experiment.program_file, run.experiment.trained_by
    files = [run.path / "config.toml", *([program] if program else [])]
    texts = [file.read_text(encoding="utf-8", errors="replace") for file in files]
    command = f"ppl-tvae train --config {shlex.quote(str(run.path / 'config.toml'))} --out runs/again"
    how = f"Its parameters are those of {trained_by}, outside of this package." if trained_by else Code(command)
    return Section(f"How to repeat {run.name}", [how, *map(Code, texts)])
