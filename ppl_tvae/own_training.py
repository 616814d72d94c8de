"""Training by a loop of the user's own, such as the host's SVI: its program, its frames, a run of what it found."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from ppl_tvae.assembly import assemble, check_own_files, data_of, renderer, resolved_for, with_own_files_noted
from ppl_tvae.config import OF_TRAINING, Experiment
from ppl_tvae.data import check_split
from ppl_tvae.errors import UserError, check_count, check_is
from ppl_tvae.inference.sites import ParameterSpace
from ppl_tvae.inspection import parameter_spaces
from ppl_tvae.program import Program
from ppl_tvae.runs import Run, check_new, create_run

_PLANS_AT_ONCE = 64


class OwnTraining:
    """What a loop of the user's own needs of an experiment, and what makes its parameters a run like any other.

        own = ppl_tvae.OwnTraining(ppl_tvae.Experiment(model="my_tvae.py", data="digits"))
        model, guide = own.program
        ...  # for each of own.batches(), a step of the host's SVI
        run = own.save_run("runs/mine", svi.get_params(state), trained_by="SVI with Trace_ELBO, 2,000 steps")
        ppl_tvae.evaluate(run, estimators="ais")

    experiment: the experiment, resolved with what its data decide; program and W are those that lie in their files now.
    How it is trained is the loop's alone, so settings that only `ppl_tvae.train` follows (steps, optimizer, ...) are
    refused.
    """

    def __init__(self, experiment: Experiment) -> None:
        """Opens the data. Raises UserError."""
        check_is("experiment", experiment, Experiment)
        if given := [name for name in OF_TRAINING if getattr(experiment, name) != getattr(Experiment(), name)]:
            raise UserError(
                f"expected no settings that only ppl_tvae.train follows, found {', '.join(given)}; leave them out (of "
                f"a run's experiment, name those that you want in a new one)"
            )
        if experiment.trained_by is None:
            experiment = replace(experiment, trained_by="a loop of its own")
        self._data = data_of(experiment)
        self.experiment = with_own_files_noted(resolved_for(experiment, self._data))

    @cached_property
    def program(self) -> Program:
        """The model and the guide of the experiment's backend, functions of frames.

        One of the user's own is looked at first, as before a training. Raises UserError with what is wrong with it.
        """
        _ = self._parameters
        return assemble(self.experiment, self.experiment.backend)

    def batches(self, first_step: int = 0) -> Iterator[np.ndarray]:
        """What `train` would see at each step, without end: frames (batch, time, height, width, channel), as observed.

        In the experiment's precision, in [0, 1]; a function of its seed and batch_size and of the step. Where pixels
        are observed as zeros and ones, they are drawn anew in each. Raises UserError.
        """
        check_count("first_step", first_step, least=0)
        return self._rendered(first_step)

    def sequences(self, split: str = "test", limit: int = 200) -> np.ndarray:
        """The first fixed sequences of a split, as observed: (sequences, time, height, width, channel).

        Of "test" those that `evaluate` takes, in its order; fewer than the limit where there are no more. In the
        experiment's precision, in [0, 1]. Raises UserError.
        """
        check_split(split)
        check_count("limit", limit)
        return np.asarray(renderer(self.experiment)(self._data.tables, self._data.plan(split, limit)))

    def save_run(self, out: Path | str, parameters: Any, *, trained_by: str | None = None) -> Run:
        """A new run directory of the loop's parameters, for all that can be asked of a trained run.

        parameters: constrained values by name, as NumPyro's `svi.get_params(state)` or Pyro's `get_param_store()` has
        them, or by flat name, as `Run.parameters` gives them. trained_by: a line on the loop, which the run keeps; else
        the experiment's. Raises UserError, before anything is written, for values that are missing, left over, of
        another shape, not finite or beyond their constraint, and where program or W have been edited meanwhile.
        """
        check_new(Path(out))
        experiment = self.experiment if trained_by is None else replace(self.experiment, trained_by=trained_by)
        experiment = experiment.resolved()
        values = _flat(experiment, parameters)
        _check_are_of(self._parameters, values, experiment.precision)
        check_own_files(experiment)
        run = create_run(Path(out), experiment)
        run.save_parameters(values)
        return run

    @cached_property
    def _parameters(self) -> dict[str, ParameterSpace]:
        return parameter_spaces(self.experiment, self._data)

    def _rendered(self, step: int) -> Iterator[np.ndarray]:
        draw, experiment = renderer(self.experiment), self.experiment
        while True:
            plans = self._data.train_plans(experiment.seed, step, _PLANS_AT_ONCE, experiment.batch_size)
            for index in range(_PLANS_AT_ONCE):
                yield draw(self._data.tables, plans.at(index))
            step += _PLANS_AT_ONCE


def _flat(experiment: Experiment, parameters: Any) -> dict[str, np.ndarray]:
    """By flat name, in the experiment's precision. Raises UserError where these are no numbers by name."""
    tracing = import_module(f"ppl_tvae.inference.{experiment.backend}.tracing")
    try:
        flat = {name: np.asarray(value) for name, value in tracing.flat_parameters(dict(parameters.items())).items()}
    except UserError:
        raise
    except (AttributeError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(
            f"expected parameters as arrays by name, such as those of the parameter store of '{experiment.backend}', "
            f"found {type(parameters).__name__}: {error}"
        ) from error
    for name, value in flat.items():
        if value.dtype.kind in "bcOSU":
            raise UserError(f"expected real numbers for the parameter '{name}', found {value.dtype}")
    with np.errstate(over="ignore"):  # is told as what is not finite
        return {name: value.astype(experiment.precision) for name, value in flat.items()}


def _check_are_of(spaces: Mapping[str, ParameterSpace], values: Mapping[str, np.ndarray], precision: str) -> None:
    """Raises UserError unless these are all the parameters of a program, each within its space."""
    for name in dict.fromkeys([*spaces, *values]):
        wanted = f"of shape {spaces[name].shape}" if name in spaces else "nowhere"
        found = f"of shape {values[name].shape}" if name in values else "nowhere"
        if wanted != found:
            raise UserError(
                f"expected '{name}' {wanted} among the parameters, as in the program, found it {found}; ppl-tvae check "
                f"prints all that a program has"
            )
        if not np.isfinite(values[name]).all():
            raise UserError(f"expected values of the parameter '{name}' that are finite in {precision}, found others")
        if not spaces[name].contains(values[name]):
            raise UserError(
                f"expected values of the parameter '{name}' within its constraint, {spaces[name].constraint}, found "
                f"others; give constrained values, as svi.get_params(state) or pyro.get_param_store() have them"
            )
