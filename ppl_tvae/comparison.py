"""Runs side by side: their estimates, and differences paired over the same sequences."""

import csv
import io
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

import numpy as np

from ppl_tvae.config import OF_TRAINING, OWN_DIGESTS
from ppl_tvae.errors import UserError
from ppl_tvae.inference import bounds
from ppl_tvae.inference.annealing import Annealing
from ppl_tvae.inference.unamortised import Unamortised
from ppl_tvae.records import COUNTED, estimate_name, weights_verdict
from ppl_tvae.runs import Run, runs_at
from ppl_tvae.tables import aligned

# What must be the same for two numbers to measure the same thing; data of the user's own are by their digest, wherever
# they lie and whatever the file's name.
_CONDITIONS = (
    "likelihood", "data", "data_digest", "transforms", "split", "validation_fraction", "num_timesteps", "unit",
)  # fmt: skip
# What a difference between two runs may come from beside what is compared, which is the program.
_TRAINING = ("precision", *(name for name in OF_TRAINING if name not in ("steps", "log_every", "devices")))
# Settings of an estimate that are part of its name only where they are not the default.
_SELDOM_CHANGED: dict[str, Any] = {
    **{
        name: Annealing._field_defaults[name]
        for name in ("schedule", "num_leapfrog_steps", "target_acceptance", "step_size")
    },
    "guide_learning_rate": Unamortised._field_defaults["learning_rate"],
}
ON_OWN_DATA = ("sandwich-lower", "sandwich-upper")  # each run's own simulations: nothing to pair


class Entry(NamedTuple):
    """A mean and its standard error over so many sequences (nan for a single one), nats per frame."""

    value: float
    standard_error: float
    num_sequences: int

    def __str__(self) -> str:
        known = not math.isnan(self.standard_error)
        return f"{self.value:.2f} ± {self.standard_error:.2f}" if known else f"{self.value:.2f}"

    def plain(self) -> dict[str, Any]:
        """For JSON, which knows no nan."""
        return {name: None if math.isnan(value) else value for name, value in self._asdict().items()}


class OverSeeds(NamedTuple):
    """A mean and its standard deviation over so many seeds (nan for a single one), nats per frame."""

    value: float
    standard_deviation: float
    num_seeds: int

    def __str__(self) -> str:
        return f"{self.value:.2f} ± {self.standard_deviation:.2f}" if self.num_seeds > 1 else f"{self.value:.2f}"

    def plain(self) -> dict[str, Any]:
        """For JSON, which knows no nan."""
        return {name: None if math.isnan(value) else value for name, value in self._asdict().items()}


class Comparison(NamedTuple):
    """estimates: run -> estimator -> entry; differences: run minus the first one, paired over sequences.

    header: what the numbers are; verdicts: run -> words on its importance weights; training: run -> how it was trained:
    for how long, and the settings in which the runs differ.
    over_seeds: where runs differ in nothing but their seed, group -> estimator -> what all of the group have, over as
    many sequences; differences_over_seeds: group minus the first one, of the seeds that both have, each paired over
    sequences.
    """

    header: str
    estimates: dict[str, dict[str, Entry]]
    differences: dict[str, dict[str, Entry]]
    verdicts: dict[str, str]
    training: dict[str, str]
    over_seeds: dict[str, dict[str, OverSeeds]]
    differences_over_seeds: dict[str, dict[str, OverSeeds]]


def compare(runs: Run | Path | str | Sequence[Run | Path | str]) -> Comparison:
    """The estimates of each run, or of that in each directory; of one or of several.

    Raises UserError where they do not measure the same thing.
    """
    opened = runs_at(runs)
    conditions, records = {}, {}
    for run in opened:
        conditions[run.name], records[run.name] = _newest(run)
    first_name = next(iter(records))
    condition = conditions[first_name]
    for name, own_condition in conditions.items():
        _check_same(first_name, condition, name, own_condition)
    estimates = {name: {key: _entry(record) for key, record in own.items()} for name, own in records.items()}
    differences = {
        name: {
            key: _difference(record, records[first_name][key])
            for key, record in own.items()
            if key in records[first_name]
        }
        for name, own in records.items()
        if name != first_name
    }
    paired = {name: {key: entry for key, entry in own.items() if entry} for name, own in differences.items()}
    verdicts = {
        name: verdict
        for name, own in records.items()
        for record in own.values()
        if (verdict := weights_verdict(record))
    }
    unlike = [name for name in _TRAINING if len({getattr(run.experiment, name) for run in opened}) > 1]
    training = {run.name: _trained(run, unlike) for run in opened}
    seeds = _over_seeds(_groups(opened), records)
    return Comparison(_header(condition, records), estimates, paired, verdicts, training, *seeds)


