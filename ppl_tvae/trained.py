"""A trained run made ready to be asked, in its own backend or the other one."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import NamedTuple

from ppl_tvae import catalogue
from ppl_tvae.assembly import assemble, renderer
from ppl_tvae.config import DEVICES
from ppl_tvae.data import SequenceData
from ppl_tvae.errors import UserError, unknown_name
from ppl_tvae.inference.interfaces import Evaluator
from ppl_tvae.runs import Arrays, Run


def check_place(backend: str | None, device: str) -> None:
    """Raises UserError for a backend, where one is given, or a device that there is not."""
    if backend is not None and backend not in catalogue.BACKENDS:
        raise unknown_name("backend", backend, catalogue.BACKENDS)
    if device not in DEVICES:
        raise unknown_name("device", device, DEVICES)


class Asked(NamedTuple):
    """A trained run that is asked about sequences of a split of its data.

    seed: of its draws. backend: the one that answers. parameters: the digest of those that it has. evaluator: the
    backend's Evaluator.
    """

    run: Run
    data: SequenceData
    split: str
    seed: int
    backend: str
    parameters: str
    evaluator: Evaluator


@contextmanager
def asking(run: Run, data: SequenceData, split: str, seed: int, backend: str | None, device: str) -> Iterator[Asked]:
    """The run with its best parameters, ready to be asked, in its own backend or the other one. Raises UserError."""
    parameters, digest = run.parameters_and_digest()
    with evaluator(run, data, backend, device, seed, parameters) as ready:
        yield Asked(run, data, split, seed, backend or run.experiment.backend, digest, ready)


@contextmanager
def evaluator(
    run: Run, data: SequenceData, backend: str | None, device: str, seed: int, parameters: Arrays | None = None
) -> Iterator[Evaluator]:
    """The run's program, in its own backend or the other one; parameters: None for its best. Raises UserError."""
    name = backend or run.experiment.backend
    check_place(name, device)
    if run.experiment.program_file is not None and name != run.experiment.backend:
        own = run.experiment.backend
        raise UserError(
            f"expected backend '{own}', for which the run's own program is written, found '{name}'; leave it out"
        )
    modules = [import_module(f"ppl_tvae.inference.{name}.{part}") for part in ("device", "evaluator")]
    # Bounds in whole float32 products, however the run was trained: what is reported is not rounded twice.
    with modules[0].on_device(device, run.experiment.precision, "float32"):
        yield modules[1].Evaluator(
            assemble(run.experiment, name), parameters or run.parameters(), renderer(run.experiment), data.tables,
            data.test_plan(1), run.experiment.precision, seed,
        )  # fmt: skip
