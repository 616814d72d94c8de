"""How far long work is: a bar on a terminal, lines in a log."""

import sys

import pytest
from tqdm import tqdm

from ppl_tvae import progress as module
from ppl_tvae.progress import progress
from ppl_tvae.training import resume, train
from tests.small_runs import small_training


@pytest.fixture
def every_moment(monkeypatch):
    monkeypatch.setattr(module, "_SECONDS_PER_LINE", 1e-9)


def test_a_log_has_lines_without_a_terminals_signs(every_moment, capsys):
    assert list(progress([1, 2], what="weights")) == [1, 2]
    first, *others = capsys.readouterr().err.splitlines()
    assert first.startswith("weights: 1 of 2, 00:00 elapsed, ")
    assert others == ["weights: 2 of 2, 00:00 elapsed, 00:00 left"]


def test_short_work_leaves_no_line(capsys):
    with progress(what="weights", total=2) as bar:
        bar.update(2)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("terminal", [True, False])
def test_quiet_work_says_nothing(terminal, every_moment, monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    assert list(progress([1, 2], what="weights", quiet=True)) == [1, 2]
    assert capsys.readouterr().err == ""


def test_a_terminal_has_a_bar(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert list(progress([1, 2], what="weights")) == [1, 2]
    assert "\rweights: 100%|" in capsys.readouterr().err


def test_work_goes_on_where_nothing_can_be_said(monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)  # a process that was started with it closed
    assert list(progress([1, 2], what="weights")) == [1, 2]


def test_steps_before_a_resumption_do_not_count_as_done_by_now(every_moment, tmp_path, monkeypatch, capsys):
    """They are among the steps done, and not in the steps per second, from which the time left follows."""
    train(small_training(tmp_path, "pyro", steps=40), tmp_path / "run", quiet=True)
    bars = []

    def noted(*arguments, **settings):
        bars.append(tqdm(*arguments, **settings))
        return bars[-1]

    monkeypatch.setattr(module, "tqdm", noted)
    resume(tmp_path / "run", steps=50)
    (bar,) = bars
    assert (bar.initial, bar.n) == (40, 50)
    assert "steps of run: 50 of 50, loss/frame=" in capsys.readouterr().err
