"""The power spherical distribution against quadrature and its own draws, in both backends."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from numpyro.distributions.kl import kl_divergence as numpyro_kl
from scipy import integrate
from scipy.special import gamma
from torch.distributions import kl_divergence as torch_kl

from ppl_tvae.inference.numpyro.device import on_device as on_jax
from ppl_tvae.inference.pyro.device import on_device as on_torch
from ppl_tvae.models.numpyro import spherical as on_numpyro
from ppl_tvae.models.pyro import spherical as on_pyro
from tests.conftest import STANDARD_ERRORS


@pytest.fixture(autouse=True)
def double():
    with on_jax("cpu", "float64"), on_torch("cpu", "float64"):
        yield


def direction(dimension):
    vector = np.random.default_rng(dimension).standard_normal(dimension)
    return vector / np.linalg.norm(vector)


def pair(dimension, concentration):
    """The distribution in both hosts."""
    loc = direction(dimension)
    return (
        on_numpyro.PowerSpherical(jnp.asarray(loc), jnp.asarray(concentration)),
        on_pyro.PowerSpherical(torch.tensor(loc), torch.tensor(concentration)),
    )


def over_the_sphere(function, dimension):
    """The integral of a function of the cosine with loc over the unit sphere."""
    area_below = 2 * math.pi ** ((dimension - 1) / 2) / gamma((dimension - 1) / 2)
    weighted = lambda t: function(t) * (1 - t * t) ** ((dimension - 3) / 2)  # noqa: E731 - one line of mathematics
    return area_below * integrate.quad(weighted, -1, 1)[0]


@pytest.mark.parametrize("concentration", [0.5, 4.0, 60.0])
@pytest.mark.parametrize("dimension", [3, 5, 18])
def test_density_integrates_to_one_and_kl_is_its_integral(dimension, concentration):
    loc = direction(dimension)
    across = np.linalg.svd(loc[None])[2][1]  # of length 1, at right angles to loc
    at = lambda t: t * loc + math.sqrt(1 - t * t) * across  # noqa: E731 - one line of mathematics
    ours, theirs = pair(dimension, concentration)
    density = lambda t: math.exp(float(ours.log_prob(jnp.asarray(at(t)))))  # noqa: E731 - one line of mathematics
    assert over_the_sphere(density, dimension) == pytest.approx(1, rel=1e-7)
    uniform = on_numpyro.HypersphericalUniform(dimension), on_pyro.HypersphericalUniform(dimension)
    log_uniform = float(uniform[0].log_prob(jnp.asarray(loc)))
    assert over_the_sphere(lambda t: math.exp(log_uniform), dimension) == pytest.approx(1, rel=1e-9)
    divergence = over_the_sphere(
        lambda t: density(t) * (math.log(density(t)) - log_uniform) if density(t) > 0 else 0.0, dimension
    )
    assert float(numpyro_kl(ours, uniform[0])) == pytest.approx(divergence, rel=1e-6)
    assert float(torch_kl(theirs, uniform[1])) == pytest.approx(divergence, rel=1e-6)


@pytest.mark.parametrize("concentration", [0.5, 20.0])
@pytest.mark.parametrize("dimension", [2, 5, 18])
def test_draws_lie_on_the_sphere_with_the_mean_of_the_density(dimension, concentration):
    """E[x] = loc (alpha - beta) / (alpha + beta), from the beta distribution of the cosine."""
    half = (dimension - 1) / 2
    expected = concentration / (concentration + 2 * half) * direction(dimension)
    ours, theirs = pair(dimension, concentration)
    for draws in (np.asarray(ours.sample(jax.random.key(0), (20_000,))), theirs.sample((20_000,)).numpy()):
        np.testing.assert_allclose(np.linalg.norm(draws, axis=-1), 1, atol=1e-12)
        error = draws.std(axis=0) / len(draws) ** 0.5
        assert (np.abs(draws.mean(axis=0) - expected) < STANDARD_ERRORS * error).all()


def test_gradients_of_an_expectation_pass_through_draws():
    """E[loc0 . x] = (loc0 . loc) c / (c + D - 1): its derivative in the concentration c is known."""
    dimension, concentration, count = 5, 4.0, 20_000
    loc = direction(dimension)
    expected = (dimension - 1) / (concentration + dimension - 1) ** 2

    def cosines(value):
        fn = on_numpyro.PowerSpherical(jnp.asarray(loc), value)
        return fn.sample(jax.random.key(0), (count,)) @ loc

    each = np.asarray(jax.jacfwd(cosines)(jnp.asarray(concentration)))
    assert abs(each.mean() - expected) < STANDARD_ERRORS * each.std() / count**0.5
    several = torch.full((count,), concentration, requires_grad=True)
    drawn = on_pyro.PowerSpherical(torch.tensor(loc).expand(count, -1), several).rsample()
    (each,) = torch.autograd.grad((drawn @ torch.tensor(loc)).sum(), several)
    assert abs(each.mean() - expected) < STANDARD_ERRORS * each.std() / count**0.5


def test_a_direction_is_of_length_one_even_of_nothing():
    vectors = np.stack([np.zeros(5), 1e-30 * np.ones(5), direction(5), 1e20 * direction(5)])
    for directed in (on_numpyro.direction(jnp.asarray(vectors)), on_pyro.direction(torch.tensor(vectors))):
        np.testing.assert_allclose(np.linalg.norm(directed, axis=-1), 1, rtol=1e-12)
        np.testing.assert_allclose(directed[2:], [direction(5)] * 2, rtol=1e-9)


NEAR = (0.0, 1e-7, 1e-5, 1e-3, 1.0, math.pi - 1e-5, math.pi)


@pytest.mark.parametrize("angle", NEAR)
def test_draws_lie_around_any_direction_in_single_precision(angle):
    """Also around the axis that draws begin from, and around its opposite; within 0.06 of a radian by concentration."""
    loc = np.array([math.cos(angle), math.sin(angle), 0.0, 0.0], np.float32)
    ours = on_numpyro.PowerSpherical(jnp.asarray(loc), jnp.float32(1e4)).sample(jax.random.key(0), (1000,))
    theirs = on_pyro.PowerSpherical(torch.tensor(loc), torch.tensor(1e4)).sample((1000,))
    for draws in (np.asarray(ours), theirs.numpy()):
        assert np.linalg.norm(draws - loc, axis=-1).max() < 0.08


@pytest.mark.parametrize(
    "vector", [(0.0, 0.0, 0.0, 0.0), (2.0, 0.0, 0.0, 0.0), (2.0, 1e-6, 0.0, 0.0), (-2.0, 1e-6, 0.0, 0.0)]
)
@pytest.mark.parametrize("compiled", [True, False])
def test_gradients_of_draws_and_densities_are_finite_for_any_vector(vector, compiled):
    """A black frame's encoding is zero before training."""

    def ours(values):
        guide = on_numpyro.PowerSpherical(on_numpyro.direction(values), jnp.float32(3.0))
        drawn = guide.sample(jax.random.key(0), (100,))
        return jnp.sum(drawn * jnp.arange(4)) + jnp.sum(guide.log_prob(drawn))

    gradient = (jax.jit if compiled else lambda f: f)(jax.grad(ours))(jnp.asarray(vector, jnp.float32))
    assert np.abs(np.asarray(gradient)).max() < 1e4
    values = torch.tensor(vector, dtype=torch.float32, requires_grad=True)
    guide = on_pyro.PowerSpherical(on_pyro.direction(values), torch.tensor(3.0))
    drawn = guide.rsample((100,))
    (gradient,) = torch.autograd.grad((drawn * torch.arange(4)).sum() + guide.log_prob(drawn).sum(), values)
    assert gradient.abs().max() < 1e4
    if not any(vector):
        assert not gradient.any()
