"""What inference asks of a Pyro program: its traces under given parameters, and log-probabilities per sequence.

Everything here reads the program by tracing it; no site but the observed "x" and no plate but "sequences" is known.
Parameters live in the host's parameter store; `parameters_as` fills it for a while and restores it afterwards.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyro
import torch
from pyro.distributions.util import scale_and_mask
from pyro.poutine import replay, trace
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.distributions import Independent, biject_to, constraints

from ppl_tvae.errors import NoFrameScore, UserError
from ppl_tvae.inference.mistakes import changing_support, check_flat_names, check_parameters, without_coordinates
from ppl_tvae.inference.pyro.device import forked
from ppl_tvae.inference.sites import Site, distribution_name, masks
from ppl_tvae.program import PLATE, Program

Trace = Any


@contextmanager
def parameters_as(parameters: Mapping[str, Tensor]) -> Iterator[None]:
    """Within the context, the program's parameters have these (constrained) values; the user's store is untouched.

    The values are copied into the torch modules of the program too, and stay there.
    """
    # A PyroModule takes what the store has for its PyroParam NAME as its own Parameter NAME_unconstrained, to which
    # `_ModulesFollow` writes where the program gives it to pyro.module too. These are not to be the caller's values.
    registered_twice = any(name.endswith("_unconstrained") for name in parameters)
    with pyro.get_param_store().scope():
        for name, value in parameters.items():
            pyro.get_param_store()[name] = value.detach().clone() if registered_twice else value.detach()
        with _ModulesFollow():
            yield


class _ModulesFollow(Messenger):
    """Torch modules compute with the store's values: the host registers theirs, and leaves them what they have."""

    def __init__(self) -> None:
        super().__init__()
        self._written: dict[torch.nn.Parameter, Tensor] = {}

    def _pyro_post_param(self, msg: Any) -> None:
        own, value = (*msg["args"], None)[1], msg["value"]
        if not isinstance(own, torch.nn.Parameter):
            return
        # A PyroParam's Parameter has become the store's own, under its name; pyro.module offers it under another.
        is_of_another = pyro.get_param_store().param_name(own) not in (None, msg["name"])
        if not is_of_another and own is not value and self._written.get(own) is not value:
            if not torch.equal(own, value):  # a write would spoil what autograd has kept of it
                with torch.no_grad():
                    own.copy_(value)
            self._written[own] = value


def traced(function: Callable[[Any], Any], frames: Tensor) -> Trace:
    """The trace of a model or guide, with latents of its own."""
    return trace(function).get_trace(frames)


def program_traces(program: Program, frames: Tensor) -> tuple[Trace, Trace]:
    """One draw: the trace of the guide, and the trace of the model at the guide's latents."""
    guide_trace = traced(program.guide, frames)
    return guide_trace, replayed(program.model, frames, guide_trace)


def traces_at(program: Program, frames: Tensor, latents: Mapping[str, Tensor]) -> tuple[Trace, Trace]:
    """The traces of guide and model at given latents, by site name."""
    given = as_trace(latents)
    return replayed(program.guide, frames, given), replayed(program.model, frames, given)


def as_trace(latents: Mapping[str, Tensor]) -> Trace:
    """Latents by site name, as a trace to replay."""
    given = pyro.poutine.Trace()
    for name, value in latents.items():
        given.add_node(name, type="sample", name=name, value=value, is_observed=False, infer={})
    return given


def replayed(function: Callable[[Any], Any], frames: Tensor, latents: Trace) -> Trace:
    """The trace of a model or guide whose latents are those of a trace; what that lacks is drawn."""
    return trace(replay(function, trace=latents)).get_trace(frames)


def parameters_of(program: Program, flat: Mapping[str, Any], frames: Tensor) -> dict[str, Any]:
    """The program's parameters by site name, from values by flat name; those of pyro.module from MODULE.name.

    Raises UserError where a parameter of the program is not among them, or has another shape.
    """
    with pyro.get_param_store().scope(), torch.no_grad(), forked():
        program_traces(program, frames)
        shapes = {name: value.shape for name, value in pyro.get_param_store().items()}
    check_parameters({flat_name(name): shape for name, shape in shapes.items()}, flat)
    return {name: flat[flat_name(name)] for name in shapes}


