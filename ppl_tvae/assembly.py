"""From an experiment to its program, a named one or the user's own file, and to its data."""

import ast
import importlib.util
import random
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from array_api_compat import array_namespace

from ppl_tvae import catalogue
from ppl_tvae.config import Experiment
from ppl_tvae.data import SequenceData, open_data, render
from ppl_tvae.errors import UserError, is_of_memory, unknown_name
from ppl_tvae.files import digest, read
from ppl_tvae.models import lattice as lattices
from ppl_tvae.models.latent import Latent
from ppl_tvae.models.lattice import Lattice
from ppl_tvae.program import Program


def assemble(experiment: Experiment, backend: str) -> Program:
    """The program of a resolved experiment, for "numpyro" or "pyro". Raises UserError."""
    if backend not in catalogue.BACKENDS:
        raise unknown_name("backend", backend, catalogue.BACKENDS)
    if experiment.program_file is not None:
        _check_is_the_same("program", experiment.program_file, experiment.program_digest)
        _check_written_for(backend, experiment.program_file)
        with _seeded(experiment.seed, backend):  # what is drawn when the file runs, such as modules' weights
            return load_program(experiment.program_file)
    return _named(experiment, backend)


@contextmanager
def _seeded(seed: int, backend: str) -> Iterator[None]:
    """The generators that a program's file may draw from begin with the seed, and go on as before afterwards."""
    of_python, of_numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 - a user's file may draw from it
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    try:
        if backend == "numpyro":
            yield
        else:
            torch_random = import_module("torch").random
            with torch_random.fork_rng():
                torch_random.manual_seed(seed)
                yield
    finally:
        random.setstate(of_python)
        np.random.set_state(of_numpy)  # noqa: NPY002


def _named(experiment: Experiment, backend: str) -> Program:
    """A named model with the priors, guide and likelihood that the experiment names."""
    parts = ("guides", "likelihoods", "priors", "tvae", "vae")
    guides, likelihoods, priors, tvae, vae = (import_module(f"ppl_tvae.models.{backend}.{part}") for part in parts)
    S, C, D, hidden = experiment.num_timesteps, experiment.num_capsules, experiment.capsule_dim, experiment.hidden
    assert S
    assert C
    assert D
    assert hidden is not None
    lattice = lattice_of(experiment)
    latents = [Latent("z", (S, C, D), hidden, lattice.time_offsets if lattice else (0,))]
    latents += [latents[0]._replace(name="u")] if lattice else []
    prior, posterior = {}, {}
    for latent in latents:
        name = experiment.priors[latent.name]
        guide = guides.power_spherical if name == "hyperspherical" else guides.GUIDES[experiment.guide]
        prior[latent.name] = partial(priors.PRIORS[name], latent)
        posterior[latent.name] = partial(guide, latent)
    mirrored, pixels = hidden[::-1], likelihoods.LIKELIHOODS[experiment.likelihood]
    if lattice is None:
        return Program(vae.vae(prior["z"], mirrored, pixels), guides.guide_of(posterior))
    model = tvae.tvae(
        lattice,
        prior["z"],
        prior["u"],
        mirrored,
        pixels,
        mu=experiment.mu,
        mu_shape={"model": (), "capsule": (C, 1), "cell": (C, D)}[experiment.mu_per],
        epsilon=experiment.epsilon,
        learn_lattice=experiment.lattice_weights == "learned",
    )
    return Program(model, guides.guide_of(posterior))


