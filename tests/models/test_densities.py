"""Densities of pixels against quadrature and against the hosts' own, where those are accurate."""

import jax
import numpy as np
import numpyro
import pyro
import pytest
import torch
from scipy import integrate, stats
from scipy.special import expit

from ppl_tvae.inference.numpyro.device import on_device as on_jax
from ppl_tvae.inference.pyro.device import on_device as on_torch
from ppl_tvae.models import densities
from ppl_tvae.models.numpyro import likelihoods as numpyro_likelihoods
from ppl_tvae.models.pyro import likelihoods as pyro_likelihoods
from tests.conftest import STANDARD_ERRORS

LOGITS = np.array([-60.0, -5.0, -0.7, -0.011, -0.009, 0.0, 1e-4, 0.009, 0.011, 2.0, 30.0])


def unnormalised(logit, x):
    return np.exp(x * logit - np.logaddexp(0, logit))


@pytest.mark.parametrize("logit", LOGITS)
def test_continuous_bernoulli_integrates_to_one_and_has_its_mean(logit):
    constant = np.exp(densities.continuous_bernoulli_log_normalizer(np.array(logit)))
    mass, _ = integrate.quad(lambda x: constant * unnormalised(logit, x), 0, 1, epsabs=1e-13, points=[0.01, 0.99])
    mean, _ = integrate.quad(lambda x: x * constant * unnormalised(logit, x), 0, 1, epsabs=1e-13, points=[0.01, 0.99])
    assert mass == pytest.approx(1, rel=1e-10)
    assert densities.continuous_bernoulli_mean(np.array(logit)) == pytest.approx(mean, rel=1e-8)


def test_continuous_bernoulli_agrees_with_torch_where_torch_is_exact():
    logits = torch.tensor([-3.0, -0.5, 0.4, 2.0], dtype=torch.float64)
    value = torch.tensor([0.1, 0.6, 0.3, 0.99], dtype=torch.float64)
    own = pyro_likelihoods.ContinuousBernoulli(logits)
    host = torch.distributions.ContinuousBernoulli(logits=logits)
    torch.testing.assert_close(own.log_prob(value), host.log_prob(value))
    torch.testing.assert_close(own.mean, host.mean)


@pytest.mark.parametrize("logit", [-40.0, -1.0, 0.0, 0.005, 3.0])
def test_continuous_bernoulli_draws_have_their_distribution(logit):
    torch.manual_seed(0)
    n = 20_000
    expected = float(densities.continuous_bernoulli_mean(np.array(logit)))
    draws = {
        "pyro": pyro_likelihoods.ContinuousBernoulli(torch.tensor(logit)).sample((n,)).numpy(),
        "numpyro": np.asarray(
            numpyro_likelihoods.ContinuousBernoulli(np.float32(logit)).sample(jax.random.key(0), (n,))
        ),
    }
    for drawn in draws.values():
        assert ((drawn >= 0) & (drawn <= 1)).all()
        assert abs(drawn.mean() - expected) < STANDARD_ERRORS * drawn.std() / np.sqrt(n)
    assert stats.ks_2samp(draws["pyro"], draws["numpyro"]).pvalue > 1e-5


def test_gradients_are_finite_at_the_series_and_at_saturated_pixels():
    with on_jax("cpu", "float32"):
        for logit in LOGITS:
            for function in (densities.continuous_bernoulli_log_normalizer, densities.continuous_bernoulli_mean):
                assert np.isfinite(jax.grad(function)(np.float32(logit)))
    logits = torch.tensor(LOGITS, requires_grad=True)
    densities.continuous_bernoulli_log_normalizer(logits).sum().backward()
    # d log C / d logits = sigmoid(logits) - E[x], since log C = -log of the integral of exp(x l) / (1 + exp(l))
    expected = torch.sigmoid(logits) - densities.continuous_bernoulli_mean(logits)
    torch.testing.assert_close(logits.grad, expected.detach(), rtol=1e-6, atol=1e-9)


def test_grey_bernoulli_is_the_cross_entropy_and_agrees_with_bernoulli_on_binary_pixels():
    logits, grey = np.array([-2.0, 0.0, 3.0]), np.array([0.25, 0.5, 1.0])
    probability = 1 / (1 + np.exp(-logits))
    expected = grey * np.log(probability) + (1 - grey) * np.log(1 - probability)
    own = pyro_likelihoods.GreyBernoulli(torch.tensor(logits)).log_prob(torch.tensor(grey))
    np.testing.assert_allclose(own, expected, rtol=1e-12)
    np.testing.assert_allclose(
        numpyro_likelihoods.GreyBernoulli(logits.astype(np.float32)).log_prob(grey.astype(np.float32)),
        expected,
        rtol=1e-5,
    )
    for value in (0.0, 1.0):
        binary = torch.full((3,), value, dtype=torch.float64)
        host = torch.distributions.Bernoulli(logits=torch.tensor(logits)).log_prob(binary)
        torch.testing.assert_close(pyro_likelihoods.GreyBernoulli(torch.tensor(logits)).log_prob(binary), host)


@pytest.mark.parametrize("backend", ["numpyro", "pyro"])
def test_normal_pixels_are_around_the_sigmoid(backend):
    """With the standard deviation that training begins with."""
    rng = np.random.default_rng(0)
    logits, x = rng.normal(0, 3, (2, 3, 4, 5, 1)), rng.random((2, 3, 4, 5, 1))
    expected = stats.norm(expit(logits), 0.2).logpdf(x).sum(axis=(1, 2, 3, 4))
    with on_jax("cpu", "float64"), on_torch("cpu", "float64"), pyro.get_param_store().scope():
        if backend == "numpyro":
            normal = numpyro.handlers.seed(numpyro_likelihoods.LIKELIHOODS["normal"], 0)
            found = normal(jax.numpy.asarray(logits)).log_prob(x)
        else:
            found = pyro_likelihoods.LIKELIHOODS["normal"](torch.tensor(logits)).log_prob(torch.tensor(x)).detach()
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("likelihoods", [numpyro_likelihoods, pyro_likelihoods])
@pytest.mark.parametrize("name", ["bernoulli", "bernoulli_grey", "continuous_bernoulli"])
def test_pixels_outside_the_support_are_refused_where_the_host_validates(likelihoods, name):
    """Grey pixels are none of a Bernoulli's, nor those beyond [0, 1] of the others."""
    inside, outside = ({0.0, 1.0}, 0.5) if name == "bernoulli" else ({0.25, 1.0}, 7.0)
    xp = jax.numpy if likelihoods is numpyro_likelihoods else torch
    with numpyro.validation_enabled(), pyro.validation_enabled():
        pixels = getattr(likelihoods, name)(xp.zeros((1, 1, 1, 1)))
        for value in inside:
            assert np.isfinite(float(pixels.log_prob(xp.full((1, 1, 1, 1), value))))
        if xp is torch:
            with pytest.raises(ValueError, match="support"):
                pixels.log_prob(xp.full((1, 1, 1, 1), outside))
        else:
            with pytest.warns(UserWarning, match="Out-of-support values"):
                pixels.log_prob(xp.full((1, 1, 1, 1), outside))


@pytest.mark.parametrize("logit", [-100.0, -20.0, -1.0, 0.0, 1.0, 20.0, 100.0])
def test_continuous_bernoulli_draws_are_pixels_for_any_uniform_number(logit):
    drawn = densities.continuous_bernoulli_quantile(torch.full((4,), logit), torch.tensor([0.0, 1e-30, 0.5, 1 - 1e-7]))
    assert ((drawn >= 0) & (drawn <= 1)).all()
    assert (drawn.diff() >= 0).all()
