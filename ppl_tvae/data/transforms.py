"""The moving factors of the paper and their S values: rotation, scale, hue.

Rotation (flat, or in perspective) and scale become one table of where each output pixel comes from; hue a table of
colours. Both are made once, by NumPy, and read on the device by `rendering.py`.
"""

import colorsys
from collections.abc import Sequence
from itertools import product

import numpy as np

from ppl_tvae.errors import UserError, unknown_name

FACTORS = ("rotation", "scale", "hue")
PERSPECTIVE = "perspective"  # the rotation again, but of a plane in space
PLAIN = ("none",)
# Source coordinates are rounded to 1/256 of a pixel, as graphics hardware does. Interpolation is then exact integer
# arithmetic, and a plan gives the same frames, bit for bit, on every machine and in every backend.
SUBPIXELS = 256
# As the paper and its code list them. Nearly np.linspace rounded to two decimals, but that would give 1.10, not 1.11.
PAPER_SCALES = (
    *(0.60, 0.64, 0.68, 0.72, 0.76, 0.79, 0.83, 0.87, 0.91),
    *(0.95, 0.99, 1.03, 1.07, 1.11, 1.14, 1.18, 1.22, 1.26),
)


def rotation_degrees(num_timesteps: int) -> np.ndarray:
    """(S,) degrees, counter-clockwise on screen: 0, 360/S, 2*360/S, ..."""
    return np.arange(num_timesteps) * 360 / num_timesteps


def scales(num_timesteps: int) -> np.ndarray:
    """(S,) magnifications from 0.60 to 1.26: the paper's list at S = 18, else evenly spaced."""
    return np.array(PAPER_SCALES) if num_timesteps == len(PAPER_SCALES) else np.linspace(0.60, 1.26, num_timesteps)


def hue_degrees(num_timesteps: int) -> np.ndarray:
    """(S,) shifts of hue in degrees: index k is k*360/S - 180, so that a red digit starts at cyan.

    The minus is the authors' released code's; the paper lists 0, 20, ..., 340. As a cycle both are the same.
    """
    return np.arange(num_timesteps) * 360 / num_timesteps - 180


def hue_colours(num_timesteps: int) -> np.ndarray:
    """(S, 3) float32: what a pure red becomes under each shift of hue."""
    shifts = hue_degrees(num_timesteps)
    return np.array([colorsys.hsv_to_rgb(shift / 360 % 1, 1, 1) for shift in shifts], np.float32)


def factor_values(num_timesteps: int) -> dict[str, np.ndarray]:
    """Each factor's (S,) values: degrees, magnifications, degrees of hue shift."""
    return {
        "rotation": rotation_degrees(num_timesteps),
        "scale": scales(num_timesteps),
        "hue": hue_degrees(num_timesteps),
    }


def moving_factors(transforms: tuple[str, ...]) -> np.ndarray:
    """(num_transforms, 3) bool: which of rotation, scale, hue move in each transform.

    A transform is a factor, or several joined by "+" that move together from one phase: "rotation+hue". "perspective"
    takes the place of rotation. Raises UserError for an unknown or repeated name.
    """
    if not transforms:
        raise UserError("expected at least one transform, found none; name 'rotation', 'scale', 'hue' or 'none'.")
    known = [*FACTORS, "rotation+hue", "rotation+scale", "scale+hue", "rotation+scale+hue"]
    known += [PERSPECTIVE, "perspective+hue", "perspective+scale", "perspective+scale+hue", *PLAIN]
    rows = []
    for name in transforms:
        parts = ["rotation" if part == PERSPECTIVE else part for part in name.split("+")]
        if not set(parts) <= set(FACTORS) or len(set(parts)) < len(parts):
            if name == "none":
                raise UserError(
                    f"expected 'none' alone, found it among {', '.join(transforms)}; drop it, or the others."
                )
            raise unknown_name("transform", name, known)
        rows.append([factor in parts for factor in FACTORS])
    seen = [(*row, PERSPECTIVE in name.split("+")) for row, name in zip(rows, transforms, strict=True)]
    check_apart(transforms, seen)
    return np.array(rows)


