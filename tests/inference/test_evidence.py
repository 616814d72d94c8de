"""Importance sampling and annealing against exact evidences, in both backends."""

from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as numpyro_dist
import pyro
import pyro.distributions as pyro_dist
import pytest
import torch
from scipy.special import expit, gammaln, logsumexp
from scipy.stats import norm
from scipy.stats import t as student_t

from ppl_tvae.assembly import assemble, lattice_of
from ppl_tvae.errors import UserError
from ppl_tvae.inference import bounds
from ppl_tvae.inference.annealing import Annealing, check_annealing, forward_path, inverse_temperatures
from ppl_tvae.inference.numpyro import annealing as numpyro_annealing
from ppl_tvae.inference.numpyro import importance as numpyro_importance
from ppl_tvae.inference.numpyro.device import on_device as on_jax
from ppl_tvae.inference.pyro import annealing as pyro_annealing
from ppl_tvae.inference.pyro import importance as pyro_importance
from ppl_tvae.inference.pyro.device import on_device as on_torch
from ppl_tvae.program import Program
from tests.conftest import STANDARD_ERRORS
from tests.inference.test_mcmc import gamma_program
from tests.oracles import linear_gaussian, tiny_tvae_log_evidence
from tests.small import random_parameters, small_experiment
from tests.weights import numpyro_log_weights_at, pyro_log_weights_at

BACKENDS = ("numpyro", "pyro")
HOSTS = {"numpyro": (numpyro, numpyro_dist, numpyro.handlers), "pyro": (pyro, pyro_dist, pyro.poutine)}


def draw_log_weights(backend, programs, parameters, frames, num_particles, seed=0, particles_per_chunk=256):
    """(num_particles, batch) in float64; programs: backend -> program."""
    if backend == "numpyro":
        with on_jax("cpu", "float64"):
            draw = numpyro_importance.log_weights(
                programs[backend], num_particles, particles_per_chunk=particles_per_chunk
            )
            return np.asarray(draw(jax.tree.map(jnp.asarray, parameters), jax.random.key(seed), jnp.asarray(frames)))
    with on_torch("cpu", "float64"):
        torch.manual_seed(seed)
        draw = pyro_importance.log_weights(programs[backend], num_particles, particles_per_chunk=particles_per_chunk)
        return draw({name: torch.tensor(value) for name, value in parameters.items()}, torch.tensor(frames)).numpy()


def bracket(backend, programs, parameters, frames, annealing, seed=0, latents=None):
    """Forward and, with exact posterior draws, backward log weights, (chains, batch) each."""
    path, forward, backward = walked(backend, programs, parameters, frames, annealing, seed, latents)
    # Chains that went on adapting would leave no f_beta alone, by so little that no estimate here would show it.
    np.testing.assert_array_equal(forward.step_sizes, path.step_sizes)
    if backward is not None:
        np.testing.assert_array_equal(backward.step_sizes, path.step_sizes[::-1])
    return forward, backward


def walked(backend, programs, parameters, frames, annealing, seed, latents):
    if backend == "numpyro":
        with on_jax("cpu", "float64"):
            frames = jnp.asarray(frames)
            keys = jax.random.split(jax.random.key(seed), 3)
            annealer = numpyro_annealing.Annealer(programs[backend], jax.tree.map(jnp.asarray, parameters), annealing)
            path = annealer.pilot(keys[0], frames)
            forward = annealer.forward(keys[1], frames, path)
            given = None if latents is None else jax.tree.map(jnp.asarray, latents)
            return path, forward, None if latents is None else annealer.backward(keys[2], frames, given, path)
    with on_torch("cpu", "float64"):
        torch.manual_seed(seed)
        parameters = {name: torch.tensor(value) for name, value in parameters.items()}
        annealer = pyro_annealing.Annealer(programs[backend], parameters, annealing)
        frames = torch.tensor(frames)
        path = annealer.pilot(frames)
        forward = annealer.forward(frames, path)
        given = None if latents is None else {name: torch.tensor(value) for name, value in latents.items()}
        return path, forward, None if latents is None else annealer.backward(frames, given, path)


