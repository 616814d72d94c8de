"""Dynamic binarisation, x ~ Bernoulli(grey), by a counter-based hash in int32: the same pixels in every backend.

The uniform of a pixel is a pure function of (the plan's random word, the pixel's position in its sequence), so nothing
is stored and no backend's generator is involved. Array API throughout: NumPy, JAX (also under jit) and torch.
"""

import math
from typing import Any

from array_api_compat import array_namespace

from ppl_tvae.data.placement import beside

Array = Any

# Multipliers of lowbias32 (C. Wellons, "Prospecting for hash functions", 2018), written as signed words.
FIRST, SECOND = 0x7FEB352D, 0x846CA68B - (1 << 32)


def mix(word: Array) -> Array:
    """A bijection of int32 words in which every input bit flips about half of the output bits."""
    # int32 products wrap alike everywhere; `>>` copies the sign bit, so the copies are masked away.
    word = word ^ ((word >> 16) & 0xFFFF)
    word = word * FIRST
    word = word ^ ((word >> 15) & 0x1FFFF)
    word = word * SECOND
    return word ^ ((word >> 16) & 0xFFFF)


def uniforms(noise: Array, shape: tuple[int, ...]) -> Array:
    """(B, *shape) float32 in [0, 1), multiples of 2**-24, from the (B,) int32 words `noise`."""
    xp = array_namespace(noise)
    place = xp.arange(math.prod(shape), dtype=xp.int32, **beside(noise))
    # Position and word are mixed apart before they meet: a plain counter would give two sequences with near words
    # the same stream, shifted. Both being mixed, what follows can leave out the first and last third of `mix`: these
    # are passes over every pixel, which eager torch does not fuse, and the highest bits of a product need no more.
    mixed = mix(xp.concat([place, noise]))  # in one go: in torch each operation is a kernel
    word = (mixed[None, : len(place)] ^ mixed[len(place) :, None]) * FIRST
    word = (word ^ ((word >> 15) & 0x1FFFF)) * SECOND
    drawn = xp.astype(word >> 8, xp.float32) * 2.0**-24 + 0.5  # exact: 24 bits
    return xp.reshape(drawn, (noise.shape[0], *shape))


def binarized(frames: Array, noise: Array) -> Array:
    """Frames of zeros and ones, float32, each pixel one with the probability that `frames` (B, ...) holds."""
    xp = array_namespace(frames, noise)
    return xp.astype(uniforms(noise, tuple(frames.shape[1:])) < frames, xp.float32)
