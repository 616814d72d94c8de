"""CapCorr and image errors by transform, on codes whose rolls are known."""

from types import SimpleNamespace

import numpy as np
import pytest

from ppl_tvae.data import SEQUENCES_PER_BATCH, Plan, parts
from ppl_tvae.diagnostics import rolling
from ppl_tvae.diagnostics.equivariance import capsule_correlation, equivariance_error
from tests.conftest import STANDARD_ERRORS

S, C, D = 6, 3, 6
TRAINING = 150  # sequences, more than a batch
DATA = SimpleNamespace(
    transforms=("rotation", "hue"),
    num_timesteps=S,
    moving_indices=lambda plan: (plan.phase[:, None] + np.arange(S)) % S,
    plan=lambda split, limit: {"train": a_plan(TRAINING)}[split].at(slice(limit)),
)


def a_plan(batch):
    rng = np.random.default_rng(0)
    zeros = np.zeros(batch, np.int32)
    transform, phase = (rng.integers(size, size=batch).astype(np.int32) for size in (2, S))
    return Plan(np.arange(batch, dtype=np.int32), transform, phase, np.zeros((batch, 3), np.int32), zeros)


class Evaluator:
    """Codes that roll under the first transform and are noise under the second; a decoder that shows the code."""

    def latents(self, plan, batch_index):
        rng = np.random.default_rng([1, batch_index])
        start = rng.normal(size=(len(plan.image), C, D))
        rolled = np.stack([np.roll(start, s, axis=-1) for s in range(S)], axis=1)
        noise = rng.normal(size=rolled.shape)
        return {"t": np.where(plan.transform[:, None, None, None] == 0, rolled, noise)}

    def prior(self, plan, batch_index):
        shape = (1, len(plan.image), S, C, D)
        return SimpleNamespace(sites={"t": np.random.default_rng([2, batch_index]).normal(size=shape)})

    def frames(self, plan):
        return self.decode(self.latents(plan, 0)["t"], "t")

    def decode(self, values, site):
        assert site == "t"
        return values[..., None]


@pytest.fixture(scope="module")
def records():
    plan = a_plan(400)
    rolls = rolling.measured(Evaluator(), DATA, [(0, plan)], seed=0)
    assert rolls.reaches.all()
    return {record["transform"]: record for record in rolling.by_transform(rolls, DATA, plan)}, plan, rolls


def test_each_transform_has_its_own_numbers(records):
    by_name, plan, _ = records
    assert [by_name[name]["num_sequences"] for name in DATA.transforms] == list(np.bincount(plan.transform))
    rolls, noise = by_name["rotation"], by_name["hue"]
    for kind in ("pooled", "per_capsule"):
        assert rolls[f"capsule_correlation_{kind}"] == {"value": pytest.approx(1), "standard_error": pytest.approx(0)}
    assert rolls["image_error_rolled"] == {"value": 0, "standard_error": 0}
    assert rolls["image_error_rolled_minus_not_rolled"]["value"] == -rolls["image_error_not_rolled"]["value"]
    difference = noise["image_error_rolled_minus_not_rolled"]
    assert abs(difference["value"]) < STANDARD_ERRORS * difference["standard_error"]


def test_errors_of_codes_that_roll_by_hand():
    """A random roll of the first code errs as one that is off by 0 to D - 1 positions, each as likely."""
    plan = a_plan(50)._replace(transform=np.zeros(50, np.int32))
    found = rolling.measured(Evaluator(), DATA, [(0, plan)], seed=0).metrics
    t = Evaluator().latents(plan, 0)["t"]
    assert max(found["equivariance_error"].max(), found["centred_equivariance_error"].max()) < 1e-9
    np.testing.assert_allclose(found["image_error_not_rolled"], ((t[:, :1] - t[:, 1:]) ** 2).mean(axis=(1, 2, 3)))
    off = [((np.roll(t[:, 0], k, axis=-1) - t[:, 0]) ** 2).mean(axis=(1, 2)) for k in range(D)]
    difference = found["image_error_random_roll"] - np.mean(off, axis=0)
    assert abs(difference.mean()) < STANDARD_ERRORS * difference.std() / 50**0.5


