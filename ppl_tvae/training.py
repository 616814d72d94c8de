"""Training: an experiment's data, its trainer and the loop, put together. Both backends go through it in the same way.

Batches are a function of (seed, step), noise lives in the trainer's state, and where chunks of steps begin changes
nothing, so a run that was killed and resumed ends with the parameters of one that was not, bit for bit on a CPU, but
for a seed that was trained together with others in one program and goes on alone: it equals itself up to rounding.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from ppl_tvae.assembly import data_of, resolved_for
from ppl_tvae.config import Experiment, experiment_from
from ppl_tvae.data import Plan, SequenceData
from ppl_tvae.errors import Diverged, UserError
from ppl_tvae.inference.interfaces import Trainer
from ppl_tvae.loop import Loop, run_to_end
from ppl_tvae.own_program import naming_the_program
from ppl_tvae.runs import Checkpoint, Run, check_new, create_run, open_run
from ppl_tvae.trainers import check_is_trained_here, optimization_of, trainer_of

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
        run = create_run(Path(out), resolved)
        with run.in_training():
            loop = Loop(run, data, held_out, trainer, optimization_of(resolved), quiet)
            loop.begin(elbo)
            run_to_end([loop])
    return run


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
    check_is_trained_here(own.experiment)
    changes = {name: value for name, value in given.items() if value is not None}
    experiment = experiment_from(own.experiment.to_mapping() | changes).resolved()
    run = replace(own, experiment=experiment)
    with run.in_training():
        checkpoint = run.checkpoint()
        _check_can_go_on(own, checkpoint, experiment.steps)
        data = data_of(experiment)
        with trainer_of(experiment, data) as trainer:
            held_out = held_out_plan(experiment, data)
            loop = Loop(run, data, held_out, trainer, optimization_of(experiment), quiet)
            if checkpoint is None:
                loop.begin(first_elbo(experiment, held_out, trainer))
            else:
                _check_fits(trainer.state(), checkpoint, run.path)
                loop.take_up(checkpoint)
            run.save_config()
            run_to_end([loop])
    return run


def batched(plan: Plan, batch_size: int) -> Plan:
    """A plan (sequences, ...) as batches (batches, batch, ...); the last sequences that fill no batch are left out."""
    size = min(batch_size, len(plan.image))
    whole = len(plan.image) // size * size
    return plan.map(lambda field: field[:whole].reshape(-1, size, *field.shape[1:]))


def held_out_plan(experiment: Experiment, data: SequenceData) -> Plan:
    """The validation sequences, in batches."""
    return batched(data.validation_plan(experiment.validation_sequences), experiment.batch_size)


def first_elbo(experiment: Experiment, held_out: Plan, trainer: Trainer) -> float:
    """The held-out ELBO before the first step, nats per frame. Raises Diverged if it is not finite."""
    with naming_the_program(experiment):
        elbo = -trainer.held_out_loss(held_out)
    if not math.isfinite(elbo):
        raise Diverged(
            f"the held-out ELBO before the first step is {elbo}, so nothing was trained; try "
            f"{'smaller numbers' if experiment.precision == 'float64' else '--float float64'}"
        )
    return elbo


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
