"""What `diagnose` finds in a trained run: weights and calibration of the guide, predictive checks, rolling codes."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ppl_tvae.assembly import data_of
from ppl_tvae.data import parts
from ppl_tvae.diagnostics import calibration, rate, rolling
from ppl_tvae.diagnostics.datatree import with_groups
from ppl_tvae.diagnostics.guide_fit import against_mcmc, amortisation_gap, check_chains, check_gap
from ppl_tvae.diagnostics.predictive import extremes, predictive_checks, prior_ranks
from ppl_tvae.diagnostics.sensitivity import power_scaling
from ppl_tvae.errors import check_count
from ppl_tvae.files import alone_in, check_writable
from ppl_tvae.inference import reliability
from ppl_tvae.inference.mcmc import MCMC
from ppl_tvae.inference.unamortised import Unamortised
from ppl_tvae.posterior import check_request, save_datatree, saved_chains, tree_of, with_mcmc
from ppl_tvae.progress import progress
from ppl_tvae.runs import Run, run_at
from ppl_tvae.trained import Asked, asking

if TYPE_CHECKING:
    import xarray as xr

_CALIBRATION_DRAWS = 63
_FEWEST_SIMULATED = 8  # from fewer ranks there is no distribution function to judge


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
    calibration (for each quantity `calibration.simulated_ranks` and a verdict), equivariance (`equivariance_metrics`),
    by_transform (`diagnostics.rolling`), and predictive_checks, prior_ranks and power_scaling (the functions of these
    names), and rates (`diagnostics.rate.rates`). The file also has parameters, the digest of those it is of.
    Where mcmc is given, also mcmc, with the chains in posterior.nc; where gap_guide is, amortisation_gap (both are of
    `diagnostics.guide_fit`). They are slow, and stay from an earlier call, or one at the same time, with the same
    parameters, split and transforms until they are asked for again. Both come last: after Ctrl-C what was found before
    stays.
    transforms: as in `to_datatree`; calibration is of the model's own sequences and does not depend on them.
    Raises UserError.
    """
    run = run_at(run)
    counts = {"num_sequences": num_sequences, "num_draws": num_draws, "metric_sequences": metric_sequences}
    check_request(counts | {"mcmc_sequences": mcmc_sequences, "gap_sequences": gap_sequences}, split, seed)
    check_count("simulated_sequences", simulated_sequences, _FEWEST_SIMULATED)
    data = data_of(run.experiment, transforms)
    if mcmc is not None:
        check_chains(mcmc, mcmc_sequences, num_sequences)
    of_gap = data.plan(split, gap_sequences)
    if gap_guide is not None:
        check_gap(gap_guide, len(of_gap.image))
    # What keeps results from being written is said before they are computed.
    check_writable(run.path)
    if mcmc is None and "mcmc" in run.diagnosis():
        saved_chains(run)
    with asking(run, data, split, seed, backend, device) as asked:  # one for all, for what it compiles
        tree = tree_of(asked, num_sequences, num_draws)
        found = _findings(asked, tree, simulated_sequences, metric_sequences, quiet)
        _save(asked, tree, found)
        # What may take hours comes after the rest is written, and is written as soon as it is there.
        if gap_guide is not None:
            gap = amortisation_gap(asked.evaluator, of_gap, data.num_timesteps, gap_guide, quiet)
            found["amortisation_gap"] = gap
            _save(asked, tree, found)
        if mcmc is not None:
            tree = with_mcmc(tree, asked, mcmc, mcmc_sequences, quiet)
            found["mcmc"] = against_mcmc(tree, mcmc, seed)
            _save(asked, tree, found)
    return run.diagnosis()


def _findings(
    asked: Asked, tree: "xr.DataTree", simulated_sequences: int, metric_sequences: int, quiet: bool
) -> dict[str, Any]:
    """All but what is slow."""
    any_frames = asked.data.plan("train", 1)
    ranks = calibration.simulated_ranks(
        asked.evaluator, any_frames, simulated_sequences, _CALIBRATION_DRAWS, asked.seed, quiet
    )
    return {
        "posterior": _of_posterior(tree, asked.data.transforms),
        "calibration": {
            name: {"verdict": calibration.calibration(values).verdict, "ranks": [round(float(v), 4) for v in values]}
            for name, values in ranks.items()
        },
        **_rolls(asked, metric_sequences, quiet),
        "predictive_checks": predictive_checks(tree),
        "prior_ranks": prior_ranks(tree),
        "power_scaling": power_scaling(tree),
        "rates": rate.rates(tree),
    }


