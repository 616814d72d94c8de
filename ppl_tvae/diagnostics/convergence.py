"""Can chains of MCMC be believed, and how far from them is the guide? Cell by cell, with Monte Carlo errors.

R-hat and effective sample sizes are those of Vehtari, Gelman, Simpson, Carpenter & Burkner 2021 (arXiv 1903.08008), and
Monte Carlo standard errors of means and standard deviations too; all through arviz-stats.
"""

import math
import warnings
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from ppl_tvae.diagnostics.datatree import LOG_LIKELIHOOD

CELLS = 500  # of each site: enough for quantiles over cells, and half a second of R-hats
# Vehtari et al. 2021, section 4: R-hat below 1.01, and an effective sample size of 100 for each of four chains.
RHAT_LIMIT, SIZE_PER_CHAIN = 1.01, 100
_ROUGH_RHAT_LIMIT, _ROUGH_SIZE_PER_CHAIN = 1.05, 10
BELIEVABLE, ROUGH, NOT_BELIEVABLE = "believable", "rough", "not to be believed"
_QUANTILES = (0.1, 0.5, 0.9)
_FEWEST_DRAWS = 4  # below, arviz-stats has no answer
# What a difference must reach to be worth words: of means in standard deviations, of scales as a factor.
_SHIFT, _FACTOR = 0.1, 1.1


def chosen_cells(tree: xr.DataTree, seed: int) -> tuple[xr.Dataset, xr.Dataset]:
    """The draws of the guide and of MCMC, (chain, draw, cell) by site, at the same random cells of the same sequences.

    And log p(x | latents), one cell for each sequence. Cells that never vary are left out, and so is a site without
    any other. tree: with the groups posterior, log_likelihood, posterior_mcmc and log_likelihood_mcmc.
    """
    rng, sequences = np.random.default_rng(seed), slice(tree["posterior_mcmc"].sizes["sequence"])
    chosen: tuple[dict[Any, Any], dict[Any, Any]] = ({}, {})
    sources = [("posterior", str(name), str(name)) for name in tree["posterior_mcmc"].data_vars]
    for group, variable, name in [*sources, ("log_likelihood", "x", LOG_LIKELIHOOD)]:
        guide, chains = (
            np.asarray(draws[variable].values, np.float64).reshape(*draws[variable].shape[:2], -1)
            for draws in (tree[group].to_dataset().isel(sequence=sequences), tree[f"{group}_mcmc"].to_dataset())
        )
        varying = np.flatnonzero(np.ptp(chains, axis=(0, 1)) > 0)
        cells = rng.choice(varying, min(len(varying), CELLS), replace=False)
        if len(cells):
            for draws, kept in zip((guide, chains), chosen, strict=True):
                kept[name] = (("chain", "draw", f"{name}_cell"), draws[..., cells])
    return xr.Dataset(chosen[0]), xr.Dataset(chosen[1])


def convergence(chains: xr.Dataset) -> dict[str, dict[str, Any]]:
    """For each quantity: quantiles over cells (10, 50, 90 %) of R-hat and bulk effective sample size, and a verdict.

    "believable": at most one cell in twenty has an R-hat above 1.01, and at most one in twenty fewer effective draws
    than 100 for each chain; "rough": the same with 1.05 and 10; else "not to be believed". With a single chain, or
    fewer than 4 draws, there is no R-hat, and nothing is believable.
    """
    from arviz_stats import ess, rhat

    num_chains, num_draws = chains.sizes["chain"], chains.sizes["draw"]
    if num_chains < 2 or num_draws < _FEWEST_DRAWS:
        few = f"{NOT_BELIEVABLE}: R-hat needs 2 chains of {_FEWEST_DRAWS} draws, found {num_chains} of {num_draws}"
        return {str(name): {"num_cells": chains[name].shape[2], "verdict": few} for name in chains.data_vars}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of chains that stand still; they are found by their R-hat
        rhats, sizes = rhat(chains), ess(chains, method="bulk")
    found = {}
    for name in map(str, chains.data_vars):
        of_cells, effective = rhats[name].values, sizes[name].values
        of_cells = np.where(np.isnan(of_cells), np.inf, of_cells)
        effective = np.where(np.isnan(effective), 0.0, effective)
        found[name] = {
            "num_cells": len(of_cells),
            "rhat_quantiles": _rounded(np.quantile(of_cells, _QUANTILES, method="higher"), 3),
            "ess_quantiles": _rounded(np.quantile(effective, _QUANTILES, method="lower"), 1),
            "verdict": _verdict(of_cells, effective, num_chains),
        }
    return found


def _verdict(rhats: np.ndarray, sizes: np.ndarray, num_chains: int) -> str:
    few = len(rhats) // 20  # which do not count
    rhat, size = np.sort(rhats)[-1 - few], np.sort(sizes)[few]
    found = f"R-hat at most {_raised(rhat)}, at least {size:.0f} effective draws, for all but one cell in twenty"
    if rhat <= RHAT_LIMIT and size >= SIZE_PER_CHAIN * num_chains:
        return f"{BELIEVABLE}: {found}"
    if rhat <= _ROUGH_RHAT_LIMIT and size >= _ROUGH_SIZE_PER_CHAIN * num_chains:
        return f"{ROUGH}: {found}; take more draws"
    return f"{NOT_BELIEVABLE}: {found}; take more warm-up and more draws"


