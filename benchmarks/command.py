"""What the benchmarks' commands share: some of their options, a line on the machine, a process for each measurement."""

import argparse
import json
import os
import platform
import subprocess
import sys
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

CONTENDERS = {"numpyro": "benchmarks.jax_contenders", "pyro": "benchmarks.torch_contenders"}


def numbers(text: str) -> list[int]:
    """Of an option: 8,64."""
    return [int(part) for part in text.split(",")]


def backend_names(text: str) -> list[str]:
    """Of an option: numpyro,pyro. Raises ArgumentTypeError for any other."""
    names = text.split(",")
    if unknown := set(names) - set(CONTENDERS):
        raise argparse.ArgumentTypeError(f"expected some of {', '.join(CONTENDERS)}, found {', '.join(unknown)}")
    return names


def machine_line(device: str) -> str:
    """Where it was measured, and with which versions."""
    card = f"{import_module('torch').cuda.get_device_name()}; " if device == "cuda" else ""
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "pyro-ppl", "jax", "numpyro", "optax"))
    load = f", load {os.getloadavg()[0]:.1f} at the start" if hasattr(os, "getloadavg") else ""
    return f"{card}{_processor()}, {os.cpu_count()} cores{load}; Python {platform.python_version()}, {versions}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def in_own_process(module: str, *arguments: object) -> Any:
    """What `python -m MODULE ARGUMENTS` prints last, as JSON."""
    command = [sys.executable, "-m", module, *map(str, arguments)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])
