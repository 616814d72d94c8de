"""Looking into a trained run's posterior: draws for ArviZ, calibration of the guide, equivariance of the capsules."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from ppl_tvae.config import check_seed
from ppl_tvae.data import SPLITS, Plan, SequenceData, parts
from ppl_tvae.diagnostics import calibration, rolling
from ppl_tvae.diagnostics.datatree import datatree, with_chains, with_groups
from ppl_tvae.diagnostics.predictive import predictive_checks, prior_ranks
from ppl_tvae.diagnostics.sensitivity import power_scaling
from ppl_tvae.errors import UserError, unknown_name
from ppl_tvae.files import replacing
from ppl_tvae.guide_fit import against_mcmc, amortisation_gap, chains_of, check_chains, check_gap
from ppl_tvae.inference import reliability
from ppl_tvae.inference.description import ABOUT
from ppl_tvae.inference.draw import Draw
from ppl_tvae.inference.mcmc import MCMC
from ppl_tvae.inference.unamortised import Unamortised
from ppl_tvae.runs import Run, run_at
from ppl_tvae.trained import SEQUENCES_PER_BATCH, evaluator
from ppl_tvae.training import data_of

if TYPE_CHECKING:
    import xarray as xr

_CALIBRATION_DRAWS = 63


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
    _check({"num_sequences": num_sequences, "num_draws": num_draws}, split, seed)
    if mcmc is not None:
        check_chains(mcmc, mcmc_sequences, num_sequences)
    data = data_of(run.experiment, transforms)
    attrs = {"inference_library": backend or run.experiment.backend, "split": split, "seed": seed}
    attrs |= {"parameters": run.parameters_digest()}
    with evaluator(run, data, backend, device, seed) as ready:
        tree = _tree(run, ready, data, num_sequences, num_draws, attrs)
        if mcmc is None:
            return tree
        return _with_mcmc(tree, ready, data, mcmc, mcmc_sequences, split, quiet)


def _with_mcmc(
    tree: "xr.DataTree", ready: Any, data: SequenceData, mcmc: MCMC, num_sequences: int, split: str, quiet: bool
) -> "xr.DataTree":
    """The tree with groups of chains."""
    chains, seconds = chains_of(ready, data, mcmc, num_sequences, split, quiet)
    attrs = {"sampling_time": seconds, "kernel": mcmc.kernel, "tuning_steps": mcmc.num_warmup}  # as ArviZ names them
    return with_chains(tree, chains, attrs)


def _tree(
    run: Run, ready: Any, data: SequenceData, num_sequences: int, num_draws: int, attrs: dict[str, Any]
) -> "xr.DataTree":
    plan = data.plan(attrs["split"], num_sequences)
    drawn = [
        (ready.posterior(part, index, num_draws), ready.prior(part, index, num_draws), ready.frames(part))
        for index, part in parts(plan, SEQUENCES_PER_BATCH)
    ]
    posterior, prior = (_joined([each[kind] for each in drawn]) for kind in (0, 1))
    observed = np.concatenate([each[2] for each in drawn])
    values = plan.image, data.labels[plan.image], np.asarray(data.transforms)[plan.transform], plan.phase
    about = dict(zip(ABOUT, values, strict=True))
    experiment = run.experiment
    attrs |= {
        "model": experiment.model if experiment.program_file is None else experiment.program_file.name,
        "guide": experiment.guide if experiment.program_file is None else "own",
        "likelihood": experiment.likelihood,
        "data": Path(experiment.data).name,
        "transforms": ",".join(data.transforms),
    }
    return datatree(posterior, prior, observed, about, attrs)


def save_datatree(run: Run, tree: "xr.DataTree") -> Path:
    """Write the tree to the run's posterior.nc (NetCDF 4, compressed). Raises UserError where that cannot be."""
    path = run.path / "posterior.nc"
    groups = {group.path: group.to_dataset().data_vars for group in tree.subtree}
    encoding = {group: {name: {"zlib": True, "complevel": 1} for name in names} for group, names in groups.items()}
    with replacing(path) as beside:
        tree.to_netcdf(beside, engine="h5netcdf", encoding=encoding)
    return path


