"""Training objectives: their values are the bounds, their gradients those of the bounds' expectations."""

import gc
from contextlib import ExitStack
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as numpyro_dist
import pyro
import pyro.distributions as pyro_dist
import pytest
import torch
import torch.utils.checkpoint
from scipy import stats

from ppl_tvae.assembly import assemble, data_of
from ppl_tvae.catalogue import GUIDES, OBJECTIVES
from ppl_tvae.errors import UserError
from ppl_tvae.inference.numpyro import tracing as numpyro_tracing
from ppl_tvae.inference.numpyro.device import on_device as on_jax
from ppl_tvae.inference.numpyro.objectives import OBJECTIVES as NUMPYRO_OBJECTIVES
from ppl_tvae.inference.numpyro.objectives import elbo as numpyro_elbo
from ppl_tvae.inference.numpyro.objectives import renyi_bound as numpyro_renyi_bound
from ppl_tvae.inference.objective import Objective
from ppl_tvae.inference.pyro import tracing as pyro_tracing
from ppl_tvae.inference.pyro.device import on_device as on_torch
from ppl_tvae.inference.pyro.objectives import OBJECTIVES as PYRO_OBJECTIVES
from ppl_tvae.inference.pyro.objectives import elbo as pyro_elbo
from ppl_tvae.inference.pyro.objectives import is_vectorised
from ppl_tvae.inference.pyro.objectives import renyi_bound as pyro_renyi_bound
from ppl_tvae.inference.pyro.particles import of_particles
from ppl_tvae.program import Program
from ppl_tvae.trainers import trainer_of
from tests.conftest import STANDARD_ERRORS
from tests.inference import linear_gaussian
from tests.small import random_parameters, small_experiment, small_frames
from tests.small_runs import small_training

BACKENDS = ("numpyro", "pyro")
HOSTS = {"numpyro": (numpyro, jnp.exp, numpyro_dist), "pyro": (pyro, torch.exp, pyro_dist)}
FOUR_PARTICLES = {
    "elbo": Objective("elbo", 4, kl_warmup_steps=8),
    "iwae": Objective("iwae", 4),
    "iwae-dreg": Objective("iwae-dreg", 4),
    "renyi": Objective("renyi", 4, alpha=0.3),
}
# Small programs are compiled in less time than they would gain by it.
UNOPTIMISED = {"xla_backend_optimization_level": 0}


@cache
def compiled(objective, program):
    def values_and_gradient(parameters, key, frames, step):
        def values(parameters):
            bound = NUMPYRO_OBJECTIVES[objective.name]
            return jnp.broadcast_to(bound(objective, program, parameters, key, frames, step), frames.shape[:1])

        bounds, pull_back = jax.vjp(values, parameters)
        return bounds, pull_back(jnp.ones_like(bounds) / len(bounds))[0]

    return jax.jit(values_and_gradient, compiler_options=UNOPTIMISED)


def measured(objective, program, parameters, frames, seed=0, step=2):
    """The objective of each sequence, (batch,), and the gradient of their mean by parameter. NumPyro, float64."""
    with on_jax("cpu", "float64"):
        parameters = {name: jnp.asarray(value) for name, value in parameters.items()}
        arguments = jax.random.key(seed), jnp.asarray(frames), jnp.asarray(step)
        results = compiled(objective, program)(parameters, *arguments)
        return jax.tree.map(np.asarray, results)


def measured_in_pyro(objective, program, parameters, frames, seed=0, step=2, vectorised=False):
    """The same in Pyro."""
    with on_torch("cpu", "float64"), pyro_tracing.parameters_as({n: torch.tensor(v) for n, v in parameters.items()}):
        torch.manual_seed(seed)
        step = torch.full((), step)
        values = PYRO_OBJECTIVES[objective.name](objective, program, torch.tensor(frames), step, vectorised)
        values.mean().backward()
        leaves = dict(pyro.get_param_store().named_parameters())
        gradient = {n: np.zeros(v.shape) if v.grad is None else v.grad.numpy() for n, v in leaves.items()}
        return values.detach().numpy(), gradient


MEASURED = {"numpyro": measured, "pyro": measured_in_pyro}


@cache
def conjugate(backend, *plate_size):
    return linear_gaussian.program(*HOSTS[backend], *plate_size)


def copies(count):
    """One observation many times: sequences of a batch are independent draws."""
    return np.repeat(linear_gaussian.observations(1), count, axis=0)


