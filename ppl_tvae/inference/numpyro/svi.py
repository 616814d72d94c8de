"""Stochastic variational inference in NumPyro: up to 1,024 steps are one compiled call.

Batches come in as small plans and are rendered to frames inside the compiled step, so no data crosses from the host.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from numpyro.infer import SVI
from numpyro.infer.elbo import ELBO

from ppl_tvae.inference.numpyro.checks import check_program
from ppl_tvae.inference.numpyro.device import jit_step, on_gpu, to_device
from ppl_tvae.inference.numpyro.objectives import OBJECTIVES
from ppl_tvae.inference.numpyro.products import RoundedProducts
from ppl_tvae.inference.numpyro.tracing import flat_parameters
from ppl_tvae.inference.objective import ELBO as HELD_OUT
from ppl_tvae.inference.objective import Objective
from ppl_tvae.inference.optimization import Optimization, learning_rate_factor
from ppl_tvae.program import Program

Arrays = dict[str, np.ndarray]

# A compiled call takes plans of one of these numbers of steps, padded; each of them is compiled once.
_FEW, _MANY = 64, 1024


class SequenceBound(ELBO):
    """A bound per sequence as the host's loss: minus its mean over sequences, divided by the frames of a sequence."""

    def __init__(self, objective: Objective) -> None:
        super().__init__()
        self.objective = objective

    def loss(self, rng_key: jax.Array, param_map: Any, model: Any, guide: Any, *args: Any, **kwargs: Any) -> jax.Array:
        """Nats per frame; goes down. args: the frames; kwargs: the step, counted from 0."""
        (frames,), step = args, kwargs["step"]
        bound = OBJECTIVES[self.objective.name]
        bounds = bound(self.objective, Program(model, guide), param_map, rng_key, frames, step)
        return -jnp.mean(jnp.broadcast_to(bounds, frames.shape[:1])) / frames.shape[1]


class Trainer:
    """Holds the state of a run: parameters, optimiser, random key. `advance` takes it through a chunk of steps."""

    _state: Any

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
    ) -> None:
        """render(tables, plan) -> frames, traced into the compiled step; first_plan fixes the shapes of a batch.

        likelihood: what the site "x" is said to be, which `check_program` holds against the program; None for a program
        that is known to be right, at which it does not look. Raises UserError with what is wrong with the program.
        """
        self._render, self._tables = render, to_device(tables)
        self._svi = SVI(program.model, program.guide, _optimizer(optimization), SequenceBound(objective))
        self._first_frames = jax.jit(render)
        frames = self._first_frames(self._tables, to_device(first_plan))
        # On the shapes of the next line, so that both share what JAX compiles.
        if likelihood is not None:
            check_program(program, frames, likelihood)
        self._begin(frames, seed)
        self._advance = jit_step(self._steps)
        self._advance_all = jit_step(jax.vmap(self._steps, in_axes=(0, None, 0, None)))
        self._evaluate = jit_step(self._mean_loss)

    def reseeded(self, first_plan: Any, seed: int) -> "Trainer":
        """A trainer of the same program that begins from another seed; what is compiled is shared."""
        other = copy(self)
        other._begin(self._first_frames(self._tables, to_device(first_plan)), seed)
        return other

    def advance(self, plans: Any) -> np.ndarray:
        """Train on plans (steps, batch, ...); the loss of each step, nats per frame, (steps,).

        A GPU is waited for once.
        """
        losses = []
        for part, num_steps in _calls(plans):
            self._state, padded = self._advance(self._state, self._tables, self._placed(part), num_steps)
            losses.append((padded, num_steps))
        return np.concatenate([np.asarray(padded)[:num_steps] for padded, num_steps in losses])

    @property
    def execution(self) -> str:
        """How steps are run on a GPU or in bfloat16, after the words 'steps are'; else, and before the first, empty."""
        (device, *_) = jax.tree.leaves(self._tables)[0].devices()
        if device.platform != "cpu":
            return f"compiled, up to {_MANY:,} of them in one call"
        ways = (self._advance, self._advance_all)
        return next((way.description for way in ways if isinstance(way, RoundedProducts) and way.description), "")

    def held_out_loss(self, plans: Any) -> float:
        """Minus the mean ELBO over plans (batches, batch, ...), nats per frame, with the same noise at every call.

        It is the ELBO whatever objective is trained, so that runs can be compared by it.
        """
        parameters = self._svi.get_params(self._state)
        return float(self._evaluate(self._evaluation_key, parameters, self._tables, self._placed(plans)))

    def parameters(self) -> Arrays:
        """Constrained values by flat name."""
        return flat_parameters(self._svi.get_params(self._state))

    def state(self) -> Arrays:
        """Everything exact resumption needs, by name."""
        leaves = jax.tree_util.tree_flatten_with_path(self._state)[0]
        return {jax.tree_util.keystr(path): _to_numpy(leaf) for path, leaf in leaves}

    def restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Take up a state that `state` returned, in this process or another."""
        leaves, structure = jax.tree_util.tree_flatten_with_path(self._state)
        restored = [_from_numpy(arrays[jax.tree_util.keystr(path)], leaf) for path, leaf in leaves]
        self._state = jax.tree_util.tree_unflatten(structure, restored)

    def snapshot(self) -> Any:
        """The present state, to go back to with `rewind`; costs nothing, since JAX's arrays do not change."""
        return self._state

    def rewind(self, snapshot: Any) -> None:
        """Go back to a snapshot."""
        self._state = snapshot

    def _begin(self, frames: jax.Array, seed: int) -> None:
        key_init, self._evaluation_key = jax.random.split(jax.random.key(seed))
        self._state = self._svi.init(key_init, frames)

    def _placed(self, plans: Any) -> Any:
        """Plans (steps, batch, ...) where the compiled step wants them."""
        return to_device(plans)

    def _frames(self, tables: Any, plan: Any) -> jax.Array:
        return self._render(tables, plan)

    def _steps(self, state: Any, tables: Any, plans: Any, num_steps: Any) -> tuple[Any, jax.Array]:
        def step(index: Any, carry: Any) -> Any:
            state, losses = carry
            plan = jax.tree.map(lambda field: field[index], plans)
            state, loss = self._svi.update(state, self._frames(tables, plan), step=state.optim_state[0])
            return state, losses.at[index].set(loss)

        losses = jnp.zeros(plans[0].shape[0])
        return jax.lax.fori_loop(0, num_steps, step, (state, losses))

    def _mean_loss(self, evaluation_key: Any, parameters: Any, tables: Any, plans: Any) -> jax.Array:
        def loss(batch: Any) -> jax.Array:
            key, plan = batch
            program = (self._svi.model, self._svi.guide)
            return SequenceBound(HELD_OUT).loss(key, parameters, *program, self._frames(tables, plan), step=0)

        keys = jax.random.split(evaluation_key, plans[0].shape[0])
        return jnp.mean(jax.lax.map(loss, (keys, plans)))


