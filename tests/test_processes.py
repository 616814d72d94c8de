"""One batch shared by two processes, as torchrun starts them: the run of one process, where nothing is drawn."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ppl_tvae import cli
from ppl_tvae.inference.pyro.distributed import noise_seed
from ppl_tvae.runs import open_run
from ppl_tvae.training import train
from tests.small_runs import outcome, small_training

ROOT = Path(__file__).parents[1]

PROGRAM = """
import os, pathlib
import pyro, pyro.distributions as dist, torch

def model(frames):
    loc = pyro.param("loc", torch.zeros(frames[0].numel()))
    weight = pyro.param("weight", torch.ones(()), constraint=dist.constraints.positive)
    with pyro.plate("sequences", len(frames)):
        z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        logits = (loc + weight * z.sum(-1, keepdim=True)).reshape(frames.shape)
        pyro.sample("x", dist.Bernoulli(logits=logits).to_event(4), obs=frames)

def guide(frames):
    encoder = pyro.param("encoder", 0.01 * torch.randn(frames[0].numel(), 3))
    with pyro.plate("sequences", len(frames)):
        mean = frames.reshape(len(frames), -1) @ encoder
        z = pyro.sample("z", POSTERIOR)
    if torch.is_grad_enabled() and "DRAWS" in os.environ:
        with (pathlib.Path(os.environ["DRAWS"]) / os.environ["RANK"]).open("a") as file:
            print(*(z - mean).detach().ravel().tolist(), file=file)
"""
POSTERIORS = {"exact": "dist.Delta(mean).to_event(1)", "noisy": "dist.Normal(mean, 0.5).to_event(1)"}

# What both processes run; the runs of the second rank are those of the first.
SCRIPT = """
import os, sys
from pathlib import Path
from ppl_tvae.training import follow, is_follower, resume, train
from tests.small_runs import small_training

folder = Path(sys.argv[1])
settings = {"num_capsules": None, "capsule_dim": None, "hidden": None, "precision": "float64", "clip_norm": 5.0}

def experiment(name, **changes):
    return small_training(folder, "pyro", model=str(folder / f"{name}.py"), **settings, **changes)

def work(*jobs):
    for job in jobs:
        follow() if is_follower() else job()

work(
    lambda: train(experiment("exact"), folder / "exact", quiet=True),
    lambda: train(experiment("noisy"), folder / "straight", quiet=True),
    lambda: train(experiment("noisy", steps=27), folder / "resumed", quiet=True),
    lambda: resume(folder / "resumed", steps=40, quiet=True),
)
"""


def torchrun(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Two processes on this host, at a port that is free."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | variables
    return subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The runs of two processes, their draws, and the same program without any draw trained in one process."""
    folder = tmp_path_factory.mktemp("processes")
    for name, posterior in POSTERIORS.items():
        (folder / f"{name}.py").write_text(PROGRAM.replace("POSTERIOR", posterior))
    (folder / "script.py").write_text(SCRIPT)
    (folder / "draws").mkdir()
    done = torchrun(str(folder / "script.py"), str(folder), DRAWS=str(folder / "draws"))
    assert done.returncode == 0, done.stderr
    return folder


def test_two_processes_train_as_one(folder):
    """Each has two rows of a batch of four, so that what either leaves out would be missed."""
    settings = {"num_capsules": None, "capsule_dim": None, "hidden": None, "precision": "float64", "clip_norm": 5.0}
    experiment = small_training(folder, "pyro", model=str(folder / "exact.py"), **settings)
    one, two = train(experiment, folder / "one", quiet=True), open_run(folder / "exact")
    ours, theirs = one.checkpoint(), two.checkpoint()
    assert ours.step == theirs.step == 40
    for name, array in ours.arrays.items():
        if not name.startswith("random"):
            np.testing.assert_allclose(theirs.arrays[name], array, rtol=1e-9, atol=1e-12, err_msg=name)
    for row, other in zip(one.metrics(), two.metrics(), strict=True):
        for name in ("step", "loss", "elbo_per_frame"):
            np.testing.assert_allclose(row.get(name, 0.0), other.get(name, 0.0), rtol=1e-9)
    first = one.metrics()
    assert first[-1]["elbo_per_frame"] > first[0]["elbo_per_frame"] + 0.1


def test_a_resumed_run_of_two_processes_is_an_uninterrupted_one(folder):
    straight, resumed = (outcome(open_run(folder / name)) for name in ("straight", "resumed"))
    # The rows at step 27, where the first part ended, are of that run alone.
    for name in straight.keys() - {"metrics", "progress", "state random.cpu"}:
        if not name.startswith("parameters"):
            assert straight[name] == resumed[name], name


def test_each_process_has_noise_of_its_own(folder):
    draws = [np.loadtxt(folder / "draws" / str(rank)) for rank in (0, 1)]
    noisy = [own[np.any(own != 0, axis=1)] for own in draws]
    assert len(noisy[0]) == len(noisy[1]) >= 80
    for own, other in zip(*noisy, strict=True):
        assert not set(own) & set(other)


def test_seeds_of_noise_differ():
    seeds = [noise_seed(seed, rank, step) for seed in range(3) for rank in range(4) for step in range(50)]
    assert len(set(seeds)) == 600
    assert all(0 <= seed < 2**63 for seed in seeds)


@pytest.mark.parametrize(
    ("backend", "batch", "words"),
    [
        ("numpyro", 4, "leave out torchrun and give --devices 2"),
        ("pyro", 3, "expected a batch_size that is a multiple of the 2 processes, found 3"),
    ],
)
def test_what_torchrun_cannot_share(backend, batch, words, tmp_path, monkeypatch, capsys):
    from tests.small_runs import small_arguments

    for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    arguments = small_arguments(tmp_path, backend, tmp_path / "run", batch_size=batch)
    assert cli.main(arguments) == 2
    assert words in capsys.readouterr().err
    assert cli.main([*arguments, "--seeds=2"]) == 2
    assert "expected one seed in a run that torchrun started" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
