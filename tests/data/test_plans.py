"""Plans: pure functions of integers, without replacement within an epoch, uniform in everything else."""

import time

import numpy as np
import pytest

from ppl_tvae.data.plans import BLOCK, Plan, fixed_plan, training_plans

TRAIN = np.arange(100, 150, dtype=np.int32)
PER_BLOCK = BLOCK // 8  # steps of 8 sequences whose choices are drawn at once
STANDARD_ERRORS = 5  # seeds are fixed: this bounds how lucky they would have to be


def assert_same(left: Plan, right: Plan) -> None:
    for name, a, b in zip(Plan._fields, left, right, strict=True):
        np.testing.assert_array_equal(a, b, err_msg=name)


def training_plan(
    train_indices: np.ndarray, seed: int, step: int, batch_size: int, num_transforms: int, num_timesteps: int
) -> Plan:
    """The plan of one step, without the axis of steps."""
    plans = training_plans(train_indices, seed, step, 1, batch_size, num_transforms, num_timesteps)
    return Plan(*(field[0] for field in plans))


def test_a_step_depends_on_nothing_but_its_arguments() -> None:
    """Steps asked for out of order, and with others in between, are the steps of an unbroken run."""
    unbroken = [training_plan(TRAIN, 3, step, 8, 3, 18) for step in range(PER_BLOCK + 4)]
    for step in (PER_BLOCK, 0, 7, PER_BLOCK - 1):
        training_plan(TRAIN, 4, step, 16, 2, 18)
        assert_same(training_plan(TRAIN, 3, step, 8, 3, 18), unbroken[step])


def test_a_chunk_is_its_steps_stacked() -> None:
    """Also across the ends of the blocks that are drawn at once."""
    for first, num_steps in ((5, 4), (PER_BLOCK - 2, 4), (PER_BLOCK, 1), (3, 2 * PER_BLOCK)):
        chunk = training_plans(TRAIN, 3, first, num_steps, 8, 3, 18)
        assert chunk.fixed.shape == (num_steps, 8, 3)
        for number in range(num_steps):
            assert_same(Plan(*(field[number] for field in chunk)), training_plan(TRAIN, 3, first + number, 8, 3, 18))


def test_training_sequences_are_the_same_everywhere() -> None:
    """Runs that go on and published numbers hang on these draws: a change here is a change of all of them."""
    plan = training_plans(np.arange(10), 3, 0, 2, 4, 3, 6)
    assert plan.image.tolist() == [[3, 8, 9, 7], [4, 6, 1, 2]]
    assert plan.transform.tolist() == [[2, 1, 0, 1], [2, 0, 0, 2]]
    assert plan.phase.tolist() == [[0, 4, 1, 0], [2, 3, 1, 2]]
    assert plan.fixed[1].tolist() == [[4, 2, 4], [3, 1, 5], [2, 5, 2], [4, 0, 3]]
    assert plan.noise[1].tolist() == [1845703376, -1326451414, -328491673, 2115043859]


def test_shapes_types_and_ranges() -> None:
    plan = training_plan(TRAIN, 0, 0, 8, 3, 18)
    assert {field.dtype for field in plan} == {np.dtype(np.int32)}
    assert [field.shape for field in plan] == [(8,), (8,), (8,), (8, 3), (8,)]
    assert np.isin(plan.image, TRAIN).all()
    for field, size in ((plan.transform, 3), (plan.phase, 18), (plan.fixed, 18)):
        assert 0 <= field.min() <= field.max() < size


@pytest.mark.parametrize("batch_size", [5, 10, 8, 50, 64, 130], ids=str)
def test_every_image_once_per_epoch(batch_size: int) -> None:
    """In any batch size, also one that does not divide the epoch or exceeds it."""
    steps = -(-3 * len(TRAIN) // batch_size)
    stream = training_plans(TRAIN, 1, 0, steps, batch_size, 3, 18).image.ravel()
    epochs = stream[: 3 * len(TRAIN)].reshape(3, -1)
    for epoch in epochs:
        np.testing.assert_array_equal(np.sort(epoch), TRAIN)
    assert not np.array_equal(epochs[0], epochs[1])


def test_seeds_and_steps_differ() -> None:
    words = [training_plan(TRAIN, seed, step, 8, 3, 18).noise for seed in range(3) for step in range(3)]
    assert len(np.unique(np.concatenate(words))) == 72


@pytest.mark.parametrize("field", ["transform", "phase", "fixed"])
def test_choices_are_uniform(field: str) -> None:
    size = 3 if field == "transform" else 18
    drawn = getattr(training_plans(TRAIN, 0, 0, 400, 32, 3, 18), field).ravel()
    share, expected = np.bincount(drawn, minlength=size) / len(drawn), 1 / size
    error = np.sqrt(expected * (1 - expected) / len(drawn))
    assert np.abs(share - expected).max() < STANDARD_ERRORS * error


def test_factors_that_stand_still_are_independent() -> None:
    fixed = training_plans(TRAIN, 0, 0, 400, 32, 3, 18).fixed.reshape(-1, 3)
    error = np.sqrt(1 / 18 * 17 / 18 / len(fixed))
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert abs(np.mean(fixed[:, a] == fixed[:, b]) - 1 / 18) < STANDARD_ERRORS * error


def test_fixed_plans_are_fixed_and_apart() -> None:
    test, validation = (fixed_plan(TRAIN, tag, 3, 18) for tag in ("test", "validation"))
    assert_same(test, fixed_plan(TRAIN, "test", 3, 18))
    np.testing.assert_array_equal(test.image, TRAIN)
    assert not np.array_equal(test.phase, validation.phase)


def test_a_plan_is_cheap() -> None:
    """The host must not hold up the device: some microseconds, a hundred times that is an error on any machine."""
    indices = np.arange(48_000, dtype=np.int32)
    training_plan(indices, 0, 0, 64, 3, 18)
    start = time.perf_counter()
    training_plans(indices, 0, 0, 1000, 64, 3, 18)
    assert (time.perf_counter() - start) / 1000 < 5e-4
