"""NUTS and HMC of both hosts: against posteriors known in closed form, on other supports, and where they refuse."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as numpyro_dist
import pyro
import pyro.distributions as pyro_dist
import pytest
import torch
from arviz_base import dict_to_dataset
from arviz_stats import mcse

from ppl_tvae.errors import UserError
from ppl_tvae.inference.mcmc import MCMC, check_mcmc
from ppl_tvae.inference.numpyro.device import on_device as on_jax
from ppl_tvae.inference.numpyro.mcmc import Sampler as NumpyroSampler
from ppl_tvae.inference.pyro.device import on_device as on_torch
from ppl_tvae.inference.pyro.mcmc import Sampler as PyroSampler
from ppl_tvae.program import Program
from tests.conftest import STANDARD_ERRORS
from tests.inference import linear_gaussian
from tests.small_runs import BACKENDS

HOSTS = {"numpyro": (numpyro, jnp, numpyro_dist), "pyro": (pyro, torch, pyro_dist)}


def chains_of(backend, program, parameters, frames, settings, progress=lambda _: None):
    if backend == "numpyro":
        with on_jax("cpu", "float64"):
            sampler = NumpyroSampler(program, jax.tree.map(jnp.asarray, parameters), settings)
            return sampler.draws(jax.random.key(1), jnp.asarray(frames), progress)
    with on_torch("cpu", "float64"):
        torch.manual_seed(1)
        sampler = PyroSampler(program, {name: torch.tensor(value) for name, value in parameters.items()}, settings)
        return sampler.draws(torch.tensor(frames), progress)


def assert_has_moments(values, mean, scale):
    """values: (chain, draw, ...); mean and scale hold within Monte Carlo standard errors."""
    draws = dict_to_dataset({"value": values})
    for method, found, expected in (("mean", values.mean((0, 1)), mean), ("sd", values.std((0, 1), ddof=1), scale)):
        error = mcse(draws, method=method)["value"].values
        assert (error < 0.1 * scale).all()  # else any answer would do
        assert (np.abs(found - expected) < STANDARD_ERRORS * error).all()


def exact_posterior(frames):
    """Means (batch, 2) and standard deviations (2,) of (a, b): those of the exact guide."""
    exact = linear_gaussian.parameters_with_exact_guide()
    residual = frames[:, :, 0, 0, 0] - exact["offset"]
    a = residual @ exact["guide.gain_a"]
    b = residual @ exact["guide.gain_b"] + exact["guide.link"] * a
    scale_a, scale_b = np.exp(exact["guide.log_scale"])
    return np.stack([a, b], axis=-1), np.asarray([scale_a, np.hypot(scale_b, exact["guide.link"] * scale_a)])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kernel", ["nuts", "hmc"])
def test_recovers_a_posterior_in_closed_form(kernel, backend):
    """From a guide that is off, on several sequences at once, under a plate whose scale must not count.

    After 150 iterations the adaptation is a matter of luck: three of six seeds gave chains with too large an error.
    """
    host, arrays, dist = HOSTS[backend]
    program, frames = linear_gaussian.program(host, arrays.exp, dist, 50), linear_gaussian.observations(2)
    ticks = []
    settings = MCMC(kernel, num_warmup=300, num_draws=400, num_chains=2)
    chains = chains_of(backend, program, linear_gaussian.parameters(0.5), frames, settings, ticks.append)
    assert sum(ticks) == pytest.approx(700)
    mean, scale = exact_posterior(frames)
    for place, name in enumerate("ab"):
        assert chains.sites[name].shape == (2, 400, 2)
        assert_has_moments(chains.sites[name], mean[:, place], scale[place])
    assert all(value.shape == (2, 400, 2) for value in chains[1:])
    assert not chains.diverging.any()
    assert (chains.num_steps >= 1).all()
    assert (chains.step_size == chains.step_size[:, :1]).all()
    assert len(np.unique(chains.step_size)) == 4  # each chain on each sequence has its own
    assert ((chains.acceptance_rate >= 0) & (chains.acceptance_rate <= 1)).all()
    assert 0.6 < chains.acceptance_rate.mean() < 0.99


@pytest.mark.parametrize("backend", BACKENDS)
def test_numbers_of_each_draw_are_the_programs(backend):
    """log p(x, latents) and log p(x | latents) by hand; kinetic energy is that of two standard normals."""
    host, arrays, dist = HOSTS[backend]
    program, frames = linear_gaussian.program(host, arrays.exp, dist), linear_gaussian.observations(2)
    values = linear_gaussian.parameters()
    chains = chains_of(backend, program, values, frames, MCMC(num_warmup=60, num_draws=80, num_chains=2))
    a, b = chains.sites["a"], chains.sites["b"]
    normal = jax.scipy.stats.norm.logpdf
    with on_jax("cpu", "float64"):
        mean = values["offset"] + a[..., None] * values["loading"][0] + b[..., None] * values["loading"][1]
        likelihood = np.asarray(normal(frames[:, :, 0, 0, 0], mean, linear_gaussian.NOISE).sum(-1))
        joint = np.asarray(normal(a) + normal(b, values["coupling"] * a)) + likelihood
    np.testing.assert_allclose(chains.log_likelihood, likelihood, rtol=1e-9)
    np.testing.assert_allclose(chains.log_joint, joint, rtol=1e-9)
    # a chi-square of two degrees of freedom, halved; and the integrator's error, small at this acceptance
    kinetic = chains.energy + chains.log_joint
    assert abs(kinetic.mean() - 1.0) < STANDARD_ERRORS / kinetic.size**0.5 + 0.1


@pytest.mark.parametrize("backend", BACKENDS)
def test_steps_are_adapted_to_the_acceptance_that_is_asked_for(backend):
    host, arrays, dist = HOSTS[backend]
    program, frames = linear_gaussian.program(host, arrays.exp, dist), linear_gaussian.observations(1)
    careless, careful = (
        chains_of(
            backend, program, linear_gaussian.parameters(), frames,
            MCMC(num_warmup=100, num_draws=1, num_chains=2, target_acceptance=target),
        ).step_size.mean()
        for target in (0.6, 0.97)
    )  # fmt: skip
    assert careless > 1.5 * careful


@pytest.mark.parametrize("backend", BACKENDS)
def test_acceptance_rates_vary_as_those_of_single_iterations(backend):
    """A mean over all draws so far would stand nearly still after half of them."""
    host, arrays, dist = HOSTS[backend]
    program, frames = linear_gaussian.program(host, arrays.exp, dist), linear_gaussian.observations(1)
    settings = MCMC("hmc", num_warmup=60, num_draws=60, num_chains=2, target_acceptance=0.6)
    found = chains_of(backend, program, linear_gaussian.parameters(), frames, settings).acceptance_rate
    assert ((found >= 0) & (found <= 1)).all()
    assert (found[:, 30:].std(axis=1) > 0.1).all()


def test_every_acceptance_rate_is_of_its_own_iteration():
    """Pyro keeps the mean over all draws so far; at this target every single one is high."""
    host, arrays, dist = HOSTS["pyro"]
    program, frames = linear_gaussian.program(host, arrays.exp, dist), linear_gaussian.observations(1)
    settings = MCMC("hmc", num_warmup=60, num_draws=6, num_chains=2, trajectory_length=0.5, target_acceptance=0.99)
    found = chains_of("pyro", program, linear_gaussian.parameters(), frames, settings)
    assert (found.acceptance_rate > 0.5).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_divergences_of_trajectories_are_seen(backend):
    """Neal's funnel, which a step of one size does not get into; a tree of depth 5 has at most 31 steps."""
    host, arrays, dist = HOSTS[backend]

    def model(frames):
        with host.plate("sequences", frames.shape[0]):
            v = host.sample("v", dist.Normal(0.0 * arrays.ones(()), 3.0))
            host.sample("w", dist.Normal(arrays.zeros((9,)), arrays.exp(v / 2)[:, None]).to_event(1))
            host.sample("x", dist.Normal(0.0 * frames, 1.0).to_event(4), obs=frames)

    def guide(frames):
        with host.plate("sequences", frames.shape[0]):
            host.sample("v", dist.Normal(0.0 * arrays.ones(()), 1.0))
            host.sample("w", dist.Normal(arrays.zeros((9,)), 1.0).to_event(1))

    settings = MCMC(num_warmup=50, num_draws=100, num_chains=2, target_acceptance=0.6, max_tree_depth=5)
    found = chains_of(backend, Program(model, guide), {}, np.zeros((1, 1, 1, 1, 1)), settings)
    assert 0 < found.diverging.sum() < found.diverging.size / 2
    assert (found.num_steps <= 31).all()


