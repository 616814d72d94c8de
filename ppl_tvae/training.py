"""Training a run: the loop around a backend's steps. Both backends go through it in the same way.

Batches are a function of (seed, step), noise lives in the trainer's state, and where chunks of steps begin changes
nothing, so a run that was killed and resumed ends with the parameters of one that was not, bit for bit on a CPU.
"""

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from array_api_compat import array_namespace
from tqdm import tqdm

from ppl_tvae.config import Experiment
from ppl_tvae.data import Plan, SequenceData, open_data, render
from ppl_tvae.errors import UserError
from ppl_tvae.inference.optimization import Optimization, learning_rate_factor
from ppl_tvae.models.assembly import assemble
from ppl_tvae.models.initial import shared_draws
from ppl_tvae.runs import Checkpoint, Run, create_run, open_run

# Steps run uninterrupted for about this long, then progress is shown and Ctrl-C is heard.
_SECONDS_PER_CHUNK = 2.0


class Diverged(RuntimeError):
    """The loss was not finite. The run directory holds the last good state and the best parameters."""


class Interrupted(RuntimeError):
    """Ctrl-C. The run directory holds the state of the last step that was done."""


def train(experiment: Experiment, out: Path | str, *, quiet: bool = False) -> Run:
    """Train an experiment into a new run directory. Raises UserError, Diverged or Interrupted."""
    data = data_of(experiment)
    resolved = replace(experiment, num_timesteps=data.num_timesteps, transforms=data.transforms).resolved()
    return _fit(create_run(Path(out), resolved), data, quiet)


def resume(path: Path | str, *, steps: int | None = None, quiet: bool = False) -> Run:
    """Go on with a run from its last checkpoint, to its number of steps or a larger one. Raises as `train`."""
    run = open_run(Path(path))
    steps = run.experiment.steps if steps is None else steps
    if steps != run.experiment.steps and run.experiment.schedule != "constant":
        raise UserError(
            f"expected the run's own {run.experiment.steps} steps, since its learning rate follows the schedule "
            f"'{run.experiment.schedule}' over them, found {steps}; start a new run"
        )
    checkpoint = run.checkpoint()
    if checkpoint is not None and steps <= checkpoint.step:
        raise UserError(f"expected more steps than the {checkpoint.step} that '{path}' has done, found {steps}")
    return _fit(run.with_steps(steps), data_of(run.experiment), quiet)


def data_of(experiment: Experiment) -> SequenceData:
    """The data set that an experiment names. Raises UserError."""
    checked = experiment.resolved()
    assert checked.transforms is not None
    return open_data(
        checked.data,
        Path(checked.data_dir) if checked.data_dir else None,
        checked.transforms,
        # Ready sequences bring their own number, so what was only a default must not speak for the user here.
        checked.num_timesteps if checked.model == "torus" else experiment.num_timesteps,
        checked.validation_fraction,
    )


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
    return Plan(*(field[:whole].reshape(-1, size, *field.shape[1:]) for field in plan))


def _fit(run: Run, data: SequenceData, quiet: bool) -> Run:
    experiment = run.experiment
    backend = import_module(f"ppl_tvae.inference.{experiment.backend}.svi")
    device = import_module(f"ppl_tvae.inference.{experiment.backend}.device")
    with device.on_device(experiment.device, experiment.precision), shared_draws(experiment.seed):
        trainer = backend.Trainer(
            assemble(experiment, experiment.backend),
            experiment.objective,
            _optimization(experiment),
            renderer(experiment),
            data.tables,
            Plan(*(field[0] for field in data.train_plans(experiment.seed, 0, 1, experiment.batch_size))),
            experiment.seed,
        )
        _Loop(run, data, trainer, quiet).run_to_end()
    return run


def _optimization(experiment: Experiment) -> Optimization:
    assert experiment.learning_rate is not None
    return Optimization(
        experiment.optimizer,
        experiment.learning_rate,
        experiment.momentum,
        experiment.clip_norm,
        experiment.schedule,
        experiment.warmup_steps,
        experiment.steps,
    )


