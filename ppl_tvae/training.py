"""Training: from an experiment to its data, its trainer and the loop. Both backends go through it in the same way.

Batches are a function of (seed, step), noise lives in the trainer's state, and where chunks of steps begin changes
nothing, so a run that was killed and resumed ends with the parameters of one that was not, bit for bit on a CPU.
"""

import math
import os
import signal
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from array_api_compat import array_namespace

from ppl_tvae.assembly import assemble
from ppl_tvae.config import Experiment, experiment_from
from ppl_tvae.data import Plan, SequenceData, open_data, render
from ppl_tvae.errors import Diverged, UserError
from ppl_tvae.inference.objective import Objective
from ppl_tvae.inference.optimization import Optimization
from ppl_tvae.loop import Loop
from ppl_tvae.models.initial import shared_draws
from ppl_tvae.runs import Checkpoint, Run, check_new, create_run, open_run

# What may be another when a run goes on: how far, and where it computes and finds its data.
CHANGEABLE = ("steps", "device", "devices", "data_dir")


def train(experiment: Experiment, out: Path | str, *, quiet: bool = False) -> Run:
    """Train an experiment into a new run directory. Raises UserError, Diverged or Interrupted.

    Nothing is written before the program has run once on held-out sequences, so that a mistake leaves nothing behind.
    """
    check_new(Path(out))
    data = data_of(experiment)
    resolved = resolved_for(experiment, data)
    with trainer_of(resolved, data) as trainer:
        held_out = held_out_plan(resolved, data)
        elbo = first_elbo(resolved, held_out, trainer)
        loop = Loop(create_run(Path(out), resolved), data, held_out, trainer, optimization_of(resolved), quiet)
        loop.begin(elbo)
        loop.run_to_end()
    return loop.run


def resume(
    path: Path | str,
    *,
    steps: int | None = None,
    device: str | None = None,
    devices: int | None = None,
    data_dir: str | None = None,
    quiet: bool = False,
) -> Run:
    """Go on with a run from its last checkpoint, to its number of steps or another one. Raises as `train`.

    device, devices, data_dir: where these are others now; all else is the run's. On other devices the last digits
    differ.
    """
    own, given = open_run(Path(path)), {
        "steps": steps, "device": device, "devices": devices, "data_dir": data_dir,
    }  # fmt: skip
    changes = {name: value for name, value in given.items() if value is not None}
    checkpoint = own.checkpoint()
    experiment = experiment_from(own.experiment.to_mapping() | changes).resolved()
    _check_can_go_on(own, checkpoint, experiment.steps)
    data = data_of(experiment)
    with trainer_of(experiment, data) as trainer:
        held_out = held_out_plan(experiment, data)
        run = replace(own, experiment=experiment)
        loop = Loop(run, data, held_out, trainer, optimization_of(experiment), quiet)
        if checkpoint is None:
            loop.begin(first_elbo(experiment, held_out, trainer))
        else:
            _check_fits(trainer.state(), checkpoint, run.path)
            loop.take_up(checkpoint)
        loop.run.save_config()
        loop.run_to_end()
    return loop.run


def data_of(experiment: Experiment, transforms: Sequence[str] | None = None) -> SequenceData:
    """The data set that an experiment names; with other transforms than its own, where they are given.

    Raises UserError.
    """
    if transforms is not None:
        experiment = replace(experiment, transforms=tuple(transforms))
    checked = experiment.resolved()
    assert checked.transforms is not None
    data = open_data(
        checked.data,
        Path(checked.data_dir) if checked.data_dir else None,
        checked.transforms,
        # Ready sequences bring their own number, so what was only a default must not speak for the user here.
        checked.num_timesteps if checked.model == "torus" else experiment.num_timesteps,
        checked.validation_fraction,
    )
    if checked.data_digest not in (None, data.source.digest):
        raise UserError(
            f"expected the data whose digest is {checked.data_digest} (data_digest) in '{checked.data}', found others; "
            f"put the former ones back, or train a new run without data_digest"
        )
    return data


def resolved_for(experiment: Experiment, data: SequenceData) -> Experiment:
    """A resolved experiment, with what its data decide. Raises UserError."""
    timesteps, transforms, digest = data.num_timesteps, data.transforms, data.source.digest
    return replace(experiment, num_timesteps=timesteps, transforms=transforms, data_digest=digest).resolved()


