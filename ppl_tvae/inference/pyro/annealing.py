"""Annealed importance sampling with HMC moves, for any program; on simulated data in both directions.

From chains z ~ f_0 (the prior, or the guide) through f_b = f_0^(1-b) p(x, z)^b to the posterior, one HMC move each:

    log w = sum_t (b_t - b_(t-1)) (log p(x, z_(t-1)) - log f_0(z_(t-1))),      E[w] = p(x)

so E[log w] <= log p(x), a stochastic lower bound (Neal 2001, arXiv physics/9803008). Walked backwards from an exact
posterior draw, which data simulated from the model come with, the same sum gives E[log w] >= log p(x): the two bracket
the truth (bidirectional Monte Carlo, Grosse, Ancha & Roy 2016, arXiv 1606.02275; Wu et al. 2016, arXiv 1611.04273).

Chains are further sequences of a larger batch; latents are moved in unconstrained space. The step size of a
temperature is adapted in a pilot run and then held, since moves that adapt to their own past would not leave f_b alone.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ppl_tvae.inference.annealing import ADAPTATION_RATE, Annealed, Annealing, Path, forward_path
from ppl_tvae.inference.pyro.tracing import (
    bijections,
    check_supports,
    latent_sites,
    latent_values,
    log_jacobian,
    log_joint,
    parameters_as,
    program_traces,
    total,
    traced,
    traces_at,
)
from ppl_tvae.inference.sites import constrained
from ppl_tvae.program import Program

Latents = dict[str, Tensor]
Progress = Callable[[int], None]


class _State(NamedTuple):
    """Chains, (chains * batch, ...): unconstrained latents, log f_0 and log p(x, z) at them, log w so far."""

    latents: Latents
    log_start: Tensor
    log_target: Tensor
    log_weights: Tensor


class Annealer:
    """Annealed importance sampling of a program under given parameters. Noise comes from torch's random stream."""

    def __init__(self, program: Program, parameters: Mapping[str, Tensor], annealing: Annealing) -> None:
        self._program, self._parameters, self._annealing = program, dict(parameters), annealing

    def forward(self, frames: Tensor, path: Path, progress: Progress = lambda _: None) -> Annealed:
        """A stochastic lower bound: chains from the start to the posterior of frames (batch, ...)."""
        repeated = self._repeated(frames)
        return self._walk(repeated, self._draw_start(repeated), path, progress)

    def backward(self, frames: Tensor, latents: Latents, path: Path, progress: Progress = lambda _: None) -> Annealed:
        """A stochastic upper bound: chains from exact posterior draws `latents` back to the start."""
        repeated, at = self._repeated(frames), {name: self._repeated(value) for name, value in latents.items()}
        return self._walk(repeated, at, path.reversed(), progress)

    def pilot(self, frames: Tensor, progress: Progress = lambda _: None) -> Path:
        """The forward path with step sizes that were steered, on one walk, to the acceptance rate that is wanted."""
        start, path = self._draw_start(frames), forward_path(self._annealing)
        adapted = self._walk(frames, start, path, progress, adapt=True)
        return path._replace(step_sizes=adapted.step_sizes)

    def _repeated(self, values: Tensor) -> Tensor:
        return values.repeat(self._annealing.num_chains, *(1,) * (values.ndim - 1))

    @torch.no_grad()
    def _draw_start(self, frames: Tensor) -> Latents:
        """Draws from f_0, one per sequence of frames."""
        with parameters_as(self._parameters):
            if self._annealing.start == "prior":
                sites = traced(self._program.model, frames)
            else:
                sites, _ = program_traces(self._program, frames)
            return latent_values(sites)

    def _walk(self, frames: Tensor, latents: Latents, path: Path, progress: Progress, adapt: bool = False) -> Annealed:
        with parameters_as(self._parameters), torch.no_grad():
            check_supports(self._program, frames)
            transforms = bijections(self._program, frames)
            unconstrained = {name: transforms[name].inv(value) for name, value in latents.items()}
            log_start, log_target = self._log_densities(transforms, frames, unconstrained)
            gain = log_target - log_start
            # log w is Jacobian-free: the same one is in both densities.
            state = _State(unconstrained, log_start, log_target, path.increments[0] * gain)
            adapted, rates, sizes = self._annealing.step_size, [], []
            for beta, increment, given in zip(path.betas, path.increments[1:], path.step_sizes, strict=True):
                size = float(adapted if adapt else given)
                state, accepted = self._hmc(transforms, frames, state, float(beta), size)
                rate = float(accepted.mean())
                adapted = adapted * np.exp(ADAPTATION_RATE * (rate - self._annealing.target_acceptance))
                gain = state.log_target - state.log_start
                state = state._replace(log_weights=state.log_weights + float(increment) * gain)
                rates.append(rate)
                sizes.append(size)
                progress(1)
        num_chains = 1 if adapt else self._annealing.num_chains
        by_chain = state.log_weights.numpy(force=True).reshape(num_chains, -1)
        return Annealed(by_chain, np.asarray(rates), np.asarray(sizes))

    def _hmc(
        self, transforms: Mapping[str, Any], frames: Tensor, state: _State, beta: float, size: float
    ) -> tuple[_State, Tensor]:
        """One Hamiltonian move that leaves f_beta invariant, accepted or refused for each chain by itself."""
        momentum = {name: torch.randn_like(value) for name, value in state.latents.items()}
        position, end_momentum = state.latents, momentum
        force = self._gradient(transforms, frames, position, beta)
        for _ in range(self._annealing.num_leapfrog_steps):
            halfway = _add(end_momentum, force, size / 2)
            position = _add(position, halfway, size)
            force = self._gradient(transforms, frames, position, beta)
            end_momentum = _add(halfway, force, size / 2)
        log_start, log_target = self._log_densities(transforms, frames, position)
        log_ratio = (
            (1 - beta) * (log_start - state.log_start) + beta * (log_target - state.log_target)
            + _kinetic(momentum) - _kinetic(end_momentum)
        )  # fmt: skip
        probability = torch.exp(log_ratio.clamp(max=0.0)).nan_to_num(0.0)  # a diverged trajectory is refused
        accept = torch.rand_like(probability) < probability
        latents = {name: _choose(accept, value, state.latents[name]) for name, value in position.items()}
        log_start = _choose(accept, log_start, state.log_start)
        log_target = _choose(accept, log_target, state.log_target)
        return _State(latents, log_start, log_target, state.log_weights), probability

    def _gradient(self, transforms: Mapping[str, Any], frames: Tensor, unconstrained: Latents, beta: float) -> Latents:
        with torch.enable_grad():
            leaves = {name: value.detach().requires_grad_() for name, value in unconstrained.items()}
            log_start, log_target = self._log_densities(transforms, frames, leaves)
            log_tempered = torch.sum((1 - beta) * log_start + beta * log_target)
            return dict(zip(leaves, torch.autograd.grad(log_tempered, list(leaves.values())), strict=True))

    def _log_densities(
        self, transforms: Mapping[str, Any], frames: Tensor, unconstrained: Latents
    ) -> tuple[Tensor, Tensor]:
        """log f_0 and log p(x, z) of each chain, (chains * batch,), as densities in unconstrained space."""
        latents = constrained(transforms, unconstrained)
        guide_trace, model_trace = traces_at(self._program, frames, latents)
        jacobian = log_jacobian(transforms, unconstrained, model_trace)
        prior = self._annealing.start == "prior"
        log_start = total(latent_sites(model_trace)) if prior else log_joint(guide_trace)
        return log_start + jacobian, log_joint(model_trace) + jacobian


def _add(a: Latents, b: Latents, factor: float) -> Latents:
    return {name: value + factor * b[name] for name, value in a.items()}


def _kinetic(momentum: Latents) -> Tensor:
    return sum(
        (0.5 * torch.sum(v.reshape(v.shape[0], -1) ** 2, dim=1) for v in momentum.values()), start=torch.zeros(())
    )


def _choose(accept: Tensor, new: Tensor, old: Tensor) -> Tensor:
    return torch.where(accept.reshape(-1, *(1,) * (new.ndim - 1)), new, old)
