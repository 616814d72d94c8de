"""Pictures of a run's sequences and of a data set, for people to look at."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ppl_tvae.data import Plan, SequenceData, open_data, render
from ppl_tvae.diagnostics import equivariance
from ppl_tvae.diagnostics.animation import animation
from ppl_tvae.diagnostics.contact_sheet import contact_sheet
from ppl_tvae.errors import UserError
from ppl_tvae.runs import Run, run_at, writing_to
from ppl_tvae.trained import evaluator
from ppl_tvae.training import data_of

_ROLLED = ("observed", "reconstruction", "first code, rolled")


def reconstruction_sheet(
    run: Run | Path | str, num_sequences: int = 6, backend: str | None = None, device: str = "auto"
) -> Path:
    """A PNG in the run's figures: test sequences, and below each what the model makes of the guide's latents."""
    run = run_at(run)
    data = data_of(run.experiment)
    with evaluator(run, data, backend, device, seed=0) as ready:
        return draw_reconstructions(run, data, ready, num_sequences)


def draw_reconstructions(run: Run, data: SequenceData, ready: Any, num_sequences: int = 6) -> Path:
    """`reconstruction_sheet` by an evaluator that is there already."""
    plan = data.test_plan(num_sequences)
    pairs = np.stack([ready.frames(plan), ready.reconstruct(plan)], axis=1)
    rows = [text for label in _row_labels(data, plan) for text in (label, "reconstruction")]
    path = run.figure("reconstructions.png")
    title = f"{_what(run)}: test sequences, and E[x | latents drawn from the guide]"
    with writing_to(path):
        contact_sheet(np.clip(pairs.reshape(-1, *pairs.shape[2:]), 0, 1), rows, path, title)
    return path


def traversal_sheet(
    run: Run | Path | str, num_sequences: int = 4, backend: str | None = None, device: str = "auto"
) -> Path | None:
    """A PNG in the run's figures: test sequences, their reconstruction, and their first code rolled and decoded.

    Where capsules are equivariant, the last row follows the first, although it has seen only its first frame (the
    paper's figure 5). None for a program whose site t is no code of capsules.
    """
    run = run_at(run)
    data = data_of(run.experiment)
    with evaluator(run, data, backend, device, seed=0) as ready:
        return draw_traversals(run, data, ready, num_sequences)


def draw_traversals(run: Run, data: SequenceData, ready: Any, num_sequences: int = 4) -> Path | None:
    """`traversal_sheet` by an evaluator that is there already."""
    plan = data.test_plan(num_sequences)
    if (rows := _rolled(data, ready, plan)) is None:
        return None
    triples = rows.reshape(-1, *rows.shape[2:])
    labels = [text for label in _row_labels(data, plan) for text in (label, *_ROLLED[1:])]
    path = run.figure("traversals.png")
    title = f"{_what(run)}: test sequences, and what is decoded from their codes"
    with writing_to(path):
        contact_sheet(triples, labels, path, title)
    return path


def traversal_animation(
    run: Run | Path | str, num_sequences: int = 4, backend: str | None = None, device: str = "auto"
) -> Path | None:
    """A looping GIF in the run's figures: what `traversal_sheet` shows, with time as time; None as there."""
    run = run_at(run)
    data = data_of(run.experiment)
    with evaluator(run, data, backend, device, seed=0) as ready:
        return draw_traversal_animation(run, data, ready, num_sequences)


def draw_traversal_animation(run: Run, data: SequenceData, ready: Any, num_sequences: int = 4) -> Path | None:
    """`traversal_animation` by an evaluator that is there already."""
    plan = data.test_plan(num_sequences)
    if (rows := _rolled(data, ready, plan)) is None:
        return None
    path = run.figure("traversals.gif")
    with writing_to(path):
        animation(rows.swapaxes(0, 1), _ROLLED, _row_labels(data, plan), path)
    return path


def draw_prior_samples(run: Run, data: SequenceData, ready: Any, num_sequences: int = 6) -> Path:
    """A PNG in the run's figures: E[x | latents drawn from the prior], and below each x drawn from the likelihood."""
    drawn = ready.prior(data.test_plan(num_sequences))
    pairs = np.stack([drawn.mean[0], drawn.frames[0]], axis=1)
    rows = [text for number in range(len(pairs)) for text in (f"draw {number + 1}, mean", "its pixels drawn")]
    path = run.figure("prior_samples.png")
    title = f"{_what(run)}: sequences decoded from draws of the prior"
    with writing_to(path):
        contact_sheet(np.clip(pairs.reshape(-1, *pairs.shape[2:]), 0, 1), rows, path, title)
    return path


def data_sheet(
    name: str, data_dir: Path | None, transforms: Sequence[str] | None, num_sequences: int, path: Path
) -> Path:
    """A PNG of test sequences of a data set, as the programs see them, grey. Raises UserError."""
    if path.suffix != ".png":
        raise UserError(f"expected the path of a picture, ending in .png, found '{path}'; rename it")
    data = open_data(name, data_dir) if transforms is None else open_data(name, data_dir, tuple(transforms))
    plan = data.test_plan(num_sequences)
    with writing_to(path):
        contact_sheet(render(data.tables, plan), _row_labels(data, plan), path, f"{name}, test sequences")
    return path


def _rolled(data: SequenceData, ready: Any, plan: Plan) -> np.ndarray | None:
    """(sequence, 3, S, H, W, channel) in [0, 1], observed, reconstructed, rolled; None where no code rolls."""
    t = ready.latents(plan).get("t")
    if not equivariance.rolls(t, data.num_timesteps):
        return None
    rows = [ready.frames(plan), ready.decode(t), ready.decode(equivariance.rolled_from(t, 0))]
    return np.clip(np.stack(rows, axis=1), 0, 1)


def _what(run: Run) -> str:
    """The model on its data, by their names without folders."""
    return f"{Path(run.experiment.model).name} on {Path(run.experiment.data).name}"


def _row_labels(data: SequenceData, plan: Plan) -> list[str]:
    """What each sequence shows, its label or else its number in the source, and what moves in it."""
    names, rows = data.source.label_names, []
    for image, transform in zip(plan.image, plan.transform, strict=True):
        label, moving = data.labels[image], data.transforms[transform]
        shown = f"number {image}" if label < 0 else names[label] if names else str(label)
        rows.append(shown if moving == "none" else f"{shown}, {moving}")
    return rows
