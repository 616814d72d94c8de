"""A run that was ended at any moment and resumed is, bit for bit, the run that was not."""

import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from ppl_tvae.assembly import data_of
from ppl_tvae.config import Experiment
from ppl_tvae.data import Plan
from ppl_tvae.errors import Diverged, Interrupted, UserError
from ppl_tvae.loop import Loop
from ppl_tvae.runs import open_run
from ppl_tvae.trainers import trainer_of
from ppl_tvae.training import resume, train
from tests.small_runs import BACKENDS, files_in, outcome, small_arguments, small_training

pytestmark = pytest.mark.machine_code

COMMAND = "import signal, sys; signal.signal(signal.SIGINT, {}); from ppl_tvae.cli import main"


@contextmanager
def process(code: str, *arguments: str, ctrl_c: str = "signal.default_int_handler") -> Iterator[subprocess.Popen[str]]:
    """Another Python that runs the command line, ended for certain when the test ends."""
    command = [sys.executable, "-c", f"{COMMAND.format(ctrl_c)}; {code}", *arguments]
    child = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1])
    try:
        yield child
    finally:
        child.kill()
        child.communicate()


def wait_until(condition: Callable[[], bool], child: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert child.poll() is None, f"it ended by itself: {child.communicate()[1]}"
        assert time.monotonic() < deadline
        time.sleep(0.01)


def has_trained(out: Path) -> bool:
    return any(path.name >= "000000020" for path in (out / "state").glob("*.safetensors"))


def ended_by(kind: signal.Signals, backend: str, folder: Path, **how: str) -> tuple[int, str]:
    """Exit code and words of a command that got a signal at some moment after its first checkpoints."""
    arguments = small_arguments(folder, backend, folder / "run", steps=1_000_000)
    with process("sys.exit(main(sys.argv[1:]))", *arguments, **how) as child:
        wait_until(lambda: has_trained(folder / "run"), child)
        time.sleep(random.Random(backend).uniform(0, 0.1))
        child.send_signal(kind)
        told = child.communicate(timeout=60)[1]
    return child.returncode, told


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_killed_while_it_trains_and_resumed_equals_uninterrupted(backend, tmp_path):
    code, _ = ended_by(signal.SIGKILL, backend, tmp_path)
    assert code == -signal.SIGKILL
    reached = open_run(tmp_path / "run").checkpoint().step
    assert reached % 20 == 0
    steps = reached + 33
    resumed = resume(tmp_path / "run", steps=steps, quiet=True)
    uninterrupted = train(small_training(tmp_path, backend, steps=steps), tmp_path / "other", quiet=True)
    assert outcome(resumed) == outcome(uninterrupted)
    assert outcome(resumed)["step"] == steps


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "ctrl_c"),
    [
        (signal.SIGINT, "signal.default_int_handler"),
        (signal.SIGTERM, "signal.default_int_handler"),
        (signal.SIGTERM, "signal.SIG_IGN"),  # as a shell starts what a script runs in its background
    ],
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_ctrl_c_keeps_the_last_step(backend, kind, ctrl_c, tmp_path):
    code, told = ended_by(kind, backend, tmp_path, ctrl_c=ctrl_c)
    assert code == 130
    reached = open_run(tmp_path / "run").checkpoint().step
    assert told == f"ppl-tvae: stopped at step {reached}; go on with --resume --out {tmp_path / 'run'}\n"


@pytest.mark.parametrize("backend", BACKENDS)
def test_chunk_lengths_change_nothing(backend, tmp_path):
    """Across 64 too, beyond which NumPyro compiles the loop anew for longer chunks."""
    experiment = small_training(tmp_path, backend).resolved()
    data = data_of(experiment)
    states = []
    with trainer_of(experiment, data) as trainer:
        start = trainer.snapshot()
        for lengths in ([70], [3, 7, 60], [35, 34, 1]):
            trainer.rewind(start)
            losses, done = [], 0
            for length in lengths:
                losses += trainer.advance(data.train_plans(3, done, length, 4)).tolist()
                done += length
            states.append((losses, {name: array.tobytes() for name, array in trainer.state().items()}))
    assert states[0] == states[1] == states[2]


def test_patience_outlives_a_resumption(tmp_path):
    """Steps of half a unit make the held-out ELBO worse and worse, so that patience ends the run soon."""
    restless = small_training(tmp_path, "pyro", learning_rate=0.5, evaluate_every=10, patience=3, steps=1000)
    straight = train(restless, tmp_path / "straight", quiet=True)
    stopped = straight.checkpoint()
    assert stopped.progress["stale"] == 3
    assert 30 <= stopped.step < 1000
    before = stopped.step - 10
    train(replace(restless, steps=before), tmp_path / "resumed", quiet=True)
    resumed = resume(tmp_path / "resumed", steps=1000, quiet=True)
    assert outcome(resumed) == outcome(straight)
    with pytest.raises(UserError, match=r"stopped at step .* 3 held-out ELBOs without a new best"):
        resume(tmp_path / "resumed", steps=2000)


