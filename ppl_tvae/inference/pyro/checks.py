"""What is wrong with a program, in one sentence, before it is trained: found by running it once on a batch."""

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyro
import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from ppl_tvae.errors import UserError
from ppl_tvae.inference.mistakes import (
    ROUNDING,
    ROUNDING_BY_PLACE,
    changes_by_chance,
    check_axis,
    check_cover,
    check_is_no_factor,
    check_is_no_point,
    check_latents,
    check_likelihood,
    check_log_prob,
    check_masks,
    check_observed,
    check_observes_nothing_else,
    check_own_names,
    check_reparameterised,
    check_shapes,
    check_site_names,
    check_within,
    depends_on_others,
)
from ppl_tvae.inference.order import MOST_COPIES, Look, check_order, other_values
from ppl_tvae.inference.pyro.device import forked
from ppl_tvae.inference.pyro.tracing import (
    Trace,
    as_trace,
    counted,
    deterministic_sites,
    flat_name,
    latent_sites,
    latent_values,
    log_joint,
    log_prob,
    observed_sites,
    program_traces,
    replayed,
    total,
    traced,
)
from ppl_tvae.inference.sites import ParameterSpace, Site, distribution_name, made_of, plate_axis, site_row, unwrapped
from ppl_tvae.program import OBSERVED, PLATE, Program


def check_program(program: Program, frames: Tensor, likelihood: str = "") -> None:
    """Raises UserError if inference cannot work on the program, or would do so wrongly, on frames (batch, ...).

    likelihood: one of the catalogue's, what the site "x" is said to be; empty where nothing is said.
    """
    if len(frames) == 1:  # which has no others to depend on
        frames = torch.cat([frames, frames.flip(-2)])
    with pyro.get_param_store().scope(), forked(), torch.no_grad():
        guide_trace = _well_named("guide", program.guide, frames)
        prior_trace = _well_named("model", program.model, frames)
        _check_traces(guide_trace, prior_trace, frames, likelihood)
        model_trace = replayed(program.model, frames, guide_trace)
        for name, site in latent_sites(model_trace).items():
            check_within(name, guide_trace.nodes[name], site)
            check_masks(name, counted(guide_trace.nodes[name]), counted(site))
        # A host remembers where its own draws came from; a flow that has to be inverted gives other last digits.
        draws = as_trace({name: value.clone() for name, value in latent_values(guide_trace).items()})
        guide_trace = replayed(program.guide, frames, draws)
        _check_fixed("guide", guide_trace, replayed(program.guide, frames, draws))
        _check_fixed("model", model_trace, replayed(program.model, frames, model_trace))
        _check_sizes(program, frames)
        _check_apart("guide", program.guide, frames, guide_trace)
        _check_apart("model", program.model, frames, model_trace)
        _check_order(program.model, frames, model_trace)


def site_table(program: Program, frames: Tensor) -> list[dict[str, Any]]:
    """A row for each site of the guide and of the model on frames (batch, ...): what it is, and its shapes."""
    rows = []
    with pyro.get_param_store().scope(), torch.no_grad(), forked():
        for part, function in (("guide", program.guide), ("model", program.model)):
            sites = traced(function, frames)
            computed = deterministic_sites(sites)
            for name, site in sites.nodes.items():
                if name in computed:
                    rows.append(site_row(part, name, "deterministic", "", (), site["value"].shape))
                elif site["type"] == "sample" and not site_is_subsample(site):
                    kind, fn = ("observed" if site["is_observed"] else "latent"), site["fn"]
                    rows.append(site_row(part, name, kind, distribution_name(fn), fn.batch_shape, fn.event_shape))
                elif site["type"] == "param":
                    rows.append(site_row(part, flat_name(name), "parameter", "", (), site["value"].shape))
    return rows


def parameter_spaces(program: Program, frames: Tensor) -> dict[str, ParameterSpace]:
    """Where the parameters of the guide and of the model lie, by flat name."""
    spaces = {}
    with pyro.get_param_store().scope(), torch.no_grad(), forked():
        program_traces(program, frames)
        constraints = pyro.get_param_store().get_state()["constraints"]
        for name, leaf in pyro.get_param_store().items():
            constraint = constraints[name]

            def contains(value: np.ndarray, constraint: Any = constraint, device: Any = leaf.device) -> bool:
                return bool(constraint.check(torch.as_tensor(value, device=device)).all())

            spaces[flat_name(name)] = ParameterSpace(tuple(leaf.shape), str(constraint), contains)
    return spaces


def graph(program: Program, frames: Tensor) -> Any:
    """The host's picture of the model's graph, a graphviz.Digraph."""
    with pyro.get_param_store().scope(), forked():
        return pyro.render_model(
            program.model, (frames,), render_distributions=True, render_params=True, render_deterministic=True
        )


