"""What `ppl-tvae new` writes: the named models, line for line the same in both backends, ready to edit and run."""

import jax
import jax.numpy as jnp
import numpy as np
import pyro
import pytest
import torch

from ppl_tvae import cli
from ppl_tvae.assembly import assemble
from ppl_tvae.catalogue import MODELS
from ppl_tvae.config import Experiment
from ppl_tvae.inference.numpyro.device import on_device as on_jax
from ppl_tvae.inference.pyro.device import on_device as on_torch
from ppl_tvae.own_program import load_program
from ppl_tvae.runs import open_run
from ppl_tvae.starting_points import starting_point, write_starting_point
from tests.small import random_latents, random_parameters, small_frames
from tests.small_runs import BACKENDS, small_arguments
from tests.weights import numpyro_log_weights_at, pyro_log_weights_at

SMALL_SIZES = {"S, C, D = 18, 18, 18": "S, C, D = 6, 2, 6", "(972, 648)": "(8,)", "window=13": "window=4"}
PRIOR_OF_U = {
    "numpyro": ("dist.Normal(0.0, 1.0)", "dist.Laplace(0.0, 0.5**0.5)"),
    "pyro": (
        "dist.Normal(torch.zeros(()), torch.ones(()))",
        "dist.Laplace(torch.zeros(()), torch.tensor(0.5**0.5))",
    ),
}


@pytest.mark.parametrize("model", sorted(MODELS))
def test_it_is_the_named_model(model, tmp_path):
    """The same log weights as the packaged program, at random parameters of the same names, in both backends."""
    experiment, rng = Experiment(model=model).resolved(), np.random.default_rng(0)
    parameters, latents = random_parameters(experiment, rng), random_latents(experiment, 1, rng)
    parameters = {name: value / 20 for name, value in parameters.items()}  # the sizes are the paper's: wide layers
    frames = small_frames(experiment, 1, rng)
    for backend in BACKENDS:
        write_starting_point(model, tmp_path / f"{backend}.py", backend)
    with on_jax("cpu", "float64"):
        arguments = jax.tree.map(jnp.asarray, (parameters, frames, latents))
        programs = assemble(experiment, "numpyro"), load_program(tmp_path / "numpyro.py")
        packaged, written = (numpyro_log_weights_at(program, *arguments) for program in programs)
        np.testing.assert_allclose(written, packaged, rtol=1e-12)
    with on_torch("cpu", "float64"), torch.no_grad():
        arguments = jax.tree.map(torch.as_tensor, (parameters, frames, latents))
        programs = assemble(experiment, "pyro"), load_program(tmp_path / "pyro.py")
        ours, theirs = (pyro_log_weights_at(program, *arguments) for program in programs)
        np.testing.assert_allclose(theirs, ours, rtol=1e-12)
    np.testing.assert_allclose(np.asarray(packaged), ours.numpy(), rtol=1e-9)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("model", sorted(MODELS))
def test_it_is_short_and_says_how_it_is_run(model, backend):
    text = starting_point(model, backend, "mine.py")
    assert len(text.splitlines()) < 100
    assert f"ppl-tvae train --model mine.py --backend {backend}" in text
    assert "FILE" not in text


def test_the_torus_passes_its_own_check(tmp_path, monkeypatch, capsys):
    """It is the one whose commands need options: single frames, not moved."""
    monkeypatch.chdir(tmp_path)
    assert cli.main(["new", "torus", "torus.py", "--backend", "pyro"]) == 0
    (line,) = [line.strip() for line in (tmp_path / "torus.py").read_text().splitlines() if "ppl-tvae check" in line]
    assert cli.main(line.split()[1:]) == 0


