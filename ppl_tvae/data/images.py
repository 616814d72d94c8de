"""What a source is once it is read, and the split of one that came without."""

from dataclasses import dataclass
from typing import Literal

import numpy as np


@dataclass(frozen=True)
class Source:
    """Labelled images, or ready sequences of frames, and which of them are for training and for the test.

    kind: "images" or "sequences".
    pixels: all splits together; images are (N, H, W, channel) uint8 with 1 or 3 channels, sequences
        (N, S, H, W, channel) uint8 or float32 in [0, 1] with any number of channels.
    labels: (N,) int32, -1 where unknown.
    train, test: int32 indices into the first axis.
    """

    name: str
    kind: Literal["images", "sequences"]
    pixels: np.ndarray
    labels: np.ndarray
    train: np.ndarray
    test: np.ndarray


def random_test_split(num_images: int, num_test: int) -> tuple[np.ndarray, np.ndarray]:
    """Sorted train and test indices, int32, the test set drawn at random once and for all."""
    order = np.random.default_rng(20210904).permutation(num_images).astype(np.int32)
    return np.sort(order[num_test:]), np.sort(order[:num_test])
