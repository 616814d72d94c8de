"""Plans: the small integers that say which sequence to draw.

A plan is drawn by NumPy on the host from integers alone and is a pure function of (seed, step). So both backends see
the same batches in the same order, and a resumed run sees what it would have seen; nothing has to be saved.
The draws are NumPy's PCG64, whose streams NumPy keeps stable but does not promise for ever (NEP 19).
"""

import zlib
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

# What the random words are for: two streams made from the same seed must not be the same stream.
ORDER, CHOICES, FIXED = 1, 2, 3
# Sequences, of as many whole steps as they make, whose choices are drawn together: a generator for each step costs more
# than all that it draws.
BLOCK = 2048


# How many sequences a trained program is asked about at a time: its draws depend on this number.
SEQUENCES_PER_BATCH = 8


class Plan(NamedTuple):
    """A batch of B sequences, each described by seven integers; every field is an int32 array with leading axis B.

    image: (B,) index into the source's first axis.
    transform: (B,) index into the data set's tuple of transforms: which factors move.
    phase: (B,) in 0..S-1, the factor's index in the first frame.
    fixed: (B, 3) in 0..S-1, the indices of the factors that do not move, in the order rotation, scale, hue; of sprites
        without meaning, since the image says it.
    noise: (B,) any int32, the random word of the binarisation.
    """

    image: np.ndarray
    transform: np.ndarray
    phase: np.ndarray
    fixed: np.ndarray
    noise: np.ndarray

    def map(self, function: Callable[[Any], Any]) -> "Plan":
        """The plan of what the function makes of each field."""
        return Plan(*(function(field) for field in self))

    def at(self, index: Any) -> "Plan":
        """What lies at an index, a slice or an array of indices of the first axis."""
        return self.map(lambda field: field[index])


def parts(plan: Plan, size: int = SEQUENCES_PER_BATCH) -> Iterator[tuple[int, Plan]]:
    """The plan in parts of `size` sequences, the last one perhaps smaller, each with its number from 0."""
    for index, start in enumerate(range(0, len(plan.image), size)):
        yield index, plan.at(slice(start, start + size))


def training_plans(
    train_indices: np.ndarray,
    seed: int,
    first_step: int,
    num_steps: int,
    batch_size: int,
    num_transforms: int,
    num_timesteps: int,
) -> Plan:
    """The plans of consecutive steps, every field with leading axes (num_steps, B).

    Each step's is a pure function of the other arguments and of the step, so that a run can resume at any step. Images
    come without replacement: step k takes positions k*B ... k*B+B-1 of an endless row of permutations, one for every
    epoch, each derived from (seed, epoch). A batch may cross an epoch's end, and may exceed an epoch.
    """
    steps = np.arange(first_step, first_step + num_steps)
    position = steps[:, None] * batch_size + np.arange(batch_size, dtype=np.int64)
    epoch, place = np.divmod(position, len(train_indices))
    image = np.empty(position.shape, np.int32)
    for number in range(int(epoch[0, 0]), int(epoch[-1, -1]) + 1):
        here = epoch == number
        image[here] = train_indices[_epoch_order(len(train_indices), seed, number)[place[here]]]
    choices = _choices_of_steps(seed, first_step, num_steps, batch_size, num_transforms, num_timesteps)
    return Plan(image, *choices)


def _choices_of_steps(
    seed: int, first_step: int, num_steps: int, batch_size: int, num_transforms: int, num_timesteps: int
) -> list[np.ndarray]:
    """transform, phase, fixed and noise of consecutive steps, (num_steps, B, ...)."""
    length, end = max(1, BLOCK // batch_size), first_step + num_steps
    parts = []
    for block in range(first_step // length, (end - 1) // length + 1):
        begin = block * length
        drawn = _choices_of_block(seed, block, length, batch_size, num_transforms, num_timesteps)
        parts.append([field[max(first_step - begin, 0) : end - begin] for field in drawn])
    return [np.concatenate(fields) for fields in zip(*parts, strict=True)]


def fixed_plan(indices: np.ndarray, split_tag: str, num_transforms: int, num_timesteps: int) -> Plan:
    """One sequence per image, in the order of `indices`: fixed once and for all, whatever the user's seed.

    `split_tag` ("train", "validation", "test") keeps the splits' draws apart.
    """
    generator = np.random.default_rng([zlib.crc32(split_tag.encode()), FIXED])
    return Plan(np.asarray(indices, np.int32), *_drawn(generator, (len(indices),), num_transforms, num_timesteps))


@lru_cache(maxsize=8)
def _epoch_order(num_images: int, seed: int, epoch: int) -> np.ndarray:
    order = np.random.default_rng([seed, epoch, ORDER]).permutation(num_images)
    order.flags.writeable = False  # the cache hands out the same array again
    return order


@lru_cache(maxsize=8)
def _choices_of_block(
    seed: int, block: int, length: int, batch_size: int, num_transforms: int, num_timesteps: int
) -> tuple[np.ndarray, ...]:
    generator = np.random.default_rng([seed, block, CHOICES])
    return _drawn(generator, (length, batch_size), num_transforms, num_timesteps)


def _drawn(
    generator: np.random.Generator, size: tuple[int, ...], num_transforms: int, num_timesteps: int
) -> tuple[np.ndarray, ...]:
    """transform, phase, fixed and noise of `size` sequences."""
    limits = np.iinfo(np.int32)
    return (
        generator.integers(num_transforms, size=size, dtype=np.int32),
        generator.integers(num_timesteps, size=size, dtype=np.int32),
        generator.integers(num_timesteps, size=(*size, 3), dtype=np.int32),
        generator.integers(limits.min, limits.max, size=size, dtype=np.int32, endpoint=True),
    )
