"""What is wrong with a program, in one sentence, before it is trained: found by running it once on a batch."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from numpyro.distributions import constraints

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
from ppl_tvae.inference.numpyro.tracing import (
    Trace,
    as_trace,
    counted,
    deterministic_sites,
    flat_name,
    latent_sites,
    log_joint,
    log_prob,
    observed_sites,
    program_traces,
    replayed,
    total,
    traced,
)
from ppl_tvae.inference.order import MOST_COPIES, Look, check_order, other_values
from ppl_tvae.inference.sites import ParameterSpace, Site, distribution_name, plate_axis, site_row, unwrapped
from ppl_tvae.program import OBSERVED, PLATE, Program


def check_program(program: Program, frames: jax.Array, likelihood: str = "") -> None:
    """Raises UserError if inference cannot work on the program, or would do so wrongly, on frames (batch, ...).

    likelihood: one of the catalogue's, what the site "x" is said to be; empty where nothing is said.
    """
    if len(frames) == 1:  # which has no others to depend on
        frames = jnp.concatenate([frames, frames[..., ::-1, :]])
    key_guide, key_model, key_again = jax.random.split(jax.random.key(0), 3)
    guide_trace = _well_named("guide", program.guide, key_guide, frames)
    prior_trace = _well_named("model", program.model, key_model, frames)
    _check_traces(guide_trace, prior_trace, frames, likelihood)
    # As in training from here on: a parameter that is registered in two places has one value in both.
    parameters = [_parameters(sites) for sites in (guide_trace, prior_trace)]
    model_trace = replayed(program.model, parameters[1], key_model, frames, guide_trace)
    for name, site in latent_sites(model_trace).items():
        check_within(name, guide_trace[name], site)
        check_masks(name, counted(guide_trace[name]), counted(site))
    guide_trace = replayed(program.guide, parameters[0], key_guide, frames, guide_trace)
    _check_fixed("guide", guide_trace, replayed(program.guide, parameters[0], key_again, frames, guide_trace))
    _check_fixed("model", model_trace, replayed(program.model, parameters[1], key_again, frames, model_trace))
    _check_sizes(program, key_again, frames)
    _check_apart("guide", program.guide, key_again, frames, guide_trace)
    _check_apart("model", program.model, key_again, frames, model_trace)
    _check_order(program.model, key_model, frames, model_trace)
    _check_compiles(program, key_again, frames)


def _check_compiles(program: Program, rng_key: jax.Array, frames: jax.Array) -> None:
    """Raises what a compiled step would: there a program runs without numbers, so that `if x > 0` has no answer."""
    jax.eval_shape(lambda frames: log_joint(program_traces(program, {}, rng_key, frames)[1]), frames)


def site_table(program: Program, frames: jax.Array) -> list[dict[str, Any]]:
    """A row for each site of the guide and of the model on frames (batch, ...): what it is, and its shapes."""
    key_guide, key_model = jax.random.split(jax.random.key(0))
    rows = []
    for part, function, key in (("guide", program.guide, key_guide), ("model", program.model, key_model)):
        for name, site in traced(function, {}, key, frames).items():
            if site["type"] == "sample":
                kind, fn = ("observed" if site["is_observed"] else "latent"), site["fn"]
                rows.append(site_row(part, name, kind, distribution_name(fn), fn.batch_shape, fn.event_shape))
            elif site["type"] in ("param", "deterministic"):
                kind = "parameter" if site["type"] == "param" else "deterministic"
                for path, leaf in jax.tree_util.tree_flatten_with_path({name: site["value"]})[0]:
                    rows.append(site_row(part, flat_name(path), kind, "", (), jnp.shape(leaf)))
    return rows


def parameter_spaces(program: Program, frames: jax.Array) -> dict[str, ParameterSpace]:
    """Where the parameters of the guide and of the model lie, by flat name."""
    spaces = {}
    for part in program_traces(program, {}, jax.random.key(0), frames):
        for name, site in part.items():
            if site["type"] == "param":
                constraint = site["kwargs"].get("constraint", constraints.real)

                def contains(value: np.ndarray, constraint: Any = constraint) -> bool:
                    return bool(jnp.all(constraint(jnp.asarray(value))))

                for path, leaf in jax.tree_util.tree_flatten_with_path({name: site["value"]})[0]:
                    spaces[flat_name(path)] = ParameterSpace(jnp.shape(leaf), str(constraint), contains)
    return spaces


def graph(program: Program, frames: jax.Array) -> Any:
    """The host's picture of the model's graph, a graphviz.Digraph."""
    return numpyro.render_model(program.model, (frames,), render_distributions=True, render_params=True)


def _well_named(part: str, function: Any, rng_key: jax.Array, frames: jax.Array) -> Trace:
    """The trace of a part. Raises UserError where two of its sites have one name, or one changes between calls."""
    try:
        sites = traced(function, {}, rng_key, frames)
    except AssertionError as error:
        if "unique names" not in str(error):
            raise
        raise UserError(
            f"expected a name of its own for each site and parameter of the {part}, found: {error}; "
            f"rename one, or make a plate once and enter it again"
        ) from None
    if states := [name for name, site in sites.items() if site["type"] == "mutable"]:
        raise UserError(
            f"expected nothing in the {part} that changes from call to call but parameters, found the mutable site "
            f"'{states[0]}'; take layers without running statistics"
        )
    return sites


def _check_traces(guide_trace: Trace, prior_trace: Trace, frames: jax.Array, likelihood: str) -> None:
    _check_names(guide_trace, prior_trace)
    check_observed(latent_sites(prior_trace), observed_sites(prior_trace), frames, jnp.array_equal)
    check_latents(latent_sites(guide_trace), latent_sites(prior_trace))
    check_reparameterised(latent_sites(guide_trace))
    check_site_names(latent_sites(prior_trace) | deterministic_sites(prior_trace))
    for part, sites in (("model", prior_trace), ("guide", guide_trace)):
        for name, site in (latent_sites(sites) | observed_sites(sites)).items():
            check_is_no_factor(part, name, site["fn"])
            check_is_no_point(part, name, site["fn"])
            check_log_prob(part, name, log_prob(site), len(frames))
            check_axis(part, name, site)
            _check_scale(part, name, site, sites)
    check_observes_nothing_else(OBSERVED, observed_sites(prior_trace), observed_sites(guide_trace))
    check_likelihood(observed_sites(prior_trace)[OBSERVED], likelihood)
    for name, site in latent_sites(prior_trace).items():
        check_cover(name, guide_trace[name], site)


def _check_names(guide_trace: Trace, prior_trace: Trace) -> None:
    """A parameter that model and guide share by name is one parameter, and no site may be named like one."""
    shapes = [
        {name: jax.tree.map(jnp.shape, site["value"]) for name, site in sites.items() if site["type"] == "param"}
        for sites in (guide_trace, prior_trace)
    ]
    for sites in (guide_trace, prior_trace):
        for name, site in sites.items():
            leaves = jax.tree.leaves(site["value"]) if site["type"] == "param" else []
            kinds = map(jnp.result_type, leaves)
            if whole := [kind for kind in kinds if not jnp.issubdtype(kind, jnp.floating)]:
                raise UserError(
                    f"expected the parameter '{name}' in floating point, through which gradients pass, found "
                    f"{whole[0]}; write its initial value as 1.0 and not as 1"
                )
    for name in shapes[0].keys() & shapes[1].keys():
        if shapes[0][name] != shapes[1][name]:
            raise UserError(
                f"expected the parameter '{name}' to be one in model and guide, found shape {shapes[1][name]} in the "
                f"model and {shapes[0][name]} in the guide; rename one"
            )
    named = latent_sites(guide_trace) | deterministic_sites(guide_trace)
    named |= latent_sites(prior_trace) | deterministic_sites(prior_trace) | observed_sites(prior_trace)
    check_own_names(named, shapes[0] | shapes[1])


def _check_scale(part: str, name: str, site: Site, sites: Trace) -> None:
    """Bounds are of single sequences: the scale of a plate of more than these is left out. No other can be."""
    of_plate = 1.0
    if any(frame.name == PLATE for frame in site["cond_indep_stack"]):
        size, drawn = sites[PLATE]["args"]
        of_plate = size / (drawn or size)
    found = 1.0 if site["scale"] is None else site["scale"]
    if not jnp.allclose(found, of_plate):
        raise UserError(
            f"expected no scale at site '{name}' of the {part} but that of the plate '{PLATE}', found "
            f"{found}; leave it out: with it a log-probability is none"
        )


def _parameters(sites: Trace) -> dict[str, Any]:
    """Those that a trace began with, which another key would draw anew."""
    return {name: site["value"] for name, site in sites.items() if site["type"] == "param"}


def _check_fixed(part: str, sites: Trace, again: Trace) -> None:
    """A log density at given draws must not depend on chance: again is the part at the same draws, asked once more."""
    before, after = log_joint(sites), log_joint(again)
    if not jnp.allclose(before, after, rtol=ROUNDING):
        raise changes_by_chance(part, before[0], after[0])


def _check_apart(part: str, function: Any, key: jax.Array, frames: jax.Array, sites: Trace) -> None:
    """What a sequence's log p(x, z) and log q(z | x) are must not depend on the others of its batch.

    sites: of the part, at draws from the guide. They are replaced by copies of the first one, whose
    own must stay what it was, and of the last one; of copies each is as the others, wherever it stands; and among half
    as many each is as before.
    """

    parameters, latents = _parameters(sites), {name: site["value"] for name, site in latent_sites(sites).items()}
    axes = {name: plate_axis(site) for name, site in latent_sites(sites).items()}

    @jax.jit  # for each number of places, in which each operation would else be compiled by itself
    def of(places: jax.Array, frames: jax.Array, latents: dict[str, jax.Array], parameters: dict[str, Any]) -> Any:
        chosen = {name: jnp.take(value, places, axes[name]) for name, value in latents.items()}
        return log_joint(replayed(function, parameters, key, frames[places], as_trace(chosen)))

    def among(places: np.ndarray) -> np.ndarray:
        return np.asarray(of(places, frames, latents, parameters))

    size = len(frames)
    among_others = among(np.arange(size))
    for own, place in ((0, "first"), (size - 1, "last")):
        among_copies = among(np.full(size, own))
        stays = np.isclose(among_copies[own], among_others[own], rtol=ROUNDING)
        if not stays or not np.allclose(among_copies, among_copies[own], rtol=ROUNDING_BY_PLACE):
            other = among_copies[np.argmax(np.abs(among_copies - among_others[own]))]
            raise depends_on_others(part, f"the {place} one", among_others[own], other, "among its own copies")
    among_fewer = among(np.arange(size // 2))
    if not np.allclose(among_fewer, among_others[: size // 2], rtol=ROUNDING_BY_PLACE):
        raise depends_on_others(part, "the first one", among_others[0], among_fewer[0], "among half as many")


def _check_order(model: Any, key: jax.Array, frames: jax.Array, sites: Trace) -> None:
    """Raises UserError where a pixel's distribution depends on that pixel, or frames on each other.

    sites: of the model at draws from the guide.
    """
    copies = jnp.zeros(min(len(frames), MOST_COPIES), int)
    latents = {name: jnp.take(site["value"], copies, plate_axis(site)) for name, site in latent_sites(sites).items()}
    sequences, parameters = frames[copies], _off_zero(sites)

    def look(shown: np.ndarray, simulated: bool) -> Look:
        if simulated:
            found = traced(model, parameters, key, jnp.asarray(shown))
        else:
            found = replayed(model, parameters, key, jnp.asarray(shown), as_trace(latents))
        log_prior = total(latent_sites(found))
        return Look(*map(np.asarray, (*_of_pixels(found[OBSERVED], sequences), log_prior)))

    discrete = sites[OBSERVED]["fn"].support.is_discrete
    of_one, every = np.asarray(sequences), np.asarray(frames)
    check_order(of_one, other_values(of_one, every, discrete), look)


def _off_zero(sites: Trace) -> dict[str, Any]:
    """The parameters, with other values where they are zero: a layer that starts at zero hides what it reads."""
    rng = np.random.default_rng(0)

    def moved(leaf: Any) -> jax.Array:
        values = np.asarray(jnp.asarray(leaf))  # NumPy, for which nothing has to be compiled
        return jnp.asarray(np.where(values == 0, 0.1 * rng.normal(size=values.shape).astype(values.dtype), values))

    def is_free(site: Site) -> bool:
        return site["kwargs"].get("constraint", constraints.real) is constraints.real

    return {
        name: jax.tree.map(moved, value) if is_free(sites[name]) else value
        for name, value in _parameters(sites).items()
    }


def _of_pixels(site: Site, frames: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Log-densities of the pixels in frames, 0 where a mask leaves one out; and which pixels none leaves out."""
    density, counts = unwrapped(site["fn"]).log_prob(frames.astype(site["value"].dtype)), counted(site)
    return jnp.where(jnp.all(counts, axis=tuple(range(density.ndim, frames.ndim))), density, 0.0), counts


def _check_sizes(program: Program, key: jax.Array, frames: jax.Array) -> None:
    """Batches have any number of sequences, and parameters one shape."""
    for function in (program.guide, program.model):
        check_shapes(_shapes(function, key, frames), _shapes(function, key, frames[: len(frames) // 2]))


def _shapes(function: Any, key: jax.Array, frames: jax.Array) -> dict[str, tuple[int, ...]]:
    """The shapes of a part's parameters, by flat name; nothing is computed."""
    parameters = jax.eval_shape(lambda frames: _parameters(traced(function, {}, key, frames)), frames)
    return {flat_name(path): leaf.shape for path, leaf in jax.tree_util.tree_flatten_with_path(parameters)[0]}