@pytest.fixture(scope="module")
def conjugate():
    rng = np.random.default_rng(3)
    oracle = linear_gaussian(rng)
    return oracle, {"numpyro": oracle.numpyro_program(), "pyro": oracle.pyro_program()}, oracle.frames(4, rng)


@pytest.mark.parametrize("backend", BACKENDS)
def test_bounds_rise_with_particles_to_the_exact_evidence(backend, conjugate):
    oracle, programs, frames = conjugate
    n, truth = 4000, oracle.log_evidence(frames)
    log_weights = draw_log_weights(backend, programs, oracle.parameters(), frames, n)
    assert log_weights.shape == (n, 4)
    error = log_weights.std(axis=0) / np.sqrt(n)
    assert (np.abs(log_weights.mean(axis=0) - oracle.elbo(frames)) < STANDARD_ERRORS * error).all()
    curve = []
    for k in (1, 10, 100):
        groups = bounds.log_mean_exp(log_weights.reshape(-1, k, 4), axis=1)
        np.testing.assert_allclose(bounds.iwae_bound(log_weights, k), groups.mean(axis=0), rtol=1e-12)
        curve.append((groups.mean(), groups.mean(axis=1).std() / np.sqrt(len(groups))))
    for (lower, lower_error), (upper, upper_error) in pairwise(curve):
        assert upper - lower > STANDARD_ERRORS * np.hypot(lower_error, upper_error)
    assert curve[-1][0] < truth.mean() + STANDARD_ERRORS * curve[-1][1]
    ratio = np.exp(log_weights - truth)  # unbiased: mean one
    assert (np.abs(ratio.mean(axis=0) - 1) < STANDARD_ERRORS * ratio.std(axis=0) / np.sqrt(n)).all()


