"""A training step on a GPU as a CUDA graph: recorded once, then replayed without Python between its kernels.

A small step is hundreds of kernels of microseconds each, and Python issues them more slowly than they run. A graph
repeats what the step did while it was recorded, on the same memory: what changes from step to step has to be a tensor
that is written before the replay, and nothing may wait for a value from the device. Random numbers are fresh at every
replay, since torch's generator tells each of them where in its stream it is.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pyro
import torch
from torch import Tensor

from ppl_tvae.inference.pyro.device import forked

Step = Callable[[], None]
Tensors = Callable[[], dict[str, Tensor]]

# Steps before the recording: the first makes the optimiser's slots and lets libraries choose their algorithms.
_WARM_UP = 3


def runner_of(step: Step, changed: Tensors, on_gpu: bool) -> "Runner":
    """How a step is to be run here: recorded where there is a GPU and the step allows it, else called each time.

    step: reads and writes tensors in place, and returns nothing. changed: the tensors that it changes, by name; those
    of the optimiser may appear with the first step, and count as zero before it. Trying the step leaves them and the
    random streams as they were.
    """
    if not on_gpu:
        return Runner(step, step, "")
    try:
        with _unchanged(changed):
            return Runner(step, recorded(step), "replayed as a CUDA graph")
    except RuntimeError as error:
        reason = str(error).strip().partition("\n")[0]
        return Runner(step, step, f"called one by one, since they cannot be recorded as a CUDA graph: {reason}")


class Runner:
    """`run()` takes a step; `description` says how, after the words 'steps are', where there was a choice: on a GPU.

    It holds the step: a graph does not hold the tensors that it reads.
    """

    def __init__(self, step: Step, run: Step, description: str) -> None:
        self.step, self.run, self.description = step, run, description

    @property
    def is_recorded(self) -> bool:
        """Whether `run` replays a recording."""
        return self.run is not self.step


def recorded(step: Step) -> Step:
    """The replay of a step on the GPU. Raises RuntimeError where it cannot be recorded.

    The step is first tried with torch's own check for what waits for the device: an error of the recording itself names
    no cause and leaves the generator of random numbers as if it were still being recorded.
    """
    with pyro.validation_enabled(False), _on_side_stream():
        for _ in range(_WARM_UP):
            step()
        with _waiting_is_an_error():
            step()
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
    try:
        with pyro.validation_enabled(False), torch.cuda.graph(graph):
            step()
    except RuntimeError:
        generator = torch.cuda.default_generators[torch.cuda.current_device()]
        generator.graphsafe_set_state(generator.clone_state())  # a clone is not being recorded
        torch.cuda.set_stream(stream)  # torch leaves its own where ending the recording fails
        raise
    return graph.replay


@contextmanager
def _unchanged(changed: Tensors) -> Iterator[None]:
    before = copied(changed)
    try:
        with forked():
            yield
    finally:
        put_back(changed, before)


def copied(changed: Tensors) -> dict[str, Tensor]:
    """What `put_back` takes: copies of the tensors that a step changes, on their device."""
    return {name: tensor.detach().clone() for name, tensor in changed().items()}


@torch.no_grad()
def put_back(changed: Tensors, before: dict[str, Tensor]) -> None:
    """The tensors that a step changes as they were, in place; those that were not there yet are zero."""
    for name, tensor in changed().items():
        tensor.copy_(before[name]) if name in before else tensor.zero_()


@contextmanager
def _on_side_stream() -> Iterator[None]:
    """As torch asks for before a recording: work of the default stream must not be in it."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    try:
        with torch.cuda.stream(stream):
            yield
    finally:  # also after an error: what is put back next must not be overwritten by what is still running
        torch.cuda.current_stream().wait_stream(stream)


@contextmanager
def _waiting_is_an_error() -> Iterator[None]:
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Synchronization debug mode is a prototype")
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)
