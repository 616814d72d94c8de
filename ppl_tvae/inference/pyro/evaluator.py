"""A trained program, ready to be asked: plans and NumPy arrays in, NumPy arrays out."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ppl_tvae.inference.pyro.device import to_device
from ppl_tvae.inference.pyro.importance import log_weights
from ppl_tvae.inference.pyro.posterior import reconstruction
from ppl_tvae.program import Program


class Evaluator:
    """Noise is a function of (seed, batch index), so an estimate does not depend on what was asked before it."""

    def __init__(
        self,
        program: Program,
        parameters: Mapping[str, np.ndarray],
        render: Callable[[Any, Any], Tensor],
        tables: Any,
        precision: str,
        seed: int,
    ) -> None:
        """render(tables, plan) -> frames; parameters by flat name."""
        self._program, self._seed = program, seed
        dtype, device = getattr(torch, precision), torch.get_default_device()
        self._parameters = {name: torch.tensor(v, dtype=dtype, device=device) for name, v in parameters.items()}
        self._render, self._tables = render, to_device(tables)
        self._reconstruct = reconstruction(program)

    def frames(self, plan: Any) -> np.ndarray:
        """The frames of a plan, as observed: (batch, time, height, width, channel)."""
        return self._render(self._tables, to_device(plan)).numpy(force=True)

    def log_weights(self, plan: Any, batch_index: int, num_particles: int) -> np.ndarray:
        """log importance weights, (num_particles, batch), nats per sequence."""
        draw = log_weights(self._program, num_particles)
        self._set_noise(batch_index)
        return draw(self._parameters, self._render(self._tables, to_device(plan))).numpy(force=True)

    def reconstruct(self, plan: Any, batch_index: int = 0) -> np.ndarray:
        """E[x | latents drawn from the guide], shaped as the frames."""
        frames = self._render(self._tables, to_device(plan))
        self._set_noise(batch_index)
        return self._reconstruct(self._parameters, frames).numpy(force=True)

    def _set_noise(self, batch_index: int) -> None:
        torch.manual_seed(int(np.random.SeedSequence([self._seed, batch_index]).generate_state(1)[0]))
