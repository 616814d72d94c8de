"""The loop around a backend's steps: chunks, rows of metrics, checkpoints, and every way a run can end."""

import math
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, NoReturn

import numpy as np

from ppl_tvae.data import Plan, SequenceData
from ppl_tvae.errors import Diverged, Interrupted
from ppl_tvae.inference.interfaces import Trainer
from ppl_tvae.inference.optimization import Optimization, learning_rate_factor
from ppl_tvae.progress import progress
from ppl_tvae.runs import Checkpoint, Run

# Steps run uninterrupted for about this long, then progress is shown and Ctrl-C is heard.
_SECONDS_PER_CHUNK = 2.0


class Loop:
    """What the loop remembers between chunks of steps.

    best: the best held-out ELBO, and stale: how many have come since. pending: the loss of each step that is in no row
    of metrics yet, and seconds_pending: how long these took. ELBO and losses in nats per frame.
    """

    def __init__(
        self, run: Run, data: SequenceData, held_out: Plan, trainer: Trainer, optimization: Optimization, quiet: bool
    ) -> None:
        """held_out: plans (batches, batch, ...) of the sequences that choose the best parameters."""
        self.run, self.data, self.held_out = run, data, held_out
        self.trainer, self.optimization = trainer, optimization
        self.step, self.best, self.stale = 0, -math.inf, 0
        self.pending: list[float] = []
        self.seconds = self.seconds_pending = 0.0
        self.rate = 1.0  # steps per second: a first guess, then that of the last chunk
        self.told_execution = quiet
        self.bar = progress(
            what=f"steps of {run.path.name}", quiet=quiet, total=run.experiment.steps, unit="step", dynamic_ncols=True
        )

    def begin(self, elbo: float) -> None:
        """Write down where the run starts."""
        self.run.forget_metrics_after(-1)
        self._keep_if_best(elbo)
        self._log(elbo)
        self._save()

    def take_up(self, checkpoint: Checkpoint) -> None:
        """Begin again where the last whole checkpoint was written."""
        self.trainer.restore(checkpoint.arrays)
        self.run.forget_metrics_after(checkpoint.step)
        self.step = checkpoint.step
        self.best, self.stale = checkpoint.progress["best"], checkpoint.progress["stale"]
        if not self.run.has_parameters():  # the next ones are the best that there are
            self.best = -math.inf
        self.pending, self.seconds = checkpoint.progress["pending"], checkpoint.progress["seconds"]
        self.seconds_pending = checkpoint.progress["seconds_pending"]
        self.bar.initial = self.bar.n = self.bar.last_print_n = self.step  # else these count as done by now

    def _tell_execution(self) -> None:
        """Once, after the first chunk: only then is it known whether a GPU can take a program's steps as a graph."""
        if not self.told_execution and self.trainer.execution:
            self.bar.write(f"steps are {self.trainer.execution}", file=sys.stderr)
            self.told_execution = True

    def _finished(self) -> bool:
        return self.step >= self.run.experiment.steps or 0 < self.run.experiment.patience <= self.stale

    def _plans(self, num_steps: int) -> Plan:
        experiment = self.run.experiment
        return self.data.train_plans(experiment.seed, self.step, num_steps, experiment.batch_size)

    def _account(self, losses: np.ndarray, snapshot: Any, seconds: float) -> None:
        """Take note of the steps that the trainer has done since `snapshot`."""
        experiment, num_steps = self.run.experiment, len(losses)
        if not np.isfinite(losses).all():
            bad = int(np.argmin(np.isfinite(losses)))
            self.trainer.rewind(snapshot)
            self._give_up(f"the loss at step {self.step + bad + 1} is {losses[bad]}")
        self.step += num_steps
        self.rate = num_steps / seconds
        self.pending += losses.tolist()
        self.seconds_pending += seconds
        self.bar.update(num_steps)
        if self.step % experiment.evaluate_every == 0 or self.step == experiment.steps:
            self._log(self._evaluate())
            self._save()
        elif self.step % experiment.log_every == 0:
            self._log(None)

    def _chunk_length(self) -> int:
        """Steps until the next row or checkpoint, or fewer if those take long."""
        experiment = self.run.experiment
        until_log = experiment.log_every - self.step % experiment.log_every
        until_evaluation = experiment.evaluate_every - self.step % experiment.evaluate_every
        affordable = max(1, int(self.rate * _SECONDS_PER_CHUNK))
        return min(until_log, until_evaluation, experiment.steps - self.step, affordable)

    def _evaluate(self) -> float:
        """The held-out ELBO, nats per frame, up; the parameters are kept if it is the best."""
        elbo = -self.trainer.held_out_loss(self.held_out)
        if not math.isfinite(elbo):
            self._give_up(f"the held-out ELBO after step {self.step} is {elbo}")
        self._keep_if_best(elbo)
        return elbo

    def _keep_if_best(self, elbo: float) -> None:
        if elbo > self.best:
            self.best, self.stale = elbo, 0
            self.run.save_parameters(self.trainer.parameters())
        else:
            self.stale += 1

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
        self.bar.set_postfix({name: f"{value:.1f}" for name, value in shown.items() if value != ""}, refresh=False)
        self.pending, self.seconds_pending = [], 0.0

    def _learning_rate(self) -> float:
        factor = learning_rate_factor(self.optimization, np.asarray(self.step))
        return self.optimization.learning_rate * float(factor)

    def _save(self) -> None:
        arrays = self.trainer.state()
        if not all(np.isfinite(array).all() for array in arrays.values() if array.dtype.kind == "f"):
            self._give_up(f"a parameter after step {self.step} is not finite", keep_state=False)
        progress = {
            "best": self.best, "stale": self.stale, "pending": self.pending,
            "seconds": self.seconds, "seconds_pending": self.seconds_pending,
        }  # fmt: skip
        self.run.save_checkpoint(Checkpoint(self.step, arrays, progress))

    def _give_up(self, what: str, keep_state: bool = True) -> NoReturn:
        if keep_state:
            self._save()
        raise Diverged(
            f"{what}; the best parameters so far and the last good state are kept in '{self.run.path}'; start a new "
            f"run with a smaller --learning-rate (now {self.optimization.learning_rate:g}), with --clip-norm, "
            f"--warmup-steps or --float float64"
        )


