"""What importance weights cost: memory by number of particles, and time beside the same forward passes by hand.

    python -m benchmarks.evaluation [--sequences 1000] [--particles 10,1000] [--backends numpyro,pyro]
        [--device cuda] [--json FILE]

Memory is the peak of a process of its own that calls `ppl_tvae.evaluate` on a run that another one trained, for one
step on `digits`; time is taken in turns (see `rounds.py`), on one batch.
"""

import argparse
import json
import resource
import tempfile
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from statistics import median
from typing import Any

import ppl_tvae
from benchmarks.command import CONTENDERS, backend_names, in_own_process, machine_line, numbers
from benchmarks.rounds import Run, interleaved, ratio
from benchmarks.setting import PLAIN, PPL, PRODUCTS, digit_sequences, paper_experiment

TIMED_BATCH, TIMED_PARTICLES = 8, 128


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark; two tables go to standard output, and their rows to a JSON file on request."""
    options = _options(arguments)
    if options.worker:
        print(json.dumps(WORKERS[options.worker[0]](*options.worker[1:])))
        return
    machine, memory, timing = machine_line(options.device), [], []
    print(machine, "\n| backend | K | sequences | peak memory, MiB | seconds |", "|---|---|---|---|---|", sep="\n")
    for backend in options.backends:
        with tempfile.TemporaryDirectory() as folder:
            run = str(Path(folder) / "run")
            _in_own_process(["train", backend, run])
            for count in options.particles:
                row = _in_own_process(["memory", run, str(options.sequences), str(count), options.device])
                memory.append({"backend": backend, "particles": count, **row})
                figures = f"{row['sequences']} | {row['mebibytes']:.0f} | {row['seconds']:.1f}"
                print(f"| {backend} | {count} | {figures} |", flush=True)
    print("\n| backend | K | sequences | log weights, ms | by hand, ms | / by hand | networks alone |")
    print("|---|---|---|---|---|---|---|")
    for backend in options.backends:
        row = _in_own_process(["time", backend, str(options.seconds), options.device])
        timing.append({"backend": backend, "particles": TIMED_PARTICLES, "sequences": TIMED_BATCH, **row})
        figures = f"{row['ours_ms']:.0f} | {row['plain_ms']:.0f} | {row['to_plain']:.2f} | {row['networks_share']:.0%}"
        print(f"| {backend} | {TIMED_PARTICLES} | {TIMED_BATCH} | {figures} |", flush=True)
    if options.json:
        found = {"machine": machine, "memory": memory, "time": timing}
        options.json.write_text(json.dumps(found, indent=2) + "\n")


def trained(backend: str, run: str) -> None:
    """A run of one step, at that path."""
    experiment = ppl_tvae.Experiment(backend=backend, data="digits", device="cpu", steps=1, validation_sequences=1)
    ppl_tvae.train(experiment, run, quiet=True)


def peak_memory(run: str, num_sequences: str, num_particles: str, device: str) -> dict[str, Any]:
    """The peak of this process on the host, MiB, after an evaluation with so many particles; how long that took."""
    (record,) = ppl_tvae.evaluate(
        ppl_tvae.open_run(Path(run)),
        estimators=("iwae",),
        particles=(int(num_particles),),
        split="train",
        max_sequences=int(num_sequences),
        device=device,
        quiet=True,
    )
    kibibytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"mebibytes": kibibytes / 1024, "seconds": record["seconds"], "sequences": record["num_sequences"]}


def times(backend: str, seconds: str, device: str) -> dict[str, float]:
    """Milliseconds of our log weights and of the twin's, their ratio, and the share of the networks alone."""
    with import_module(f"ppl_tvae.inference.{backend}.device").on_device(device, "float32", "float32"):
        rounds = interleaved(weighing(backend, TIMED_BATCH, TIMED_PARTICLES), float(seconds), shortest_chunk=1)
    return {
        "ours_ms": 1e3 * median(rounds[PPL]),
        "plain_ms": 1e3 * median(rounds[PLAIN]),
        "to_plain": ratio(rounds[PPL], rounds[PLAIN]),
        "networks_share": ratio(rounds[PRODUCTS], rounds[PPL]),
    }


WORKERS: dict[str, Any] = {"train": trained, "memory": peak_memory, "time": times}


def weighing(backend: str, batch_size: int, num_particles: int) -> dict[str, Run]:
    """The contenders of the second table."""
    return import_module(CONTENDERS[backend]).weighing(
        paper_experiment(backend), digit_sequences(), batch_size, num_particles
    )


def _in_own_process(task: Sequence[str]) -> Any:
    return in_own_process("benchmarks.evaluation", "--worker", *task)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.evaluation", description=__doc__.split("\n")[0])
    parser.add_argument("--sequences", type=int, default=1000, help="in the memory table (1000)")
    parser.add_argument("--particles", type=numbers, default=[10, 1000], metavar="K,...", help="(10,1000)")
    parser.add_argument("--seconds", type=float, default=10.0, help="how long each contender is timed (10)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="(cpu)")
    parser.add_argument("--backends", type=backend_names, default=list(CONTENDERS), metavar="NAME,...", help="(both)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows too")
    parser.add_argument("--worker", nargs="+", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