def _well_named(part: str, function: Any, frames: Tensor) -> Trace:
    """The trace of a part. Raises UserError where two of its sites have one name."""
    try:
        return traced(function, frames)
    except RuntimeError as error:
        first_line = str(error).strip().partition("\n")[0]
        if "already in the trace" not in str(error) and "Multiple" not in first_line:
            raise
        raise UserError(
            f"expected a name of its own for each site and parameter of the {part}, found: {first_line}; "
            f"rename one, or make a plate once and enter it again"
        ) from None


def _check_traces(guide_trace: Trace, prior_trace: Trace, frames: Tensor, likelihood: str) -> None:
    _check_names(guide_trace, prior_trace)
    check_observed(latent_sites(prior_trace), observed_sites(prior_trace), frames, torch.equal)
    check_latents(latent_sites(guide_trace), latent_sites(prior_trace))
    check_reparameterised(latent_sites(guide_trace))
    check_site_names(latent_sites(prior_trace) | deterministic_sites(prior_trace))
    for part, sites in (("model", prior_trace), ("guide", guide_trace)):
        for name, site in (latent_sites(sites) | observed_sites(sites)).items():
            check_is_no_factor(part, name, site["fn"])
            check_is_no_point(part, name, site["fn"])
            check_log_prob(part, name, log_prob(site), len(frames))
            check_axis(part, name, site)
            _check_scale(part, name, site)
    check_observes_nothing_else(OBSERVED, observed_sites(prior_trace), observed_sites(guide_trace))
    check_likelihood(observed_sites(prior_trace)[OBSERVED], likelihood)
    for name, site in latent_sites(prior_trace).items():
        _check_circle(name, site)
        check_cover(name, guide_trace.nodes[name], site)


def _check_names(guide_trace: Trace, prior_trace: Trace) -> None:
    """A parameter that model and guide share by name is one parameter, and no site may be named like one."""
    parameters = [
        {name: site for name, site in sites.nodes.items() if site["type"] == "param"}
        for sites in (guide_trace, prior_trace)
    ]
    for name in parameters[0].keys() & parameters[1].keys():
        # The store hands the model what the guide has registered; what it would begin with itself is in the call.
        arguments = parameters[1][name]["args"]  # of pyro.param: the name and, unless left out, the initial value
        initial = arguments[1] if len(arguments) > 1 else None
        own = initial() if callable(initial) else initial
        found = tuple(parameters[0][name]["value"].shape)
        if own is not None and tuple(own.shape) != found:
            raise UserError(
                f"expected the parameter '{name}' to be one in model and guide, found shape {tuple(own.shape)} in the "
                f"model and {found} in the guide; rename one"
            )
    named = latent_sites(guide_trace) | deterministic_sites(guide_trace)
    named |= latent_sites(prior_trace) | deterministic_sites(prior_trace) | observed_sites(prior_trace)
    check_own_names(named, parameters[0] | parameters[1])


def _check_scale(part: str, name: str, site: Site) -> None:
    """Bounds are of single sequences: the scale of a plate of more than these is left out. No other can be."""
    of_plate = 1.0
    for frame in site["cond_indep_stack"]:
        if frame.name == PLATE:
            of_plate = (frame.full_size or frame.size) / frame.size
    if not torch.all(
        torch.isclose(torch.as_tensor(site["scale"], dtype=torch.float64), torch.tensor(of_plate).double())
    ):
        raise UserError(
            f"expected no scale at site '{name}' of the {part} but that of the plate '{PLATE}', found "
            f"{site['scale']}; leave it out: with it a log-probability is none"
        )


def _check_circle(name: str, modelled: Site) -> None:
    """torch has densities of angles repeat over the real line, where they integrate to anything."""
    found = next((part for part in made_of(modelled["fn"]) if part in ("VonMises", "SineBivariateVonMises")), None)
    if found is not None:
        raise UserError(
            f"expected a prior of site '{name}' with one density in all, found {found}, whose density torch repeats "
            f"beyond the circle; take --backend numpyro, or two normal latents of which the site is the angle"
        )


def _check_fixed(part: str, sites: Trace, again: Trace) -> None:
    """A log density at given draws must not depend on chance: again is the part at the same draws, asked once more."""
    before, after = log_joint(sites), log_joint(again)
    if not torch.allclose(before, after, rtol=ROUNDING):
        raise changes_by_chance(part, before[0], after[0])


