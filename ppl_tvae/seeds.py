"""Several seeds of an experiment: all at once in NumPyro, one after another in Pyro."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

from ppl_tvae.assembly import data_of, resolved_for
from ppl_tvae.config import Experiment
from ppl_tvae.data import SequenceData
from ppl_tvae.errors import Diverged, Interrupted, UserError, check_count
from ppl_tvae.loop import Loop, run_to_end
from ppl_tvae.models.initial import shared_draws
from ppl_tvae.runs import Run, check_new, create_run
from ppl_tvae.trainers import first_plan, num_processes, optimization_of, trainer_of
from ppl_tvae.training import first_elbo, held_out_plan, train

MOST_SEEDS = 1000  # of one command


def run_of(out: Path | str, seed: int) -> Path:
    """The run directory of a seed: OUT-seedN."""
    return Path(f"{out}-seed{seed}")


def train_seeds(experiment: Experiment, num_seeds: int, out: Path | str, *, quiet: bool = False) -> list[Run]:
    """Train an experiment from its own seed and the num_seeds - 1 after it, seed N into the run directory OUT-seedN.

    NumPyro trains all in one compiled program, Pyro one after another. Each run is an ordinary one: it ends where it
    would have ended alone, up to rounding in NumPyro, and can be resumed alone. Raises as `train`; where a seed
    diverges, Diverged is raised once the others are done. After Ctrl-C Pyro begins no further seed; Interrupted names
    those that are left.
    """
    check_count("a number of seeds", num_seeds, most=MOST_SEEDS)
    seeded = [replace(experiment, seed=experiment.seed + index) for index in range(num_seeds)]
    paths = [run_of(out, each.seed) for each in seeded]
    for each, path in zip(seeded, paths, strict=True):
        each.resolved()
        check_new(path)
    if num_processes() > 1:
        raise UserError("expected one seed in a run that torchrun started, found several; train them one by one")
    if experiment.backend == "pyro":
        return _one_after_another(seeded, paths, quiet)
    if experiment.devices > 1:
        raise UserError(
            f"expected one device with several seeds, which one program trains, found {experiment.devices}; leave out "
            f"--devices, or train the seeds one by one"
        )
    return _all_at_once(seeded, paths, quiet)


def _one_after_another(seeded: Sequence[Experiment], paths: Sequence[Path], quiet: bool) -> list[Run]:
    runs, diverged = [], []
    for experiment, path in zip(seeded, paths, strict=True):
        try:
            runs.append(train(experiment, path, quiet=quiet))
        except Diverged as error:
            diverged.append(str(error))
        except Interrupted as error:
            later = seeded[paths.index(path) + 1 :]
            raise Interrupted("; ".join([str(error), *_not_begun(later), *diverged])) from None
    if diverged:
        raise Diverged("; ".join(diverged))
    return runs


def _not_begun(later: Sequence[Experiment]) -> list[str]:
    """How to train the seeds that Ctrl-C left, in a sentence; none for none."""
    if not later:
        return []
    return [f"of {len(later)} seeds nothing was begun; train them with --seed {later[0].seed} --seeds {len(later)}"]


def _all_at_once(seeded: Sequence[Experiment], paths: Sequence[Path], quiet: bool) -> list[Run]:
    data = data_of(seeded[0])
    resolved = [resolved_for(each, data) for each in seeded]
    with trainer_of(resolved[0], data) as first, ExitStack() as claims:
        trainers = [first, *(_reseeded(first, each, data) for each in resolved[1:])]
        held_out, optimization = held_out_plan(resolved[0], data), optimization_of(resolved[0])
        loops: list[Loop] = []
        diverged: list[str] = []
        for path, each, trainer in zip(paths, resolved, trainers, strict=True):
            try:
                elbo = first_elbo(each, held_out, trainer)
            except Diverged as error:
                diverged.append(f"seed {each.seed}: {error}")
                continue
            run = create_run(path, each)
            claims.enter_context(run.in_training())
            loops.append(Loop(run, data, held_out, trainer, optimization, quiet or bool(loops)))
            loops[-1].begin(elbo)
        run_to_end(loops, import_module("ppl_tvae.inference.numpyro.svi").advance_together, diverged)
    return [loop.run for loop in loops]


def _reseeded(trainer: Any, experiment: Experiment, data: SequenceData) -> Any:
    with shared_draws(experiment.seed):
        return trainer.reseeded(first_plan(experiment, data), experiment.seed)
