"""Words for what a program's trace holds, the same for both backends."""

from collections.abc import Sequence
from typing import Any

_WRAPPERS = ("Independent", "ExpandedDistribution", "MaskedDistribution")


def site_row(
    part: str, name: str, kind: str, distribution: str, batch_shape: Sequence[int], event_shape: Sequence[int]
) -> dict[str, Any]:
    """A row of the table of sites. part: "guide" or "model"; kind: latent, observed, deterministic or parameter."""
    return {
        "part": part,
        "site": name,
        "kind": kind,
        "distribution": distribution,
        "batch_shape": list(batch_shape),
        "event_shape": list(event_shape),
    }


def distribution_name(distribution: Any) -> str:
    """The name of its class, without the wrappers that only say which dimensions are an event."""
    while type(distribution).__name__ in _WRAPPERS:
        distribution = distribution.base_dist
    return type(distribution).__name__
