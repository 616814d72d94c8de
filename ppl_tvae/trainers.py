"""From a resolved experiment to its trainer: on one device, on several, or in processes that torchrun started."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from typing import Any

from ppl_tvae.assembly import assemble, data_of, renderer
from ppl_tvae.config import Experiment, experiment_from
from ppl_tvae.data import Plan, SequenceData
from ppl_tvae.errors import UserError
from ppl_tvae.inference.interfaces import Trainer
from ppl_tvae.inference.objective import Objective
from ppl_tvae.inference.optimization import Optimization
from ppl_tvae.models.initial import shared_draws
from ppl_tvae.own_program import naming_the_program


def check_is_trained_here(experiment: Experiment) -> None:
    """Raises UserError for the settings of a run whose parameters a loop of the user's own has found."""
    if experiment.trained_by is not None:
        raise UserError(
            f"expected a run that this package trains, found one whose parameters a loop of your own has found "
            f"(trained_by '{experiment.trained_by}'); go on in that loop, or train without the setting trained_by"
        )


@contextmanager
def trainer_of(experiment: Experiment, data: SequenceData) -> Iterator[Trainer]:
    """The backend's trainer of a resolved experiment, at its initial parameters, while its device is the default.

    Raises UserError.
    """
    check_is_trained_here(experiment)
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
            # The package's own programs are held to what is checked by its tests; looking again takes seconds.
            likelihood=None if experiment.program_file is None else experiment.likelihood,
        )


def first_plan(experiment: Experiment, data: SequenceData) -> Plan:
    """The first batch: what fixes the shapes of all."""
    return data.train_plans(experiment.seed, 0, 1, experiment.batch_size).at(0)


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
            f"expected training to begin in rank 0, found rank {os.environ['RANK']}; call trainers.follow() in this one"
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
