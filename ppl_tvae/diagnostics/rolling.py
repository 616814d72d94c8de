"""Whether a run's code rolls while the frames move: measures on held-out sequences, in all and by transform.

`ready` is a backend's Evaluator. One draw of the guide for each sequence.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from ppl_tvae.data import Plan, SequenceData, parts
from ppl_tvae.diagnostics import equivariance
from ppl_tvae.inference import bounds
from ppl_tvae.inference.interfaces import Evaluator

_IMAGE = "squared error per pixel"
EQUIVARIANCE = {
    "equivariance_error": ("L1, summed", "E_eq of the paper; low also for a code that is constant over positions"),
    "centred_equivariance_error": ("L1, summed", "E_eq after each capsule's mean is taken away; low for what rolls"),
    "equivariance_error_of_prior": ("L1, summed", "E_eq of codes drawn from the prior, which have seen no frames"),
    "centred_equivariance_error_of_prior": ("L1, summed", "the same, centred: only what is below was learned"),
    "image_error_rolled": (_IMAGE, "frames decoded from the first frame's code, rolled"),
    "image_error_not_rolled": (_IMAGE, "the same, not rolled"),
    "image_error_rolled_minus_not_rolled": (_IMAGE, "their paired difference: below zero where rolling helps"),
    "image_error_random_roll": (_IMAGE, "the same, rolled by random amounts"),
    "image_error_reconstruction": (_IMAGE, "frames decoded from their own code"),
    "image_error_mean_frame": (_IMAGE, "the mean frame of training sequences: what is had without a code"),
}
_TRAINING_SEQUENCES = 200  # of the mean frame
_PRIOR_DRAWS = 10  # for each sequence: CapCorr of a few dozen offsets has an error of 0.1
_BY_TRANSFORM = (
    "image_error_rolled", "image_error_not_rolled", "image_error_rolled_minus_not_rolled", "image_error_mean_frame",
)  # fmt: skip


class Rolls(NamedTuple):
    """Of B sequences: the metrics of `EQUIVARIANCE` by name, each (B,); and of those whose moving factor comes to its
    first value (B,) bool: the roll that takes a perfect code there, the time at which it first does, modulo D (B,);
    the capsules' estimated rolls up to then (B, C); and those of codes drawn from the prior, which have seen no frames
    (B, draws, C)."""

    metrics: dict[str, np.ndarray]
    reaches: np.ndarray
    true_offsets: np.ndarray
    estimated_offsets: np.ndarray
    offsets_of_prior: np.ndarray


def measured(ready: Evaluator, data: SequenceData, batches: Iterable[tuple[int, Plan]], seed: int) -> Rolls | None:
    """The measures of every sequence; None for a program without a site t of event shape (S, C, D)."""
    measures = []
    mean_frame = None
    for index, part in batches:
        t = ready.latents(part, index).get("t")
        if not equivariance.rolls(t, data.num_timesteps):
            return None
        if mean_frame is None:
            mean_frame = _mean_frame(ready, data)
        # One by one, since each comes with its frames.
        numbers = range(index * _PRIOR_DRAWS, (index + 1) * _PRIOR_DRAWS)
        of_prior = [ready.prior(part, number).sites["t"][0] for number in numbers]
        rng = np.random.default_rng([seed, index])
        metrics = _errors_of_codes(t, of_prior) | _errors_of_images(ready, t, ready.frames(part), mean_frame, rng)
        reaches, times = first_value_times(moving_indices(data, part))
        own, *others = (equivariance.estimated_offsets(code, np.zeros_like(times), times) for code in (t, *of_prior))
        # A code that rolls by a position a frame is back where it was after D of them.
        measures.append(Rolls(metrics, reaches, times % t.shape[3], own, np.stack(others, axis=1)))
    metrics = {name: np.concatenate([each.metrics[name] for each in measures]) for name in EQUIVARIANCE}
    return Rolls(metrics, *(np.concatenate(values) for values in zip(*(each[1:] for each in measures), strict=True)))


def moving_indices(data: SequenceData, plan: Plan) -> np.ndarray:
    """(B, S), the index of the moving factor's value in each frame; -1 throughout where no factor is known to move."""
    if data.transforms == ("none",):
        return np.full((len(plan.phase), data.num_timesteps), -1)
    return data.moving_indices(plan)


