"""What a site of a trace tells, where the hosts' sites read the same.

A site is a dictionary of the host's. Of its keys both hosts have "fn", the distribution, "value", "name" and
"cond_indep_stack", the plates around it.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ppl_tvae.program import PLATE

Site = dict[str, Any]

_WRAPPERS = ("Independent", "ExpandedDistribution", "MaskedDistribution")


class ParameterSpace(NamedTuple):
    """Where the values of a parameter lie: of what shape, and within what constraint of the host's, in words."""

    shape: tuple[int, ...]
    constraint: str
    contains: Callable[[np.ndarray], bool]


def plate_axis(site: Site) -> int:
    """The axis of the sequences in the value of a site within their plate, counted from the last."""
    (plate,) = (frame for frame in site["cond_indep_stack"] if frame.name == PLATE)
    return plate.dim - site["fn"].event_dim


def along_plate(site: Site, values: Any) -> Any:
    """values (batch,), shaped to broadcast against the site's value."""
    return values.reshape(-1, *[1] * (-plate_axis(site) - 1))


def constrained(transforms: Mapping[str, Any], unconstrained: Mapping[str, Any]) -> dict[str, Any]:
    """Latents by site name from their unconstrained coordinates; transforms: the bijections to their supports."""
    return {name: transforms[name](value) for name, value in unconstrained.items()}


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
    return type(unwrapped(distribution)).__name__


def unwrapped(distribution: Any) -> Any:
    """A distribution without the wrappers that only say which dimensions are an event, and which entries count."""
    while type(distribution).__name__ in _WRAPPERS:
        distribution = distribution.base_dist
    return distribution


def masks(distribution: Any) -> Iterator[tuple[Any, int]]:
    """The masks of a distribution, each over a batch shape, and how many dimensions an event has to its right."""
    while type(distribution).__name__ in _WRAPPERS:
        if type(distribution).__name__ == "MaskedDistribution":
            yield distribution._mask, distribution.event_dim
        distribution = distribution.base_dist


def has_inexact_kl(distribution: Any) -> bool:
    """Whether what the hosts have for a KL divergence from or to it may be another number.

    Of Kumaraswamy NumPyro has the first terms of a series, whose rest can be nats; of folded distributions Pyro has the
    divergence before folding; of masked ones both have that under both masks. Of a continuous Bernoulli from a uniform
    distribution torch says infinity.
    """
    names = {"ContinuousBernoulli", "FoldedDistribution", "Kumaraswamy", "MaskedDistribution"}
    return not names.isdisjoint(made_of(distribution))


def made_of(distribution: Any) -> Iterator[str]:
    """The names of a distribution's class and of all that it is made from: wrapped, transformed, mixed."""
    yield type(distribution).__name__
    for name in ("base_dist", "component_distribution", "component0", "component1"):
        if (inner := getattr(distribution, name, None)) is not None:
            yield from made_of(inner)
    for inner in getattr(distribution, "component_distributions", ()):
        yield from made_of(inner)
