"""The scripts that look at draws of guide and MCMC: what they print is what the run's files hold, and they draw it."""

import importlib.util

import numpy as np
import pytest
import xarray as xr

from ppl_tvae import cli, train
from tests.documents import ROOT
from tests.small_runs import BACKENDS, small_training


def imported(name):
    path = ROOT / f"examples/{name}.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


compare, look = imported("compare_guide_with_nuts"), imported("look_at_posterior")
FEW = ["--sequences", "1", "--warmup", "8", "--draws", "10", "--chains", "2", "--tree-depth", "3"]
PNG = b"\x89PNG"


@pytest.fixture(scope="module", params=BACKENDS)
def run(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    return train(small_training(folder, request.param), folder / "run", quiet=True)


def test_guide_and_nuts_are_printed_and_drawn(run, capsys):
    assert compare.main([str(run.path), *FEW, "--site", "u"]) == 0
    verdict, _, *rows, out = capsys.readouterr().out.splitlines()
    assert verdict.startswith("MCMC cannot be believed for ")  # of ten draws
    assert {row[:22].strip() for row in rows} == {"z", "u", "t", "log p(x | latents)"}
    assert out == str(run.path / "figures/guide_and_nuts.png")
    assert (run.path / "figures/guide_and_nuts.png").read_bytes().startswith(PNG)


def test_a_small_run_is_trained_where_there_is_none(run, tmp_path, capsys, monkeypatch):
    experiment = small_training(tmp_path, run.experiment.backend)
    monkeypatch.setattr(compare.ppl_tvae, "Experiment", lambda **settings: experiment)
    assert compare.main([str(tmp_path / "small"), *FEW, "--backend", run.experiment.backend]) == 0
    assert (tmp_path / "small/parameters.safetensors").exists()
    assert compare.main([str(tmp_path / "small"), *FEW, "--site", "v"]) == 2
    assert "expected a site of" in capsys.readouterr().err


def test_posterior_is_summarised_and_drawn_as_it_lies_in_the_file(run, capsys):
    few = ["diagnose", str(run.path), "--draws", "12", "--sequences", "2", "--max-sequences", "2", "--simulated", "8"]
    chains = ["--mcmc", "nuts", "--mcmc-warmup", "5", "--mcmc-draws", "12", "--mcmc-tree-depth", "2"]
    for options, group, pictures in (
        ([], "posterior", ["forest"]),
        (chains, "posterior_mcmc", ["forest", "ranks"]),
    ):
        assert cli.main([*few, *options]) == 0
        capsys.readouterr()
        assert look.main([str(run.path), "--site", "u", "--sequence", "1"]) == 0
        title, _, *rows = capsys.readouterr().out.splitlines()
        assert title.startswith(f"u in {group}, ")
        with xr.open_datatree(run.path / "posterior.nc", engine="h5netcdf") as tree:
            values = tree[group]["u"].isel(sequence=1, time=0, capsule=0).values
        means = [float(row.split("]")[1].split()[0]) for row in rows if row.startswith("u[")]
        np.testing.assert_allclose(means, values.mean((0, 1)), atol=0.0006)  # printed with three digits
        paths = [run.path / f"figures/{group}_{name}.png" for name in pictures]
        assert [row for row in rows if row.endswith(".png")] == list(map(str, paths))
        assert all(path.read_bytes().startswith(PNG) for path in paths)


def test_refused_in_a_sentence(run, tmp_path, capsys):
    bare = train(small_training(tmp_path, run.experiment.backend, steps=1), tmp_path / "bare", quiet=True)
    for arguments, words in [
        ([str(tmp_path)], "expected a run directory"),
        ([str(bare.path)], "run ppl-tvae diagnose"),
    ]:
        assert look.main(arguments) == 2
        assert words in capsys.readouterr().err
