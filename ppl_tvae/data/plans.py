"""Plans: the small integers that say which sequence to draw.

A plan is drawn by NumPy on the host from integers alone and is a pure function of (seed, step). So both backends see
the same batches in the same order, and a resumed run sees what it would have seen; nothing has to be saved.
The draws are NumPy's PCG64, whose streams NumPy keeps stable but does not promise for ever (NEP 19).
"""

import zlib
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import numpy as np

# What the random words are for: two streams made from the same seed must not be the same stream.
ORDER, CHOICES, FIXED = 1, 2, 3


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


def parts(plan: Plan, size: int) -> Iterator[tuple[int, Plan]]:
    """The plan in parts of `size` sequences, the last one perhaps smaller, each with its number from 0."""
    for index, start in enumerate(range(0, len(plan.image), size)):
        yield index, Plan(*(field[start : start + size] for field in plan))


def training_plan(
    train_indices: np.ndarray, seed: int, step: int, batch_size: int, num_transforms: int, num_timesteps: int
) -> Plan:
    """The plan of one training step: a pure function of its arguments, so that a run can resume at any step.

    Images come without replacement: step k takes positions k*B ... k*B+B-1 of an endless row of permutations, one
    for every epoch, each derived from (seed, epoch). A batch may cross an epoch's end, and may exceed an epoch.
    """
    position = step * batch_size + np.arange(batch_size, dtype=np.int64)
    epoch, place = np.divmod(position, len(train_indices))
    image = np.empty(batch_size, np.int32)
    for number in range(int(epoch[0]), int(epoch[-1]) + 1):
        here = epoch == number
        image[here] = train_indices[_epoch_order(len(train_indices), seed, number)[place[here]]]
    return _draw(np.random.default_rng([seed, step, CHOICES]), image, num_transforms, num_timesteps)


def training_plans(
    train_indices: np.ndarray,
    seed: int,
    first_step: int,
    num_steps: int,
    batch_size: int,
    num_transforms: int,
    num_timesteps: int,
) -> Plan:
    """The plans of `num_steps` consecutive steps, stacked: every field has leading axes (num_steps, B)."""
    plans = [
        training_plan(train_indices, seed, step, batch_size, num_transforms, num_timesteps)
        for step in range(first_step, first_step + num_steps)
    ]
    return Plan(*(np.stack(field) for field in zip(*plans, strict=True)))


def fixed_plan(indices: np.ndarray, split_tag: str, num_transforms: int, num_timesteps: int) -> Plan:
    """One sequence per image, in the order of `indices`: fixed once and for all, whatever the user's seed.

    `split_tag` ("validation", "test") keeps the splits' draws apart.
    """
    generator = np.random.default_rng([zlib.crc32(split_tag.encode()), FIXED])
    return _draw(generator, np.asarray(indices, np.int32), num_transforms, num_timesteps)


@lru_cache(maxsize=8)
def _epoch_order(num_images: int, seed: int, epoch: int) -> np.ndarray:
    order = np.random.default_rng([seed, epoch, ORDER]).permutation(num_images)
    order.flags.writeable = False  # the cache hands out the same array again
    return order


def _draw(generator: np.random.Generator, image: np.ndarray, num_transforms: int, num_timesteps: int) -> Plan:
    size = len(image)
    limits = np.iinfo(np.int32)
    return Plan(
        image=image,
        transform=generator.integers(num_transforms, size=size, dtype=np.int32),
        phase=generator.integers(num_timesteps, size=size, dtype=np.int32),
        fixed=generator.integers(num_timesteps, size=(size, 3), dtype=np.int32),
        noise=generator.integers(limits.min, limits.max, size=size, dtype=np.int32, endpoint=True),
    )
