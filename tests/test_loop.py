"""The loop around a trainer that is scripted: rows, best parameters, patience, and how a run goes on or ends."""

import math
import signal
from types import SimpleNamespace

import numpy as np
import pytest

from ppl_tvae import loop as loops
from ppl_tvae.assembly import data_of
from ppl_tvae.errors import Diverged, Interrupted
from ppl_tvae.loop import Loop, run_to_end
from ppl_tvae.runs import create_run
from ppl_tvae.trainers import optimization_of
from ppl_tvae.training import held_out_plan
from tests.small_runs import small_training

SECONDS_PER_STEP = 0.5  # so that chunks, of two seconds, have four steps


class Scripted:
    """A trainer whose loss is the number of the step, but for what is given; so are its held-out ELBOs."""

    execution = ""

    def __init__(self, *elbos, losses=(), interrupted_at=None, spoiled_at=None):
        self.elbos, self.losses, self.interrupted_at = list(elbos), dict(losses), interrupted_at
        self.spoiled_at = spoiled_at
        self.done, self.clock = 0, 0.0

    def advance(self, plans):
        steps = self.done + np.arange(1, len(plans.image) + 1)
        self.done, self.clock = int(steps[-1]), self.clock + SECONDS_PER_STEP * len(steps)
        if self.interrupted_at in steps:
            signal.raise_signal(signal.SIGINT)
        return np.array([self.losses.get(step, float(step)) for step in steps])

    def held_out_loss(self, _):
        self.clock += 1000  # which is no time of training
        return -self.elbos.pop(0)

    def parameters(self):
        return {"step": np.array([math.nan if self.done == self.spoiled_at else float(self.done)])}

    state = snapshot = parameters

    def restore(self, arrays):
        self.done = int(arrays["step"][0])

    rewind = restore


@pytest.fixture
def scripted(tmp_path, monkeypatch):
    """Its loop in a new run of thirty steps, with a row every five and an ELBO every ten, by the trainer's clock."""

    def looped(trainer, name="run", **settings):
        monkeypatch.setattr(loops, "time", SimpleNamespace(perf_counter=lambda: trainer.clock))
        lengths = {"log_every": 5, "evaluate_every": 10, "steps": 30}
        experiment = small_training(tmp_path, "pyro", **(lengths | settings)).resolved()
        run = create_run(tmp_path / name, experiment)
        return Loop(run, data_of(experiment), None, trainer, optimization_of(experiment), True)

    return looped


def test_rows_and_the_best_parameters(scripted):
    loop = scripted(Scripted(-3.0, -2.0, -4.0), schedule="cosine", learning_rate=0.5)
    loop.begin(-9.0)
    run_to_end([loop])
    assert loop.run.parameters()["step"] == 20  # of the ELBO -2
    first, *rows = loop.run.metrics()
    assert first == {"step": 0, "elbo_per_frame": -9, "learning_rate": 0.5, "seconds": 0}
    assert [row["step"] for row in rows] == [5, 10, 15, 20, 25, 30]
    assert [row["loss"] for row in rows] == [3, 8, 13, 18, 23, 28]  # means over the steps since the last row
    assert [row.get("elbo_per_frame") for row in rows] == [None, -3, None, -2, None, -4]
    for row in rows:
        assert row["learning_rate"] == pytest.approx(0.25 * (1 + math.cos(math.pi * row["step"] / 30)))
        assert row["seconds"] == SECONDS_PER_STEP * row["step"]
        assert row["frames_per_second"] == 4 * 4 / SECONDS_PER_STEP  # of four sequences of four frames


