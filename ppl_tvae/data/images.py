"""What a source is once it is read, and the split of one that came without."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np


@dataclass(frozen=True)
class Source:
    """Labelled images, or ready sequences of frames, and which of them are for training and for the test.

    kind: "images", "sequences", or "factors" for an image of every combination of some factors' values.
    pixels: all splits together; images are (N, H, W, channel) uint8 with 1 or 3 channels, sequences
        (N, S, H, W, channel) uint8 or float32 in [0, 1] with any number of channels, images of factors (N, H, W/8)
        uint8, eight pixels of zero or one in a byte, the leftmost in the highest bit.
    labels: (N,) int32, -1 where unknown. label_names: what they stand for, where they have names.
    train, test: int32 indices into the first axis; empty for factors, of which motions are held out and not images.
    factors: of "factors", name -> values; images are in the order of np.ndindex, the last factor fastest.
    digest: of all that was read, where it is the user's own and may be other data another day.
    """

    name: str
    kind: Literal["images", "sequences", "factors"]
    pixels: np.ndarray
    labels: np.ndarray
    train: np.ndarray
    test: np.ndarray
    label_names: tuple[str, ...] = ()
    factors: Mapping[str, np.ndarray] = field(default_factory=dict)
    digest: str | None = None


def random_test_split(num_images: int, num_test: int) -> tuple[np.ndarray, np.ndarray]:
    """Sorted train and test indices, int32, the test set drawn at random once and for all."""
    order = np.random.default_rng(20210904).permutation(num_images).astype(np.int32)
    return np.sort(order[num_test:]), np.sort(order[:num_test])
