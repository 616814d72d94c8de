"""The tables and the tree of the documentation against the code: what they name exists, and what exists is named."""

import inspect
import re
from dataclasses import fields, replace
from fnmatch import fnmatch
from importlib import import_module
from pathlib import Path

import jax
import jax.numpy as jnp
import pyro
import pytest
import torch
from numpyro.handlers import seed, trace

import ppl_tvae
from ppl_tvae import catalogue
from ppl_tvae.assembly import assemble, lattice_of
from ppl_tvae.config import Experiment
from ppl_tvae.inference.numpyro.device import on_device as on_jax
from ppl_tvae.inference.pyro.device import on_device as on_torch
from ppl_tvae.models.lattice import shifting
from tests.documents import README, ROOT, section, table, tree
from tests.small import EVERY_PROGRAM, FRAME, small_experiment

NOTATION, PROGRAMS, PYTHON = (ROOT / f"docs/{page}.md" for page in ("notation", "programs", "python"))


def names(heading):
    """Code name -> shape, as written in notation.md."""
    return {row["code name"].strip("`"): row["shape"] for row in table(NOTATION, heading)}


def numpyro_sites(experiment):
    """(kind, name) -> shape."""
    kinds = {"sample": "site", "deterministic": "site", "plate": "site", "param": "parameter"}
    shapes = {}

    def note_shapes(frames):
        for function in program:
            for name, site in trace(seed(function, 0)).get_trace(frames).items():
                shapes[kinds[site["type"]], name] = site["value"].shape

    with on_jax("cpu", "float32"):
        program = assemble(experiment, "numpyro")
        jax.eval_shape(note_shapes, jnp.zeros((2, experiment.num_timesteps, *FRAME)))
    return shapes


def pyro_sites(experiment):
    """(kind, name) -> shape."""
    with on_torch("cpu", "float32"), torch.no_grad(), pyro.get_param_store().scope():
        program = assemble(experiment, "pyro")
        frames = torch.zeros(2, experiment.num_timesteps, *FRAME)
        nodes = pyro.poutine.trace(program.guide).get_trace(frames).nodes
        nodes |= pyro.poutine.trace(program.model).get_trace(frames).nodes
    kinds = {"sample": "site", "param": "parameter"}
    return {
        (kinds[node["type"]], name): tuple(node["value"].shape) for name, node in nodes.items() if node["type"] in kinds
    }


@pytest.mark.parametrize("traced", [numpyro_sites, pyro_sites])
def test_notation_names_every_site_and_parameter(traced):
    documented = {"site": names("Sites"), "parameter": names("Parameters")}
    seen = set()
    for model, likelihood in EVERY_PROGRAM:
        experiment = small_experiment(model, likelihood)
        sizes = {"S": experiment.num_timesteps, "C": experiment.num_capsules, "D": experiment.capsule_dim}
        sizes |= {"B": 2, **dict(zip("HWN", FRAME, strict=True))}
        for (kind, name), shape in traced(experiment).items():
            row = _row_of(name, documented[kind])
            seen.add((kind, row))
            expected = documented[kind][row].strip("()").replace(" ", "").rstrip(",")
            letters = expected.split(",") if expected else []
            assert len(letters) == len(shape), name
            assert all(sizes.get(letter, size) == size for letter, size in zip(letters, shape, strict=True)), name
    assert seen == {(kind, row) for kind, rows in documented.items() for row in rows}


def _row_of(name, rows):
    found = [row for row in rows if fnmatch(name, row.replace("{2k}", "[02468]"))]
    assert len(found) == 1, f"docs/notation.md names {name} {len(found)} times"
    return found[0]


SWAPPED = table(NOTATION, "Parameters of swapped parts")


