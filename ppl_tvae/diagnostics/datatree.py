"""Draws as an ArviZ DataTree, with named dimensions."""

from collections.abc import Mapping, Sequence
from typing import Any

import arviz_base
import numpy as np
import xarray as xr

from ppl_tvae.inference import bounds, reliability
from ppl_tvae.inference.draw import Draw
from ppl_tvae.inference.mcmc import Chains
from ppl_tvae.inference.mistakes import check_site_names
from ppl_tvae.program import CELL_DIMS, FRAME_DIMS

LOG_LIKELIHOOD = "log p(x | latents)"  # the group log_likelihood, where it stands beside sites


def datatree(
    posterior: Draw, prior: Draw, observed: np.ndarray, about: Mapping[str, np.ndarray], attrs: Mapping[str, Any]
) -> xr.DataTree:
    """The groups posterior, posterior_predictive, log_likelihood, log_prior, log_guide, sample_stats, sequence_stats,
    prior, prior_predictive and observed_data.

    posterior, prior: draws with leading axes (draw, sequence), all of them one chain. observed: frames (sequence, time,
    height, width, channel). about: coordinates along the sequences, by the names ABOUT, of all groups but the two of
    draws from the prior, which have seen no frames. attrs: of every group.
    The dimensions of a latent of event shape (S, C, D), that of t, are time, capsule and position; of another latent
    they are numbered. log_likelihood is log p(x | latents) of a whole sequence, log_prior log p(latent) and log_guide
    log q(latent | x) of each latent, at the draws from the guide; sample_stats has the log importance weights of the
    draws, sequence_stats of each sequence their Pareto k-hat and effective sample size. Nats. Raises UserError where a
    site has the name of a dimension or coordinate.
    """
    check_site_names(posterior.sites)
    dims = _dims_of(posterior.sites, observed.shape[1])
    along = {"sequence": np.arange(len(observed)), **{name: ("sequence", values) for name, values in about.items()}}
    frames: dict[Any, Sequence[Any]] = {"x": FRAME_DIMS}
    of_sequences: dict[Any, Sequence[Any]] = {"x": ["sequence"], "log_weight": ["sequence"]}

    def named(values: dict[str, Any], names: dict[Any, Sequence[Any]], sample_dims: Sequence[str]) -> xr.Dataset:
        group = arviz_base.dict_to_dataset(values, dims=names, sample_dims=sample_dims, attrs=dict(attrs))
        return group.assign_coords(along)

    def of_no_frames(group: xr.Dataset) -> xr.Dataset:
        return group.drop_vars(list(about))

    def drawn(values: Mapping[str, Any], names: dict[Any, Sequence[Any]]) -> xr.Dataset:
        return named({name: np.asarray(value)[None] for name, value in values.items()}, names, ("chain", "draw"))

    of_latents: dict[Any, Sequence[Any]] = {name: ["sequence"] for name in posterior.log_prior}
    weights = np.asarray(posterior.log_weights, np.float64)
    of_weights = {"khat": reliability.khat(weights), "effective_sample_size": bounds.effective_sample_size(weights)}
    return xr.DataTree.from_dict(
        {
            "posterior": drawn(posterior.sites, dims),
            "posterior_predictive": drawn({"x": posterior.frames}, frames),
            "log_likelihood": drawn({"x": posterior.log_likelihood}, of_sequences),
            "log_prior": drawn(posterior.log_prior, of_latents),
            "log_guide": drawn(posterior.log_guide, of_latents),
            "sample_stats": drawn({"log_weight": posterior.log_weights}, of_sequences),
            "sequence_stats": named(of_weights, {name: ["sequence"] for name in of_weights}, ()),
            "prior": of_no_frames(drawn(prior.sites, dims)),
            "prior_predictive": of_no_frames(drawn({"x": prior.frames}, frames)),
            "observed_data": named({"x": observed}, frames, ()),
        }
    )


def with_chains(tree: xr.DataTree, chains: Chains, attrs: Mapping[str, Any]) -> xr.DataTree:
    """The tree with the groups posterior_mcmc, log_likelihood_mcmc and sample_stats_mcmc beside the guide's.

    chains: of the first sequences of the tree. Variables, dimensions and coordinates are those of posterior and
    log_likelihood, with as many chains. sample_stats_mcmc, by the names that ArviZ knows: lp, the log joint density in
    unconstrained space; energy, acceptance_rate, diverging, n_steps and step_size, (chain, draw, sequence).
    """
    guide = tree["posterior"].to_dataset()
    dims: dict[Any, Sequence[Any]] = {name: guide[name].dims[2:] for name in chains.sites}
    num_sequences = np.shape(chains.energy)[2]
    along = {name: values[:num_sequences] for name, values in guide.coords.items() if values.dims == ("sequence",)}
    stats = {
        "lp": np.asarray(chains.log_joint, np.float64),
        "energy": np.asarray(chains.energy, np.float64),
        "acceptance_rate": np.asarray(chains.acceptance_rate, np.float64),
        "diverging": np.asarray(chains.diverging, bool),
        "n_steps": np.asarray(chains.num_steps, np.int64),
        "step_size": np.asarray(chains.step_size, np.float64),
    }

    def group(values: Mapping[str, Any], names: Mapping[Any, Sequence[Any]]) -> xr.Dataset:
        drawn = arviz_base.dict_to_dataset(dict(values), dims=dict(names), attrs={**guide.attrs, **attrs})
        return drawn.assign_coords(along)

    groups = {
        "posterior_mcmc": group(chains.sites, dims),
        "log_likelihood_mcmc": group({"x": chains.log_likelihood}, {"x": ["sequence"]}),
        "sample_stats_mcmc": group(stats, {name: ["sequence"] for name in stats}),
    }
    return with_groups(tree, groups)


def with_groups(tree: xr.DataTree, groups: Mapping[str, xr.Dataset]) -> xr.DataTree:
    """The tree with further groups, in place of those of the same names."""
    return xr.DataTree.from_dict({**{name: child.to_dataset() for name, child in tree.children.items()}, **groups})


def _dims_of(sites: Mapping[str, Any], num_timesteps: int) -> dict[Any, Sequence[Any]]:
    """Names of the dimensions of each site after (chain, draw)."""
    cells = np.shape(sites["t"]) if "t" in sites else ()
    dims: dict[Any, Sequence[Any]] = {}
    for name, values in sites.items():
        shape = np.shape(values)
        if shape == cells and len(shape) == 5 and shape[2] == num_timesteps:
            dims[name] = CELL_DIMS
        else:
            dims[name] = ["sequence", *(f"{name}_dim_{index}" for index in range(len(shape) - 2))]
    return dims
