"""The table of a program's sites, and what is said instead when the program is wrong."""

import json

import pytest

from ppl_tvae import cli
from ppl_tvae.config import Experiment
from ppl_tvae.inspection import sites
from tests.small_runs import BACKENDS, small_images

SMALL = {"num_timesteps": 4, "num_capsules": 2, "capsule_dim": 4, "hidden": (8,)}

WRONG = {
    "numpyro": "import numpyro\nfrom numpyro import distributions as dist\n",
    "pyro": "import pyro as numpyro\nfrom pyro import distributions as dist\n",
}
FORGETFUL = """
def model(frames):
    with numpyro.plate("sequences", len(frames)):
        z = numpyro.sample("z", dist.Normal(0.0 * frames[:, 0, 0, 0, 0], 1.0))
        numpyro.sample("x", dist.Bernoulli(logits=0.0 * frames).to_event(4), obs=frames)

def guide(frames):
    pass
"""


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_site_with_its_distribution_and_shapes(backend, tmp_path):
    experiment = Experiment(backend=backend, data=str(small_images(tmp_path)), prior="laplace", **SMALL)
    rows = {(row["part"], row["site"]): row for row in sites(experiment)}
    shapes = {"batch_shape": [2], "event_shape": [4, 2, 4]}
    for part, distribution in (("guide", "Normal"), ("model", "Laplace")):
        expected = {"part": part, "site": "u", "kind": "latent", "distribution": distribution, **shapes}
        assert rows[part, "u"] == expected
    assert rows["model", "x"]["kind"] == "observed"
    assert rows["model", "x"]["event_shape"] == [4, 6, 6, 3]
    assert rows["model", "t"]["kind"] == "deterministic"
    assert rows["guide", "guide.z.0.weight"]["event_shape"] == [8, 108]
    assert rows["model", "mu"]["kind"] == "parameter"


def test_both_backends_have_one_table(tmp_path):
    data = str(small_images(tmp_path))
    tables = [sites(Experiment(backend=backend, data=data, guide="iaf", **SMALL)) for backend in BACKENDS]
    ordered = [sorted(table, key=lambda row: (row["part"], row["site"])) for table in tables]
    assert ordered[0] == ordered[1]


@pytest.mark.parametrize("backend", BACKENDS)
def test_command(backend, tmp_path, capsys):
    file, data = tmp_path / "mine.py", str(small_images(tmp_path))
    file.write_text(WRONG[backend] + FORGETFUL)
    own = ["check", str(file), "--backend", backend, "--data", data, "--num-timesteps", "4"]
    assert cli.main(own) == 2
    assert "found no site 'z' in it; add it" in capsys.readouterr().err
    file.write_text(file.read_text().replace("    pass", "    " + GUIDE))
    assert cli.main([*own, "--json"]) == 0
    assert {row["site"] for row in json.loads(capsys.readouterr().out)} == {"z", "x"}
    assert cli.main(own) == 0
    printed = capsys.readouterr().out.splitlines()
    untrainable = "can evaluate; it has no parameters, so there is nothing to train"
    assert printed[0] == f"{file} is a program that {backend} {untrainable}"
    assert [line.split()[:3] for line in printed[2:]] == [
        ["guide", "z", "latent"],
        ["model", "z", "latent"],
        ["model", "x", "observed"],
    ]
    named = ["check", "vae", *own[2:], "--num-capsules", "2", "--capsule-dim", "4", "--hidden", "8"]
    assert cli.main(named) == 0
    assert capsys.readouterr().out.startswith(f"vae is a program that {backend} can train\n")


GUIDE = """with numpyro.plate("sequences", len(frames)):
        numpyro.sample("z", dist.Normal(0.0 * frames[:, 0, 0, 0, 0], 1.0))
"""
