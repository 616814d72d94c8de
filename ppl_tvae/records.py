"""What evaluation.json and diagnosis.json hold, to tell a damaged file from a whole one before it is used."""

from collections.abc import Mapping
from types import NoneType
from typing import Any, NamedTuple


class _Each(NamedTuple):
    """An object whose names are free, and what stands at each of them."""

    of: Any


# The estimators of which the number of draws is part of the name.
COUNTED = ("iwae", "released-is", "log-evidence")

# A mapping is an object with at least these names, a list is one of as many as there are; else a type, or several.
_NUMBER = (int, float)
_NUMBER_IF_KNOWN = (int, float, NoneType)
_MEASURED = {"value": _NUMBER_IF_KNOWN, "standard_error": _NUMBER_IF_KNOWN}

_ESTIMATE = {
    "estimator": str, "value": _NUMBER, "standard_error": _NUMBER_IF_KNOWN, "num_sequences": int, "notes": dict,
    "per_sequence": [_NUMBER], "transforms": [str],
}  # fmt: skip
# What an estimate has beside a name that only some have.
_BESIDE = {
    "data_digest": {"data": str},
    "guide_name": {"guide_steps": int},
    "num_temperatures": {"start": str, "num_chains": int},
}

_OF_A_TRANSFORM = (
    "capsule_correlation_pooled", "capsule_correlation_pooled_of_prior", "capsule_correlation_per_capsule",
    "capsule_correlation_per_capsule_of_prior", "image_error_rolled", "image_error_not_rolled",
    "image_error_rolled_minus_not_rolled", "image_error_mean_frame",
)  # fmt: skip
_DIAGNOSIS: dict[str, Any] = {
    "posterior": {"num_sequences": int, "num_draws": int, "khat": [_NUMBER_IF_KNOWN], "verdict": str},
    "rates": [_MEASURED | {"latent": str, "unit": str}],
    "calibration": _Each({"ranks": [_NUMBER], "verdict": str}),
    "equivariance": [
        _MEASURED
        | {"metric": str, "unit": str, "meaning": str, "num_sequences": int, "split": str, "transforms": [str]}
    ],
    "by_transform": [{"transform": str, "num_sequences": int} | dict.fromkeys(_OF_A_TRANSFORM, _MEASURED)],
    "predictive_checks": [
        {
            "replicates": str, "statistic": str, "unit": str, "meaning": str, "observed": _NUMBER,
            "replicated": [_NUMBER], "p_value": _NUMBER, "extreme": bool, "extreme_sequences": _NUMBER,
        }
    ],
    "prior_ranks": _Each([_NUMBER]),
    "power_scaling": [
        {"quantity": str}
        | {f"{part}{of}": _NUMBER_IF_KNOWN for part in ("prior", "likelihood") for of in ("", "_standard_error")}
    ],
    "mcmc": {
        "kernel": str, "num_sequences": int, "num_chains": int, "num_draws": int, "seconds": _NUMBER, "verdict": str,
        "convergence": _Each({"verdict": str}), "guide": _Each({"verdict": str}),
    },
    "amortisation_gap": _MEASURED
    | {"unit": str, "verdict": str, "num_sequences": int, "guide_name": str, "guide_steps": int},
}  # fmt: skip


def is_estimate(record: Any) -> bool:
    """Whether it has what every estimate has, and what its kind has beside that."""
    if not _fits(record, _ESTIMATE):
        return False
    counted = {"num_particles": int} if record["estimator"] in COUNTED else {}
    return all(_fits(record, shape) for shape in (counted, *(_BESIDE[name] for name in _BESIDE if name in record)))


def is_diagnosis(found: Any) -> bool:
    """Whether each of its parts that is there has what such a part has."""
    return isinstance(found, dict) and all(
        _fits(found[name], shape) for name, shape in _DIAGNOSIS.items() if name in found
    )


def _fits(value: Any, shape: Any) -> bool:
    if isinstance(shape, Mapping):
        return isinstance(value, dict) and all(name in value and _fits(value[name], own) for name, own in shape.items())
    if isinstance(shape, _Each):
        return isinstance(value, dict) and all(_fits(own, shape.of) for own in value.values())
    if isinstance(shape, list):
        return isinstance(value, list) and all(_fits(own, shape[0]) for own in value)
    return isinstance(value, shape)


def estimate_name(record: Mapping[str, Any]) -> str:
    """elbo, iwae-100, elbo-auto-normal: the estimator of a record, with its K where it has one, and a fitted guide."""
    name = record["estimator"] + (f"-{record['num_particles']}" if record["estimator"] in COUNTED else "")
    return name + (f"-{record['guide_name']}" if "guide_name" in record else "")


def weights_verdict(record: Mapping[str, Any]) -> str | None:
    """What a record says of the importance weights of the run's own guide; None where it is of no such weights."""
    return None if "guide_name" in record else record["notes"].get("verdict")