def gamma_program(host, dist, arrays):
    """rate ~ Gamma(2, 1), x ~ Exponential(rate) three times: rate | x ~ Gamma(5, 1 + sum x). half is deterministic."""

    def model(frames):
        with host.plate("sequences", frames.shape[0]):
            rate = host.sample("rate", dist.Gamma(2.0 * arrays.ones((1,)), 1.0).to_event(1))
            host.deterministic("half", rate / 2)
            host.sample("x", dist.Exponential(rate[:, :, None, None, None] + 0 * frames).to_event(4), obs=frames)

    def guide(frames):
        with host.plate("sequences", frames.shape[0]):
            host.sample("rate", dist.LogNormal(arrays.zeros((1,)), 0.5).to_event(1))

    return Program(model, guide)


@pytest.mark.parametrize("backend", BACKENDS)
def test_positive_latents_have_their_gamma_posterior_and_what_is_computed_from_them(backend):
    host, arrays, dist = HOSTS[backend]
    frames = np.random.default_rng(2).exponential(1.0, (2, 3, 1, 1, 1))
    settings = MCMC(num_warmup=150, num_draws=300, num_chains=2)
    chains = chains_of(backend, gamma_program(host, dist, arrays), {}, frames, settings)
    rate = chains.sites["rate"]
    assert rate.shape == (2, 300, 2, 1)
    assert (rate > 0).all()
    beta = 1 + frames.sum(axis=(1, 2, 3, 4))
    assert_has_moments(rate[..., 0], 5 / beta, 5**0.5 / beta)
    np.testing.assert_allclose(chains.sites["half"], rate / 2)


