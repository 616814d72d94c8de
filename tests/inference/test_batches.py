"""Frames rendered for several steps at once, as on a GPU: those that are rendered step by step, bit for bit."""

import os

import numpy as np
import pytest
import torch

from ppl_tvae.data import open_data, render
from ppl_tvae.inference.pyro import batches, graphs, svi
from ppl_tvae.inference.pyro.batches import Batches, BatchesAhead, batches_of, steps_at_once
from ppl_tvae.inference.pyro.device import on_device, to_device
from ppl_tvae.training import train
from tests.small_runs import outcome, small_training

BATCH = 4
CHUNKS = (7, 3, 1, 6)  # steps; three are rendered at once


def binarised(tables, plan):
    return render(tables, plan, binarize=True)


@pytest.fixture
def three_at_once(monkeypatch):
    monkeypatch.setattr(batches, "steps_at_once", lambda frames: 3)


@pytest.mark.parametrize("name", ["digits", "sprites"])
def test_each_step_finds_its_own_frames_in_the_same_memory(name, three_at_once, monkeypatch):
    """Whatever the lengths of chunks; the rendering is recorded once, and replayed once for three steps."""
    data, recorded, replayed = open_data(name), [], []

    def record(step):
        recorded.append(step)
        return lambda: replayed.append(step()) or None

    monkeypatch.setattr(graphs, "recorded", record)
    first = data.train_plans(0, 0, 1, BATCH).at(0)
    one_by_one, ahead = Batches(binarised, data.tables, first), BatchesAhead(binarised, data.tables, first, True)
    memory, start = ahead.frames.data_ptr(), 0
    assert torch.equal(ahead.frames, one_by_one.frames)
    for length in CHUNKS:
        plans = to_device(data.train_plans(0, start, length, BATCH))
        for index in range(length):
            one_by_one.prepare(plans, index)
            ahead.prepare(plans, index)
            assert torch.equal(ahead.frames, one_by_one.frames)
            assert ahead.frames.data_ptr() == memory
        start += length
    assert len(recorded) == 1
    assert len(replayed) == sum(-(-length // 3) for length in CHUNKS)


def test_frames_that_are_there_already_stay_as_they_are(three_at_once):
    """The rendering of ready frames may hand out the tables' own memory."""
    frames = np.random.default_rng(0).random((3 * BATCH, 2, 3, 3, 1), np.float32)
    plans = to_device([np.zeros((3, BATCH), np.int32)])
    ahead = BatchesAhead(lambda tables, plan: tables[: len(plan[0])], frames.copy(), [plans[0][0]], False)
    for index in range(3):
        ahead.prepare(plans, index)
        np.testing.assert_array_equal(ahead.frames, frames[BATCH * index : BATCH * (index + 1)])
    np.testing.assert_array_equal(ahead._tables, frames)


@pytest.mark.parametrize(("batch", "expected"), [(1, 198), (8, 24), (64, 3), (150, 1), (512, 1)])
def test_frames_of_32_mebibytes_are_rendered_at_once(batch, expected):
    """Never less than those of a step."""
    assert steps_at_once(torch.zeros(()).expand(batch, 18, 28, 28, 3)) == expected


def test_training_is_the_same(three_at_once, tmp_path, monkeypatch):
    experiment = small_training(tmp_path, "pyro", device="cpu")
    one_by_one = outcome(train(experiment, tmp_path / "one-by-one"))
    made: list[BatchesAhead] = []
    monkeypatch.setattr(svi, "batches_of", lambda *arguments: made.append(BatchesAhead(*arguments)) or made[0])
    assert outcome(train(experiment, tmp_path / "ahead")) == one_by_one
    assert len(made) == 1


@pytest.mark.skipif(
    os.environ.get("PPL_TVAE_GPU") != "1", reason="needs a GPU: PPL_TVAE_GPU=1 pytest tests/inference/test_batches.py"
)
@pytest.mark.parametrize("name", ["digits", "sprites"])
def test_replayed_rendering_draws_the_frames_of_a_cpu(name):
    """Of binarised digits but for a few pixels, whose grey level a GPU rounds to the other side of what is drawn."""
    data = open_data(name)
    first, plans = data.train_plans(0, 0, 1, BATCH).at(0), data.train_plans(0, 1, 20, BATCH)
    on_the_cpu = Batches(binarised, data.tables, first)
    with on_device("cuda", "float32"):
        ahead, on_the_gpu = batches_of(binarised, data.tables, first), to_device(plans)
        assert isinstance(ahead, BatchesAhead)
        assert ahead._runner.is_recorded
        for index in range(20):
            ahead.prepare(on_the_gpu, index)
            on_the_cpu.prepare(to_device(plans).map(torch.Tensor.cpu), index)
            assert (ahead.frames.cpu() != on_the_cpu.frames).float().mean() < 1e-5
