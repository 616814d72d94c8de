"""Importance weights of whole sequences: log w = log p(x, latents) - log q(latents | x), latents drawn from the guide.

Frames of a sequence share latents, so a weight belongs to the sequence, never to a frame (Burda et al. 2016,
arXiv 1509.00519, for the bound made of them).
"""

from collections.abc import Callable, Mapping
from typing import Any

import pyro
import torch
from pyro.poutine import trace
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ppl_tvae.inference.pyro.tracing import (
    Trace,
    as_trace,
    frame_log_joint,
    latent_sites,
    log_joint,
    parameters_as,
    replayed,
    traces_at,
)
from ppl_tvae.program import Program

Latents = dict[str, Tensor]
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
    vectorised = True

    def draws(frames: Tensor, size: int) -> tuple[Latents, Tensor]:
        nonlocal vectorised
        if vectorised:
            try:
                return _vectorised_draws(program, frames, size, log_density)
            except (RuntimeError, NotImplementedError, ValueError):
                vectorised = False  # vmap has no rule for what the guide does; its own mistakes are raised below
        return _repeated_draws(program, frames, size, log_density)

    def some_particles(frames: Tensor, size: int) -> Tensor:
        latents, log_q = draws(frames, size)
        log_p = log_density(replayed(program.model, _repeated(frames, size), as_trace(latents)))
        return log_p.reshape(log_q.shape) - log_q

    @torch.no_grad()
    def all_particles(parameters: Mapping[str, Tensor], frames: Tensor) -> Tensor:
        sizes = [min(chunk, num_particles - start) for start in range(0, num_particles, chunk)]
        with parameters_as(parameters):
            return torch.cat([some_particles(frames, size) for size in sizes])

    return all_particles


def _vectorised_draws(
    program: Program, frames: Tensor, size: int, log_density: Callable[[Trace], Tensor]
) -> tuple[Latents, Tensor]:
    """Latents by site, (size * batch, ...), and their log densities (size, batch, ...), from one run of the guide.

    What does not depend on a draw, such as the encoders, is computed once for all particles. Raises RuntimeError for a
    guide that uses what torch.func.vmap has no rule for.
    """

    def one(_: Tensor) -> tuple[Latents, Tensor]:
        guide_trace = trace(program.guide).get_trace(frames)
        values = {name: site["value"] for name, site in latent_sites(guide_trace).items()}
        return values, log_density(guide_trace)

    # Validation looks at values, which vmap forbids; `check_program` has looked at the program already.
    with _OutOfPlaceDraws(), pyro.validation_enabled(False):
        latents, log_q = torch.func.vmap(one, randomness="different")(torch.zeros(size))
    return {name: value.flatten(0, 1) for name, value in latents.items()}, log_q


def _repeated_draws(
    program: Program, frames: Tensor, size: int, log_density: Callable[[Trace], Tensor]
) -> tuple[Latents, Tensor]:
    """As `_vectorised_draws`, for any guide: particles are further sequences of a larger batch."""
    guide_trace = trace(program.guide).get_trace(_repeated(frames, size))
    log_q = log_density(guide_trace)
    values = {name: site["value"] for name, site in latent_sites(guide_trace).items()}
    return values, log_q.reshape(size, frames.shape[0], *log_q.shape[1:])


def _repeated(frames: Tensor, size: int) -> Tensor:
    """(size * batch, ...): true to any program whose sequences are independent, and asks no more of its model."""
    return frames.expand(size, *frames.shape).reshape(-1, *frames.shape[1:])


class _OutOfPlaceDraws(TorchFunctionMode):
    """Within the context, torch's distributions draw into new tensors: vmap refuses draws in place."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is Tensor.normal_ and len(args) == 1 and not kwargs:
            return torch.randn_like(args[0])
        if func is Tensor.uniform_ and len(args) in (1, 3) and not kwargs:
            low, high = args[1:] or (0.0, 1.0)
            return low + (high - low) * torch.rand_like(args[0])
        return func(*args, **kwargs)


def log_weights_at(
    program: Program, parameters: Mapping[str, Tensor], frames: Tensor, latents: Mapping[str, Tensor]
) -> Tensor:
    """log p(x, latents) - log q(latents | x) at given latents, by site name, each (batch, ...): (batch,), nats."""
    with parameters_as(parameters):
        guide_trace, model_trace = traces_at(program, frames, latents)
        return log_joint(model_trace) - log_joint(guide_trace)
