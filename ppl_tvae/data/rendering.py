"""From plans to frames, in one batched gather on the device.

Written once against the array API: the same code runs on NumPy, on JAX (also under jit) and on torch, without loops,
without writing in place, with static shapes. All interpolation is integer arithmetic (see `transforms.SUBPIXELS`), so
frames of grey images agree bit for bit between the backends.
"""

from typing import Any, NamedTuple

import numpy as np
from array_api_compat import array_namespace, is_jax_namespace, is_torch_namespace

from ppl_tvae.data.binarization import binarized
from ppl_tvae.data.placement import beside
from ppl_tvae.data.plans import Plan
from ppl_tvae.data.transforms import hue_colours, hue_degrees, in_perspective, moving_factors, sampling_tables

Array = Any  # an array of NumPy, JAX or torch


class ImageTables(NamedTuple):
    """Images and what transforms them; a pytree of arrays, built by NumPy and moved to the device by its user.

    images: (N, H, W, channel) uint8.
    moves: (num_transforms, 3) bool, which of rotation, scale, hue move.
    first_view: (num_transforms,) int32, the first row of the tables below for each transform: those in perspective
        have S*S rows of their own.
    corner, fraction: (S*S or 2*S*S, H*W) int32, where output pixels are read from (`transforms.sampling_tables`).
    colours: (S, 3) float32, a red pixel under each hue; used by grey images.
    hues: (S,) float32, the shift in sixths of a turn; used by colour images.
    """

    images: Array
    moves: Array
    first_view: Array
    corner: Array
    fraction: Array
    colours: Array
    hues: Array


class PlainTables(NamedTuple):
    """Untransformed images (N, H, W, channel) uint8, repeated over the timesteps that `time` (S,) int32 counts."""

    images: Array
    time: Array


class SequenceTables(NamedTuple):
    """Ready sequences (N, S, H, W, channel), float32 in [0, 1] or uint8 in 0..255."""

    frames: Array


class FactorTables(NamedTuple):
    """An image of zeros and ones for every combination of F factors' values, the last factor fastest.

    packed: (N, H, W/8) uint8, eight pixels in a byte. Unpacked ones would take eight times the memory, as float32 32
        times; only the frames of a batch are ever unpacked.
    sizes, strides: (F,) int32, how many values each factor has, and how many images apart two of them are.
    moves: (num_transforms, F) bool.  time: (S,) int32, 0..S-1.
    """

    packed: Array
    sizes: Array
    strides: Array
    moves: Array
    time: Array


_LOW_BYTES = 0x00FF00FF  # of both halves of a word

Tables = ImageTables | PlainTables | SequenceTables | FactorTables


def image_tables(images: np.ndarray, transforms: tuple[str, ...], num_timesteps: int) -> ImageTables:
    """The tables of (N, H, W, channel) uint8 images, 1 or 3 channels; raises UserError for an unknown transform."""
    _, height, width, _ = images.shape
    kinds = sorted(set(in_perspective(transforms)))
    views = [sampling_tables(height, width, num_timesteps, perspective) for perspective in kinds]
    corner, fraction = (np.concatenate(tables) for tables in zip(*views, strict=True))
    first_view = [kinds.index(perspective) * num_timesteps**2 for perspective in in_perspective(transforms)]
    return ImageTables(
        images=images,
        moves=moving_factors(transforms),
        first_view=np.array(first_view, np.int32),
        corner=corner,
        fraction=fraction,
        colours=hue_colours(num_timesteps),
        hues=(hue_degrees(num_timesteps) % 360 / 60).astype(np.float32),
    )


def plain_tables(images: np.ndarray, num_timesteps: int) -> PlainTables:
    """The tables of images that are shown as they are, S times over."""
    return PlainTables(images, np.arange(num_timesteps, dtype=np.int32))


