"""Whether frames have an order in which each depends on latents and on what comes before it alone.

A product of densities is a joint density where the graph of what depends on what has no cycle. With one, as where a
pixel's distribution is computed from that pixel, or a latent's prior from the frames that it explains, log p(x) is that
of no model, and may be as high as one likes. Found by showing a program its frames with some pixels changed.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from ppl_tvae.errors import UserError
from ppl_tvae.program import OBSERVED

MOST_COPIES = 16  # of a sequence in one look, each of which is changed at another place
_MOST_PIXELS = 1024  # of a frame; of larger ones a row, a column, the ends and some others
_ROUNDING = 1e-5


class Look(NamedTuple):
    """What a model says of B sequences, given the frames that it is shown.

    densities: log-densities of the pixels that the sequences really have, (B, S, height, width, channel), or without
    the last axes where pixels have one density together; 0 where a mask leaves a pixel out. counts: (B, S, height,
    width, channel) bool, which pixels no mask leaves out. latents: log p(latents), (B,).
    """

    densities: np.ndarray
    counts: np.ndarray
    latents: np.ndarray


def other_values(sequences: np.ndarray, frames: np.ndarray, discrete: bool) -> np.ndarray:
    """Another value of each pixel: of zero and one the other, of a density an end of the range of a batch's frames.

    Where that range is narrow, the end is 0.25 or 0.75.
    """
    if discrete:
        return 1 - sequences
    low, high = np.minimum(frames.min(), 0.25), np.maximum(frames.max(), 0.75)
    return np.where(sequences < 0.5, high, low).astype(sequences.dtype)


def check_order(sequences: np.ndarray, others: np.ndarray, look: Callable[[np.ndarray, bool], Look]) -> None:
    """Raises UserError where frames depend on each other, or a pixel on itself, in whatever way.

    sequences: copies of one, (B, S, height, width, channel); others: the same with another value of each pixel.
    look(shown, simulated): the model beside the frames shown, with latents as they are, or drawn from their prior with
    the same noise at each call: the effect of frames on latents is in their draws.
    """
    num_frames, *shape = sequences.shape[1:]
    frames = np.broadcast_to(np.arange(num_frames).reshape(-1, 1, 1, 1), sequences.shape[1:])
    depends, together = _dependence(sequences, others, look, frames)
    of_others = _cycles(depends & ~np.eye(num_frames, dtype=bool), together)
    if len(of_others):
        first, second = next(pair for pair in of_others if pair[0] != pair[1])
        raise UserError(
            f'expected an order of the frames at site "{OBSERVED}" in which each depends on those before it alone, '
            f"found that frames {first} and {second} depend on each other, by themselves or by latents whose prior is "
            f"computed from frames, with which log p(x) is that of no model; give each what comes before it alone"
        )
    within = np.flatnonzero(np.diag(depends & ~together))
    if len(within) * np.prod(shape) > _MOST_PIXELS:
        within = within[sorted({0, len(within) // 2, len(within) - 1})]
    for time in within:
        pixels = np.full(sequences.shape[1:], -1)
        pixels[time] = _pixels(*shape)
        if len(_cycles(*_dependence(sequences, others, look, pixels))):
            raise UserError(
                f'expected the distribution of a pixel at site "{OBSERVED}" not to depend on that pixel of the frames, '
                f"found that it does at frame {time}, with which log p(x) is that of no model; give it what comes "
                f"before alone, shifted by a frame"
            )


def _pixels(height: int, width: int, channels: int) -> np.ndarray:
    """The places of a frame, numbered from 0, -1 where none is: (height, width, channel)."""
    chosen = np.ones((height, width), bool)
    if height * width * channels > _MOST_PIXELS:
        rng = np.random.default_rng(0)
        chosen[...] = False
        chosen[[0, -1], [0, -1]] = True
        chosen[height // 2, :_MOST_PIXELS] = chosen[:_MOST_PIXELS, width // 2] = True
        chosen[rng.integers(height, size=8), rng.integers(width, size=8)] = True
    places = np.full((height, width, channels), -1)
    places[chosen] = np.arange(np.sum(chosen) * channels).reshape(-1, channels)
    return places


def _dependence(
    sequences: np.ndarray, others: np.ndarray, look: Callable[[np.ndarray, bool], Look], places: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Whether the density at each place changes with the pixels at each: (from, to) bool; and which share a density.

    places: (S, height, width, channel) int, which place a pixel belongs to, from 0; -1 where to none.
    """
    depends, together, prior_sees = _changes(sequences, others, look, places, False)
    if prior_sees:
        depends |= _changes(sequences, others, look, places, True)[0]
    return depends, together


def _changes(
    sequences: np.ndarray,
    others: np.ndarray,
    look: Callable[[np.ndarray, bool], Look],
    places: np.ndarray,
    simulated: bool,
) -> tuple[np.ndarray, np.ndarray, bool]:
    """What changes with the pixels at each place: the densities at each (from, to); and whether log p(latents) does.

    Between them, which places share a density: (places, places) bool, a place with itself where it does with another.
    Each copy of the sequence is changed at a place of its own.
    """
    before, number = look(sequences, simulated), int(places.max()) + 1
    ndim = before.densities.ndim - 1
    of_density = places.reshape(*places.shape[:ndim], -1)  # the places of each, the last axis
    depends, prior_sees = np.zeros((number, number), bool), False
    for start in range(0, number, len(sequences)):
        shown, part = sequences.copy(), range(start, min(start + len(sequences), number))
        for copy, place in enumerate(part):
            changes = before.counts[copy] & (places == place)
            shown[copy][changes] = others[copy][changes]
        after = look(shown, simulated)
        changed = _differ(before.densities, after.densities)
        for copy, place in enumerate(part):
            found = of_density[changed[copy]]
            depends[place, found[found >= 0]] = True
        prior_sees |= bool(_differ(before.latents, after.latents)[: len(part)].any())
    together = np.zeros((number, number), bool)
    for shared in of_density.reshape(-1, of_density.shape[-1]) if of_density.shape[-1] > 1 else ():
        if (members := np.unique(shared[shared >= 0])).size > 1:
            together[np.ix_(members, members)] = True
    return depends, together, prior_sees


def _differ(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        close = np.abs(after - before) <= _ROUNDING * (1 + np.abs(before))
    return ~((after == before) | close | (np.isnan(after) & np.isnan(before)))


def _cycles(depends: np.ndarray, together: np.ndarray) -> np.ndarray:
    """Pairs of places of which each leads to the other, (pairs, 2): none where there is an order.

    depends: (from, to). Of places that share a density it is not seen which of them depends on which, as in a mixture
    of autoregressive components; but the last of an order changes nothing of it.
    """
    leads = depends & ~together
    for _ in range(len(leads).bit_length()):
        steps = leads.astype(np.float32)
        leads |= steps @ steps > 0
    sees_own = depends.diagonal() | (depends & together).any(axis=1)
    no_last = together & ~(together & ~sees_own).any(axis=1)[:, None]
    return np.argwhere(leads & leads.T | no_last)