def exact(alpha, num_particles):
    """The expected bound of that observation, and its gradient by parameter."""
    with on_jax("cpu", "float64"):
        parameters = {name: jnp.asarray(value) for name, value in linear_gaussian.parameters().items()}

        def bound(values):
            return linear_gaussian.expected_bound(values, linear_gaussian.observations(1), num_particles, alpha)[0]

        return jax.tree.map(np.asarray, jax.value_and_grad(bound)(parameters))


EXPECTATIONS = [
    (Objective("elbo"), exact(1.0, 1)),
    (Objective("elbo", num_particles=3), exact(1.0, 1)),
    (Objective("renyi", num_particles=3, alpha=1.0), exact(1.0, 1)),
    (Objective("renyi", num_particles=2, alpha=0.4), exact(0.4, 2)),
    (Objective("iwae", num_particles=2), exact(0.0, 2)),
    (Objective("iwae-dreg", num_particles=1), exact(0.0, 1)),
    (Objective("iwae-dreg", num_particles=2), exact(0.0, 2)),
]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("objective", "expected"), EXPECTATIONS, ids=lambda case: str(case)[:60])
def test_values_and_gradients_are_unbiased(backend, objective, expected):
    """Against quadrature; `offset` occurs in model and guide, and the guide's b depends on its a."""
    runs = [
        MEASURED[backend](objective, conjugate(backend), linear_gaussian.parameters(), copies(400), seed)
        for seed in range(40)
    ]
    found = {"bound": np.asarray([values.mean() for values, _ in runs])}
    found |= {name: np.asarray([gradient[name] for _, gradient in runs]) for name in runs[0][1]}
    for name, wanted in {"bound": expected[0], **expected[1]}.items():
        error = found[name].std(0, ddof=1) / np.sqrt(len(runs))
        assert (np.abs(found[name].mean(0) - wanted) <= STANDARD_ERRORS * error + 1e-9).all(), name


