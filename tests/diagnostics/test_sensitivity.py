"""Power-scaling on exact posteriors: a wide prior hardly counts, a tight one that contradicts the data does."""

import numpy as np
import pytest
import xarray as xr

from ppl_tvae.diagnostics import sensitivity
from ppl_tvae.diagnostics.datatree import LOG_LIKELIHOOD
from ppl_tvae.diagnostics.sensitivity import power_scaling, summaries

DIMS = ("chain", "draw", "sequence")


def conjugate(scales, observed, num_draws=2000):
    """theta ~ Normal(0, scale), x ~ Normal(theta, 1), one sequence for each scale, draws from the exact posterior."""
    rng, scales, x = np.random.default_rng(0), np.asarray(scales), np.asarray(observed)
    variance = 1 / (1 / scales**2 + 1)
    theta = variance * x + np.sqrt(variance) * rng.normal(size=(1, num_draws, len(scales)))
    log_prior = -0.5 * (theta / scales) ** 2
    log_likelihood = -0.5 * (x - theta) ** 2
    groups = {
        "posterior": xr.Dataset({"theta": ((*DIMS, "cell"), theta[..., None])}),
        "log_prior": xr.Dataset({"theta": (DIMS, log_prior)}),
        "log_likelihood": xr.Dataset({"x": (DIMS, log_likelihood)}),
    }
    return xr.DataTree.from_dict(groups)


def test_priors_that_count_and_that_do_not():
    def of(scale):
        records = power_scaling(conjugate([scale, scale], [4.0, 4.0]))
        return {record["quantity"]: record for record in records}["mean square of theta"]

    wide, tight = of(50.0), of(0.5)
    assert wide["prior"] < 0.05 < wide["likelihood"]
    assert min(tight["prior"], tight["likelihood"]) > 0.05


def test_sequences_are_scaled_alone_and_averaged():
    scales, observed = [0.5, 50.0], [4.0, 4.0]
    together = power_scaling(conjugate(scales, observed))
    tree = conjugate(scales, observed)
    alone = [
        power_scaling(xr.DataTree.from_dict({g: tree[g].to_dataset().isel(sequence=[i]) for g in tree.children}))
        for i in (0, 1)
    ]
    for record, first, second in zip(together, *alone, strict=True):
        assert record["prior"] == pytest.approx((first["prior"] + second["prior"]) / 2, abs=1e-4)
        assert first["prior_standard_error"] is None
        error = abs(first["prior"] - second["prior"]) / 2  # of two values: half their difference
        assert record["prior_standard_error"] == pytest.approx(error, abs=2e-4)


def test_summaries_are_what_they_are_called():
    tree = conjugate([1.0], [2.0], num_draws=30)
    theta = np.random.default_rng(1).normal(size=(1, 30, 1, 3))
    tree["posterior"] = xr.DataTree(xr.Dataset({"theta": ((*DIMS, "cell"), theta)}))
    found = summaries(tree)
    np.testing.assert_allclose(found["mean square of theta"], (theta**2).mean(axis=-1))
    np.testing.assert_array_equal(found[LOG_LIKELIHOOD], tree["log_likelihood"]["x"])


def test_too_few_draws_say_nothing():
    assert power_scaling(conjugate([1.0], [2.0], num_draws=10)) == []


def test_densities_that_hardly_vary_are_no_error():
    """As of a handful of latents, of draws that are all alike."""
    tree = conjugate([1.0, 2.0], [2.0, 1.0], num_draws=100)
    tree["log_prior"]["theta"] = tree["log_prior"]["theta"] * 0
    for record in power_scaling(tree):
        assert record["prior"] is None or np.isfinite(record["prior"])
        assert np.isfinite(record["likelihood"])


def test_one_sequence_of_which_nothing_is_known_leaves_no_mean(monkeypatch):
    found = iter([{"a": 1.0}, {"a": 2.0}, {"a": float("nan")}, {"a": 4.0}])  # prior and likelihood of each sequence
    monkeypatch.setattr(sensitivity, "_sensitivities", lambda scaled, part: next(found))
    (record,) = power_scaling(conjugate([1.0, 2.0], [2.0, 1.0], num_draws=30))
    assert (record["prior"], record["prior_standard_error"]) == (None, None)
    assert (record["likelihood"], record["likelihood_standard_error"]) == (3.0, 1.0)