def test_schedule_and_warmup_outlive_a_resumption(tmp_path, monkeypatch):
    """The learning rate is a function of the step; Ctrl-C comes in the middle of its fall."""
    experiment = small_training(
        tmp_path, "pyro", schedule="cosine", warmup_steps=5, optimizer="sgd", clip_norm=5.0, steps=60
    )
    straight = train(experiment, tmp_path / "straight", quiet=True)
    plans, length = Loop._plans, Loop._chunk_length

    def interrupted(loop: Loop, num_steps: int) -> Plan:
        if loop.step >= 25:
            signal.raise_signal(signal.SIGINT)
        return plans(loop, num_steps)

    monkeypatch.setattr(Loop, "_plans", interrupted)
    monkeypatch.setattr(Loop, "_chunk_length", lambda loop: min(7, length(loop)))  # however fast the machine is
    with pytest.raises(Interrupted):
        train(experiment, tmp_path / "resumed", quiet=True)
    monkeypatch.undo()
    assert 25 < open_run(tmp_path / "resumed").checkpoint().step < 60
    for steps in (20, 80):
        with pytest.raises(
            UserError, match="run's own 60 steps, since its learning rate follows the schedule 'cosine'"
        ):
            resume(tmp_path / "resumed", steps=steps)
    assert outcome(resume(tmp_path / "resumed", quiet=True)) == outcome(straight)
    with pytest.raises(UserError, match="found 60; its schedule 'cosine' ends there: start a new run"):
        resume(tmp_path / "resumed")


def test_second_ctrl_c_ends_at_once(tmp_path):
    """Here a chunk takes ten minutes, as a compilation might; the first Ctrl-C alone would wait for it."""
    arguments = small_arguments(tmp_path, "pyro", tmp_path / "run")
    slow = (
        "import time, pathlib, ppl_tvae.inference.pyro.svi as svi; "
        "svi.Trainer.advance = lambda *_: (pathlib.Path(sys.argv.pop()).touch(), time.sleep(600)); "
        "sys.exit(main(sys.argv[1:-1]))"
    )
    with process(slow, *arguments, str(tmp_path / "advancing")) as child:
        wait_until((tmp_path / "advancing").exists, child)
        child.send_signal(signal.SIGINT)
        with pytest.raises(subprocess.TimeoutExpired):
            child.wait(timeout=0.5)
        child.send_signal(signal.SIGINT)
        assert child.wait(timeout=30) == -signal.SIGINT  # which a shell shows as 130
    assert open_run(tmp_path / "run").checkpoint().step == 0


def test_signals_are_as_before_afterwards(tmp_path):
    before = signal.getsignal(signal.SIGINT)
    train(small_training(tmp_path, "pyro", steps=5), tmp_path / "run", quiet=True)
    assert signal.getsignal(signal.SIGINT) is before


def newest_state(out: Path) -> Path:
    return max((out / "state").iterdir())


def test_damaged_newest_state_is_passed_over(tmp_path):
    experiment = small_training(tmp_path, "pyro")
    train(experiment, tmp_path / "run", quiet=True)
    newest = newest_state(tmp_path / "run")
    newest.write_bytes(newest.read_bytes()[:-5])
    resumed = resume(tmp_path / "run", steps=60, quiet=True)
    assert outcome(resumed) == outcome(train(replace(experiment, steps=60), tmp_path / "other", quiet=True))


def test_without_a_whole_state_nothing_is_overwritten(tmp_path):
    train(small_training(tmp_path, "pyro"), tmp_path / "run", quiet=True)
    for path in (tmp_path / "run" / "state").iterdir():
        path.write_bytes(path.read_bytes()[:100])
    before = files_in(tmp_path / "run")
    with pytest.raises(UserError, match=r"expected a whole state .*found 2 damaged"):
        resume(tmp_path / "run", steps=60)
    assert files_in(tmp_path / "run") == before
    for path in (tmp_path / "run" / "state").iterdir():
        path.unlink()
    before = files_in(tmp_path / "run")
    with pytest.raises(UserError, match=r"expected a whole state .*found none"):
        resume(tmp_path / "run", steps=60)
    assert files_in(tmp_path / "run") == before


def test_a_run_ended_before_its_first_state_begins_again(tmp_path):
    experiment = small_training(tmp_path, "pyro")
    run = train(experiment, tmp_path / "run", quiet=True)
    expected = outcome(run)
    for path in (tmp_path / "run" / "state").iterdir():
        path.unlink()
    run.forget_metrics_after(0)
    assert outcome(resume(tmp_path / "run", quiet=True)) == expected


def test_one_process_at_a_time_trains_a_run(tmp_path):
    run = train(small_training(tmp_path, "pyro"), tmp_path / "run", quiet=True)
    before = files_in(run.path)
    with run.in_training(), pytest.raises(UserError, match=r"no other process that trains in '.*run', found one"):
        resume(run.path, steps=41, quiet=True)
    assert files_in(run.path) == before
    assert resume(run.path, steps=41, quiet=True).steps_done == 41


