"""A training step in Pyro, in PyTorch alone and as released, and the two parts of it that no program can avoid."""

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from benchmarks import plain_torch, released_step
from benchmarks.setting import (
    ADAM,
    CHUNK,
    COMPILED,
    LEARNING_RATE,
    PLAIN,
    PPL,
    PRODUCTS,
    RECORDED,
    RELEASED,
    RENDERING,
    UNRECORDED,
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
from ppl_tvae.inference.pyro.batches import batches_of, steps_at_once
from ppl_tvae.inference.pyro.device import to_device
from ppl_tvae.inference.pyro.importance import log_weights
from ppl_tvae.inference.pyro.svi import Trainer

NAMES = {
    PPL: "Pyro",
    UNRECORDED: "Pyro, no graph",
    PLAIN: "PyTorch alone",
    RECORDED: "PyTorch alone, graph",
    COMPILED: "PyTorch alone, compiled",
    RELEASED: "released code (ours, in PyTorch)",
}
LARGEST_RELEASED = 64  # sequences in a batch; it draws them one by one, so that more tell nothing new and take minutes


def contenders(data: SequenceData, batch_size: int, compiled: bool = False) -> Contenders:
    """All of them, for batches of so many sequences; on a GPU with and without graphs, and compiled."""
    first, on_gpu = data.train_plans(0, 0, 1, batch_size).at(0), torch.get_default_device().type == "cuda"
    frames = rendered(to_device(data.tables), to_device(first))
    several = torch.cat([frames] * steps_at_once(frames)) if on_gpu else frames
    found: Contenders = {}
    for drawn in (True, False):
        render, tables = (rendered, data.tables) if drawn else (ready, SequenceTables(several))

        def following(drawn: bool = drawn) -> Plans:
            return Plans(data, batch_size, drawn)

        found[PPL, drawn] = _pyro(render, tables, first, following())
        found[PLAIN, drawn] = _plain(render, to_device(tables), frames, following())
        if on_gpu:
            found[UNRECORDED, drawn] = _pyro(render, tables, first, following(), may_record=False)
            found[RECORDED, drawn] = _recorded(render, tables, first, following())
        if (on_gpu or compiled) and (run := _compiled(render, to_device(tables), frames, following())):
            found[COMPILED, drawn] = run
    found[RENDERING, True] = _rendering(data.tables, first, Plans(data, batch_size, True))
    found[PRODUCTS, False] = _products(frames, on_gpu)
    if batch_size <= LARGEST_RELEASED:
        found[RELEASED, True] = released_step.Trainer(released_model(), data.tables.images[..., 0], batch_size).advance
    return {name: _done(run) for name, run in found.items()} if on_gpu else found


def extra_memory(run: Callable[[int], object]) -> int | None:
    """Bytes that the first step of a contender adds on the GPU to parameters and data; None on a CPU."""
    if torch.get_default_device().type != "cuda":
        return None
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run(1)
    return torch.cuda.max_memory_allocated() - before


def released_model() -> released_step.Released:
    """The paper's MNIST model, as in `paper_experiment`."""
    experiment = paper_experiment("pyro")
    window, width, mu = experiment.temporal_window, experiment.spatial_width, experiment.mu
    assert window is not None
    assert width is not None
    assert mu is not None
    return released_step.Released(*latent_shape(experiment), window, width, 28, mu)


def _done(run: Callable[[int], object]) -> Callable[[int], None]:
    """The same, which returns when the GPU has done it."""

    def run_and_wait(num_steps: int) -> None:
        run(num_steps)
        torch.cuda.synchronize()

    return run_and_wait


def weighing(experiment: Experiment, data: SequenceData, batch_size: int, num_particles: int) -> dict[str, Any]:
    """Log weights of one batch, ours and by hand, and the networks alone; a step is one evaluation of the batch."""
    first = data.train_plans(0, 0, 1, batch_size).at(0)
    frames = rendered(to_device(data.tables), to_device(first))
    model = plain_model(experiment, frames[0, 0].numel())
    draw = log_weights(assemble(experiment, "pyro"), num_particles)
    parameters = {name: value.detach() for name, value in model.state_dict().items()}
    found = {
        PPL: _repeating(lambda: draw(parameters, frames)),
        PLAIN: _repeating(lambda: model.log_weights(frames, num_particles, CHUNK)),
        PRODUCTS: _repeating(lambda: model.networks(frames, num_particles, CHUNK)),
    }
    return {name: _done(run) for name, run in found.items()} if frames.is_cuda else found


def _repeating(compute: Callable[[], torch.Tensor]) -> Callable[[int], None]:
    def run(num_steps: int) -> None:
        for _ in range(num_steps):
            compute()

    return run


def _pyro(render: Any, tables: Any, first: Plan, plans: Plans, may_record: bool = True) -> Any:
    program = assemble(paper_experiment("pyro"), "pyro")
    trainer = Trainer(program, ELBO, ADAM, render, tables, first, seed=0, may_record=may_record)
    must_record = may_record and torch.get_default_device().type == "cuda"

    def run(num_steps: int) -> np.ndarray:
        losses = trainer.advance(plans.following(num_steps))
        if must_record and trainer.execution.startswith("called"):
            raise RuntimeError(f"expected a graph, found that Pyro's steps are {trainer.execution}")
        return losses

    return run


def _plain(render: Any, tables: Any, frames: torch.Tensor, plans: Plans, compiled: bool = False) -> Any:
    trainer = _plain_trainer(frames, compiled)

    def run(num_steps: int) -> np.ndarray:
        drawn = to_device(plans.following(num_steps))
        return trainer.advance(render(tables, drawn.at(index)) for index in range(num_steps))

    return run


def _compiled(render: Any, tables: Any, frames: torch.Tensor, plans: Plans) -> Any:
    """None, with a word on standard error, where torch.compile lacks something, such as a compiler of C++."""
    run = _plain(render, tables, frames, plans, compiled=True)
    try:
        run(1)
    except RuntimeError as error:
        print(f"left out: {NAMES[COMPILED]}: {str(error).strip().splitlines()[0]}", file=sys.stderr)
        return None
    return run


def _recorded(render: Any, tables: Any, first: Plan, plans: Plans) -> Any:
    """A step as a graph, with frames that are rendered as ours are: for several steps at once."""
    batches = batches_of(render, tables, first)
    trainer = _plain_trainer(batches.frames)
    replay = plain_torch.recorded(lambda: trainer.step(batches.frames))

    def run(num_steps: int) -> np.ndarray:
        drawn, found = to_device(plans.following(num_steps)), torch.empty(num_steps)
        for index in range(num_steps):
            batches.prepare(drawn, index)
            found[index] = replay()
        return found.numpy(force=True)

    return run


def _plain_trainer(frames: torch.Tensor, compiled: bool = False) -> plain_torch.Trainer:
    return plain_torch.Trainer(plain_model(paper_experiment("pyro"), frames[0, 0].numel()), LEARNING_RATE, compiled)


def plain_model(experiment: Any, num_pixels: int) -> plain_torch.TVAE:
    """The model of a resolved experiment, by hand."""
    shape, hidden = latent_shape(experiment), experiment.hidden
    return plain_torch.TVAE(neighborhood(experiment), shape, hidden, num_pixels, experiment.mu, experiment.epsilon)


def _rendering(tables: Any, first: Plan, plans: Plans) -> Any:
    """Plans drawn on the host, and frames from them, as in a step of ours."""
    batches = batches_of(rendered, tables, first)

    def run(num_steps: int) -> None:
        drawn = to_device(plans.following(num_steps))
        for index in range(num_steps):
            batches.prepare(drawn, index)

    return run


def _products(frames: torch.Tensor, on_gpu: bool) -> Any:
    rows = frames.shape[0] * frames.shape[1]
    operands = [
        (torch.randn(rows, size_in), torch.randn(size_out, size_in), torch.randn(rows, size_out), input_needs_gradient)
        for size_in, size_out, input_needs_gradient in layers(paper_experiment("pyro"), frames[0, 0].numel())
    ]

    def one_step() -> torch.Tensor:
        for x, weight, gradient, input_needs_gradient in operands:
            x @ weight.T, gradient.T @ x
            if input_needs_gradient:
                gradient @ weight
        return operands[0][0]

    compute = plain_torch.recorded(one_step) if on_gpu else one_step

    def run(num_steps: int) -> None:
        for _ in range(num_steps):
            compute()

    return run
