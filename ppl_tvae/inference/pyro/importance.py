"""Importance weights of whole sequences: log w = log p(x, latents) - log q(latents | x), latents drawn from the guide.

Frames of a sequence share latents, so a weight belongs to the sequence, never to a frame (Burda et al. 2016,
arXiv 1509.00519, for the bound made of them).
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from ppl_tvae.inference.pyro.tracing import (
    Trace,
    frame_log_joint,
    log_joint,
    parameters_as,
    program_traces,
    traces_at,
)
from ppl_tvae.program import Program

LogWeights = Callable[[Mapping[str, Tensor], Tensor], Tensor]


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


def _in_chunks(program: Program, num_particles: int, chunk: int, log_density: Callable[[Trace], Tensor]) -> LogWeights:
    def some_particles(frames: Tensor, size: int) -> Tensor:
        # Particles are further sequences of a larger batch: true of any program whose sequences are independent,
        # where torch.func.vmap refuses the in-place random draws of torch's distributions.
        repeated = frames.expand(size, *frames.shape).reshape(-1, *frames.shape[1:])
        guide_trace, model_trace = program_traces(program, repeated)
        values = log_density(model_trace) - log_density(guide_trace)
        return values.reshape(size, frames.shape[0], *values.shape[1:])

    @torch.no_grad()
    def all_particles(parameters: Mapping[str, Tensor], frames: Tensor) -> Tensor:
        sizes = [min(chunk, num_particles - start) for start in range(0, num_particles, chunk)]
        with parameters_as(parameters):
            return torch.cat([some_particles(frames, size) for size in sizes])

    return all_particles


def log_weights_at(
    program: Program, parameters: Mapping[str, Tensor], frames: Tensor, latents: Mapping[str, Tensor]
) -> Tensor:
    """log p(x, latents) - log q(latents | x) at given latents, by site name, each (batch, ...): (batch,), nats."""
    with parameters_as(parameters):
        guide_trace, model_trace = traces_at(program, frames, latents)
        return log_joint(model_trace) - log_joint(guide_trace)
