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
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ppl_tvae.inference.annealing import ADAPTATION_RATE, Annealed, Annealing, Path, forward_path
from ppl_tvae.inference.numpyro.tracing import (
    bijections,
    check_supports,
    latent_sites,
    latent_values,
    log_jacobian,
    log_joint,
    program_traces,
    total,
    traced,
    traces_at,
)
from ppl_tvae.inference.sites import constrained
from ppl_tvae.program import Program

Latents = dict[str, jax.Array]
Progress = Callable[[int], None]
# Moves per compiled call: short enough to show progress and hear Ctrl-C, long enough to cost nothing.
_MOVES_PER_CALL = 10


class _State(NamedTuple):
    """Chains, (chains * batch, ...): unconstrained latents, log f_0 and log p(x, z) at them, log w so far."""

    latents: Latents
    log_start: jax.Array
    log_target: jax.Array
    log_weights: jax.Array


class Annealer:
    """Annealed importance sampling of a program under given parameters, compiled once per shape of frames."""

    def __init__(self, program: Program, parameters: Mapping[str, jax.Array], annealing: Annealing) -> None:
        self._program, self._parameters, self._annealing = program, dict(parameters), annealing
        self._move = jax.jit(self._moves, static_argnames="adapt")
        self._densities = jax.jit(self._log_densities)

    def forward(
        self, rng_key: jax.Array, frames: jax.Array, path: Path, progress: Progress = lambda _: None
    ) -> Annealed:
        """A stochastic lower bound: chains from the start to the posterior of frames (batch, ...)."""
        key_start, key_path = jax.random.split(rng_key)
        repeated = self._repeated(frames)
        return self._walk(key_path, repeated, self._draw_start(key_start, repeated), path, progress)

    def backward(
        self, rng_key: jax.Array, frames: jax.Array, latents: Latents, path: Path, progress: Progress = lambda _: None
    ) -> Annealed:
        """A stochastic upper bound: chains from exact posterior draws `latents` back to the start."""
        repeated, at = self._repeated(frames), {name: self._repeated(value) for name, value in latents.items()}
        return self._walk(rng_key, repeated, at, path.reversed(), progress)

    def pilot(self, rng_key: jax.Array, frames: jax.Array, progress: Progress = lambda _: None) -> Path:
        """The forward path with step sizes that were steered, on one walk, to the acceptance rate that is wanted."""
        key_start, key_path = jax.random.split(rng_key)
        start, path = self._draw_start(key_start, frames), forward_path(self._annealing)
        adapted = self._walk(key_path, frames, start, path, progress, adapt=True)
        return path._replace(step_sizes=adapted.step_sizes)

    def _repeated(self, values: jax.Array) -> jax.Array:
        return jnp.tile(values, (self._annealing.num_chains, *(1,) * (values.ndim - 1)))

    def _draw_start(self, rng_key: jax.Array, frames: jax.Array) -> Latents:
        """Draws from f_0, one per sequence of frames."""
        if self._annealing.start == "prior":
            sites = traced(self._program.model, self._parameters, rng_key, frames)
        else:
            sites, _ = program_traces(self._program, self._parameters, rng_key, frames)
        return latent_values(sites)

    def _walk(
        self,
        rng_key: jax.Array,
        frames: jax.Array,
        latents: Latents,
        path: Path,
        progress: Progress,
        adapt: bool = False,
    ) -> Annealed:
        check_supports(self._program, self._parameters, frames)
        transforms = bijections(self._program, self._parameters, frames)
        unconstrained = {name: transforms[name].inv(value) for name, value in latents.items()}
        log_start, log_target = self._densities(self._parameters, frames, unconstrained)
        gain = log_target - log_start
        # log w is Jacobian-free: the same one is in both densities.
        state = _State(unconstrained, log_start, log_target, path.increments[0] * gain)
        step_size, rates, sizes = jnp.asarray(self._annealing.step_size, gain.dtype), [], []
        for first in range(0, len(path.betas), _MOVES_PER_CALL):
            part = slice(first, first + _MOVES_PER_CALL)
            keys = jax.random.split(jax.random.fold_in(rng_key, first), len(path.betas[part]))
            steps = (keys, path.betas[part], path.increments[1:][part], path.step_sizes[part])
            state, step_size, (rate, size) = self._move(self._parameters, frames, state, step_size, steps, adapt=adapt)
            rates.append(np.asarray(rate))
            sizes.append(np.asarray(size))
            progress(len(keys))
        num_chains = 1 if adapt else self._annealing.num_chains
        by_chain = np.asarray(state.log_weights).reshape(num_chains, -1)
        return Annealed(by_chain, _joined(rates), _joined(sizes))

    def _moves(
        self, parameters: Any, frames: jax.Array, state: _State, step_size: jax.Array, steps: Any, adapt: bool
    ) -> Any:
        def move(carry: Any, step: Any) -> Any:
            state, adapted = carry
            key, beta, increment, given = step
            size = adapted if adapt else given
            state, accepted = self._hmc(key, parameters, frames, state, beta, size)
            rate = jnp.mean(accepted)
            adapted = adapted * jnp.exp(ADAPTATION_RATE * (rate - self._annealing.target_acceptance))
            log_weights = state.log_weights + increment * (state.log_target - state.log_start)
            return (state._replace(log_weights=log_weights), adapted), (rate, size)

        steps = jax.tree.map(
            lambda part: part if part is steps[0] else jnp.asarray(part, state.log_weights.dtype), steps
        )
        (state, step_size), trail = jax.lax.scan(move, (state, step_size), steps)
        return state, step_size, trail

    def _hmc(
        self, rng_key: jax.Array, parameters: Any, frames: jax.Array, state: _State, beta: jax.Array, size: jax.Array
    ) -> Any:
        """One Hamiltonian move that leaves f_beta invariant, accepted or refused for each chain by itself."""
        key_momentum, key_accept = jax.random.split(rng_key)
        names = sorted(state.latents)
        keys = dict(zip(names, jax.random.split(key_momentum, len(names)), strict=True))
        momentum = {name: jax.random.normal(keys[name], v.shape, v.dtype) for name, v in state.latents.items()}
        gradient = jax.grad(lambda latents: jnp.sum(self._log_tempered(parameters, frames, latents, beta)))

        def leapfrog(_: int, carry: tuple[Latents, Latents, Latents]) -> tuple[Latents, Latents, Latents]:
            position, momentum, force = carry
            halfway = _add(momentum, force, size / 2)
            position = _add(position, halfway, size)
            force = gradient(position)
            return position, _add(halfway, force, size / 2), force

        start = (state.latents, momentum, gradient(state.latents))
        position, end_momentum, _ = jax.lax.fori_loop(0, self._annealing.num_leapfrog_steps, leapfrog, start)
        log_start, log_target = self._log_densities(parameters, frames, position)
        log_ratio = (
            (1 - beta) * (log_start - state.log_start) + beta * (log_target - state.log_target)
            + _kinetic(momentum) - _kinetic(end_momentum)
        )  # fmt: skip
        probability = jnp.exp(jnp.minimum(log_ratio, 0.0))
        probability = jnp.where(jnp.isnan(probability), 0.0, probability)  # a diverged trajectory is refused
        accept = jax.random.uniform(key_accept, probability.shape, probability.dtype) < probability
        proposed = state._replace(latents=position, log_start=log_start, log_target=log_target)
        return jax.tree.map(partial(_choose, accept), proposed, state), probability

    def _log_tempered(self, parameters: Any, frames: jax.Array, unconstrained: Latents, beta: jax.Array) -> jax.Array:
        log_start, log_target = self._log_densities(parameters, frames, unconstrained)
        return (1 - beta) * log_start + beta * log_target

    def _log_densities(self, parameters: Any, frames: jax.Array, unconstrained: Latents) -> tuple[jax.Array, jax.Array]:
        """log f_0 and log p(x, z) of each chain, (chains * batch,), as densities in unconstrained space."""
        transforms = bijections(self._program, parameters, frames)
        latents = constrained(transforms, unconstrained)
        guide_trace, model_trace = traces_at(self._program, parameters, frames, latents)
        jacobian = log_jacobian(transforms, unconstrained, model_trace)
        prior = self._annealing.start == "prior"
        log_start = total(latent_sites(model_trace)) if prior else log_joint(guide_trace)
        return log_start + jacobian, log_joint(model_trace) + jacobian


def _add(a: Latents, b: Latents, factor: Any) -> Latents:
    return {name: value + factor * b[name] for name, value in a.items()}


def _kinetic(momentum: Latents) -> jax.Array:
    return sum((0.5 * jnp.sum(v.reshape(v.shape[0], -1) ** 2, axis=1) for v in momentum.values()), start=jnp.zeros(()))


def _choose(accept: jax.Array, new: jax.Array, old: jax.Array) -> jax.Array:
    return jnp.where(accept.reshape(-1, *(1,) * (new.ndim - 1)), new, old)


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    return np.concatenate(parts) if parts else np.zeros(0)