def lattice_of(experiment: Experiment) -> Lattice | None:
    """W of a resolved experiment; None for the plain VAE. Raises UserError."""
    S, D = experiment.num_timesteps, experiment.capsule_dim
    window, width = experiment.temporal_window, experiment.spatial_width
    assert S
    assert D
    if experiment.model == "vae":
        return None
    if experiment.lattice:
        matrix = _read_matrix(Path(experiment.lattice))
        _check_is_the_same("lattice", Path(experiment.lattice), experiment.lattice_digest)
        return lattices.from_matrix(matrix, S, D)
    assert width
    if experiment.model == "torus":
        side = round(D**0.5)
        if side * side != D:
            raise UserError(f"expected a square number for capsule_dim with model 'torus', found {D}")
        return lattices.torus(side, side, width)
    if experiment.model == "static":
        return lattices.static(S, D, width)
    assert window
    if experiment.model == "bubble":
        return lattices.stationary(S, D, window, width)
    if width > D or width % 2 == 0:
        raise UserError(
            f"expected an odd spatial_width of at most the {D} positions of a capsule with model 'tvae', whose band "
            f"has as many positions on either side, found {width}"
        )
    if width > 1 and window == 1:
        raise UserError(
            f"expected a temporal_window of at least 2 with spatial_width {width} and model 'tvae', whose band ends "
            f"with its window, found 1; name model 'static' for neighbours in space alone, or spatial_width 1"
        )
    return lattices.shifting(S, D, window, band=width // 2)


def data_of(experiment: Experiment, transforms: Sequence[str] | None = None) -> SequenceData:
    """The data set that an experiment names; with other transforms than its own, where they are given.

    Raises UserError.
    """
    trained_on = experiment.transforms
    if transforms is not None:
        given = (transforms,) if isinstance(transforms, str) else tuple(transforms)
        experiment = replace(experiment, transforms=given)
    checked = experiment.resolved()
    assert checked.transforms is not None
    data = open_data(
        checked.data,
        Path(checked.data_dir) if checked.data_dir else None,
        checked.transforms,
        # Ready sequences bring their own number, so what was only a default must not speak for the user here.
        checked.num_timesteps if checked.model == "torus" else experiment.num_timesteps,
        checked.validation_fraction,
    )
    if transforms is not None and trained_on is not None:
        wanted = replace(data, transforms=trained_on).frame_shape
        if wanted != data.frame_shape:
            raise UserError(
                f"expected transforms that give frames of {wanted[2]} channels, as in training, found "
                f"{', '.join(data.transforms)}, with {data.frame_shape[2]}; name others"
            )
    if checked.data_digest not in (None, data.source.digest):
        raise UserError(
            f"expected the data whose digest is {checked.data_digest} (data_digest) in '{checked.data}', found others; "
            f"put the former ones back, or train a new run without data_digest"
        )
    return data


def resolved_for(experiment: Experiment, data: SequenceData) -> Experiment:
    """A resolved experiment, with what its data decide. Raises UserError."""
    timesteps, transforms, digest = data.num_timesteps, data.transforms, data.source.digest
    return replace(experiment, num_timesteps=timesteps, transforms=transforms, data_digest=digest).resolved()


def renderer(experiment: Experiment) -> Callable[[Any, Any], Any]:
    """(tables, plan) -> frames (batch, time, height, width, channel) as the experiment observes them.

    Binarised or grey, in its precision.
    """

    def frames(tables: Any, plan: Any) -> Any:
        drawn = render(tables, plan, experiment.binarize)
        xp = array_namespace(drawn)
        return xp.astype(drawn, getattr(xp, experiment.precision))

    return frames


def load_program(path: Path) -> Program:
    """The `model` and `guide` that a user's file exports. Running it is running code. Raises UserError."""
    if not path.is_file():
        raise UserError(f"expected a program file at '{path}', found none")
    # A name of its own: a program may be called numpy.py, and dataclasses look for their module by its name.
    spec = importlib.util.spec_from_file_location(f"program {path.resolve()}", path)
    if spec is None or spec.loader is None:
        raise UserError(f"expected a Python file, found '{path}'")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except ModuleNotFoundError as error:
        del sys.modules[spec.name]
        raise UserError(
            f"expected the modules that the program '{path}' imports to be installed, and none to lie beside it, found "
            f"no module '{error.name}'; install it, or put what it has into the program"
        ) from error
    except (Exception, SystemExit) as error:
        del sys.modules[spec.name]
        raise UserError(
            f"expected a program in '{path}' that needs no file beside it, found that running it raises "
            f"{_raised(error, path)}; mend the program"
        ) from error
    for name in ("model", "guide"):
        if not callable(getattr(module, name, None)):
            raise UserError(f"expected '{path}' to define functions model(frames) and guide(frames), found no {name}")
    return Program(module.model, module.guide)


@contextmanager
def naming_the_program(experiment: Experiment) -> Iterator[None]:
    """What a user's own program raises when it first runs, as a sentence with the line."""
    try:
        yield
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        if experiment.program_file is None or is_of_memory(error):
            raise
        raise UserError(
            f"expected the program '{experiment.program_file}' to run on frames (batch, time, height, width, channel), "
            f"found {_raised(error, experiment.program_file)}; mend the program"
        ) from error


def _raised(error: BaseException, path: Path) -> str:
    """What went wrong in a program, with its last line that had a part in it."""
    if isinstance(error, SyntaxError) and error.filename and Path(error.filename).resolve() == path.resolve():
        where, first_line = f" at line {error.lineno}, '{(error.text or '').strip()}'", error.msg
    else:
        calls = traceback.extract_tb(error.__traceback__)
        own = [call for call in calls if Path(call.filename).resolve() == path.resolve()]
        where = f" at line {own[-1].lineno}, '{own[-1].line}'" if own else ""
        first_line = str(error).strip().partition("\n")[0]
    return type(error).__name__ + where + (f": {first_line}" if first_line else "")


def _check_is_the_same(what: str, path: Path, noted: str | None) -> None:
    """Raises UserError where the program or lattice of a run was edited since: its parameters are of another one."""
    if noted is not None and noted != digest(read(path) or b""):
        raise UserError(
            f"expected the {what} whose digest is {noted} ({what}_digest) in '{path}', found another; put the former "
            f"one back, or train a new run without {what}_digest"
        )


def _check_written_for(backend: str, path: Path) -> None:
    """Raises UserError where a file imports the other backend's host and not this one's."""
    try:
        tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return  # `load_program` says what is wrong
    imports = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    imports += [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    hosts, other = {name.partition(".")[0] for name in imports}, {"numpyro": "pyro", "pyro": "numpyro"}[backend]
    if other in hosts and backend not in hosts:
        raise UserError(
            f"expected a program for backend '{backend}' in '{path}', found that it imports {other}; give --backend "
            f"{other}"
        )


def _read_matrix(path: Path) -> np.ndarray:
    try:
        return np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise UserError(f"expected a lattice matrix at '{path}', found no such file") from None
    except OSError as error:
        raise UserError(f"expected a lattice matrix at '{path}', found: {error.strerror}; check the path") from None
    except (ValueError, EOFError):
        raise UserError(
            f"expected a matrix saved with numpy.save at '{path}', found no such file format; save it again"
        ) from None