def diagnose(
    run: Run | Path | str,
    *,
    num_sequences: int = 8,
    num_draws: int = 100,
    metric_sequences: int = 200,
    simulated_sequences: int = 64,
    mcmc: MCMC | None = None,
    mcmc_sequences: int = 2,
    gap_guide: Unamortised | None = None,
    gap_sequences: int = 8,
    split: str = "test",
    transforms: Sequence[str] | None = None,
    seed: int = 0,
    backend: str | None = None,
    device: str = "auto",
    quiet: bool = False,
) -> dict[str, Any]:
    """What `ppl-tvae diagnose` does: write posterior.nc (`to_datatree`) and diagnosis.json; returns the latter.

    Keys: posterior (the settings of the tree, k-hat and effective sample size of each of its sequences, a verdict),
    calibration (for each quantity the `calibration_ranks` and a verdict), equivariance (`equivariance_metrics`),
    by_transform (`diagnostics.rolling`), and predictive_checks, prior_ranks and power_scaling (the functions of these
    names). The file also has parameters, the digest of those it is of.
    Where mcmc is given, also mcmc (`guide_fit.against_mcmc`), with the chains in posterior.nc; where gap_guide is,
    amortisation_gap (`guide_fit.amortisation_gap`). Both are slow, and stay from an earlier call with the same
    parameters, split and transforms until they are asked for again.
    transforms: as in `to_datatree`; calibration is of the model's own sequences and does not depend on them.
    Raises UserError.
    """
    run = run_at(run)
    counts = {"num_sequences": num_sequences, "num_draws": num_draws, "metric_sequences": metric_sequences}
    _check(counts | {"simulated_sequences": simulated_sequences}, split, seed)
    data = data_of(run.experiment, transforms)
    if mcmc is not None:
        check_chains(mcmc, mcmc_sequences, num_sequences)
    if gap_guide is not None:
        check_gap(gap_guide, len(data.plan(split, max(1, gap_sequences)).image))
    against = _slow_findings(run, split, data.transforms)
    parameters = run.parameters_digest()  # a training that goes on may replace them meanwhile
    attrs = {"inference_library": backend or run.experiment.backend, "split": split, "seed": seed}
    attrs |= {"parameters": parameters}
    with evaluator(run, data, backend, device, seed) as ready:  # one for all, for what it compiles
        tree = _tree(run, ready, data, num_sequences, num_draws, attrs)
        ranks = simulated_ranks(ready, data.plan("train", 1), simulated_sequences, _CALIBRATION_DRAWS, seed, quiet)
        rolls = _rolls(ready, data, data.plan(split, metric_sequences), split, seed, quiet)
        if gap_guide is not None:
            against["amortisation_gap"] = amortisation_gap(ready, data, gap_guide, gap_sequences, split, quiet)
        if mcmc is not None:  # last, since both files are written after it and belong together
            tree = _with_mcmc(tree, ready, data, mcmc, mcmc_sequences, split, quiet)
            against["mcmc"] = against_mcmc(tree, mcmc, seed)
        elif "mcmc" in against:
            tree = with_groups(tree, _saved_chains(run))
    found = {
        "posterior": _of_posterior(tree, data.transforms),
        "calibration": {
            name: {"verdict": calibration.calibration(values).verdict, "ranks": [round(float(v), 4) for v in values]}
            for name, values in ranks.items()
        },
        **rolls,
        "predictive_checks": predictive_checks(tree),
        "prior_ranks": prior_ranks(tree),
        "power_scaling": power_scaling(tree),
        **against,
    }
    save_datatree(run, tree)
    run.save_diagnosis(found, parameters)
    return run.diagnosis()


def _of_posterior(tree: "xr.DataTree", transforms: Sequence[str]) -> dict[str, Any]:
    """The settings of a tree, and whether its draws can stand for the posterior of each sequence."""
    stats, num_draws = tree["sample_stats"].to_dataset(), tree["posterior"].sizes["draw"]
    khats, sizes = stats["khat"].values, stats["effective_sample_size"].values
    return {
        "num_sequences": len(khats),
        "num_draws": num_draws,
        "split": stats.attrs["split"],
        "transforms": list(transforms),
        "seed": stats.attrs["seed"],
        "khat": [reliability.rounded(value) for value in khats],
        "effective_sample_size": [round(float(value), 2) for value in sizes],
        "verdict": reliability.verdict(khats, sizes, num_draws),
    }


def _slow_findings(run: Run, split: str, transforms: Sequence[str]) -> dict[str, Any]:
    """What an earlier diagnosis of the same parameters and sequences may have taken hours for: it stays."""
    before = run.present_diagnosis()
    asked = before.get("posterior", {})
    if (asked.get("split"), asked.get("transforms")) != (split, list(transforms)):
        return {}
    return {name: before[name] for name in ("mcmc", "amortisation_gap") if name in before}


def _saved_chains(run: Run) -> dict[str, Any]:
    """The groups of chains in the run's posterior.nc, by name."""
    import xarray as xr

    path = run.path / "posterior.nc"
    if not path.exists():
        return {}
    with xr.open_datatree(path, engine="h5netcdf") as tree:
        return {name: group.to_dataset().load() for name, group in tree.children.items() if name.endswith("_mcmc")}


