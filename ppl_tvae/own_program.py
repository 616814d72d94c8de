"""A user's own program: its file run with the run's seed, and what it raises as a sentence with the line."""

import ast
import importlib.util
import random
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from ppl_tvae.config import Experiment
from ppl_tvae.errors import UserError, is_of_memory
from ppl_tvae.program import Program

_LATTICE = "LATTICE"  # what a program calls its W, where it has one


def own_program(path: Path, backend: str, seed: int) -> Program:
    """What `load_program` gives, for a file that is written for "numpyro" or "pyro"; what it draws follows the seed."""
    _check_written_for(backend, path)
    with _seeded(seed, backend):  # what is drawn when the file runs, such as modules' weights
        return load_program(path)


def own_lattice(path: Path, backend: str, seed: int) -> Any:
    """What a user's file calls `LATTICE`, as `new` writes it; None where it has none. Raises UserError."""
    with _seeded(seed, backend):
        return getattr(_run(path), _LATTICE, None)


def names_a_lattice(path: Path) -> bool:
    """Whether a user's file has the word `LATTICE`, for which it does not have to run."""
    return path.is_file() and _LATTICE in path.read_text(errors="replace")


def load_program(path: Path) -> Program:
    """The `model` and `guide` that a user's file exports. Running it is running code. Raises UserError."""
    module = _run(path)
    for name in ("model", "guide"):
        if not callable(getattr(module, name, None)):
            raise UserError(f"expected '{path}' to define functions model(frames) and guide(frames), found no {name}")
    return Program(module.model, module.guide)


def _run(path: Path) -> ModuleType:
    """What a user's file defines. Raises UserError."""
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
            f"expected a program in '{path}' that runs as it stands, with no file beside it, found that running it "
            f"raises {_raised(error, path)}; mend the program"
        ) from error
    return module


@contextmanager
def naming_the_program(experiment: Experiment) -> Iterator[None]:
    """What a user's own program raises when it first runs, as a sentence with the line.

    Of a named one what NumPyro raises, which looks at the parameters of distributions as it is told to (`on_device`).
    """
    try:
        yield
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        if experiment.program_file is None and "got invalid" in str(error):
            raise UserError(
                f"expected settings with which distributions have numbers for parameters, found: "
                f"{str(error).partition(chr(10))[0]}; take smaller ones"
            ) from error
        if experiment.program_file is None or is_of_memory(error):
            raise
        raise UserError(
            f"expected the program '{experiment.program_file}' to run on frames (batch, time, height, width, channel), "
            f"found {_raised(error, experiment.program_file)}; mend the program{_hint(error)}"
        ) from error


def _hint(error: BaseException) -> str:
    """What shapes that do not fit together mostly come from."""
    of_shapes = any(word in str(error) for word in ("broadcast", "size of tensor", "Shape mismatch"))
    return ", and see that each distribution has its .to_event, for all dimensions but the plate's" if of_shapes else ""


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


@contextmanager
def _seeded(seed: int, backend: str) -> Iterator[None]:
    """The generators that a program's file may draw from begin with the seed, and go on as before afterwards."""
    of_python, of_numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 - a user's file may draw from it
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    try:
        if backend == "numpyro":
            yield
        else:
            torch = import_module("torch")
            on_gpu = torch.get_default_device().type == "cuda"
            with torch.random.fork_rng(devices=[torch.cuda.current_device()] if on_gpu else []):
                torch.manual_seed(seed)
                yield
    finally:
        random.setstate(of_python)
        np.random.set_state(of_numpy)  # noqa: NPY002


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
