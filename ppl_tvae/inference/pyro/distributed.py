"""Each batch shared by several processes, one to a device, as torchrun starts them: beside the trainer of `svi.py`.

Rank 0 alone has the loop and the run directory. The others obey: they take the steps that rank 0 takes, each with its
own rows of the batch, and wait. torch's DistributedDataParallel wraps an nn.Module; a Pyro program is a function whose
parameters live in the param store, so gradients are averaged here, in one all_reduce of one flat bucket.

The noise of a step follows from (seed, rank, step). So a run is a function of its experiment and the number of
processes, resumed or not; with another number it has other draws from the same distribution.
"""

import atexit
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from importlib import import_module
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils._pytree import tree_map

from ppl_tvae.errors import UserError
from ppl_tvae.inference.objective import Objective
from ppl_tvae.inference.optimization import Optimization
from ppl_tvae.inference.pyro.svi import Trainer
from ppl_tvae.program import Program

# Others wait for as long as rank 0 evaluates or writes; where it has died, their connection ends at once.
_PATIENCE = timedelta(days=1)


class Ranks:
    """The processes of a torchrun, and whether those beside rank 0 are waiting for a word of it."""

    def __init__(self) -> None:
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self.others_wait = False

    def tell(self, word: Any) -> None:
        """From rank 0 to all others."""
        dist.broadcast_object_list([word], src=0)

    def hear(self) -> Any:
        """What rank 0 told."""
        words = [None]
        dist.broadcast_object_list(words, src=0)
        return words[0]

    @contextmanager
    def command(self, name: str, argument: Any) -> Iterator[None]:
        """Rank 0 has the others do something, and does the same within the context."""
        self.others_wait = False
        self.tell((name, argument))
        yield
        self.others_wait = True

    def own_rows(self, plans: Any) -> Any:
        """Of plans (steps, batch, ...) the rows of this rank: (steps, batch / size, ...)."""
        size = plans[0].shape[1] // self.size
        return tree_map(lambda field: field[:, self.rank * size : (self.rank + 1) * size], plans)

    def average(self, tensors: list[Tensor]) -> None:
        """Replace each tensor by its mean over ranks."""
        bucket = torch.cat([tensor.reshape(-1) for tensor in tensors])
        dist.all_reduce(bucket)
        bucket /= self.size
        for tensor, mean in zip(tensors, bucket.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(mean.view_as(tensor))


@contextmanager
def joined() -> Iterator[Ranks]:
    """Within the context this process is one of those that torchrun started; rank 0 lets the others go at its end."""
    _connect()
    ranks = Ranks()
    try:
        yield ranks
    finally:
        # Where rank 0 failed in the midst of a step nobody would hear it; then torchrun ends the others.
        if ranks.others_wait:
            ranks.tell(None)


@cache
def _connect() -> None:
    """Once in a process, and until it ends: torch cannot leave a group and come back to it.

    The group's threads must end before the interpreter does: one that is still dropping a tensor then aborts the
    process. Leaving the group joins them only if nothing else holds it, and torch._dynamo, which optimisers import,
    would take hold of a group that is there when it is imported. So it is imported first.
    """
    import_module("torch._dynamo")
    if _local_rank() < torch.cuda.device_count():
        torch.cuda.set_device(_local_rank())
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=_PATIENCE)
    atexit.register(dist.destroy_process_group)


def _local_rank() -> int:
    return int(os.environ["LOCAL_RANK"])


class DistributedTrainer(Trainer):
    """A trainer with its rows of each batch. On rank 0 it is used as any other; on the others it obeys."""

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
        ranks: Ranks,
    ) -> None:
        """The batch is a multiple of ranks.size; the rest as in `svi.Trainer`. Raises UserError for want of a GPU."""
        if torch.get_default_device().type == "cuda" and _local_rank() >= torch.cuda.device_count():
            raise UserError(
                f"expected a GPU for each process, found {torch.cuda.device_count()} on this host for process "
                f"{_local_rank() + 1}; lower --nproc-per-node, or take --device cpu"
            )
        own = ranks.own_rows(tree_map(lambda field: field[None], first_plan))
        own_first = tree_map(lambda field: field[0], own)
        # Processes that meet in each step are not recorded as a graph.
        super().__init__(
            program, objective, optimization, render, tables, own_first, seed, likelihood=likelihood, may_record=False
        )
        self._ranks, self._seed = ranks, seed
        if ranks.rank == 0:
            self.restore(self.state())  # whatever else the others may have begun with

    def obey(self) -> None:
        """Do what rank 0 does until it lets go. For all ranks but 0."""
        while (word := self._ranks.hear()) is not None:
            name, argument = word
            {"advance": self._advance_rows, "restore": super().restore}[name](argument)

    def advance(self, plans: Any) -> np.ndarray:
        """As in `svi.Trainer`, on every rank; the loss of each step is the mean over the whole batch."""
        with self._ranks.command("advance", plans):
            return self._advance_rows(plans)

    def restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        """As in `svi.Trainer`, on every rank."""
        with self._ranks.command("restore", dict(arrays)):
            super().restore(arrays)

    def snapshot(self) -> Any:
        """The present state, which every rank goes back to."""
        return self.state()

    def rewind(self, snapshot: Any) -> None:
        """Go back to a snapshot, on every rank."""
        self.restore(snapshot)

    def _advance_rows(self, plans: Any) -> np.ndarray:
        losses = torch.as_tensor(super().advance(self._ranks.own_rows(plans)), device=torch.get_default_device())
        self._ranks.average([losses])
        return losses.numpy(force=True)

    def _prepare(self, plans: Any, index: int) -> None:
        super()._prepare(plans, index)
        torch.manual_seed(noise_seed(self._seed, self._ranks.rank, self._steps_done))

    def _backward(self) -> None:
        super()._backward()
        self._ranks.average([value.grad for value in self._unconstrained if value.grad is not None])


def noise_seed(seed: int, rank: int, step: int) -> int:
    """The seed of the draws of a rank in a step."""
    return int(np.random.SeedSequence([seed, rank, step]).generate_state(1, np.uint64)[0] >> 1)
