"""Charts of a run's numbers, in one style: legible in print, safe for colour-blind eyes, axes with units."""

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

from ppl_tvae.diagnostics.calibration import Calibration
from ppl_tvae.inference.reliability import khat_limit

# Okabe & Ito's colours, darkest contrasts first.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


def training_curves(rows_by_run: Mapping[str, Sequence[Mapping[str, float]]]) -> bytes:
    """A PNG: minus the training loss, thin, and the held-out ELBO, marked, over steps; nats per frame.

    rows_by_run: rows of metrics.csv. The row before training is left out: its ELBO would flatten all that follows.
    """
    figure, axes = _axes(7.0, 3.4)
    for (name, rows), colour in zip(rows_by_run.items(), _colours(len(rows_by_run)), strict=True):
        trained = [row for row in rows if row["step"] > 0]
        losses = [(row["step"], -row["loss"]) for row in trained if "loss" in row]
        held_out = [(row["step"], row["elbo_per_frame"]) for row in trained if "elbo_per_frame" in row]
        line = {"linewidth": 0.8, "alpha": 0.6, "marker": "." if len(losses) == 1 else None}  # one has no line
        axes.plot(*_columns(losses), color=colour, label=f"{_label(name)}, training bound", **line)
        axes.plot(*_columns(held_out), color=colour, marker="o", linewidth=1.6, label=f"{_label(name)}, held-out ELBO")
    axes.set_xlabel("training step")
    axes.set_ylabel("nats per frame (up is better)")
    axes.legend(frameon=False, fontsize=8)
    return png(figure)


def bounds_chart(entries: Mapping[str, Mapping[str, tuple[float, float, int]]]) -> bytes:
    """A PNG: each estimate of each run with one standard error over sequences, nats per frame.

    entries: run -> estimator -> (value, standard error, number of sequences). The error bars are those of single means;
    the runs share their sequences, so paired differences are narrower.
    """
    names = list(dict.fromkeys(name for own in entries.values() for name in own))
    figure, axes = _axes(7.0, 1.2 + 0.42 * len(names))
    step = 0.7 / max(1, len(entries))
    for index, ((run, own), colour) in enumerate(zip(entries.items(), _colours(len(entries)), strict=True)):
        places = [names.index(name) + (index - (len(entries) - 1) / 2) * step for name in own]
        values = [value for value, _, _ in own.values()]
        errors = [0.0 if math.isnan(error) else error for _, error, _ in own.values()]
        axes.errorbar(values, places, xerr=errors, fmt="o", color=colour, capsize=3, markersize=5, label=_label(run))
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlabel("nats per frame ± one standard error over sequences (right is better)")
    axes.grid(axis="y", visible=False)
    axes.legend(frameon=False, fontsize=8)
    return png(figure)


def calibration_chart(calibrations: Mapping[str, Calibration]) -> bytes:
    """A PNG: for each quantity the distribution function of its ranks minus the uniform one, with the band."""
    figure, axes = _axes(7.0, 3.2)
    for (name, found), colour in zip(calibrations.items(), _colours(len(calibrations)), strict=True):
        axes.fill_between(found.points, found.lower, found.upper, color="#999999", alpha=0.35 / len(calibrations))
        axes.step(found.points, found.difference, where="post", color=colour, linewidth=1.5, label=_label(name))
    axes.axhline(0, color="#555555", linewidth=0.8)
    axes.set_xlim(0, 1)
    axes.set_xlabel("normalised rank of the truth among draws of the guide")
    axes.set_ylabel("ECDF minus uniform")
    axes.legend(frameon=False, fontsize=8, ncols=2)
    return png(figure)


