"""The host's NUTS and HMC on the latents of each sequence, with all parameters fixed, started at draws of the guide.

The posterior factorises over the plate, so each (sequence, chain) is a chain of its own, with its own step size and
mass matrix. One compiled iteration advances all of them, as wide as the longest trajectory among them. Latents are
moved in unconstrained space; what the model computes from them is computed from the draws.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.infer.hmc import hmc

from ppl_tvae.inference.mcmc import MCMC, Chains, bad_start
from ppl_tvae.inference.numpyro.tracing import (
    Trace,
    as_trace,
    bijections,
    check_supports,
    computed_sites,
    latent_sites,
    log_jacobian,
    log_joint,
    log_prob,
    program_traces,
    replayed,
)
from ppl_tvae.inference.sites import constrained
from ppl_tvae.program import OBSERVED, Program

Latents = dict[str, jax.Array]
Parameters = Mapping[str, jax.Array]
Progress = Callable[[float], None]


class Sampler:
    """Chains of a program under given parameters, compiled once per shape of frames."""

    def __init__(self, program: Program, parameters: Parameters, settings: MCMC) -> None:
        self._program, self._parameters, self._settings = program, dict(parameters), settings
        self._init, sample = hmc(potential_fn_gen=self._potential, algo=settings.kernel.upper())
        self._start = jax.jit(_for_each(self._init_one, (0, None, 0, 0)))
        self._advance = jax.jit(_for_each(lambda state, *arguments: sample(state, arguments), (0, None, 0)))
        self._described = jax.jit(self._describe, static_argnames="computed")

    def draws(self, rng_key: jax.Array, frames: jax.Array, progress: Progress = lambda _: None) -> Chains:
        """Chains for frames (batch, ...); progress hears of warm-up and draws, per chain. Raises UserError."""
        key_start, key_chains = jax.random.split(rng_key)
        settings, shape = self._settings, (self._settings.num_chains, len(frames))
        repeated = jnp.tile(frames, (settings.num_chains, *(1,) * (frames.ndim - 1)))
        position = jax.tree.map(lambda value: value.reshape(*shape, *value.shape[1:]), self._drawn(key_start, repeated))
        state = self._start(jax.random.split(key_chains, shape), self._parameters, frames, position)
        if not np.isfinite(state.potential_energy).all():
            raise bad_start(f"{np.sum(~np.isfinite(state.potential_energy))} of {state.potential_energy.size} chains")
        computed, kept = computed_sites(self._program, self._parameters, repeated), []
        for iteration in range(settings.num_warmup + settings.num_draws):
            state = self._advance(state, self._parameters, frames)
            if iteration >= settings.num_warmup:
                described = self._described(self._parameters, repeated, state, computed=computed)
                kept.append(jax.tree.map(np.asarray, described))
            progress(1)
        return jax.tree.map(lambda *values: np.stack(values, axis=1), *kept)

    def _drawn(self, rng_key: jax.Array, frames: jax.Array) -> Latents:
        """Draws from the guide in unconstrained space, one per sequence of frames."""
        check_supports(self._program, self._parameters, frames)
        guide_trace, _ = program_traces(self._program, self._parameters, rng_key, frames)
        transforms = bijections(self._program, self._parameters, frames)
        return {name: transforms[name].inv(site["value"]) for name, site in latent_sites(guide_trace).items()}

    def _init_one(self, rng_key: jax.Array, parameters: Parameters, frames: jax.Array, position: Latents) -> Any:
        """The state of one chain on one sequence, frames (S, ...)."""
        settings = self._settings
        return self._init(
            position,
            settings.num_warmup,
            target_accept_prob=settings.target_acceptance,
            trajectory_length=settings.trajectory_length if settings.kernel == "hmc" else None,
            max_tree_depth=settings.max_tree_depth,
            model_args=(parameters, frames),
            rng_key=rng_key,
        )

    def _potential(self, parameters: Parameters, frames: jax.Array) -> Callable[[Latents], jax.Array]:
        """Minus the log joint density of one sequence, frames (S, ...), at unconstrained latents of it."""

        def potential(unconstrained: Latents) -> jax.Array:
            alone = {name: value[None] for name, value in unconstrained.items()}
            return -self._log_joint(parameters, frames[None], alone)[0]

        return potential

    def _log_joint(self, parameters: Parameters, frames: jax.Array, unconstrained: Latents) -> jax.Array:
        """log p(x, latents) of each sequence, (batch,), as a density in unconstrained space."""
        transforms = bijections(self._program, parameters, frames)
        latents = constrained(transforms, unconstrained)
        model_trace = self._model_trace(parameters, frames, latents)
        return log_joint(model_trace) + log_jacobian(transforms, unconstrained, model_trace)

    def _describe(self, parameters: Parameters, frames: jax.Array, state: Any, computed: tuple[str, ...]) -> Chains:
        """What is kept of an iteration, each (chain, batch, ...); frames (chain * batch, ...)."""
        shape = state.potential_energy.shape
        transforms = bijections(self._program, parameters, frames)
        flat = {name: value.reshape(-1, *value.shape[2:]) for name, value in state.z.items()}
        latents = constrained(transforms, flat)
        model_trace = self._model_trace(parameters, frames, latents)
        sites = latents | {name: jnp.asarray(model_trace[name]["value"]) for name in computed}
        return Chains(
            {name: value.reshape(*shape, *value.shape[1:]) for name, value in sites.items()},
            log_prob(model_trace[OBSERVED]).reshape(shape),
            -state.potential_energy,
            state.energy,
            state.accept_prob,
            state.diverging,
            state.num_steps,
            state.adapt_state.step_size,
        )

    def _model_trace(self, parameters: Parameters, frames: jax.Array, latents: Latents) -> Trace:
        unused = jax.random.key(0)  # every latent is given
        return replayed(self._program.model, parameters, unused, frames, as_trace(latents))


def _for_each(function: Callable[..., Any], axes: tuple[int | None, ...]) -> Callable[..., Any]:
    """Over the batch along these axes, and over the chains; frames, the third argument, are the same for all chains."""
    shared = tuple(None if place in (1, 2) else axis for place, axis in enumerate(axes))
    return jax.vmap(jax.vmap(function, axes), shared)