@pytest.mark.parametrize("plate_size", [(), (100_000,)], ids=["plain plate", "subsampled plate"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_bounds_rise_to_the_evidence_and_stay_below(backend, plate_size):
    """A plate larger than the frames has a scale, which the hosts apply to log weights; a bound must not see it."""
    truth = linear_gaussian.log_evidence(linear_gaussian.parameters(), linear_gaussian.observations(1))[0]
    ladder = [Objective("elbo"), *(Objective("iwae", num_particles) for num_particles in (2, 20))]
    program = conjugate(backend, *plate_size)
    draws = [MEASURED[backend](step, program, linear_gaussian.parameters(), copies(3000), 1)[0] for step in ladder]
    means = np.asarray([draw.mean() for draw in draws])
    errors = np.asarray([draw.std() for draw in draws]) / np.sqrt(3000)
    for index, (_, (wanted, _)) in {0: EXPECTATIONS[0], 1: EXPECTATIONS[4]}.items():
        assert abs(means[index] - wanted) <= STANDARD_ERRORS * errors[index] + 1e-9
    assert (np.diff(means) > STANDARD_ERRORS * np.hypot(errors[1:], errors[:-1])).all()
    assert (means < truth + STANDARD_ERRORS * errors).all()
    assert truth - means[-1] < 0.25 * (truth - means[0])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["iwae", "iwae-dreg", "renyi"])
def test_equal_weights_give_that_weight(backend, name):
    """With the exact posterior as guide every weight is p(x); then DReG alone has no noise for the guide."""
    parameters, frames = linear_gaussian.parameters_with_exact_guide(), linear_gaussian.observations(2)
    values, gradient = MEASURED[backend](FOUR_PARTICLES[name], conjugate(backend), parameters, frames)
    np.testing.assert_allclose(values, linear_gaussian.log_evidence(parameters, frames), rtol=1e-12)
    size_in_guide = max(np.abs(value).max() for site, value in gradient.items() if "guide" in site)
    assert size_in_guide < 1e-12 if name == "iwae-dreg" else size_in_guide > 1e-2
    assert np.abs(gradient["loading"]).max() > 1e-2


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_exact_guide_in_another_order_has_no_kl_part(backend):
    """The prior of b depends on a, which the guide draws after it: an analytic divergence would be of other numbers."""
    host, _, dist = HOSTS[backend]

    def model(frames):
        x = frames[:, 0, 0, 0, 0]
        with host.plate("sequences", frames.shape[0]):
            a = host.sample("a", dist.Normal(0.0 * x, 1.0))
            host.sample("b", dist.Normal(2 * a, 1.0))
            host.sample("x", dist.Normal(0.0 * a, 1.0), obs=x)

    def guide(frames):
        with host.plate("sequences", frames.shape[0]):
            b = host.sample("b", dist.Normal(host.param("loc") + 0 * frames[:, 0, 0, 0, 0], 5**0.5))
            host.sample("a", dist.Normal(0.4 * b, 0.2**0.5))

    frames = linear_gaussian.observations(2)
    program, parameters = Program(model, guide), {"loc": np.asarray(0.0)}
    values, _ = MEASURED[backend](Objective("elbo", 4), program, parameters, frames)
    np.testing.assert_allclose(values, stats.norm.logpdf(frames[:, 0, 0, 0, 0]), rtol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_signal_to_noise_of_the_guides_gradient(backend):
    """It falls as K**-0.5 for plain IWAE (Rainforth et al. 2018, arXiv 1802.04537), and does not for DReG.

    So the theory says of many particles, or of a guide near the optimum, where few are many.
    """
    parameters, slopes = linear_gaussian.parameters(perturbation=0.05), {}
    counts = np.asarray([1, 50])
    for name in ("iwae", "iwae-dreg"):
        ratios = []
        for num_particles in counts:
            objective = Objective(name, int(num_particles))
            runs = [MEASURED[backend](objective, conjugate(backend), parameters, copies(50), s)[1] for s in range(40)]
            guides = [np.concatenate([np.ravel(v) for n, v in run.items() if "guide" in n]) for run in runs]
            ratios.append(np.abs(np.mean(guides, axis=0)) / np.std(guides, axis=0))
        slopes[name] = np.polyfit(np.log(counts), np.log(np.median(ratios, axis=1)), 1)[0]
    assert slopes["iwae"] < -0.35, slopes
    assert slopes["iwae-dreg"] > 0.15, slopes


@pytest.mark.parametrize("backend", BACKENDS)
def test_renyi_contains_iwae(backend):
    arguments = conjugate(backend), linear_gaussian.parameters(), linear_gaussian.observations(2)
    iwae, gradient = MEASURED[backend](FOUR_PARTICLES["iwae"], *arguments)
    renyi, same_gradient = MEASURED[backend](Objective("renyi", 4, alpha=0.0), *arguments)
    np.testing.assert_array_equal(renyi, iwae)
    np.testing.assert_array_equal(same_gradient["loading"], gradient["loading"])
    np.testing.assert_allclose(MEASURED[backend](FOUR_PARTICLES["iwae-dreg"], *arguments)[0], iwae, rtol=1e-14)


@pytest.mark.parametrize("backend", BACKENDS)
def test_renyi_bound_falls_with_alpha_to_the_elbo_and_beyond(backend):
    orders, draws = (-1.0, 0.0, 0.5, 1.0, 3.0), np.random.default_rng(0).normal(-1e4, 30.0, (6, 4))

    def bound(log_weights, alpha):
        with on_jax("cpu", "float64"):
            if backend == "pyro":
                return pyro_renyi_bound(torch.tensor(log_weights), alpha).numpy()
            return np.asarray(jax.jit(partial(numpyro_renyi_bound, alpha=alpha))(jnp.asarray(log_weights)))

    assert (np.diff([bound(draws, alpha) for alpha in orders], axis=0) < 0).all()
    np.testing.assert_allclose(bound(draws, 1 - 1e-8), draws.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(bound(draws, 1.0), draws.mean(axis=0), rtol=1e-14)
    for alpha in orders:
        np.testing.assert_allclose(bound(np.full((4, 2), -1e4), alpha), -1e4)


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_sequence_does_not_see_its_neighbours(backend, name):
    """The same noise, another neighbour: value and gradient of the first sequence stay."""
    objective = FOUR_PARTICLES[name]
    frames = linear_gaussian.observations(3)
    beside = [np.stack([frames[0], other]) for other in (frames[1], 3 + frames[2])]
    runs = [MEASURED[backend](objective, conjugate(backend), linear_gaussian.parameters(), pair) for pair in beside]
    assert runs[0][0][0] == runs[1][0][0]
    assert runs[0][0][1] != runs[1][0][1]
    alike = [np.stack([frames[0], frames[0]]), np.stack([frames[0], frames[1]]), np.stack([frames[1], frames[0]])]
    alike.append(alike[0] * 0 + frames[1])
    first, mixed, swapped, second = (
        MEASURED[backend](objective, conjugate(backend), linear_gaussian.parameters(), pair)[1] for pair in alike
    )
    for site, value in first.items():  # the gradient of the mean is the mean of those of each by itself
        np.testing.assert_allclose(value + second[site], mixed[site] + swapped[site], rtol=1e-10, atol=1e-12)


class Noise:
    """Standard normal draws in the order of the guide's sites, given to Pyro's Normal instead of its own."""

    def __init__(self, program, parameters, frames, num_particles):
        with on_jax("cpu", "float64"):
            parameters = {name: jnp.asarray(value) for name, value in parameters.items()}
            keys = jax.random.split(jax.random.key(0), num_particles)

            @partial(jax.jit, compiler_options=UNOPTIMISED)
            def draws(keys):
                sites = [
                    numpyro_tracing.latent_sites(numpyro_tracing.program_traces(program, parameters, key, frames)[0])
                    for key in keys
                ]
                return [jnp.concatenate([_noise(site[name]) for site in sites]) for name in sites[0]]

            self.draws = [np.asarray(draw) for draw in draws(keys)]

    def __call__(self, shape, dtype, device):
        return torch.tensor(self.draws.pop(0), dtype=dtype).reshape(shape)


def _noise(site):
    normal = getattr(site["fn"], "base_dist", site["fn"])
    return (site["value"] - normal.loc) / normal.scale


@pytest.mark.parametrize("case", ["linear-gaussian", "tvae"])
@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_backends_agree(name, case, monkeypatch):
    """Values and gradients at the same latents."""
    objective = FOUR_PARTICLES[name]
    if case == "tvae":
        rng, experiment = np.random.default_rng(3), small_experiment()
        parameters, frames = random_parameters(experiment, rng), small_frames(experiment, 2, rng)
        programs = [assemble(experiment, backend) for backend in BACKENDS]
    else:
        parameters, frames = linear_gaussian.parameters(), linear_gaussian.observations(2)
        programs = [conjugate(backend) for backend in BACKENDS]
    ours = measured(objective, programs[0], parameters, frames)
    noise = Noise(programs[0], parameters, frames, objective.num_particles)
    monkeypatch.setattr("torch.distributions.normal._standard_normal", noise)
    theirs = measured_in_pyro(objective, programs[1], parameters, frames)
    assert not noise.draws
    np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-10)
    assert ours[1].keys() == theirs[1].keys()
    for site, gradient in ours[1].items():
        np.testing.assert_allclose(
            gradient, theirs[1][site], rtol=1e-7, atol=1e-9 * np.abs(gradient).max(), err_msg=site
        )


@pytest.mark.parametrize("guide", ["linear-gaussian", *GUIDES])
@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_a_guide_that_runs_once_for_all_particles(name, guide):
    """Values and gradients are those of one that runs for each: from the same seed both draw the same numbers."""
    if guide == "linear-gaussian":
        program, parameters, frames = conjugate("pyro"), linear_gaussian.parameters(), linear_gaussian.observations(2)
    else:
        rng, experiment = np.random.default_rng(3), small_experiment(guide=guide)
        parameters, frames = random_parameters(experiment, rng), small_frames(experiment, 2, rng)
        program = assemble(experiment, "pyro")
    seen = []
    counted = program._replace(guide=lambda frames: seen.append(len(frames)) or program.guide(frames))
    runs = [
        measured_in_pyro(FOUR_PARTICLES[name], counted, parameters, frames, vectorised=vectorised)
        for vectorised in (False, True)
    ]
    assert set(seen) == {8, 2}
    assert len(np.unique(runs[0][0])) == 2
    np.testing.assert_allclose(runs[1][0], runs[0][0], rtol=1e-10)
    for site, gradient in runs[0][1].items():
        np.testing.assert_allclose(
            runs[1][1][site], gradient, rtol=1e-7, atol=1e-9 * np.abs(gradient).max(), err_msg=site
        )


def waiting():
    """The guide asks for one value, where vmap has one for each particle."""

    def guide(frames):
        with pyro.plate("sequences", frames.shape[0]):
            z = pyro.sample("z", pyro_dist.Normal(frames[:, 0, 0, 0, 0], pyro.param("scale")))
        assert float(z.detach().sum()) < 1e6

    return of_one_latent(guide)


def checkpointed():
    """The guide goes on to what has no gradient under vmap, though it has a value."""

    def guide(frames):
        with pyro.plate("sequences", frames.shape[0]):
            z = pyro.sample("z", pyro_dist.Normal(frames[:, 0, 0, 0, 0], 1.0))
            loc = torch.utils.checkpoint.checkpoint(lambda z: pyro.param("scale") * z, z, use_reentrant=False)
            pyro.sample("y", pyro_dist.Normal(loc, 1.0))

    def model(frames):
        with pyro.plate("sequences", frames.shape[0]):
            z, y = (pyro.sample(name, pyro_dist.Normal(0.0, 1.0)) for name in "zy")
            pyro.sample("x", pyro_dist.Normal(z + y, 1.0), obs=frames[:, 0, 0, 0, 0])

    return Program(model, guide)


def sharing():
    """The model takes from the guide what that has computed, for as many sequences as the guide has seen."""
    shared = []

    def guide(frames):
        shared[:] = [pyro.param("scale") * frames[:, 0, 0, 0, 0]]
        with pyro.plate("sequences", frames.shape[0]):
            pyro.sample("z", pyro_dist.Normal(shared[0], 1.0))

    return of_one_latent(guide, lambda z: z + shared[0])


class NormalInPlace(pyro_dist.Normal):
    """It goes on with the tensor that it draws into, of which vmap has no draws."""

    def rsample(self, sample_shape=()):
        noise = torch.empty(self._extended_shape(sample_shape))
        noise.normal_()
        return self.loc + self.scale * noise

    def expand(self, batch_shape, _instance=None):
        return NormalInPlace(self.loc.expand(batch_shape), self.scale.expand(batch_shape))


def in_place():
    def guide(frames):
        with pyro.plate("sequences", frames.shape[0]):
            pyro.sample("z", NormalInPlace(frames[:, 0, 0, 0, 0], pyro.param("scale").expand(frames.shape[0])))

    return of_one_latent(guide)


def of_one_latent(guide, loc=lambda z: z):
    def model(frames):
        with pyro.plate("sequences", frames.shape[0]):
            z = pyro.sample("z", pyro_dist.Normal(0.0, 1.0))
            pyro.sample("x", pyro_dist.Normal(loc(z), 1.0), obs=frames[:, 0, 0, 0, 0])

    return Program(model, guide)


@pytest.mark.parametrize("program", [waiting, checkpointed, sharing, in_place])
@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_guides_that_cannot_run_once_for_all_particles_run_for_each(name, program):
    program_name, program, frames = program.__name__, program(), torch.tensor(linear_gaussian.observations(4))
    with on_torch("cpu", "float64"), pyro_tracing.parameters_as({"scale": torch.tensor(0.5, dtype=torch.float64)}):
        before = torch.get_rng_state()
        together = (name, program_name) == ("elbo", "sharing")  # whose model runs with the guide, particle by particle
        assert is_vectorised(FOUR_PARTICLES[name], program, frames) == together
        torch.testing.assert_close(torch.get_rng_state(), before, rtol=0, atol=0)
        bounds = PYRO_OBJECTIVES[name](FOUR_PARTICLES[name], program, frames, torch.zeros(()))
        bounds.sum().backward()
        assert torch.isfinite(bounds).all()


def test_which_objectives_run_a_guide_once():
    frames, tensors = torch.tensor(linear_gaussian.observations(2)), {"shift": 0.3, "gain": 0.8, "log_scale": 0.1}
    tensors = {n: torch.as_tensor(v).double() for n, v in (linear_gaussian.parameters() | tensors).items()}
    with on_torch("cpu", "float64"), pyro_tracing.parameters_as(tensors):
        assert all(is_vectorised(FOUR_PARTICLES[name], conjugate("pyro"), frames) for name in OBJECTIVES)
        assert not is_vectorised(Objective("iwae"), conjugate("pyro"), frames)
        assert not is_vectorised(FOUR_PARTICLES["iwae"], nested_plates("pyro", "inside"), frames[:, :2])


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_a_step_leaves_no_tensors_behind(name):
    """Nothing that the next step does not use: a hook that held its own graph would keep all of it."""
    program, parameters = conjugate("pyro"), linear_gaussian.parameters()
    counts = []
    for _ in range(4):
        measured_in_pyro(FOUR_PARTICLES[name], program, parameters, linear_gaussian.observations(2), vectorised=True)
        gc.collect()
        counts.append(sum(issubclass(type(each), torch.Tensor) for each in gc.get_objects()))
    assert len(set(counts[1:])) == 1


@pytest.mark.parametrize("num_particles", [1, 3])
def test_training_runs_such_a_guide_once(num_particles, tmp_path, monkeypatch):
    asked, iwae = [], PYRO_OBJECTIVES["iwae"]

    def bound(objective, program, frames, step, vectorised):
        asked.append(vectorised)
        return iwae(objective, program, frames, step, vectorised)

    monkeypatch.setitem(PYRO_OBJECTIVES, "iwae", bound)
    settings = {"objective": "iwae", "num_particles": num_particles, "device": "cpu"}
    experiment = small_training(tmp_path, "pyro", **settings).resolved()
    data = data_of(experiment)
    with trainer_of(experiment, data) as trainer:
        losses = trainer.advance(data.train_plans(0, 0, 2, experiment.batch_size))
    assert np.isfinite(losses).all()
    assert asked[-2:] == 2 * [num_particles > 1]


@pytest.mark.parametrize(
    ("drawn", "expected"),
    [
        (lambda: pyro_dist.Laplace(torch.zeros(4000), 1.0), stats.laplace()),  # in place, between bounds of its own
        (lambda: pyro_dist.Uniform(torch.full((4000,), -1.0), 3.0), stats.uniform(-1, 4)),
        (lambda: pyro_dist.Normal(torch.zeros(4000), 2.0), stats.norm(0, 2)),
    ],
    ids=["laplace", "uniform", "normal"],
)
def test_draws_of_particles_are_of_their_distributions(drawn, expected):
    torch.manual_seed(0)
    draws = of_particles(lambda: drawn().rsample(), 3).numpy()
    assert draws.shape == (3, 4000)
    assert stats.kstest(draws.ravel(), expected.cdf).pvalue > 1e-5
    assert len(np.unique(draws)) > 11_000  # each particle's are its own


def nested_plates(backend, layout):
    """A latent of two parts: as an event, or in a plate outside or inside of the sequences."""
    host, exp, dist = HOSTS[backend]

    def plates(frames):
        if layout == "event":
            return (host.plate("sequences", frames.shape[0]),)
        inner, outer = (-1, -2) if layout == "inside" else (-2, -1)
        return host.plate("parts", 2, dim=inner), host.plate("sequences", frames.shape[0], dim=outer)

    def site(plates, name, distribution, **observed):
        with ExitStack() as stack:
            for plate in plates:
                stack.enter_context(plate)
            return host.sample(name, distribution.to_event(1) if layout == "event" else distribution, **observed)

    def model(frames):
        x, within = arranged(frames), plates(frames)
        z = site(within, "z", dist.Normal(0.0 * x, 1.0))
        site(within, "x", dist.Normal(z + host.param("shift"), 1.0), obs=x)

    def guide(frames):
        loc = host.param("gain") * arranged(frames)
        site(plates(frames), "z", dist.Normal(loc, exp(host.param("log_scale"))))

    def arranged(frames):
        x = frames[:, :, 0, 0, 0]
        return x.T if layout == "outside" else x

    return Program(model, guide)


@pytest.mark.parametrize("backend", BACKENDS)
def test_weights_are_per_sequence_in_nested_plates(backend):
    parameters = {"shift": np.asarray(0.3), "gain": np.asarray(0.8), "log_scale": np.asarray(0.1)}
    frames, objective = linear_gaussian.observations(3)[:, :2], Objective("iwae-dreg", num_particles=3)
    runs = {
        layout: MEASURED[backend](objective, nested_plates(backend, layout), parameters, frames)
        for layout in ("event", "inside")
    }
    np.testing.assert_allclose(runs["event"][0], runs["inside"][0], rtol=1e-12)
    for site, gradient in runs["event"][1].items():
        np.testing.assert_allclose(gradient, runs["inside"][1][site], rtol=1e-10)
    # Plates the other way round draw in another order, so there it is only that the shapes fit.
    values, gradient = MEASURED[backend](objective, nested_plates(backend, "outside"), parameters, frames)
    assert values.shape == (3,)
    assert gradient["gain"] != 0


def test_parameters_within_modules_are_constant_too_where_they_must_be():
    """Pyro's modules keep their parameters themselves; DReG of such a guide is that of one with plain parameters."""
    net = torch.nn.Linear(3, 1, dtype=torch.float64)

    def model(frames):
        with pyro.plate("sequences", frames.shape[0]):
            z = pyro.sample("z", pyro_dist.Normal(torch.zeros(1), 1.0).to_event(1))
            pyro.sample("x", pyro_dist.Normal(z + torch.zeros(3), 1.0).to_event(1), obs=frames[:, :, 0, 0, 0])

    def with_module(frames):
        encoder = pyro.module("guide", net)
        with pyro.plate("sequences", frames.shape[0]):
            pyro.sample("z", pyro_dist.Normal(encoder(frames[:, :, 0, 0, 0]), 0.5).to_event(1))

    def with_parameters(frames):
        weight, bias = pyro.param("weight", net.weight.detach().clone()), pyro.param("bias", net.bias.detach().clone())
        with pyro.plate("sequences", frames.shape[0]):
            loc = frames[:, :, 0, 0, 0] @ weight.T + bias
            pyro.sample("z", pyro_dist.Normal(loc, 0.5).to_event(1))

    gradients = []
    for guide in (with_module, with_parameters):
        with on_torch("cpu", "float64"), pyro.get_param_store().scope():
            torch.manual_seed(0)
            frames = torch.tensor(linear_gaussian.observations(3))
            values = PYRO_OBJECTIVES["iwae-dreg"](Objective("iwae-dreg", 4), Program(model, guide), frames, 0)
            values.sum().backward()
            gradients.append([leaf.grad for _, leaf in pyro.get_param_store().named_parameters()])
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs)


def with_mistake(backend, mistake):
    host, exp, dist = HOSTS[backend]
    zeros = jnp.zeros if backend == "numpyro" else torch.zeros

    def latent(plate, loc):
        if mistake == "global latent":
            host.sample("theta", dist.Normal(loc, 1.0))
        if mistake == "no plate":
            return host.sample("z", dist.Normal(zeros(plate.size) + loc, 1.0).to_event(1))
        with plate:
            if mistake == "not reparameterised":
                return host.sample("z", dist.Bernoulli(exp(loc - 1)))
            return host.sample("z", dist.Normal(loc, 1.0))

    def model(frames):
        plate = host.plate("sequences", frames.shape[0])
        z = latent(plate, 0.0 * host.param("loc"))
        with plate:
            host.sample("x", dist.Normal(z, 1.0), obs=frames[:, 0, 0, 0, 0])

    def guide(frames):
        latent(host.plate("sequences", frames.shape[0]), host.param("loc"))

    return Program(model, guide)


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("mistake", "words"),
    [
        ("global latent", "site 'theta' inside the plate 'sequences', found it outside"),
        ("no plate", "site 'z' inside the plate 'sequences', found it outside"),
        ("not reparameterised", "expected a reparameterised distribution at the guide's site 'z', found Bernoulli"),
    ],
)
def test_what_cannot_be_trained_is_refused(name, backend, mistake, words):
    """A global latent would make one bound of the whole batch; the hosts' RenyiELBO does so silently."""
    arguments = with_mistake(backend, mistake), {"loc": np.asarray(0.2)}, linear_gaussian.observations(3)
    with pytest.raises(UserError, match=words):
        MEASURED[backend](FOUR_PARTICLES[name], *arguments)