def equivariance_metrics(
    run: Run,
    *,
    num_sequences: int = 200,
    split: str = "test",
    transforms: Sequence[str] | None = None,
    seed: int = 0,
    backend: str | None = None,
    device: str = "auto",
    quiet: bool = False,
) -> dict[str, list[dict[str, Any]]]:
    """Whether the code t rolls while the frames move, from one draw of the guide for each sequence.

    Keys as in diagnosis.json: equivariance, and by_transform (`diagnostics.rolling.by_transform`, CapCorr among it).
    Of equivariance a record for each metric: metric, value and standard_error over sequences, unit, and what it is in
    words. Errors in image space are squared differences from the frames as observed, averaged over pixels and over all
    frames but the first: of the first frame's code rolled on to each later frame, and as a scale of the same code not
    rolled (and the paired difference), rolled by random amounts, and of the code that the guide finds for each frame.
    Both are empty for a program without a site t of event shape (S, C, D). transforms: as in `to_datatree`. Raises
    UserError.
    """
    _check({"num_sequences": num_sequences}, split, seed)
    data = data_of(run.experiment, transforms)
    with evaluator(run, data, backend, device, seed) as ready:
        return _rolls(ready, data, data.plan(split, num_sequences), split, seed, quiet)


def _rolls(
    ready: Any, data: SequenceData, plan: Plan, split: str, seed: int, quiet: bool
) -> dict[str, list[dict[str, Any]]]:
    """The metrics over all sequences of a plan, and by transform; both empty where no code rolls."""
    batches = tqdm(list(parts(plan, SEQUENCES_PER_BATCH)), desc="equivariance", disable=True if quiet else None)
    found = rolling.measured(ready, data, batches, seed)
    if found is None:
        return {"equivariance": [], "by_transform": []}
    return {
        "equivariance": rolling.summary(found, data, split, seed),
        "by_transform": rolling.by_transform(found, data, plan),
    }


def calibration_ranks(
    run: Run,
    *,
    num_sequences: int = 64,
    num_draws: int = _CALIBRATION_DRAWS,
    seed: int = 0,
    backend: str | None = None,
    device: str = "auto",
    quiet: bool = False,
) -> dict[str, np.ndarray]:
    """Ranks in (0, 1) of the truth among draws of the guide, on sequences simulated from the model, (num_sequences,).

    Of one random cell of each site, another one for each sequence, so that ranks are independent; and of
    log p(x | latents), which hangs on all of them (Modrak et al. 2023, arXiv 2211.02383). `diagnostics.calibration`
    judges them. Raises UserError.
    """
    _check({"simulated_sequences": num_sequences, "num_draws": num_draws}, "test", seed)
    data = data_of(run.experiment)
    with evaluator(run, data, backend, device, seed) as ready:
        plan = data.plan("train", 1)
        return simulated_ranks(ready, plan, num_sequences, num_draws, seed, quiet)


def simulated_ranks(
    ready: Any, plan: Plan, num_sequences: int, num_draws: int, seed: int, quiet: bool = False
) -> dict[str, np.ndarray]:
    """As `calibration_ranks`, of an evaluator; of the plan only the shape of its frames counts."""
    rng, ranks = np.random.default_rng(seed), dict[str, list[np.ndarray]]()
    batch = plan.map(lambda field: np.repeat(field[:1], SEQUENCES_PER_BATCH, axis=0))
    batches = range(-(-num_sequences // SEQUENCES_PER_BATCH))
    for index in tqdm(batches, desc="calibration", disable=True if quiet else None):
        truth, draws = ready.simulated(batch, index, num_draws)
        for name in draws.sites:
            values, drawn = (each.sites[name].reshape(*each.sites[name].shape[:2], -1) for each in (truth, draws))
            cell = rng.integers(values.shape[2], size=(1, SEQUENCES_PER_BATCH, 1))
            one, several = (np.take_along_axis(each, cell, axis=2)[..., 0] for each in (values, drawn))
            ranks.setdefault(name, []).append(calibration.normalised_ranks(one[0], several, rng))
        likelihoods = calibration.normalised_ranks(truth.log_likelihood[0], draws.log_likelihood, rng)
        ranks.setdefault("log p(x | latents)", []).append(likelihoods)
    return {name: np.concatenate(own)[:num_sequences] for name, own in ranks.items()}


# From fewer ranks there is no distribution function to judge.
_AT_LEAST = {"simulated_sequences": 8}


def _check(counts: dict[str, int], split: str, seed: int) -> None:
    for name, value in counts.items():
        if value < (least := _AT_LEAST.get(name, 1)):
            raise UserError(f"expected {name} of at least {least}, found {value}")
    if split not in SPLITS:
        raise unknown_name("split", split, SPLITS)
    check_seed(seed)


def _joined(draws: list[Draw]) -> Draw:
    """One draw of all sequences: axis 1 of every array."""

    def joined(values: Sequence[Any]) -> Any:
        if isinstance(values[0], dict):
            return {name: joined([each[name] for each in values]) for name in values[0]}
        return None if values[0] is None else np.concatenate(values, axis=1)

    return Draw(*(joined(values) for values in zip(*draws, strict=True)))
