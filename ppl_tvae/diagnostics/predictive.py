"""Predictive checks of a DataTree: image statistics of observed sequences among those of replicated ones.

Replicates are draws from the likelihood, x ~ p(x | latents), with the pixels' own noise, not means. Posterior: latents
drawn from the guide given these very frames. Prior: latents drawn from the model.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from ppl_tvae.diagnostics import statistics

EXTREME = 0.01  # a p-value this near to 0 or 1
FEWEST_DRAWS = round(0.5 / EXTREME) - 1  # from fewer, no p-value can be that extreme
_RANK_POINTS, _RANKED_CELLS = 41, 200  # of a function of ranks; of a site
_DIGITS = 9  # two values that differ only beyond are tied: sums of the same numbers in another order
REPLICATES = {"posterior": "posterior_predictive", "prior": "prior_predictive"}


def predictive_checks(tree: xr.DataTree) -> list[dict[str, Any]]:
    """A record for each kind of replicate and each statistic that applies to these frames.

    The statistic of a data set is its mean over the tree's sequences; a replicated data set is one draw for each of
    them. Keys: replicates ("posterior" or "prior"), statistic, unit, meaning, observed, replicated (one number per
    draw), p_value (`statistics.tail_probability`), extreme (`is_extreme`), extreme_sequences: the share of sequences
    whose own p-value is extreme.
    """
    observed = tree["observed_data"].to_dataset()["x"].values
    records = []
    for kind, group in REPLICATES.items():
        replicated = np.concatenate(tree[group].to_dataset()["x"].values)  # chains one after the other
        for name, statistic in statistics.applicable(observed).items():
            records.append({"replicates": kind, "statistic": name, **_checked(statistic, observed, replicated)})
    return records


def extremes(records: Sequence[Mapping[str, Any]], likelihood: str) -> list[str]:
    """A sentence for each kind of replicates with extreme p-values. records: of `predictive_checks`.

    likelihood: the run's, by its name; of bernoulli-grey such values are no misfit, as is said.
    """
    sentences, scales = [], ""
    if likelihood == "bernoulli-grey":
        scales = "; zeros and ones are held against grey frames here, so that it is no misfit of itself"
    for kind in REPLICATES:
        names = [r["statistic"].replace("_", " ") for r in records if r["replicates"] == kind and r["extreme"]]
        if names:
            which = "draws of the guide" if kind == "posterior" else "draws of the prior"
            sentences.append(
                f"{kind} predictive check: frames replicated from {which} differ from the observed ones in "
                f"{', '.join(names)} (p-value within {EXTREME} of 0 or 1){scales}."
            )
    return sentences


def is_extreme(p_value: Any) -> Any:
    """Whether a p-value lies within `EXTREME` of 0 or 1: hardly a replicate is on the other side."""
    return (p_value <= EXTREME) | (p_value >= 1 - EXTREME)


def _checked(statistic: statistics.Statistic, observed: np.ndarray, replicated: np.ndarray) -> dict[str, Any]:
    # Draw by draw, since all of them in float64 would take twice the memory.
    ours, *draws = (np.asarray(statistic.function(frames.astype(np.float64))) for frames in (observed, *replicated))
    theirs = np.stack(draws)
    p_value = float(_tail_probability(ours.mean(), theirs.mean(axis=1)))
    return {
        "unit": statistic.unit,
        "meaning": statistic.meaning,
        "observed": float(ours.mean()),
        "replicated": [float(f"{value:.5g}") for value in theirs.mean(axis=1)],
        "p_value": round(p_value, 4),
        "extreme": bool(is_extreme(p_value)),
        "extreme_sequences": float(np.mean(is_extreme(_tail_probability(ours, theirs)))),
    }


def _tail_probability(observed: Any, replicated: Any) -> Any:
    return statistics.tail_probability(np.round(observed, _DIGITS), np.round(replicated, _DIGITS))


def prior_ranks(tree: xr.DataTree) -> dict[str, list[float]]:
    """Where the guide's draws lie among the prior's: site -> ECDF of their ranks minus the uniform one.

    At 41 even points from 0 to 1. The rank of a draw is (r + 1/2) / (n + 1), r of n of the prior's draws of
    its cell lying below; pooled over draws, sequences and, of a large site, 200 evenly chosen cells. Averaged
    over data that the model made, exact posteriors give the prior back, so the function is zero. Cells are not
    independent: no band.
    """
    found = {}
    groups = [tree[group].to_dataset() for group in ("posterior", "prior")]
    for name in groups[0].data_vars:
        drawn, prior = (group[name].values for group in groups)
        drawn, prior = (values.reshape(np.prod(values.shape[:3]), -1) for values in (drawn, prior))
        cells = np.unique(np.linspace(0, drawn.shape[1] - 1, _RANKED_CELLS).round().astype(int))
        ranks = [(np.searchsorted(np.sort(prior[:, cell]), drawn[:, cell]) + 0.5) / (len(prior) + 1) for cell in cells]
        points = np.linspace(0, 1, _RANK_POINTS)
        function = np.searchsorted(np.sort(np.concatenate(ranks)), points, side="right") / sum(map(len, ranks))
        found[str(name)] = [round(float(value), 4) for value in function - points]
    return found