# From trainers and their plans of a chunk of steps, one (steps, batch, ...) for each, to the losses of each, (steps,).
Advance = Callable[[Sequence[Trainer], Sequence[Plan]], Sequence[np.ndarray]]


def _one_by_one(trainers: Sequence[Trainer], plans: Sequence[Plan]) -> list[np.ndarray]:
    return [trainer.advance(own) for trainer, own in zip(trainers, plans, strict=True)]


def run_to_end(loops: Sequence[Loop], advance: Advance = _one_by_one, diverged: Sequence[str] = ()) -> None:
    """Train one run, or several that differ in their seed in lock-step, until each has ended.

    A run ends with its last step, with its patience, or where it diverges; others go on. Ctrl-C ends all of them.
    Raises Diverged at the end, and Interrupted, with a sentence for each run concerned; also where Ctrl-C came in the
    last chunk and none of them has a step left, since whoever calls may have other runs to begin. diverged: such
    sentences from before.
    """
    diverged = list(diverged)
    with ExitStack() as context:
        for loop in loops:
            context.enter_context(loop.bar)
        interrupt = context.enter_context(_heard())
        going = list(loops)  # none where all have diverged before
        while going := [loop for loop in going if not loop._finished()]:
            if interrupt.came:
                going = [loop for loop in going if _spared(loop._save, diverged)]
                break
            going = _chunk(going, advance, diverged)
            loops[0]._tell_execution()
    if interrupt.came:
        raise Interrupted("; ".join([*map(_stopped, going or filter(Loop._finished, loops)), *diverged]))
    if diverged:
        raise Diverged("; ".join(diverged))


class _Interrupt:
    """Whether Ctrl-C came."""

    came = False


@contextmanager
def _heard() -> Iterator[_Interrupt]:
    """Within the context the first Ctrl-C is noted, to end with the present chunk; a second one ends at once.

    So is SIGTERM where it has been given the meaning of Ctrl-C, as in our commands.
    """
    interrupt, heard = _Interrupt(), {}
    if threading.current_thread() is threading.main_thread():
        handlers = {kind: signal.getsignal(kind) for kind in (signal.SIGINT, signal.SIGTERM)}
        for kind, handler in handlers.items():
            of_the_caller = kind == signal.SIGINT and handler not in (signal.SIG_IGN, None)
            if of_the_caller or handler is signal.default_int_handler:
                heard[kind] = handler

    def note(*_: Any) -> None:
        interrupt.came = True
        for kind, handler in heard.items():
            # Python's own handler waits for what is compiled or compiles to end; a notebook must not lose its kernel.
            at_once = handler is signal.default_int_handler and not hasattr(sys, "ps1")
            signal.signal(kind, signal.SIG_DFL if at_once else handler)

    for kind in heard:
        signal.signal(kind, note)
    try:
        yield interrupt
    finally:
        for kind, handler in heard.items():
            signal.signal(kind, handler)


def _chunk(loops: Sequence[Loop], advance: Advance, diverged: list[str]) -> list[Loop]:
    """The runs that have not diverged in a chunk of steps of all; what the others say is added to `diverged`."""
    started = time.perf_counter()
    num_steps = min(loop._chunk_length() for loop in loops)
    plans, snapshots = [loop._plans(num_steps) for loop in loops], [loop.trainer.snapshot() for loop in loops]
    losses = advance([loop.trainer for loop in loops], plans)
    seconds, going = time.perf_counter() - started, []
    for loop, own_losses, snapshot in zip(loops, losses, snapshots, strict=True):
        if _spared(partial(loop._account, own_losses, snapshot, seconds), diverged):
            going.append(loop)
    return going


def _spared(act: Callable[[], None], diverged: list[str]) -> bool:
    """Whether a run goes through with something; what it says where it diverges instead is added to `diverged`."""
    try:
        act()
    except Diverged as error:
        diverged.append(str(error))
        return False
    return True


def _stopped(loop: Loop) -> str:
    if loop._finished():
        return f"stopped after the last step of {loop.run.path}, which is whole"
    return f"stopped at step {loop.step}; go on with --resume --out {loop.run.path}"