def as_text(comparison: Comparison, markdown: bool = False) -> str:
    """The tables, for people: aligned, or as Markdown."""
    first = next(iter(comparison.estimates))
    parts = [comparison.header, "", _table(*headings_and_cells(comparison.estimates), markdown)]
    parts += [line for words in remarks(comparison) for line in ("", words)]
    if any(comparison.differences.values()):
        parts += ["", f"minus {first}, paired over {paired_over(comparison)}:", ""]
        parts.append(_table(*headings_and_cells(comparison.differences), markdown))
    if comparison.over_seeds:
        counts = ", ".join(f"{name} {count}" for name, count in seed_counts(comparison).items())
        parts += ["", f"mean ± standard deviation over seeds ({counts}):", ""]
        parts.append(_table(*over_seeds_in_words(comparison.over_seeds), markdown))
    if comparison.differences_over_seeds:
        first_group = next(iter(comparison.over_seeds))
        parts += ["", f"minus {first_group}, paired by seed and sequence, mean ± standard deviation over seeds:", ""]
        parts.append(_table(*over_seeds_in_words(comparison.differences_over_seeds), markdown))
    if comparison.verdicts:
        parts += ["", "importance weights:", *(f"- {name}: {words}" for name, words in comparison.verdicts.items())]
    return "\n".join(parts)


def remarks(comparison: Comparison) -> list[str]:
    """Sentences on estimates, and on runs, that are not to be set beside the others as they stand."""
    counts = _counts(comparison.estimates)
    unlike = [key for key, found in counts.items() if len(found) > 1]
    simulated = [key for key in counts if key.startswith(ON_OWN_DATA)]
    trained = "; ".join(f"{name} by {how}" for name, how in comparison.training.items())
    unlike_trained = [f"not trained alike: {trained}"] if len(set(comparison.training.values())) > 1 else []
    return unlike_trained + [
        f"{', '.join(keys)}: {what}"
        for keys, what in (
            (unlike, "means over different numbers of sequences, which only paired differences compare"),
            (simulated, "of sequences simulated from each model, and not of the held-out ones"),
        )
        if keys
    ]


def headings_and_cells(table: Mapping[str, Mapping[str, Entry]]) -> tuple[dict[str, str], dict[str, dict[str, str]]]:
    """The words of a table of entries: estimator -> heading, and name -> estimator -> cell.

    Where not all entries are over as many sequences, their number stands in brackets: in the heading where all of an
    estimator have the same, else in each cell.
    """
    counts = _counts(table)
    alike = len(set().union(*counts.values())) <= 1
    headings = {key: key if alike or len(found) > 1 else f"{key} ({min(found)})" for key, found in counts.items()}
    cells = {
        name: {
            key: f"{entry} ({entry.num_sequences})" if len(counts[key]) > 1 else str(entry)
            for key, entry in own.items()
        }
        for name, own in table.items()
    }
    return headings, cells


def over_seeds_in_words(
    table: Mapping[str, Mapping[str, OverSeeds]],
) -> tuple[dict[str, str], dict[str, dict[str, str]]]:
    """As `headings_and_cells`, of means over seeds."""
    headings = {key: key for key in in_order(key for own in table.values() for key in own)}
    return headings, {name: {key: str(each) for key, each in own.items()} for name, own in table.items()}


def _counts(table: Mapping[str, Mapping[str, Entry]]) -> dict[str, set[int]]:
    """Over how many sequences the entries of each estimator are, those of fewer particles before those of more."""
    counts: dict[str, set[int]] = {}
    for own in table.values():
        for key, entry in own.items():
            counts.setdefault(key, set()).add(entry.num_sequences)
    return {key: counts[key] for key in in_order(counts)}


