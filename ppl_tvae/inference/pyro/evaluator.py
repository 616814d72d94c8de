"""A trained program, ready to be asked: plans and NumPy arrays in, NumPy arrays out."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from ppl_tvae.inference.annealing import Annealed, Annealing
from ppl_tvae.inference.draw import Draw
from ppl_tvae.inference.mcmc import MCMC, Chains
from ppl_tvae.inference.pyro.annealing import Annealer, Progress
from ppl_tvae.inference.pyro.device import to_device
from ppl_tvae.inference.pyro.importance import frame_log_weights, log_weights
from ppl_tvae.inference.pyro.mcmc import Sampler
from ppl_tvae.inference.pyro.posterior import decoding, posterior_draw, prior_draw
from ppl_tvae.inference.pyro.tracing import computed_sites, parameters_as, parameters_of
from ppl_tvae.inference.pyro.unamortised import unamortised_log_weights
from ppl_tvae.inference.unamortised import Unamortised
from ppl_tvae.program import Program

_OF_PRIOR, _OF_CHAINS = 1, 2


class Evaluator:
    """Noise is a function of (seed, batch index), so an estimate does not depend on what was asked before it."""

    def __init__(
        self,
        program: Program,
        parameters: Mapping[str, np.ndarray],
        render: Callable[[Any, Any], Tensor],
        tables: Any,
        first_plan: Any,
        precision: str,
        seed: int,
    ) -> None:
        """render(tables, plan) -> frames; first_plan fixes their shape; parameters by flat name. Raises UserError."""
        self._program, self._seed = program, seed
        self._render, self._tables = render, to_device(tables)
        dtype, device = getattr(torch, precision), torch.get_default_device()
        values = {name: torch.tensor(value, dtype=dtype, device=device) for name, value in parameters.items()}
        self._like = self._render(self._tables, to_device(first_plan))
        self._parameters = parameters_of(program, values, self._like)
        self._made: dict[Any, Any] = {}

    def frames(self, plan: Any) -> np.ndarray:
        """The frames of a plan, as observed: (batch, time, height, width, channel)."""
        return self._render(self._tables, to_device(plan)).numpy(force=True)

    def log_weights(self, plan: Any, batch_index: int, num_particles: int, per_frame: bool = False) -> np.ndarray:
        """log importance weights, (num_particles, batch), nats per sequence; per frame (num_particles, batch, S)."""
        kind = frame_log_weights if per_frame else log_weights
        draw = self._once((kind, num_particles), lambda: kind(self._program, num_particles))
        frames = self._render(self._tables, to_device(plan))
        self._set_noise(batch_index)
        return draw(self._parameters, frames).numpy(force=True)

    def unamortised_log_weights(
        self, plan: Any, batch_index: int, num_particles: int, settings: Unamortised
    ) -> np.ndarray:
        """log importance weights, (num_particles, batch), nats per sequence, of a guide fitted to each sequence."""
        frames = self._render(self._tables, to_device(plan))
        self._set_noise(batch_index)
        weights = unamortised_log_weights(self._program, self._parameters, frames, num_particles, settings)
        return weights.numpy(force=True)

    def annealed(self, plan: Any, batch_index: int, annealing: Annealing, progress: Progress) -> Annealed:
        """Annealed importance sampling of the plan's frames: a stochastic lower bound of log p(x)."""
        frames, annealer = self._render(self._tables, to_device(plan)), self._annealer(annealing)
        self._set_noise(batch_index)
        path = annealer.pilot(frames, progress)
        return annealer.forward(frames, path, progress)

    def bracketed(
        self, plan: Any, batch_index: int, annealing: Annealing, progress: Progress
    ) -> tuple[Annealed, Annealed]:
        """Forward and backward annealing on frames simulated from the model: stochastic lower and upper bounds."""
        self._set_noise(batch_index)
        annealer = self._annealer(annealing)
        given = self._render(self._tables, to_device(plan))
        truth = self._draw(prior_draw, given)(self._parameters, given)
        frames, latents = truth.frames, {name: truth.sites[name] for name in truth.log_prior}
        path = annealer.pilot(frames, progress)
        forward = annealer.forward(frames, path, progress)
        return forward, annealer.backward(frames, latents, path, progress)

    def mcmc(self, plan: Any, batch_index: int, settings: MCMC, progress: Any = lambda _: None) -> Chains:
        """Chains of the host's NUTS or HMC for each sequence of the plan, started at draws from the guide."""
        frames = self._render(self._tables, to_device(plan))
        sampler = self._once(settings, lambda: Sampler(self._program, self._parameters, settings))
        self._set_noise(batch_index, _OF_CHAINS)
        return sampler.draws(frames, progress)

    def posterior(self, plan: Any, batch_index: int = 0, num_draws: int = 1) -> Draw:
        """Draws from the guide, each field with a leading axis (num_draws, batch, ...)."""
        frames = self._render(self._tables, to_device(plan))
        self._set_noise(batch_index)
        return self._drawn(posterior_draw, frames, num_draws)

    def prior(self, plan: Any, batch_index: int = 0, num_draws: int = 1) -> Draw:
        """Draws from the model, as many as the plan has sequences, each field (num_draws, batch, ...)."""
        frames = self._render(self._tables, to_device(plan))
        self._set_noise(batch_index, _OF_PRIOR)
        return self._drawn(prior_draw, frames, num_draws)

    def latents(self, plan: Any, batch_index: int = 0) -> dict[str, np.ndarray]:
        """One draw from the guide and what the model computes from it, by site, each (batch, ...)."""
        return {name: values[0] for name, values in self.posterior(plan, batch_index).sites.items()}

    def reconstruct(self, plan: Any) -> np.ndarray:
        """E[x | latents drawn from the guide], shaped as the frames."""
        return self.posterior(plan).mean[0]

    def decode(self, values: np.ndarray, site: str) -> np.ndarray:
        """E[x | the model's site has these values (batch, ...)]: frames (batch, S, ...)."""
        decode = self._once((decoding, site), lambda: decoding(self._program, site))
        given = torch.as_tensor(values).to(self._like)
        frames = self._like.new_zeros(len(values), *self._like.shape[1:])
        self._set_noise(0)
        return decode(self._parameters, given, frames).numpy(force=True)

    def simulated(self, plan: Any, batch_index: int = 0, num_draws: int = 1) -> tuple[Draw, Draw]:
        """A draw from the model (1, batch, ...), and draws from the guide given its frames (num_draws, batch, ...)."""
        truth = self.prior(plan, batch_index)
        frames = torch.as_tensor(truth.frames[0]).to(self._like)
        self._set_noise(batch_index)
        return truth, self._drawn(posterior_draw, frames, num_draws)

    def _drawn(self, kind: Any, frames: Tensor, num_draws: int) -> Draw:
        draw = self._draw(kind, frames)
        drawn = [tree_map(_as_numpy, draw(self._parameters, frames)) for _ in range(num_draws)]
        return tree_map(lambda *values: None if values[0] is None else np.stack(values), *drawn)

    def _draw(self, kind: Any, frames: Tensor) -> Any:
        """What `posterior_draw` or `prior_draw`, the kind, gives for the program; frames (batch, ...), any."""
        with parameters_as(self._parameters):
            computed = self._once(computed_sites, lambda: computed_sites(self._program, frames))
        return self._once(kind, lambda: kind(self._program, computed))

    def _annealer(self, annealing: Annealing) -> Annealer:
        return self._once(annealing, lambda: Annealer(self._program, self._parameters, annealing))

    def _once(self, key: Any, make: Callable[[], Any]) -> Any:
        """What belongs to a key, made when it is first asked for, with all that is compiled or found out in it."""
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    def _set_noise(self, batch_index: int, *purpose: int) -> None:
        """A stream of its own for each batch; with a purpose, one that is independent of the batch's others."""
        torch.manual_seed(int(np.random.SeedSequence([self._seed, batch_index, *purpose]).generate_state(1)[0]))


def _as_numpy(value: Tensor | None) -> np.ndarray | None:
    return None if value is None else value.numpy(force=True)
