"""The frames of training steps, rendered on the device from plans: on a GPU those of several steps at once.

Rendering is some seventy kernels, and on a GPU each of them takes hardly longer for 64 sequences than for 8
(docs/performance.md).
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from ppl_tvae.inference.pyro.device import to_device
from ppl_tvae.inference.pyro.graphs import runner_of

Render = Callable[[Any, Any], Tensor]

# Bytes of frames that a GPU renders at once, where a step has fewer: of the paper's MNIST sequences 198.
_AT_ONCE = 2**25


class Batches:
    """`frames` are those of the step at hand, (batch, S, height, width, channel); those of the first plan at first."""

    def __init__(self, render: Render, tables: Any, first_plan: Any) -> None:
        """render(tables, plan) -> frames, on the device; first_plan fixes the shapes of a batch."""
        self._render, self._tables = render, to_device(tables)
        self.frames = render(self._tables, to_device(first_plan))

    def prepare(self, plans: Any, index: int) -> None:
        """Take up the frames of a step, by its index in plans (steps, batch, ...), which are on the device.

        From one call to the next the index is one more, or 0 of other plans.
        """
        self.frames = self._render(self._tables, tree_map(lambda field: field[index], plans))


class BatchesAhead(Batches):
    """The same, rendered for several steps where the first of them begins; `frames` are always in the same memory."""

    def __init__(self, render: Render, tables: Any, first_plan: Any, may_record: bool) -> None:
        """may_record: whether the rendering is recorded as a graph, where there is a GPU."""
        super().__init__(render, tables, first_plan)
        self.frames = self.frames.clone()  # frames that are there already may be the tables' own
        self._num_steps = steps_at_once(self.frames)
        # Of all steps, one after the other.
        self._plans = tree_map(lambda field: torch.cat([field] * self._num_steps), to_device(first_plan))
        self._rendered = torch.cat([self.frames] * self._num_steps)
        self._runner = runner_of(self._render_all, dict, may_record)

    def prepare(self, plans: Any, index: int) -> None:
        """As of `Batches`."""
        place = index % self._num_steps
        if place == 0:
            for own, field in zip(self._plans, plans, strict=True):
                following = field[index : index + self._num_steps].flatten(0, 1)
                own[: len(following)].copy_(following)  # fewer at the end of plans: the rest is rendered in vain
            self._runner.run()
        self.frames.copy_(self._rendered.view(self._num_steps, *self.frames.shape)[place])

    def _render_all(self) -> None:
        self._rendered.copy_(self._render(self._tables, self._plans))


def steps_at_once(frames: Tensor) -> int:
    """For how many steps a GPU renders at once, by the frames of one; at least 1."""
    return max(1, _AT_ONCE // frames.nbytes)


def batches_of(render: Render, tables: Any, first_plan: Any, may_record: bool = True) -> Batches:
    """Those for the default device."""
    if torch.get_default_device().type == "cuda":
        return BatchesAhead(render, tables, first_plan, may_record)
    return Batches(render, tables, first_plan)
