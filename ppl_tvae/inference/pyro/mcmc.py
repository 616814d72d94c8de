"""The host's NUTS and HMC on the latents of each sequence, with all parameters fixed, started at draws of the guide.

The posterior factorises over the plate, so each (sequence, chain) is a chain of its own, with its own step size and
mass matrix. The host runs one after the other, a trace of the model for each leapfrog step: count with minutes. Latents
are moved in unconstrained space; what the model computes from them is computed from the draws.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from pyro.infer.mcmc import HMC, NUTS
from pyro.infer.mcmc import MCMC as HostMCMC
from torch import Tensor
from torch.utils._pytree import tree_map

from ppl_tvae.inference.mcmc import MCMC, Chains, bad_start
from ppl_tvae.inference.pyro.tracing import (
    as_trace,
    bijections,
    check_supports,
    computed_sites,
    latent_sites,
    log_jacobian,
    log_joint,
    log_prob,
    parameters_as,
    program_traces,
    replayed,
)
from ppl_tvae.inference.sites import constrained
from ppl_tvae.program import OBSERVED, Program

Latents = dict[str, Tensor]
Parameters = Mapping[str, Tensor]
Progress = Callable[[float], None]


class Sampler:
    """Chains of a program under given parameters. Noise comes from torch's random stream."""

    def __init__(self, program: Program, parameters: Parameters, settings: MCMC) -> None:
        self._program, self._parameters, self._settings = program, dict(parameters), settings

    def draws(self, frames: Tensor, progress: Progress = lambda _: None) -> Chains:
        """Chains for frames (batch, ...); progress hears of warm-up and draws, per chain. Raises UserError."""
        num_chains, batch = self._settings.num_chains, len(frames)
        repeated = frames.repeat(num_chains, *(1,) * (frames.ndim - 1))
        with parameters_as(self._parameters):
            position = self._drawn(repeated)
            with torch.no_grad():
                start = self._log_joint(repeated, position)
            if not torch.isfinite(start).all():
                raise bad_start(f"{int((~torch.isfinite(start)).sum())} of {len(start)} chains")
            walks = [self._walk(repeated, position, place, progress) for place in range(num_chains * batch)]
            computed = computed_sites(self._program, repeated)
            kept = [self._describe(repeated, walks, draw, computed) for draw in range(self._settings.num_draws)]
        joined = tree_map(lambda *values: np.stack(values, axis=1), *kept)
        return tree_map(lambda value: _by_chain(value, num_chains), joined)

    @torch.no_grad()
    def _drawn(self, frames: Tensor) -> Latents:
        """Draws from the guide in unconstrained space, one per sequence of frames."""
        check_supports(self._program, frames)
        guide_trace, _ = program_traces(self._program, frames)
        transforms = bijections(self._program, frames)
        return {name: transforms[name].inv(site["value"]) for name, site in latent_sites(guide_trace).items()}

    def _walk(self, frames: Tensor, position: Latents, place: int, progress: Progress) -> "list[_Iteration]":
        """The draws of one chain on one sequence, which are at this place of frames and position."""
        alone, settings = frames[place : place + 1], self._settings
        start = {name: value[place : place + 1].detach() for name, value in position.items()}
        potential = _Counted(lambda unconstrained: -self._log_joint(alone, unconstrained)[0])
        kernel = _kernel(settings, potential)
        kept: list[_Iteration] = []

        def keep(_: Any, unconstrained: Latents, stage: str, draw: int) -> None:
            if stage == "Sample":
                kept.append(kernel.iteration(unconstrained, potential.calls, draw))
            potential.calls = 0
            progress(1 / len(frames))

        HostMCMC(
            kernel, settings.num_draws, settings.num_warmup, initial_params=start, hook_fn=keep, disable_progbar=True
        ).run()
        return kept

    def _log_joint(self, frames: Tensor, unconstrained: Latents) -> Tensor:
        """log p(x, latents) of each sequence, (batch,), as a density in unconstrained space."""
        transforms = bijections(self._program, frames)
        latents = constrained(transforms, unconstrained)
        model_trace = replayed(self._program.model, frames, as_trace(latents))
        return log_joint(model_trace) + log_jacobian(transforms, unconstrained, model_trace)

    @torch.no_grad()
    def _describe(
        self, frames: Tensor, walks: "list[list[_Iteration]]", draw: int, computed: tuple[str, ...]
    ) -> Chains:
        """What is kept of an iteration, each (chain * batch, ...); frames (chain * batch, ...)."""
        now = [walk[draw] for walk in walks]
        transforms = bijections(self._program, frames)
        flat = {name: torch.cat([one.unconstrained[name] for one in now]) for name in now[0].unconstrained}
        latents = constrained(transforms, flat)
        model_trace = replayed(self._program.model, frames, as_trace(latents))
        sites = latents | {name: model_trace.nodes[name]["value"] for name in computed}
        return Chains(
            {name: value.numpy(force=True) for name, value in sites.items()},
            log_prob(model_trace.nodes[OBSERVED]).numpy(force=True),
            *(np.asarray([one[field] for one in now]) for field in range(1, len(_Iteration._fields))),
        )


class _Iteration(NamedTuple):
    """Where a chain on one sequence is after an iteration, and how it came there; see `Chains`."""

    unconstrained: Latents
    log_joint: float
    energy: float
    acceptance_rate: float
    diverging: bool
    num_steps: int
    step_size: float


class _Counted:
    """A function that counts how often it is called: the kernel does so once for each leapfrog step."""

    def __init__(self, function: Callable[[Latents], Tensor]) -> None:
        self._function, self.calls = function, 0

    def __call__(self, unconstrained: Latents) -> Tensor:
        self.calls += 1
        return self._function(unconstrained)


class _Recorded:
    """What the host's kernels know of an iteration but do not hand out."""

    _energy, _total_acceptance = math.nan, 0.0

    def _sample_r(self: Any, name: str) -> Any:
        # The host's kernel, which is the other base of the classes below, has it.
        momentum, unscaled = super()._sample_r(name)  # type: ignore[misc]
        self._energy = float(self._kinetic_energy(unscaled) + self._potential_energy_last)
        return momentum, unscaled

    def iteration(self: Any, unconstrained: Latents, num_steps: int, draw: int) -> _Iteration:
        """Of the iteration that has just ended; the host keeps the mean acceptance of all draws so far."""
        before, self._total_acceptance = self._total_acceptance, self._mean_accept_prob * (draw + 1)
        return _Iteration(
            {name: value.detach() for name, value in unconstrained.items()},
            -float(self._potential_energy_last),
            self._energy,
            min(1.0, max(0.0, self._total_acceptance - before)),
            draw in self._divergences[-1:],
            num_steps,
            float(self.step_size),
        )


class _RecordedNUTS(_Recorded, NUTS):
    pass


class _RecordedHMC(_Recorded, HMC):
    pass


def _kernel(settings: MCMC, potential: Callable[[Latents], Tensor]) -> Any:
    shared = {"potential_fn": potential, "target_accept_prob": settings.target_acceptance}
    if settings.kernel == "hmc":
        return _RecordedHMC(trajectory_length=settings.trajectory_length, **shared)
    return _RecordedNUTS(max_tree_depth=settings.max_tree_depth, **shared)


def _by_chain(values: np.ndarray, num_chains: int) -> np.ndarray:
    """(chain * batch, draw, ...) as (chain, draw, batch, ...)."""
    apart = values.reshape(num_chains, -1, *values.shape[1:])
    return np.moveaxis(apart, 1, 2)
