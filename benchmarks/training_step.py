"""Training steps per second beside the same model without a probabilistic programming language: prints one table.

    python -m benchmarks.training_step [--batch-sizes 8,64] [--seconds 3] [--backends numpyro,pyro] [--json FILE]
        [--device cuda] [--matmul bfloat16] [--compiled]

Each framework has a process of its own, since the thread pools of torch and JAX disturb each other; within it the
contenders take turns (see `rounds.py`).
"""

import argparse
import json
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.command import CONTENDERS, backend_names, in_own_process, machine_line, numbers
from benchmarks.rounds import interleaved, ratio
from benchmarks.setting import (
    COMPILED,
    PLAIN,
    PPL,
    PRODUCTS,
    RECORDED,
    RELEASED,
    RENDERING,
    UNRECORDED,
    digit_sequences,
)

COLUMNS = ("contender", "batch", "data", "ms/step", "frames/s", "/ plain", "/ released", "products", "rendering")

Row = dict[str, Any]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark; rows go to standard output, and to a JSON file on request."""
    options = _options(arguments)
    if options.worker:
        print(json.dumps(measured(options.worker, options)))
        return
    machine = f"{machine_line(options.device)}; --matmul {options.matmul}"
    rows = beside_released([row for backend in options.backends for row in _in_own_process(backend, options)])
    print(machine, table_line(dict(zip(COLUMNS, COLUMNS, strict=True))), sep="\n")
    print(*(table_line(cells(row)) for row in rows), sep="\n")
    print("/ plain: time as a multiple of the twin's; of Pyro with a graph, of the twin with one")
    print("/ released: how many times faster than the released code's step")
    print("products, rendering: their time alone as a share of the step")
    if options.json:
        options.json.write_text(json.dumps({"machine": machine, "rows": rows}, indent=2) + "\n")


def measured(backend: str, options: argparse.Namespace) -> list[Row]:
    """The rows of a backend and its plain twin."""
    # In this order, as training does: what loads torch may have to say before how its threads wait.
    device, module = import_module(f"ppl_tvae.inference.{backend}.device"), import_module(CONTENDERS[backend])
    data = digit_sequences()
    rows: list[Row] = []
    with device.on_device(options.device, "float32", options.matmul):
        for batch_size in options.batch_sizes:
            print(f"{backend}, batches of {batch_size} ...", file=sys.stderr)
            runs = module.contenders(data, batch_size, options.compiled)
            memory = {name: module.extra_memory(run) for name, run in runs.items()}
            times = interleaved(runs, options.seconds)
            found = rows_of(times, module.NAMES, batch_size, batch_size * data.num_timesteps)
            rows += [row | {"extra_bytes": memory[name]} for name, row in zip(times, found, strict=True)]
    return rows


def rows_of(times: dict[Any, list[float]], names: dict[str, str], batch_size: int, num_frames: int) -> list[Row]:
    """A row for every contender; ratios are taken within rounds."""
    rows = []
    for (kind, drawn), own in times.items():
        row: Row = {
            "contender": names.get(kind, f"{kind} ({names[PLAIN].split()[0]})"),
            "kind": kind,
            "batch": batch_size,
            "data": "rendered" if drawn else "ready",
            "seconds_per_step": median(own),
            "frames_per_second": num_frames / median(own),
            "rounds": own,
        }
        if kind in (PPL, UNRECORDED, PLAIN, RECORDED, COMPILED):
            twin = RECORDED if kind == PPL and (RECORDED, drawn) in times else PLAIN
            row["to_plain"] = ratio(own, times[twin, drawn])
            row["products_share"] = ratio(times[PRODUCTS, False], own)
            row["rendering_share"] = ratio(times[RENDERING, True], own) if drawn else None
        rows.append(row)
    return rows


def beside_released(rows: list[Row]) -> list[Row]:
    """The rows, those that draw their data with how many times faster than the released code they are, by medians."""
    released = {row["batch"]: row["seconds_per_step"] for row in rows if row["kind"] == RELEASED}
    return [
        row | {"faster_than_released": released[row["batch"]] / row["seconds_per_step"]}
        if row["batch"] in released and row["data"] == "rendered" and row["kind"] not in (RENDERING, PRODUCTS)
        else row
        for row in rows
    ]


def cells(row: Row) -> dict[str, str]:
    """A row as text."""
    is_part = "to_plain" not in row
    rendering, faster = row.get("rendering_share"), row.get("faster_than_released")
    return {
        "contender": row["contender"],
        "batch": str(row["batch"]),
        "data": "" if row["kind"] in (RENDERING, PRODUCTS) else row["data"],
        "ms/step": f"{1e3 * row['seconds_per_step']:.{1 if row['seconds_per_step'] > 0.01 else 3}f}",
        "frames/s": f"{row['frames_per_second']:.0f}",
        "/ plain": "" if is_part else f"{row['to_plain']:.2f}",
        "/ released": "" if faster is None else f"{faster:.1f}",
        "products": "" if is_part else f"{row['products_share']:.0%}",
        "rendering": "" if rendering is None else f"{rendering:.1%}",
    }


def table_line(values: dict[str, str]) -> str:
    """A line of the table, in Markdown."""
    first, *rest = COLUMNS
    return " | ".join([f"| {values[first]:32}", *(f"{values[column]:>10}" for column in rest)]) + " |"


def _in_own_process(backend: str, options: argparse.Namespace) -> list[Row]:
    sizes = ",".join(map(str, options.batch_sizes))
    worker = ["--worker", backend, "--batch-sizes", sizes, "--seconds", str(options.seconds)]
    worker += ["--device", options.device, "--matmul", options.matmul, *(["--compiled"] if options.compiled else [])]
    return in_own_process("benchmarks.training_step", *worker)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training_step", description=__doc__.split("\n")[0])
    parser.add_argument("--batch-sizes", type=numbers, default=[8, 64], metavar="N,...", help="sequences (8,64)")
    parser.add_argument("--seconds", type=float, default=3.0, help="how long each contender is timed (3)")
    parser.add_argument("--backends", type=backend_names, default=list(CONTENDERS), metavar="NAME,...", help="(both)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every round's time too")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="(cpu)")
    parser.add_argument("--matmul", choices=("tf32", "float32", "bfloat16"), default="tf32", help="of products (tf32)")
    parser.add_argument("--compiled", action="store_true", help="on a CPU too, time PyTorch alone under torch.compile")
    parser.add_argument("--worker", choices=CONTENDERS, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    backends = [options.worker] if options.worker else options.backends
    if options.matmul == "bfloat16" and options.device == "cuda" and "pyro" in backends:
        parser.error("expected --backends numpyro with --matmul bfloat16 on a GPU, found pyro")
    return options


if __name__ == "__main__":
    main()