class _Loop:
    """What the loop remembers between chunks: the step, the best held-out ELBO, losses not yet logged."""

    def __init__(self, run: Run, data: SequenceData, trainer: Any, quiet: bool) -> None:
        self.run, self.data, self.trainer = run, data, trainer
        self.held_out = batched(data.validation_plan(run.experiment.validation_sequences), run.experiment.batch_size)
        self.step, self.best, self.stale = 0, -math.inf, 0
        self.pending: list[float] = []
        self.seconds = self.seconds_pending = 0.0
        self.stop = False
        self.bar = tqdm(total=run.experiment.steps, unit="step", disable=True if quiet else None, dynamic_ncols=True)

    def run_to_end(self) -> None:
        """Train until the last step, the end of patience, Ctrl-C or a loss that is not finite."""
        self._take_up()
        with self.bar, self._interruptible():
            while self.step < self.run.experiment.steps and not self._out_of_patience():
                self._chunk()
                if self.stop:
                    self._save()
                    raise Interrupted(f"stopped at step {self.step}; go on with --resume --out {self.run.path}")
            if self.pending:
                self._log(self._evaluate())
            self._save()

    def _take_up(self) -> None:
        """Begin, or begin again where the last whole checkpoint was written."""
        checkpoint = self.run.checkpoint()
        self.run.forget_metrics_after(checkpoint.step if checkpoint else -1)
        if checkpoint is None:
            self._log(self._evaluate())
            self._save()
            return
        self.trainer.restore(checkpoint.arrays)
        self.step = checkpoint.step
        self.best, self.stale = checkpoint.progress["best"], checkpoint.progress["stale"]
        self.pending, self.seconds = checkpoint.progress["pending"], checkpoint.progress["seconds"]
        self.bar.update(self.step)

    def _chunk(self) -> None:
        experiment, started = self.run.experiment, time.perf_counter()
        num_steps = self._chunk_length()
        snapshot = self.trainer.snapshot()
        losses = self.trainer.advance(
            self.data.train_plans(experiment.seed, self.step, num_steps, experiment.batch_size)
        )
        if not np.isfinite(losses).all():
            bad = self.step + int(np.argmin(np.isfinite(losses)))
            self.trainer.rewind(snapshot)
            self._give_up(f"the loss at step {bad} is {losses[bad - self.step]}")
        self.step += num_steps
        self.pending += losses.tolist()
        self.seconds_pending += time.perf_counter() - started
        self.bar.update(num_steps)
        if self.step % experiment.evaluate_every == 0:
            self._log(self._evaluate())
            self._save()
        elif self.step % experiment.log_every == 0:
            self._log(None)

    def _chunk_length(self) -> int:
        """Steps until the next row or checkpoint, or fewer if those take long."""
        experiment = self.run.experiment
        until_log = experiment.log_every - self.step % experiment.log_every
        until_evaluation = experiment.evaluate_every - self.step % experiment.evaluate_every
        rate = len(self.pending) / self.seconds_pending if self.seconds_pending else 1.0
        affordable = max(1, int(rate * _SECONDS_PER_CHUNK))
        return min(until_log, until_evaluation, experiment.steps - self.step, affordable)

    def _evaluate(self) -> float:
        """The held-out ELBO, nats per frame, up; the parameters are kept if it is the best."""
        elbo = -self.trainer.held_out_loss(self.held_out)
        if not math.isfinite(elbo):
            self._give_up(f"the held-out ELBO after step {self.step} is {elbo}")
        if elbo > self.best:
            self.best, self.stale = elbo, 0
            self.run.save_parameters(self.trainer.parameters())
        else:
            self.stale += 1
        return elbo

    def _log(self, elbo: float | None) -> None:
        experiment = self.run.experiment
        frames = len(self.pending) * experiment.batch_size * self.data.num_timesteps
        self.seconds += self.seconds_pending
        row = {
            "step": self.step,
            "loss": sum(self.pending) / len(self.pending) if self.pending else "",
            "elbo_per_frame": "" if elbo is None else elbo,
            "learning_rate": self._learning_rate(),
            "frames_per_second": round(frames / self.seconds_pending, 1) if self.seconds_pending else "",
            "seconds": round(self.seconds, 3),
        }
        self.run.add_metrics(row)
        shown = {"loss/frame": row["loss"], "held-out ELBO/frame": self.best, "frames/s": row["frames_per_second"]}
        self.bar.set_postfix({name: f"{value:.1f}" for name, value in shown.items() if value != ""})
        self.pending, self.seconds_pending = [], 0.0

    def _learning_rate(self) -> float:
        optimization = _optimization(self.run.experiment)
        return optimization.learning_rate * float(learning_rate_factor(optimization, np.asarray(self.step)))

    def _save(self) -> None:
        arrays = self.trainer.state()
        if not all(np.isfinite(array).all() for array in arrays.values() if array.dtype.kind == "f"):
            self._give_up(f"a parameter after step {self.step} is not finite", keep_state=False)
        progress = {
            "best": self.best, "stale": self.stale, "pending": self.pending,
            "seconds": self.seconds + self.seconds_pending,
        }  # fmt: skip
        self.run.save_checkpoint(Checkpoint(self.step, arrays, progress))

    def _give_up(self, what: str, keep_state: bool = True) -> None:
        if keep_state:
            self._save()
        raise Diverged(
            f"{what}; the best parameters so far and the last good state are kept in '{self.run.path}'; "
            f"try a smaller --learning-rate (now {self.run.experiment.learning_rate:g}), --clip-norm, --warmup-steps "
            f"or --float float64"
        )

    def _out_of_patience(self) -> bool:
        return 0 < self.run.experiment.patience <= self.stale

    @contextmanager
    def _interruptible(self) -> Iterator[None]:
        """The first Ctrl-C ends the run after the present chunk, a second one at once."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def ask_to_stop(*_: Any) -> None:
            self.stop = True
            signal.signal(signal.SIGINT, previous)

        previous = signal.signal(signal.SIGINT, ask_to_stop)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, previous)
