"""Charts of a run's numbers, in one style: legible in print, safe for colour-blind eyes, axes with units."""

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

from ppl_tvae.diagnostics.calibration import Calibration

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
        axes.plot(*_columns(losses), color=colour, linewidth=0.8, alpha=0.6, label=f"{name}, training bound")
        axes.plot(*_columns(held_out), color=colour, marker="o", linewidth=1.6, label=f"{name}, held-out ELBO")
    axes.set_xlabel("training step")
    axes.set_ylabel("nats per frame (up is better)")
    axes.legend(frameon=False, fontsize=8)
    return _png(figure)


def bounds_chart(entries: Mapping[str, Mapping[str, tuple[float, float]]]) -> bytes:
    """A PNG: each estimate of each run with one standard error over sequences, nats per frame.

    entries: run -> estimator -> (value, standard error). The error bars are those of single means; the runs share their
    sequences, so paired differences are narrower.
    """
    names = list(dict.fromkeys(name for own in entries.values() for name in own))
    figure, axes = _axes(7.0, 1.2 + 0.42 * len(names))
    step = 0.7 / max(1, len(entries))
    for index, ((run, own), colour) in enumerate(zip(entries.items(), _colours(len(entries)), strict=True)):
        places = [names.index(name) + (index - (len(entries) - 1) / 2) * step for name in own]
        values = [value for value, _ in own.values()]
        errors = [0.0 if math.isnan(error) else error for _, error in own.values()]
        axes.errorbar(values, places, xerr=errors, fmt="o", color=colour, capsize=3, markersize=5, label=run)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlabel("nats per frame ± one standard error over sequences (right is better)")
    axes.grid(axis="y", visible=False)
    axes.legend(frameon=False, fontsize=8)
    return _png(figure)


def calibration_chart(calibrations: Mapping[str, Calibration]) -> bytes:
    """A PNG: for each quantity the distribution function of its ranks minus the uniform one, with the band."""
    figure, axes = _axes(7.0, 3.2)
    for (name, found), colour in zip(calibrations.items(), _colours(len(calibrations)), strict=True):
        axes.fill_between(found.points, found.lower, found.upper, color="#999999", alpha=0.35 / len(calibrations))
        axes.step(found.points, found.difference, where="post", color=colour, linewidth=1.5, label=name)
    axes.axhline(0, color="#555555", linewidth=0.8)
    axes.set_xlim(0, 1)
    axes.set_xlabel("normalised rank of the truth among draws of the guide")
    axes.set_ylabel("ECDF minus uniform")
    axes.legend(frameon=False, fontsize=8, ncols=2)
    return _png(figure)


def _axes(width: float, height: float) -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _colours(count: int) -> list[str]:
    return [COLOURS[index % len(COLOURS)] for index in range(count)]


def _columns(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [y for _, y in points]


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    return buffer.getvalue()
