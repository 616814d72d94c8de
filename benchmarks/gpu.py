"""What a GPU is asked: a step beside the same model without a PPL, and how long the paper's run of a model would take.

    python -m benchmarks.gpu [--steps 50000] [--seconds 3] [--device cuda] [--json FILE]

The second is a projection: two whole trainings of different length are timed, and the difference is what a step costs.
They have the settings of the paper's tvae, on the digits that come with scikit-learn; with 50,000 steps between them
the difference has a held-out ELBO and a checkpoint, as every 50,000 steps of the paper's run have. NumPyro's is timed
with three seeds in one program too.
"""

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks import training_step
from benchmarks.command import CONTENDERS, in_own_process
from ppl_tvae.config import Experiment, experiment_from
from ppl_tvae.experiments import experiment_of_the_paper
from ppl_tvae.seeds import train_seeds
from ppl_tvae.training import train

PAPER_STEPS = 600_000  # 100 epochs of 48,000 images in batches of 8
TRAININGS = (("numpyro", 1), ("pyro", 1), ("numpyro", 3))  # backend, seeds


def main(arguments: Sequence[str] | None = None) -> None:
    """Print both; the table goes to a JSON file on request."""
    options = _options(arguments)
    if options.worker:
        print(json.dumps(timed_trainings(options.worker, options.seeds, options.device, options.steps)))
        return
    table = ["--device", options.device, "--batch-sizes", "8", "--seconds", str(options.seconds)]
    training_step.main([*table, *(["--json", str(options.json)] if options.json else [])])
    for backend, seeds in TRAININGS:
        print(projection(backend, seeds, *_in_own_process(backend, seeds, options)), flush=True)


def papers_run(backend: str, device: str) -> Experiment:
    """A run of table 1, L = 13/36 S, under the paper's budget, of images that need no download."""
    table = experiment_of_the_paper("table1")
    settings = table.settings_of("tvae, L = 13/36 S", "paper")
    return experiment_from({**settings, "data": "digits", "backend": backend, "device": device})


def timed_trainings(backend: str, seeds: int, device: str, steps: int) -> list[tuple[int, float]]:
    """(steps, seconds) of a short training and of one that is `steps` longer, from beginning to end; seeds: at once.

    The short one is trained twice: the first pays for what a process does once, such as loading libraries.
    """
    found, short = [], max(1, steps // 10)
    for number in (short, short, short + steps):
        experiment = replace(papers_run(backend, device), steps=number)
        with TemporaryDirectory() as folder:
            started = time.perf_counter()
            out = Path(folder) / "run"
            train(experiment, out) if seeds == 1 else train_seeds(experiment, seeds, out)
            found.append((number, time.perf_counter() - started))
    return found[1:]


def projection(backend: str, seeds: int, short: tuple[int, float], long: tuple[int, float]) -> str:
    """A sentence: what the paper's number of steps would take, and from what this is known."""
    what = backend if seeds == 1 else f"{backend}, {seeds} seeds at once"
    step = (long[1] - short[1]) / (long[0] - short[0])
    if step <= 0:
        return f"{what}: no projection, {long[0]:,} steps took no longer than {short[0]:,}; raise --steps"
    start = short[1] - short[0] * step
    minutes = (start + PAPER_STEPS * step) / 60
    return (
        f"{what}: {PAPER_STEPS:,} steps of 8 sequences would take {minutes:.1f} minutes: {start:.1f} s to begin, "
        f"{1e3 * step:.3f} ms a step with its share of held-out ELBOs and checkpoints "
        f"(trained: {short[0]:,} steps in {short[1]:.1f} s, {long[0]:,} in {long[1]:.1f} s)"
    )


def _in_own_process(backend: str, seeds: int, options: argparse.Namespace) -> list[tuple[int, float]]:
    own = ("--worker", backend, "--seeds", seeds, "--device", options.device, "--steps", options.steps)
    return [(int(steps), float(seconds)) for steps, seconds in in_own_process("benchmarks.gpu", *own)]


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.split("\n")[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda", help="cpu is for a rehearsal (cuda)")
    parser.add_argument("--steps", type=int, default=50_000, metavar="N", help="of the longer training, more (50000)")
    parser.add_argument("--seconds", type=float, default=3.0, help="how long each contender of a step is timed (3)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every round's time of the steps")
    parser.add_argument("--worker", choices=CONTENDERS, help=argparse.SUPPRESS)
    parser.add_argument("--seeds", type=int, default=1, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
