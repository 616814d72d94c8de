"""Sequences of sprites: what moves, from where, and which motions are held out."""

import numpy as np
import pytest

from ppl_tvae.data import Plan, SequenceData, open_data, render
from ppl_tvae.data.drawing import SHAPES, drawn
from ppl_tvae.data.motions import TEST_FRACTION, stepped
from ppl_tvae.errors import UserError

S = 4
SIZES = (3, 5, S, S, S)


@pytest.fixture(scope="module")
def data() -> SequenceData:
    return open_data("sprites", num_timesteps=S)


def test_the_paper_values() -> None:
    factors = open_data("sprites").factors
    assert list(factors) == ["shape", "scale", "orientation", "posX", "posY"]
    np.testing.assert_allclose(factors["scale"], [0.6, 0.7, 0.8, 0.9, 1.0])
    np.testing.assert_allclose(factors["orientation"], 2 * np.pi * np.arange(0, 30, 2) / 39)
    np.testing.assert_allclose(factors["posX"], np.arange(0, 30, 2) / 31)
    np.testing.assert_allclose(factors["posY"], np.arange(0, 30, 2) / 31)


def test_shapes_and_defaults(data: SequenceData) -> None:
    assert data.transforms == ("scale", "orientation", "posX", "posY")
    assert data.frame_shape == (64, 64, 1)
    frames = render(data.tables, data.test_plan(3))
    assert frames.shape == (3, S, 64, 64, 1)
    assert frames.dtype == np.float32
    assert set(np.unique(frames)) == {0.0, 1.0}
    assert data.source.pixels.nbytes == 960 * 512


@pytest.mark.parametrize("name", ["sprites", "sprites-cyclic"])
def test_frames_are_drawn_at_the_values_of_their_factors(name: str) -> None:
    data = open_data(name, num_timesteps=S, transforms=("scale", "orientation", "posX", "posX+posY", "shape"))
    plan = data.test_plan(12)
    frames, indices = render(data.tables, plan), data.factor_indices(plan)
    values = [list(each) for each in data.factors.values()]
    for sequence in range(12):
        for time in range(S):
            shape, *others = (each[i] for each, i in zip(values, indices[sequence, time], strict=True))
            expected = np.unpackbits(drawn(int(shape), *(np.array([value]) for value in others)), axis=-1)[0]
            np.testing.assert_array_equal(frames[sequence, time, ..., 0], expected)


def test_one_factor_moves_cyclically_and_the_others_rest(data: SequenceData) -> None:
    plan = data.train_plans(0, 0, 1, 64)
    plan = Plan(*(field[0] for field in plan))
    indices, moving = data.factor_indices(plan), data.moving_indices(plan)
    names = list(data.factors)
    assert set(plan.transform) == {0, 1, 2, 3}
    for sequence in range(64):
        place = names.index(data.transforms[plan.transform[sequence]])
        expected = (plan.phase[sequence] + np.arange(S)) % SIZES[place]
        np.testing.assert_array_equal(moving[sequence], expected)
        np.testing.assert_array_equal(indices[sequence, :, place], expected)
        resting = np.delete(indices[sequence], place, axis=1)
        assert (resting == resting[0]).all()
    starts = np.ravel_multi_index(indices[:, 0].T, SIZES)
    np.testing.assert_array_equal(starts, plan.image)
    np.testing.assert_array_equal(data.labels[plan.image], indices[:, 0, 0])
    assert data.source.label_names == SHAPES


def test_moving_indices_of_images() -> None:
    data = open_data("digits", transforms=("scale", "rotation+hue", "perspective"), num_timesteps=6)
    plan = data.test_plan(20)
    np.testing.assert_array_equal(data.moving_indices(plan), (plan.phase[:, None] + np.arange(6)) % 6)
    assert list(data.factors) == ["rotation", "scale", "hue"]
    resting = open_data("digits", transforms=("none",))
    assert resting.factors == {}
    with pytest.raises(UserError, match="expected data with factors that move, found digits"):
        resting.moving_indices(resting.test_plan(2))


def motions_of(data: SequenceData, items: np.ndarray) -> set[tuple[int, frozenset]]:
    """Which factor moves, and the images that a sequence of a whole period would pass, from indices alone."""
    found = set()
    for item in items:
        transform, image = divmod(int(item), len(data.source.pixels))
        places = np.array(np.unravel_index(image, SIZES))
        names = list(data.factors)
        moves = np.isin(names, data.transforms[transform].split("+"))
        path = {tuple((places + step * moves) % SIZES) for step in range(60)}
        found.add((transform, frozenset(path)))
    return found


