"""Log-densities in single precision against the same in double precision, where the hosts' own lose their digits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from scipy.special import gammaln
from scipy.stats import multivariate_normal, t

from ppl_tvae.models import densities
from ppl_tvae.models.numpyro import stable as on_numpyro
from ppl_tvae.models.pyro import stable as on_pyro

HOSTS = {"numpyro": (on_numpyro, jnp.asarray), "pyro": (on_pyro, torch.tensor)}


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize(("scale", "factor"), [(1.0, 0.1), (0.03, 1.0), (0.01, 3.0)])
def test_low_rank_density_is_exact_also_of_a_thin_diagonal(host, scale, factor):
    rng = np.random.default_rng(0)
    loc, factors = rng.standard_normal((50, 18)), factor * rng.standard_normal((50, 18, 4))
    scales = scale * (0.5 + rng.random((50, 18)))
    module, array = HOSTS[host]
    arguments = [array(values.astype(np.float32)) for values in (loc, factors, scales**2)]
    # Their own draws, rounded to single precision before either density sees them.
    drawn = (
        loc + np.einsum("ndr,nr->nd", factors, rng.standard_normal((50, 4))) + scales * rng.standard_normal(loc.shape)
    )
    drawn = drawn.astype(np.float32)
    found = np.asarray(module.LowRankNormal(*arguments).log_prob(array(drawn)), np.float64)
    mean, factors, diagonal = (np.asarray(each, np.float64) for each in arguments)
    covariance = factors @ factors.swapaxes(1, 2) + np.einsum("nd,de->nde", diagonal, np.eye(18))
    exact = [multivariate_normal.logpdf(x, m, c) for x, m, c in zip(drawn.astype(float), mean, covariance, strict=True)]
    np.testing.assert_allclose(found, exact, atol=2e-3)


def test_log_gamma_ratio_is_exact():
    nu = np.geomspace(1e-3, 1e4, 50)
    exact = gammaln((nu + 1) / 2) - gammaln(nu / 2)
    np.testing.assert_allclose(densities.student_t_log_gamma_ratio(nu), exact, rtol=1e-10, atol=1e-10)
    single = densities.student_t_log_gamma_ratio(nu.astype(np.float32))
    np.testing.assert_allclose(single, exact, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("nu", [0.5, 5.0, 50.0, 1e3])
def test_student_t_density_and_its_gradient_by_the_degrees_of_freedom(host, nu):
    module, array = HOSTS[host]
    drawn = np.random.default_rng(1).standard_t(nu, 5832).astype(np.float32)
    step = nu * 1e-4
    exact = t.logpdf(drawn.astype(float), nu)
    slope = (t.logpdf(drawn.astype(float), nu + step) - t.logpdf(drawn.astype(float), nu - step)).mean() / (2 * step)
    if host == "numpyro":
        mean = lambda df: module.StudentT(df, 0.0, 1.0).log_prob(array(drawn)).mean()  # noqa: E731 - one line of mathematics
        found, gradient = (
            module.StudentT(jnp.float32(nu), 0.0, 1.0).log_prob(array(drawn)),
            jax.grad(mean)(jnp.float32(nu)),
        )
    else:
        df = torch.tensor(nu, requires_grad=True)
        found = module.StudentT(df, torch.zeros(()), torch.ones(())).log_prob(array(drawn))
        (gradient,) = torch.autograd.grad(found.mean(), df)
        found = found.detach()
    assert abs(np.sum(np.asarray(found, np.float64) - exact)) < 0.02  # nats per sequence, of 18 frames
    np.testing.assert_allclose(float(gradient), slope, rtol=0.05, atol=2e-3 / nu**2)
