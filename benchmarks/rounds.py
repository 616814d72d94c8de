"""Timing contenders against each other on a machine whose speed wanders.

Each round runs every contender for a short chunk, so that whatever else the machine does falls on all of them alike;
times and ratios are medians over rounds.
"""

import time
from collections.abc import Callable, Mapping
from statistics import median
from typing import TypeVar

SECONDS_PER_CHUNK = 0.3
# Fewer steps would time what is done once per chunk: a compiled loop of one step is no loop, and one of many first
# copies all parameters. Training takes chunks of about two seconds.
SHORTEST_CHUNK, LONGEST_CHUNK = 4, 512  # steps
FEWEST_ROUNDS = 3

Run = Callable[[int], object]
Name = TypeVar("Name")


def interleaved(
    contenders: Mapping[Name, Run], seconds: float, shortest_chunk: int = SHORTEST_CHUNK
) -> dict[Name, list[float]]:
    """Seconds per step of each contender in each round, after a warm-up.

    A contender is a function that takes so many steps and returns when they are done. seconds: how long each is timed.
    shortest_chunk: in steps; 1 where a step is a call of its own, and nothing is done once per chunk.
    """
    lengths = {name: _chunk_length(run, shortest_chunk) for name, run in contenders.items()}
    times: dict[Name, list[float]] = {name: [] for name in contenders}
    order = list(contenders)
    while len(times[order[0]]) < FEWEST_ROUNDS or _timed(times, lengths) < seconds * len(contenders):
        for name in order:
            times[name].append(_seconds_per_step(contenders[name], lengths[name]))
        order.reverse()  # nobody always follows the same other
    return times


def ratio(times: list[float], reference: list[float]) -> float:
    """The median over rounds of the ratio within a round."""
    return median(own / other for own, other in zip(times, reference, strict=True))


def _chunk_length(run: Run, shortest: int) -> int:
    run(shortest)  # compiles, allocates
    length = round(SECONDS_PER_CHUNK / _seconds_per_step(run, shortest))
    length = min(max(length, shortest), LONGEST_CHUNK)
    if length > shortest:
        run(length)  # a loop of another length may be compiled anew
    return length


def _seconds_per_step(run: Run, num_steps: int) -> float:
    started = time.perf_counter()
    run(num_steps)
    return (time.perf_counter() - started) / num_steps


def _timed(times: Mapping[Name, list[float]], lengths: Mapping[Name, int]) -> float:
    return sum(sum(rounds) * lengths[name] for name, rounds in times.items())