def divergences(backend):
    """Pairs of guide and prior of which a host has another number for their KL divergence."""
    _, _, dist = HOSTS[backend]
    xp = {"numpyro": jnp, "pyro": torch}[backend]
    one, normal = xp.ones(()), dist.Normal(xp.zeros(3), 1.0)
    masks = [xp.asarray([True, True, False]), xp.asarray([True, False, True])]
    pairs = {"masked": [dist.Normal(xp.ones(3), 0.5).mask(masks[0]), normal.mask(masks[1])]}
    if backend == "numpyro":
        pairs["kumaraswamy"] = [dist.Kumaraswamy(2 * one, 2 * one), dist.Beta(2 * one, 2 * one)]
    else:
        pairs["folded"] = [dist.FoldedDistribution(dist.Normal(s * one, one)) for s in (1, -1)]
        pairs["continuous Bernoulli"] = [dist.ContinuousBernoulli(logits=one), dist.Uniform(0 * one, one)]
    return {name: [each.to_event(len(each.batch_shape)) for each in pair] for name, pair in pairs.items()}


@pytest.mark.parametrize(
    ("backend", "name"),
    [
        *[("numpyro", name) for name in ("masked", "kumaraswamy")],
        *[("pyro", name) for name in ("masked", "folded", "continuous Bernoulli")],
    ],
)
def test_divergences_that_a_host_has_wrong_are_sampled(backend, name):
    """The ELBO of one draw is then its log weight."""
    host, _, _ = HOSTS[backend]
    q, p = divergences(backend)[name]

    def part(distribution):
        def draw(frames):
            with host.plate("sequences", frames.shape[0]):
                host.sample("z", distribution)

        return draw

    frames = np.zeros((2, 1, 1, 1, 1))
    if backend == "numpyro":
        traces = numpyro_tracing.program_traces(Program(part(p), part(q)), {}, jax.random.key(0), jnp.asarray(frames))
        elbo, log_joint = numpyro_elbo, numpyro_tracing.log_joint
    else:
        traces = pyro_tracing.program_traces(Program(part(p), part(q)), torch.tensor(frames))
        elbo, log_joint = pyro_elbo, pyro_tracing.log_joint
    np.testing.assert_allclose(elbo(*traces), log_joint(traces[1]) - log_joint(traces[0]), rtol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["iwae", "iwae-dreg", "renyi"])