def in_order(columns: Iterable[str]) -> list[str]:
    """Of one kind, such as iwae-10 and iwae-100, by their number; the kinds as they first come."""
    counted = {name: re.fullmatch(rf"({'|'.join(COUNTED)})-(\d+)(.*)", name) for name in columns}
    kinds = {name: found.group(1, 3) if found else (name, "") for name, found in counted.items()}
    numbers = {name: int(found[2]) if found else 0 for name, found in counted.items()}
    first = list(dict.fromkeys(kinds.values()))
    return sorted(counted, key=lambda name: (first.index(kinds[name]), numbers[name]))


def seed_counts(comparison: Comparison) -> dict[str, int]:
    """How many seeds each group has."""
    return {name: max(each.num_seeds for each in own.values()) for name, own in comparison.over_seeds.items()}


def paired_over(comparison: Comparison) -> str:
    """Over how many sequences the differences are."""
    counts = {entry.num_sequences for own in comparison.differences.values() for entry in own.values()}
    return f"the same {' or '.join(map(str, sorted(counts)))} sequences"


def as_csv(comparison: Comparison) -> str:
    """One row per run and estimator: an entry, and that of the paired difference."""
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    of_entries = [f"{prefix}{field}" for prefix in ("", "difference_") for field in Entry._fields]
    writer.writerow(["run", "estimator", *of_entries])
    for name, entries in comparison.estimates.items():
        for key, entry in entries.items():
            difference = comparison.differences.get(name, {}).get(key)
            writer.writerow([name, key, *entry, *(difference or [""] * len(Entry._fields))])
    return buffer.getvalue()


def as_json(comparison: Comparison) -> dict[str, Any]:
    """The same as plain values."""

    def plain(table: Mapping[str, Mapping[str, Entry | OverSeeds]]) -> dict[str, Any]:
        return {name: {key: entry.plain() for key, entry in own.items()} for name, own in table.items()}

    return {
        "header": comparison.header,
        "estimates": plain(comparison.estimates),
        "differences": plain(comparison.differences),
        "verdicts": comparison.verdicts,
        "training": comparison.training,
        "over_seeds": plain(comparison.over_seeds),
        "differences_over_seeds": plain(comparison.differences_over_seeds),
    }


def _groups(runs: Sequence[Run]) -> dict[str, dict[int, str]]:
    """Runs that differ in nothing but their seed: the name that they share -> seed -> name of the run.

    Empty where there are no two such runs.
    """
    found: dict[Any, dict[int, str]] = {}
    for run in runs:
        own = run.experiment
        files = {name: getattr(own, digest) or getattr(own, name) for name, digest in OWN_DIGESTS.items()}
        alike = replace(own, seed=0, data_dir="", device="", **files), run.steps_done
        found.setdefault(alike, {}).setdefault(own.seed, run.name)
    if all(len(names) < 2 for names in found.values()):
        return {}
    groups: dict[str, dict[int, str]] = {}
    for names in found.values():
        first = next(iter(names.values()))
        shared = re.sub(r"-seed\d+$", "", first)
        groups[first if shared in groups else shared] = names
    return groups


def _over_seeds(
    groups: Mapping[str, Mapping[int, str]], records: Mapping[str, Mapping[str, dict[str, Any]]]
) -> tuple[dict[str, dict[str, OverSeeds]], dict[str, dict[str, OverSeeds]]]:
    """The means of `Comparison`, and the differences; records: run -> estimator -> record."""
    means: dict[str, dict[str, OverSeeds]] = {}
    for group, names in groups.items():
        own = [records[name] for name in names.values()]
        shared = {
            key: _mean_over_seeds([each[key]["value"] for each in own])
            for key, record in own[0].items()
            if all(key in each and each[key]["num_sequences"] == record["num_sequences"] for each in own)
        }
        means |= {group: shared} if shared else {}
    if not means:
        return {}, {}
    first, *others = means
    differences: dict[str, dict[str, OverSeeds]] = {}
    for group in others:
        seeds = [seed for seed in groups[group] if seed in groups[first]]
        pairs = [(records[groups[group][seed]], records[groups[first][seed]]) for seed in seeds]
        if len(pairs) < 2:
            continue
        entries = {
            key: [_difference(own[key], base[key]) for own, base in pairs]
            for key in means[group]
            if key in means[first]
        }
        differences[group] = {
            key: _mean_over_seeds([each.value for each in found if each])
            for key, found in entries.items()
            if all(found)
        }
    return means, {group: own for group, own in differences.items() if own}


