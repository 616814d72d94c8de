"""Importance weights of whole sequences: log w = log p(x, latents) - log q(latents | x), latents drawn from the guide.

Frames of a sequence share latents, so a weight belongs to the sequence, never to a frame (Burda et al. 2016,
arXiv 1509.00519, for the bound made of them).
"""

from collections.abc import Callable, Iterator, Mapping

import pyro
import torch
from torch import Tensor

from ppl_tvae.inference.pyro.device import keep_freed_memory, return_freed_memory
from ppl_tvae.inference.pyro.particles import Latents, LogDensity, drawn, is_vectorisable, repeated
from ppl_tvae.inference.pyro.tracing import (
    as_trace,
    frame_log_joint,
    log_joint,
    parameters_as,
    replayed,
)
from ppl_tvae.program import Program

LogWeights = Callable[[Mapping[str, Tensor], Tensor], Tensor]

# Memory that is handed back has to be asked for again, which takes as long as some five draws; kept, it splinters.
_DRAWS_PER_RETURN = 128
_CHUNKS_PER_DRAW = 4  # latents are a hundredth of the pixels and hidden units that a chunk's decoder fills


def log_weights(program: Program, num_particles: int, *, particles_per_chunk: int = 8) -> LogWeights:
    """A function (parameters, frames (batch, ...)) -> log weights (num_particles, batch), nats.

    Particles are drawn in chunks, so memory does not grow with their number.
    """
    return _in_chunks(program, num_particles, particles_per_chunk, log_joint)


def frame_log_weights(program: Program, num_particles: int, *, particles_per_chunk: int = 8) -> LogWeights:
    """As `log_weights`, but per frame: (num_particles, batch, S). Weights of nothing where frames share latents.

    Only for `bounds.released_is`, the score of the authors' released code.
    """
    return _in_chunks(program, num_particles, particles_per_chunk, frame_log_joint)


def _in_chunks(program: Program, num_particles: int, chunk: int, log_density: LogDensity) -> LogWeights:
    vectorised: bool | None = None
    memory = _Memory()

    @torch.no_grad()
    def all_particles(parameters: Mapping[str, Tensor], frames: Tensor) -> Tensor:
        nonlocal vectorised
        # Validation looks at values, which vmap forbids; `check_program` has looked at the program already.
        with parameters_as(parameters), pyro.validation_enabled(False):
            if vectorised is None:  # tried on three particles of two sequences: three fit nowhere by broadcasting
                vectorised = is_vectorisable(lambda: _weights(program, frames[:2], 3, chunk, log_joint, True, memory))
            return _weights(program, frames, num_particles, chunk, log_density, vectorised, memory)

    return all_particles


class _Memory:
    """What a draw frees is kept for the next one, and handed back after so many of them, of whichever batches."""

    def __init__(self) -> None:
        keep_freed_memory()
        self._draws = 0

    def after(self, draws: int) -> None:
        """Called after so many more draws."""
        self._draws += draws
        if self._draws >= _DRAWS_PER_RETURN:
            return_freed_memory()
            self._draws = 0


def _weights(
    program: Program,
    frames: Tensor,
    num_particles: int,
    chunk: int,
    log_density: LogDensity,
    vectorised: bool,
    memory: _Memory,
) -> Tensor:
    pieces, weights = repeated(frames, min(chunk, num_particles)), []
    for latents, log_q in _draws(program, frames, num_particles, chunk, log_density, vectorised):
        model_trace = replayed(program.model, pieces[: log_q.shape[0] * log_q.shape[1]], as_trace(latents))
        weights.append(log_density(model_trace).reshape(log_q.shape) - log_q)
        memory.after(len(log_q))
    return torch.cat(weights)


def _draws(
    program: Program, frames: Tensor, num_particles: int, chunk: int, log_density: LogDensity, vectorised: bool
) -> Iterator[tuple[Latents, Tensor]]:
    """What `particles.drawn` gives, for at most `chunk` particles at a time.

    A guide that runs once for all its particles draws for several chunks.
    """
    at_once = _CHUNKS_PER_DRAW * chunk if vectorised else chunk
    for start in range(0, num_particles, at_once):
        size = min(at_once, num_particles - start)
        latents, log_q = drawn(program, frames, size, log_density, vectorised=vectorised)
        for first in range(0, size, chunk):
            last = min(first + chunk, size)
            rows = slice(first * len(frames), last * len(frames))
            some = latents if size <= chunk else {name: value[rows] for name, value in latents.items()}
            yield some, log_q[first:last]
