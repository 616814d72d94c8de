"""Stochastic variational inference in Pyro: steps of the host's programs, without a host sync per step.

Batches come in as small plans and are rendered to frames on the device; losses stay there until the chunk is done.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pyro
import torch
from torch import Tensor
from torch.distributions import transform_to

from ppl_tvae.inference.objective import ELBO as HELD_OUT
from ppl_tvae.inference.objective import Objective
from ppl_tvae.inference.optimization import Optimization, learning_rate_factor
from ppl_tvae.inference.pyro.checks import check_program
from ppl_tvae.inference.pyro.device import keep_freed_memory, to_device
from ppl_tvae.inference.pyro.objectives import OBJECTIVES
from ppl_tvae.inference.pyro.tracing import flat_name, program_traces
from ppl_tvae.program import Program

Arrays = dict[str, np.ndarray]


def sequence_loss(objective: Objective, program: Program, frames: Tensor, step: Any) -> Tensor:
    """Minus the mean of a bound over sequences, divided by the frames of a sequence. Nats per frame; goes down."""
    bounds = OBJECTIVES[objective.name](objective, program, frames, step)
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
    ) -> None:
        """render(tables, plan) -> frames, on the device; first_plan fixes the shapes of a batch."""
        keep_freed_memory()
        self._program, self._objective = program, objective
        self._render, self._tables = render, to_device(tables)
        self._evaluation_seed = int(np.random.SeedSequence([seed, 1]).generate_state(1)[0])
        torch.manual_seed(seed)
        frames = render(self._tables, to_device(first_plan))
        check_program(program, frames[:2])
        with pyro.get_param_store().scope() as self._store, torch.no_grad():
            program_traces(program, frames)
        self._unconstrained = list(self._store["params"].values())
        self._optimization = optimization
        self._optimizer = _optimizer(optimization, self._unconstrained)
        self._steps_done = 0

    def advance(self, plans: Any) -> np.ndarray:
        """Train on plans (steps, batch, ...); the loss of each step, nats per frame, (steps,). One host sync."""
        num_steps = len(plans[0])
        plans = to_device(plans)
        losses = torch.empty(num_steps)
        with pyro.get_param_store().scope(self._store):
            for index in range(num_steps):
                losses[index] = self._step(self._frames(plans, index))
        return losses.numpy(force=True)

    def held_out_loss(self, plans: Any) -> float:
        """Minus the mean ELBO over plans (batches, batch, ...), nats per frame, with the same noise at every call.

        It is the ELBO whatever objective is trained, so that runs can be compared by it.
        """
        plans = to_device(plans)
        with torch.random.fork_rng(), pyro.get_param_store().scope(self._store), torch.no_grad():
            torch.manual_seed(self._evaluation_seed)
            batches = (self._frames(plans, index) for index in range(len(plans[0])))
            losses = [sequence_loss(HELD_OUT, self._program, frames, 0) for frames in batches]
        return float(torch.stack(losses).mean())

    def parameters(self) -> Arrays:
        """Constrained values by flat name."""
        with torch.no_grad():
            return {
                flat_name(name): _to_numpy(transform_to(self._store["constraints"][name])(value))
                for name, value in self._store["params"].items()
            }

    def state(self) -> Arrays:
        """Everything exact resumption needs, by name."""
        arrays = {f"parameter.{name}": _to_numpy(value) for name, value in self._store["params"].items()}
        for index, slots in self._optimizer.state_dict()["state"].items():
            for slot, value in slots.items():
                arrays[f"optimizer.{index}.{slot}"] = _to_numpy(torch.as_tensor(value))
        arrays["steps_done"] = np.asarray(self._steps_done)
        arrays["random.cpu"] = _to_numpy(torch.get_rng_state())
        if torch.cuda.is_available():
            arrays["random.cuda"] = _to_numpy(torch.cuda.get_rng_state())
        return arrays

    def restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Take up a state that `state` returned, in this process or another."""
        with torch.no_grad():
            for name, value in self._store["params"].items():
                value.copy_(torch.from_numpy(arrays[f"parameter.{name}"].copy()))
        groups = self._optimizer.state_dict()["param_groups"]
        slots: dict[int, dict[str, Tensor]] = {}
        for key in (key for key in arrays if key.startswith("optimizer.")):
            _, index, slot = key.split(".")
            slots.setdefault(int(index), {})[slot] = torch.from_numpy(arrays[key].copy())
        self._optimizer.load_state_dict({"state": slots, "param_groups": groups})
        self._steps_done = int(arrays["steps_done"])
        torch.set_rng_state(torch.from_numpy(arrays["random.cpu"].copy()))
        if torch.cuda.is_available() and "random.cuda" in arrays:
            torch.cuda.set_rng_state(torch.from_numpy(arrays["random.cuda"].copy()))

    def snapshot(self) -> Any:
        """The present state, to go back to with `rewind`."""
        return self.state()

    def rewind(self, snapshot: Any) -> None:
        """Go back to a snapshot."""
        self.restore(snapshot)

    def _frames(self, plans: Any, index: int) -> Tensor:
        return self._render(self._tables, type(plans)(*(field[index] for field in plans)))

    def _step(self, frames: Tensor) -> Tensor:
        loss = self._backward(frames)
        if self._optimization.clip_norm:
            torch.nn.utils.clip_grad_norm_(self._unconstrained, self._optimization.clip_norm)
        factor = float(learning_rate_factor(self._optimization, np.asarray(self._steps_done)))
        self._optimizer.param_groups[0]["lr"] = self._optimization.learning_rate * factor
        self._optimizer.step()
        self._steps_done += 1
        return loss

    def _backward(self, frames: Tensor) -> Tensor:
        """The loss of a batch, and its gradient with the parameters."""
        self._optimizer.zero_grad(set_to_none=True)
        loss = sequence_loss(self._objective, self._program, frames, torch.full((), self._steps_done))
        loss.backward()
        return loss.detach()


def _optimizer(optimization: Optimization, parameters: list[Tensor]) -> torch.optim.Optimizer:
    if optimization.method == "adam":
        betas = (optimization.momentum, 0.999)
        rate, epsilon = optimization.learning_rate, optimization.adam_epsilon
        return torch.optim.Adam(parameters, lr=rate, betas=betas, eps=epsilon)
    return torch.optim.SGD(parameters, lr=optimization.learning_rate, momentum=optimization.momentum)


def _to_numpy(tensor: Tensor) -> np.ndarray:
    return tensor.detach().cpu().numpy().copy()
