"""Draws as an ArviZ DataTree, alike in both backends, and what the equivariance metrics measure on a trained run."""

import json
import shutil
from dataclasses import replace

import h5py
import numpy as np
import pytest
import xarray as xr
from safetensors.numpy import save_file
from scipy import stats

from ppl_tvae import cli, diagnosis, train
from ppl_tvae.assembly import lattice_of
from ppl_tvae.config import Experiment
from ppl_tvae.diagnosis import diagnose, equivariance_metrics
from ppl_tvae.diagnostics.datatree import CELL_DIMS, FRAME_DIMS
from ppl_tvae.diagnostics.rolling import EQUIVARIANCE
from ppl_tvae.errors import UserError
from ppl_tvae.inference.mcmc import MCMC
from ppl_tvae.inference.unamortised import Unamortised
from ppl_tvae.posterior import save_datatree, saved_chains, to_datatree
from ppl_tvae.runs import open_run
from tests.small_runs import BACKENDS, files_in, small_training

GROUPS = {
    "posterior", "posterior_predictive", "log_likelihood", "log_prior", "log_guide", "sample_stats",
    "sequence_stats", "prior", "prior_predictive", "observed_data",
}  # fmt: skip


@pytest.fixture(scope="module", params=BACKENDS)
def run(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    return train(small_training(folder, request.param), folder / "run", quiet=True)


def test_damaged_draws_with_chains_are_told_before_the_work(tmp_path):
    run = train(small_training(tmp_path, "pyro", steps=2), tmp_path / "run", quiet=True)
    few = {"num_sequences": 1, "num_draws": 2, "metric_sequences": 2, "simulated_sequences": 8, "quiet": True}
    diagnose(run, **few, mcmc=MCMC("hmc", np.int64(1), np.int64(2), 1), mcmc_sequences=1)
    whole = (run.path / "posterior.nc").read_bytes()
    chunk = chunk_of(run.path / "posterior.nc", "posterior_mcmc/u")
    for damaged in (b"torn", whole[: chunk.start] + b"torn" + whole[chunk.start + 4 :]):
        (run.path / "posterior.nc").write_bytes(damaged)
        before = files_in(run.path)
        with pytest.raises(UserError, match=r"expected draws from diagnose in .*posterior\.nc', found a damaged file"):
            diagnose(run, **few)
        assert files_in(run.path) == before
    with pytest.raises(UserError, match="expected gap_guide as "):
        diagnose(run, **few, gap_guide="auto-normal")
    (run.path / "posterior.nc").unlink()
    diagnose(run, **few)


def chunk_of(path, name):
    """Where the first compressed chunk of a variable lies in a file."""
    with h5py.File(path) as file:
        found = file[name].id.get_chunk_info(0)
    return range(found.byte_offset, found.byte_offset + found.size)


OWN = """
import {host}, {host}.distributions as dist
import {arrays} as xp

def model(frames):
    {host}.deterministic("rates", xp.ones((8, 3)))  # of the model, and as long as a batch
    with {host}.plate("sequences", frames.shape[0]):
        z = {host}.sample("z", dist.Normal(xp.zeros(8), 1.0).to_event(1))
        {host}.deterministic("double", 2 * z)
        logits = z.sum(-1).reshape(-1, 1, 1, 1, 1) + xp.zeros(frames.shape[1:])
        {host}.sample("x", dist.Bernoulli(logits=logits).to_event(4), obs=frames)

def guide(frames):
    scale = {host}.param("scale", xp.ones(()))
    with {host}.plate("sequences", frames.shape[0]):
        {host}.sample("z", dist.Normal(xp.zeros(8), scale).to_event(1))
"""


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_is_no_value_of_a_sequence_is_not_taken_for_one(backend, tmp_path):
    program = tmp_path / "own.py"
    program.write_text(OWN.format(host=backend, arrays={"numpyro": "jax.numpy", "pyro": "torch"}[backend]))
    sizes = {"num_capsules": None, "capsule_dim": None, "hidden": None}
    run = train(small_training(tmp_path, backend, model=str(program), **sizes), tmp_path / "run", quiet=True)
    tree = to_datatree(run, num_sequences=8, num_draws=3, mcmc=MCMC(num_warmup=5, num_draws=4, num_chains=4))
    for group in ("posterior", "prior", "posterior_mcmc"):
        assert set(tree[group].data_vars) == {"z", "double"}
        np.testing.assert_allclose(tree[group]["double"], 2 * tree[group]["z"], rtol=1e-6)


FEW = {"num_sequences": 2, "num_draws": 3, "metric_sequences": 2, "simulated_sequences": 8, "quiet": True}


def test_a_diagnosis_that_is_stopped_leaves_both_files_as_they_were(run, monkeypatch):
    diagnose(run, **FEW)
    before = files_in(run.path)

    def stop(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(diagnosis, "power_scaling", stop)
    with pytest.raises(KeyboardInterrupt):
        diagnose(run, mcmc=MCMC(num_warmup=2, num_draws=4, num_chains=2), mcmc_sequences=1, **FEW)
    assert files_in(run.path) == before


def test_what_was_found_before_slow_chains_are_stopped_stays(run, tmp_path, monkeypatch):
    copy = open_run(shutil.copytree(run.path, tmp_path / "run"))
    chains, asked = MCMC(num_warmup=2, num_draws=4, num_chains=2), FEW | {"mcmc_sequences": 1}
    diagnose(copy, mcmc=chains, **asked)
    of_before = saved_chains(copy)

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(diagnosis, "with_mcmc", stop)
    gap = Unamortised("auto-normal", steps=2)
    with pytest.raises(KeyboardInterrupt):
        diagnose(copy, mcmc=chains, gap_guide=gap, gap_sequences=2, **(asked | {"num_draws": 5}))
    found = copy.diagnosis()
    assert found["posterior"]["num_draws"] == 5
    assert found["amortisation_gap"]["guide_steps"] == 2
    assert found["mcmc"]["num_draws"] == 4
    assert saved_chains(copy).keys() == of_before.keys() != set()
    for name, group in saved_chains(copy).items():
        assert group.identical(of_before[name])


def test_diagnoses_side_by_side_keep_what_was_slow_in_each(run, tmp_path, monkeypatch):
    copy, asked = open_run(shutil.copytree(run.path, tmp_path / "run")), FEW | {"mcmc_sequences": 1}
    measured = diagnosis.amortisation_gap

    def with_another_beside(*arguments):
        diagnose(copy, mcmc=MCMC(num_warmup=2, num_draws=4, num_chains=2), **asked)
        return measured(*arguments)

    monkeypatch.setattr(diagnosis, "amortisation_gap", with_another_beside)
    diagnose(copy, gap_guide=Unamortised("auto-normal", steps=2), gap_sequences=2, **asked)
    assert copy.diagnosis().keys() >= {"mcmc", "amortisation_gap"}
    assert saved_chains(copy)["posterior_mcmc"].sizes["draw"] == 4


def test_a_diagnosis_is_of_the_parameters_that_it_began_with(run, tmp_path, monkeypatch):
    """A training that goes on replaces them."""
    copy = open_run(shutil.copytree(run.path, tmp_path / "run"))

    def train_on(_):
        values = {name: np.asarray(value + 1) for name, value in copy.parameters().items()}
        save_file(values, copy.path / "parameters.safetensors")
        return []

    monkeypatch.setattr(diagnosis, "power_scaling", train_on)
    assert diagnose(copy, **FEW)["parameters"] == run.parameters_digest() != copy.parameters_digest()
    assert copy.present_diagnosis() == {}


def test_groups_dimensions_and_coordinates(run):
    tree = to_datatree(run, num_sequences=5, num_draws=30)
    assert set(tree.children) == GROUPS
    for group in ("posterior", "prior"):
        assert set(tree[group].data_vars) == {"z", "u", "t"}
        assert all(tree[group][name].dims == ("chain", "draw", *CELL_DIMS) for name in "zut")
    for group in ("posterior_predictive", "prior_predictive"):
        assert tree[group]["x"].dims == ("chain", "draw", *FRAME_DIMS)
        assert set(np.unique(tree[group]["x"])) <= {0, 1}
    assert tree["observed_data"]["x"].dims == FRAME_DIMS
    assert tree["log_likelihood"]["x"].dims == ("chain", "draw", "sequence")
    for name in ("image", "label", "transform", "phase"):
        assert tree["posterior"].coords[name].dims == ("sequence",)
        assert not {name} & {*tree["prior"].coords, *tree["prior_predictive"].coords}  # they have seen no frames
    assert tree["posterior"]["z"].shape == (1, 30, 5, 4, 2, 4)
    assert tree["posterior"].attrs["inference_library"] == run.experiment.backend


def test_numbers_are_those_of_the_program(run):
    """t and the weights, computed from z, u and the frames of the same draw with NumPy alone."""
    tree = to_datatree(run, num_sequences=3, num_draws=100)
    z, u, t = (tree["posterior"][name].values[0].astype(np.float64) for name in "zut")
    parameters = run.parameters()
    neighborhood = lattice_of(run.experiment).neighborhood
    cells = np.moveaxis(u**2, -2, -3).reshape(*u.shape[:2], 2, -1)
    energy = np.moveaxis((cells @ neighborhood.T).reshape(*u.shape[:2], 2, 4, 4), -3, -2)
    np.testing.assert_allclose(t, (z + parameters["mu"]) / np.sqrt(energy + run.experiment.epsilon), rtol=1e-4)
    frames = tree["observed_data"]["x"].values.reshape(3, 4, -1)
    log_q = {}
    for name, value in (("z", z), ("u", u)):
        hidden = np.maximum(frames @ parameters[f"guide.{name}.0.weight"].T + parameters[f"guide.{name}.0.bias"], 0)
        out = hidden @ parameters[f"guide.{name}.2.weight"].T + parameters[f"guide.{name}.2.bias"]
        loc, raw = np.split(out.reshape(3, 4, 4, 4), 2, axis=2)
        log_q[name] = stats.norm(loc, np.exp(7 * np.tanh(raw / 14))).logpdf(value).sum(axis=(-3, -2, -1))
        np.testing.assert_allclose(tree["log_guide"][name].values[0], log_q[name], rtol=1e-4, atol=1e-3)
    log_prior = stats.norm.logpdf(z).sum(axis=(-3, -2, -1)) + stats.norm.logpdf(u).sum(axis=(-3, -2, -1))
    weights = tree["sample_stats"]["log_weight"].values[0]
    expected = tree["log_likelihood"]["x"].values[0] + log_prior - log_q["z"] - log_q["u"]
    np.testing.assert_allclose(weights, expected, rtol=1e-4, atol=1e-3)
    normalised = np.exp(weights - weights.max(axis=0)) / np.exp(weights - weights.max(axis=0)).sum(axis=0)
    sizes = 1 / (normalised**2).sum(axis=0)
    np.testing.assert_allclose(tree["sequence_stats"]["effective_sample_size"], sizes, rtol=1e-3)
    assert np.isfinite(tree["sequence_stats"]["khat"]).all()


def test_prior_is_the_priors_and_nobody_elses(run):
    """Ten thousands of standard normals, whose noise is not that of the posterior's draws."""
    tree = to_datatree(run, num_sequences=8, num_draws=40)
    drawn = {name: tree["prior"][name].values.ravel() for name in "zu"}
    for values in drawn.values():
        assert abs(values.mean()) < 5 / values.size**0.5
        assert abs((values**2).mean() - 1) < 5 * 2**0.5 / values.size**0.5
    for guided in (tree["posterior"][name].values for name in "zu"):
        noise = (guided - guided.mean(axis=1, keepdims=True)).ravel()
        for values in drawn.values():
            assert abs(np.corrcoef(noise, values)[0, 1]) < 5 / values.size**0.5
    frames = tree["prior_predictive"]["x"].values[0].mean(axis=0)
    assert np.corrcoef(frames.ravel(), tree["observed_data"]["x"].values.ravel())[0, 1] < 0.5


def test_file_is_read_by_xarray_and_arviz(run, tmp_path):
    from arviz_stats import summary

    path = save_datatree(run, to_datatree(run, num_sequences=2, num_draws=30))
    with xr.open_datatree(path, engine="h5netcdf") as tree:
        assert set(tree.children) == GROUPS
        table = summary(tree.load(), var_names=["u"], coords={"sequence": 0, "capsule": 0}, kind="stats")
    assert len(table) == 4 * 4


def test_arviz_plots_draws_it_as_it_is(run, tmp_path, monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "agg")
    import arviz_plots

    tree = to_datatree(run, num_sequences=2, num_draws=30)
    place = {"var_names": ["u"], "coords": {"sequence": 0, "time": 0, "capsule": 0}}
    for draw in (arviz_plots.plot_forest, arviz_plots.plot_dist):
        draw(tree, backend="matplotlib", **place).savefig(tmp_path / f"{draw.__name__}.png")
        assert (tmp_path / f"{draw.__name__}.png").stat().st_size > 1000


def test_both_backends_give_the_same_tree(tmp_path):
    """A run of one, read in the other: groups, variables, dimensions, coordinates and types."""
    run = train(small_training(tmp_path, "numpyro"), tmp_path / "run", quiet=True)
    ours, theirs = (to_datatree(run, num_sequences=3, num_draws=4, backend=backend) for backend in BACKENDS)
    assert set(ours.children) == set(theirs.children)
    for group in GROUPS:
        first, second = ours[group].to_dataset(), theirs[group].to_dataset()
        assert {n: (v.dims, v.shape, v.dtype) for n, v in first.variables.items()} == {
            n: (v.dims, v.shape, v.dtype) for n, v in second.variables.items()
        }
        for name in first.coords:
            np.testing.assert_array_equal(first[name], second[name])
    np.testing.assert_array_equal(ours["observed_data"]["x"], theirs["observed_data"]["x"])


def test_draws_follow_from_the_seed(run):
    first, again, other = (to_datatree(run, num_sequences=3, num_draws=2, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first["posterior"]["u"], again["posterior"]["u"])
    assert (other["posterior"]["u"] != first["posterior"]["u"]).all()


def test_command(run, capsys):
    assert (
        cli.main(
            ["diagnose", str(run.path), "--draws", "30", "--sequences", "2", "--max-sequences", "6", "--simulated", "8"]
        )
        == 0
    )
    printed = capsys.readouterr().out
    assert "posterior.nc: 30 draws for 2 sequences" in printed
    assert "calibration of u on 8 simulated sequences" in printed
    assert all(name in printed for name in EQUIVARIANCE)
    assert (
        cli.main(
            [
                "diagnose",
                str(run.path),
                "--draws",
                "30",
                "--sequences",
                "2",
                "--max-sequences",
                "6",
                "--simulated",
                "8",
                "--json",
            ]
        )
        == 0
    )
    assert json.loads(capsys.readouterr().out) == run.diagnosis()
    assert cli.main(["diagnose", str(run.path), "--draws", "0"]) == 2
    assert "expected num_draws of at least 1, found 0" in capsys.readouterr().err


def test_metrics_of_decoding_have_their_order(tmp_path):
    """After a short training on one moving factor: the guide's own code reconstructs better than a random roll."""
    experiment = replace(
        Experiment(data="digits", transforms=("hue",), num_timesteps=6, capsule_dim=6, num_capsules=6),
        hidden=(64,), steps=400, learning_rate=3e-3, validation_sequences=8, evaluate_every=400,
    )  # fmt: skip
    run = train(experiment, tmp_path / "run", quiet=True)
    records = equivariance_metrics(run, num_sequences=24, quiet=True)["equivariance"]
    value = {record["metric"]: record["value"] for record in records}
    assert value["image_error_reconstruction"] < value["image_error_random_roll"]
    assert value["image_error_reconstruction"] < value["image_error_not_rolled"]
    assert value["equivariance_error"] < value["centred_equivariance_error"]
    assert all(record["standard_error"] > 0 for record in records)


PLAIN = """
import jax.numpy as jnp, numpyro, numpyro.distributions as dist


def model(frames):
    numpyro.deterministic("shared", jnp.ones((2, 3)))  # of no sequence: not in the tree
    with numpyro.plate("sequences", len(frames)):
        a = numpyro.sample('a', dist.Normal(jnp.zeros(3), 1.0).to_event(1))
        logits = a.sum(-1)[:, None, None, None, None] + jnp.zeros(frames.shape)
        numpyro.sample("x", dist.Bernoulli(logits=logits).to_event(4), obs=frames)


def guide(frames):
    loc = numpyro.param("loc", jnp.zeros(3))
    with numpyro.plate("sequences", len(frames)):
        numpyro.sample('a', dist.Normal(loc, jnp.ones((len(frames), 3))).to_event(1))
"""


def own_settings(path):
    return {"model": str(path), "num_capsules": None, "capsule_dim": None, "hidden": Experiment().hidden}


def test_a_program_without_capsules_has_draws_but_no_equivariance(tmp_path):
    path = tmp_path / "plain.py"
    path.write_text(PLAIN)
    run = train(small_training(tmp_path, "numpyro", **own_settings(path)), tmp_path / "run", quiet=True)
    found = diagnose(run, num_sequences=3, num_draws=30, metric_sequences=4, simulated_sequences=8, quiet=True)
    assert found["equivariance"] == []
    assert set(found["calibration"]) == {"a", "log p(x | latents)"}
    with xr.open_datatree(run.path / "posterior.nc", engine="h5netcdf") as tree:
        assert set(tree["posterior"].data_vars) == {"a"}
        assert tree["posterior"]["a"].dims == ("chain", "draw", "sequence", "a_dim_0")


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"num_draws": 0}, "num_draws of at least 1"),
        ({"num_draws": 10**12}, "num_draws of at most"),
        ({"split": "tests"}, "test"),
    ],
)
def test_bad_settings(run, settings, sentence):
    with pytest.raises(UserError, match=sentence):
        to_datatree(run, **settings)


def test_diagnose_checks_its_counts_before_it_writes(run):
    before = files_in(run.path)
    for name in ("num_sequences", "num_draws", "metric_sequences", "simulated_sequences"):
        with pytest.raises(UserError, match=f"expected {name} of at least"):
            diagnose(run, **{name: 0}, quiet=True)
    assert files_in(run.path) == before


def test_a_site_named_like_a_coordinate_is_refused(tmp_path):
    path = tmp_path / "phases.py"
    path.write_text(PLAIN.replace("'a'", "'phase'"))
    with pytest.raises(UserError, match="found 'phase'; rename"):
        train(small_training(tmp_path, "numpyro", **own_settings(path)), tmp_path / "run", quiet=True)
