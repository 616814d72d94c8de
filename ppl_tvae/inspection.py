"""Looking at a program before it is trained: what is wrong with it, a table of its sites, its graph."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from ppl_tvae.assembly import assemble, data_of, renderer, resolved_for
from ppl_tvae.config import Experiment
from ppl_tvae.data import SequenceData
from ppl_tvae.errors import UserError
from ppl_tvae.files import write
from ppl_tvae.inference.sites import ParameterSpace
from ppl_tvae.own_program import naming_the_program
from ppl_tvae.program import Program
from ppl_tvae.tables import aligned


def sites(experiment: Experiment) -> list[dict[str, Any]]:
    """A row for each site of the guide and of the model, after all that training checks of a program first.

    Keys: part, site, kind (latent, observed, deterministic, parameter), distribution, batch_shape, event_shape (of a
    parameter and of what is deterministic: its shape). The program runs on two sequences of the experiment's data.
    Raises UserError with what is wrong.
    """
    with _on_two_sequences(*_with_data(experiment)) as (checks, program, frames):
        return checks.site_table(program, frames)


def parameter_spaces(experiment: Experiment, data: SequenceData) -> dict[str, ParameterSpace]:
    """Where each parameter of a resolved experiment's program lies, by flat name.

    A program of the user's own is looked at before, as in `sites`. Raises UserError with what is wrong.
    """
    own = experiment.program_file is not None
    with _on_two_sequences(experiment, data, look=own) as (checks, program, frames):
        spaces: dict[str, ParameterSpace] = checks.parameter_spaces(program, frames)
    return spaces


def draw_graph(experiment: Experiment, path: Path) -> None:
    """The graphical model of a program as the host draws it: Graphviz source (.dot, .gv), or a picture by its suffix.

    Raises UserError with what is wrong with the program, or where Graphviz is missing.
    """
    try:
        import graphviz
    except ImportError:
        raise UserError(
            "expected the package graphviz for drawing a model, found none; install it: pip install 'ppl-tvae[graph]'"
        ) from None
    with _on_two_sequences(*_with_data(experiment)) as (checks, program, frames):
        graph = checks.graph(program, frames)
    if path.suffix in (".dot", ".gv"):
        write(path, graph.source.encode())
        return
    try:
        picture = graph.pipe(format=path.suffix[1:])
    except graphviz.ExecutableNotFound:
        raise UserError(
            f"expected Graphviz's program 'dot' for a picture such as '{path}', found none; install Graphviz, or "
            f"name a file that ends in .dot, which needs none"
        ) from None
    except (ValueError, graphviz.CalledProcessError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise UserError(f"expected the name of a picture or a .dot file, found '{path}': {reason}") from None
    write(path, picture)


def as_text(rows: Sequence[dict[str, Any]]) -> str:
    """The rows of `sites` as a table for people."""
    columns = ("part", "site", "kind", "distribution", "batch_shape", "event_shape")
    cells = [[_shape(row[column]) if "shape" in column else row[column] for column in columns] for row in rows]
    return aligned([[column.replace("_", " ") for column in columns], *cells], numbers=False)


def _shape(sizes: Sequence[int]) -> str:
    return " ".join(map(str, sizes)) or "-"


def _with_data(experiment: Experiment) -> tuple[Experiment, SequenceData]:
    data = data_of(experiment)
    return resolved_for(experiment, data), data


@contextmanager
def _on_two_sequences(
    experiment: Experiment, data: SequenceData, look: bool = True
) -> Iterator[tuple[Any, Program, Any]]:
    """The backend's checks, the program, which has passed them where it is looked at, and frames for it."""
    checks = import_module(f"ppl_tvae.inference.{experiment.backend}.checks")
    device = import_module(f"ppl_tvae.inference.{experiment.backend}.device")
    with device.on_device(experiment.device, experiment.precision, experiment.matmul):
        program = assemble(experiment, experiment.backend)
        plan = data.train_plans(experiment.seed, 0, 1, 2).at(0)
        frames = renderer(experiment)(device.to_device(data.tables), device.to_device(plan))
        with naming_the_program(experiment):
            if look:
                checks.check_program(program, frames, experiment.likelihood)
            yield checks, program, frames