@pytest.mark.parametrize("traced", [numpyro_sites, pyro_sites])
@pytest.mark.parametrize("setting", sorted({row["setting"] for row in SWAPPED}))
def test_notation_names_what_a_setting_adds(setting, traced):
    name, _, value = setting.strip("`").partition("=")
    plain = small_experiment("tvae", "bernoulli")
    swapped = replace(plain, **{name: value})
    shapes = [{name: shape for (kind, name), shape in traced(each).items() if kind == "parameter"}
              for each in (plain, swapped)]  # fmt: skip
    changed = {name: shape for name, shape in shapes[1].items() if shapes[0].get(name) != shape}
    S, C, D, (H, W, N) = plain.num_timesteps, plain.num_capsules, plain.capsule_dim, FRAME
    sizes = {"S": S, "C": C, "D": D, "H": H, "W": W, "N": N, "h": plain.hidden[-1]}
    rows = {row["code name"].strip("`"): row["shape"] for row in SWAPPED if row["setting"] == setting}
    seen = set()
    for name, shape in changed.items():
        (row,) = [row for row in rows if fnmatch(name, row.replace("{latent}", "[zu]").replace("{01}", "[01]"))]
        written = rows[row].strip("()").rstrip(",").replace("in", "0").replace("·", "*").replace("/8", "//8 or 1")
        expected = [eval(size, {}, sizes) for size in written.split(",") if size]
        assert len(shape) == len(expected), name
        assert all(size in (0, found) for size, found in zip(expected, shape, strict=True)), (name, shape)
        seen.add(row)
    assert seen == set(rows)


def test_notation_names_settings_and_quantities():
    assert set(names("Sizes and settings")) <= {setting.name for setting in fields(Experiment)}
    for name in names("Quantities"):
        path, _, attribute = name.rpartition(".")
        if path.endswith(".Lattice"):
            assert hasattr(shifting(3, 3, 1), attribute)
        else:
            assert callable(getattr(import_module(path), attribute))


@pytest.mark.parametrize("model", catalogue.MODELS)
def test_programs_has_a_page_per_model(model):
    page = section(PROGRAMS, model)
    rows = table(PROGRAMS, model)
    written = {re.search("`(.*)`", row["code variable"])[1] for row in rows}
    experiment = small_experiment(model)
    assert written == {name for _, name in numpyro_sites(experiment)} & {"z", "u", "t", "mu"}
    defaults = Experiment(model=model).resolved()
    lattice = lattice_of(defaults)
    if lattice is not None:
        (ones,) = re.findall(r"(\d+)\s+ones\s+in\s+a\s+row", page)
        assert {int(ones)} == set(lattice.degrees_of_freedom.flat)
        assert f"starts at {defaults.mu:g}" in page


def test_readme_has_a_row_per_likelihood():
    rows = table(README, "What the numbers mean")
    assert {row["`--likelihood`"].strip("`") for row in rows} == set(catalogue.KINDS["likelihood"])


def test_architecture_names_every_file():
    written = tree(ROOT / "docs/architecture.md")
    assert not (absent := [path for path in written if not (ROOT / path).exists()]), absent
    python = {str(path.relative_to(ROOT)) for path in (ROOT / "ppl_tvae").rglob("*.py") if path.name != "__init__.py"}
    assert not (unnamed := python - written), sorted(unnamed)
    files = {path for path in written if (ROOT / path).is_file()}
    assert {path for path in files if Path(path).name != "__init__.py"} == python


def test_the_python_page_has_every_name_and_what_it_takes():
    cells = [line.split("|")[1] for line in PYTHON.read_text().splitlines() if line.startswith("| `")]
    written = [text for cell in cells for text in re.findall(r"`([^`]+)`", cell)]
    assert sorted(text.partition("(")[0] for text in written) == sorted(ppl_tvae.__all__)
    for text in written:
        name, _, arguments = text.rstrip(")").partition("(")
        thing = getattr(ppl_tvae, name)
        assert thing.__doc__, name
        given = [argument.partition("=")[0] for argument in arguments.split(", ") if argument not in ("", "...")]
        assert not given or set(given) <= set(inspect.signature(thing).parameters), text
