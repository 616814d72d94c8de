"""Power-scaling: how summaries of a posterior move when its prior or its likelihood counts a little more or less.

Kallioinen, Paananen, Bürkner & Vehtari 2024 (arXiv 2107.14054), through arviz-stats: draws are reweighted by
p(latents)**(a - 1), or p(x | latents)**(a - 1), for a = 0.99 and 1.01; the sensitivity is the distance between the
summary's distributions (cumulative Jensen-Shannon) per unit of log2 a.
"""

import warnings
from typing import Any

import numpy as np
import xarray as xr

from ppl_tvae.diagnostics.datatree import LOG_LIKELIHOOD
from ppl_tvae.inference import bounds

_DENSITIES = ("log_prior", "log_likelihood")
FEWEST_DRAWS = 25  # from fewer, the weights' tail cannot be smoothed


def summaries(tree: xr.DataTree) -> xr.Dataset:
    """Scalars of each draw and sequence: log p(x | latents), nats, and the mean square of each site."""
    own = {}
    for name, values in tree["posterior"].data_vars.items():
        others = [dim for dim in values.dims if dim not in ("chain", "draw", "sequence")]
        own[f"mean square of {name}"] = (values.astype(np.float64) ** 2).mean(others)
    return xr.Dataset({LOG_LIKELIHOOD: tree["log_likelihood"]["x"], **own})


def power_scaling(tree: xr.DataTree) -> list[dict[str, Any]]:
    """A record for each scalar of `summaries`: its sensitivity to prior and likelihood, mean over sequences.

    Each sequence's posterior is scaled alone. Draws count alike: those of a guide stand for draws of the posterior, as
    far as they can. tree: groups posterior, log_prior and log_likelihood, with dimensions chain, draw and sequence.
    Keys: quantity, prior, likelihood (None where densities do not vary enough to tell), and standard errors over
    sequences (None of one). Empty below 25 draws.
    """
    if tree["posterior"].sizes["draw"] < FEWEST_DRAWS:
        return []
    scalars = summaries(tree)
    found: dict[str, dict[str, list[float]]] = {}
    for index in range(tree["posterior"].sizes["sequence"]):
        one = {group: tree[group].to_dataset().isel(sequence=index, drop=True) for group in _DENSITIES}
        one["posterior"] = scalars.isel(sequence=index, drop=True)
        scaled = xr.DataTree.from_dict(one)
        for part in ("prior", "likelihood"):
            for name, value in _sensitivities(scaled, part).items():
                found.setdefault(name, {}).setdefault(part, []).append(value)
    return [{"quantity": name, **_averaged(parts)} for name, parts in found.items()]


def _sensitivities(scaled: xr.DataTree, part: str) -> dict[str, float]:
    """Of each summary of one sequence, nan where the densities hardly vary, so that there is no tail to smooth."""
    from arviz_stats import psense

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            found = psense(scaled, group=part)
        except ValueError as error:
            if "tail values are the same" not in str(error):
                raise
            return {str(name): float("nan") for name in scaled["posterior"].data_vars}
    return {str(name): float(value) for name, value in found.data_vars.items()}


def _averaged(parts: dict[str, list[float]]) -> dict[str, float | None]:
    values: dict[str, float | None] = {}
    for part, own in parts.items():
        if not np.isfinite(own).all():
            values |= {part: None, f"{part}_standard_error": None}
            continue
        values[part] = round(float(np.mean(own)), 4)
        error = bounds.standard_error(np.asarray(own))
        values[f"{part}_standard_error"] = None if error is None else round(error, 4)
    return values
