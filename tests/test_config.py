"""Experiments: through TOML and back, and a sentence for every setting that is wrong."""

import re
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import tomli_w

from ppl_tvae import catalogue, config
from ppl_tvae.assembly import lattice_of
from ppl_tvae.config import Experiment, experiment_from, read_toml
from ppl_tvae.data.sprites import MOVING, SPRITES
from ppl_tvae.errors import UserError


def toml(folder: Path, text: str | bytes) -> Path:
    path = folder / "experiment.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.mark.parametrize("model", catalogue.MODELS)
def test_resolved_experiments_survive_toml_and_resolution(model, tmp_path):
    resolved = Experiment(model=model, seed=7, learning_rate=0.25, hidden=(5, 4)).resolved()
    assert resolved.resolved() == resolved
    assert read_toml(toml(tmp_path, tomli_w.dumps(resolved.to_mapping()))) == resolved


def test_every_setting_is_described_and_has_a_type_that_toml_can_hold():
    mapping = Experiment().resolved().to_mapping()
    assert experiment_from(mapping) == Experiment().resolved()
    assert all(setting.metadata["help"] for setting in fields(Experiment))


@pytest.mark.parametrize(
    ("settings", "left_out"),
    [
        ({"model": "own.py"}, {"guide", "prior", "epsilon", "mu_per", "lattice_weights", "hidden"}),
        ({"model": "vae"}, {"epsilon", "mu_per", "lattice_weights"}),
        ({"model": "static"}, {"temporal_window"}),
    ],
)
def test_what_a_model_does_not_use_is_not_written(settings, left_out):
    resolved = Experiment(**settings).resolved()
    assert not left_out & resolved.to_mapping().keys()
    assert experiment_from(resolved.to_mapping()) == resolved


def test_whole_numbers_are_numbers():
    assert experiment_from({"learning_rate": 1}).learning_rate == 1.0


def test_files_named_in_a_toml_lie_relative_to_it(tmp_path):
    text = 'model = "own.py"\nlattice = "w.npy"\ndata = "/elsewhere/own.npz"\ndata_dir = "files"'
    experiment = read_toml(toml(tmp_path, text))
    assert experiment.model == str(tmp_path / "own.py")
    assert experiment.lattice == str(tmp_path / "w.npy")
    assert experiment.data == "/elsewhere/own.npz"
    assert experiment.data_dir == str(tmp_path / "files")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("stepz = 3", "expected the name of a setting, found 'stepz'; did you mean 'steps'?"),
        ("float = 'float64'", "found 'float'; --float is the setting 'precision'"),
        ("[training]\nsteps = 3", "expected the name of a setting, found 'training'"),
        ("steps = '3'", "expected int for the setting 'steps', found '3'"),
        ("steps = 3.5", "expected int for the setting 'steps', found 3.5"),
        ("steps = true", "expected int for the setting 'steps', found True"),
        ("steps = [3]", "expected int for the setting 'steps', found [3]"),
        ("hidden = 3", "expected a list of int for the setting 'hidden', found 3"),
        ("hidden = [3, 'x']", "expected a list of int for the setting 'hidden', found [3, 'x']"),
        ("model = 3", "expected str for the setting 'model', found 3"),
        ("steps = ", "expected TOML in"),
        (b"\xff\xfe", "expected TOML in"),
    ],
)
def test_wrong_toml(text, words, tmp_path):
    with pytest.raises(UserError, match=re.escape(words)) as caught:
        read_toml(toml(tmp_path, text))
    assert "\n" not in str(caught.value)


def test_toml_that_cannot_be_read(tmp_path):
    with pytest.raises(UserError, match=r"expected an experiment in TOML at .*none.toml', found: No such file"):
        read_toml(tmp_path / "none.toml")
    with pytest.raises(UserError, match=r"found: Is a directory"):
        read_toml(tmp_path)


NAMES = {
    "backend": ("numpiro", "numpyro"),
    "model": ("buble", "bubble"),
    "guide": ("meanfield", "mean-field"),
    "prior": ("norml", "normal"),
    "prior_z": ("laplac", "laplace"),
    "prior_u": ("studentt", "student-t"),
    "likelihood": ("bernouli", "bernoulli"),
    "objective": ("elb", "elbo"),
    "optimizer": ("adamw", "adam"),
    "schedule": ("cosin", "cosine"),
    "lattice_weights": ("learn", "learned"),
    "mu_per": ("capsules", "capsule"),
    "device": ("gpu:cuda", "cuda"),
    "precision": ("flaot64", "float64"),
    "matmul": ("bfloat", "bfloat16"),
}


def test_every_catalogue_is_in_the_table_below():
    named = {setting.name for setting in fields(Experiment) if {"kind", "choices"} & set(setting.metadata)}
    assert named | {"model"} == set(NAMES)


