"""What stands where in a tree: groups of draws whose numbers are all told apart."""

import numpy as np
import pytest

from ppl_tvae.diagnostics.datatree import datatree, with_chains
from ppl_tvae.diagnostics.guide_fit import against_mcmc
from ppl_tvae.inference.draw import Draw
from ppl_tvae.inference.mcmc import MCMC, Chains

DRAWS, SEQUENCES, TIMES = 7, 3, 2
FRAMES = (TIMES, 4, 4, 1)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def a_draw(rng):
    def normal(*shape):
        return rng.normal(size=(DRAWS, SEQUENCES, *shape))

    return Draw(
        {"z": normal(5)}, normal(*FRAMES), normal(*FRAMES), normal(), normal(), {"z": normal()}, {"z": normal()}
    )


def test_each_group_has_its_own_numbers(rng):
    guide, prior, observed = a_draw(rng), a_draw(rng), rng.random((SEQUENCES, *FRAMES))
    tree = datatree(guide, prior, observed, {"label": np.arange(SEQUENCES)}, {"seed": 5})
    expected = {
        ("posterior", "z"): guide.sites["z"], ("posterior_predictive", "x"): guide.frames,
        ("log_likelihood", "x"): guide.log_likelihood, ("log_prior", "z"): guide.log_prior["z"],
        ("log_guide", "z"): guide.log_guide["z"], ("sample_stats", "log_weight"): guide.log_weights,
        ("prior", "z"): prior.sites["z"], ("prior_predictive", "x"): prior.frames,
    }  # fmt: skip
    for (group, name), values in expected.items():
        np.testing.assert_array_equal(tree[group][name].values[0], values)
    np.testing.assert_array_equal(tree["observed_data"]["x"], observed)


def chains_of(rng, shape):
    def number(low, high):
        return rng.uniform(low, high, size=shape)

    diverging = np.zeros(shape, bool)
    diverging[0, :2, 0] = True
    return Chains(
        {"z": rng.normal(size=(*shape, 5))}, number(-9, -8), number(-7, -6), number(5, 6), number(0.7, 0.8), diverging,
        rng.integers(10, 20, shape), np.broadcast_to(np.array([0.1, 0.2, 0.4])[:, None, None], shape),
    )  # fmt: skip


def test_statistics_of_chains_stand_under_the_names_that_arviz_knows(rng):
    tree = datatree(a_draw(rng), a_draw(rng), rng.random((SEQUENCES, *FRAMES)), {}, {"seed": 5})
    chains = chains_of(rng, (3, 40, SEQUENCES))
    tree = with_chains(tree, chains, {"sampling_time": 12.34, "kernel": "nuts"})
    stats = tree["sample_stats_mcmc"]
    expected = {
        "lp": chains.log_joint, "energy": chains.energy, "acceptance_rate": chains.acceptance_rate,
        "diverging": chains.diverging, "n_steps": chains.num_steps, "step_size": chains.step_size,
    }  # fmt: skip
    assert set(stats.data_vars) == set(expected)
    for name, values in expected.items():
        np.testing.assert_array_equal(stats[name], values)
    np.testing.assert_array_equal(tree["log_likelihood_mcmc"]["x"], chains.log_likelihood)
    assert tree["posterior_mcmc"].attrs["seed"] == 5  # of the guide's draws too
    assert tree["posterior_mcmc"].attrs["kernel"] == "nuts"

    record = against_mcmc(tree, MCMC(kernel="nuts", num_warmup=1, num_draws=40, num_chains=3), seed=0)
    assert record["acceptance_rate"] == pytest.approx(chains.acceptance_rate.mean(), abs=5e-4)
    assert record["num_divergences"] == 2
    assert record["num_steps"] == pytest.approx(chains.num_steps.mean(), abs=0.05)
    assert record["step_size"] == 0.2
    assert record["seconds"] == 12.3
    assert "2 trajectories diverged" in record["verdict"]
