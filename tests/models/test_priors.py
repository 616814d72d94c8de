"""Priors: their moments and densities, and learned parameters that start where the page says."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpyro.handlers import seed, substitute, trace
from scipy import stats

from ppl_tvae.assembly import assemble
from ppl_tvae.inference.numpyro.device import on_device as on_jax
from ppl_tvae.inference.numpyro.tracing import program_traces
from ppl_tvae.models.latent import Latent
from ppl_tvae.models.numpyro.networks import encoder
from ppl_tvae.models.numpyro.priors import PRIORS, PSEUDO_FRAMES
from tests.conftest import STANDARD_ERRORS
from tests.small import FRAME, random_parameters, small_experiment, small_frames

FRAMES = np.zeros((1, 1, *FRAME))


@pytest.fixture(autouse=True)
def double():
    with on_jax("cpu", "float64"):
        yield


@pytest.mark.parametrize("name", sorted(PRIORS))
def test_a_prior_has_the_event_shape_and_its_mean(name):
    """Zero for all but the learned vamp, whose mean is that of its pseudo-frames' posteriors."""
    sites = trace(seed(lambda: PRIORS[name](Latent("u", (20, 30, 40), (7,)), FRAMES), 0))
    prior = seed(PRIORS[name], 0)(Latent("u", (20, 30, 40), (7,)), FRAMES)
    assert prior.event_shape == (20, 30, 40)
    assert sites.get_trace().keys() == {key for key in sites.get_trace() if key.startswith(("prior.u.", "guide.u."))}
    draws = np.asarray(prior.sample(jax.random.key(1), (50,)))
    if name == "vamp":
        expected, error = prior.mean, draws.std(axis=0) / len(draws) ** 0.5
        assert np.mean((draws.mean(axis=0) - expected) ** 2 / error**2) == pytest.approx(1, abs=0.1)
    else:
        error = draws.std() / draws.size**0.5
        assert abs(draws.mean()) < STANDARD_ERRORS * error


@pytest.mark.parametrize("name", ["normal", "laplace", "student-t"])
def test_a_fixed_prior_has_variance_one(name):
    """So that a swap changes the shape of the energy, not its size."""
    draws = np.asarray(PRIORS[name](Latent("u", (100, 100, 100), ()), FRAMES).sample(jax.random.key(1)))
    error = (draws**2).std() / draws.size**0.5
    assert abs((draws**2).mean() - 1) < STANDARD_ERRORS * error


def test_learned_degrees_of_freedom_are_those_of_the_density():
    latent, values = Latent("u", (2, 3, 4), ()), np.random.default_rng(0).standard_normal((2, 3, 4))
    prior = substitute(PRIORS["student-t-learned"], {"prior.u.degrees_of_freedom": jnp.asarray(2.5)})
    expected = stats.t(2.5).logpdf(values).sum()
    np.testing.assert_allclose(prior(latent, FRAMES).log_prob(values), expected, rtol=1e-12)


def test_vamp_is_the_average_posterior_of_its_pseudo_frames():
    """Evaluated by hand: the guide's normals at every pseudo-frame, averaged, for each frame of a sequence."""
    experiment = small_experiment(prior="vamp")
    rng = np.random.default_rng(0)
    parameters = {name: jnp.asarray(value) for name, value in random_parameters(experiment, rng).items()}
    frames = jnp.asarray(small_frames(experiment, 2, rng))
    guide_trace, model_trace = program_traces(assemble(experiment, "numpyro"), parameters, jax.random.key(0), frames)
    u = np.asarray(guide_trace["u"]["value"])
    pseudo = jax.nn.sigmoid(parameters["prior.u.pseudo_frames"]).reshape(PSEUDO_FRAMES, 1, *FRAME)
    loc, scale = substitute(encoder, parameters)("u", pseudo, experiment.hidden, u.shape[1:])
    each = stats.norm(loc[:, 0], scale[:, 0]).logpdf(u[:, :, None]).sum(axis=(-2, -1))
    expected = (np.logaddexp.reduce(each, axis=-1) - np.log(PSEUDO_FRAMES)).sum(axis=-1)
    np.testing.assert_allclose(model_trace["u"]["fn"].log_prob(u), expected, rtol=1e-9)


def test_z_and_u_may_have_different_priors():
    experiment = small_experiment(prior="laplace", prior_u="student-t")
    rng = np.random.default_rng(0)
    parameters = {name: jnp.asarray(value) for name, value in random_parameters(experiment, rng).items()}
    frames = jnp.asarray(small_frames(experiment, 1, rng))
    _, sites = program_traces(assemble(experiment, "numpyro"), parameters, jax.random.key(0), frames)
    z, u = (np.asarray(sites[name]["value"]) for name in ("z", "u"))
    np.testing.assert_allclose(sites["z"]["fn"].log_prob(z), stats.laplace(scale=0.5**0.5).logpdf(z).sum(), rtol=1e-9)
    np.testing.assert_allclose(sites["u"]["fn"].log_prob(u), stats.t(5, scale=0.6**0.5).logpdf(u).sum(), rtol=1e-9)
