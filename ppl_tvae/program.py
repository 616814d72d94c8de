"""A program: the pair of a model and a guide, the two functions of `frames` that all of inference works on."""

from collections.abc import Callable
from typing import Any, NamedTuple

OBSERVED = "x"  # the site at which a model observes the frames
PLATE = "sequences"  # the plate of independent sequences

# Dimensions and coordinates of draws, frames and codes in a tree of draws (`diagnostics.datatree`).
FRAME_DIMS = ("sequence", "time", "height", "width", "channel")
CELL_DIMS = ("sequence", "time", "capsule", "position")
ABOUT = ("image", "label", "transform", "phase")  # of each sequence
TREE_NAMES = {"chain", "draw", *FRAME_DIMS, *CELL_DIMS, *ABOUT}  # which no site may have


class Program(NamedTuple):
    """`model(frames)` and `guide(frames)`; frames are (batch, time, height, width, channel), values in [0, 1].

    The model observes them at the site "x"; independent sequences lie in the plate "sequences". Inference needs
    no more than that: which other sites there are it finds out by tracing.
    """

    model: Callable[[Any], Any]
    guide: Callable[[Any], Any]
