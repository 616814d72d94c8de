"""Drawing the sprites of dSprites (Matthey et al. 2017): filled outlines, zeros and ones, by NumPy alone.

The geometry is our reconstruction. On 64,834 original images it agrees with all but nine, and in those with all but
one pixel. The canvas is 64 x 64 pixels, x to the right, y down; pixel (row, column) has its centre at
(row + 1/2, column + 1/2). No sprite is cut off by the border.
"""

import numpy as np

SHAPES = ("square", "ellipse", "heart")
SIZE = 64  # pixels along each side of the canvas
SUBPIXELS = 256  # vertices are rounded to 1/256 of a pixel, so which pixels are inside is decided in whole numbers
_IMAGES_AT_ONCE = 1024  # bounds the memory of a call, about 40 MB


def outline(shape: int) -> np.ndarray:
    """(vertices, 2) corners of a closed polygon in pixels about the sprite's centre, x right and y down, at scale 1."""
    if SHAPES[shape] == "square":
        return 9.6 * np.array([[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]])
    if SHAPES[shape] == "ellipse":
        turn = np.arange(100) * 2 * np.pi / 100
        return 9.6 * np.stack([1.33 * np.cos(turn), np.sin(turn) / 1.33], axis=1)
    turn = np.arange(150) * 2 * np.pi / 150
    lobes = 13 * np.cos(turn) - 5 * np.cos(2 * turn) - 2 * np.cos(3 * turn) - np.cos(4 * turn)
    return np.stack([9.6 * np.sin(turn) ** 3, -19.2 / 29 * lobes - 1.44], axis=1)


def drawn(shape: int, scale: np.ndarray, orientation: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """(N, 64, 8) uint8 images of one shape, eight pixels of a row in a byte, the leftmost in the highest bit.

    scale: (N,) magnification, 0.5 to 1 in dSprites.  orientation: (N,) radians, counter-clockwise on screen.
    x, y: (N,) position in 0..1, which is pixel 16 to 48 of the canvas. Beyond 0..1 pixels outside are left out.
    """
    parts = [slice(start, start + _IMAGES_AT_ONCE) for start in range(0, len(scale), _IMAGES_AT_ONCE)]
    packed = [np.packbits(_filled(_vertices(shape, scale[i], orientation[i], x[i], y[i])), axis=-1) for i in parts]
    return np.concatenate(packed) if packed else np.empty((0, SIZE, SIZE // 8), np.uint8)


def _vertices(
    shape: int, scale: np.ndarray, orientation: np.ndarray, x: np.ndarray, y: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(N, vertices) x and y of the corners, whole numbers of 1/256 pixel."""
    right, down = outline(shape).T
    cosine, sine = (scale * np.cos(orientation))[:, None], (scale * np.sin(orientation))[:, None]
    columns = 16 + 32 * x[:, None] + cosine * right + sine * down
    rows = 16 + 32 * y[:, None] - sine * right + cosine * down
    return np.round(columns * SUBPIXELS).astype(np.int64), np.round(rows * SUBPIXELS).astype(np.int64)


def _filled(corners: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """(N, 64, 64) uint8: one where a pixel's centre lies inside; on an edge, where that is a left or a lower one.

    Each edge that a row of pixel centres crosses flips all pixels from there to the right; twice flipped is outside.
    """
    (x0, y0), (x1, y1) = corners, (np.roll(each, -1, axis=1) for each in corners)
    falls = y1 > y0
    left, upper = np.where(falls, x0, x1), np.where(falls, y0, y1)
    run, height = np.where(falls, x1 - x0, x0 - x1), np.abs(y1 - y0)
    half = SUBPIXELS // 2
    first, last = (upper - half) // SUBPIXELS + 1, (upper + height - half) // SUBPIXELS  # upper < centre <= lower
    image = np.broadcast_to(np.arange(len(x0))[:, None], first.shape)
    flips = []
    for further in range(int((last - first).max(initial=-1)) + 1):
        row = first + further
        crossed = (row <= last) & (row >= 0) & (row < SIZE)
        below, rise = (row * SUBPIXELS + half - upper)[crossed], height[crossed]
        # the first pixel whose centre is not left of the crossing, left + run * below / rise, rounded up
        column = -(((half - left[crossed]) * rise - run[crossed] * below) // (rise * SUBPIXELS))
        flips.append((image[crossed] * SIZE + row[crossed]) * (SIZE + 1) + np.clip(column, 0, SIZE))
    count = np.bincount(np.concatenate(flips), minlength=len(x0) * SIZE * (SIZE + 1))
    odd = (count & 1).astype(np.uint8).reshape(-1, SIZE, SIZE + 1)[..., :SIZE]
    return np.bitwise_xor.accumulate(odd, axis=-1)
