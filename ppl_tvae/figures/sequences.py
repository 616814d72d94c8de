"""Pictures of a run's sequences and of a data set, for people to look at."""

from pathlib import Path

import numpy as np

from ppl_tvae.data import Plan, SequenceData, render
from ppl_tvae.diagnostics import equivariance
from ppl_tvae.errors import UserError
from ppl_tvae.figures.animation import animation
from ppl_tvae.figures.contact_sheet import contact_sheet
from ppl_tvae.files import write, writing_to
from ppl_tvae.inference.interfaces import Evaluator
from ppl_tvae.runs import Run

_SHOWN, _ROLLED_SHOWN = 6, 4  # test sequences
_ROLLED = ("observed", "reconstruction", "first code, rolled")


def draw_reconstructions(run: Run, data: SequenceData, ready: Evaluator) -> bytes:
    """A PNG: test sequences, and below each what the model makes of the guide's latents."""
    plan = data.test_plan(_SHOWN)
    pairs = np.stack([ready.frames(plan), ready.reconstruct(plan)], axis=1)
    rows = [text for label in _row_labels(data, plan) for text in (label, "reconstruction")]
    title = f"{_what(run)}: test sequences, and E[x | latents drawn from the guide]"
    return contact_sheet(np.clip(pairs.reshape(-1, *pairs.shape[2:]), 0, 1), rows, title)


def draw_prior_samples(run: Run, data: SequenceData, ready: Evaluator) -> bytes:
    """A PNG: E[x | latents drawn from the prior], and below each x drawn from the likelihood."""
    drawn = ready.prior(data.test_plan(_SHOWN))
    pairs = np.stack([drawn.mean[0], drawn.frames[0]], axis=1)
    rows = [text for number in range(len(pairs)) for text in (f"draw {number + 1}, mean", "its pixels drawn")]
    title = f"{_what(run)}: sequences decoded from draws of the prior"
    return contact_sheet(np.clip(pairs.reshape(-1, *pairs.shape[2:]), 0, 1), rows, title)


def draw_traversals(run: Run, data: SequenceData, ready: Evaluator) -> bytes | None:
    """A PNG: test sequences, their reconstruction, and their first code rolled and decoded.

    Where capsules are equivariant, the last row follows the first, although it has seen only its first frame (the
    paper's figure 5). None for a program whose site t is no code of capsules.
    """
    plan = data.test_plan(_ROLLED_SHOWN)
    if (rows := _rolled(data, ready, plan)) is None:
        return None
    triples = rows.reshape(-1, *rows.shape[2:])
    labels = [text for label in _row_labels(data, plan) for text in (label, *_ROLLED[1:])]
    return contact_sheet(triples, labels, f"{_what(run)}: test sequences, and what is decoded from their codes")


def draw_traversal_animation(run: Run, data: SequenceData, ready: Evaluator) -> bytes | None:
    """A looping GIF: what `draw_traversals` shows, with time as time; None as there."""
    plan = data.test_plan(_ROLLED_SHOWN)
    if (rows := _rolled(data, ready, plan)) is None:
        return None
    return animation(rows.swapaxes(0, 1), _ROLLED, _row_labels(data, plan))


def data_sheet(data: SequenceData, name: str, num_sequences: int, path: Path) -> Path:
    """Write a PNG of test sequences of a data set, as the programs see them, grey. Raises UserError."""
    if path.suffix != ".png":
        raise UserError(f"expected the path of a picture, ending in .png, found '{path}'; rename it")
    plan = data.test_plan(num_sequences)
    sheet = contact_sheet(render(data.tables, plan), _row_labels(data, plan), f"{name}, test sequences")
    with writing_to(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    write(path, sheet)
    return path


def _rolled(data: SequenceData, ready: Evaluator, plan: Plan) -> np.ndarray | None:
    """(sequence, 3, S, H, W, channel) in [0, 1], observed, reconstructed, rolled; None where no code rolls."""
    t = ready.latents(plan).get("t")
    if not equivariance.rolls(t, data.num_timesteps):
        return None
    rows = [ready.frames(plan), ready.decode(t, "t"), ready.decode(equivariance.rolled_from(t, 0), "t")]
    return np.clip(np.stack(rows, axis=1), 0, 1)


def _what(run: Run) -> str:
    """The model on its data, by their names without folders; an own program by the name of its run."""
    model = run.experiment.model if run.experiment.program_file is None else run.name
    return f"{model} on {Path(run.experiment.data).name}"


def _row_labels(data: SequenceData, plan: Plan) -> list[str]:
    """What each sequence shows, its label or else its number in the source, and what moves in it."""
    names, rows = data.source.label_names, []
    for image, transform in zip(plan.image, plan.transform, strict=True):
        label, moving = data.labels[image], data.transforms[transform]
        shown = f"number {image}" if label < 0 else names[label] if names else str(label)
        rows.append(shown if moving == "none" else f"{shown}, {moving}")
    return rows