@pytest.mark.parametrize("setting", NAMES)
def test_unknown_names_get_the_nearest_valid_one(setting):
    wrong, right = NAMES[setting]
    with pytest.raises(UserError, match=f"found '{wrong}'; did you mean '{right}'"):
        replace(Experiment(), **{setting: wrong}).resolved()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"seed": -1}, "expected a seed between 0 and 4294967295, found -1"),
        ({"seed": 2**32}, "found 4294967296"),
        ({"steps": 0}, "expected steps of at least 1, found 0"),
        ({"steps": 10**25, "schedule": "cosine"}, "expected steps of at most 2147483647, found 1"),
        ({"hidden": (5, 10**10)}, "expected hidden of at most 2147483647, found (5, 10000000000)"),
        ({"batch_size": -8}, "expected batch_size of at least 1, found -8"),
        ({"num_timesteps": 0}, "expected num_timesteps of at least 1"),
        ({"hidden": (5, 0)}, "expected hidden layers of at least one unit"),
        ({"validation_fraction": 1.0}, "expected validation_fraction between 0 and 1, found 1.0"),
        ({"validation_fraction": 0.0}, "expected validation_fraction between 0 and 1, found 0.0"),
        ({"patience": -1}, "expected patience of at least 0, found -1"),
        ({"optimizer": "sgd", "adam_epsilon": 0.5}, "expected adam_epsilon only with optimizer 'adam'"),
        ({"adam_epsilon": 0.0}, "expected adam_epsilon above 1.2e-38 in float32, without which adam divides zero"),
        ({"adam_epsilon": 1e-60}, "found 1e-60"),
        ({"likelihood": "own-density"}, "expected the likelihood of a named model, one of bernoulli, bernoulli-grey"),
        ({"momentum": 1.0}, "expected momentum below 1"),
        ({"learning_rate": 0.0}, "expected a positive learning_rate, found 0.0"),
        ({"learning_rate": float("inf")}, "expected learning_rate to be finite in float32, found inf"),
        ({"mu": float("nan")}, "expected mu to be finite in float32, found nan"),
        ({"epsilon": -1.0}, "expected epsilon of at least 0"),
        ({"clip_norm": float("nan")}, "expected clip_norm to be finite"),
        ({"warmup_steps": 2000}, "expected fewer warmup_steps than the 2000 steps"),
        ({"model": "vae", "mu": 1.0}, "expected no mu with model 'vae', which does not use it"),
        ({"model": "static", "temporal_window": 3}, "expected no temporal_window with model 'static'"),
        ({"model": "own.py", "hidden": (3,)}, "expected no hidden with model 'own.py'"),
        ({"lattice": "w.npy", "spatial_width": 3}, "expected no spatial_width with lattice = 'w.npy'"),
        ({"model": "torus", "num_timesteps": 18}, "expected num_timesteps 1 with model 'torus'"),
        ({"steps": "9"}, "expected int for the setting 'steps', found '9'"),
        ({"hidden": 5}, "expected a list of int"),
    ],
)
def test_wrong_settings(settings, words):
    with pytest.raises(UserError, match=re.escape(words)):
        replace(Experiment(), **settings).resolved()


@pytest.mark.parametrize("data", config.SPRITES)
@pytest.mark.parametrize(
    ("model", "window", "width"), [("tvae", 10, 1), ("bubble", 5, 5), ("static", None, 3), ("vae", None, None)]
)
def test_sprites_have_the_sizes_of_the_paper(data, model, window, width):
    resolved = Experiment(model=model, data=data).resolved()
    assert (resolved.num_timesteps, resolved.num_capsules, resolved.capsule_dim) == (15, 15, 15)
    assert resolved.hidden == (675, 450)
    assert resolved.transforms == ("scale", "orientation", "posX", "posY")
    assert (resolved.temporal_window, resolved.spatial_width) == (window, width)
    assert resolved.resolved() == resolved


def test_numbers_of_numpy_are_numbers():
    found = replace(Experiment(), steps=np.int64(9), mu=np.float32(2.0), hidden=(np.int32(5),)).resolved()
    assert (found.steps, found.mu, found.hidden) == (9, 2.0, (5,))
    assert {type(value) for value in (found.steps, *found.hidden)} == {int}


@pytest.mark.parametrize(("capsule_dim", "width"), [(324, 5), (16, 4), (4, 2)])
def test_the_neighbourhood_of_a_torus_fits_into_it(capsule_dim, width):
    assert Experiment(model="torus", capsule_dim=capsule_dim).resolved().spatial_width == width


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"spatial_width": 4}, "expected an odd spatial_width of at most the 18 positions.*found 4"),
        ({"spatial_width": 19}, "expected an odd spatial_width of at most the 18 positions.*found 19"),
        ({"num_timesteps": 1}, "expected a temporal_window of at least 2 with spatial_width 3.*name model 'static'"),
    ],
)
def test_a_band_that_would_be_another_is_refused(settings, words):
    with pytest.raises(UserError, match=words):
        lattice_of(replace(Experiment(), **settings).resolved())


def test_two_frames_share_variance():
    assert lattice_of(Experiment(num_timesteps=2).resolved()).degrees_of_freedom.min() == 4


def test_windows_keep_their_share_of_shorter_sequences_and_smaller_capsules():
    assert Experiment(num_timesteps=4, capsule_dim=8).resolved().temporal_window == 3  # 4 * 13 / 18 = 2.9
    assert Experiment(num_timesteps=4, capsule_dim=2, num_capsules=2).resolved().spatial_width == 1


def test_other_data_have_the_sizes_for_mnist():
    resolved = Experiment().resolved()
    assert (resolved.hidden, resolved.temporal_window, resolved.spatial_width) == ((972, 648), 13, 3)
    assert Experiment(model="own.py", data="sprites").resolved().hidden is None


def test_sprites_are_named_alike_here_and_in_the_data():
    assert set(config.SPRITES) == set(SPRITES)
    assert config.SPRITE_TRANSFORMS == MOVING


def test_lists_serve_as_tuples():
    assert replace(Experiment(), hidden=[5, 4]).resolved().hidden == (5, 4)


def test_a_vae_has_no_prior_of_u():
    settings = {"prior": "hyperspherical", "prior_z": "normal", "guide": "iaf"}
    assert Experiment(model="vae", **settings).resolved().priors == {"z": "normal"}
    with pytest.raises(UserError, match="expected guide 'mean-field' with prior 'hyperspherical'"):
        Experiment(model="tvae", **settings).resolved()