def renderer(experiment: Experiment) -> Callable[[Any, Any], Any]:
    """(tables, plan) -> frames as the experiment observes them: binarised or grey, in its precision."""

    def frames(tables: Any, plan: Any) -> Any:
        drawn = render(tables, plan, experiment.binarize)
        xp = array_namespace(drawn)
        return xp.astype(drawn, getattr(xp, experiment.precision))

    return frames


def batched(plan: Plan, batch_size: int) -> Plan:
    """A plan (sequences, ...) as batches (batches, batch, ...); the last sequences that fill no batch are left out."""
    size = min(batch_size, len(plan.image))
    whole = len(plan.image) // size * size
    return plan.map(lambda field: field[:whole].reshape(-1, size, *field.shape[1:]))


@contextmanager
def trainer_of(experiment: Experiment, data: SequenceData) -> Iterator[Any]:
    """The backend's trainer of a resolved experiment, at its initial parameters, while its device is the default."""
    device = import_module(f"ppl_tvae.inference.{experiment.backend}.device")
    with (
        device.on_device(experiment.device, experiment.precision, experiment.matmul),
        shared_draws(experiment.seed),
        _trainer_class(experiment) as trainer_class,
    ):
        yield _trainer(trainer_class, experiment, data)


def _trainer(trainer_class: Callable[..., Any], experiment: Experiment, data: SequenceData) -> Any:
    program = assemble(experiment, experiment.backend)
    with naming_the_program(experiment):
        return trainer_class(
            program,
            _objective(experiment),
            optimization_of(experiment),
            renderer(experiment),
            data.tables,
            first_plan(experiment, data),
            experiment.seed,
            likelihood=experiment.likelihood,
        )


def is_follower() -> bool:
    """Whether torchrun started this process beside another, rank 0, which has the run."""
    return num_processes() > 1 and int(os.environ["RANK"]) > 0


def follow() -> None:
    """Take part in the training of rank 0, in every other process that torchrun started. Writes nothing.

    Ends when `train` or `resume` of rank 0 ends. Raises UserError as they do.
    """
    # torchrun hands Ctrl-C to all processes: rank 0 then saves its state, for which the others are needed.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    backend, device = (import_module(f"ppl_tvae.inference.pyro.{name}") for name in ("distributed", "device"))
    with backend.joined() as ranks:
        experiment = experiment_from(ranks.hear()).resolved()
        data = data_of(experiment)
        place = device.on_device(experiment.device, experiment.precision, experiment.matmul)
        with place, shared_draws(experiment.seed):
            _trainer(partial(backend.DistributedTrainer, ranks=ranks), experiment, data).obey()


def num_processes() -> int:
    """How many processes torchrun started, 1 without it."""
    return int(os.environ["WORLD_SIZE"]) if {"RANK", "LOCAL_RANK", "WORLD_SIZE"} <= set(os.environ) else 1


@contextmanager
def _trainer_class(experiment: Experiment) -> Iterator[Callable[..., Any]]:
    """The trainer for one device, for several, or for rank 0 of several processes. Raises UserError."""
    modules = f"ppl_tvae.inference.{experiment.backend}"
    if num_processes() > 1:
        _check_processes(experiment, num_processes())
        distributed = import_module(f"{modules}.distributed")
        with distributed.joined() as ranks:
            ranks.tell(experiment.to_mapping())
            yield partial(distributed.DistributedTrainer, ranks=ranks)
    elif experiment.devices > 1:
        distributed = import_module(f"{modules}.distributed")
        yield partial(distributed.DistributedTrainer, device=experiment.device, num_devices=experiment.devices)
    else:
        yield import_module(f"{modules}.svi").Trainer


def _check_processes(experiment: Experiment, num_processes: int) -> None:
    if experiment.backend != "pyro":
        raise UserError(
            f"expected backend 'pyro' in a process that torchrun started, found '{experiment.backend}', where one "
            f"process has all devices; leave out torchrun and give --devices {num_processes}"
        )
    if experiment.batch_size % num_processes:
        raise UserError(
            f"expected a batch_size that is a multiple of the {num_processes} processes, found {experiment.batch_size}"
        )
    if is_follower():
        raise UserError(
            f"expected training to begin in rank 0, found rank {os.environ['RANK']}; call training.follow() in this one"
        )


