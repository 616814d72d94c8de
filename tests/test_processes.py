"""One batch shared by two processes, as torchrun starts them: the run of one process, where nothing is drawn."""

import os
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from ppl_tvae import cli
from ppl_tvae.inference.pyro.distributed import noise_seed
from ppl_tvae.runs import open_run
from ppl_tvae.training import resume, train
from tests.small_runs import outcome, small_arguments, small_training

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
ENTRY = PROJECT["scripts"]["ppl-tvae"].rpartition(":")[2]

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

class Still(dist.Normal):
    def rsample(self, sample_shape=torch.Size()):
        return self.loc.expand(self._extended_shape(sample_shape))

def guide(frames):
    encoder = pyro.param("encoder", 0.01 * torch.randn(frames[0].numel(), 3))
    with pyro.plate("sequences", len(frames)):
        mean = frames.reshape(len(frames), -1) @ encoder
        z = pyro.sample("z", POSTERIOR)
    if torch.is_grad_enabled() and "DRAWS" in os.environ:
        with (pathlib.Path(os.environ["DRAWS"]) / os.environ["RANK"]).open("a") as file:
            print(*(z - mean).detach().ravel().tolist(), file=file)
"""
POSTERIORS = {"exact": "Still(mean, 0.5).to_event(1)", "noisy": "dist.Normal(mean, 0.5).to_event(1)"}

# What both processes run; the runs of the second rank are those of the first.
SCRIPT = """
import atexit, os, sys
from pathlib import Path
from ppl_tvae.errors import Diverged
from ppl_tvae.trainers import follow, is_follower
from ppl_tvae.training import resume, train
from tests.small_runs import small_training

folder = Path(sys.argv[1])

def note_threads():
    names = [(task / "comm").read_text().strip() for task in Path("/proc/self/task").iterdir()]
    (folder / f"threads{os.environ['RANK']}").write_text(" ".join(names))

atexit.register(note_threads)  # called after what is registered later
settings = {"num_capsules": None, "capsule_dim": None, "hidden": None, "precision": "float64", "clip_norm": 5.0}

def experiment(name, **changes):
    return small_training(folder, "pyro", model=str(folder / f"{name}.py"), **settings, **changes)

def work(*jobs):
    for job in jobs:
        follow() if is_follower() else job()

def diverge():
    try:
        train(experiment("exact", optimizer="sgd", learning_rate=1e300), folder / "diverged", quiet=True)
    except Diverged:
        return
    raise AssertionError("it did not diverge")

work(
    diverge,
    lambda: train(experiment("exact"), folder / "exact", quiet=True),
    lambda: train(experiment("noisy"), folder / "straight", quiet=True),
    lambda: train(experiment("noisy", steps=20), folder / "resumed", quiet=True),
    lambda: resume(folder / "resumed", steps=40, quiet=True),
)
"""

# A command that Ctrl-C ends while XLA compiles, and an interpreter that takes its time over the last of its objects.
COMPILING = """
import signal, sys, threading, time
import jax, jax.numpy as jnp
from ppl_tvae import cli

class Lasting:
    def __del__(self, sleep=time.sleep):
        sleep(5)

def slow(x):
    for _ in range(150):
        x = jnp.sin(x) @ jnp.sort(x, axis=0)
    return x

def compiles(options):
    traced = jax.jit(slow).lower(jnp.ones((4, 4)))
    threading.Timer(0.3, signal.raise_signal, [signal.SIGINT]).start()
    traced.compile()

signal.signal(signal.SIGINT, signal.default_int_handler)
sys.lasting, sys.argv = Lasting(), ["ppl-tvae", "models"]
cli._COMMANDS["models"] = compiles
sys.exit(cli.ENTRY())
"""


@contextmanager
def torchrun(*arguments: str, **variables: str) -> Iterator[subprocess.Popen[str]]:
    """Two processes on this host, at a port that is free, ended for certain when the test ends."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | variables
    child = subprocess.Popen(command, env=environment, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    try:
        yield child
    finally:
        child.terminate()  # which torchrun hands on; killed, it would leave the others behind
        child.communicate()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The runs of two processes, their draws, and the same program without any draw trained in one process."""
    folder = tmp_path_factory.mktemp("processes")
    for name, posterior in POSTERIORS.items():
        (folder / f"{name}.py").write_text(PROGRAM.replace("POSTERIOR", posterior))
    (folder / "script.py").write_text(SCRIPT)
    (folder / "draws").mkdir()
    with torchrun(str(folder / "script.py"), str(folder), DRAWS=str(folder / "draws")) as child:
        told = child.communicate(timeout=120)[1]
    assert child.returncode == 0, told
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
    assert straight["step"] == 40
    assert straight == resumed


def test_divergence_lets_the_other_process_go(folder):
    """It took part in what came after; the state that is kept is the last good one."""
    checkpoint = open_run(folder / "diverged").checkpoint()
    assert checkpoint.step == 0
    assert all(np.isfinite(array).all() for array in checkpoint.arrays.values())


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs /proc: run it on Linux")
def test_the_threads_of_the_group_end_before_the_interpreter(folder):
    """One that drops a tensor while the interpreter ends aborts the process: 'terminate called without ...'."""
    for rank in (0, 1):
        assert "gloo" not in (folder / f"threads{rank}").read_text()


def test_ctrl_c_ends_both_processes_and_keeps_the_state(folder):
    out = folder / "interrupted"
    arguments = small_arguments(folder, "pyro", out, steps=1_000_000)
    with torchrun("-m", "ppl_tvae.cli", *arguments) as child:
        deadline = time.monotonic() + 100
        while not any(path.name >= "000000020" for path in (out / "state").glob("*.safetensors")):
            assert child.poll() is None, child.communicate()[1]
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert len(processes_with(str(out))) == 3  # torchrun and what it started
        child.send_signal(signal.SIGINT)
        told = child.communicate(timeout=60)[1]
    reached = open_run(out).checkpoint().step
    assert f"ppl-tvae: stopped at step {reached}; go on with --resume --out {out}\n" in told
    assert not processes_with(str(out))
    assert resume(out, steps=reached + 3, quiet=True).checkpoint().step == reached + 3  # in one process now


def test_ctrl_c_while_xla_compiles_is_exit_code_130():
    """Its threads go on compiling; where the interpreter frees what they use, the process dies of signal 11."""
    environment = {name: value for name, value in os.environ.items() if name != "JAX_DISABLE_MOST_OPTIMIZATIONS"}
    command = [sys.executable, "-c", COMPILING.replace("ENTRY", ENTRY)]
    child = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert child.stderr.endswith("ppl-tvae: interrupted; what was written before is kept\n")
    assert child.returncode == 130


def processes_with(argument: str) -> list[Path]:
    return [path for path in Path("/proc").glob("[0-9]*") if argument in (path / "cmdline").read_text()]


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
    for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    arguments = small_arguments(tmp_path, backend, tmp_path / "run", batch_size=batch)
    assert cli.main(arguments) == 2
    assert words in capsys.readouterr().err
    assert cli.main([*arguments, "--seeds=2"]) == 2
    assert "expected one seed in a run that torchrun started" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
