"""Importance weights of whole sequences: log w = log p(x, latents) - log q(latents | x), latents drawn from the guide.

Frames of a sequence share latents, so a weight belongs to the sequence, never to a frame (Burda et al. 2016,
arXiv 1509.00519, for the bound made of them).
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from ppl_tvae.inference.pyro.tracing import log_joint, parameters_as, program_traces, traces_at
from ppl_tvae.program import Program

LogWeights = Callable[[Mapping[str, Tensor], Tensor], Tensor]


def log_weights(program: Program, num_particles: int, *, particles_per_chunk: int = 8) -> LogWeights:
    """A function (parameters, frames (batch, ...)) -> log weights (num_particles, batch), nats.

    Particles are drawn in chunks, so memory does not grow with their number.
    """

    def chunk_of_particles(frames: Tensor, size: int) -> Tensor:
        # Particles are further sequences of a larger batch: true of any program whose sequences are independent,
        # where torch.func.vmap refuses the in-place random draws of torch's distributions.
        repeated = frames.expand(size, *frames.shape).reshape(-1, *frames.shape[1:])
        guide_trace, model_trace = program_traces(program, repeated)
        return (log_joint(model_trace) - log_joint(guide_trace)).reshape(size, frames.shape[0])

    @torch.no_grad()
    def all_particles(parameters: Mapping[str, Tensor], frames: Tensor) -> Tensor:
        starts = range(0, num_particles, particles_per_chunk)
        sizes = [min(particles_per_chunk, num_particles - start) for start in starts]
        with parameters_as(parameters):
            return torch.cat([chunk_of_particles(frames, size) for size in sizes])

    return all_particles


def log_weights_at(
    program: Program, parameters: Mapping[str, Tensor], frames: Tensor, latents: Mapping[str, Tensor]
) -> Tensor:
    """log p(x, latents) - log q(latents | x) at given latents, by site name, each (batch, ...): (batch,), nats."""
    with parameters_as(parameters):
        guide_trace, model_trace = traces_at(program, frames, latents)
        return log_joint(model_trace) - log_joint(guide_trace)
