"""Pictures of a run and of a data set, for people to look at."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ppl_tvae.data import Plan, SequenceData, open_data, render
from ppl_tvae.diagnostics import equivariance
from ppl_tvae.diagnostics.contact_sheet import contact_sheet
from ppl_tvae.errors import UserError
from ppl_tvae.runs import Run, writing_to
from ppl_tvae.trained import evaluator
from ppl_tvae.training import data_of


def reconstruction_sheet(run: Run, num_sequences: int = 6, backend: str | None = None, device: str = "auto") -> Path:
    """A PNG in the run's figures: test sequences, and below each what the model makes of the guide's latents."""
    data = data_of(run.experiment)
    plan = data.test_plan(num_sequences)
    with evaluator(run, data, backend, device, seed=0) as ready:
        pairs = np.stack([ready.frames(plan), ready.reconstruct(plan)], axis=1)
    rows = [text for label in _row_labels(data, plan) for text in (label, "reconstruction")]
    path = run.figure("reconstructions.png")
    title = f"{run.experiment.model} on {run.experiment.data}: test sequences, and E[x | latents drawn from the guide]"
    with writing_to(path):
        contact_sheet(np.clip(pairs.reshape(-1, *pairs.shape[2:]), 0, 1), rows, path, title)
    return path


def traversal_sheet(run: Run, num_sequences: int = 4, backend: str | None = None, device: str = "auto") -> Path | None:
    """A PNG in the run's figures: test sequences, their reconstruction, and their first code rolled and decoded.

    Where capsules are equivariant, the last row follows the first, although it has seen only its first frame (the
    paper's figure 5). None for a program whose site t is no code of capsules.
    """
    data = data_of(run.experiment)
    plan = data.test_plan(num_sequences)
    with evaluator(run, data, backend, device, seed=0) as ready:
        t = ready.latents(plan).get("t")
        if not equivariance.rolls(t, data.num_timesteps):
            return None
        rows = [ready.frames(plan), ready.decode(t), ready.decode(equivariance.rolled_from(t, 0))]
    triples = np.clip(np.stack(rows, axis=1).reshape(-1, *rows[0].shape[1:]), 0, 1)
    labels = [text for label in _row_labels(data, plan) for text in (label, "reconstruction", "first code, rolled")]
    path = run.figure("traversals.png")
    title = f"{run.experiment.model} on {run.experiment.data}: test sequences, and what is decoded from their codes"
    with writing_to(path):
        contact_sheet(triples, labels, path, title)
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


def _row_labels(data: SequenceData, plan: Plan) -> list[str]:
    names = [data.transforms[index] for index in plan.transform]
    labels = [data.source.label_names[label] if data.source.label_names else label for label in data.labels[plan.image]]
    return [f"{label}, {name}" for label, name in zip(labels, names, strict=True)]
