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
from ppl_tvae.own_program import names_a_lattice
from ppl_tvae.runs import Run

_SEQUENCES, _IMAGES = 200, 2000  # of the test set: over which cells correlate, which a torus prefers
_FRAMES_PER_BATCH = 144  # as many as 8 sequences of 18


def may_have_lattice(experiment: Experiment) -> bool:
    """Whether a named model has a W, or an own program names a `LATTICE`."""
    if experiment.program_file is not None:
        return names_a_lattice(experiment.program_file)
    return experiment.model != "vae"


def may_be_torus(experiment: Experiment) -> bool:
    """Whether the positions of a capsule may lie on a 2-D torus."""
    if experiment.program_file is not None:
        return experiment.num_timesteps == 1 and may_have_lattice(experiment)
    return experiment.model == "torus"


def draw_energies(run: Run, data: SequenceData, ready: Evaluator) -> bytes | None:
    """A PNG: correlation between cells, as W has it under the prior, and of the guide's draws.

    Of the energies W u**2 and of |t|, one draw of the guide for each test sequence; `energies.cell_correlation`. None
    where there are fewer than two test sequences, over which nothing correlates, and where an own program has no sites
    u and t of the cells of its `LATTICE`.
    """
    lattice = _trained_lattice(run)
    if lattice is None:
        return None
    sites = _codes(data, ready, lattice, _SEQUENCES, ("u", "t"))
    if sites is None or len(sites["u"]) < 2:
        return None
    cells = lattice.num_timesteps, lattice.capsule_dim
    names = ("time s", "position d")
    if side := _side_of_torus(run.experiment, lattice):
        cells, names = (side, side), ("row", "column")
    matrices = {
        "W Wᵀ scaled: W u² under the prior": overlap(lattice.neighborhood),
        "W u² of the guide's draws": cell_correlation(lattice.energy(sites["u"].astype(np.float64))),
        "|t| of the guide's draws": cell_correlation(np.abs(sites["t"].astype(np.float64))),
    }
    return correlation_maps(matrices, cells, names)


def draw_preferred_images(run: Run, data: SequenceData, ready: Evaluator) -> bytes | None:
    """A PNG: at each position of the torus, the test image with the largest t there; None without a torus.

    One draw of the guide for each of the first test images; of several capsules the first.
    """
    on_torus = _on_torus(run, data, ready)
    if on_torus is None:
        return None
    activations, plan, side = on_torus
    best = activations.argmax(axis=0)
    shown = ready.frames(plan.at(best))[:, 0]
    title = f"of {len(activations)} test images, the one with the largest t at each position"
    return image_map(shown, (side, side), title)


def draw_selectivity(run: Run, data: SequenceData, ready: Evaluator) -> bytes | None:
    """A PNG: the class that each position of the torus prefers, by d'; None without labels or a torus.

    `selectivity.class_selectivity` of t, one draw of the guide for each of the first test images.
    """
    plan = data.test_plan(_IMAGES)
    names, labels = np.unique(data.labels[plan.image], return_inverse=True)
    if len(names) < 2 or names[0] < 0:
        return None
    on_torus = _on_torus(run, data, ready)
    if on_torus is None:
        return None
    activations, _, side = on_torus
    dprime = class_selectivity(activations.astype(np.float64), labels, len(names))
    return selectivity_map(dprime, [str(name) for name in names], (side, side))


def _side_of_torus(experiment: Experiment, lattice: Lattice) -> int:
    """How many positions a side of the square 2-D torus of a capsule has; 0 where W is none.

    A named model's W is called one; an own program's is one that rolling by a row or by a column leaves as it is.
    """
    side = math.isqrt(lattice.capsule_dim)
    if lattice.num_timesteps != 1 or side * side != lattice.capsule_dim:
        return 0
    if experiment.program_file is None:
        return side if experiment.model == "torus" else 0
    grid = lattice.neighborhood.reshape((side,) * 4)
    rolls = [np.array_equal(grid, np.roll(grid, 1, axis=axes)) for axes in ((0, 2), (1, 3))]
    return side if all(rolls) and not np.array_equal(lattice.neighborhood != 0, np.eye(side * side)) else 0


def _on_torus(run: Run, data: SequenceData, ready: Evaluator) -> tuple[np.ndarray, Plan, int] | None:
    """t of single frames, (N, D), their plan, and the side of the torus that the D positions lie on, if they do."""
    lattice = lattice_of(run.experiment)
    if lattice is None or not (side := _side_of_torus(run.experiment, lattice)):
        return None
    sites = _codes(data, ready, lattice, _IMAGES, ("t",))
    return None if sites is None else (sites["t"][:, 0, 0], data.test_plan(_IMAGES), side)


def _codes(
    data: SequenceData, ready: Evaluator, lattice: Lattice, num_sequences: int, names: tuple[str, ...]
) -> dict[str, np.ndarray] | None:
    """One draw of the guide for each of the first test sequences, (N, S, C, D) by site.

    None where a program has no such sites of the lattice's S and D.
    """
    size = max(SEQUENCES_PER_BATCH, _FRAMES_PER_BATCH // data.num_timesteps)
    drawn = []
    for index, part in parts(data.test_plan(num_sequences), size):
        sites = ready.latents(part, index)
        shapes = [sites[name].shape if name in sites else () for name in names]
        if any(len(shape) != 4 or shape[1::2] != (lattice.num_timesteps, lattice.capsule_dim) for shape in shapes):
            return None
        drawn.append(sites)
    return {name: np.concatenate([sites[name] for sites in drawn]) for name in names}


def _trained_lattice(run: Run) -> Lattice | None:
    """W with the weights that were learned, where they were."""
    lattice = lattice_of(run.experiment)
    weights = run.parameters().get("lattice.weight")
    if lattice is None or weights is None or weights.shape != lattice.neighborhood.shape:
        return lattice
    return Lattice(lattice.neighborhood * weights, lattice.num_timesteps, lattice.capsule_dim)
