"""Predictive checks and ranks among prior draws, on trees whose answer is known."""

import numpy as np
import pytest
import xarray as xr

from ppl_tvae.diagnostics import statistics
from ppl_tvae.diagnostics.datatree import FRAME_DIMS
from ppl_tvae.diagnostics.predictive import FEWEST_DRAWS, is_extreme, predictive_checks, prior_ranks

NUM_DRAWS, SHAPE = 199, (4, 5, 6, 6, 3)
DRAWN = ("chain", "draw", *FRAME_DIMS)


def frames_tree(rng, observed_level=0.5, prior_level=0.5):
    """Pixels on with probability 1/2 in replicates of the posterior; observed ones and the prior's with others."""
    drawn = (1, NUM_DRAWS, *SHAPE)
    parts = {
        "observed_data": (FRAME_DIMS, rng.random(SHAPE) < observed_level),
        "posterior_predictive": (DRAWN, rng.random(drawn) < 0.5),
        "prior_predictive": (DRAWN, rng.random(drawn) < prior_level),
    }
    datasets = {name: xr.Dataset({"x": (dims, 1.0 * values)}) for name, (dims, values) in parts.items()}
    return xr.DataTree.from_dict(datasets)


def test_a_true_model_is_not_extreme_and_another_is():
    records = predictive_checks(frames_tree(np.random.default_rng(0), prior_level=0.7))
    assert {record["replicates"] for record in records} == {"posterior", "prior"}
    assert not any(record["extreme"] for record in records if record["replicates"] == "posterior")
    on = {record["replicates"]: record for record in records if record["statistic"] == "mean_intensity"}
    assert on["prior"]["extreme"]
    assert on["prior"]["p_value"] == round(1 - 0.5 / (NUM_DRAWS + 1), 4)
    assert on["prior"]["extreme_sequences"] == 1
    assert "fraction_on" not in {record["statistic"] for record in records}


def test_numbers_are_means_over_sequences():
    tree = frames_tree(np.random.default_rng(1), observed_level=0.52)
    record = {r["statistic"]: r for r in predictive_checks(tree) if r["replicates"] == "posterior"}["edge_energy"]
    observed = tree["observed_data"]["x"].values
    replicated = tree["posterior_predictive"]["x"].values[0]
    assert record["observed"] == pytest.approx(np.mean([statistics.edge_energy(each) for each in observed]))
    means = np.array([np.mean([statistics.edge_energy(one) for one in draw]) for draw in replicated])
    np.testing.assert_allclose(record["replicated"], means, rtol=1e-4)
    above, ties = np.sum(means > record["observed"] + 1e-12), np.sum(abs(means - record["observed"]) < 1e-12)
    assert record["p_value"] == pytest.approx((above + ties / 2 + 0.5) / (NUM_DRAWS + 1), abs=1e-4)


def test_ties_are_ties_in_single_precision_too():
    """Zeros and ones have few means, and sums in single precision differ beyond the seventh digit."""
    tree = frames_tree(np.random.default_rng(7))
    exact = predictive_checks(tree)
    single = {name: xr.DataTree(child.to_dataset().astype(np.float32)) for name, child in tree.children.items()}
    assert predictive_checks(xr.DataTree(children=single)) == exact


def test_chains_count_one_after_the_other():
    tree = frames_tree(np.random.default_rng(1), observed_level=0.52)
    together, apart = tree.copy(), tree.copy()
    for group in ("posterior_predictive", "prior_predictive"):
        x = tree[group].to_dataset()["x"].isel(draw=slice(NUM_DRAWS - 1))
        halves = x.values.reshape(2, NUM_DRAWS // 2, *x.shape[2:])
        together[group], apart[group] = (
            xr.DataTree(xr.Dataset({"x": (DRAWN, values)})) for values in (x.values, halves)
        )
    assert predictive_checks(apart) == predictive_checks(together)


def test_the_fewest_draws_are_the_first_that_can_be_extreme():
    observed = np.zeros(())
    smallest = [float(statistics.tail_probability(observed, -np.ones(n))) for n in (FEWEST_DRAWS - 1, FEWEST_DRAWS)]
    assert [bool(is_extreme(p)) for p in smallest] == [False, True]


@pytest.mark.parametrize(("scale", "shift"), [(1, 0), (0.5, 0), (2, 0), (1, 1)])
def test_ranks_among_prior_draws(scale, shift):
    rng = np.random.default_rng(2)
    dims = ("chain", "draw", "sequence", "cell")
    drawn = {"posterior": shift + scale * rng.normal(size=(1, 50, 8, 30)), "prior": rng.normal(size=(1, 50, 8, 30))}
    tree = xr.DataTree.from_dict({group: xr.Dataset({"z": (dims, values)}) for group, values in drawn.items()})
    difference = np.array(prior_ranks(tree)["z"])
    left, right = difference[10], difference[30]  # at ranks 1/4 and 3/4: the prior's quartiles, -0.674 and 0.674
    expected = {(1, 0): (0, 0), (0.5, 0): (-0.161, 0.161), (2, 0): (0.118, -0.118), (1, 1): (-0.203, -0.378)}
    # 12,000 draws; the prior's quartile of each cell errs by 1 / sqrt(400), averaged over 30 cells
    np.testing.assert_allclose([left, right], expected[scale, shift], atol=0.03)
    assert abs(difference[-1]) < 1e-12