def test_weights_of_zero_take_nothing_from_a_bound(name, backend):
    """Draws outside of the prior's support: of all weights p(x) / q(z) or zero; the mean is p(x)."""
    host, _, dist = HOSTS[backend]

    def model(frames):
        with host.plate("sequences", frames.shape[0]):
            z = host.sample("z", dist.Uniform(-1.0, 1.0, **unchecked))
            host.sample("x", dist.Normal(0.0 * z, 1.0), obs=frames[:, 0, 0, 0, 0])

    def guide(frames):
        with host.plate("sequences", frames.shape[0]):
            host.sample("z", dist.Normal(host.param("loc"), 0.6))

    unchecked = {"validate_args": False} if backend == "pyro" else {}
    objective, frames = FOUR_PARTICLES[name]._replace(num_particles=64, alpha=0.0), np.zeros((40, 1, 1, 1, 1))
    values, gradient = MEASURED[backend](objective, Program(model, guide), {"loc": np.asarray(0.0)}, frames)
    assert np.isfinite(values).all()
    assert np.isfinite(gradient["loc"]).all()
    ratio = np.exp(values + 0.5 * np.log(2 * np.pi))
    assert abs(ratio.mean() - 1) < STANDARD_ERRORS * ratio.std() / np.sqrt(40)