def khat_chart(khats: Sequence[float], num_draws: int) -> bytes:
    """A PNG: Pareto k-hat of each sequence's weights, with the limit for so many draws; arrows where it is infinite."""
    figure, axes = _axes(5.6, 3.0)
    places, limit = range(len(khats)), khat_limit(num_draws)
    finite = [value for value in khats if math.isfinite(value)]
    low, high = min([0.0, *finite]), max([1.0, *finite])
    low, high = low - 0.08 * (high - low), high + 0.08 * (high - low)
    for below, colour, label in ((True, COLOURS[0], "usable"), (False, COLOURS[1], "not usable")):
        points = [(place, value) for place, value in zip(places, khats, strict=True) if (value <= limit) == below]
        inside = [(place, value) for place, value in points if math.isfinite(value)]
        outside = [(place, high if value > 0 else low) for place, value in points if math.isinf(value)]
        axes.plot(*_columns(inside), "o", color=colour, markersize=5, label=label if points else None)
        axes.plot(*_columns(outside), "v" if below else "^", color=colour, markersize=8)
    axes.axhline(limit, color="#555555", linestyle="--", linewidth=1, label=f"limit, {limit:.2g}")
    axes.set_ylim(low, high)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_xlabel("sequence, in the order of posterior.nc")
    axes.set_ylabel("Pareto k-hat (down is better)")
    axes.legend(frameon=False, fontsize=8, ncols=3, loc="upper center", bbox_to_anchor=(0.5, 1.16))
    return png(figure)


def predictive_chart(records: Sequence[Mapping[str, Any]]) -> bytes:
    """A PNG: of each statistic a histogram over replicated data sets and a line where the observed one lies.

    records: `diagnostics.predictive.predictive_checks`. One row a statistic, one column a kind of replicates, the same
    scale in both.
    """
    from matplotlib.lines import Line2D

    names = list(dict.fromkeys(record["statistic"] for record in records))
    kinds = list(dict.fromkeys(record["replicates"] for record in records))
    figure = blank_figure(5.8, 0.7 + 1.35 * len(names))
    panels = figure.subplots(len(names), len(kinds), squeeze=False, sharex="row")
    for record in records:
        axes = panels[names.index(record["statistic"])][kinds.index(record["replicates"])]
        colour = COLOURS[1] if record["extreme"] else COLOURS[0]
        axes.hist(record["replicated"], bins=20, color=colour, alpha=0.75)
        axes.axvline(record["observed"], color="#000000", linewidth=2)
        axes.set_title(f"{record['replicates']}: p = {record['p_value']:.3f}", fontsize=9, loc="left")
        axes.set_xlabel(f"{record['statistic'].replace('_', ' ')} ({record['unit']})", fontsize=7)
        axes.set_yticks([])
        axes.tick_params(labelsize=8)
        axes.locator_params(axis="x", nbins=5)
        axes.spines[["top", "right", "left"]].set_visible(False)
    meanings = ("replicated", COLOURS[0], 6.0), ("replicated, extreme", COLOURS[1], 6.0), ("observed", "#000000", 2.0)
    handles = [Line2D([], [], label=label, color=colour, linewidth=width) for label, colour, width in meanings]
    figure.legend(handles=handles, frameon=False, fontsize=8, ncols=3, loc="outside upper center")
    return png(figure)


def prior_ranks_chart(differences: Mapping[str, Sequence[float]]) -> bytes:
    """A PNG: of each site the distribution function of its draws' ranks among prior draws, minus the uniform one.

    differences: site -> values at evenly spaced points from 0 to 1, both included.
    """
    figure, axes = _axes(5.6, 3.2)
    for (name, values), colour in zip(differences.items(), _colours(len(differences)), strict=True):
        points = [index / (len(values) - 1) for index in range(len(values))]
        axes.plot(points, values, color=colour, linewidth=1.5, label=_label(name))
    axes.axhline(0, color="#555555", linewidth=0.8)
    axes.set_xlim(0, 1)
    axes.set_xlabel("normalised rank of a draw of the guide among prior draws")
    axes.set_ylabel("ECDF minus uniform")
    axes.legend(frameon=False, fontsize=8, ncols=3)
    return png(figure)


def blank_figure(width: float, height: float) -> Any:
    """An empty figure of so many inches that is drawn without a screen."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def png(figure: Any) -> bytes:
    """A figure as a PNG of 150 dots per inch."""
    without_formulas(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    return buffer.getvalue()


def without_formulas(figure: Any) -> None:
    """Have a figure's texts shown as they are: names of runs, programs and classes are no formulas, dollars or not."""
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        text.set_parse_math(False)


def _axes(width: float, height: float) -> tuple[Any, Any]:
    figure = blank_figure(width, height)
    axes = figure.add_subplot()
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _label(name: str) -> str:
    """A name for a legend, which leaves out what begins with an underscore."""
    return f" {name}" if name.startswith("_") else name


def _colours(count: int) -> list[str]:
    return [COLOURS[index % len(COLOURS)] for index in range(count)]


def _columns(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [y for _, y in points]