def advance_together(trainers: Sequence[Trainer], plans: Sequence[Any]) -> np.ndarray:
    """Train several seeds of one program at once, each on its own plans (steps, batch, ...): losses (seeds, steps).

    The trainers come from `reseeded`. One compiled program takes them all through each step, over the stacked states.
    """
    first, losses = trainers[0], []
    states = _stacked([trainer._state for trainer in trainers])
    for parts in zip(*map(_calls, plans), strict=True):
        stacked = jax.tree.map(lambda *fields: np.stack(fields), *(part for part, _ in parts))
        num_steps = parts[0][1]
        states, padded = first._advance_all(states, first._tables, to_device(stacked), num_steps)
        losses.append((padded, num_steps))
    for trainer, state in zip(trainers, _unstacked(states, len(trainers)), strict=True):
        trainer._state = state
    return np.concatenate([np.asarray(padded)[:, :num_steps] for padded, num_steps in losses], axis=1)


@jax.jit
def _stacked(trees: Sequence[Any]) -> Any:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


@partial(jax.jit, static_argnums=1)
def _unstacked(tree: Any, length: int) -> list[Any]:
    return [jax.tree.map(lambda leaf, index=index: leaf[index], tree) for index in range(length)]


def _calls(plans: Any) -> Iterator[tuple[Any, int]]:
    """Plans (steps, batch, ...) in parts for one compiled call each, padded with their last step, and their lengths.

    A chunk of any length runs the same compiled loop, so where chunks begin cannot change a single bit on a CPU.
    """
    for start in range(0, len(plans[0]), _MANY):
        num_steps = min(_MANY, len(plans[0]) - start)
        length = _FEW if num_steps <= _FEW else _MANY
        steps = start + np.minimum(np.arange(length), num_steps - 1)
        yield type(plans)(*(field[steps] for field in plans)), num_steps


def _optimizer(optimization: Optimization) -> optax.GradientTransformation:
    def learning_rate(step: jax.Array) -> jax.Array:
        return optimization.learning_rate * learning_rate_factor(optimization, step)

    if optimization.method == "adam":
        method = optax.adam(learning_rate, b1=optimization.momentum, eps=optimization.adam_epsilon)
    else:
        method = optax.sgd(learning_rate, momentum=optimization.momentum)
    clip = optax.clip_by_global_norm(optimization.clip_norm) if optimization.clip_norm else optax.identity()
    chain = optax.chain(clip, method)
    return _after_the_products(chain) if on_gpu() else chain


def _after_the_products(method: optax.GradientTransformation) -> optax.GradientTransformation:
    """The same method, which XLA is kept from adding to the products that give it gradients.

    It would have cuBLAS add a gradient to 0.9 times the momentum, which takes a pass of its own to write down first.
    """

    def update(gradients: Any, state: Any, parameters: Any = None) -> Any:
        return method.update(jax.tree.map(jax.lax.optimization_barrier, gradients), state, parameters)

    return optax.GradientTransformation(method.init, update)


def _to_numpy(leaf: Any) -> np.ndarray:
    is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(leaf) if is_key else leaf)


def _from_numpy(array: np.ndarray, like: Any) -> jax.Array:
    is_key = jnp.issubdtype(like.dtype, jax.dtypes.prng_key)
    return jax.random.wrap_key_data(jnp.asarray(array)) if is_key else jnp.asarray(array, dtype=like.dtype)