def test_backends_read_line_by_line_alike():
    ours, theirs = (starting_point("tvae", backend).splitlines() for backend in BACKENDS)
    after = [
        lines[next(i for i, line in enumerate(lines) if line.startswith("from ppl")) :] for lines in (ours, theirs)
    ]
    assert len(after[0]) == len(after[1])
    assert [line.split("(")[0] for line in after[0] if line.startswith("def ")] == [
        line.split("(")[0] for line in after[1] if line.startswith("def ")
    ]


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_edited_line_goes_through_the_whole_chain(backend, tmp_path, capsys, monkeypatch):
    """new, edit the prior of u, check, train, evaluate, diagnose, figures, compare with the unedited one."""
    monkeypatch.chdir(tmp_path)
    for name in ("plain", "edited"):
        assert cli.main(["new", "tvae", f"{name}.py", "--backend", backend]) == 0
        text = (tmp_path / f"{name}.py").read_text()
        for old, new in SMALL_SIZES.items():
            assert old in text
            text = text.replace(old, new)
        (tmp_path / f"{name}.py").write_text(text)
    lines = (tmp_path / "edited.py").read_text().splitlines(keepends=True)
    (place,) = [index + 1 for index, line in enumerate(lines) if line.startswith("def prior_of_u")]
    old, new = PRIOR_OF_U[backend]
    assert old in lines[place]
    lines[place] = lines[place].replace(old, new)
    (tmp_path / "edited.py").write_text("".join(lines))

    own = {"model": "edited.py", "num-timesteps": 6, "num-capsules": None, "capsule-dim": None, "hidden": None}
    capsys.readouterr()
    arguments = small_arguments(tmp_path, backend, "edited", **own)
    assert cli.main(["check", "edited.py", "--backend", backend, "--data", "images.npz", "--num-timesteps", "6"]) == 0
    assert "Laplace" in capsys.readouterr().out
    assert cli.main(arguments) == 0
    assert cli.main(small_arguments(tmp_path, backend, "plain", **(own | {"model": "plain.py"}))) == 0
    for run in ("edited", "plain"):
        assert cli.main(["evaluate", run, "--particles", "1,5", "--max-sequences", "4"]) == 0
    assert (
        cli.main(
            ["diagnose", "edited", "--draws", "25", "--sequences", "2", "--max-sequences", "4", "--simulated", "8"]
        )
        == 0
    )
    assert cli.main(["figures", "edited"]) == 0
    capsys.readouterr()
    assert cli.main(["compare", "edited", "plain"]) == 0
    assert "edited" in capsys.readouterr().out
    run = open_run(tmp_path / "edited")
    assert run.diagnosis()["equivariance"]
    assert (run.path / "posterior.nc").stat().st_size > 0
    assert (run.path / "program.py").read_text() == "".join(lines)


def test_a_file_that_exists_is_kept(tmp_path, capsys):
    path = tmp_path / "mine.py"
    path.write_text("# hours of work\n")
    assert cli.main(["new", "tvae", str(path)]) == 2
    assert "exists" in capsys.readouterr().err
    assert path.read_text() == "# hours of work\n"
    for arguments, word in ((["tvea", "a.py"], "tvae"), (["tvae", "a.txt"], ".py"), (["tvae", "no/a.py"], "no")):
        assert cli.main(["new", arguments[0], str(tmp_path / arguments[1])]) == 2
        assert word in capsys.readouterr().err
    assert cli.main(["new", "tvae", str(tmp_path / "b.py"), "--backend", "stan"]) == 2
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("model", ["tvae", "vae"])
def test_pyro_runs_it_with_particles_as_a_plate(model, tmp_path):
    """As `Trace_ELBO(vectorize_particles=True)` of the host does: a further axis before the sequences."""
    write_starting_point(model, tmp_path / "own.py", "pyro")
    program = load_program(tmp_path / "own.py")
    frames = (torch.rand(2, 18, 28, 28, 3) > 0.5).float()
    with pyro.get_param_store().scope():
        elbo = pyro.infer.Trace_ELBO(num_particles=2, vectorize_particles=True, max_plate_nesting=1)
        program.guide(frames)
        program.model(frames)
        assert np.isfinite(elbo.loss(program.model, program.guide, frames))
