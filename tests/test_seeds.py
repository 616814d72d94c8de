"""Seeds trained together are the runs that each seed gives alone."""

import json
import signal

import numpy as np
import pytest

from ppl_tvae import cli, seeds, training
from ppl_tvae.errors import Diverged, Interrupted, UserError
from ppl_tvae.loop import Loop
from ppl_tvae.runs import Run, open_run
from ppl_tvae.seeds import train_seeds
from ppl_tvae.training import first_elbo, resume, train
from tests.small_runs import BACKENDS, outcome, small_arguments, small_training


def assert_alike(found: Run, expected: Run) -> None:
    """The same parameters, checkpoint and metrics, up to the rounding of float64 over some dozens of steps."""
    ours, theirs = found.checkpoint(), expected.checkpoint()
    assert ours.step == theirs.step
    assert ours.arrays.keys() == theirs.arrays.keys()
    for arrays, others in ((ours.arrays, theirs.arrays), (found.parameters(), expected.parameters())):
        for name, array in arrays.items():
            np.testing.assert_allclose(array, others[name], rtol=1e-7, atol=1e-9, err_msg=name)
    for row, other in zip(found.metrics(), expected.metrics(), strict=True):
        for name in ("step", "loss", "elbo_per_frame", "learning_rate"):
            np.testing.assert_allclose(row.get(name, 0.0), other.get(name, 0.0), rtol=1e-9, err_msg=name)


def test_numpyro_seeds_together_equal_seeds_alone(tmp_path):
    """The second is resumed alone as well."""
    experiment = small_training(tmp_path, "numpyro", precision="float64", seed=3)
    together = train_seeds(experiment, 2, tmp_path / "runs" / "both", quiet=True)
    assert [run.path.name for run in together] == ["both-seed3", "both-seed4"]
    assert [run.experiment.seed for run in together] == [3, 4]
    alone = train(small_training(tmp_path, "numpyro", precision="float64", seed=4), tmp_path / "alone", quiet=True)
    assert_alike(together[1], alone)
    first, second = (run.parameters() for run in together)
    assert all(np.abs(first[name] - second[name]).max() > 1e-6 for name in first)
    streams = [[a.tolist() for a in run.checkpoint().arrays.values() if a.dtype == np.uint32] for run in together]
    assert streams[0]
    assert streams[0] != streams[1]
    runs = [resume(path, steps=60, quiet=True) for path in (together[1].path, alone.path)]
    assert_alike(*runs)


def test_pyro_seeds_are_trained_one_after_another(tmp_path):
    together = train_seeds(small_training(tmp_path, "pyro", steps=5), 2, tmp_path / "both", quiet=True)
    alone = train(small_training(tmp_path, "pyro", steps=5, seed=4), tmp_path / "alone", quiet=True)
    assert outcome(together[1]) == outcome(alone)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_seed_that_diverges_leaves_the_others_alone(backend, tmp_path, monkeypatch):
    account = Loop._account

    def spoiled(loop: Loop, losses: np.ndarray, snapshot: object, seconds: float) -> None:
        bad = loop.run.experiment.seed == 3 and loop.step >= 7
        account(loop, losses * np.nan if bad else losses, snapshot, seconds)

    monkeypatch.setattr(Loop, "_account", spoiled)
    with pytest.raises(Diverged, match=r"^the loss at step \d+ is nan; .*both-seed3") as told:
        train_seeds(small_training(tmp_path, backend, steps=21), 2, tmp_path / "both", quiet=True)
    assert "both-seed4" not in str(told.value)
    stopped, other = (open_run(tmp_path / f"both-seed{seed}") for seed in (3, 4))
    assert 7 <= stopped.checkpoint().step < 21
    assert all(np.isfinite(value).all() for value in stopped.parameters().values())
    assert other.checkpoint().step == 21


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_seed_that_diverges_before_its_first_step_leaves_the_others_alone(backend, tmp_path, monkeypatch):
    def spoiled(experiment, held_out, trainer):
        if experiment.seed == 3:
            raise Diverged("no number")
        return first_elbo(experiment, held_out, trainer)

    for module in (seeds, training):
        monkeypatch.setattr(module, "first_elbo", spoiled)
    with pytest.raises(Diverged, match="no number"):
        train_seeds(small_training(tmp_path, backend, steps=3), 2, tmp_path / "both", quiet=True)
    assert not (tmp_path / "both-seed3").exists()
    assert open_run(tmp_path / "both-seed4").checkpoint().step == 3


def test_ctrl_c_keeps_the_state_of_every_seed(tmp_path, monkeypatch):
    account = Loop._account

    def interrupted(loop: Loop, losses: np.ndarray, snapshot: object, seconds: float) -> None:
        account(loop, losses, snapshot, seconds)
        if loop.step >= 7 and loop.run.experiment.seed == 3:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Loop, "_account", interrupted)
    with pytest.raises(Interrupted) as told:
        train_seeds(small_training(tmp_path, "numpyro", steps=21), 2, tmp_path / "both", quiet=True)
    monkeypatch.undo()
    runs = [open_run(tmp_path / f"both-seed{seed}") for seed in (3, 4)]
    reached = {run.checkpoint().step for run in runs}
    assert len(reached) == 1
    assert 7 <= reached.pop() < 21
    assert all(f"--resume --out {run.path}" in str(told.value) for run in runs)


def test_ctrl_c_in_the_last_chunk_of_a_seed_begins_no_other(tmp_path, monkeypatch):
    account = Loop._account

    def interrupted(loop: Loop, losses: np.ndarray, snapshot: object, seconds: float) -> None:
        account(loop, losses, snapshot, seconds)
        if loop._finished():
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Loop, "_account", interrupted)
    with pytest.raises(Interrupted, match="nothing was begun; train them with --seed 4 --seeds 2"):
        train_seeds(small_training(tmp_path, "pyro", steps=2), 3, tmp_path / "all", quiet=True)
    monkeypatch.undo()
    assert [path.name for path in tmp_path.glob("all-*")] == ["all-seed3"]
    assert open_run(tmp_path / "all-seed3").steps_done == 2
    train_seeds(small_training(tmp_path, "pyro", steps=2, seed=4), 2, tmp_path / "all", quiet=True)
    assert len(list(tmp_path.glob("all-*"))) == 3


def test_command_line(tmp_path, capsys):
    arguments = small_arguments(tmp_path, "pyro", tmp_path / "run", steps=2)
    assert cli.main([*arguments, "--seeds=2", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["runs"]
    assert [values["run"] for values in told] == [str(tmp_path / "run-seed3"), str(tmp_path / "run-seed4")]
    assert cli.main([*arguments, "--seeds=3"]) == 2
    assert "run-seed3' exists" in capsys.readouterr().err
    assert not (tmp_path / "run-seed5").exists()
    assert cli.main([*arguments, "--seeds=0"]) == 2
    assert "expected a number of seeds of at least 1, found 0" in capsys.readouterr().err
    assert cli.main([*arguments, "--seeds=4000000000"]) == 2
    assert "expected a number of seeds of at most 1000, found 4000000000" in capsys.readouterr().err
    assert cli.main([*arguments, "--resume", "--seeds=2"]) == 2
    assert "expected one run with --resume, found --seeds" in capsys.readouterr().err


def test_several_seeds_on_several_devices_are_refused(tmp_path):
    with pytest.raises(UserError, match="expected one device with several seeds"):
        train_seeds(small_training(tmp_path, "numpyro", devices=2), 2, tmp_path / "run", quiet=True)
