"""Training steps per second beside the same model without a probabilistic programming language: prints one table.

    python -m benchmarks.training_step [--batch-sizes 8,64] [--seconds 3] [--backends numpyro,pyro] [--json FILE]

Each framework has a process of its own, since the thread pools of torch and JAX disturb each other; within it the
contenders take turns (see `rounds.py`).
"""

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.rounds import interleaved, ratio
from benchmarks.setting import PLAIN, PPL, PRODUCTS, RENDERING, digit_sequences

CONTENDERS = {"numpyro": "benchmarks.jax_contenders", "pyro": "benchmarks.torch_contenders"}
COLUMNS = ("contender", "batch", "data", "ms/step", "frames/s", "/ plain", "products", "rendering")

Row = dict[str, Any]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark; rows go to standard output, and to a JSON file on request."""
    options = _options(arguments)
    if options.worker:
        print(json.dumps(measured(options.worker, options.batch_sizes, options.seconds)))
        return
    machine = machine_line()
    print(machine, table_line(dict(zip(COLUMNS, COLUMNS, strict=True))), sep="\n", flush=True)
    rows = []
    for backend in options.backends:
        found = _in_own_process(backend, options)
        rows += found
        print(*(table_line(cells(row)) for row in found), sep="\n", flush=True)
    print("products, rendering: their time alone as a share of the step")
    if options.json:
        options.json.write_text(json.dumps({"machine": machine, "rows": rows}, indent=2) + "\n")


def measured(backend: str, batch_sizes: Sequence[int], seconds: float) -> list[Row]:
    """The rows of a backend and its plain twin."""
    module, data = import_module(CONTENDERS[backend]), digit_sequences()
    rows: list[Row] = []
    device = import_module(f"ppl_tvae.inference.{backend}.device")
    with device.on_device("cpu", "float32"):
        for batch_size in batch_sizes:
            print(f"{backend}, batches of {batch_size} ...", file=sys.stderr)
            times = interleaved(module.contenders(data, batch_size), seconds)
            rows += rows_of(times, module.NAMES, batch_size, batch_size * data.num_timesteps)
    return rows


def rows_of(times: dict[Any, list[float]], names: dict[str, str], batch_size: int, num_frames: int) -> list[Row]:
    """A row for every contender; ratios are taken within rounds."""
    rows = []
    for (kind, drawn), own in times.items():
        row: Row = {
            "contender": names.get(kind, f"{kind} ({names[PLAIN].split()[0]})"),
            "batch": batch_size,
            "data": "rendered" if drawn else "ready",
            "seconds_per_step": median(own),
            "frames_per_second": num_frames / median(own),
            "rounds": own,
        }
        if kind in (PPL, PLAIN):
            row["to_plain"] = ratio(own, times[PLAIN, drawn])
            row["products_share"] = ratio(times[PRODUCTS, False], own)
            row["rendering_share"] = ratio(times[RENDERING, True], own) if drawn else None
        rows.append(row)
    return rows


def cells(row: Row) -> dict[str, str]:
    """A row as text."""
    is_part = "to_plain" not in row
    rendering = row.get("rendering_share")
    return {
        "contender": row["contender"],
        "batch": str(row["batch"]),
        "data": "" if is_part else row["data"],
        "ms/step": f"{1e3 * row['seconds_per_step']:.1f}",
        "frames/s": f"{row['frames_per_second']:.0f}",
        "/ plain": "" if is_part else f"{row['to_plain']:.2f}",
        "products": "" if is_part else f"{row['products_share']:.0%}",
        "rendering": "" if rendering is None else f"{rendering:.1%}",
    }


def table_line(values: dict[str, str]) -> str:
    """A line of the table, in Markdown."""
    first, *rest = COLUMNS
    return " | ".join([f"| {values[first]:25}", *(f"{values[column]:>9}" for column in rest)]) + " |"


def machine_line() -> str:
    """Where it was measured, and with which versions."""
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "pyro-ppl", "jax", "numpyro", "optax"))
    load = f", load {os.getloadavg()[0]:.1f} at the start" if hasattr(os, "getloadavg") else ""
    return f"{_processor()}, {os.cpu_count()} cores{load}; Python {platform.python_version()}, {versions}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _in_own_process(backend: str, options: argparse.Namespace) -> list[Row]:
    sizes = ",".join(map(str, options.batch_sizes))
    worker = ["--worker", backend, "--batch-sizes", sizes, "--seconds", str(options.seconds)]
    command = [sys.executable, "-m", "benchmarks.training_step", *worker]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training_step", description=__doc__.split("\n")[0])
    parser.add_argument("--batch-sizes", type=numbers, default=[8, 64], metavar="N,...", help="sequences (8,64)")
    parser.add_argument("--seconds", type=float, default=3.0, help="how long each contender is timed (3)")
    parser.add_argument("--backends", type=backend_names, default=list(CONTENDERS), metavar="NAME,...", help="(both)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every round's time too")
    parser.add_argument("--worker", choices=CONTENDERS, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def numbers(text: str) -> list[int]:
    """Of an option: 8,64."""
    return [int(part) for part in text.split(",")]


def backend_names(text: str) -> list[str]:
    """Of an option: numpyro,pyro. Raises ArgumentTypeError for any other."""
    names = text.split(",")
    if unknown := set(names) - set(CONTENDERS):
        raise argparse.ArgumentTypeError(f"expected some of {', '.join(CONTENDERS)}, found {', '.join(unknown)}")
    return names


if __name__ == "__main__":
    main()
