"""Mistakes that the sites and parameters of a program tell, each as one sentence: the same for both backends."""

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from array_api_compat import array_namespace

from ppl_tvae.errors import UserError
from ppl_tvae.inference.sites import Site, distribution_name, made_of, plate_axis
from ppl_tvae.program import OBSERVED, PLATE, TREE_NAMES

ROUNDING = 1e-6  # relative: of sums in float32 over the same shapes
ROUNDING_BY_PLACE = 1e-4  # the same: a row of a product may be summed in another order than the next

# Distributions of either host that give every real number a density.
_ON_THE_WHOLE_LINE = {"Normal", "Laplace", "StudentT", "Cauchy", "Logistic", "MultivariateNormal"}
_ON_THE_WHOLE_LINE |= {"LowRankMultivariateNormal", "DiagonalNormalMixture"}


def check_parameters(shapes: Mapping[str, tuple[int, ...]], values: Mapping[str, Any]) -> None:
    """Raises UserError where a run's values, by flat name, are not those of a program with parameters of such shapes.

    One without a value would silently keep its initial one; one of another shape may broadcast.
    """
    for name, shape in shapes.items():
        found = f"one of shape {tuple(values[name].shape)}" if name in values else "none"
        if name not in values or tuple(values[name].shape) != tuple(shape):
            raise UserError(
                f"expected a value of shape {tuple(shape)} for the parameter '{name}' of the program, found {found} in "
                f"the run; program or settings are not those that were trained: put these back"
            )


