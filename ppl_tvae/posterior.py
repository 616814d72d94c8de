"""A run's draws from guide and prior as an ArviZ DataTree, with chains of MCMC beside them, and in posterior.nc."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ppl_tvae.assembly import data_of
from ppl_tvae.config import check_seed
from ppl_tvae.data import check_split, parts
from ppl_tvae.diagnostics.datatree import datatree, with_chains
from ppl_tvae.diagnostics.guide_fit import chains_of, check_chains
from ppl_tvae.errors import UserError, check_count
from ppl_tvae.files import replacing
from ppl_tvae.inference.draw import Draw
from ppl_tvae.inference.mcmc import MCMC
from ppl_tvae.program import ABOUT
from ppl_tvae.runs import Run, run_at
from ppl_tvae.trained import Asked, asking

if TYPE_CHECKING:
    import xarray as xr


def to_datatree(
    run: Run | Path | str,
    *,
    num_sequences: int = 8,
    num_draws: int = 100,
    mcmc: MCMC | None = None,
    mcmc_sequences: int = 2,
    split: str = "test",
    transforms: Sequence[str] | None = None,
    seed: int = 0,
    backend: str | None = None,
    device: str = "auto",
    quiet: bool = True,
) -> "xr.DataTree":
    """The guide's draws for sequences of a split, with the prior's and what the model makes of both.

    Groups, dimensions and coordinates: `ppl_tvae.diagnostics.datatree`. run: a run, or the path of its directory.
    transforms: what moves in the sequences, where that is something else than in training. mcmc: chains on the
    posterior of the first mcmc_sequences of them, as further groups; None for none. The whole tree is in memory: a draw
    of a sequence takes about half a megabyte at the default sizes, one of MCMC a seventh of that. Raises UserError.
    """
    run = run_at(run)
    check_request({"num_sequences": num_sequences, "num_draws": num_draws}, split, seed)
    if mcmc is not None:
        check_chains(mcmc, mcmc_sequences, num_sequences)
    data = data_of(run.experiment, transforms)
    with asking(run, data, split, seed, backend, device) as asked:
        tree = tree_of(asked, num_sequences, num_draws)
        return tree if mcmc is None else with_mcmc(tree, asked, mcmc, mcmc_sequences, quiet)


def tree_of(asked: Asked, num_sequences: int, num_draws: int) -> "xr.DataTree":
    """`to_datatree` by a run that is ready already."""
    data, experiment, ready = asked.data, asked.run.experiment, asked.evaluator
    plan = data.plan(asked.split, num_sequences)
    drawn = [
        (ready.posterior(part, index, num_draws), ready.prior(part, index, num_draws), ready.frames(part))
        for index, part in parts(plan)
    ]
    posteriors, priors, frames = zip(*drawn, strict=True)
    values = plan.image, data.labels[plan.image], np.asarray(data.transforms)[plan.transform], plan.phase
    about = dict(zip(ABOUT, values, strict=True))
    attrs = {
        "inference_library": asked.backend,
        "split": asked.split,
        "seed": asked.seed,
        "parameters": asked.parameters,
        "model": experiment.model if experiment.program_file is None else experiment.program_file.name,
        "guide": experiment.guide if experiment.program_file is None else "own",
        "likelihood": experiment.likelihood,
        "data": Path(experiment.data).name,
        "transforms": ",".join(data.transforms),
    }
    return datatree(_joined(posteriors), _joined(priors), np.concatenate(frames), about, attrs)


def with_mcmc(tree: "xr.DataTree", asked: Asked, mcmc: MCMC, num_sequences: int, quiet: bool) -> "xr.DataTree":
    """The tree with groups of chains on the posterior of its first sequences."""
    chains, seconds = chains_of(asked.evaluator, asked.data.plan(asked.split, num_sequences), mcmc, quiet)
    attrs = {"sampling_time": seconds, "kernel": mcmc.kernel, "tuning_steps": mcmc.num_warmup}  # as ArviZ names them
    return with_chains(tree, chains, attrs)


def save_datatree(run: Run, tree: "xr.DataTree") -> Path:
    """Write the tree to the run's posterior.nc (NetCDF 4, compressed). Raises UserError where that cannot be."""
    path = run.path / "posterior.nc"
    groups = {group.path: group.to_dataset().data_vars for group in tree.subtree}
    encoding = {group: {name: {"zlib": True, "complevel": 1} for name in names} for group, names in groups.items()}
    with replacing(path) as beside:
        tree.to_netcdf(beside, engine="h5netcdf", encoding=encoding)
    return path


def saved_chains(run: Run) -> dict[str, Any]:
    """The groups of chains in the run's posterior.nc, by name."""
    import xarray as xr

    path = run.path / "posterior.nc"
    if not path.exists():
        return {}
    try:
        with xr.open_datatree(path, engine="h5netcdf") as tree:
            groups = {name: group for name, group in tree.children.items() if name.endswith("_mcmc")}
            return {name: group.to_dataset().load() for name, group in groups.items()}
    except OSError:
        raise UserError(f"expected draws from diagnose in '{path}', found a damaged file; remove it") from None


def check_request(counts: Mapping[str, int], split: str, seed: int) -> None:
    """Raises UserError for a count below 1, an unknown split or a seed that is none."""
    for name, value in counts.items():
        check_count(name, value)
    check_split(split)
    check_seed(seed)


def _joined(draws: Sequence[Draw]) -> Draw:
    """One draw of all sequences: axis 1 of every array."""

    def joined(values: Sequence[Any]) -> Any:
        if isinstance(values[0], dict):
            return {name: joined([each[name] for each in values]) for name in values[0]}
        return None if values[0] is None else np.concatenate(values, axis=1)

    return Draw(*(joined(values) for values in zip(*draws, strict=True)))
