"""How the cost of a training step grows with the sizes of the model, each doubled once and twice.

    python -m benchmarks.growth [--seconds 1] [--backends numpyro,pyro] [--device cuda] [--json FILE]

Beside the measured ratio stands the one that the matrix products alone predict, those with W included. Contenders of a
backend take turns in a process of their own (see `rounds.py`).
"""

import argparse
import json
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.command import CONTENDERS, backend_names, in_own_process, machine_line
from benchmarks.rounds import Run, interleaved, ratio
from benchmarks.setting import latent_shape, layers, paper_experiment
from ppl_tvae.assembly import data_of
from ppl_tvae.config import Experiment
from ppl_tvae.trainers import trainer_of

# The words of the table, and the setting. K is of the objective iwae, whose K = 1 is the ELBO without analytic KL.
SIZES = {
    "S": "num_timesteps", "C": "num_capsules", "D": "capsule_dim", "batch": "batch_size", "K": "num_particles"
}  # fmt: skip
DOUBLINGS = (1, 2, 4)
PIXELS = 28 * 28 * 3


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark; one table goes to standard output, and its rows to a JSON file on request."""
    options = _options(arguments)
    if options.worker:
        print(json.dumps(measured(options.worker, options.device, options.seconds)))
        return
    machine, rows = machine_line(options.device), []
    print(machine, "\n| backend | size | value | ms/step | measured | predicted |", sep="\n")
    print("|---|---|---:|---:|---:|---:|")
    for backend in options.backends:
        for row in _in_own_process(backend, options):
            figures = f"{row['ms']:.2f} | {row['measured']:.2f} | {row['predicted']:.2f}"
            print(f"| {backend} | {row['size']} | {row['value']} | {figures} |", flush=True)
            rows.append({"backend": backend, **row})
    print("measured: time as a multiple of that of the size's first row; predicted: by the matrix products alone")
    if options.json:
        options.json.write_text(json.dumps({"machine": machine, "rows": rows}, indent=2) + "\n")


def settings(backend: str, device: str, size: str) -> list[Experiment]:
    """The experiment of the paper's size, and with one size doubled and doubled again."""
    base = replace(paper_experiment(backend), device=device, batch_size=8)
    if size == "K":
        base = replace(base, objective="iwae", num_particles=1)
    first = getattr(base, SIZES[size])
    return [replace(base, **{SIZES[size]: first * factor}) for factor in DOUBLINGS]


def products(experiment: Experiment) -> int:
    """Floating-point operations of the matrix products of a step, forwards and backwards."""
    timesteps, capsules, positions = latent_shape(experiment)
    particles = experiment.num_particles or 1
    rows = experiment.batch_size * timesteps
    of_layers = layers(experiment, PIXELS)
    decoder = of_layers[-len(of_layers) // 3 :]
    encoders = of_layers[: -len(decoder)]
    dense = sum(
        2 * count * size_in * size_out * (3 if needs_gradient else 2)
        for group, count in ((encoders, rows), (decoder, rows * particles))
        for size_in, size_out, needs_gradient in group
    )
    return dense + 2 * 2 * experiment.batch_size * particles * capsules * (timesteps * positions) ** 2


def measured(backend: str, device: str, seconds: float) -> list[dict[str, Any]]:
    """A row for every size and value."""
    rows = []
    with ExitStack() as whole:
        smallest: dict[Experiment, Run] = {}  # most sizes begin with the same experiment, which is compiled once
        for size, setting in SIZES.items():
            print(f"{backend}, {size} ...", file=sys.stderr)
            first, *doubled = settings(backend, device, size)
            if first not in smallest:
                smallest[first] = _steps(first, whole)
            with ExitStack() as context:
                runs = {first: smallest[first]} | {each: _steps(each, context) for each in doubled}
                times = interleaved(runs, seconds)
            for each in runs:
                rows.append(
                    {
                        "size": size,
                        "value": getattr(each, setting),
                        "ms": 1e3 * median(times[each]),
                        "measured": ratio(times[each], times[first]),
                        "predicted": products(each) / products(first),
                    }
                )
    return rows


def _steps(experiment: Experiment, context: ExitStack) -> Run:
    data = data_of(experiment)
    trainer = context.enter_context(trainer_of(experiment, data))
    done = 0

    def run(num_steps: int) -> None:
        nonlocal done
        trainer.advance(data.train_plans(experiment.seed, done, num_steps, experiment.batch_size))
        done += num_steps

    return run


def _in_own_process(backend: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    own = ("--worker", backend, "--seconds", options.seconds, "--device", options.device)
    return in_own_process("benchmarks.growth", *own)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.growth", description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=1.0, help="how long each size is timed (1)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="(cpu)")
    parser.add_argument("--backends", type=backend_names, default=list(CONTENDERS), metavar="NAME,...", help="(both)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows too")
    parser.add_argument("--worker", choices=CONTENDERS, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