def _check_apart(part: str, function: Any, frames: Tensor, sites: Trace) -> None:
    """What a sequence's log p(x, z) and log q(z | x) are must not depend on the others of its batch.

    sites: of the part, at draws from the guide. They are replaced by copies of the first one, whose
    own must stay what it was, and of the last one; of copies each is as the others, wherever it stands; and among half
    as many each is as before.
    """

    def among(places: Tensor) -> Tensor:
        latents = {
            name: site["value"].index_select(plate_axis(site), places) for name, site in latent_sites(sites).items()
        }
        return log_joint(replayed(function, frames[places], as_trace(latents)))

    size, among_others = len(frames), log_joint(sites)
    for own, place in ((0, "first"), (size - 1, "last")):
        among_copies = among(torch.full((size,), own))
        stays = torch.isclose(among_copies[own], among_others[own], rtol=ROUNDING)
        if not stays or not torch.allclose(among_copies, among_copies[own], rtol=ROUNDING_BY_PLACE):
            other = among_copies[torch.argmax(torch.abs(among_copies - among_others[own]))]
            raise depends_on_others(part, f"the {place} one", among_others[own], other, "among its own copies")
    among_fewer = among(torch.arange(size // 2))
    if not torch.allclose(among_fewer, among_others[: size // 2], rtol=ROUNDING_BY_PLACE):
        raise depends_on_others(part, "the first one", among_others[0], among_fewer[0], "among half as many")


def _check_order(model: Any, frames: Tensor, sites: Trace) -> None:
    """Raises UserError where a pixel's distribution depends on that pixel, or frames on each other.

    sites: of the model at draws from the guide.
    """
    copies = torch.zeros(min(len(frames), MOST_COPIES), dtype=torch.int64)
    latents = {name: site["value"].index_select(plate_axis(site), copies) for name, site in latent_sites(sites).items()}
    sequences, noise = frames[copies], _SameNoise()

    def look(shown: np.ndarray, simulated: bool) -> Look:
        beside = torch.as_tensor(shown, device=frames.device)
        if simulated:
            with noise:
                found = traced(model, beside)
        else:
            found = replayed(model, beside, as_trace(latents))
        log_prior = total(latent_sites(found))
        return Look(*map(_as_numpy, (*_of_pixels(found.nodes[OBSERVED], sequences), log_prior)))

    discrete = sites.nodes[OBSERVED]["fn"].support.is_discrete
    of_one, every = sequences.numpy(force=True), frames.numpy(force=True)
    with _off_zero():
        check_order(of_one, other_values(of_one, every, discrete), look)


def _as_numpy(values: Tensor) -> np.ndarray:
    """bfloat16, which NumPy has not, as float32."""
    return (values.float() if values.dtype == torch.bfloat16 else values).numpy(force=True)


@contextmanager
def _off_zero() -> Iterator[None]:
    """Within, parameters have other values where they are zero: a layer that starts at zero hides what it reads."""
    rng = np.random.default_rng(0)
    parameters = [parameter.detach() for _, parameter in pyro.get_param_store().named_parameters()]
    before = [parameter.clone() for parameter in parameters]
    try:
        for parameter in parameters:
            other = torch.as_tensor(0.1 * rng.normal(size=tuple(parameter.shape))).to(parameter)
            parameter.copy_(torch.where(parameter == 0, other, parameter))
        yield
    finally:
        for parameter, value in zip(parameters, before, strict=True):
            parameter.copy_(value)


class _SameNoise(Messenger):
    """Each draw has noise of its own, as NumPyro's have: it is as it was where its density is, and else at its site.

    What rejects draws takes more or less of the host's noise, of which those that come after it get the rest.
    """

    def __init__(self) -> None:
        super().__init__()
        self._first: dict[str, tuple[Tensor, Tensor]] = {}

    def _pyro_sample(self, msg: Any) -> None:
        torch.manual_seed(zlib.crc32(msg["name"].encode()))

    def _pyro_post_sample(self, msg: Any) -> None:
        if msg["is_observed"] or site_is_subsample(msg):
            return
        fn = unwrapped(msg["fn"])
        if msg["name"] not in self._first:
            self._first[msg["name"]] = msg["value"], fn.log_prob(msg["value"])
        value, density = self._first[msg["name"]]
        if fn.support.check(value).all():  # beyond it the host has no density to ask for
            stays = torch.isclose(fn.log_prob(value), density, rtol=ROUNDING, equal_nan=True)
            msg["value"] = torch.where(stays.reshape((*stays.shape, *(1,) * fn.event_dim)), value, msg["value"])


def _of_pixels(site: Site, frames: Tensor) -> tuple[Tensor, Tensor]:
    """Log-densities of the pixels in frames, 0 where a mask leaves one out; and which pixels none leaves out."""
    density, counts = unwrapped(site["fn"]).log_prob(frames.to(site["value"].dtype)), counted(site)
    count = counts.flatten(density.ndim).all(dim=-1) if density.ndim < frames.ndim else counts
    return torch.where(count, density, 0.0), counts


def _check_sizes(program: Program, frames: Tensor) -> None:
    """Batches have any number of sequences, and parameters one shape."""
    before = _shapes()
    with pyro.get_param_store().scope():
        for function in (program.guide, program.model):
            traced(function, frames[: len(frames) // 2])
        check_shapes(before, _shapes())


def _shapes() -> dict[str, tuple[int, ...]]:
    """The shapes of the parameters in the host's store, by flat name."""
    return {flat_name(name): tuple(value.shape) for name, value in pyro.get_param_store().items()}
