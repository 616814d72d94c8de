"""Whether frames have an order in which each depends on latents and on what comes before it alone.

A product of densities is a joint density where the graph of what depends on what has no cycle. With one, as where a
pixel's distribution is computed from that pixel, or a latent's prior from the frames that it explains, log p(x) is that
of no model, and may be as high as one likes. Found by showing a program its frames with some pixels changed.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from ppl_tvae.errors import UserError
from ppl_tvae.program import OBSERVED

MOST_COPIES = 32  # of a sequence in one look: a large batch would only take memory
_MOST_TIMES = 32  # of longer sequences so many, evenly spaced
_ROUNDING = 1e-5

Place = tuple[int, ...]  # an index into a sequence: of a frame, (time,), or of a pixel, (time, row, column, channel)


class Look(NamedTuple):
    """What a model says of B sequences, given the frames that it is shown.

    densities: log-densities of the pixels that the sequences really have, (B, S, height, width, channel), or without
    the last axes where pixels have one density together; 0 where a mask leaves a pixel out. counts: (B, S, height,
    width, channel) bool, which pixels no mask leaves out. latents: log p(latents), (B,).
    """

    densities: np.ndarray
    counts: np.ndarray
    latents: np.ndarray


def check_order(sequences: np.ndarray, others: np.ndarray, look: Callable[[np.ndarray, bool], Look]) -> None:
    """Raises UserError where frames depend on each other, or a pixel on itself, in whatever way.

    sequences: copies of one, (B, S, height, width, channel); others: the same with another value of each pixel.
    look(shown, simulated): the model beside the frames shown, with latents as they are, or drawn from their prior with
    the same noise at each call: the effect of frames on latents is in their draws.
    """
    times = np.unique(np.linspace(0, sequences.shape[1] - 1, _MOST_TIMES).round().astype(int))
    frames = [(int(time),) for time in times]
    depends = _dependence(sequences, others, look, frames)
    of_others = _cycles(depends & ~np.eye(len(frames), dtype=bool))
    if len(of_others):
        first, second = times[next(pair for pair in of_others if pair[0] != pair[1])]
        raise UserError(
            f'expected an order of the frames at site "{OBSERVED}" in which each depends on those before it alone, '
            f"found that frames {first} and {second} depend on each other, by themselves or by latents whose prior is "
            f"computed from frames, with which log p(x) is that of no model; give each what comes before it alone"
        )
    within = times[np.diag(depends)]
    for time in {within[0], within[len(within) // 2], within[-1]} if len(within) else ():
        pixels = _pixels(int(time), sequences.shape[2:])
        if len(_cycles(_dependence(sequences, others, look, pixels))):
            raise UserError(
                f'expected the distribution of a pixel at site "{OBSERVED}" not to depend on that pixel of the frames, '
                f"found that it does at frame {time}, with which log p(x) is that of no model; give it what comes "
                f"before alone, shifted by a frame"
            )


def _pixels(time: int, shape: Sequence[int]) -> list[Place]:
    """Some pixels of a frame: neighbours in its middle, its ends, and others."""
    height, width, channels = shape
    middle = [range(max(0, size // 2 - 1), size // 2 + 1) for size in (height, width)]
    neighbours = {(time, y, x, c) for y in middle[0] for x in middle[1] for c in range(channels)}
    ends = {(time, 0, 0, 0), (time, height - 1, width - 1, channels - 1)}
    anywhere = np.random.default_rng(0).integers((height, width, channels), size=(4, 3))
    return sorted(neighbours | ends | {(time, *map(int, place)) for place in anywhere})


def _dependence(
    sequences: np.ndarray, others: np.ndarray, look: Callable[[np.ndarray, bool], Look], places: Sequence[Place]
) -> np.ndarray:
    """Whether the density at each place changes with the pixels at each: (from, to) bool."""
    depends, prior_sees = _changes(sequences, others, look, places, False)
    if prior_sees:
        depends |= _changes(sequences, others, look, places, True)[0]
    return depends


def _changes(
    sequences: np.ndarray,
    others: np.ndarray,
    look: Callable[[np.ndarray, bool], Look],
    places: Sequence[Place],
    simulated: bool,
) -> tuple[np.ndarray, bool]:
    """What changes with the pixels at each place: the densities at each (from, to); and whether log p(latents) does.

    Each copy of the sequence is changed at a place of its own; where latents are drawn, one at a time, since draws by
    rejection take more or less of the noise that those of later copies get.
    """
    before = look(sequences, simulated)
    at_once = 1 if simulated else len(sequences)
    depends, prior_sees = np.zeros((len(places), len(places)), bool), False
    for start in range(0, len(places), at_once):
        shown, part = sequences.copy(), places[start : start + at_once]
        for copy, place in enumerate(part):
            shown[copy][place] = np.where(before.counts[copy][place], others[copy][place], sequences[copy][place])
        after = look(shown, simulated)
        changed = _differ(before.densities, after.densities)
        for copy in range(len(part)):
            depends[start + copy] = [changed[copy][place[: changed.ndim - 1]].any() for place in places]
        prior_sees |= bool(_differ(before.latents, after.latents)[: len(part)].any())
    return depends, prior_sees


def _differ(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):  # of infinities, which are the same or not
        same = (after == before) | (np.abs(after - before) <= _ROUNDING * (1 + np.abs(before)))
    return ~same


def _cycles(depends: np.ndarray) -> np.ndarray:
    """Pairs of places of which each leads to the other, (pairs, 2): none where there is an order.

    depends: (from, to).
    """
    leads = depends.copy()
    for middle in range(len(leads)):
        leads |= leads[:, middle, None] & leads[middle]
    return np.argwhere(leads & leads.T)
