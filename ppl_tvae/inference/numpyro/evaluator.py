"""A trained program, ready to be asked: plans and NumPy arrays in, NumPy arrays out."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ppl_tvae.inference.numpyro.device import to_device
from ppl_tvae.inference.numpyro.importance import log_weights
from ppl_tvae.inference.numpyro.posterior import reconstruction
from ppl_tvae.program import Program


class Evaluator:
    """Noise is a function of (seed, batch index), so an estimate does not depend on what was asked before it."""

    def __init__(
        self,
        program: Program,
        parameters: Mapping[str, np.ndarray],
        render: Callable[[Any, Any], jax.Array],
        tables: Any,
        precision: str,
        seed: int,
    ) -> None:
        """render(tables, plan) -> frames; parameters by flat name."""
        self._program, self._rng_key = program, jax.random.key(seed)
        self._parameters = {name: jnp.asarray(value, dtype=precision) for name, value in parameters.items()}
        self._render, self._tables = jax.jit(render), to_device(tables)
        self._reconstruct = reconstruction(program)
        self._log_weights: dict[int, Any] = {}

    def frames(self, plan: Any) -> np.ndarray:
        """The frames of a plan, as observed: (batch, time, height, width, channel)."""
        return np.asarray(self._render(self._tables, to_device(plan)))

    def log_weights(self, plan: Any, batch_index: int, num_particles: int) -> np.ndarray:
        """log importance weights, (num_particles, batch), nats per sequence."""
        if num_particles not in self._log_weights:
            self._log_weights[num_particles] = log_weights(self._program, num_particles)
        draw = self._log_weights[num_particles]
        return np.asarray(draw(self._parameters, self._key(batch_index), self._render(self._tables, to_device(plan))))

    def reconstruct(self, plan: Any, batch_index: int = 0) -> np.ndarray:
        """E[x | latents drawn from the guide], shaped as the frames."""
        frames = self._render(self._tables, to_device(plan))
        return np.asarray(self._reconstruct(self._parameters, self._key(batch_index), frames))

    def _key(self, batch_index: int) -> jax.Array:
        return jax.random.fold_in(self._rng_key, batch_index)