def test_held_out_motions_are_never_trained(data: SequenceData) -> None:
    train, validation, test = (motions_of(data, items) for items in (data.train, data.validation, data.test))
    assert not train & validation
    assert not train & test
    assert not validation & test
    assert len(train) + len(validation) + len(test) == sum(960 // size for size in (5, S, S, S))
    fewest = 960 // 5
    num_test = round(TEST_FRACTION * fewest)
    assert np.bincount(data.test // 960).tolist() == [num_test] * 4
    assert np.bincount(data.validation // 960).tolist() == [round(0.2 * (fewest - num_test))] * 4
    assert len(test) == len(data.test)


@pytest.mark.parametrize("name", ["sprites", "sprites-cyclic"])
def test_held_out_motions_are_not_trained_under_another_index(name: str) -> None:
    """An ellipse turned by half a turn is the same image, so its motions are the same, whatever their indices."""
    data = open_data(name, num_timesteps=4, transforms=("orientation", "posX", "posX+scale"))
    splits = [(data.train, 0), (data.validation, 1), (data.test, 2)]
    seen: dict[tuple[int, frozenset], int] = {}
    sizes = tuple(map(len, data.factors.values()))
    for items, split in splits:
        for item in items:
            transform, image = divmod(int(item), len(data.source.pixels))
            moves = np.isin(list(data.factors), data.transforms[transform].split("+"))
            path = [stepped(np.array(image), step, moves, sizes) for step in range(20)]
            motion = transform, frozenset(data.source.pixels[place].tobytes() for place in path)
            assert seen.setdefault(motion, split) == split


def test_training_starts_from_every_image_of_its_motions(data: SequenceData) -> None:
    assert len(set(data.train)) == len(data.train)
    sizes = {0: 5, 1: S, 2: S, 3: S}
    assert len(data.train) == sum(sizes[transform] for transform, _ in motions_of(data, data.train))


def test_a_split_depends_on_nothing_beside_it(data: SequenceData) -> None:
    alone = open_data("sprites", num_timesteps=S, transforms=("posX",), validation_fraction=0.5)
    number = data.transforms.index("posX")
    np.testing.assert_array_equal(alone.test, data.test[data.test // 960 == number] - number * 960)
    one, other = (open_data("sprites", num_timesteps=3, transforms=(name,)) for name in ("scale+posX", "posX+scale"))
    for split in ("train", "validation", "test"):
        np.testing.assert_array_equal(getattr(one, split), getattr(other, split))


def test_test_sequences_are_the_same_everywhere() -> None:
    """Published numbers hang on these draws: a change here is a change of the test set."""
    plan = open_data("sprites").test_plan(4)
    assert plan.image.tolist() == [18371, 50272, 21203, 22862]
    assert plan.transform.tolist() == [2, 0, 2, 3]
    assert plan.phase.tolist() == [9, 4, 3, 2]


def test_a_proper_cycle_has_no_jump() -> None:
    """From frame to frame, the last to the first included, the same turn; the paper's orientations stop short."""
    values = {name: open_data(name, num_timesteps=S).factors["orientation"] for name in ("sprites", "sprites-cyclic")}
    steps = {name: np.diff([*angles, angles[0] + 2 * np.pi]) for name, angles in values.items()}
    np.testing.assert_allclose(steps["sprites-cyclic"], 2 * np.pi / S)
    assert np.ptp(steps["sprites"]) > 1


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"transforms": ("rotation",)}, "factor of sprites that moves.*found 'rotation'"),
        ({"transforms": ("posX+posY", "posY+posX")}, r"transforms that differ, found 'posX\+posY' and 'posY\+posX'"),
        ({"transforms": ("none",)}, "factor of sprites that moves.*found 'none'"),
        ({"transforms": ("posX+posX",)}, "found 'posX.posX'"),
        ({"transforms": ()}, "at least one transform, found none"),
        ({"num_timesteps": 17}, "2 to 16 timesteps of sprites.*found 17"),
        ({"num_timesteps": 1}, "2 to 16 timesteps of sprites.*found 1"),
    ],
)
def test_settings_that_do_not_suit_sprites(settings: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        open_data("sprites", **{"num_timesteps": S, **settings})


def test_factors_of_sprites_do_not_suit_images() -> None:
    with pytest.raises(UserError, match="transform, found 'posX'"):
        open_data("digits", transforms=("posX",))
