"""The paper's reduced set of dSprites: shape 3, scale 5, orientation S, posX S, posY S values; from a file, or drawn.

Keller & Welling 2021 take S = 15: scales 1 to 5 of 6, and of the 40 orientations and 32 positions every second one,
0, 2, ..., 28. So orientation goes to 258 degrees and then jumps back, and so do the positions.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from ppl_tvae.data.drawing import SHAPES, drawn
from ppl_tvae.data.dsprites import FACTORS, read_dsprites
from ppl_tvae.data.images import Source
from ppl_tvae.errors import UserError

# The paper's code moves four of the five factors; the shape only differs between sequences.
MOVING = ("scale", "orientation", "posX", "posY")
TIMESTEPS = 15
MOST_TIMESTEPS = 16  # every second one of 32 positions

# The values of the original's factors: magnification, radians, and positions across the 32 pixels in the middle.
SCALES, ORIENTATIONS, POSITIONS = np.linspace(0.5, 1, 6), np.linspace(0, 2 * np.pi, 40), np.linspace(0, 1, 32)


def picked_indices(num_timesteps: int) -> tuple[np.ndarray, ...]:
    """Which values of each factor of the original are in the set. Raises UserError where there are too few."""
    if not 2 <= num_timesteps <= MOST_TIMESTEPS:
        raise UserError(
            f"expected 2 to {MOST_TIMESTEPS} timesteps of sprites, one for every second position, found "
            f"{num_timesteps}; change the number."
        )
    seconds = 2 * np.arange(num_timesteps)
    return np.arange(3), np.arange(1, 6), seconds, seconds, seconds


def _values(num_timesteps: int) -> dict[str, np.ndarray]:
    shape, scale, orientation, x, y = picked_indices(num_timesteps)
    values = (shape, SCALES[scale], ORIENTATIONS[orientation], POSITIONS[x], POSITIONS[y])
    return dict(zip(FACTORS, values, strict=True))


def _from_file(num_timesteps: int, data_dir: Path | None) -> Source:
    pixels = read_dsprites(picked_indices(num_timesteps), data_dir)
    return _source("dsprites", pixels, _values(num_timesteps))


def _drawn(num_timesteps: int, _: Path | None) -> Source:
    values = _values(num_timesteps)
    return _source("sprites", _drawings(values), values)


def _drawn_in_a_circle(num_timesteps: int, _: Path | None) -> Source:
    """As `_drawn`, but orientations 2 pi / S apart, so that the last one is followed by the first without a jump."""
    values = _values(num_timesteps) | {"orientation": np.arange(num_timesteps) * 2 * np.pi / num_timesteps}
    return _source("sprites-cyclic", _drawings(values), values)


def _drawings(values: dict[str, np.ndarray]) -> np.ndarray:
    grid = [each.ravel() for each in np.meshgrid(*list(values.values())[1:], indexing="ij")]
    return np.concatenate([drawn(shape, *grid) for shape in values["shape"]])


def _source(name: str, pixels: np.ndarray, values: dict[str, np.ndarray]) -> Source:
    labels = np.repeat(values["shape"], len(pixels) // len(SHAPES)).astype(np.int32)
    none = np.empty(0, np.int32)
    return Source(name, "factors", pixels, labels, none, none, SHAPES, values)


SPRITES: dict[str, tuple[Callable[[int, Path | None], Source], str]] = {
    "dsprites": (_from_file, "the paper's 50,625 of 737,280 sprites, 64x64 black and white; 27 MB are downloaded once"),
    "sprites": (_drawn, "the same images, drawn here; needs no download"),
    "sprites-cyclic": (_drawn_in_a_circle, "as sprites, but orientation in S equal steps, a full turn without a jump"),
}


def load_sprites(name: str, num_timesteps: int | None = None, data_dir: Path | None = None) -> Source:
    """The reduced set of that name (a key of SPRITES) with S values (15) of orientation, posX and posY.

    Raises UserError for another S than 2 to 16, and for files that cannot be had or read.
    """
    return SPRITES[name][0](TIMESTEPS if num_timesteps is None else num_timesteps, data_dir)
