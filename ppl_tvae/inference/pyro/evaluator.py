"""A trained program, ready to be asked: plans and NumPy arrays in, NumPy arrays out."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ppl_tvae.inference.pyro.annealing import Annealed, Annealer, Progress
from ppl_tvae.inference.pyro.device import to_device
from ppl_tvae.inference.pyro.importance import frame_log_weights, log_weights
from ppl_tvae.inference.pyro.posterior import reconstruction
from ppl_tvae.inference.pyro.tracing import parameters_of
from ppl_tvae.inference.temperatures import Annealing
from ppl_tvae.program import Program


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
        self._parameters = parameters_of(program, values, self._render(self._tables, to_device(first_plan)))
        self._reconstruct = reconstruction(program)

    def frames(self, plan: Any) -> np.ndarray:
        """The frames of a plan, as observed: (batch, time, height, width, channel)."""
        return self._render(self._tables, to_device(plan)).numpy(force=True)

    def log_weights(self, plan: Any, batch_index: int, num_particles: int, per_frame: bool = False) -> np.ndarray:
        """log importance weights, (num_particles, batch), nats per sequence; per frame (num_particles, batch, S)."""
        draw = (frame_log_weights if per_frame else log_weights)(self._program, num_particles)
        frames = self._render(self._tables, to_device(plan))
        self._set_noise(batch_index)
        return draw(self._parameters, frames).numpy(force=True)

    def annealed(self, plan: Any, batch_index: int, annealing: Annealing, progress: Progress) -> Annealed:
        """Annealed importance sampling of the plan's frames: a stochastic lower bound of log p(x)."""
        frames = self._render(self._tables, to_device(plan))
        annealer = Annealer(self._program, self._parameters, annealing)
        self._set_noise(batch_index)
        path = annealer.pilot(frames, progress)
        return annealer.forward(frames, path, progress)

    def bracketed(
        self, plan: Any, batch_index: int, annealing: Annealing, progress: Progress
    ) -> tuple[Annealed, Annealed]:
        """Forward and backward annealing on frames simulated from the model: stochastic lower and upper bounds."""
        annealer = Annealer(self._program, self._parameters, annealing)
        self._set_noise(batch_index)
        frames, latents = annealer.simulate(self._render(self._tables, to_device(plan)))
        path = annealer.pilot(frames, progress)
        forward = annealer.forward(frames, path, progress)
        return forward, annealer.backward(frames, latents, path, progress)

    def reconstruct(self, plan: Any, batch_index: int = 0) -> np.ndarray:
        """E[x | latents drawn from the guide], shaped as the frames."""
        frames = self._render(self._tables, to_device(plan))
        self._set_noise(batch_index)
        return self._reconstruct(self._parameters, frames).numpy(force=True)

    def _set_noise(self, batch_index: int) -> None:
        torch.manual_seed(int(np.random.SeedSequence([self._seed, batch_index]).generate_state(1)[0]))
