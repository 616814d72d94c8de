"""What a prior or a posterior of one latent site is told about it."""

from typing import NamedTuple


class Latent(NamedTuple):
    """A latent site of a named program.

    shape: its event shape (S, C, D). hidden: sizes of the encoders' hidden layers, from the frames inwards.
    time_offsets: of the frames whose latents share variance with those of a frame (`Lattice.time_offsets`).
    """

    name: str
    shape: tuple[int, int, int]
    hidden: tuple[int, ...]
    time_offsets: tuple[int, ...] = (0,)