def test_rows_of_a_run_that_goes_on_are_those_of_one_that_was_not_interrupted(scripted):
    """Ctrl-C comes between two rows: what no row has yet is in the state."""
    straight = scripted(Scripted(-3.0, -2.0, -4.0), "straight")
    straight.begin(-9.0)
    run_to_end([straight])
    loop = scripted(Scripted(-3.0, interrupted_at=13))
    loop.begin(-9.0)
    with pytest.raises(Interrupted, match="stopped at step 14"):
        run_to_end([loop])
    state = loop.run.checkpoint()
    assert (state.step, state.progress["pending"]) == (14, [11, 12, 13, 14])
    going_on = scripted(Scripted(-2.0, -4.0), "other")
    going_on.run = loop.run
    loop.run.add_metrics({"step": 15, "loss": 99.0})  # as of a run that was killed before its next state
    going_on.take_up(state)
    run_to_end([going_on])
    assert loop.run.metrics() == straight.run.metrics()
    assert loop.run.checkpoint().progress == straight.run.checkpoint().progress
    assert loop.run.parameters()["step"] == 20


@pytest.mark.parametrize("losses", [{}, {30: math.nan}])
def test_ctrl_c_in_the_last_chunk_is_heard(losses, scripted):
    """The run has ended, but whoever trains several must not begin the next one."""
    loop = scripted(Scripted(-3.0, -2.0, -4.0, interrupted_at=30, losses=losses))
    loop.begin(-9.0)
    with pytest.raises(
        Interrupted, match="loss at step 30 is nan" if losses else "stopped after the last step of .*run"
    ):
        run_to_end([loop])
    assert loop.run.checkpoint().step == (29 if losses else 30)


def test_ctrl_c_is_heard_where_a_parameter_is_no_number(scripted):
    """The other runs are saved, and whoever trains several does not begin the next one."""
    spoiled = scripted(Scripted(-3.0, spoiled_at=14), "spoiled")
    good = scripted(Scripted(-3.0, interrupted_at=13), "good")
    for loop in (spoiled, good):
        loop.begin(-9.0)
    with pytest.raises(Interrupted, match=r"stopped at step 14; .*good; a parameter after step 14 is not finite"):
        run_to_end([spoiled, good])
    assert (spoiled.run.checkpoint().step, good.run.checkpoint().step) == (10, 14)


def test_the_last_step_has_an_elbo_and_a_state_wherever_it_comes(scripted):
    loop = scripted(Scripted(-3.0, -2.0, -1.0), steps=23)
    loop.begin(-9.0)
    run_to_end([loop])
    assert loop.run.metrics()[-1]["elbo_per_frame"] == -1
    assert loop.run.metrics()[-1]["step"] == loop.run.parameters()["step"] == loop.run.checkpoint().step == 23


def test_of_equal_elbos_the_first_is_the_best(scripted):
    loop = scripted(Scripted(-3.0, -3.0, -3.0))
    loop.begin(-9.0)
    run_to_end([loop])
    assert (loop.run.parameters()["step"], loop.stale) == (10, 2)


def test_patience_counts_from_the_last_best(scripted):
    loop = scripted(Scripted(-10.0, -4.0, -5.0, -6.0), patience=2, steps=100)
    loop.begin(-9.0)
    run_to_end([loop])
    assert (loop.step, loop.best, loop.stale) == (40, -4.0, 2)


@pytest.mark.parametrize(
    ("elbos", "losses", "words", "kept"),
    [
        ((-3.0,), {13: math.nan, 14: math.inf}, "the loss at step 13 is nan", 10),
        ((-3.0, math.nan), {}, "the held-out ELBO after step 20 is nan", 20),
    ],
)
def test_what_diverged_is_named_and_the_state_is_of_before(elbos, losses, words, kept, scripted):
    loop = scripted(Scripted(*elbos, losses=losses))
    loop.begin(-9.0)
    with pytest.raises(Diverged, match=words):
        run_to_end([loop])
    state = loop.run.checkpoint()
    assert state.step == state.arrays["step"] == kept
    assert loop.run.parameters()["step"] == 10


def test_the_best_parameters_are_chosen_by_validation_sequences(tmp_path):
    experiment = small_training(tmp_path, "pyro").resolved()
    data = data_of(experiment)
    assert set(held_out_plan(experiment, data).image.ravel()) <= set(data.validation)