def test_references_that_have_seen_no_frames_by_hand():
    """The mean frame is of all training sequences and times; the prior's errors are those of its own codes."""
    plan = a_plan(20)
    found = rolling.measured(Evaluator(), DATA, [(3, plan)], seed=0).metrics
    assert TRAINING > SEQUENCES_PER_BATCH
    shown = np.concatenate([Evaluator().frames(part) for _, part in parts(a_plan(TRAINING))])
    error = (Evaluator().frames(plan) - shown.mean(axis=(0, 1)))[:, 1:] ** 2
    np.testing.assert_allclose(found["image_error_mean_frame"], error.mean(axis=(1, 2, 3, 4)))
    draws = [Evaluator().prior(plan, number).sites["t"][0] for number in range(30, 40)]  # those of batch 3
    for name, centred in (("equivariance_error", False), ("centred_equivariance_error", True)):
        by_hand = sum(equivariance_error(draw, centred) for draw in draws) / 10
        np.testing.assert_allclose(found[f"{name}_of_prior"], by_hand)


def test_errors_of_noise_by_hand():
    """Of independent standard normals a squared difference is 2 in the mean; each batch has rolls of its own."""

    class Same(Evaluator):
        def latents(self, plan, batch_index):
            return super().latents(plan, 0)

    plan = a_plan(200)._replace(transform=np.ones(200, np.int32))
    one, other = (rolling.measured(Same(), DATA, [(index, plan)], seed=0).metrics for index in (1, 2))
    t = Same().latents(plan, 0)["t"]
    np.testing.assert_allclose(one["equivariance_error"], equivariance_error(t))
    np.testing.assert_allclose(one["centred_equivariance_error"], equivariance_error(t, centred=True))
    error = one["image_error_random_roll"]
    assert abs(error.mean() - 2) < STANDARD_ERRORS * error.std() / 200**0.5
    assert not np.array_equal(error, other["image_error_random_roll"])


def test_random_rolls_are_any_of_all_alike_and_each_frame_has_its_own():
    """All capsules of a frame roll by one amount; amounts of frames, sequences, batches and seeds are independent."""
    shown = []

    class Shown(Evaluator):
        def latents(self, plan, batch_index):
            return super().latents(plan, 0)

        def decode(self, values, site):
            shown.append(values)
            return super().decode(values, site)

    def amounts(index, seed):
        shown.clear()
        found = rolling.measured(Shown(), DATA, [(index, plan)], seed).metrics["image_error_random_roll"]
        frames = Evaluator().frames(plan)
        codes = [each for each in shown if len(each) == len(frames)]  # and not those of training sequences
        (code,) = (
            each for each in codes if np.allclose(((each[..., None] - frames)[:, 1:] ** 2).mean((1, 2, 3, 4)), found)
        )
        first = Shown().latents(plan, 0)["t"][:, :1]
        fits = np.stack([(np.roll(first, k, axis=-1) == code).all(axis=(2, 3)) for k in range(D)], axis=-1)
        assert (fits.sum(axis=-1) == 1).all()
        return fits.argmax(axis=-1)

    plan = a_plan(300)._replace(transform=np.ones(300, np.int32))
    one = amounts(1, 0)
    error = (5 / 36 / one.size) ** 0.5  # of the share of one amount of six
    np.testing.assert_allclose(np.bincount(one.ravel(), minlength=D) / one.size, 1 / D, atol=STANDARD_ERRORS * error)
    others = (one[:, 1:], one[1:], amounts(2, 0), amounts(1, 1))
    for mine, other in zip((one[:, :-1], one[:-1], one, one), others, strict=True):
        assert abs(np.mean(mine == other) - 1 / D) < STANDARD_ERRORS * (5 / 36 / other.size) ** 0.5


def test_the_pooled_roll_is_that_of_most_capsules():
    """Of three capsules two follow the frames."""
    plan, rng = a_plan(60), np.random.default_rng(5)
    rolls = rolling.measured(Evaluator(), DATA, [(0, plan)], seed=0)
    estimated = np.stack([rng.integers(D, size=60), rolls.true_offsets, rolls.true_offsets], axis=1)
    for record in rolling.by_transform(rolls._replace(estimated_offsets=estimated), DATA, plan):
        assert record["capsule_correlation_pooled"]["value"] == pytest.approx(1)
        assert record["capsule_correlation_per_capsule"]["value"] < 0.9