def test_draws_that_make_no_whole_group_are_left_out():
    log_weights = np.random.default_rng(0).normal(size=(10, 3))
    expected = np.mean([logsumexp(log_weights[i : i + 4], axis=0) - np.log(4) for i in (0, 4)], axis=0)
    np.testing.assert_allclose(bounds.iwae_bound(log_weights, 4), expected, rtol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_gap_shrinks_like_one_over_particles(backend, conjugate):
    """The bias of IWAE-K is Var(w) / (2 K p(x)^2) to first order (Domke & Sheldon 2018)."""
    oracle, programs, frames = conjugate
    log_weights = draw_log_weights(backend, programs, oracle.parameters(), frames, 64_000, seed=5)
    gaps, counts = [], (20, 80, 320)
    for k in counts:
        log_ratio = bounds.log_mean_exp(log_weights.reshape(-1, k, 4), axis=1) - oracle.log_evidence(frames)
        # exp(log_ratio) - 1 has mean zero: added to the gap, it takes away most of the gap's noise
        gaps.append(np.mean(np.expm1(log_ratio) - log_ratio))
    slope = np.polyfit(np.log(counts), np.log(gaps), 1)[0]
    assert -1.15 < slope < -0.85


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_exact_posterior_as_guide_gives_equal_weights(backend):
    rng = np.random.default_rng(4)
    oracle = linear_gaussian(rng, exact=True)
    frames = oracle.frames(3, rng)
    programs = {"numpyro": oracle.numpyro_program(), "pyro": oracle.pyro_program()}
    log_weights = draw_log_weights(backend, programs, oracle.parameters(), frames, 7)
    np.testing.assert_allclose(log_weights, np.broadcast_to(oracle.log_evidence(frames), (7, 3)), rtol=1e-10)
    np.testing.assert_allclose(bounds.iwae_bound(log_weights, 7), oracle.log_evidence(frames), rtol=1e-10)


def test_chunks_that_do_not_divide_draw_the_same_weights(conjugate):
    """In NumPyro each particle has its own key; torch fills tensors of different sizes from its stream differently."""
    oracle, programs, frames = conjugate
    whole = draw_log_weights("numpyro", programs, oracle.parameters(), frames, 11, particles_per_chunk=11)
    for size in (3, 20):
        parts = draw_log_weights("numpyro", programs, oracle.parameters(), frames, 11, particles_per_chunk=size)
        np.testing.assert_allclose(parts, whole, rtol=1e-12)
    for size in (3, 20):
        parts = draw_log_weights("pyro", programs, oracle.parameters(), frames, 2000, particles_per_chunk=size)
        assert parts.shape == (2000, 4)
        error = parts.std(axis=0) / np.sqrt(2000)
        assert (np.abs(parts.mean(axis=0) - oracle.elbo(frames)) < STANDARD_ERRORS * error).all()


def test_calls_that_do_not_divide_draw_the_same_weights(conjugate, monkeypatch):
    """11 particles in calls of 4, 4 and 3, between which NumPyro can be interrupted."""
    oracle, programs, frames = conjugate
    whole = draw_log_weights("numpyro", programs, oracle.parameters(), frames, 11, particles_per_chunk=2)
    monkeypatch.setattr(numpyro_importance, "_PARTICLES_PER_CALL", 4)
    parts = draw_log_weights("numpyro", programs, oracle.parameters(), frames, 11, particles_per_chunk=2)
    np.testing.assert_allclose(parts, whole, rtol=1e-12)


@pytest.mark.parametrize("reads_its_draw", [False, True])
def test_pyro_runs_the_guide_once_for_several_chunks_of_particles(conjugate, reads_its_draw):
    """Reading a draw, which vmap forbids, makes particles further sequences of one batch; the weights are as right."""
    oracle, _, frames = conjugate
    program, sizes = oracle.pyro_program(), []

    def guide(frames):
        sizes.append(len(frames))
        drawn = program.guide(frames)
        assert not reads_its_draw or bool(torch.isfinite(drawn).all())

    programs = {"pyro": program._replace(guide=guide)}
    weights = draw_log_weights("pyro", programs, oracle.parameters(), frames, 2000, particles_per_chunk=500)
    assert sizes[0] == 2  # trying out
    assert sizes[1:] == [4 * 500] * 4 if reads_its_draw else [4]
    error = weights.std(axis=0) / np.sqrt(2000)
    assert (np.abs(weights.mean(axis=0) - oracle.elbo(frames)) < STANDARD_ERRORS * error).all()
    assert len(np.unique(weights)) == weights.size


def test_pyro_hands_memory_back_after_so_many_draws_of_whichever_batches(conjugate, monkeypatch):
    """Not at each batch: with few particles most of its time went to asking for that memory again."""
    oracle, programs, frames = conjugate
    returned, counts = [], []
    monkeypatch.setattr(pyro_importance, "return_freed_memory", lambda: returned.append(None))
    with on_torch("cpu", "float64"):
        draw = pyro_importance.log_weights(programs["pyro"], 50)
        parameters = {name: torch.tensor(value) for name, value in oracle.parameters().items()}
        for _ in range(6):
            draw(parameters, torch.tensor(frames))
            counts.append(len(returned))
    assert counts == [0, 0, 1, 1, 1, 2]  # at 128 and 256 of 50, 100, ..., 300 draws, and three to try the guide


@pytest.mark.parametrize("backend", BACKENDS)
def test_weights_belong_to_their_sequence(backend, conjugate):
    """At given latents: permuting sequences permutes weights; each alone has the weight that it has in company."""
    oracle, programs, frames = conjugate
    z = np.random.default_rng(0).standard_normal((4, 3))

    def at(order):
        if backend == "numpyro":
            with on_jax("cpu", "float64"):
                latents, parameters = {"z": jnp.asarray(z[order])}, jax.tree.map(jnp.asarray, oracle.parameters())
                given = jnp.asarray(frames[order])
                return np.asarray(numpyro_log_weights_at(programs[backend], parameters, given, latents))
        with on_torch("cpu", "float64"), torch.no_grad():
            parameters = {name: torch.tensor(value) for name, value in oracle.parameters().items()}
            latents, given = {"z": torch.tensor(z[order])}, torch.tensor(frames[order])
            return pyro_log_weights_at(programs[backend], parameters, given, latents).numpy()

    together = at([0, 1, 2, 3])
    np.testing.assert_allclose(at([2, 0, 3, 1]), together[[2, 0, 3, 1]], rtol=1e-12)
    np.testing.assert_allclose([at([i])[0] for i in range(4)], together, rtol=1e-12)


def test_equal_weights_return_that_weight_and_minus_infinity_stays():
    equal = np.full((5, 2), -1234.5)
    np.testing.assert_allclose(bounds.iwae_bound(equal, 5), [-1234.5, -1234.5])
    np.testing.assert_allclose(
        bounds.log_mean_exp(np.array([[-np.inf, 0.0], [-np.inf, -np.inf]])), [-np.inf, -np.log(2)]
    )
    with pytest.raises(ValueError, match="found 6"):
        bounds.iwae_bound(equal, 6)


@pytest.fixture(scope="module")
def tiny():
    """One frame, one capsule, two positions; a large epsilon and no hidden layer (no kinks) suit quadrature."""
    settings = {"num_timesteps": 1, "num_capsules": 1, "capsule_dim": 2, "spatial_width": 2}
    experiment = small_experiment("static", epsilon=2.0, hidden=(), **settings)
    rng = np.random.default_rng(8)
    parameters = random_parameters(experiment, rng)
    # a guide near the prior and a mild likelihood: weights without heavy tails, whose errors can be estimated
    parameters = {name: value * (0.1 if name.startswith("guide") else 0.4) for name, value in parameters.items()}
    parameters["mu"] = np.array(0.8)
    frames = (rng.random((5, 1, 4, 5, 3)) < 0.5).astype(float)
    W = lattice_of(experiment).neighborhood
    truth = tiny_tvae_log_evidence(parameters, frames, W, experiment.epsilon, nodes=24)
    coarser = tiny_tvae_log_evidence(parameters, frames, W, experiment.epsilon, nodes=16)
    np.testing.assert_allclose(truth, coarser, atol=2e-4)  # the quadrature has converged
    return {backend: assemble(experiment, backend) for backend in BACKENDS}, parameters, frames, truth


@pytest.mark.parametrize("backend", BACKENDS)
def test_tiny_tvae_has_the_evidence_of_quadrature(backend, tiny):
    programs, parameters, frames, truth = tiny
    n = 40_000
    log_weights = draw_log_weights(backend, programs, parameters, frames, n, particles_per_chunk=4000)
    ratio = np.exp(log_weights - truth)
    assert (np.abs(ratio.mean(axis=0) - 1) < STANDARD_ERRORS * ratio.std(axis=0) / np.sqrt(n) + 2e-4).all()
    elbo, iwae_10 = log_weights.mean(axis=0), bounds.iwae_bound(log_weights, 10)
    assert (elbo < iwae_10).all()
    assert (iwae_10 < truth).all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("start", ["prior", "guide"])
def test_annealing_reaches_the_evidence_of_the_tiny_tvae(backend, start, tiny):
    programs, parameters, frames, truth = tiny
    annealing = Annealing(start=start, num_temperatures=22, num_chains=400, num_leapfrog_steps=4, step_size=0.3)
    forward, _ = bracket(backend, programs, parameters, frames, annealing)
    ratio = np.exp(forward.log_weights - truth)
    assert (np.abs(ratio.mean(axis=0) - 1) < STANDARD_ERRORS * ratio.std(axis=0) / 20 + 2e-4).all()
    assert ((forward.acceptance_rates > 0.3) & (forward.acceptance_rates <= 1)).all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("start", ["prior", "guide"])
def test_annealing_of_positive_latents_reaches_the_evidence(backend, start):
    """Moves are of their logarithm: without the Jacobian they would leave another density alone."""
    host, dist, _ = HOSTS[backend]
    programs = {backend: gamma_program(host, dist, {"numpyro": jnp, "pyro": torch}[backend])}
    frames = np.random.default_rng(2).exponential(1.0, (2, 3, 1, 1, 1))
    truth = gammaln(5) - gammaln(2) - 5 * np.log(1 + frames.sum(axis=(1, 2, 3, 4)))
    annealing = Annealing(start, num_temperatures=22, num_chains=1000, num_leapfrog_steps=3, step_size=0.5)
    forward, _ = bracket(backend, programs, {}, frames, annealing)
    ratio = np.exp(forward.log_weights - truth)
    assert (np.abs(ratio.mean(axis=0) - 1) < STANDARD_ERRORS * ratio.std(axis=0) / np.sqrt(1000)).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_pilot_finds_steps_that_are_accepted_as_often_as_asked(backend, conjugate):
    """At the step size that it begins with none is."""
    oracle, programs, frames = conjugate
    moves = {"num_chains": 50, "num_leapfrog_steps": 3, "step_size": 3.0, "target_acceptance": 0.8}
    forward, _ = bracket(backend, programs, oracle.parameters(), frames, Annealing("guide", 62, "linear", **moves))
    assert abs(forward.acceptance_rates[-30:].mean() - 0.8) < 0.1


@pytest.mark.parametrize("backend", BACKENDS)
def test_short_steps_are_hardly_ever_refused(backend, conjugate):
    """Leapfrog errs by the third power of a step; what is no leapfrog errs by the first, and moves that are refused
    for it hide that they leave no density alone."""
    oracle, programs, frames = conjugate
    annealing = Annealing("guide", 4, num_chains=100, num_leapfrog_steps=5, step_size=0.02)
    path = forward_path(annealing)
    if backend == "numpyro":
        with on_jax("cpu", "float64"):
            parameters = jax.tree.map(jnp.asarray, oracle.parameters())
            annealer = numpyro_annealing.Annealer(programs[backend], parameters, annealing)
            walk = annealer.forward(jax.random.key(0), jnp.asarray(frames), path)
    else:
        with on_torch("cpu", "float64"):
            torch.manual_seed(0)
            parameters = {name: torch.tensor(value) for name, value in oracle.parameters().items()}
            walk = pyro_annealing.Annealer(programs[backend], parameters, annealing).forward(torch.tensor(frames), path)
    assert (1 - walk.acceptance_rates < 2e-3).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_diverged_trajectory_is_refused(backend, conjugate):
    oracle, programs, frames = conjugate
    annealing = Annealing("guide", 4, num_chains=5, num_leapfrog_steps=2, step_size=1e200)
    forward, _ = bracket(backend, programs, oracle.parameters(), frames, annealing)
    np.testing.assert_array_equal(forward.acceptance_rates, 0)
    assert np.isfinite(forward.log_weights).all()
    assert np.isfinite(forward.step_sizes).all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("start", ["prior", "guide"])
def test_forward_and_backward_bracket_the_evidence_and_close_with_temperatures(backend, start, conjugate):
    oracle, programs, frames = conjugate
    truth, gaps = oracle.log_evidence(frames), []
    mean, covariance = oracle.posterior(frames)
    z = mean + np.random.default_rng(1).multivariate_normal(np.zeros(3), covariance, size=4)
    for num_temperatures in (7, 62):
        annealing = Annealing(start, num_temperatures, num_chains=300, num_leapfrog_steps=5, step_size=0.2)
        forward, backward = bracket(backend, programs, oracle.parameters(), frames, annealing, latents={"z": z})
        # one posterior draw per sequence: its luck is shared by the chains, so sequences are the unit of the error
        for walked, sign in ((forward, 1), (backward, -1)):
            error = walked.log_weights.std(axis=0) / np.sqrt(300)
            assert (sign * (walked.log_weights.mean(axis=0) - truth) < STANDARD_ERRORS * error + (sign < 0) * 1.5).all()
        gaps.append(backward.log_weights.mean() - forward.log_weights.mean())
    assert 0 <= gaps[1] < gaps[0] / 3
    ratio = np.exp(forward.log_weights - truth)  # with 60 temperatures its distribution has a light tail
    assert (np.abs(ratio.mean(axis=0) - 1) < STANDARD_ERRORS * ratio.std(axis=0) / np.sqrt(300)).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_two_temperatures_are_importance_sampling_from_the_start(backend, conjugate):
    oracle, programs, frames = conjugate
    annealing = Annealing("guide", num_temperatures=2, num_chains=2000)
    forward, _ = bracket(backend, programs, oracle.parameters(), frames, annealing)
    assert forward.acceptance_rates.shape == (0,)
    plain = draw_log_weights(backend, programs, oracle.parameters(), frames, 2000, seed=9)
    error = np.hypot(forward.log_weights.std(axis=0), plain.std(axis=0)) / np.sqrt(2000)
    assert (np.abs(forward.log_weights.mean(axis=0) - plain.mean(axis=0)) < STANDARD_ERRORS * error).all()
    np.testing.assert_allclose(forward.log_weights.std(axis=0), plain.std(axis=0), rtol=0.2)


def with_prior(backend, prior, guide, mask=lambda x: True):
    """z from a prior, x ~ Normal(z, 1): one number for each sequence. prior, guide: of a host's distributions."""
    host, dist, handlers = HOSTS[backend]

    def model(frames):
        with host.plate("sequences", frames.shape[0]):
            z = host.sample("z", prior(dist))
            x = frames[:, 0, 0, 0, 0]
            with handlers.mask(mask=mask(x)):
                host.sample("x", dist.Normal(z, 1.0), obs=x)

    def guided(frames):
        with host.plate("sequences", frames.shape[0]):
            host.sample("z", guide(dist))

    return {backend: Program(model, guided)}


FOUR_NUMBERS = np.array([-1.0, 0.0, 0.5, 2.0]).reshape(4, 1, 1, 1, 1)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_guide_that_leaves_the_prior_has_weight_zero_there(backend):
    """torch's exponential density goes on below zero; a bound that counts it lies above the evidence."""
    programs = with_prior(backend, lambda dist: dist.Exponential(1.0), lambda dist: dist.StudentT(4.0, 0.3, 1.5))
    log_weights = draw_log_weights(backend, programs, {}, FOUR_NUMBERS, 40_000)
    outside = np.isneginf(log_weights).mean(axis=0)
    assert (np.abs(outside - student_t.cdf(-0.2, 4)) < STANDARD_ERRORS * 0.5 / np.sqrt(40_000)).all()
    z = np.linspace(0, 40, 400_001)
    for x, drawn in zip(FOUR_NUMBERS.ravel(), log_weights.T, strict=True):
        weights, truth = np.exp(drawn), np.trapezoid(np.exp(-z) * norm.pdf(x, z), z)
        assert abs(weights.mean() - truth) < STANDARD_ERRORS * weights.std() / np.sqrt(40_000)


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_a_handler_masks_does_not_count(backend):
    def standard(dist):
        return dist.Normal(0.0, 1.0)

    programs = [with_prior(backend, standard, standard, mask) for mask in (lambda x: x < 0.25, lambda x: True)]
    masked, plain = (draw_log_weights(backend, program, {}, FOUR_NUMBERS, 5) for program in programs)
    np.testing.assert_allclose(masked[:, :2], plain[:, :2], rtol=1e-12)
    np.testing.assert_allclose(masked[:, 2:], 0.0, atol=1e-12)
    assert (np.abs(plain[:, 2:]) > 0.1).all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("length", "mask", "words"),
    [
        (1, True, "same number of frames"),
        (5, True, "5 in 'z', 3 in 'x'"),
        (3, False, "'z' to be independent over time"),
    ],
)
def test_a_score_per_frame_needs_frames(backend, length, mask, words):
    """A latent of another length would be counted in each frame, or in none; a mask not at all."""
    host, dist, handlers = HOSTS[backend]

    def model(frames):
        with host.plate("sequences", frames.shape[0]):
            with handlers.mask(mask=mask):
                host.sample("z", dist.Normal(0.0, 1.0).expand((length,)).to_event(1))
            host.sample("x", dist.Normal(0.0 * frames, 1.0).to_event(4), obs=frames)

    frames, program = np.zeros((4, 3, 1, 1, 1)), Program(model, handlers.block(model, hide=["x"]))
    if backend == "numpyro":
        draw, arguments = numpyro_importance.frame_log_weights(program, 2), (jax.random.key(0), jnp.asarray(frames))
    else:
        draw, arguments = pyro_importance.frame_log_weights(program, 2), (torch.tensor(frames),)
    with pytest.raises(UserError, match=words):
        draw({}, *arguments)


