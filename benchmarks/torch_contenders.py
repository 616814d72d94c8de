"""A training step in Pyro and in PyTorch alone, and the two parts of it that no program can avoid."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from benchmarks import plain_torch
from benchmarks.setting import (
    ADAM,
    CHUNK,
    LEARNING_RATE,
    PLAIN,
    PPL,
    PRODUCTS,
    RENDERING,
    Contenders,
    Plans,
    latent_shape,
    layers,
    neighborhood,
    paper_experiment,
    ready,
    rendered,
)
from ppl_tvae.assembly import assemble
from ppl_tvae.config import Experiment
from ppl_tvae.data import Plan, SequenceData
from ppl_tvae.data.rendering import SequenceTables
from ppl_tvae.inference.objective import ELBO
from ppl_tvae.inference.pyro.device import to_device
from ppl_tvae.inference.pyro.importance import log_weights
from ppl_tvae.inference.pyro.svi import Trainer

NAMES = {PPL: "Pyro", PLAIN: "PyTorch alone"}


def contenders(data: SequenceData, batch_size: int) -> Contenders:
    """All of them, for batches of so many sequences."""
    first = _step_of(data.train_plans(0, 0, 1, batch_size), 0)
    frames = rendered(to_device(data.tables), to_device(first))
    found: Contenders = {}
    for drawn in (True, False):
        render, tables = (rendered, data.tables) if drawn else (ready, SequenceTables(frames))
        found[PPL, drawn] = _pyro(render, tables, first, Plans(data, batch_size, drawn))
        found[PLAIN, drawn] = _plain(render, to_device(tables), frames, Plans(data, batch_size, drawn))
    found[RENDERING, True] = _rendering(to_device(data.tables), Plans(data, batch_size, True))
    found[PRODUCTS, False] = _products(frames)
    return found


def weighing(experiment: Experiment, data: SequenceData, batch_size: int, num_particles: int) -> dict[str, Any]:
    """Log weights of one batch, ours and by hand, and the networks alone; a step is one evaluation of the batch."""
    first = _step_of(data.train_plans(0, 0, 1, batch_size), 0)
    frames = rendered(to_device(data.tables), to_device(first))
    model = plain_model(experiment, frames[0, 0].numel())
    draw = log_weights(assemble(experiment, "pyro"), num_particles)
    parameters = {name: value.detach() for name, value in model.state_dict().items()}
    return {
        PPL: _repeating(lambda: draw(parameters, frames)),
        PLAIN: _repeating(lambda: model.log_weights(frames, num_particles, CHUNK)),
        PRODUCTS: _repeating(lambda: model.networks(frames, num_particles, CHUNK)),
    }


def _repeating(compute: Callable[[], torch.Tensor]) -> Callable[[int], None]:
    def run(num_steps: int) -> None:
        for _ in range(num_steps):
            compute()

    return run


def _pyro(render: Any, tables: Any, first: Plan, plans: Plans) -> Any:
    program = assemble(paper_experiment("pyro"), "pyro")
    trainer = Trainer(program, ELBO, ADAM, render, tables, first, seed=0)
    return lambda num_steps: trainer.advance(plans.following(num_steps))


def _plain(render: Any, tables: Any, frames: torch.Tensor, plans: Plans) -> Any:
    trainer = plain_torch.Trainer(plain_model(paper_experiment("pyro"), frames[0, 0].numel()), LEARNING_RATE)

    def run(num_steps: int) -> np.ndarray:
        drawn = to_device(plans.following(num_steps))
        return trainer.advance(render(tables, _step_of(drawn, index)) for index in range(num_steps))

    return run


def plain_model(experiment: Any, num_pixels: int) -> plain_torch.TVAE:
    """The model of a resolved experiment, by hand."""
    shape, hidden = latent_shape(experiment), experiment.hidden
    return plain_torch.TVAE(neighborhood(experiment), shape, hidden, num_pixels, experiment.mu, experiment.epsilon)


def _rendering(tables: Any, plans: Plans) -> Any:
    """Plans drawn on the host, and frames from them."""

    def run(num_steps: int) -> None:
        drawn = to_device(plans.following(num_steps))
        for index in range(num_steps):
            rendered(tables, _step_of(drawn, index))

    return run


def _products(frames: torch.Tensor) -> Any:
    rows = frames.shape[0] * frames.shape[1]
    operands = [
        (torch.randn(rows, size_in), torch.randn(size_out, size_in), torch.randn(rows, size_out), input_needs_gradient)
        for size_in, size_out, input_needs_gradient in layers(paper_experiment("pyro"), frames[0, 0].numel())
    ]

    def run(num_steps: int) -> None:
        for _ in range(num_steps):
            for x, weight, gradient, input_needs_gradient in operands:
                x @ weight.T, gradient.T @ x
                if input_needs_gradient:
                    gradient @ weight

    return run


def _step_of(plans: Plan, index: int) -> Plan:
    return Plan(*(field[index] for field in plans))
