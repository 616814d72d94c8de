"""How good a guide is: against MCMC on the same posterior, and against a guide that is fitted to each sequence."""

import math
import time
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.special import stdtrit

from ppl_tvae.data import Plan, parts
from ppl_tvae.diagnostics.convergence import (
    BELIEVABLE,
    NOT_BELIEVABLE,
    chosen_cells,
    convergence,
    guide_against_chains,
)
from ppl_tvae.errors import UserError, check_is
from ppl_tvae.inference import bounds
from ppl_tvae.inference.interfaces import Evaluator
from ppl_tvae.inference.mcmc import MCMC, Chains, check_mcmc
from ppl_tvae.inference.unamortised import Unamortised, check_unamortised
from ppl_tvae.progress import progress

if TYPE_CHECKING:
    import xarray as xr

_MANY_CUT = 0.2  # of trajectories: worth a word
_GAP_DRAWS = 50  # of each guide and sequence; the standard error over sequences has their noise in it


def check_chains(settings: MCMC, num_sequences: int, num_in_tree: int) -> None:
    """Raises UserError where a setting is out of range."""
    check_mcmc(settings)
    if not 1 <= num_sequences <= num_in_tree:
        raise UserError(
            f"expected MCMC on between 1 and {num_in_tree} sequences, those that the guide is asked about, found "
            f"{num_sequences}; ask for fewer, or for more sequences of the guide"
        )


def check_gap(settings: Unamortised, num_sequences: int) -> None:
    """Raises UserError where a setting is out of range."""
    check_is("gap_guide", settings, Unamortised)
    check_unamortised(settings)
    if num_sequences < 2:
        raise UserError(f"expected at least 2 sequences for the error of a gap, found {num_sequences}")


def chains_of(ready: Evaluator, plan: Plan, settings: MCMC, quiet: bool) -> tuple[Chains, float]:
    """MCMC on the sequences of a plan, by an evaluator, and the seconds that it took."""
    batches, started = list(parts(plan)), time.perf_counter()
    total = len(batches) * (settings.num_warmup + settings.num_draws)
    form = "{l_bar}{bar}| {n:.0f}/{total} [{elapsed}<{remaining}]"
    with progress(what=settings.kernel, quiet=quiet, total=total, bar_format=form) as bar:
        found = [ready.mcmc(part, index, settings, bar.update) for index, part in batches]
    sites = {name: np.concatenate([each.sites[name] for each in found], axis=2) for name in found[0].sites}
    others = [np.concatenate(values, axis=2) for values in zip(*(each[1:] for each in found), strict=True)]
    return Chains(sites, *others), time.perf_counter() - started


def against_mcmc(tree: "xr.DataTree", settings: MCMC, seed: int) -> dict[str, Any]:
    """The record of a tree with chains: settings, how they went, whether to believe them, and the guide against them.

    Keys: those of `MCMC` and num_sequences, seconds; acceptance_rate, num_divergences, num_steps (leapfrog steps of an
    iteration, mean), step_size (median over chains); convergence (`diagnostics.convergence.convergence`), verdict (on
    all quantities), guide (`guide_against_chains`).
    """
    stats = tree["sample_stats_mcmc"].to_dataset()
    guide, chains = chosen_cells(tree, seed)
    judged, compared = {}, {}
    if chains.data_vars:  # else no cell of any quantity varies
        judged, compared = convergence(chains), guide_against_chains(guide, chains)
    doubted = [name for name, each in judged.items() if each["verdict"].startswith(NOT_BELIEVABLE)]
    for name in doubted:
        why = "nothing can be said, since MCMC has not converged"
        compared[name] = {"num_cells": compared[name]["num_cells"], "verdict": why}
    return {
        "num_sequences": stats.sizes["sequence"],
        **settings._asdict(),
        "seconds": round(float(stats.attrs["sampling_time"]), 1),
        "acceptance_rate": round(float(stats["acceptance_rate"].mean()), 3),
        "num_divergences": int(stats["diverging"].sum()),
        "num_steps": round(float(stats["n_steps"].mean()), 1),
        "step_size": float(np.median(stats["step_size"])),
        "verdict": _overall(judged, doubted) + _trouble(settings, stats),
        "convergence": judged,
        "guide": compared,
    }