@pytest.mark.parametrize("backend", BACKENDS)
def test_supports_that_depend_on_a_latent_are_not_annealed(backend):
    host, dist, _ = HOSTS[backend]

    def model(frames):
        with host.plate("sequences", frames.shape[0]):
            s = host.sample("s", dist.Gamma(2.0, 1.0))
            z = host.sample("z", dist.Uniform(0.0 * s, s))
            host.sample("x", dist.Normal(z, 1.0), obs=frames[:, 0, 0, 0, 0])

    programs = {backend: Program(model, model)}
    with pytest.raises(UserError, match=r"no other latent.*site 'z' with a support that changes from draw to draw"):
        bracket(backend, programs, {}, FOUR_NUMBERS, Annealing("prior", num_temperatures=3))
    fixed = with_prior(backend, lambda dist: dist.Uniform(-1.0, 3.0), lambda dist: dist.Uniform(-1.0, 3.0))
    forward, _ = bracket(backend, fixed, {}, FOUR_NUMBERS, Annealing("prior", num_temperatures=3))
    assert np.isfinite(forward.log_weights).all()


def test_what_annealing_compiles_holds_no_weights(tiny):
    """As constants they would be copied into every compiled move. In NumPyro, which compiles."""
    programs, parameters, frames, _ = tiny
    with on_jax("cpu", "float64"):
        values, frames = jax.tree.map(jnp.asarray, parameters), jnp.asarray(frames)
        annealer = numpyro_annealing.Annealer(programs["numpyro"], values, Annealing())
        latents = annealer._draw_start(jax.random.key(0), frames)
        constants = jax.make_jaxpr(annealer._log_densities)(values, frames, latents).consts
    weights = {value.shape for name, value in values.items() if name.endswith("weight")}
    assert weights
    assert not weights & {np.shape(constant) for constant in constants}


