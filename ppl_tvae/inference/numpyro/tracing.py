"""What inference asks of a NumPyro program: its traces under given parameters, and log-probabilities per sequence.

Everything here reads the program by tracing it; no site but the observed "x" and no plate but "sequences" is known.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.distributions import Distribution, Independent, biject_to
from numpyro.handlers import replay, seed, substitute, trace

from ppl_tvae.errors import NoFrameScore, UserError
from ppl_tvae.inference.mistakes import changing_support, check_flat_names, check_parameters, without_coordinates
from ppl_tvae.inference.sites import Site, masks
from ppl_tvae.program import PLATE, Program

Trace = Mapping[str, Site]


def traced(
    function: Callable[[Any], Any], parameters: Mapping[str, jax.Array], rng_key: jax.Array, frames: jax.Array
) -> Trace:
    """The trace of a model or guide, with latents of its own."""
    return trace(substitute(seed(function, rng_key), data=dict(parameters))).get_trace(frames)


def program_traces(
    program: Program, parameters: Mapping[str, jax.Array], rng_key: jax.Array, frames: jax.Array
) -> tuple[Trace, Trace]:
    """One draw: the trace of the guide, and the trace of the model at the guide's latents."""
    key_guide, key_model = jax.random.split(rng_key)
    guide_trace = traced(program.guide, parameters, key_guide, frames)
    return guide_trace, replayed(program.model, parameters, key_model, frames, guide_trace)


def traces_at(
    program: Program, parameters: Mapping[str, jax.Array], frames: jax.Array, latents: Mapping[str, jax.Array]
) -> tuple[Trace, Trace]:
    """The traces of guide and model at given latents, by site name."""
    given = as_trace(latents)
    unused = jax.random.key(0)  # every latent is given
    guide_trace = replayed(program.guide, parameters, unused, frames, given)
    return guide_trace, replayed(program.model, parameters, unused, frames, given)


def as_trace(latents: Mapping[str, jax.Array]) -> Trace:
    """Latents by site name, as a trace to replay."""
    return {
        name: {"type": "sample", "value": value, "is_observed": False, "infer": {}} for name, value in latents.items()
    }


def replayed(
    function: Callable[[Any], Any],
    parameters: Mapping[str, jax.Array],
    rng_key: jax.Array,
    frames: jax.Array,
    latents: Trace,
) -> Trace:
    """The trace of a model or guide whose latents are those of a trace; what that lacks is drawn."""
    return trace(substitute(replay(seed(function, rng_key), latents), data=dict(parameters))).get_trace(frames)


def parameters_of(program: Program, flat: Mapping[str, Any], frames: jax.Array) -> dict[str, Any]:
    """The program's parameters by site name, from values by flat name; a tree (flax modules) from NAME.path.of.leaf.

    Raises UserError where a parameter of the program is not among them, or has another shape.
    """
    sites: dict[str, Any] = {}

    def look(frames: jax.Array) -> None:
        for part in program_traces(program, {}, jax.random.key(0), frames):
            sites.update({name: site["value"] for name, site in part.items() if site["type"] == "param"})

    jax.eval_shape(look, frames)  # shapes only: nothing is computed
    leaves, structure = jax.tree_util.tree_flatten_with_path(sites)
    check_parameters({flat_name(path): jnp.shape(leaf) for path, leaf in leaves}, flat)
    return jax.tree_util.tree_unflatten(structure, [flat[flat_name(path)] for path, _ in leaves])