def refused(backend, prior, guide_prior, words):
    host, _, dist = HOSTS[backend]

    def model(frames):
        with host.plate("sequences", frames.shape[0]):
            k = host.sample("k", prior)
            mean = k[:, None, None, None, None] + 0 * frames
            host.sample("x", dist.Normal(mean, 1.0).to_event(4), obs=frames)

    def guide(frames):
        with host.plate("sequences", frames.shape[0]):
            host.sample("k", guide_prior)

    with pytest.raises(UserError, match=words) as found:
        chains_of(backend, Program(model, guide), {}, np.zeros((2, 3, 1, 1, 1)), MCMC(num_warmup=2, num_draws=2))
    assert "\n" not in str(found.value)


@pytest.mark.parametrize("backend", BACKENDS)
def test_discrete_latents_are_refused(backend):
    coin = HOSTS[backend][2].Bernoulli(0.5 * HOSTS[backend][1].ones(()))
    refused(
        backend, coin, coin, "unconstrained coordinates, as annealing, MCMC and automatic guides need, found site 'k'"
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_supports_that_depend_on_a_latent_are_refused(backend):
    host, _, dist = HOSTS[backend]

    def model(frames):
        with host.plate("sequences", frames.shape[0]):
            s = host.sample("s", dist.Gamma(2.0, 1.0))
            z = host.sample("z", dist.Uniform(0.0 * s, s))
            host.sample("x", dist.Normal(z[:, None, None, None, None] + 0 * frames, 1.0).to_event(4), obs=frames)

    with pytest.raises(UserError, match=r"no other latent.*site 'z' with a support that changes from draw to draw"):
        chains_of(backend, Program(model, model), {}, np.zeros((2, 1, 1, 1, 1)), MCMC(num_warmup=2, num_draws=2))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_guide_outside_the_priors_support_is_refused(backend):
    dist = HOSTS[backend][2]
    refused(
        backend, dist.HalfNormal(1.0), dist.Normal(-5.0, 0.1), "from the guide at which the model's density is finite"
    )


def test_bad_settings():
    for settings, words in [
        (MCMC("gibbs"), "kernel of MCMC"),
        (MCMC(num_chains=0), "num_chains of at least 1"),
        (MCMC(num_warmup=0), "num_warmup of at least 1"),
        (MCMC(trajectory_length=0.0), "positive trajectory_length"),
        (MCMC(target_acceptance=1.0), "between 0 and 1"),
    ]:
        with pytest.raises(UserError, match=words):
            check_mcmc(settings)