def test_every_move_has_a_key_of_its_own(conjugate):
    """Across compiled calls too, in NumPyro, where noise is a function of the key."""
    oracle, programs, frames = conjugate
    seen = []
    with on_jax("cpu", "float64"):
        annealing = Annealing(num_temperatures=34, num_leapfrog_steps=1)
        parameters = jax.tree.map(jnp.asarray, oracle.parameters())
        annealer = numpyro_annealing.Annealer(programs["numpyro"], parameters, annealing)
        moves = annealer._move

        def recorded(parameters, frames, state, step_size, steps, **options):
            seen.append(jax.random.key_data(steps[0]))
            return moves(parameters, frames, state, step_size, steps, **options)

        annealer._move = recorded
        annealer.forward(jax.random.key(0), jnp.asarray(frames[:1]), forward_path(annealing))
    assert len(seen) > 1
    assert len(np.unique(np.concatenate(seen), axis=0)) == 32


@pytest.mark.parametrize(
    "wrong",
    [
        {"num_temperatures": 1},
        {"num_chains": 0},
        {"num_leapfrog_steps": 0},
        {"step_size": 0.0},
        {"target_acceptance": 1.0},
    ],
    ids=str,
)
def test_settings_that_make_no_path_are_refused(wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        check_annealing(Annealing(**wrong))


def test_paths():
    for schedule in ("linear", "sigmoid"):
        path = forward_path(Annealing(schedule=schedule, num_temperatures=9))
        assert np.cumsum(path.increments)[-1] == pytest.approx(1)
        np.testing.assert_allclose(np.cumsum(path.increments)[:-1], path.betas)
        assert (path.increments > 0).all()
        np.testing.assert_array_equal(path.reversed().betas, path.betas[::-1])
    even = forward_path(Annealing(schedule="linear", num_temperatures=5)).increments
    np.testing.assert_allclose(even, 0.25)
    assert logsumexp(np.log(even)) == pytest.approx(0)
    path = path._replace(step_sizes=np.arange(7.0))
    np.testing.assert_array_equal(path.reversed().step_sizes, path.step_sizes[::-1])


def test_temperatures_are_the_sigmoids_of_the_paper():
    """Of steepness 4 (arXiv 1611.04273), as dense at one end as at the other."""
    found, rising = inverse_temperatures("sigmoid", 9), expit(4 * np.linspace(-1, 1, 9))
    np.testing.assert_allclose(found, (rising - rising[0]) / (rising[-1] - rising[0]), atol=1e-14)
    np.testing.assert_allclose(found + found[::-1], 1)