def flat_parameters(parameters: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Parameters by flat name; a parameter that is a tree (flax modules) contributes NAME.path.of.leaf.

    Raises UserError where two have one name.
    """
    leaves = jax.tree_util.tree_flatten_with_path(dict(parameters))[0]
    check_flat_names(flat_name(path) for path, _ in leaves)
    return {flat_name(path): np.asarray(leaf) for path, leaf in leaves}


def flat_name(path: Any) -> str:
    """NAME, or NAME.path.of.leaf for a leaf of a parameter that is a tree."""
    return ".".join(str(getattr(part, "key", getattr(part, "idx", part))) for part in path)


def latent_sites(sites: Trace) -> dict[str, Site]:
    """The random sites that are not observed."""
    return {name: site for name, site in _random_sites(sites).items() if not site["is_observed"]}


def latent_values(sites: Trace) -> dict[str, jax.Array]:
    """The values of the latents, by site name."""
    return {name: site["value"] for name, site in latent_sites(sites).items()}


def observed_sites(sites: Trace) -> dict[str, Site]:
    """The observed sites."""
    return {name: site for name, site in _random_sites(sites).items() if site["is_observed"]}


def deterministic_sites(sites: Trace) -> dict[str, Site]:
    """What the model computes and names."""
    return {name: site for name, site in sites.items() if site["type"] == "deterministic"}


def computed_sites(program: Program, parameters: Mapping[str, jax.Array], frames: jax.Array) -> tuple[str, ...]:
    """The deterministic sites that have a value for each sequence, known by their shapes with one sequence more."""

    def shapes(size: int) -> dict[str, Any]:
        def computed() -> dict[str, jax.Array]:
            others = jnp.zeros((size, *frames.shape[1:]), frames.dtype)
            sites = deterministic_sites(traced(program.model, parameters, jax.random.key(0), others))
            return {name: jnp.asarray(site["value"]) for name, site in sites.items()}

        return jax.eval_shape(computed)

    size = len(frames)
    less, more = shapes(size), shapes(size + 1)
    return tuple(name for name in less if (*less[name].shape[:1], *more[name].shape[:1]) == (size, size + 1))


def from_the_reals(name: str, support: Any) -> Any:
    """The bijection from unconstrained space to the support of a latent. Raises UserError where there is none."""
    try:
        return biject_to(support)
    except NotImplementedError:
        raise without_coordinates(name, support) from None


def bijections(program: Program, parameters: Mapping[str, jax.Array], frames: jax.Array) -> dict[str, Any]:
    """From the reals to the support of each latent of the model, by site name. Raises UserError where there is none."""
    sites = latent_sites(traced(program.model, parameters, jax.random.key(0), frames))
    return {name: from_the_reals(name, site["fn"].support) for name, site in sites.items()}


def check_supports(program: Program, parameters: Mapping[str, jax.Array], frames: jax.Array) -> None:
    """Raises UserError where the support of a latent differs between two draws from the model.

    Unconstrained coordinates would then be others at each draw, as those of Uniform(0, s) are where s is a latent too.
    """
    keys = jax.random.key(0), jax.random.key(1)
    first, second = (latent_sites(traced(program.model, parameters, key, frames)) for key in keys)
    for name, site in first.items():
        if not bool(site["fn"].support == second[name]["fn"].support):
            raise changing_support(name)


def per_sequence(site: Site, values: jax.Array) -> jax.Array:
    """A site's values over its batch shape, summed to one per sequence: (batch,). Raises UserError without the plate.

    A site outside the plate would be counted once per sequence or not at all; either is a wrong bound.
    """
    plates = {frame.name: frame.dim for frame in site["cond_indep_stack"]}
    if PLATE not in plates:
        raise UserError(
            f"expected site '{site['name']}' inside the plate '{PLATE}', found it outside; "
            f'write `with numpyro.plate("{PLATE}", frames.shape[0]):` around it, or make it a parameter'
        )
    axis = values.ndim + plates[PLATE]
    if axis < 0:
        raise UserError(
            f"expected site '{site['name']}' to have the plate '{PLATE}' as a batch dimension, found batch shape "
            f"{tuple(values.shape)}; mark the other dimensions with .to_event"
        )
    return jnp.sum(values, axis=tuple(other for other in range(values.ndim) if other != axis))


def draw_observed(site: Site, rng_key: jax.Array) -> jax.Array:
    """A value for an observed site, as it is observed; what a mask leaves out of the likelihood stays as it is."""
    drawn = site["fn"].sample(rng_key).astype(site["value"].dtype)
    return jnp.where(counted(site), drawn, site["value"])


def counted(site: Site) -> jax.Array:
    """Which entries of a site's value count in its density: all that no mask leaves out."""
    found = jnp.ones(jnp.shape(site["value"]), bool)
    for mask, event_dim in masks(site["fn"]):
        found &= jnp.reshape(mask, (*jnp.shape(mask), *(1,) * event_dim))
    return found


def log_prob(site: Site) -> jax.Array:
    """log p(value) of a site, per sequence: (batch,), nats."""
    fn: Distribution = site["fn"]
    intermediates = site["intermediates"]
    values = fn.log_prob(site["value"], intermediates) if intermediates else fn.log_prob(site["value"])
    return per_sequence(site, values)


def log_joint(sites: Trace) -> jax.Array:
    """The sum over all random sites, observed ones too, per sequence: (batch,), nats."""
    return total(_random_sites(sites))


def total(sites: Mapping[str, Site]) -> jax.Array:
    """The sum of the log-probabilities of random sites, per sequence: (batch,), nats; of none of them 0, a scalar."""
    return sum((log_prob(site) for site in sites.values()), start=jnp.zeros(()))


def log_jacobian(
    transforms: Mapping[str, Any], unconstrained: Mapping[str, jax.Array], model_trace: Trace
) -> jax.Array:
    """log |d latents / d unconstrained|, per sequence: (batch,), nats. model_trace: of the model at these latents."""
    sites = latent_sites(model_trace)
    jacobians = (
        per_sequence(sites[name], transforms[name].log_abs_det_jacobian(value, sites[name]["value"]))
        for name, value in unconstrained.items()
    )
    return sum(jacobians, start=jnp.zeros(()))


def _random_sites(sites: Trace) -> dict[str, Site]:
    """Sample sites."""
    return {name: site for name, site in sites.items() if site["type"] == "sample"}


def frame_log_joint(sites: Trace) -> jax.Array:
    """The sum over all random sites, per frame: (batch, S), nats. Raises NoFrameScore where a site has other frames."""
    scores = {name: log_prob_per_frame(site) for name, site in _random_sites(sites).items()}
    if len({score.shape[1] for score in scores.values()}) > 1:
        found = ", ".join(f"{score.shape[1]} in '{name}'" for name, score in scores.items())
        raise NoFrameScore(
            f"expected every site to have the same number of frames for a score per frame, found {found}"
        )
    return sum(scores.values(), start=jnp.zeros(()))


def log_prob_per_frame(site: Site) -> jax.Array:
    """log p(value) of a site whose event begins with time, per frame: (batch, S), nats. Else NoFrameScore."""
    fn = site["fn"]
    if not isinstance(fn, Independent) or site["value"].ndim < 2:
        raise NoFrameScore(
            f"expected site '{site['name']}' to be independent over time for a score per frame, "
            f"found {type(fn).__name__}"
        )
    values = fn.base_dist.log_prob(site["value"])
    return jnp.sum(values.reshape(*values.shape[:2], -1), axis=-1)
