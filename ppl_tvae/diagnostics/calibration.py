"""Is a guide calibrated? Ranks of the truth among its draws, on data simulated from the model.

Simulation-based calibration (Talts, Betancourt, Simpson, Vehtari & Gelman 2018, arXiv 1804.06788): where latents come
from the prior, data from the latents, and draws from the posterior of those data, the rank of the true value among the
draws is uniform. A guide that is too narrow has too many extreme ranks, one that is too wide too few, a shifted one
leans to a side.
"""

from typing import NamedTuple

import numpy as np

from ppl_tvae.data import SEQUENCES_PER_BATCH, Plan
from ppl_tvae.diagnostics.datatree import LOG_LIKELIHOOD
from ppl_tvae.inference.interfaces import Evaluator
from ppl_tvae.progress import progress

PROBABILITY = 0.99  # of the simultaneous band: a calibrated quantity leaves it once in a hundred times
_SIMULATIONS = 1000


class Calibration(NamedTuple):
    """The empirical distribution function of the ranks against the uniform one.

    points: in (0, 1). difference: the function minus the uniform one there; lower and upper: its simultaneous band.
    unknown: how many sequences have no rank, since a value of theirs is not a number.
    """

    points: np.ndarray
    difference: np.ndarray
    lower: np.ndarray
    upper: np.ndarray
    unknown: int = 0

    @property
    def calibrated(self) -> bool:
        """Whether the function stays within the band."""
        return not self.unknown and bool(((self.difference >= self.lower) & (self.difference <= self.upper)).all())

    @property
    def verdict(self) -> str:
        """In words: within the band, or how the guide seems to be off."""
        if self.unknown:
            return f"not to be judged: values of {self.unknown} sequences are not numbers"
        if self.calibrated:
            return f"within the {PROBABILITY:.0%} band"
        left, right = self.difference[self.points < 0.5], self.difference[self.points >= 0.5]
        if left.max() > self.upper.max() / 2 and right.min() < self.lower.min() / 2:
            return "too narrow: the truth lies in the tails of the draws too often"
        if left.min() < self.lower.min() / 2 and right.max() > self.upper.max() / 2:
            return "too wide: the truth lies in the middle of the draws too often"
        below = abs(self.difference.max()) > abs(self.difference.min())
        return f"shifted: the truth lies {'below' if below else 'above'} the draws too often"


def simulated_ranks(
    ready: Evaluator, plan: Plan, num_sequences: int, num_draws: int, seed: int, quiet: bool = False
) -> dict[str, np.ndarray]:
    """Ranks in (0, 1) of the truth among draws of the guide, on sequences simulated from the model, (num_sequences,).

    By site, of one random cell, another one for each sequence, so that ranks are independent; and of
    log p(x | latents), which hangs on all of them (Modrak et al. 2023, arXiv 2211.02383). ready: an evaluator; of the
    plan only the shape of its frames counts, and what a mask leaves out.
    """
    rng, ranks = np.random.default_rng(seed), dict[str, list[np.ndarray]]()
    batch = plan.map(lambda field: np.repeat(field[:1], SEQUENCES_PER_BATCH, axis=0))
    batches = range(-(-num_sequences // SEQUENCES_PER_BATCH))
    for index in progress(batches, what="calibration", quiet=quiet):
        truth, draws = ready.simulated(batch, index, num_draws)
        for name in draws.sites:
            values, drawn = (each.sites[name].reshape(*each.sites[name].shape[:2], -1) for each in (truth, draws))
            cell = rng.integers(values.shape[2], size=(1, SEQUENCES_PER_BATCH, 1))
            one, several = (np.take_along_axis(each, cell, axis=2)[..., 0] for each in (values, drawn))
            ranks.setdefault(name, []).append(normalised_ranks(one[0], several, rng))
        likelihoods = normalised_ranks(truth.log_likelihood[0], draws.log_likelihood, rng)
        ranks.setdefault(LOG_LIKELIHOOD, []).append(likelihoods)
    return {name: np.concatenate(own)[:num_sequences] for name, own in ranks.items()}


def normalised_ranks(truth: np.ndarray, draws: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Ranks of truth (N,) among draws (L, N), as uniform values in (0, 1), (N,); ties are broken at random.

    nan where a value is not a number.
    """
    below, equal = (draws < truth).sum(axis=0), (draws == truth).sum(axis=0)
    rank = below + rng.integers(equal + 1)
    ranks = (rank + rng.random(len(truth))) / (len(draws) + 1)
    return np.where(np.isnan(truth) | np.isnan(draws).any(axis=0), np.nan, ranks)


def calibration(ranks: np.ndarray) -> Calibration:
    """The distribution function of ranks in (0, 1), independent of each other, with its band (through arviz-stats)."""
    from arviz_stats.ecdf_utils import ecdf_pit

    known = ranks[~np.isnan(ranks)]
    if not len(known):
        return Calibration(*(np.empty(0),) * 4, unknown=len(ranks))
    points, function, lower, upper = ecdf_pit(known, PROBABILITY, _SIMULATIONS)
    return Calibration(points, function - points, lower - points, upper - points, len(ranks) - len(known))
