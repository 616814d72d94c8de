"""Statistics of image sequences, and how observed ones lie among replicated ones; for any array library.

A predictive check (Rubin 1984; Gelman, Meng & Stern 1996) draws replicated data from the model and asks whether the
observed data's statistic lies among theirs. Frames are (..., S, H, W, channel), any number of leading axes; a statistic
gives one number per sequence, (...).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from array_api_compat import array_namespace

from ppl_tvae.errors import UserError

_PIXELS = (-4, -3, -2, -1)  # time, height, width, channel


def mean_intensity(frames: Any) -> Any:
    """Mean over all pixels, channels and frames."""
    return array_namespace(frames).mean(frames, axis=_PIXELS)


def contrast(frames: Any) -> Any:
    """Variance over the pixels of each frame (channels apart), averaged over channels and frames."""
    xp = array_namespace(frames)
    return xp.mean(xp.var(frames, axis=(-3, -2)), axis=(-2, -1))


def fraction_on(frames: Any) -> Any:
    """Share of pixels above one half. Of frames of zeros and ones it is the mean intensity."""
    xp = array_namespace(frames)
    return xp.mean(xp.astype(frames > 0.5, xp.float32), axis=_PIXELS)


def edge_energy(frames: Any) -> Any:
    """Mean squared difference of pixels that are neighbours in a row or in a column; high for speckle."""
    xp = array_namespace(frames)
    down, right = (frames[..., 1:, :, :] - frames[..., :-1, :, :], frames[..., 1:, :] - frames[..., :-1, :])
    return (xp.mean(down * down, axis=_PIXELS) + xp.mean(right * right, axis=_PIXELS)) / 2


def frame_change(frames: Any) -> Any:
    """Mean squared difference of a pixel between a frame and the next: how much moves, and flickers, per frame."""
    return _change(frames, 1)


def half_sequence_change(frames: Any) -> Any:
    """The same between frames half a sequence (S // 2) apart: how far the sequence gets."""
    return _change(frames, frames.shape[-4] // 2)


def colourfulness(frames: Any) -> Any:
    """Variance of a pixel over its channels, averaged over pixels and frames; zero for grey."""
    xp = array_namespace(frames)
    return xp.mean(xp.var(frames, axis=-1), axis=(-3, -2, -1))


class Statistic(NamedTuple):
    """function: frames -> one number per sequence. unit; meaning in words; least: the S, height and width, and channels
    that it needs."""

    function: Callable[[Any], Any]
    unit: str
    meaning: str
    least_timesteps: int = 1
    least_side: int = 1
    least_channels: int = 1
    of_grey_levels: bool = False  # says nothing new of frames of zeros and ones


_SQUARE = "squared pixel value"
STATISTICS: dict[str, Statistic] = {
    "mean_intensity": Statistic(mean_intensity, "pixel value", "mean over all pixels, channels and frames"),
    "contrast": Statistic(contrast, _SQUARE, "variance over the pixels of a frame"),
    "fraction_on": Statistic(fraction_on, "share", "pixels above one half", of_grey_levels=True),
    "edge_energy": Statistic(
        edge_energy, _SQUARE, "squared difference of neighbouring pixels; high for speckle", least_side=2
    ),
    "frame_change": Statistic(frame_change, _SQUARE, "squared difference from the next frame", least_timesteps=2),
    "half_sequence_change": Statistic(
        half_sequence_change, _SQUARE, "squared difference of frames S // 2 apart", least_timesteps=4
    ),
    "colourfulness": Statistic(colourfulness, _SQUARE, "variance of a pixel over its channels", least_channels=2),
}


def applicable(frames: Any) -> dict[str, Statistic]:
    """The statistics that these observed frames can have, and that say more than another one does."""
    xp = array_namespace(frames)
    num_timesteps, *sides, channels = frames.shape[-4:]
    binary = bool(xp.all((frames == 0) | (frames == 1)))
    return {
        name: each
        for name, each in STATISTICS.items()
        if num_timesteps >= each.least_timesteps
        and min(sides) >= each.least_side
        and channels >= each.least_channels
        and not (binary and each.of_grey_levels)
    }


def tail_probability(observed: Any, replicated: Any) -> Any:
    """The Bayesian p-value P(T(replicated) >= T(observed)): observed (...), replicated (L, ...) -> (...), in (0, 1).

    (number above + half the number of ties + 1/2) / (L + 1), so that L draws never claim 0 or 1. Raises UserError.
    """
    if replicated.ndim != observed.ndim + 1 or replicated.shape[1:] != observed.shape or not replicated.shape[0]:
        raise UserError(
            f"expected replicated statistics of shape (draws, *{tuple(observed.shape)}), one draw or more, found "
            f"{tuple(replicated.shape)}"
        )
    xp = array_namespace(observed, replicated)
    above = xp.sum(xp.astype(replicated > observed, xp.float32), axis=0)
    ties = xp.sum(xp.astype(replicated == observed, xp.float32), axis=0)
    return (above + ties / 2 + 0.5) / (replicated.shape[0] + 1)


def _change(frames: Any, lag: int) -> Any:
    difference = frames[..., lag:, :, :, :] - frames[..., :-lag, :, :, :]
    return array_namespace(frames).mean(difference * difference, axis=_PIXELS)