@pytest.mark.parametrize("backend", BACKENDS)
def test_masked_sequences_have_no_elbo(backend):
    """Nor a KL part; of the others it is what it was: log N(x; 0, 1) - KL(N(0.5, 1) || N(0, 1))."""
    host, _, dist = HOSTS[backend]
    mask = numpyro.handlers.mask if backend == "numpyro" else pyro.poutine.mask
    x = np.array([-1.0, 0.0, 0.5, 2.0])

    def model(frames):
        x = frames[:, 0, 0, 0, 0]
        with host.plate("sequences", frames.shape[0]), mask(mask=x < 0.25):
            z = host.sample("z", dist.Normal(0.0, 1.0))
            host.sample("x", dist.Normal(0.0 * z, 1.0), obs=x)

    def guide(frames):
        with host.plate("sequences", frames.shape[0]), mask(mask=frames[:, 0, 0, 0, 0] < 0.25):
            host.sample("z", dist.Normal(host.param("loc"), 1.0))

    objective, parameters = Objective("elbo", 2000), {"loc": np.asarray(0.5)}
    values, _ = MEASURED[backend](objective, Program(model, guide), parameters, x.reshape(4, 1, 1, 1, 1))
    np.testing.assert_array_equal(values[2:], 0.0)
    expected = -0.5 * x[:2] ** 2 - 0.5 * np.log(2 * np.pi) - 0.5 * 0.5**2
    # Where it is sampled, log q - log p at a draw has the standard deviation 0.5.
    np.testing.assert_allclose(values[:2], expected, atol=STANDARD_ERRORS * 0.5 / np.sqrt(2000))