def flat_parameters(parameters: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Parameters by flat name; those of pyro.module are MODULE.name. Raises UserError where two have one name."""
    check_flat_names(map(flat_name, parameters))
    return {flat_name(name): torch.as_tensor(value).numpy(force=True).copy() for name, value in parameters.items()}


def flat_name(name: str) -> str:
    """NAME, or MODULE.name for a parameter of pyro.module, which calls it MODULE$$$name."""
    return name.replace("$$$", ".")


def latent_sites(sites: Trace) -> dict[str, Site]:
    """The random sites that are not observed."""
    return {name: site for name, site in _random_sites(sites).items() if not site["is_observed"]}


def latent_values(sites: Trace) -> dict[str, Tensor]:
    """The values of the latents, by site name."""
    return {name: site["value"] for name, site in latent_sites(sites).items()}


def observed_sites(sites: Trace) -> dict[str, Site]:
    """The observed sites."""
    return {name: site for name, site in _random_sites(sites).items() if site["is_observed"]}


def deterministic_sites(sites: Trace) -> dict[str, Site]:
    """What the model computes and names, which Pyro records as sample sites."""
    return {name: site for name, site in sites.nodes.items() if site["type"] == "sample" and _is_computed(site)}


def _is_computed(site: Site) -> bool:
    """Whether a sample site is a value that the model computes: so `pyro.deterministic` records it.

    The host's reparameterisers do likewise, and mark it less.
    """
    of_no_density = site["is_observed"] and getattr(site["fn"], "_mask", None) is False
    return bool(site["infer"].get("_deterministic")) or (of_no_density and distribution_name(site["fn"]) == "Delta")


def computed_sites(program: Program, frames: Tensor) -> tuple[str, ...]:
    """The deterministic sites that have a value for each sequence, known by their shapes with one sequence more."""

    def shapes(frames: Tensor) -> dict[str, torch.Size]:
        sites = deterministic_sites(traced(program.model, frames))
        return {name: site["value"].shape for name, site in sites.items()}

    size = len(frames)
    with torch.no_grad(), forked():
        less, more = shapes(frames), shapes(torch.cat([frames, frames[:1]]))
    return tuple(name for name in less if (*less[name][:1], *more[name][:1]) == (size, size + 1))


@biject_to.register(constraints.MixtureSameFamilyConstraint)
def _from_the_reals_to_a_mixture(support: Any) -> Any:
    """torch has none for mixtures, whose components have one support. Registered, since MCMC and fits look there."""
    return biject_to(support.base_constraint)


def from_the_reals(name: str, support: Any) -> Any:
    """The bijection from unconstrained space to the support of a latent. Raises UserError where there is none."""
    try:
        return biject_to(support)
    except NotImplementedError:
        raise without_coordinates(name, support) from None


def bijections(program: Program, frames: Tensor) -> dict[str, Any]:
    """From the reals to the support of each latent of the model, by site name. Raises UserError where there is none."""
    sites = latent_sites(traced(program.model, frames))
    return {name: from_the_reals(name, site["fn"].support) for name, site in sites.items()}


def check_supports(program: Program, frames: Tensor) -> None:
    """Raises UserError where the support of a latent differs between two draws from the model.

    Unconstrained coordinates would then be others at each draw, as those of Uniform(0, s) are where s is a latent too.
    """
    with forked():
        first, second = (latent_sites(traced(program.model, frames)) for _ in range(2))
    for name, site in first.items():
        if not _are_equal(site["fn"].support, second[name]["fn"].support):
            raise changing_support(name)


def _are_equal(first: Any, second: Any) -> bool:
    """Of constraints, which torch compares by identity: the same kind with the same numbers."""
    if isinstance(first, constraints.Constraint):
        names = vars(first).keys()
        return type(first) is type(second) and all(_are_equal(vars(first)[name], vars(second)[name]) for name in names)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(_are_equal, first, second))
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        return torch.equal(first, second)
    return bool(first == second)


def per_sequence(site: Site, values: Tensor) -> Tensor:
    """A site's values over its batch shape, summed to one per sequence: (batch,). Raises UserError without the plate.

    A site outside the plate would be counted once per sequence or not at all; either is a wrong bound.
    """
    plates = {frame.name: frame.dim for frame in site["cond_indep_stack"]}
    if PLATE not in plates:
        raise UserError(
            f"expected site '{site['name']}' inside the plate '{PLATE}', found it outside; "
            f'write `with pyro.plate("{PLATE}", frames.shape[0]):` around it, or make it a parameter'
        )
    axis = values.ndim + plates[PLATE]
    if axis < 0:
        raise UserError(
            f"expected site '{site['name']}' to have the plate '{PLATE}' as a batch dimension, found batch shape "
            f"{tuple(values.shape)}; mark the other dimensions with .to_event"
        )
    others = tuple(other for other in range(values.ndim) if other != axis)
    return torch.sum(values, dim=others) if others else values


def draw_observed(site: Site) -> Tensor:
    """A value for an observed site, as it is observed; what a mask leaves out of the likelihood stays as it is."""
    drawn = site["fn"].sample().to(site["value"])
    return torch.where(counted(site), drawn, site["value"])


def counted(site: Site) -> Tensor:
    """Which entries of a site's value count in its density: all that no mask leaves out."""
    found = torch.ones_like(site["value"], dtype=torch.bool)
    by_handler = True if site["mask"] is None else site["mask"]
    for mask, event_dim in (*masks(site["fn"]), (by_handler, site["fn"].event_dim)):
        mask = torch.as_tensor(mask, device=found.device)
        found &= mask.reshape((*mask.shape, *(1,) * event_dim))
    return found


def log_prob(site: Site) -> Tensor:
    """log p(value) of a site, per sequence: (batch,), nats. A mask of the host's counts, a scale does not."""
    values = site["fn"].log_prob(site["value"])
    if not site["is_observed"] and (inside := _is_inside(site["fn"].support, site["value"])) is not None:
        values = torch.where(inside, values, -torch.inf)
    return per_sequence(site, scale_and_mask(values, mask=site["mask"]))


def _is_inside(support: Any, value: Tensor) -> Tensor | None:
    """Which values lie in a support with an end, beyond which some densities of torch go on; None of another."""
    base = support
    while isinstance(base, constraints.independent):
        base = base.base_constraint
    return support.check(value) if isinstance(base, _WITH_ENDS) else None


_WITH_ENDS = (
    constraints.greater_than,
    constraints.greater_than_eq,
    constraints.less_than,
    constraints.interval,
    constraints.half_open_interval,
)


def log_joint(sites: Trace) -> Tensor:
    """The sum over all random sites, observed ones too, per sequence: (batch,), nats."""
    return total(_random_sites(sites))


def total(sites: Mapping[str, Site]) -> Tensor:
    """The sum of the log-probabilities of random sites, per sequence: (batch,), nats; of none of them 0, a scalar."""
    return sum((log_prob(site) for site in sites.values()), start=torch.zeros(()))


def log_jacobian(transforms: Mapping[str, Any], unconstrained: Mapping[str, Tensor], model_trace: Trace) -> Tensor:
    """log |d latents / d unconstrained|, per sequence: (batch,), nats. model_trace: of the model at these latents."""
    sites = latent_sites(model_trace)
    jacobians = (
        per_sequence(sites[name], transforms[name].log_abs_det_jacobian(value, sites[name]["value"]))
        for name, value in unconstrained.items()
    )
    return sum(jacobians, start=torch.zeros(()))


def _random_sites(sites: Trace) -> dict[str, Site]:
    """Sample sites, without plates and without the deterministic ones, which Pyro records as samples too."""
    return {
        name: site
        for name, site in sites.nodes.items()
        if site["type"] == "sample" and not site_is_subsample(site) and not _is_computed(site)
    }


def frame_log_joint(sites: Trace) -> Tensor:
    """The sum over all random sites, per frame: (batch, S), nats. Raises NoFrameScore where a site has other frames."""
    scores = {name: log_prob_per_frame(site) for name, site in _random_sites(sites).items()}
    if len({score.shape[1] for score in scores.values()}) > 1:
        found = ", ".join(f"{score.shape[1]} in '{name}'" for name, score in scores.items())
        raise NoFrameScore(
            f"expected every site to have the same number of frames for a score per frame, found {found}"
        )
    return sum(scores.values(), start=torch.zeros(()))


def log_prob_per_frame(site: Site) -> Tensor:
    """log p(value) of a site whose event begins with time, per frame: (batch, S), nats. Else NoFrameScore."""
    fn = site["fn"]
    masked = site["mask"] is not None and site["mask"] is not True
    if not isinstance(fn, Independent) or site["value"].ndim < 2 or masked:
        raise NoFrameScore(
            f"expected site '{site['name']}' to be independent over time for a score per frame, "
            f"found {type(fn).__name__}{' under a mask' if masked else ''}"
        )
    values = fn.base_dist.log_prob(site["value"])
    return torch.sum(values.reshape(*values.shape[:2], -1), dim=-1)
