"""Figures of a run's lattice: which cells are active together, and what the positions of a torus prefer."""

import math

import numpy as np

from ppl_tvae.assembly import lattice_of
from ppl_tvae.config import Experiment
from ppl_tvae.data import SEQUENCES_PER_BATCH, Plan, SequenceData, parts
from ppl_tvae.diagnostics.energies import cell_correlation, overlap
from ppl_tvae.diagnostics.selectivity import class_selectivity
from ppl_tvae.figures.maps import correlation_maps, image_map, selectivity_map
from ppl_tvae.inference.interfaces import Evaluator
from ppl_tvae.models.lattice import Lattice
from ppl_tvae.runs import Run

_SEQUENCES, _IMAGES = 200, 2000  # of the test set: over which cells correlate, which a torus prefers
_FRAMES_PER_BATCH = 144  # as many as 8 sequences of 18


def has_lattice(experiment: Experiment) -> bool:
    """Whether the experiment is of a named model with a W."""
    return experiment.program_file is None and experiment.model != "vae"


def is_torus(experiment: Experiment) -> bool:
    """Whether the positions of a capsule lie on a square 2-D torus; with a W of the user's own they need not."""
    positions = experiment.capsule_dim or 0
    return experiment.program_file is None and experiment.model == "torus" and math.isqrt(positions) ** 2 == positions


def draw_energies(run: Run, data: SequenceData, ready: Evaluator) -> bytes | None:
    """A PNG: correlation between cells, as W has it under the prior, and of the guide's draws.

    Of the energies W u**2 and of |t|, one draw of the guide for each test sequence; `energies.cell_correlation`. None
    where there are fewer than two test sequences, over which nothing correlates.
    """
    sites = _latents(data, ready, _SEQUENCES, ("u", "t"))
    if len(sites["u"]) < 2:
        return None
    lattice = _trained_lattice(run)
    cells = lattice.num_timesteps, lattice.capsule_dim
    names = ("time s", "position d")
    if is_torus(run.experiment):
        cells, names = (round(cells[1] ** 0.5),) * 2, ("row", "column")
    matrices = {
        "W Wᵀ scaled: W u² under the prior": overlap(lattice.neighborhood),
        "W u² of the guide's draws": cell_correlation(lattice.energy(sites["u"].astype(np.float64))),
        "|t| of the guide's draws": cell_correlation(np.abs(sites["t"].astype(np.float64))),
    }
    return correlation_maps(matrices, cells, names)


def draw_preferred_images(run: Run, data: SequenceData, ready: Evaluator) -> bytes:
    """A PNG: at each position of the torus, the test image with the largest t there.

    One draw of the guide for each of the first test images; of several capsules the first.
    """
    activations, plan = _on_torus(data, ready)
    best = activations.argmax(axis=0)
    shown = ready.frames(plan.at(best))[:, 0]
    side = round(activations.shape[1] ** 0.5)
    title = f"of {len(activations)} test images, the one with the largest t at each position"
    return image_map(shown, (side, side), title)


def draw_selectivity(run: Run, data: SequenceData, ready: Evaluator) -> bytes | None:
    """A PNG: the class that each position of the torus prefers, by d'; None without labels.

    `selectivity.class_selectivity` of t, one draw of the guide for each of the first test images.
    """
    activations, plan = _on_torus(data, ready)
    names, labels = np.unique(data.labels[plan.image], return_inverse=True)
    if len(names) < 2 or names[0] < 0:
        return None
    dprime = class_selectivity(activations.astype(np.float64), labels, len(names))
    side = round(activations.shape[1] ** 0.5)
    return selectivity_map(dprime, [str(name) for name in names], (side, side))


def _on_torus(data: SequenceData, ready: Evaluator) -> tuple[np.ndarray, Plan]:
    """t of single frames, (N, D), and their plan."""
    return _latents(data, ready, _IMAGES, ("t",))["t"][:, 0, 0], data.test_plan(_IMAGES)


def _latents(data: SequenceData, ready: Evaluator, num_sequences: int, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    """One draw of the guide for each of the first test sequences, by site."""
    size = max(SEQUENCES_PER_BATCH, _FRAMES_PER_BATCH // data.num_timesteps)
    drawn = [ready.latents(part, index) for index, part in parts(data.test_plan(num_sequences), size)]
    return {name: np.concatenate([sites[name] for sites in drawn]) for name in names}


def _trained_lattice(run: Run) -> Lattice:
    """W with the weights that were learned, where they were."""
    lattice = lattice_of(run.experiment)
    assert lattice is not None
    weights = run.parameters().get("lattice.weight")
    if weights is None:
        return lattice
    return Lattice(lattice.neighborhood * weights, lattice.num_timesteps, lattice.capsule_dim)
