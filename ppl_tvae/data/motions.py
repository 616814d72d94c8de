"""Motions: which factor of a sprite moves while the others rest, and which motions are held out.

A motion is the cycle of images that a sprite passes through while the moving factors go through their values. Every
image lies on several motions, one for each factor, so images cannot be held out; motions can. Two cycles of the same
images are one motion: an ellipse that is turned by half a turn looks as before, under another index.
An item is a motion with the image that it starts from, numbered transform * N + image.
"""

import math
import zlib
from collections.abc import Sequence

import numpy as np

from ppl_tvae.data.transforms import check_apart
from ppl_tvae.errors import UserError, unknown_name

# The part of the motions that is for the test. Of no transform more than of the factor with the most values, which has
# the fewest motions: so the test set holds as many motions of each single factor, as training draws them.
TEST_FRACTION = 0.1


def moving_sprite_factors(transforms: Sequence[str], factors: Sequence[str]) -> np.ndarray:
    """(num_transforms, num_factors) bool: which factors move in each transform, "posX" or "posX+posY".

    Raises UserError for an unknown or repeated name.
    """
    if not transforms:
        raise UserError(f"expected at least one transform, found none; name {', '.join(factors)}.")
    for name in transforms:
        parts = name.split("+")
        if not set(parts) <= set(factors) or len(set(parts)) < len(parts):
            raise unknown_name("factor of sprites that moves (or several, joined by '+')", name, factors)
    rows = [[factor in name.split("+") for factor in factors] for name in transforms]
    check_apart(transforms, rows)
    return np.array(rows)


def stepped(image: np.ndarray, steps: int | np.ndarray, moves: np.ndarray, sizes: tuple[int, ...]) -> np.ndarray:
    """The image that each one becomes after so many steps of its motion: (...,) indices to (...,) indices."""
    places = np.unravel_index(image, sizes)
    moved = [(place + steps * move) % size for place, move, size in zip(places, moves, sizes, strict=True)]
    return np.ravel_multi_index(moved, sizes)


def split_motions(
    transforms: Sequence[str],
    moves: np.ndarray,
    sizes: tuple[int, ...],
    first_alike: np.ndarray,
    validation_fraction: float,
    seed: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Items for training, validation and test, int32; a motion of one is in none of the others.

    first_alike: (N,) the index of the first of the images that each one is the same as. Training has every motion from
    each of its images, held-out motions have one random start. A transform's split depends on which factors move in it
    and on nothing else that is named beside it.
    """
    parts = [
        _split(number, "+".join(sorted(name.split("+"))), row, sizes, first_alike, validation_fraction, seed)
        for number, (name, row) in enumerate(zip(transforms, moves, strict=True))
    ]
    train, validation, test = (np.concatenate(each).astype(np.int32) for each in zip(*parts, strict=True))
    return train, validation, test


def _split(
    number: int,
    name: str,
    moves: np.ndarray,
    sizes: tuple[int, ...],
    first_alike: np.ndarray,
    validation_fraction: float,
    seed: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    num_images = math.prod(sizes)
    period = math.lcm(*(size for size, move in zip(sizes, moves, strict=True) if move))
    image = np.arange(num_images)
    shown = np.sort([first_alike[stepped(image, step, moves, sizes)] for step in range(period)], axis=0)
    _, lowest, motion = np.unique(shown, axis=1, return_index=True, return_inverse=True)
    motion = lowest[motion.reshape(-1)]  # the lowest image whose cycle it is
    generator = np.random.default_rng([seed, zlib.crc32(name.encode())])
    motions = generator.permutation(np.unique(motion))
    fewest = min(len(motions), num_images // max(sizes))
    num_test = round(TEST_FRACTION * fewest)
    num_validation = round(validation_fraction * (fewest - num_test))
    held_out = motions[: num_test + num_validation]
    starts = stepped(held_out, generator.integers(period, size=len(motions))[: len(held_out)], moves, sizes)
    first = number * num_images
    train = image[~np.isin(motion, held_out)]
    return first + train, first + starts[num_test:], first + starts[:num_test]
