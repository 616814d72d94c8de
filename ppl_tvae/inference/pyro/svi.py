"""Stochastic variational inference in Pyro: steps of the host's programs, without a host sync per step.

Batches come in as small plans and are rendered to frames on the device (`batches.py`); losses stay there until the
chunk is done. A step reads its frames, number and learning rate from tensors that are written before it, so that on a
GPU it can be recorded as a graph (`graphs.py`).
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pyro
import torch
from torch import Tensor
from torch.distributions import transform_to
from torch.utils._pytree import tree_map

from ppl_tvae.errors import UserError
from ppl_tvae.inference.objective import ELBO as HELD_OUT
from ppl_tvae.inference.objective import Objective
from ppl_tvae.inference.optimization import Optimization, learning_rate_factor
from ppl_tvae.inference.pyro.batches import batches_of
from ppl_tvae.inference.pyro.checks import check_program
from ppl_tvae.inference.pyro.device import forked, keep_freed_memory, products_in_bfloat16, to_device
from ppl_tvae.inference.pyro.graphs import Runner, copied, put_back, runner_of
from ppl_tvae.inference.pyro.objectives import OBJECTIVES, is_vectorised
from ppl_tvae.inference.pyro.tracing import flat_parameters, program_traces
from ppl_tvae.program import Program

Arrays = dict[str, np.ndarray]


def sequence_loss(
    objective: Objective, program: Program, frames: Tensor, step: Any, vectorised: bool = False
) -> Tensor:
    """Minus the mean of a bound over sequences, divided by the frames of a sequence. Nats per frame; goes down."""
    bounds = OBJECTIVES[objective.name](objective, program, frames, step, vectorised)
    return -torch.mean(bounds.expand(frames.shape[:1])) / frames.shape[1]


class Trainer:
    """Holds the state of a run: parameters, optimiser, random stream. `advance` takes it through a chunk of steps."""

    def __init__(
        self,
        program: Program,
        objective: Objective,
        optimization: Optimization,
        render: Callable[[Any, Any], Tensor],
        tables: Any,
        first_plan: Any,
        seed: int,
        *,
        likelihood: str | None = "",
        may_record: bool = True,
    ) -> None:
        """render(tables, plan) -> frames, on the device; first_plan fixes the shapes of a batch.

        likelihood: what the site "x" is said to be, which `check_program` holds against the program; None for a program
        that is known to be right, at which it does not look. Raises UserError with what is wrong with the program.
        may_record: whether steps on a GPU are recorded as a graph where that is possible.
        """
        keep_freed_memory()
        self._program, self._objective = program, objective
        self._render, self._tables = render, to_device(tables)
        self._evaluation_seed = int(np.random.SeedSequence([seed, 1]).generate_state(1)[0])
        torch.manual_seed(seed)
        self._batches = batches_of(render, self._tables, first_plan, may_record)
        frames = self._batches.frames
        if likelihood is not None:
            check_program(program, frames, likelihood)
        with pyro.get_param_store().scope() as self._store, torch.no_grad():
            program_traces(program, frames)
            self._vectorised = is_vectorised(objective, program, frames)
        self._unconstrained = list(self._store["params"].values())
        if not self._unconstrained:
            raise UserError(
                "expected a program with parameters, without which torch's optimisers do not begin, found none; make "
                "one of its numbers a pyro.param"
            )
        self._optimization = optimization
        self._on_gpu, self._products = frames.is_cuda, products_in_bfloat16()
        self._optimizer = _optimizer(optimization, self._unconstrained, self._on_gpu)
        self._loss, self._step_number = torch.zeros(()), torch.zeros((), dtype=torch.int64)
        self._steps_done, self._may_record = 0, may_record
        self._runner: Runner | None = None
        self._evaluation: tuple[Any, Tensor, Runner] | None = None

    def advance(self, plans: Any) -> np.ndarray:
        """Train on plans (steps, batch, ...); the loss of each step, nats per frame, (steps,). One host sync."""
        num_steps = len(plans[0])
        plans = to_device(plans)
        losses = torch.empty(num_steps)
        with pyro.get_param_store().scope(self._store):
            for index in range(num_steps):
                self._prepare(plans, index)
                self._run_step()
                losses[index] = self._loss
                self._steps_done += 1
        return losses.numpy(force=True)

    @property
    def execution(self) -> str:
        """How steps are run on a GPU or in bfloat16, after the words 'steps are'; else, and before the first, empty."""
        return (self._runner.description or self._products) if self._runner else ""

    def held_out_loss(self, plans: Any) -> float:
        """Minus the mean ELBO over plans (batches, batch, ...), nats per frame, with the same noise at every call.

        It is the ELBO whatever objective is trained, so that runs can be compared by it.
        """
        plans = to_device(plans)
        with forked(), pyro.get_param_store().scope(self._store), torch.no_grad():
            plan, loss, runner = self._evaluation_of(plans)
            torch.manual_seed(self._evaluation_seed)
            losses = torch.empty(len(plans[0]))
            for index in range(len(losses)):
                for own, field in zip(plan, plans, strict=True):
                    own.copy_(field[index])
                runner.run()
                losses[index] = loss
        return float(losses.mean())

    def parameters(self) -> Arrays:
        """Constrained values by flat name."""
        with torch.no_grad():
            constraints = self._store["constraints"]
            return flat_parameters(
                {name: transform_to(constraints[name])(value) for name, value in self._store["params"].items()}
            )

    def state(self) -> Arrays:
        """Everything exact resumption needs, by name."""
        arrays = {f"parameter.{name}": _to_numpy(value) for name, value in self._store["params"].items()}
        names = list(self._store["params"])
        for index, slots in self._optimizer.state_dict()["state"].items():
            for slot, value in slots.items():
                arrays[f"optimizer.{names[index]}.{slot}"] = _to_numpy(torch.as_tensor(value))
        arrays["steps_done"] = np.asarray(self._steps_done)
        arrays["random.cpu"] = _to_numpy(torch.get_rng_state())
        if self._on_gpu and torch.cuda.is_available():
            arrays["random.cuda"] = _to_numpy(torch.cuda.get_rng_state())
        return arrays

    def restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Take up a state that `state` returned, in this process or another."""
        with torch.no_grad():
            for name, value in self._store["params"].items():
                value.copy_(torch.from_numpy(arrays[f"parameter.{name}"].copy()))
        groups = self._optimizer.state_dict()["param_groups"]
        numbers = {name: number for number, name in enumerate(self._store["params"])}
        slots: dict[int, dict[str, Tensor]] = {}
        for key in (key for key in arrays if key.startswith("optimizer.")):
            name, slot = key.removeprefix("optimizer.").rsplit(".", 1)
            slots.setdefault(numbers[name], {})[slot] = torch.from_numpy(arrays[key].copy())
        self._optimizer.load_state_dict({"state": slots, "param_groups": groups})
        self._runner = None  # the optimiser has new tensors, and a recording writes to the old ones
        self._steps_done = int(arrays["steps_done"])
        torch.set_rng_state(torch.from_numpy(arrays["random.cpu"].copy()))
        if self._on_gpu and torch.cuda.is_available() and "random.cuda" in arrays:
            torch.cuda.set_rng_state(torch.from_numpy(arrays["random.cuda"].copy()))

    def snapshot(self) -> Any:
        """The present state, to go back to with `rewind`; it stays on the device."""
        streams = torch.get_rng_state(), torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None
        return copied(self._changed_by_a_step), streams, self._steps_done

    def rewind(self, snapshot: Any) -> None:
        """Go back to a snapshot, in place, so that what is recorded stays good."""
        before, (of_cpu, of_gpu), self._steps_done = snapshot
        put_back(self._changed_by_a_step, before)
        torch.set_rng_state(of_cpu)
        if of_gpu is not None:
            torch.cuda.set_rng_state(of_gpu)

    def _evaluation_of(self, plans: Any) -> tuple[Any, Tensor, Runner]:
        """The plan that is evaluated next, where its loss is found, and what evaluates it; the same at every call."""
        shapes = [field.shape[1:] for field in plans]
        if self._evaluation is None or shapes != [field.shape for field in self._evaluation[0]]:
            plan, loss = tree_map(lambda field: field[0].clone(), plans), torch.zeros(())

            def evaluate() -> None:
                loss.copy_(sequence_loss(HELD_OUT, self._program, self._render(self._tables, plan), 0))

            self._evaluation = plan, loss, runner_of(evaluate, dict, self._on_gpu and self._may_record)
            if not self._evaluation[2].is_recorded and self._runner and self._runner.is_recorded:
                self._runner = None  # as in `_run_step`
        return self._evaluation

    def _prepare(self, plans: Any, index: int) -> None:
        """Write what the next step reads."""
        self._batches.prepare(plans, index)
        self._step_number.fill_(self._steps_done)
        factor = float(learning_rate_factor(self._optimization, np.asarray(self._steps_done)))
        _set_learning_rate(self._optimizer, self._optimization.learning_rate * factor)

    def _run_step(self) -> None:
        if self._runner is None:
            self._runner = runner_of(self._step, self._changed_by_a_step, self._on_gpu and self._may_record)
            # A recording that fails leaves torch another generator, which one that is there already does not draw from.
            if not self._runner.is_recorded and self._evaluation and self._evaluation[2].is_recorded:
                self._evaluation = None
        self._runner.run()

    def _step(self) -> None:
        self._backward()
        if self._optimization.clip_norm:
            torch.nn.utils.clip_grad_norm_(self._unconstrained, self._optimization.clip_norm)
        self._optimizer.step()

    def _backward(self) -> None:
        """The loss of the frames at hand, in its place, and its gradient with the parameters."""
        self._optimizer.zero_grad(set_to_none=True)
        frames, step = self._batches.frames, self._step_number
        loss = sequence_loss(self._objective, self._program, frames, step, self._vectorised)
        loss.backward()
        self._loss.copy_(loss.detach())

    def _changed_by_a_step(self) -> dict[str, Tensor]:
        parameters = {f"parameter {index}": value for index, value in enumerate(self._unconstrained)}
        for index, slots in self._optimizer.state_dict()["state"].items():
            parameters |= {f"{slot} {index}": value for slot, value in slots.items() if isinstance(value, Tensor)}
        return parameters


def _optimizer(optimization: Optimization, parameters: list[Tensor], on_gpu: bool) -> torch.optim.Optimizer:
    """An update is one pass over memory as it lies, which the host's store keeps without gaps.

    On a GPU it reads its rate there, as a recorded step needs it: a float32, always.
    """
    rate: Any = torch.tensor(optimization.learning_rate, dtype=torch.float32) if on_gpu else optimization.learning_rate
    if optimization.method == "adam":
        betas, epsilon = (optimization.momentum, 0.999), optimization.adam_epsilon
        return torch.optim.Adam(parameters, lr=rate, betas=betas, eps=epsilon, fused=True, capturable=on_gpu)
    return torch.optim.SGD(parameters, lr=rate, momentum=optimization.momentum, fused=True)


def _set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    group = optimizer.param_groups[0]
    if isinstance(group["lr"], Tensor):
        group["lr"].fill_(rate)
    else:
        group["lr"] = rate


def _to_numpy(tensor: Tensor) -> np.ndarray:
    return tensor.detach().cpu().numpy().copy()