def first_value_times(indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Whether a factor comes to its first value, index 0, and the first time at which it does: (B, S) -> (B,), (B,).

    The first time, whatever the capsules say: the authors' released code takes, of several, the one that agrees best
    with the estimate, which is optimistic. It also counts the other way: the truth is the phase, the estimate the roll
    from this frame back to the first (`first` and `other` of `estimated_offsets` exchanged). Where D = S a perfect code
    has a CapCorr of 1 by both counts; of another code the two differ a little, since the order of all offsets but 0 is
    reversed. Time 0 for a sequence that never comes there.
    """
    at_first = indices == 0
    return at_first.any(axis=1), at_first.argmax(axis=1)


def summary(rolls: Rolls, data: SequenceData, split: str, seed: int) -> list[dict[str, Any]]:
    """A record for each metric: value and standard_error over sequences, unit, meaning."""
    return [
        {
            "metric": name,
            **_mean(rolls.metrics[name]),
            "unit": unit,
            "meaning": meaning,
            "num_sequences": len(rolls.metrics[name]),
            "split": split,
            "transforms": list(data.transforms),
            "seed": seed,
        }
        for name, (unit, meaning) in EQUIVARIANCE.items()
    ]


def by_transform(rolls: Rolls, data: SequenceData, plan: Plan) -> list[dict[str, Any]]:
    """A record for each transform: how many sequences, their CapCorr and their errors in image space.

    Keys: transform, num_sequences, and {value, standard_error} of
    capsule_correlation_pooled: CapCorr of the most frequent roll over capsules;
    capsule_correlation_per_capsule: the mean over capsules of each one's CapCorr;
    capsule_correlation_pooled_of_prior, capsule_correlation_per_capsule_of_prior: the same of codes drawn from the
        prior, which have seen no frames, several for each sequence: what W alone gives;
    and four of the metrics. Standard errors are jackknifed over sequences; None where fewer than three say anything.
    """
    records = []
    for index, name in enumerate(data.transforms):
        own = plan.transform == index
        if not own.any():
            continue
        known = own & rolls.reaches
        true = rolls.true_offsets[known]
        records.append(
            {"transform": name, "num_sequences": int(own.sum())}
            | _correlations(rolls.estimated_offsets[known, None], true, "")
            | _correlations(rolls.offsets_of_prior[known], true, "_of_prior")
            | {metric: _mean(rolls.metrics[metric][own]) for metric in _BY_TRANSFORM}
        )
    return records


def _correlations(estimated: np.ndarray, true: np.ndarray, ending: str) -> dict[str, Any]:
    """estimated: of one or more codes of each sequence, (B, draws, C); true: (B,)."""
    names = (f"capsule_correlation_pooled{ending}", f"capsule_correlation_per_capsule{ending}")
    if len(true) < 3:
        return {name: {"value": None, "standard_error": None} for name in names}
    draws = estimated.shape[1]
    true, estimated = np.repeat(true, draws), np.concatenate(estimated)
    pooled = equivariance.pooled_offset(estimated, int(estimated.max()) + 1)
    values = (
        (
            equivariance.capsule_correlation(pooled, true),
            equivariance.capsule_correlation_standard_error(pooled, true, draws),
        ),
        (
            equivariance.capsule_correlation(estimated, true).mean(),
            equivariance.mean_capsule_correlation_standard_error(estimated, true, draws),
        ),
    )
    pairs = zip(names, values, strict=True)
    return {name: {"value": float(value), "standard_error": float(error)} for name, (value, error) in pairs}


def _mean(values: np.ndarray) -> dict[str, float | None]:
    values = values.astype(np.float64)
    return {"value": float(values.mean()), "standard_error": bounds.standard_error(values)}


def _mean_frame(ready: Evaluator, data: SequenceData) -> np.ndarray:
    """The mean over training sequences and times of their frames as observed, (height, width, channel)."""
    plan = data.plan("train", _TRAINING_SEQUENCES)
    sums = [ready.frames(part).sum(axis=0, dtype=np.float64).mean(axis=0) for _, part in parts(plan)]
    return np.sum(sums, axis=0) / len(plan.image)


def _errors_of_codes(t: np.ndarray, of_prior: list[np.ndarray]) -> dict[str, np.ndarray]:
    """Every metric of codes alone, of each sequence, (batch,); those of the prior are means over its draws."""
    errors = {}
    for name, centred in (("equivariance_error", False), ("centred_equivariance_error", True)):
        errors[name] = equivariance.equivariance_error(t, centred)
        errors[f"{name}_of_prior"] = np.mean([equivariance.equivariance_error(code, centred) for code in of_prior], 0)
    return errors


def _errors_of_images(
    ready: Evaluator, t: np.ndarray, frames: np.ndarray, mean_frame: np.ndarray, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """Every metric of images, of each sequence, (batch,)."""
    still = np.repeat(t[:, :1], t.shape[1], axis=1)
    places = (np.arange(t.shape[3]) - rng.integers(t.shape[3], size=(*t.shape[:2], 1))) % t.shape[3]
    random = np.take_along_axis(still, places[:, :, None], axis=3)
    codes = {"rolled": equivariance.rolled_from(t, 0), "not_rolled": still, "random_roll": random, "reconstruction": t}
    shown = {name: ready.decode(code, "t") for name, code in codes.items()} | {"mean_frame": mean_frame}
    image = {f"image_error_{name}": _image_error(images, frames) for name, images in shown.items()}
    return image | {
        "image_error_rolled_minus_not_rolled": image["image_error_rolled"] - image["image_error_not_rolled"],
    }


def _image_error(images: np.ndarray, frames: np.ndarray) -> np.ndarray:
    """Squared differences averaged over pixels, masked ones too, and over all frames but the first, (batch,)."""
    return ((images - frames)[:, 1:] ** 2).mean(axis=(1, 2, 3, 4))
