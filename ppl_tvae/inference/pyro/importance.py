"""Importance weights of whole sequences: log w = log p(x, latents) - log q(latents | x), latents drawn from the guide.

Frames of a sequence share latents, so a weight belongs to the sequence, never to a frame (Burda et al. 2016,
arXiv 1509.00519, for the bound made of them).
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pyro
import torch
from pyro.poutine import trace
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ppl_tvae.inference.pyro.device import return_freed_memory
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

# Memory that is handed back has to be asked for again, which takes as long as some ten draws; kept, it creeps up.
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


def _in_chunks(program: Program, num_particles: int, chunk: int, log_density: Callable[[Trace], Tensor]) -> LogWeights:
    draws: Any = None

    @torch.no_grad()
    def all_particles(parameters: Mapping[str, Tensor], frames: Tensor) -> Tensor:
        nonlocal draws
        if draws is None:
            draws = _vectorised_draws if _can_vectorise(program, parameters, frames) else _repeated_draws
        repeated = _repeated(frames, min(chunk, num_particles))
        weights = []
        # Validation looks at values, which vmap forbids; `check_program` has looked at the program already.
        with parameters_as(parameters), pyro.validation_enabled(False):
            for latents, log_q in draws(program, frames, num_particles, chunk, log_density):
                model_trace = replayed(program.model, repeated[: log_q.shape[0] * log_q.shape[1]], as_trace(latents))
                weights.append(log_density(model_trace).reshape(log_q.shape) - log_q)
        return torch.cat(weights)

    return all_particles


def _vectorised_draws(
    program: Program, frames: Tensor, num_particles: int, chunk: int, log_density: Any
) -> Iterator[tuple[Latents, Tensor]]:
    """Latents by site, as the model takes them for size * batch sequences, and their log densities (size, batch, ...).

    size is at most `chunk`. What in the guide depends on no draw, as the encoders, is computed once for several chunks.
    """
    for start in range(0, num_particles, _CHUNKS_PER_DRAW * chunk):
        size = min(_CHUNKS_PER_DRAW * chunk, num_particles - start)
        if start % _DRAWS_PER_RETURN == 0:
            return_freed_memory()
        latents, log_q = _vectorised_guide(program, frames, size, log_density)
        for part in torch.arange(size).split(chunk):
            piece = slice(int(part[0]), int(part[-1]) + 1)
            yield {name: value[piece].flatten(0, 1) for name, value in latents.items()}, log_q[piece]


def _repeated_draws(
    program: Program, frames: Tensor, num_particles: int, chunk: int, log_density: Any
) -> Iterator[tuple[Latents, Tensor]]:
    """As `_vectorised_draws`, for any guide, which runs for each particle."""
    batch, repeated = frames.shape[0], _repeated(frames, min(chunk, num_particles))
    for start in range(0, num_particles, chunk):
        size = min(chunk, num_particles - start)
        guide_trace = trace(program.guide).get_trace(repeated[: size * batch])
        latents = {name: site["value"] for name, site in latent_sites(guide_trace).items()}
        yield latents, log_density(guide_trace).unflatten(0, (size, batch))


def _repeated(frames: Tensor, size: int) -> Tensor:
    """(size * batch, ...): particles as further sequences, true to any program whose sequences are independent."""
    return frames.expand(size, *frames.shape).reshape(-1, *frames.shape[1:])


def _vectorised_guide(program: Program, frames: Tensor, size: int, log_density: Any) -> tuple[Latents, Tensor]:
    """Latents and their log densities, (size, batch, ...). Raises RuntimeError and its like where vmap has no rule."""

    def one(_: Tensor) -> tuple[Latents, Tensor]:
        guide_trace = trace(program.guide).get_trace(frames)
        sites = latent_sites(guide_trace)
        if any(site["fn"].batch_shape != frames.shape[:1] for site in sites.values()):
            raise ValueError("expected no plate but that of the sequences")
        return {name: site["value"] for name, site in sites.items()}, log_density(guide_trace)

    with _OutOfPlaceDraws():
        return torch.func.vmap(one, randomness="different")(torch.zeros(size))


def _can_vectorise(program: Program, parameters: Mapping[str, Tensor], frames: Tensor) -> bool:
    """Whether vmap takes the guide, found out on one sequence; the random stream stays where it is."""
    with torch.random.fork_rng(), parameters_as(parameters), pyro.validation_enabled(False):
        try:
            _vectorised_guide(program, frames[:1], 2, log_joint)
        except (RuntimeError, NotImplementedError, ValueError):
            return False  # a mistake of the guide itself comes to light when it runs alone
    return True


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
