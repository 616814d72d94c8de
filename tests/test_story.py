"""What the generative story says about t and its energies, drawn from both backends' programs."""

import jax
import numpy as np
import pytest
import torch
from numpyro import handlers
from pyro import poutine
from scipy import stats

from ppl_tvae.assembly import assemble, lattice_of
from tests.conftest import STANDARD_ERRORS
from tests.small import FRAME, small_experiment

DRAWS = 4000


def prior_draws(backend, experiment):
    """t and u, (draws, S, C, D), from the model program itself."""
    program, shape = assemble(experiment, backend), (DRAWS, experiment.num_timesteps, *FRAME)
    if backend == "numpyro":
        sites = handlers.trace(handlers.seed(program.model, jax.random.key(0))).get_trace(np.zeros(shape, np.float32))
        return np.asarray(sites["t"]["value"]), np.asarray(sites["u"]["value"])
    torch.manual_seed(0)
    sites = poutine.trace(program.model).get_trace(torch.zeros(shape))
    return sites.nodes["t"]["value"].numpy(force=True), sites.nodes["u"]["value"].numpy(force=True)


@pytest.fixture(autouse=True)
def own_parameter_store():
    import pyro

    with pyro.get_param_store().scope():
        yield


@pytest.mark.parametrize("backend", ["numpyro", "pyro"])
@pytest.mark.parametrize("mu", [0.0, 2.5])
@pytest.mark.parametrize("model", ["tvae", "bubble", "static", "torus"])
def test_t_has_the_noncentral_student_t_marginal(backend, model, mu):
    """z + mu over the root of a chi-square of nu degrees: sqrt(nu) t is (noncentral) Student-t."""
    experiment = small_experiment(model, mu=mu, epsilon=0.0)
    t, _ = prior_draws(backend, experiment)
    nu = lattice_of(experiment).degrees_of_freedom
    for s, d in [(0, 0), (experiment.num_timesteps - 1, experiment.capsule_dim - 1)]:
        marginal = stats.t(nu[s, d]) if mu == 0 else stats.nct(nu[s, d], mu)
        assert stats.kstest(np.sqrt(nu[s, d]) * t[:, s, 0, d], marginal.cdf).pvalue > 1e-5


@pytest.mark.parametrize("backend", ["numpyro", "pyro"])
@pytest.mark.parametrize("model", ["tvae", "bubble", "static", "torus"])
def test_energies_correlate_by_the_neighbours_they_share(backend, model):
    """Cov(v_a, v_b) = 2 (number of shared neighbours), since squares of standard normals have variance 2."""
    experiment = small_experiment(model)
    lattice = lattice_of(experiment)
    _, u = prior_draws(backend, experiment)
    energies = lattice.energy(u.astype(np.float64))[:, :, 0, :].reshape(DRAWS, -1)
    W, nu = lattice.neighborhood, lattice.degrees_of_freedom.reshape(-1)
    expected = (W @ W.T) / np.sqrt(np.outer(nu, nu))
    # heavier tails than a normal's: the error of a correlation of chi-squares is below 2 / sqrt(draws)
    assert np.abs(np.corrcoef(energies.T) - expected).max() < STANDARD_ERRORS * 2 / np.sqrt(DRAWS)
    assert (expected > 0.3).any()


@pytest.mark.parametrize("backend", ["numpyro", "pyro"])
def test_capsules_are_independent_of_each_other(backend):
    experiment = small_experiment("tvae")
    _, u = prior_draws(backend, experiment)
    energies = lattice_of(experiment).energy(u.astype(np.float64)).transpose(0, 2, 1, 3).reshape(DRAWS, 2, -1)
    across = np.corrcoef(energies[:, 0].T, energies[:, 1].T)[: energies.shape[2], energies.shape[2] :]
    assert np.abs(across).max() < STANDARD_ERRORS * 2 / np.sqrt(DRAWS)
