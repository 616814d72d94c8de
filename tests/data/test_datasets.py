"""Data sets: splits and test sequences fixed once for all, and settings that do not fit refused in one sentence."""

import os
from pathlib import Path

import numpy as np
import pytest

from ppl_tvae.data import Plan, SequenceTables, datasets, open_data, render
from ppl_tvae.data.rendering import ImageTables
from ppl_tvae.errors import UserError

HAS_MNIST = (Path(os.environ.get("PPL_TVAE_DATA", "absent")) / "mnist" / "train-images-idx3-ubyte.gz").is_file()
needs_mnist = pytest.mark.skipif(not HAS_MNIST, reason="set PPL_TVAE_DATA to a folder that holds mnist/*.gz")


@pytest.fixture
def ready(tmp_path: Path) -> str:
    """Ten ready sequences of 4 frames, whose every pixel tells which sequence and frame it is from."""
    frames = np.arange(10)[:, None] / 100 + np.arange(4) / 10
    np.savez(
        tmp_path / "ready.npz", sequences=np.tile(frames[..., None, None, None], (1, 1, 5, 6, 1)), labels=np.arange(10)
    )
    return str(tmp_path / "ready.npz")


def test_splits_are_apart_and_fixed() -> None:
    data, again = open_data("digits"), open_data("digits", transforms=("hue",), num_timesteps=5)
    together = np.concatenate([data.train, data.validation, data.test])
    np.testing.assert_array_equal(np.sort(together), np.arange(1797))
    assert (len(data.train), len(data.validation), len(data.test)) == (1198, 299, 300)
    for split in ("train", "validation", "test"):
        np.testing.assert_array_equal(getattr(data, split), getattr(again, split))


@needs_mnist
def test_the_paper_split_of_mnist() -> None:
    data = open_data("mnist")
    assert (len(data.train), len(data.validation), len(data.test)) == (48_000, 12_000, 10_000)
    assert data.frame_shape == (28, 28, 3)


def test_frames_have_the_shape_that_is_promised() -> None:
    for transforms, channels in ((("rotation", "scale", "hue"), 3), (("rotation+hue",), 3), (("none",), 1)):
        data = open_data("digits", transforms=transforms, num_timesteps=6)
        assert data.frame_shape == (28, 28, channels)
        assert render(data.tables, data.test_plan(limit=3)).shape == (3, 6, *data.frame_shape)


def test_eighteen_frames_by_default_and_one_for_plain_images() -> None:
    assert open_data("digits").num_timesteps == 18
    data = open_data("digits", transforms=("none",), num_timesteps=1)
    plan = data.test_plan(limit=5)
    np.testing.assert_allclose(render(data.tables, plan)[:, 0] * 255, data.source.pixels[plan.image], atol=1e-4)


def test_plans_stay_in_their_split() -> None:
    data = open_data("digits")
    assert set(data.train_plans(0, 0, 5, 16).image.ravel()) <= set(data.train)
    assert set(data.validation_plan().image) == set(data.validation)
    assert set(data.test_plan().image) == set(data.test)


def test_a_limit_takes_the_first_of_a_fixed_random_order() -> None:
    data = open_data("digits")
    whole, part = data.test_plan(), data.test_plan(limit=20)
    for name in Plan._fields:
        np.testing.assert_array_equal(getattr(whole, name)[:20], getattr(part, name))
    assert len(set(data.labels[part.image])) > 5
    assert not (np.diff(part.image) > 0).all()


def test_test_sequences_are_the_same_everywhere() -> None:
    """Published numbers hang on these draws: a change here is a change of the test set."""
    plan = open_data("digits").test_plan(limit=4)
    assert plan.image.tolist() == [518, 1554, 1375, 712]
    assert plan.phase.tolist() == [3, 1, 1, 10]
    assert plan.transform.tolist() == [2, 1, 0, 1]


def test_ready_sequences(ready: str) -> None:
    data = open_data(ready)
    assert isinstance(data.tables, SequenceTables)
    assert data.num_timesteps == 4
    assert data.frame_shape == (5, 6, 1)
    plan = data.test_plan()
    expected = plan.image[:, None] / 100 + np.arange(4) / 10
    np.testing.assert_allclose(render(data.tables, plan)[:, :, 2, 3, 0], expected, atol=1e-6)
    np.testing.assert_array_equal(data.labels[plan.image], plan.image)
    assert open_data(ready, transforms=("none",), num_timesteps=4).num_timesteps == 4


def test_ready_sequences_are_not_transformed(ready: str) -> None:
    with pytest.raises(UserError, match=r"expected 4 timesteps.*found 18"):
        open_data(ready, num_timesteps=18)
    with pytest.raises(UserError, match="expected no transforms of ready sequences, found hue"):
        open_data(ready, transforms=("hue",))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"transforms": ("spin",)}, "transform, found 'spin'"),
        ({"transforms": ("none", "hue")}, "'none' alone"),
        ({"transforms": ("hue", "scale", "hue")}, "transforms that differ, found 'hue' and 'hue'"),
        ({"transforms": ("hue+scale", "scale+hue")}, r"transforms that differ, found 'hue\+scale' and 'scale\+hue'"),
        ({"validation_fraction": 0.9999}, "leaves some of the 1497 training images, found 0.9999"),
        ({"num_timesteps": 1}, "at least 2 timesteps, found 1"),
        ({"transforms": ("none",), "num_timesteps": 0}, "at least 1 timesteps, found 0"),
        ({"num_timesteps": 500}, "expected fewer timesteps, found 500"),
        ({"validation_fraction": 1.0}, r"fraction in \[0, 1\), found 1.0"),
        ({"validation_fraction": float("nan")}, "found nan"),
    ],
)
def test_wrong_settings(settings: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        open_data("digits", **settings)


def test_tables_are_limited_by_all_that_they_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rotations that are flat and in perspective have a table each; so much is as much as there may be."""
    one = {"transforms": ("rotation", "hue"), "num_timesteps": 4}
    both = {"transforms": ("rotation", "perspective"), "num_timesteps": 4}

    def size(settings: dict) -> int:
        tables = open_data("digits", **settings).tables
        assert isinstance(tables, ImageTables)
        return tables.corner.nbytes + tables.fraction.nbytes

    monkeypatch.setattr(datasets, "LARGEST_TABLE", size(one))
    open_data("digits", **one)
    with pytest.raises(UserError, match="expected fewer timesteps, found 4"):
        open_data("digits", **both)
    monkeypatch.undo()
    monkeypatch.setattr(datasets, "LARGEST_TABLE", size(both))
    open_data("digits", **both)


def test_nothing_to_validate_on() -> None:
    data = open_data("digits", validation_fraction=0.0)
    with pytest.raises(UserError, match="expected validation sequences, found none"):
        data.validation_plan()
    with pytest.raises(UserError, match="limit of at least 1"):
        data.test_plan(limit=0)