def factor_tables(packed: np.ndarray, sizes: tuple[int, ...], moves: np.ndarray, num_timesteps: int) -> FactorTables:
    """The tables of (N, H, W/8) packed images of all combinations of factors; moves: (num_transforms, F) bool."""
    strides = np.append(np.cumprod(sizes[:0:-1])[::-1], 1)
    return FactorTables(
        packed,
        sizes=np.array(sizes, np.int32),
        strides=strides.astype(np.int32),
        moves=moves,
        time=np.arange(num_timesteps, dtype=np.int32),
    )


def render(tables: Tables, plan: Plan, binarize: bool = False) -> Array:
    """Frames (B, S, H, W, channel), float32 in [0, 1], in the namespace and on the device of tables and plan.

    With `binarize` every pixel is drawn, zero or one, with its grey level as probability, by the plan's random word.
    """
    if isinstance(tables, ImageTables):
        frames = _transformed(tables, plan)
    elif isinstance(tables, FactorTables):
        return _unpacked(tables, plan)  # zeros and ones already
    elif isinstance(tables, PlainTables):
        frames = _repeated(tables, plan)
    else:
        frames = _unit_interval(_take(tables.frames, plan.image))
    return binarized(frames, plan.noise) if binarize else frames


def factor_indices(tables: ImageTables | FactorTables, plan: Plan) -> Array:
    """(B, S, F) int32: the index of each factor's value in every frame; of images rotation, scale and hue.

    A factor that moves passes through its values cyclically, from the plan's phase, or from the plan's own image where
    images are those of factors; the others stand still.
    """
    xp = array_namespace(tables.moves, plan.phase)
    moves = _take(tables.moves, plan.transform)[:, None, :]
    if isinstance(tables, FactorTables):
        start = (plan.image[:, None] // tables.strides % tables.sizes)[:, None, :]
        return xp.where(moves, (start + tables.time[None, :, None]) % tables.sizes, start)
    num_timesteps = tables.colours.shape[0]
    time = xp.arange(num_timesteps, dtype=xp.int32, **beside(plan.phase))
    moving = (plan.phase[:, None] + time[None, :]) % num_timesteps
    return xp.where(moves, moving[:, :, None], plan.fixed[:, None, :])


def _unpacked(tables: FactorTables, plan: Plan) -> Array:
    indices = factor_indices(tables, plan)
    xp = array_namespace(indices)
    image = xp.sum(indices * tables.strides, axis=-1, dtype=xp.int32)
    packed = _take(tables.packed, xp.reshape(image, (-1,)))
    places = xp.arange(7, -1, -1, dtype=xp.uint8, **beside(packed))
    pixels = xp.astype((packed[..., None] >> places) & 1, xp.float32)
    _, height, eighth = packed.shape
    return xp.reshape(pixels, (*image.shape, height, 8 * eighth, 1))


def _transformed(tables: ImageTables, plan: Plan) -> Array:
    _, height, width, channels = tables.images.shape
    factors = factor_indices(tables, plan)
    num_timesteps = factors.shape[1]
    xp = array_namespace(factors)
    images = xp.astype(_take(tables.images, plan.image), xp.int32)
    first = _take(tables.first_view, plan.transform)[:, None]
    view = xp.reshape(first + factors[..., 0] * num_timesteps + factors[..., 1], (-1,))
    sampling = tuple(
        xp.reshape(_take(table, view), (-1, num_timesteps * height * width))
        for table in (tables.corner, tables.fraction)
    )
    planes = [_sampled(images[..., channel], *sampling) for channel in range(channels)]
    hue = xp.reshape(factors[..., 2], (-1,))
    grid = (-1, num_timesteps, height, width)
    if channels == 1:
        colours = xp.reshape(_take(tables.colours, hue), (-1, num_timesteps, 1, 1, 3))
        return xp.reshape(planes[0], grid)[..., None] * colours
    shift = xp.reshape(_take(tables.hues, hue), (-1, num_timesteps, 1, 1))
    return _hue_shifted([xp.reshape(plane, grid) for plane in planes], shift)


def _sampled(images: Array, corner: Array, fraction: Array) -> Array:
    """Bilinear interpolation, zero outside: (B, P) float32 from (B, H, W) int32 and the (B, P) tables."""
    xp = array_namespace(images)
    cells = _packed_corners(images)
    batch, size = cells.shape
    offset = xp.arange(batch, dtype=xp.int32, **beside(images)) * size
    cell = _take(xp.reshape(cells, (-1,)), xp.reshape(corner + offset[:, None], (-1,)))
    cell = xp.reshape(cell, corner.shape)
    down, across = fraction >> 8, fraction & 255
    # The upper row is mixed in the lower half of a word while the lower row is in the upper half: a row is at most
    # 255 * 256 < 2**16, so neither reaches the other, and int32 wraps alike everywhere.
    left, right = cell & _LOW_BYTES, (cell >> 8) & _LOW_BYTES
    rows = left * 256 + (right - left) * across
    upper, lower = rows & 0xFFFF, (rows >> 16) & 0xFFFF
    # At most 255 * 2**16 < 2**24, so float32 holds it exactly. A product rounds alike everywhere; a quotient does not.
    return xp.astype(upper * 256 + (lower - upper) * down, xp.float32) * (1 / (255 * 65536))


def _packed_corners(images: Array) -> Array:
    """(B, (H+1)*(W+1)) int32: the four pixels around each cell in one word, so that one gather reads them all.

    The grid starts one row and column outside the image. Four separate gathers took several times as long in JAX.
    """
    xp = array_namespace(images)
    batch, height, width = images.shape
    place = beside(images)
    row = xp.zeros((batch, 1, width), dtype=xp.int32, **place)
    column = xp.zeros((batch, height + 2, 1), dtype=xp.int32, **place)
    padded = xp.concat([column, xp.concat([row, images, row], axis=1), column], axis=2)
    upper = padded[:, :-1, :-1] | (padded[:, :-1, 1:] << 8)
    lower = (padded[:, 1:, :-1] << 16) | (padded[:, 1:, 1:] << 24)
    return xp.reshape(upper | lower, (batch, -1))


def _hue_shifted(planes: list[Array], shift: Array) -> Array:
    """The colour (..., 3) whose HSV hue is turned by `shift` sixths; saturation and value stay."""
    red, green, blue = planes
    xp = array_namespace(red)
    value = xp.maximum(xp.maximum(red, green), blue)
    chroma = value - xp.minimum(xp.minimum(red, green), blue)
    safe = xp.where(chroma > 0, chroma, xp.ones_like(chroma))  # grey pixels have no hue: chroma 0 hides it below
    to_green = 2 + (blue - red) / safe
    to_blue = 4 + (red - green) / safe
    hue = xp.where(value == red, (green - blue) / safe, xp.where(value == green, to_green, to_blue)) + shift
    return xp.stack([value - chroma * _ramp(xp, (hue + offset) % 6) for offset in (5, 3, 1)], axis=-1)


def _ramp(xp: Any, sixth: Array) -> Array:
    """How far a channel lies below the brightest, 0..1, for a hue in 0..6: up, flat, down."""
    return xp.clip(xp.minimum(sixth, 4 - sixth), 0.0, 1.0)


def _repeated(tables: PlainTables, plan: Plan) -> Array:
    frames = _unit_interval(_take(tables.images, plan.image))
    xp = array_namespace(frames)
    return xp.tile(frames[:, None], (1, tables.time.shape[0], 1, 1, 1))


def _unit_interval(pixels: Array) -> Array:
    xp = array_namespace(pixels)
    return xp.astype(pixels, xp.float32) * (1 / 255) if pixels.dtype == xp.uint8 else pixels


def _take(table: Array, index: Array) -> Array:
    """Rows of a table. The default `take` of JAX and of torch looks at every index; ours are in range."""
    xp = array_namespace(table, index)
    if is_torch_namespace(xp):
        return xp.index_select(table, 0, index)
    return xp.take(table, index, axis=0, **({"mode": "clip"} if is_jax_namespace(xp) else {}))