def check_apart(transforms: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Raises UserError where two transforms have one row: they are one, under two names or named twice."""
    for index, row in enumerate(rows):
        if row in rows[:index]:
            first = transforms[rows.index(row)]
            raise UserError(f"expected transforms that differ, found '{first}' and '{transforms[index]}'; drop one.")


def in_perspective(transforms: tuple[str, ...]) -> list[bool]:
    """Whether each transform shows its rotation in perspective."""
    return [PERSPECTIVE in name.split("+") for name in transforms]


def source_coordinates(height: int, width: int, degrees: float, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """Where each output pixel is read from: (H, W) rows and columns, in pixels, in steps of 1/256.

    The image is turned counter-clockwise as seen on screen (rows grow downwards) and magnified, about its true centre
    ((H-1)/2, (W-1)/2). The authors' code turns about (14, 14) instead.
    """
    centre_row, centre_column = (height - 1) / 2, (width - 1) / 2
    down, right = np.meshgrid(np.arange(height) - centre_row, np.arange(width) - centre_column, indexing="ij")
    cosine, sine = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    rows = centre_row + (cosine * down + sine * right) / scale
    columns = centre_column + (cosine * right - sine * down) / scale
    return np.round(rows * SUBPIXELS) / SUBPIXELS, np.round(columns * SUBPIXELS) / SUBPIXELS


def perspective_coordinates(height: int, width: int, degrees: float, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """As `source_coordinates`, for an image that turns in space: the geometry of the authors' released code.

    With a the angle, x and y the pixel's distance from the centre to the right and down, and d the image's diagonal:
    the image, in the plane one pixel behind the centre, is turned by a in its plane, clockwise, then by a about the
    vertical axis, and seen from the distance d / (2 sin a) at which it keeps its size,

        (X, Y, Z) = (x' cos a - sin a, y', x' sin a + cos a),   x' = x cos a - y sin a,   y' = x sin a + y cos a,
        pixel of the output = (X, Y) / (1 + k Z),   k = 2 sin(a) / d.

    At 0 degrees that is the image itself; at 180, where the distance is infinite, it is upside down. The released code
    takes 181 degrees there, and (14, 14) for the centre. Here the equations are solved for (x, y); what lies at
    infinity or behind the eye is given row and column -2, outside the image.
    """
    centre_row, centre_column = (height - 1) / 2, (width - 1) / 2
    down, right = np.meshgrid(np.arange(height) - centre_row, np.arange(width) - centre_column, indexing="ij")
    down, right = down / scale, right / scale
    cosine, sine = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    k = 2 * sine / np.hypot(height, width)
    slant = cosine - k * sine * right
    seen = np.abs(slant) > 1e-9
    across = (right * (1 + k * cosine) + sine) / np.where(seen, slant, 1.0)
    depth = 1 + k * (across * sine + cosine)
    seen &= depth > 0
    rows = np.where(seen, centre_row + cosine * down * depth - sine * across, -2.0)
    columns = np.where(seen, centre_column + cosine * across + sine * down * depth, -2.0)
    return np.round(rows * SUBPIXELS) / SUBPIXELS, np.round(columns * SUBPIXELS) / SUBPIXELS


def sampling_tables(
    height: int, width: int, num_timesteps: int, perspective: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Two (S*S, H*W) int32 tables, row = rotation index * S + scale index; the rotation flat or in perspective.

    `corner` is the upper left of the four pixels to mix, as an index into an (H+1, W+1) grid that starts one row and
    column outside the image; `fraction` packs the position between them, rows << 8 | columns, in 256ths.
    """
    coordinates = perspective_coordinates if perspective else source_coordinates
    pairs = product(rotation_degrees(num_timesteps), scales(num_timesteps))
    corners, fractions = zip(*(_table_row(*coordinates(height, width, *pair), width) for pair in pairs), strict=True)
    return np.stack(corners), np.stack(fractions)


def _table_row(rows: np.ndarray, columns: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
    height = len(rows)
    # Out of reach of the image means the border cell (-1, -1) with fraction 0: one pixel of padding, always zero.
    outside = (rows < -1) | (rows >= height) | (columns < -1) | (columns >= width)
    rows, columns = np.where(outside, -1.0, rows), np.where(outside, -1.0, columns)
    corner = (np.floor(rows) + 1) * (width + 1) + np.floor(columns) + 1
    fraction = (rows % 1 * SUBPIXELS) * 256 + columns % 1 * SUBPIXELS
    return corner.ravel().astype(np.int32), fraction.ravel().astype(np.int32)
