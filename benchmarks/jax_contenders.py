"""A training step in NumPyro and in JAX alone, and the two parts of it that no program can avoid."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import plain_jax
from benchmarks.setting import (
    ADAM,
    CHUNK,
    LEARNING_RATE,
    PLAIN,
    PPL,
    PRODUCTS,
    RENDERING,
    Contenders,
    Plans,
    latent_shape,
    layers,
    neighborhood,
    paper_experiment,
    ready,
    rendered,
)
from ppl_tvae.assembly import assemble
from ppl_tvae.config import Experiment
from ppl_tvae.data import Plan, SequenceData
from ppl_tvae.data.rendering import SequenceTables
from ppl_tvae.inference.numpyro.device import jit_step, to_device
from ppl_tvae.inference.numpyro.importance import log_weights
from ppl_tvae.inference.numpyro.svi import Trainer
from ppl_tvae.inference.objective import ELBO

NAMES = {PPL: "NumPyro", PLAIN: "JAX alone"}


def contenders(data: SequenceData, batch_size: int, compiled: bool = False) -> Contenders:
    """All of them, for batches of so many sequences; all are compiled, asked for or not."""
    first = data.train_plans(0, 0, 1, batch_size).at(0)
    frames = rendered(to_device(data.tables), to_device(first))
    found: Contenders = {}
    for drawn in (True, False):
        render, tables = (rendered, data.tables) if drawn else (ready, SequenceTables(frames))
        found[PPL, drawn] = _numpyro(render, tables, first, Plans(data, batch_size, drawn))
        found[PLAIN, drawn] = _plain(render, to_device(tables), frames, Plans(data, batch_size, drawn))
    found[RENDERING, True] = _rendering(to_device(data.tables), frames, Plans(data, batch_size, True))
    found[PRODUCTS, False] = _products(frames)
    return found


def extra_memory(run: Callable[[int], object]) -> int | None:
    """None: JAX takes most of a card at once and keeps one peak, so that no contender's own can be told."""
    return None


def weighing(experiment: Experiment, data: SequenceData, batch_size: int, num_particles: int) -> dict[str, Any]:
    """Log weights of one batch, ours and by hand, and the networks alone; a step is one evaluation of the batch."""
    first = data.train_plans(0, 0, 1, batch_size).at(0)
    frames = rendered(to_device(data.tables), to_device(first))
    assert experiment.mu is not None
    shape, hidden = latent_shape(experiment), experiment.hidden
    parameters = plain_jax.initial_parameters(jax.random.key(0), shape, hidden, frames[0, 0].size, experiment.mu)
    draw = log_weights(assemble(experiment, "numpyro"), num_particles)
    settings = (num_particles, CHUNK, shape, neighborhood(experiment), experiment.epsilon)
    plain = jax.jit(lambda parameters, key, frames: plain_jax.log_weights(parameters, None, key, frames, *settings))
    networks = jax.jit(lambda parameters, frames: plain_jax.networks(parameters, frames, num_particles, CHUNK))
    return {
        PPL: _repeating(lambda: draw(parameters, jax.random.key(1), frames)),
        PLAIN: _repeating(lambda: plain(parameters, jax.random.key(1), frames)),
        PRODUCTS: _repeating(lambda: networks(parameters, frames)),
    }


def _repeating(compute: Callable[[], jax.Array]) -> Callable[[int], None]:
    def run(num_steps: int) -> None:
        for _ in range(num_steps):
            compute().block_until_ready()

    return run


def _numpyro(render: Any, tables: Any, first: Plan, plans: Plans) -> Any:
    program = assemble(paper_experiment("numpyro"), "numpyro")
    trainer = Trainer(program, ELBO, ADAM, render, tables, first, seed=0)
    return lambda num_steps: trainer.advance(plans.following(num_steps))


def _plain(render: Any, tables: Any, frames: jax.Array, plans: Plans) -> Any:
    experiment = paper_experiment("numpyro")
    shape, hidden, mu = latent_shape(experiment), experiment.hidden, experiment.mu
    assert mu is not None
    parameters = plain_jax.initial_parameters(jax.random.key(0), shape, hidden, frames[0, 0].size, mu)
    weights = neighborhood(experiment)
    trainer = plain_jax.Trainer(parameters, weights, shape, experiment.epsilon, LEARNING_RATE, render, tables)
    return lambda num_steps: trainer.advance(to_device(plans.following(num_steps)))


def _rendering(tables: Any, frames: jax.Array, plans: Plans) -> Any:
    """Plans drawn on the host, and frames from them."""

    @jax.jit
    def last_frames(tables: Any, plans: Plan) -> jax.Array:
        def step(_: jax.Array, plan: Plan) -> tuple[jax.Array, None]:
            return rendered(tables, plan), None  # carried on, so that no step's frames are left out

        return jax.lax.scan(step, jnp.zeros_like(frames), plans)[0]

    return lambda num_steps: last_frames(tables, to_device(plans.following(num_steps))).block_until_ready()


def _products(frames: jax.Array) -> Any:
    sequences = frames.shape[:2]  # as in a step: of rows in one axis XLA computes some bfloat16 products in float32
    sizes = layers(paper_experiment("numpyro"), frames[0, 0].size)
    needs_gradient = [input_needs_gradient for _, _, input_needs_gradient in sizes]
    operands = [
        (jnp.ones((*sequences, size_in)), jnp.ones((size_out, size_in)), jnp.ones((*sequences, size_out)))
        for size_in, size_out, _ in sizes
    ]

    def one_step(operands: Any) -> Any:
        outputs = []
        for (x, weight, gradient), input_needs_gradient in zip(operands, needs_gradient, strict=True):
            outputs += [x @ weight.T, jnp.tensordot(gradient, x, ((0, 1), (0, 1)))]
            outputs += [gradient @ weight] if input_needs_gradient else []
        return outputs

    @jit_step
    def steps(operands: Any, num_steps: int) -> Any:
        # The barrier ties a step's products to the one before, so that none of them is left out or done once for all.
        def step(_: Any, carry: Any) -> Any:
            return jax.lax.optimization_barrier((carry[0], one_step(carry[0])))

        return jax.lax.fori_loop(0, num_steps, step, (operands, one_step(operands)))[1]

    return lambda num_steps: jax.block_until_ready(steps(operands, num_steps - 1))
