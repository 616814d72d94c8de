"""Words for what a program's trace holds, and what they tell of mistakes: the same for both backends."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from ppl_tvae.errors import UserError

# Dimensions and coordinates of draws, frames and codes, as `diagnostics.datatree` has them.
FRAME_DIMS = ("sequence", "time", "height", "width", "channel")
CELL_DIMS = ("sequence", "time", "capsule", "position")
ABOUT = ("image", "label", "transform", "phase")  # of each sequence
TREE_NAMES = {"chain", "draw", *FRAME_DIMS, *CELL_DIMS, *ABOUT}

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
    return not names.isdisjoint(parts(distribution))


def parts(distribution: Any) -> Iterator[str]:
    """The names of a distribution's class and of all that it is made from: wrapped, transformed, mixed."""
    yield type(distribution).__name__
    for name in ("base_dist", "component_distribution", "component0", "component1"):
        if (inner := getattr(distribution, name, None)) is not None:
            yield from parts(inner)
    for inner in getattr(distribution, "component_distributions", ()):
        yield from parts(inner)


def log_density_name(part: str) -> str:
    """What the guide or the model is the density of."""
    return {"guide": "log q(z | x)", "model": "log p(x, z)"}[part]


def check_site_names(names: Iterable[str]) -> None:
    """Raises UserError where a site could not stand beside the dimensions of its draws in a tree (`diagnostics`)."""
    names = set(names)
    if apart := sorted(name for name in names if "/" in name):
        raise UserError(
            f"expected no '/' in the names of sites, which parts the groups of a tree of draws, found '{apart[0]}'; "
            f"rename the site"
        )
    if taken := sorted(names & TREE_NAMES):
        raise UserError(
            f"expected sites by other names than the dimensions and coordinates of their draws "
            f"({', '.join(sorted(TREE_NAMES))}), found '{taken[0]}'; rename the site"
        )


def check_is_no_factor(part: str, site: str, distribution: Any) -> None:
    """Raises UserError for a factor: densities then integrate to anything, and nothing can be simulated from them."""
    if distribution_name(distribution) == "Unit":
        raise UserError(
            f"expected distributions at the sites of the {part}, found the factor '{site}', with which log p(x) is "
            f"that of no model; write what it stands for as a distribution"
        )


def check_is_no_point(part: str, site: str, distribution: Any) -> None:
    """Raises UserError for a point mass: its log-probability is of another kind than a log density, and no bound."""
    if "Delta" in parts(distribution):
        raise UserError(
            f"expected distributions with a density at the sites of the {part}, found the point mass Delta at "
            f"'{site}', whose log-probability is no log density; make it a narrow Normal, or a deterministic site"
        )


def check_observes_nothing_else(site: str, in_model: Iterable[str], in_guide: Iterable[str]) -> None:
    """Raises UserError for an observed site beside the frames: its density would count as theirs or as the guide's."""
    found = {"model": sorted(set(in_model) - {site}), "guide": sorted(in_guide)}
    for part, names in found.items():
        if names:
            raise UserError(
                f"expected no observed site but '{site}' of the model, found '{names[0]}' in the {part}, with which "
                f"log p(x) is another number; give it to the program as a channel of the frames, or leave it out"
            )


def check_likelihood(site: str, distribution: Any, likelihood: str) -> None:
    """Raises UserError where what a program observes is a density and is called "bernoulli", or the other way round.

    Results bear the name, and between the two no number can be compared. "bernoulli-grey" is neither; "" says nothing.
    """
    discrete = distribution.support.is_discrete
    if likelihood in ("", "bernoulli-grey") or discrete == (likelihood == "bernoulli"):
        return
    raise UserError(
        f"expected {'a density' if discrete else 'probabilities of zeros and ones'} at site '{site}' with "
        f"likelihood '{likelihood}', found {distribution_name(distribution)}; name the likelihood that it is: "
        f"{'bernoulli' if discrete else 'normal or continuous-bernoulli'}"
    )