def _mean_over_seeds(values: Sequence[float]) -> OverSeeds:
    return OverSeeds(mean(values), stdev(values) if len(values) > 1 else math.nan, len(values))


def _trained(run: Run, settings: Sequence[str]) -> str:
    experiment = run.experiment
    if experiment.trained_by:
        return experiment.trained_by
    words = [f"{run.steps_done:,} steps of {experiment.batch_size} sequences"]
    return ", ".join(words + [f"{name} {getattr(experiment, name)}" for name in settings])


def _newest(run: Run) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """The conditions of the newest estimate of a run's parameters, and of each estimator under these one record.

    It is the newest of those over the most sequences; what Ctrl-C left of one does not stand in for a whole one.
    """
    records = run.present_evaluations()
    if not records:
        found = "only those of earlier parameters" if run.evaluations() else "none"
        raise UserError(f"expected estimates in '{run.path}', found {found}; run ppl-tvae evaluate {run.path} first")
    newest, chosen = _condition(records[-1], run), dict[str, dict[str, Any]]()
    for record in records:
        name = _label(record)
        if _condition(record, run) == newest and (name not in chosen or _weight(record) >= _weight(chosen[name])):
            chosen[name] = record
    return newest, chosen


def _weight(record: dict[str, Any]) -> tuple[bool, int]:
    return "stopped_before" not in record, record["num_sequences"]


def _label(record: dict[str, Any]) -> str:
    """iwae-100, elbo, elbo-auto-normal-500, ais-guide-200x1: what makes two records the same column.

    200x1: temperatures x chains. Settings that are seldom changed stand in it where they are not the default.
    """
    name = estimate_name(record) + (f"-{record['guide_steps']}" if "guide_name" in record else "")
    if "num_temperatures" in record:
        name += f"-{record['start']}-{record['num_temperatures']}x{record['num_chains']}"
    return name + "".join(
        f"-{setting.replace('_', '-')}-{record[setting]}"
        for setting, default in _SELDOM_CHANGED.items()
        if record.get(setting, default) != default
    )


def _condition(record: dict[str, Any], run: Run) -> dict[str, Any]:
    found = {key: record.get(key) for key in _CONDITIONS} | {"transforms": ", ".join(record["transforms"])}
    return found | ({"data": Path(record["data"]).name} if record.get("data_digest") else {})


def _check_same(first: str, condition: dict[str, Any], name: str, other: dict[str, Any]) -> None:
    same_file = condition["data_digest"] is not None and condition["data_digest"] == other["data_digest"]
    for key, value in condition.items():
        if other[key] != value and not (key == "data" and same_file):
            raise UserError(
                f"expected runs that measure the same thing, found {key} '{value}' in '{first}' and '{other[key]}' in "
                f"'{name}'; their numbers cannot be ranked"
            )


def _header(condition: dict[str, Any], records: dict[str, dict[str, dict[str, Any]]]) -> str:
    counts = sorted({record["num_sequences"] for own in records.values() for record in own.values()})
    where = ", in brackets" if len(counts) > 1 else ""
    grey = condition["likelihood"] == "bernoulli-grey"
    return (
        f"{condition['unit']} ± standard error over sequences, up is better; {condition['data']} "
        f"({condition['transforms']}), "
        f"{condition['split']} sequences ({' or '.join(map(str, counts))}{where}), likelihood {condition['likelihood']}"
        + (" (a score, not a log-density)" if grey else "")
    )


def _entry(record: dict[str, Any]) -> Entry:
    error = record["standard_error"]
    return Entry(record["value"], math.nan if error is None else error, record["num_sequences"])


def _difference(record: dict[str, Any], base: dict[str, Any]) -> Entry | None:
    """Record minus base over the sequences that both have, which are the first ones of a fixed order."""
    if record["estimator"] in ON_OWN_DATA:
        return None
    both = min(record["num_sequences"], base["num_sequences"])
    differences = np.asarray(record["per_sequence"][:both]) - np.asarray(base["per_sequence"][:both])
    error = bounds.standard_error(differences)
    return None if error is None else Entry(float(differences.mean()), error, both)


def _table(headings: Mapping[str, str], cells: Mapping[str, Mapping[str, str]], markdown: bool) -> str:
    lines = [
        ["run", *headings.values()],
        *([name, *(own.get(key, "-") for key in headings)] for name, own in cells.items()),
    ]
    return aligned(lines, markdown)
