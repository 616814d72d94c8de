"""A loop of your own: NumPyro's SVI trains a program here, and its parameters become a run like any other.

    python examples/own_loop_numpyro.py runs/own-loop
    python examples/own_loop_numpyro.py runs/own-loop --model my_tvae.py --steps 500
    ppl-tvae evaluate runs/own-loop --estimators ais --max-sequences 8

Whatever gives parameters by name can stand in the place of `trained`: another loss or optimiser of the host, a
schedule, several stages. The batches are those that `ppl-tvae train` would take. Prints the held-out ELBO and IWAE-10.
"""

import argparse
import sys
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from statistics import fmean
from typing import Any

import jax
import jax.numpy as jnp
from numpyro.infer import SVI, TraceMeanField_ELBO
from numpyro.optim import Adam

import ppl_tvae


# Edit here for another loop.
def trained(own: ppl_tvae.OwnTraining, steps: int) -> dict[str, Any]:
    """The parameters by name after so many steps, from the experiment's seed."""
    model, guide = own.program
    svi = SVI(model, guide, Adam(1e-3), TraceMeanField_ELBO())
    state = svi.init(jax.random.key(own.experiment.seed), next(own.batches()))
    update, losses = jax.jit(svi.update), []
    for step, frames in enumerate(islice(own.batches(), steps), start=1):
        state, loss = update(state, jnp.asarray(frames))
        losses.append(float(loss) / (frames.shape[0] * frames.shape[1]))
        if step % 100 == 0:
            print(f"step {step}: loss {fmean(losses[-100:]):.1f} nats per frame", file=sys.stderr)
    return dict(svi.get_params(state))


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0, or 2 with the sentence that says what was wrong."""
    parser = argparse.ArgumentParser(description="NumPyro's own SVI, and a run of what it found.")
    parser.add_argument("out", help="the run directory to make")
    parser.add_argument("--model", default="tvae", help="a named model, or the path of your own program (tvae)")
    parser.add_argument("--data", default="digits", help="the data set (digits)")
    parser.add_argument("--steps", type=int, default=2000, help="steps of the loop (2000)")
    options = parser.parse_args(arguments)
    try:
        if Path(options.out).exists():  # not only when the loop has ended
            raise ppl_tvae.UserError(f"expected a new directory, found that '{options.out}' exists; name another")
        own = ppl_tvae.OwnTraining(ppl_tvae.Experiment(model=options.model, data=options.data, backend="numpyro"))
        parameters = trained(own, options.steps)
        run = own.save_run(options.out, parameters, trained_by=f"SVI, TraceMeanField_ELBO, {options.steps} steps")
        for record in ppl_tvae.evaluate(run, particles=10):
            print(f"{record['estimator']}: {record['value']:.2f} +- {record['standard_error']:.2f} {record['unit']}")
    except ppl_tvae.UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