def _raised(rhat: float) -> str:
    """To four digits, upwards: what is said to be the most must not lie below it, nor on the other side of a limit."""
    return f"{math.ceil(rhat * 1e4) / 1e4:.4f}" if rhat < 10 else f"{rhat:.3g}"


def guide_against_chains(guide: xr.Dataset, chains: xr.Dataset) -> dict[str, dict[str, Any]]:
    """For each quantity, over cells: mean of the guide minus mean of MCMC, in standard deviations of MCMC, and the
    ratio of their standard deviations, guide over MCMC.

    Of both the quantiles (10, 50, 90 %), and the median of the Monte Carlo standard errors of single cells (of the
    ratio: of its logarithm), in which the noise of both sides is. difference_beyond_noise is the root mean square
    of the differences less what noise alone would give. The verdict calls nothing a misfit that noise explains.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of cells that stand still
        of_guide, of_chains = (_moments(draws) for draws in (guide, chains))
    return {str(name): _comparison(of_guide, of_chains, str(name)) for name in chains.data_vars}


class _Moments(NamedTuple):
    """Mean and standard deviation of each cell, and the Monte Carlo standard errors of both."""

    mean: xr.Dataset
    scale: xr.Dataset
    mean_error: xr.Dataset
    scale_error: xr.Dataset

    def of(self, name: str) -> "tuple[np.ndarray, ...]":
        """Of one quantity, (cell,) each. A cell without spread has no errors."""
        mean, scale, *errors = (part[name].values for part in self)
        return mean, scale, *(np.where(scale > 0, error, 0.0) for error in errors)


def _moments(draws: xr.Dataset) -> _Moments:
    from arviz_stats import mcse

    over = ("chain", "draw")
    errors = [mcse(draws, method=method) for method in ("mean", "sd")]
    return _Moments(draws.mean(over), draws.std(over, ddof=1), *errors)


def _comparison(of_guide: _Moments, of_chains: _Moments, name: str) -> dict[str, Any]:
    mean, scale, mean_error, scale_error = of_guide.of(name)
    true_mean, true_scale, true_mean_error, true_scale_error = of_chains.of(name)
    if not np.isfinite([mean_error, true_mean_error, scale_error, true_scale_error]).all():
        return {"num_cells": len(mean), "verdict": f"too few draws to compare, at least {_FEWEST_DRAWS} are needed"}
    difference = (mean - true_mean) / true_scale
    error = np.hypot(mean_error, true_mean_error) / true_scale
    positive = np.maximum(scale, np.finfo(np.float64).tiny)
    ratio, ratio_error = scale / true_scale, np.hypot(scale_error / positive, true_scale_error / true_scale)
    beyond = float(np.sqrt(max(0.0, np.mean(difference**2) - np.mean(error**2))))
    return {
        "num_cells": len(mean),
        "difference_of_means_quantiles": _rounded(np.quantile(difference, _QUANTILES), 3),
        "difference_standard_error": round(float(np.median(error)), 3),
        "difference_beyond_noise": round(beyond, 3),
        "ratio_of_scales_quantiles": _rounded(np.quantile(ratio, _QUANTILES), 3),
        "log_ratio_standard_error": round(float(np.median(ratio_error)), 3),
        "verdict": f"{_means(difference / error, beyond)}; {_scales(ratio, ratio_error)}",
    }


def _means(in_errors: np.ndarray, beyond: float) -> str:
    # For independent cells; it holds for dependent ones, whose mean square varies more, only by the half on top.
    by_noise = 1 + max(0.5, 3 * (2 / len(in_errors)) ** 0.5)
    if beyond < _SHIFT or np.mean(in_errors**2) < by_noise:
        return "means agree within noise or a tenth of a standard deviation"
    return f"means are off by {beyond:.2g} standard deviations (root mean square, noise taken away)"


def _scales(ratio: np.ndarray, error: np.ndarray) -> str:
    typical = float(np.median(ratio))
    if typical <= 0 or abs(np.log(typical)) >= max(np.log(_FACTOR), 2 * float(np.median(error))):
        return f"the guide is too {'narrow' if typical < 1 else 'wide'}: {typical:.2g} times the scale of MCMC (median)"
    logarithms, noise = np.log(np.maximum(ratio, np.finfo(np.float64).tiny)), float(np.mean(error**2))
    apart = float(np.sqrt(max(0.0, np.mean((logarithms - np.log(typical)) ** 2) - noise)))
    if apart < max(np.log(_FACTOR), np.sqrt(noise)):
        return "scales agree within noise or a tenth"
    return (
        f"the guide is too narrow in some cells and too wide in others, by a factor of {np.exp(apart):.2g} (root mean "
        f"square of logarithms, noise taken away)"
    )


def _rounded(values: np.ndarray, digits: int) -> list[float]:
    return [round(float(value), digits) for value in values]
