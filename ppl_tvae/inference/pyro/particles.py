"""Several draws from the guide for each sequence, its particles: latents as the model takes them, and log q.

Particles are further sequences of a larger batch, true to any program whose sequences are independent. Where torch's
vmap takes a guide, it runs once on the frames as they are: what in it depends on no draw, as the encoders, is computed
once for all particles.
"""

import warnings
import weakref
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from ppl_tvae.inference.pyro.device import forked
from ppl_tvae.inference.pyro.tracing import Trace, as_trace, latent_sites, latent_values, replayed, traced
from ppl_tvae.program import Program

Latents = dict[str, Tensor]
LogDensity = Callable[[Trace], Tensor]


def repeated(frames: Tensor, size: int) -> Tensor:
    """(size * batch, ...): the frames of each particle of each sequence."""
    return frames.expand(size, *frames.shape).reshape(-1, *frames.shape[1:])


def drawn(
    program: Program, frames: Tensor, size: int, log_density: LogDensity, *, vectorised: bool
) -> tuple[Latents, Tensor]:
    """Latents by site, as the model takes them for size * batch sequences, and their log_density, (size, batch, ...).

    vectorised: whether the guide runs once; RuntimeError and its like where vmap has no rule for what it does.
    """
    if not vectorised:
        guide_trace = traced(program.guide, repeated(frames, size))
        log_q = _of_each(log_density(guide_trace), size * len(frames)).unflatten(0, (size, -1))
        return latent_values(guide_trace), log_q

    def of_one() -> tuple[Latents, Tensor]:
        guide_trace = traced(program.guide, frames)
        if any(site["fn"].batch_shape != frames.shape[:1] for site in latent_sites(guide_trace).values()):
            raise ValueError("expected no plate but that of the sequences, whose axis comes first")
        return latent_values(guide_trace), _of_each(log_density(guide_trace), len(frames))

    latents, log_q = of_particles(of_one, size)
    return {name: value.flatten(0, 1) for name, value in latents.items()}, log_q


def of_particles(function: Callable[[], Any], size: int) -> Any:
    """function() of size particles, each with draws of its own, along a new first axis, by vmap."""
    with _OutOfPlaceDraws():
        return _vmap(lambda _: function(), randomness="different")(torch.zeros(size))


def log_density_at(
    program: Program,
    frames: Tensor,
    size: int,
    latents: Mapping[str, Tensor],
    log_density: LogDensity,
    *,
    vectorised: bool,
) -> Tensor:
    """log_density of the guide at latents that `drawn` gave: (size, batch, ...)."""
    if not vectorised:
        guide_trace = replayed(program.guide, repeated(frames, size), as_trace(latents))
        return _of_each(log_density(guide_trace), size * len(frames)).unflatten(0, (size, -1))

    def of_one(latents: Latents) -> Tensor:
        return _of_each(log_density(replayed(program.guide, frames, as_trace(latents))), len(frames))

    return _vmap(of_one)({name: value.unflatten(0, (size, -1)) for name, value in latents.items()})


def is_vectorisable(compute: Callable[[], Any]) -> bool:
    """Whether vmap takes what is computed, found out by computing it; the random stream stays where it is.

    A mistake of the guide itself is no reason: it comes to light when the guide runs alone.
    """
    with forked():
        try:
            compute()
        except (RuntimeError, NotImplementedError, ValueError):
            return False
    return True


def _vmap(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """torch's vmap, without its warnings of what it does in a loop over particles: that is no slower than any loop."""
    vectorised = torch.func.vmap(function, **options)

    def quiet(*arguments: Any) -> Any:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "There is a performance drop because we have not yet implemented")
            return vectorised(*arguments)

    return quiet


def _of_each(values: Tensor, num_sequences: int) -> Tensor:
    """(num_sequences, ...); the sum over the sites of a guide that has none is a scalar."""
    return values.expand(num_sequences, *values.shape[1:])


class _OutOfPlaceDraws(TorchFunctionMode):
    """Within the context, torch's distributions draw into new tensors: vmap refuses draws in place.

    They go on with what the draw returns. RuntimeError where a program goes on with the tensor that it drew into, which
    holds no draw here.
    """

    def __init__(self) -> None:
        super().__init__()
        self._left_behind: list[weakref.ref[Tensor]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        left_behind = [tensor for each in self._left_behind if (tensor := each()) is not None]
        self._left_behind = [weakref.ref(tensor) for tensor in left_behind]
        if left_behind and any(each is tensor for each in tree_leaves((args, kwargs)) for tensor in left_behind):
            raise RuntimeError("a tensor that was drawn into in place, of which vmap has no draws")
        if func is Tensor.normal_ and len(args) == 1 and not kwargs:
            self._left_behind.append(weakref.ref(args[0]))
            return torch.randn_like(args[0])
        if func is Tensor.uniform_ and len(args) in (1, 3) and not kwargs:
            self._left_behind.append(weakref.ref(args[0]))
            low, high = args[1:] or (0.0, 1.0)
            return low + (high - low) * torch.rand_like(args[0])
        return func(*args, **kwargs)