def _save(asked: Asked, tree: "xr.DataTree", found: dict[str, Any]) -> None:
    """Write both files, with what stays: of an earlier diagnosis, or of one that has been going on beside this one."""
    with alone_in(asked.run.path):  # the two files of one diagnosis, not one each of two
        kept = _slow_findings(asked)
        if "mcmc" in kept and "mcmc" not in found:
            tree = with_groups(tree, saved_chains(asked.run))
        save_datatree(asked.run, tree)
        asked.run.save_diagnosis(kept | found, asked.parameters)


def _of_posterior(tree: "xr.DataTree", transforms: Sequence[str]) -> dict[str, Any]:
    """The settings of a tree, and whether its draws can stand for the posterior of each sequence."""
    stats, num_draws = tree["sequence_stats"].to_dataset(), tree["posterior"].sizes["draw"]
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


def _slow_findings(asked: Asked) -> dict[str, Any]:
    """What a diagnosis of the same parameters and sequences may have taken hours for: it stays."""
    saved = asked.run.diagnosis()
    of = saved.get("posterior", {})
    same = (asked.parameters, asked.split, list(asked.data.transforms))
    if (saved.get("parameters"), of.get("split"), of.get("transforms")) != same:
        return {}
    return {name: saved[name] for name in ("mcmc", "amortisation_gap") if name in saved}


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
    check_request({"num_sequences": num_sequences}, split, seed)
    data = data_of(run.experiment, transforms)
    with asking(run, data, split, seed, backend, device) as asked:
        return _rolls(asked, num_sequences, quiet)


def _rolls(asked: Asked, num_sequences: int, quiet: bool) -> dict[str, list[dict[str, Any]]]:
    """The metrics over all sequences, and by transform; both empty where no code rolls."""
    data, split, seed = asked.data, asked.split, asked.seed
    plan = data.plan(split, num_sequences)
    batches = progress(list(parts(plan)), what="equivariance", quiet=quiet)
    found = rolling.measured(asked.evaluator, data, batches, seed)
    if found is None:
        return {"equivariance": [], "by_transform": []}
    return {
        "equivariance": [record | {"backend": asked.backend} for record in rolling.summary(found, data, split, seed)],
        "by_transform": rolling.by_transform(found, data, plan),
    }


def as_text(run: Run, found: dict[str, Any]) -> str:
    """What `diagnose` found, for people: the verdicts, and the measures of equivariance."""
    posterior = found["posterior"]
    lines = [
        f"{run.path / 'posterior.nc'}: {posterior['num_draws']} draws for {posterior['num_sequences']} sequences",
        f"  guide: {posterior['verdict']}",
        f"  {rate.as_text(found['rates'])}",
        *(f"  {sentence}" for sentence in rate.signs_of_collapse(found)),
    ]
    for name, judged in found["calibration"].items():
        lines.append(f"  calibration of {name} on {len(judged['ranks'])} simulated sequences: {judged['verdict']}")
    lines += [f"  {line}" for line in _fit_in_words(found)]
    lines += [f"  {line}" for line in extremes(found["predictive_checks"], run.experiment.likelihood)]
    if not found["equivariance"]:
        lines.append(
            "  equivariance: not measured, the program has no site t of event shape (S, C, D) with S and D above 1"
        )
    for record in found["equivariance"]:
        error = "unknown" if record["standard_error"] is None else f"{record['standard_error']:.3g}"
        value = f"{record['value']:10.5g} +- {error:8}"
        lines.append(f"  {record['metric']:35} {value}  {record['unit']}: {record['meaning']}")
    return "\n".join(lines)


def _fit_in_words(found: dict[str, Any]) -> list[str]:
    """Lines on what the guide was held against, if it was."""
    lines = []
    if mcmc := found.get("mcmc"):
        lines.append(
            f"{mcmc['kernel']} on {mcmc['num_sequences']} sequences, {mcmc['seconds']:.0f} s: {mcmc['verdict']}"
        )
        lines += [f"  {name}: {each['verdict']}" for name, each in mcmc["convergence"].items()]
        lines.append("guide against MCMC:")
        lines += [f"  {name}: {each['verdict']}" for name, each in mcmc["guide"].items()]
    if gap := found.get("amortisation_gap"):
        lines.append(
            f"amortisation gap to {gap['guide_name']}: {gap['value']:.3f} +- {gap['standard_error']:.3f} "
            f"{gap['unit']}; {gap['verdict']}"
        )
    return lines