def first_plan(experiment: Experiment, data: SequenceData) -> Plan:
    """The first batch: what fixes the shapes of all."""
    return data.train_plans(experiment.seed, 0, 1, experiment.batch_size).at(0)


def held_out_plan(experiment: Experiment, data: SequenceData) -> Plan:
    """The validation sequences, in batches."""
    return batched(data.validation_plan(experiment.validation_sequences), experiment.batch_size)


def first_elbo(experiment: Experiment, held_out: Plan, trainer: Any) -> float:
    """The held-out ELBO before the first step, nats per frame. Raises Diverged if it is not finite."""
    with naming_the_program(experiment):
        elbo = -trainer.held_out_loss(held_out)
    if not math.isfinite(elbo):
        raise Diverged(
            f"the held-out ELBO before the first step is {elbo}, so nothing was trained; try --float float64"
        )
    return elbo


@contextmanager
def naming_the_program(experiment: Experiment) -> Iterator[None]:
    """What a user's own program raises when it first runs, as a sentence with the line."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if experiment.program_file is None:
            raise
        own = experiment.program_file.resolve()
        calls = [call for call in traceback.extract_tb(error.__traceback__) if Path(call.filename).resolve() == own]
        where = f" at line {calls[-1].lineno}, '{calls[-1].line}'" if calls else ""
        first_line = str(error).strip().partition("\n")[0]
        what = f": {first_line}" if first_line else ""
        raise UserError(
            f"expected the program '{experiment.program_file}' to run on frames (batch, time, height, width, channel), "
            f"found {type(error).__name__}{where}{what}; mend the program"
        ) from error


def _check_can_go_on(run: Run, checkpoint: Checkpoint | None, steps: int) -> None:
    if checkpoint is None:
        return
    schedule = run.experiment.schedule
    if steps != run.experiment.steps and schedule != "constant":
        raise UserError(
            f"expected the run's own {run.experiment.steps} steps, since its learning rate follows the schedule "
            f"'{schedule}' over them, found {steps}; start a new run"
        )
    if steps <= checkpoint.step:
        hint = "raise --steps" if schedule == "constant" else f"its schedule '{schedule}' ends there: start a new run"
        raise UserError(
            f"expected more steps than the {checkpoint.step} that '{run.path}' has done, found {steps}; {hint}"
        )
    if 0 < run.experiment.patience <= checkpoint.progress["stale"]:
        raise UserError(
            f"expected a run that can go on, found that '{run.path}' has stopped at step {checkpoint.step}, after "
            f"{run.experiment.patience} held-out ELBOs without a new best (its patience); start a new run with more"
        )


def _check_fits(expected: Mapping[str, np.ndarray], checkpoint: Checkpoint, path: Path) -> None:
    """A state from another program, which was edited in the meantime, is refused. Raises UserError."""
    for name in dict.fromkeys([*expected, *checkpoint.arrays]):
        # torch's optimiser has no memory before the first step; random streams are those of the devices that ran.
        if name.startswith(("optimizer.", "random.")):
            continue
        wanted, found = (
            f"of shape {arrays[name].shape}" if name in arrays else "nowhere"
            for arrays in (expected, checkpoint.arrays)
        )
        if wanted != found:
            raise UserError(
                f"expected {name} {wanted} in the state of '{path}', found it {found}: it was saved by another program "
                f"or settings; put these back, or start a new run"
            )


def _objective(experiment: Experiment) -> Objective:
    return Objective(
        experiment.objective, experiment.num_particles or 1, experiment.alpha or 0.0, experiment.kl_warmup_steps
    )


def optimization_of(experiment: Experiment) -> Optimization:
    """The settings of the optimiser of a resolved experiment."""
    assert experiment.learning_rate is not None
    return Optimization(
        experiment.optimizer,
        experiment.learning_rate,
        experiment.momentum,
        experiment.clip_norm,
        experiment.schedule,
        experiment.warmup_steps,
        experiment.steps,
        experiment.adam_epsilon,
    )