def _overall(judged: dict[str, Any], doubted: list[str]) -> str:
    if not judged:
        return "MCMC cannot be believed: no cell differs between its draws"
    if not doubted:
        rough = any(not each["verdict"].startswith(BELIEVABLE) for each in judged.values())
        return f"MCMC can {'roughly ' if rough else ''}be believed for {_listed(judged)}"
    believed = [name for name in judged if name not in doubted]
    return f"MCMC cannot be believed for {_listed(doubted)}" + (f", only for {_listed(believed)}" if believed else "")


def _trouble(settings: MCMC, stats: "xr.Dataset") -> str:
    """What went wrong with the trajectories, if anything did."""
    count, longest = int(stats["diverging"].sum()), 2**settings.max_tree_depth - 1
    diverged = f"; {count} trajectories diverged, draws near them are biased" if count else ""
    cut = float((stats["n_steps"] >= longest).mean()) if settings.kernel == "nuts" else 0.0
    if cut < _MANY_CUT:
        return diverged
    return f"{diverged}; {cut:.0%} of trajectories were cut at {longest} steps, a larger tree depth mixes faster"


def _listed(names: Any) -> str:
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


def amortisation_gap(
    ready: Evaluator, plan: Plan, num_timesteps: int, settings: Unamortised, quiet: bool
) -> dict[str, Any]:
    """ELBO of a guide fitted to each sequence alone, minus that of the run's own guide: nats per frame, paired.

    The amortisation gap of Cremer, Li & Duvenaud 2018 (arXiv 1801.03558, equation 3) where the fitted guide is of the
    run's own family; an automatic guide need not be, and then the difference of the families is in the number too.
    Keys: value and standard_error (over sequences), unit, elbo_fitted and elbo_own, per_sequence, verdict, and the
    settings. Above zero where fitting helps.
    """
    fitted, own, started = [], [], time.perf_counter()
    batches = list(parts(plan))
    for index, part in progress(batches, what="amortisation gap", quiet=quiet):
        fitted.append(ready.unamortised_log_weights(part, index, _GAP_DRAWS, settings))
        own.append(ready.log_weights(part, index, _GAP_DRAWS))
    # float64 before anything is averaged: a mean of weights of -1e5 nats in float32 is off by a hundredth
    weights = (np.concatenate(each, axis=1).astype(np.float64) for each in (fitted, own))
    values, ours = (bounds.elbo(each) / num_timesteps for each in weights)
    gaps = values - ours
    error = bounds.standard_error(gaps)
    return {
        "value": float(gaps.mean()),
        "standard_error": error,
        "unit": "nats per frame",
        "elbo_fitted": float(values.mean()),
        "elbo_own": float(ours.mean()),
        "verdict": _gap_verdict(float(gaps.mean()), error, len(gaps)),
        "per_sequence": [round(float(gap), 4) for gap in gaps],
        "num_sequences": len(gaps),
        "num_particles": _GAP_DRAWS,
        "seconds": round(time.perf_counter() - started, 1),
        **{f"guide_{name}": value for name, value in settings._asdict().items()},
    }


def _gap_verdict(gap: float, error: float | None, num_sequences: int) -> str:
    """In words; a gap is one where 95 % of a Student t over so many sequences do not reach zero."""
    if not math.isfinite(gap):
        return "nothing is known: the fit has diverged; take a smaller learning rate"
    if error is None or abs(gap) < stdtrit(num_sequences - 1, 0.975) * error:
        return "no gap beyond its error"
    if gap > 0:
        return "a guide fitted to each sequence is better: this is what amortisation, or the own guide's family, costs"
    return "the fitted guide is worse: its family is poorer than the own guide's, or it needs more steps"
