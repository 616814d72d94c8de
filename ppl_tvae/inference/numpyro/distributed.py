"""Each batch shared by several devices: the trainer of `svi.py` with its arrays laid out over a mesh.

Parameters, optimiser state and tables are on every device; the batch axis of plans and frames is split. The compiled
step is the same function; from the layout of its arguments XLA finds that gradients have to be summed over devices.
Draws are a function of key and shape alone, whoever computes them, so that the number of devices changes rounding only.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from ppl_tvae.errors import UserError
from ppl_tvae.inference.numpyro.device import devices_of, jit_step
from ppl_tvae.inference.numpyro.svi import Trainer
from ppl_tvae.inference.objective import Objective
from ppl_tvae.inference.optimization import Optimization
from ppl_tvae.program import Program


class DistributedTrainer(Trainer):
    """A trainer whose batches are split over the first `num_devices` devices. Raises UserError if there are fewer."""

    def __init__(
        self,
        program: Program,
        objective: Objective,
        optimization: Optimization,
        render: Callable[[Any, Any], jax.Array],
        tables: Any,
        first_plan: Any,
        seed: int,
        *,
        likelihood: str | None = "",
        device: str,
        num_devices: int,
    ) -> None:
        """device: "auto", "cpu" or "cuda"; the rest as in `svi.Trainer`."""
        self._mesh = Mesh(_first(num_devices, device), ("batch",))
        super().__init__(program, objective, optimization, render, tables, first_plan, seed, likelihood=likelihood)
        self._everywhere = NamedSharding(self._mesh, P())
        self._state, self._tables = jax.device_put((self._state, self._tables), self._everywhere)
        # Left to itself, XLA may choose to hand back a state that is split over the devices.
        self._advance = jit_step(self._steps, out_shardings=self._everywhere)

    def restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        """As in `svi.Trainer`."""
        super().restore(arrays)
        self._state = jax.device_put(self._state, self._everywhere)

    def _placed(self, plans: Any) -> Any:
        # Held-out sequences may be fewer than a batch; where they do not divide, every device takes them all.
        divides = plans[0].shape[1] % self._mesh.size == 0
        return jax.device_put(plans, NamedSharding(self._mesh, P(None, "batch")) if divides else self._everywhere)

    def _frames(self, tables: Any, plan: Any) -> jax.Array:
        frames = super()._frames(tables, plan)
        if frames.shape[0] % self._mesh.size:
            return frames
        return jax.lax.with_sharding_constraint(frames, NamedSharding(self._mesh, P("batch")))


def _first(num_devices: int, device: str) -> np.ndarray:
    found = devices_of(device)
    if num_devices > len(found):
        raise UserError(
            f"expected {num_devices} devices, found {len(found)} of '{found[0].platform}'; lower --devices, or have a "
            f"CPU count as several with XLA_FLAGS=--xla_force_host_platform_device_count={num_devices}"
        )
    return np.asarray(found[:num_devices])