def check_flat_names(names: Iterable[str]) -> None:
    """Raises UserError where two parameters have one flat name, such as 'net.w' beside a 'w' in a tree 'net'."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise UserError(f"expected a flat name of its own for each parameter, found two with '{name}'; rename one")
        seen.add(name)


def without_coordinates(name: str, support: Any) -> UserError:
    """What is said of a latent whose support no bijection reaches from the reals."""
    return UserError(
        f"expected latents with unconstrained coordinates, as annealing, MCMC and automatic guides need, found "
        f"site '{name}' with the support {support}; use elbo and iwae with the run's own guide"
    )


def changing_support(name: str) -> UserError:
    """What is said of a latent whose support is another at each draw."""
    return UserError(
        f"expected latents whose supports depend on no other latent, as annealing and MCMC need, found site "
        f"'{name}' with a support that changes from draw to draw; use elbo and iwae with the run's own guide"
    )


def check_site_names(names: Iterable[str]) -> None:
    """Raises UserError where a site could not stand beside the dimensions of its draws in a tree (`diagnostics`)."""
    names = set(names)
    if apart := sorted(name for name in names if "/" in name):
        raise UserError(
            f"expected no '/' in the names of sites, which parts the groups of a tree of draws, found '{apart[0]}'; "
            f"rename the site, or give the handler scope another divider"
        )
    if taken := sorted(names & TREE_NAMES):
        raise UserError(
            f"expected sites by other names than the dimensions and coordinates of their draws "
            f"({', '.join(sorted(TREE_NAMES))}), found '{taken[0]}'; rename the site"
        )


def check_own_names(sites: Collection[str], parameters: Collection[str]) -> None:
    """Raises UserError where a site is named like a parameter."""
    for name in set(sites) & set(parameters):
        raise UserError(
            f"expected a name of its own for each site and parameter, found '{name}' for both; rename the parameter"
        )


def check_observed(
    latents: Mapping[str, Site], observed: Mapping[str, Site], frames: Any, equal: Callable[[Any, Any], Any]
) -> None:
    """Raises UserError where a model with these sites does not observe frames (batch, ...) as they are.

    equal(a, b) -> whether two arrays of the host's have the same values.
    """
    if OBSERVED in latents:
        raise UserError(
            f'expected the model to observe the frames at the site "{OBSERVED}", found that it draws them; give the '
            f"site obs=frames"
        )
    if OBSERVED not in observed:
        found = f"'{next(iter(observed))}'" if observed else "none"
        instead = "write .mask(...) at the distribution in place of obs_mask" if "_observed" in found else "rename it"
        raise UserError(f'expected the model to observe the frames at the site "{OBSERVED}", found {found}; {instead}')
    site = observed[OBSERVED]
    shape = tuple(site["fn"].batch_shape + site["fn"].event_shape)
    if shape == tuple(frames.shape[1:]) and not any(frame.name == PLATE for frame in site["cond_indep_stack"]):
        raise UserError(
            f'expected the sites of the model in a plate "{PLATE}" of frames.shape[0], found that site "{OBSERVED}" is '
            f"in none and has the shape of a single sequence, {shape}; put them into that plate"
        )
    if shape != tuple(frames.shape):
        found = f"batch {tuple(site['fn'].batch_shape)} and event {tuple(site['fn'].event_shape)}"
        raise UserError(
            f'expected the distribution of site "{OBSERVED}" to have the shape of the frames {tuple(frames.shape)}, '
            f"found {found}; have the program take its sizes from frames.shape, or give it frames of its own sizes"
        )
    if site["value"].shape != frames.shape or not equal(site["value"], frames):
        raise UserError(
            f'expected site "{OBSERVED}" to observe the frames as they are, of shape {tuple(frames.shape)}, found '
            f"other values, of shape {tuple(site['value'].shape)}, whose likelihood is not theirs; give it obs=frames"
        )
    if not _is_within(site["fn"].support, site["value"]):
        raise UserError(
            f'expected frames within the support of site "{OBSERVED}", {site["fn"].support}, found values outside; '
            f"choose the likelihood whose pixels these are (bernoulli binarises them)"
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


def check_likelihood(observed: Site, likelihood: str) -> None:
    """Raises UserError where what a program observes is a density and is called a probability, or the other way round.

    Results bear the name, and between the two no number can be compared. "bernoulli-grey" is neither; "" says nothing.
    """
    if likelihood in ("", "bernoulli-grey"):
        return
    distribution, discrete = observed["fn"], observed["fn"].support.is_discrete
    found, where = distribution_name(distribution), f"at site '{OBSERVED}' with likelihood '{likelihood}'"
    if likelihood == "own-probability":
        if (distribution.log_prob(observed["value"]) > 1e-6).any():
            raise UserError(f"expected probabilities {where}, found {found}, a density above 1; name it own-density")
    elif discrete and likelihood != "bernoulli":
        raise UserError(
            f"expected a density {where}, found {found}; name the likelihood that it is: bernoulli, or own-probability "
            f"of grey levels"
        )
    elif not discrete and likelihood == "bernoulli":
        raise UserError(
            f"expected probabilities of zeros and ones {where}, found {found}; name the likelihood that it is: "
            f"own-density, normal or continuous-bernoulli"
        )


def check_latents(guided: Mapping[str, Site], modelled: Mapping[str, Site]) -> None:
    """Raises UserError where the latents of guide and model are not the same by name and shape, or there are none."""
    if not modelled:
        raise UserError(
            "expected a model with latents to infer, found none: its log p(x) is what it computes itself; add a latent"
        )
    for name in modelled.keys() - guided.keys():
        others = guided.keys() - modelled.keys()
        instead = f", or rename its site '{min(others)}', which the model has not" if others else ""
        raise UserError(
            f"expected the guide to draw every latent of the model, found no site '{name}' in it; add it{instead}"
        )
    for name in guided.keys() - modelled.keys():
        instead = (
            "draw the model's latents by their names in place of an automatic guide" if "_auto" in name else "remove it"
        )
        raise UserError(f"expected the model to have every site of the guide, found no site '{name}' in it; {instead}")
    for name, site in modelled.items():
        if guided[name]["value"].shape != site["value"].shape:
            raise UserError(
                f"expected site '{name}' to have one shape in model and guide, found {site['value'].shape} in the "
                f"model and {guided[name]['value'].shape} in the guide"
            )


def check_reparameterised(latents: Mapping[str, Site]) -> None:
    """Raises UserError where a gradient cannot pass through a draw of the guide: it would be wrong, unseen."""
    for name, site in latents.items():
        if not site["fn"].has_rsample:
            raise UserError(
                f"expected a reparameterised distribution at the guide's site '{name}', found "
                f"{distribution_name(site['fn'])}, through whose draws no gradient passes; choose a continuous one, "
                f"such as Normal"
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
    if "Delta" in made_of(distribution):
        raise UserError(
            f"expected distributions with a density at the sites of the {part}, found the point mass Delta at "
            f"'{site}', whose log-probability is no log density; make it a narrow Normal, or a deterministic site"
        )


def check_log_prob(part: str, name: str, values: Any, batch: int) -> None:
    """Raises UserError unless the log-probabilities of a site are one finite number for each sequence."""
    if values.shape != (batch,):
        raise UserError(
            f"expected one log-probability per sequence, ({batch},), at site '{name}' of the {part}, found "
            f"{values.shape}; check the plate and .to_event"
        )
    if not array_namespace(values).isfinite(values).all():
        at_ends = "; of a density that has none at the ends of its support, such as Beta, keep the frames off them"
        raise UserError(
            f"expected a finite log-probability at site '{name}' of the {part}, found {values.min()}"
            f"{at_ends if name == OBSERVED else ''}"
        )


def check_axis(part: str, name: str, site: Site) -> None:
    """What is asked of single sequences is read along the first axis: weights, moves of chains, the tree of draws."""
    if plate_axis(site) != -site["value"].ndim:
        raise UserError(
            f"expected the plate '{PLATE}' on the first axis of site '{name}' of the {part}, found another axis of "
            f"{tuple(site['value'].shape)}; give it a dim to the left of the other plates, such as dim=-2; in place of "
            f"a scan, which puts time first, write a loop with a site for each time"
        )


def check_masks(name: str, guided: Any, modelled: Any) -> None:
    """Raises UserError where a mask takes a latent out of one density and not of the other, which leaves no bound.

    guided, modelled: which entries of the site's value are counted in guide and model.
    """
    if not bool((guided == modelled).all()):
        raise UserError(
            f"expected the entries of site '{name}' masked alike in model and guide, found some that count in one of "
            f"log p(x, z) and log q(z | x) alone; put the same mask into both"
        )


def check_cover(name: str, guided: Site, modelled: Site) -> None:
    """A guide that cannot reach what the prior draws has no bound: its weights never see that part."""
    if not _is_within(guided["fn"].support, modelled["value"]):
        raise UserError(
            f"expected the guide to cover the prior of site '{name}', found the support "
            f"{_in_short(guided['fn'].support)} in the guide and {_in_short(modelled['fn'].support)} in the model; "
            f"choose a guide with the model's support"
        )


def check_within(name: str, guided: Site, modelled: Site) -> None:
    """modelled: the model's site at a draw from the guide. Where the prior has no mass the ELBO is minus infinity.

    A guide on the whole line draws everywhere, if seldom: far numbers stand for that. Of other guides only the draw
    speaks, since the hosts call the support of some the line where it is not, as after an affine transform.
    """
    support, value = modelled["fn"].support, modelled["value"]
    everywhere = distribution_name(guided["fn"]) in _ON_THE_WHOLE_LINE
    tried = [value, *(value * 0 + number for number in (-9876.5, -54.3, 54.3, 9876.5) if everywhere)]
    if not all(_is_within(support, each) for each in tried):
        raise UserError(
            f"expected the guide's draws of site '{name}' within the support of its prior, "
            f"{_in_short(support)}, found {_in_short(guided['fn'].support)}; choose a guide with the model's support"
        )


def check_shapes(before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
    """Raises UserError where a parameter has another shape with another number of sequences: shapes by name."""
    for name, shape in before.items():
        if after.get(name) != shape:
            raise UserError(
                f"expected parameters of the same shapes whatever the number of sequences, found '{name}' of shape "
                f"{shape} and, with half as many, {after.get(name)}; compute what differs by sequence from its frames"
            )


def changes_by_chance(part: str, before: Any, after: Any) -> UserError:
    """What is said where the log density of a sequence at the same draws is another when it is asked for again."""
    return UserError(
        f"expected the {part} to give the same {log_density_name(part)} at the same draws, found {before:.8g} and then "
        f"{after:.8g} for the first sequence; mend the {part}: no operation in it, such as dropout, may draw outside "
        f"of sites or remember earlier calls"
    )


def depends_on_others(part: str, which: str, before: Any, after: Any, where: str) -> UserError:
    """What is said where the log density of a sequence is another among other sequences: before, and after where."""
    return UserError(
        f"expected {log_density_name(part)} of a sequence to depend on no other sequence of its batch, found "
        f"{before:.8g} for {which} among others and {after:.8g} {where}; mend the {part}: no operation in it may go "
        f"across the sequences or count them"
    )


def log_density_name(part: str) -> str:
    """What the guide or the model is the density of."""
    return {"guide": "log q(z | x)", "model": "log p(x, z)"}[part]


def _in_short(support: Any) -> str:
    """A support as the host prints it, without the numbers of a large array."""
    words = " ".join(str(support).split())
    return words if len(words) <= 80 else f"{words[:77]}..."


def _is_within(support: Any, value: Any) -> bool:
    """Whether all of a value lies in a support."""
    return bool(support.check(value).all())
