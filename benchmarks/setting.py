"""What is timed: the paper's MNIST model and sequences, made of the digits that come with scikit-learn."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np

from ppl_tvae.assembly import data_of, lattice_of
from ppl_tvae.config import Experiment
from ppl_tvae.data import Plan, SequenceData, render
from ppl_tvae.inference.optimization import Optimization

LEARNING_RATE = 1e-3
ADAM = Optimization("adam", LEARNING_RATE, 0.9, 0.0, "constant", 0, 0)

CHUNK = 8  # particles at a time, the default of `log_weights`

# The contenders, in the words of the table. Each takes so many steps and returns when they are done.
PPL, PLAIN, RENDERING, PRODUCTS = "ppl", "plain", "rendering", "matrix products"
# Of torch alone: the program without its graph, the twin with one or compiled, and what the paper's authors run.
UNRECORDED, RECORDED, COMPILED, RELEASED = "ppl unrecorded", "plain recorded", "plain compiled", "released"
Contenders = dict[tuple[str, bool], Callable[[int], object]]  # by (one of the words, whether it renders its data)


def paper_experiment(backend: str) -> Experiment:
    """28x28 frames in 3 channels, S = C = D = 18, hidden layers of 972 and 648: the defaults."""
    return Experiment(backend=backend, model="tvae", likelihood="bernoulli", data="digits", device="cpu").resolved()


def latent_shape(experiment: Experiment) -> tuple[int, int, int]:
    """(S, C, D) of a resolved experiment."""
    assert experiment.num_timesteps is not None
    assert experiment.num_capsules is not None
    assert experiment.capsule_dim is not None
    return experiment.num_timesteps, experiment.num_capsules, experiment.capsule_dim


def neighborhood(experiment: Experiment) -> np.ndarray:
    """W of a resolved experiment, (S*D, S*D)."""
    lattice = lattice_of(experiment)
    assert lattice is not None
    return lattice.neighborhood


def digit_sequences() -> SequenceData:
    """The data set of `paper_experiment`; nothing is downloaded."""
    return data_of(paper_experiment("numpyro"))


def rendered(tables: Any, plan: Any) -> Any:
    """Frames drawn in the step."""
    return render(tables, plan, binarize=True)


def ready(tables: Any, plan: Any) -> Any:
    """Frames that are there already: `tables` holds them, and of the plan only its length counts."""
    return tables.frames[: len(plan.image)]


class Plans:
    """Plans of consecutive steps: drawn as training draws them or, where frames are ready, the first one repeated."""

    def __init__(self, data: SequenceData, batch_size: int, drawn: bool) -> None:
        self._draw = lambda first_step, num_steps: data.train_plans(0, first_step, num_steps, batch_size)
        self._drawn, self._step = drawn, 0

    def following(self, num_steps: int) -> Plan:
        """The plans of the next steps, with leading axes (num_steps, batch)."""
        if not self._drawn:
            return self._draw(0, 1).map(lambda field: np.repeat(field, num_steps, axis=0))
        self._step += num_steps
        return self._draw(self._step - num_steps, num_steps)


def layers(experiment: Experiment, num_pixels: int) -> list[tuple[int, int, bool]]:
    """(size in, size out, whether the input needs a gradient) of every layer of a step.

    Frames need no gradient, so the first layer of each encoder has two products and every other layer three. The
    product with W is left out: it is under 1 % of the operations.
    """
    _, capsules, positions = latent_shape(experiment)
    size = capsules * positions
    encoder, decoder = (num_pixels, *experiment.hidden, 2 * size), (size, *reversed(experiment.hidden), num_pixels)
    return [
        (size_in, size_out, index > 0 or sizes is decoder)
        for sizes in (encoder, encoder, decoder)
        for index, (size_in, size_out) in enumerate(pairwise(sizes))
    ]
