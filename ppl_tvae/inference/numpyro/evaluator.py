"""A trained program, ready to be asked: plans and NumPy arrays in, NumPy arrays out."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ppl_tvae.inference.annealing import Annealed, Annealing
from ppl_tvae.inference.draw import Draw
from ppl_tvae.inference.mcmc import MCMC, Chains
from ppl_tvae.inference.numpyro.annealing import Annealer, Progress
from ppl_tvae.inference.numpyro.device import to_device
from ppl_tvae.inference.numpyro.importance import frame_log_weights, log_weights
from ppl_tvae.inference.numpyro.mcmc import Sampler
from ppl_tvae.inference.numpyro.posterior import decoding, posterior_draw, prior_draw
from ppl_tvae.inference.numpyro.tracing import computed_sites, parameters_of
from ppl_tvae.inference.numpyro.unamortised import unamortised_log_weights
from ppl_tvae.inference.unamortised import Unamortised
from ppl_tvae.program import Program

_OF_PRIOR, _OF_CHAINS = 2**31 - 1, 2**31 - 2  # no batch has such an index


class Evaluator:
    """Noise is a function of (seed, batch index), so an estimate does not depend on what was asked before it."""

    def __init__(
        self,
        program: Program,
        parameters: Mapping[str, np.ndarray],
        render: Callable[[Any, Any], jax.Array],
        tables: Any,
        first_plan: Any,
        precision: str,
        seed: int,
    ) -> None:
        """render(tables, plan) -> frames; first_plan fixes their shape; parameters by flat name. Raises UserError."""
        self._program, self._rng_key = program, jax.random.key(seed)
        self._render, self._tables = jax.jit(render), to_device(tables)
        values = {name: jnp.asarray(value, dtype=precision) for name, value in parameters.items()}
        self._like = self._render(self._tables, to_device(first_plan))
        self._parameters = parameters_of(program, values, self._like)
        self._made: dict[Any, Any] = {}

    def frames(self, plan: Any) -> np.ndarray:
        """The frames of a plan, as observed: (batch, time, height, width, channel)."""
        return np.asarray(self._render(self._tables, to_device(plan)))

    def log_weights(self, plan: Any, batch_index: int, num_particles: int, per_frame: bool = False) -> np.ndarray:
        """log importance weights, (num_particles, batch), nats per sequence; per frame (num_particles, batch, S)."""
        kind = frame_log_weights if per_frame else log_weights
        draw = self._once((kind, num_particles), lambda: kind(self._program, num_particles))
        frames = self._render(self._tables, to_device(plan))
        return np.asarray(draw(self._parameters, self._key(batch_index), frames))

    def unamortised_log_weights(
        self, plan: Any, batch_index: int, num_particles: int, settings: Unamortised
    ) -> np.ndarray:
        """log importance weights, (num_particles, batch), nats per sequence, of a guide fitted to each sequence."""
        frames, key = self._render(self._tables, to_device(plan)), self._key(batch_index)
        weights = unamortised_log_weights(self._program, self._parameters, key, frames, num_particles, settings)
        return np.asarray(weights)

    def annealed(self, plan: Any, batch_index: int, annealing: Annealing, progress: Progress) -> Annealed:
        """Annealed importance sampling of the plan's frames: a stochastic lower bound of log p(x)."""
        frames, annealer = self._render(self._tables, to_device(plan)), self._annealer(annealing)
        key_pilot, key_forward = jax.random.split(self._key(batch_index))
        path = annealer.pilot(key_pilot, frames, progress)
        return annealer.forward(key_forward, frames, path, progress)

    def bracketed(
        self, plan: Any, batch_index: int, annealing: Annealing, progress: Progress
    ) -> tuple[Annealed, Annealed]:
        """Forward and backward annealing on frames simulated from the model: stochastic lower and upper bounds."""
        key_data, key_pilot, key_forward, key_backward = jax.random.split(self._key(batch_index), 4)
        annealer = self._annealer(annealing)
        given = self._render(self._tables, to_device(plan))
        truth = self._draw(prior_draw, given)(self._parameters, key_data, given)
        frames, latents = truth.frames, {name: truth.sites[name] for name in truth.log_prior}
        path = annealer.pilot(key_pilot, frames, progress)
        forward = annealer.forward(key_forward, frames, path, progress)
        return forward, annealer.backward(key_backward, frames, latents, path, progress)

    def mcmc(self, plan: Any, batch_index: int, settings: MCMC, progress: Any = lambda _: None) -> Chains:
        """Chains of the host's NUTS or HMC for each sequence of the plan, started at draws from the guide."""
        frames = self._render(self._tables, to_device(plan))
        sampler = self._once(settings, lambda: Sampler(self._program, self._parameters, settings))
        return sampler.draws(self._key(batch_index, _OF_CHAINS), frames, progress)

    def posterior(self, plan: Any, batch_index: int = 0, num_draws: int = 1) -> Draw:
        """Draws from the guide, each field with a leading axis (num_draws, batch, ...)."""
        frames = self._render(self._tables, to_device(plan))
        return self._drawn(posterior_draw, frames, self._key(batch_index), num_draws)

    def prior(self, plan: Any, batch_index: int = 0, num_draws: int = 1) -> Draw:
        """Draws from the model, as many as the plan has sequences, each field (num_draws, batch, ...)."""
        frames = self._render(self._tables, to_device(plan))
        return self._drawn(prior_draw, frames, self._key(batch_index, _OF_PRIOR), num_draws)

    def latents(self, plan: Any, batch_index: int = 0) -> dict[str, np.ndarray]:
        """One draw from the guide and what the model computes from it, by site, each (batch, ...)."""
        return {name: values[0] for name, values in self.posterior(plan, batch_index).sites.items()}

    def reconstruct(self, plan: Any) -> np.ndarray:
        """E[x | latents drawn from the guide], shaped as the frames."""
        return self.posterior(plan).mean[0]

    def decode(self, values: np.ndarray, site: str) -> np.ndarray:
        """E[x | the model's site has these values (batch, ...)]: frames (batch, S, ...)."""
        decode = self._once((decoding, site), lambda: decoding(self._program, site))
        given = jnp.asarray(values, self._like.dtype)
        frames = jnp.zeros((len(values), *self._like.shape[1:]), self._like.dtype)
        return np.asarray(decode(self._parameters, self._key(0), given, frames))

    def simulated(self, plan: Any, batch_index: int = 0, num_draws: int = 1) -> tuple[Draw, Draw]:
        """A draw from the model (1, batch, ...), and draws from the guide given its frames (num_draws, batch, ...)."""
        truth = self.prior(plan, batch_index)
        frames = jnp.asarray(truth.frames[0])
        return truth, self._drawn(posterior_draw, frames, self._key(batch_index), num_draws)

    def _drawn(self, kind: Any, frames: jax.Array, rng_key: jax.Array, num_draws: int) -> Draw:
        draw, keys = self._draw(kind, frames), jax.random.split(rng_key, num_draws)
        drawn = [jax.tree.map(np.asarray, draw(self._parameters, key, frames)) for key in keys]
        return jax.tree.map(lambda *values: np.stack(values), *drawn)

    def _draw(self, kind: Any, frames: jax.Array) -> Any:
        """What `posterior_draw` or `prior_draw`, the kind, gives for the program; frames (batch, ...), any."""
        computed = self._once(computed_sites, lambda: computed_sites(self._program, self._parameters, frames))
        return self._once(kind, lambda: kind(self._program, computed))

    def _annealer(self, annealing: Annealing) -> Annealer:
        return self._once(annealing, lambda: Annealer(self._program, self._parameters, annealing))

    def _once(self, key: Any, make: Callable[[], Any]) -> Any:
        """What belongs to a key, made when it is first asked for, with all that is compiled or found out in it."""
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    def _key(self, batch_index: int, purpose: int | None = None) -> jax.Array:
        """A key of its own for each batch; with a purpose, one that is independent of the batch's others."""
        key = self._rng_key if purpose is None else jax.random.fold_in(self._rng_key, purpose)
        return jax.random.fold_in(key, batch_index)