@pytest.mark.parametrize("backend", BACKENDS)
def test_kl_warm_up_weights_the_kl_part_and_ends_as_the_elbo(backend):
    warm, plain = FOUR_PARTICLES["elbo"], Objective("elbo", 4)
    arguments = conjugate(backend), linear_gaussian.parameters(), linear_gaussian.observations(2)
    at = {step: MEASURED[backend](warm, *arguments, step=step) for step in (0, 4, 8, 9)}
    values, gradient = MEASURED[backend](plain, *arguments)
    for step in (8, 9):
        np.testing.assert_array_equal(at[step][0], values)
        np.testing.assert_array_equal(at[step][1]["guide.gain_a"], gradient["guide.gain_a"])
    np.testing.assert_allclose(at[4][0], (at[0][0] + values) / 2, rtol=1e-12)
    assert (at[0][0] > values).all()
    assert at[0][1]["coupling"] == 0.0  # of the prior alone
    np.testing.assert_allclose(at[0][1]["loading"], gradient["loading"], rtol=1e-12)  # of the likelihood alone


@pytest.mark.parametrize("backend", BACKENDS)
def test_warm_up_where_all_of_the_kl_part_is_sampled(backend):
    """Model and guide draw a and b in different orders."""
    host, _, dist = HOSTS[backend]

    def model(frames):
        with host.plate("sequences", frames.shape[0]):
            a, b = (host.sample(name, dist.Normal(0.0, 1.0)) for name in "ab")
            host.sample("x", dist.Normal(a + b, 1.0), obs=frames[:, 0, 0, 0, 0])

    def guide(frames):
        with host.plate("sequences", frames.shape[0]):
            for name in "ba":
                host.sample(name, dist.Normal(host.param("loc") + 0 * frames[:, 0, 0, 0, 0], 0.5))

    arguments = Program(model, guide), {"loc": np.asarray(0.5)}, linear_gaussian.observations(2)
    none, half, whole = (MEASURED[backend](FOUR_PARTICLES["elbo"], *arguments, step=step)[0] for step in (0, 4, 8))
    assert (np.abs(none - whole) > 1e-3).all()
    np.testing.assert_allclose(half, (none + whole) / 2, rtol=1e-12)
