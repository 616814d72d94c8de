"""Priors: their moments, and learned parameters that start where the page says."""

import jax
import numpy as np
import pytest
from numpyro.handlers import seed

from ppl_tvae.inference.numpyro.device import on_device as on_jax
from ppl_tvae.models.numpyro.priors import PRIORS
from tests.conftest import STANDARD_ERRORS


@pytest.mark.parametrize("name", sorted(PRIORS))
def test_a_prior_has_the_event_shape_and_mean_zero(name):
    with on_jax("cpu", "float64"):
        prior = seed(PRIORS[name], 0)("u", (20, 30, 40))
        assert prior.event_shape == (20, 30, 40)
        draws = np.asarray(prior.sample(jax.random.key(1)))
    error = draws.std() / draws.size**0.5
    assert abs(draws.mean()) < STANDARD_ERRORS * error


@pytest.mark.parametrize("name", ["normal", "laplace", "student-t"])
def test_a_fixed_prior_has_variance_one(name):
    """So that a swap changes the shape of the energy, not its size."""
    with on_jax("cpu", "float64"):
        draws = np.asarray(PRIORS[name]("u", (100, 100, 100)).sample(jax.random.key(1)))
    error = (draws**2).std() / draws.size**0.5
    assert abs((draws**2).mean() - 1) < STANDARD_ERRORS * error