@pytest.mark.parametrize("positions", [3, 4, 9])
def test_a_code_that_rolls_has_a_correlation_of_one_whatever_its_positions(positions):
    class Rolling(Evaluator):
        def latents(self, plan, batch_index):
            start = np.random.default_rng(4).normal(size=(len(plan.image), C, positions))
            return {"t": np.stack([np.roll(start, s, axis=-1) for s in range(S)], axis=1)}

        def prior(self, plan, batch_index):
            return SimpleNamespace(sites={"t": self.latents(plan, batch_index)["t"][None]})

    plan = a_plan(60)
    for record in rolling.by_transform(rolling.measured(Rolling(), DATA, [(0, plan)], seed=0), DATA, plan):
        for kind in ("pooled", "per_capsule", "pooled_of_prior"):
            assert record[f"capsule_correlation_{kind}"]["value"] == pytest.approx(1)


@pytest.mark.parametrize(("count", "known"), [(2, False), (3, True)])
def test_the_fewest_sequences_that_say_anything(count, known):
    plan = a_plan(count)._replace(transform=np.zeros(count, np.int32), phase=np.arange(count, dtype=np.int32))
    (record,) = rolling.by_transform(rolling.measured(Evaluator(), DATA, [(0, plan)], seed=0), DATA, plan)
    assert (record["capsule_correlation_pooled"]["value"] is not None) == known


def test_the_prior_is_measured_at_the_same_times(records):
    """Draws that do not roll at all correlate only where the first frame is compared with itself: offset 0 is right."""
    by_name, plan, rolls = records
    own = (plan.transform == 0) & (rolls.true_offsets > 0)
    draws, count = rolls.offsets_of_prior.shape[1], own.sum()
    found = capsule_correlation(np.concatenate(rolls.offsets_of_prior[own]), np.repeat(rolls.true_offsets[own], draws))
    assert abs(found).max() < STANDARD_ERRORS / (draws * count) ** 0.5
    assert by_name["rotation"]["capsule_correlation_per_capsule_of_prior"]["value"] < 0.6
    known = np.flatnonzero(plan.transform == 0)

    def by_hand(places):
        true = np.repeat(rolls.true_offsets[places], draws)
        return capsule_correlation(np.concatenate(rolls.offsets_of_prior[places]), true).mean()

    measured = by_name["rotation"]["capsule_correlation_per_capsule_of_prior"]
    assert measured["value"] == pytest.approx(by_hand(known))
    left_out = [by_hand(known[known != place]) for place in known]  # a sequence with all of its codes
    assert measured["standard_error"] == pytest.approx(((len(known) - 1) * np.var(left_out)) ** 0.5, rel=1e-3)
    assert (rolls.offsets_of_prior[rolls.true_offsets == 0] == 0).all()


def test_first_times_are_those_of_phases_and_of_any_values():
    plan = a_plan(50)
    reaches, times = rolling.first_value_times(rolling.moving_indices(DATA, plan))
    assert reaches.all()
    np.testing.assert_array_equal(times, (S - plan.phase) % S)
    indices = np.array([[2, 0, 1, 2, 0, 1], [1, 2, 3, 4, 5, 6], [0, 1, 0, 1, 0, 1]])
    reaches, times = rolling.first_value_times(indices)
    np.testing.assert_array_equal(reaches, [True, False, True])
    np.testing.assert_array_equal(times, [1, 0, 0])  # the first occurrence, not the nearest to an estimate


def test_without_a_known_factor_there_is_no_correlation_but_errors():
    data = SimpleNamespace(transforms=("none",), num_timesteps=S, plan=DATA.plan)
    plan = a_plan(10)._replace(transform=np.zeros(10, np.int32))
    (record,) = rolling.by_transform(rolling.measured(Evaluator(), data, [(0, plan)], seed=0), data, plan)
    assert record["capsule_correlation_pooled"] == {"value": None, "standard_error": None}
    assert record["image_error_rolled"]["value"] == 0