@pytest.mark.parametrize("damage", [lambda path: path.unlink(), lambda path: path.write_bytes(b"")])
def test_best_parameters_that_are_lost_are_written_anew(damage, tmp_path):
    """With a learning rate at which nothing moves no later ELBO is better than the best one."""
    run = train(small_training(tmp_path, "pyro", learning_rate=1e-20), tmp_path / "run", quiet=True)
    expected = run.parameters()
    damage(run.path / "parameters.safetensors")
    for name, value in resume(run.path, steps=41, quiet=True).parameters().items():
        np.testing.assert_allclose(value, expected[name], atol=1e-15)


def test_a_state_of_another_program_is_refused(tmp_path):
    run = train(small_training(tmp_path, "pyro"), tmp_path / "run", quiet=True)
    config = tmp_path / "run" / "config.toml"
    config.write_text(config.read_text().replace("    8,\n", "    9,\n"))
    with pytest.raises(UserError, match=r"of shape \(9, 108\) in the state of .*, found it of shape \(8, 108\)"):
        resume(run.path, steps=60)


def test_a_state_with_a_parameter_more_is_refused(tmp_path):
    """As after a parameter was taken out of the program: the others must not take up its place."""
    run = train(small_training(tmp_path, "pyro"), tmp_path / "run", quiet=True)
    state = run.checkpoint()
    assert any(name.startswith("optimizer.decoder.0.weight.") for name in state.arrays)
    more = {**state.arrays, "parameter.extra": np.zeros(2)}
    run.save_checkpoint(replace(state, arrays=more))
    with pytest.raises(UserError, match=r"expected parameter\.extra nowhere in the state"):
        resume(run.path, steps=60)


def test_random_streams_of_another_device_are_no_hindrance(tmp_path):
    run = train(small_training(tmp_path, "pyro"), tmp_path / "run", quiet=True)
    state = run.checkpoint()
    run.save_checkpoint(replace(state, arrays={**state.arrays, "random.cuda": np.zeros(16, np.uint8)}))
    assert resume(run.path, steps=60, quiet=True).checkpoint().step == 60


def test_resume_changes_the_place_but_not_the_experiment(tmp_path):
    train(small_training(tmp_path, "pyro", steps=5), tmp_path / "run", quiet=True)
    resumed = resume(tmp_path / "run", steps=8, device="cpu", quiet=True)
    assert (resumed.experiment.steps, resumed.experiment.device) == (8, "cpu")
    assert open_run(tmp_path / "run").experiment == resumed.experiment
    with pytest.raises(UserError, match="expected more steps than the 8"):
        resume(tmp_path / "run", steps=7)
    with pytest.raises(UserError, match="expected int for the setting 'steps'"):
        resume(tmp_path / "run", steps="9")


def test_a_chunk_takes_two_seconds_and_ends_where_something_is_written(tmp_path):
    """Its length follows from the speed of the last chunk, and a row of metrics does not make it begin anew."""
    experiment = small_training(tmp_path, "numpyro", steps=5000, log_every=100, evaluate_every=250)
    loop = SimpleNamespace(run=SimpleNamespace(experiment=experiment), step=0, rate=1.0)
    for step, rate, expected in (
        (0, 1.0, 2),
        (2, 7.9, 15),
        (17, 1e6, 83),
        (100, 20.0, 40),
        (210, 1e6, 40),
        (300, 0.1, 1),
    ):
        loop.step, loop.rate = step, rate
        assert Loop._chunk_length(loop) == expected
    loop.step, loop.rate = 4990, 1e6
    assert Loop._chunk_length(loop) == 10


@pytest.mark.parametrize("guide", ["mean-field", "mixture"])  # the other draws categories, by no numbers then
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_loss_that_is_not_finite_ends_the_run_and_keeps_what_was_good(backend, guide, tmp_path):
    with pytest.raises(Diverged, match=r"the loss at step \d+ is .*start a new run .*--learning-rate \(now 1e\+30\)"):
        train(small_training(tmp_path, backend, guide=guide, learning_rate=1e30), tmp_path / "run", quiet=True)
    run = open_run(tmp_path / "run")
    kept = {**run.parameters(), **run.checkpoint().arrays}
    assert all(abs(value).max() < float("inf") for value in kept.values() if value.dtype.kind == "f" and value.size)
    assert run.checkpoint().step == 0
    assert len(run.metrics()) == 1


def test_a_parameter_that_is_not_finite_is_never_saved(tmp_path, monkeypatch):
    """The loss of the last step was finite, its gradient was not."""
    experiment: Experiment = small_training(tmp_path, "pyro")
    plans = Loop._plans

    def poisoned(loop: Loop, num_steps: int) -> Plan:
        if loop.step == 20:
            state = loop.trainer.state()
            loop.trainer.restore(state | {"parameter.mu": np.full_like(state["parameter.mu"], np.nan)})
        return plans(loop, num_steps)

    monkeypatch.setattr(Loop, "_plans", poisoned)
    with pytest.raises(Diverged, match="a parameter after step 20 is not finite"):
        train(experiment, tmp_path / "run", quiet=True)
    assert open_run(tmp_path / "run").checkpoint().step == 20
    assert all(abs(value).max() < float("inf") for value in open_run(tmp_path / "run").parameters().values())
