"""Guides against what their definitions say: an explicit covariance, a Jacobian, what a frame's posterior may see."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpyro.handlers import seed, substitute, trace
from scipy import stats

from ppl_tvae.assembly import assemble, lattice_of
from ppl_tvae.inference.numpyro.device import on_device as on_jax
from ppl_tvae.models.autoregressive import masks
from ppl_tvae.models.numpyro.guides import MOST_CONCENTRATED
from tests.small import random_parameters, small_experiment, small_frames


@pytest.fixture
def double():
    with on_jax("cpu", "float64"):
        yield


def posterior(guide, frames, name="u", model="tvae", **settings):
    """The distribution of a site of the guide, at random parameters; NumPyro's, the parity test holds Pyro's to it."""
    experiment = small_experiment(model, guide=guide, **settings)
    site = site_of(experiment, random_parameters(experiment, np.random.default_rng(1)), frames, name)
    return site["fn"], site["value"]


def site_of(experiment, parameters, frames, name="u"):
    guide = substitute(assemble(experiment, "numpyro").guide, jax.tree.map(jnp.asarray, parameters))
    return trace(seed(guide, jax.random.key(0))).get_trace(jnp.asarray(frames))[name]


def frames_of(experiment, batch=2):
    return small_frames(experiment, batch, np.random.default_rng(0))


def test_low_rank_has_the_density_of_its_covariance(double):
    fn, value = posterior("low-rank", frames_of(small_experiment()))
    normal = fn.base_dist
    covariance = np.einsum("...dr,...er->...de", normal.cov_factor, normal.cov_factor)
    covariance += np.asarray(normal.cov_diag)[..., None] * np.eye(value.shape[-1])
    expected = np.zeros(len(value))
    for index in np.ndindex(*value.shape[:-1]):
        each = stats.multivariate_normal(np.asarray(normal.loc)[index], covariance[index])
        expected[index[0]] += each.logpdf(np.asarray(value)[index])
    np.testing.assert_allclose(fn.log_prob(value), expected, rtol=1e-10)
    assert np.abs(covariance[0, 0, 0] - np.diag(np.diag(covariance[0, 0, 0]))).max() > 1e-3


def flow(fn, x):
    for step in fn.transforms:
        x = step(x)
    return x


def test_iaf_has_the_density_of_its_jacobian(double):
    """log q(y) = log N(x) - log |det dy/dx|, the whole Jacobian by automatic differentiation."""
    fn, value = posterior("iaf", frames_of(small_experiment(), batch=1))
    assert len(fn.transforms) == 2
    x = value
    for step in reversed(fn.transforms):
        x = step.inv(x)
    np.testing.assert_allclose(flow(fn, x), value, rtol=1e-9, atol=1e-9)
    jacobian = jax.jacfwd(lambda flat: flow(fn, flat.reshape(x.shape)).reshape(-1))(x.reshape(-1))
    expected = fn.base_dist.log_prob(x) - jnp.linalg.slogdet(jacobian)[1]
    np.testing.assert_allclose(fn.log_prob(value), expected, rtol=1e-9)
    assert jnp.abs(jacobian - jnp.diag(jnp.diag(jacobian))).max() > 1e-3


def test_flows_alternate_and_see_the_frames(double):
    """A single order would leave half of the Jacobian empty; flows of two frames differ apart from their base."""
    one, other = (posterior("iaf", frames)[0] for frames in np.split(frames_of(small_experiment()), 2))
    x = jnp.asarray(np.random.default_rng(2).standard_normal(one.batch_shape + one.event_shape))
    jacobian = jax.jacfwd(lambda cell: flow(one, x.at[0, 0, 0].set(cell))[0, 0, 0])(x[0, 0, 0])
    assert np.abs(np.triu(jacobian, 1)).max() > 1e-3
    assert np.abs(np.tril(jacobian, -1)).max() > 1e-3
    assert np.abs(flow(one, x) - flow(other, x)).max() > 1e-3


@pytest.mark.parametrize("reverse", [False, True])
def test_masks_let_an_output_see_only_what_comes_before(reverse):
    into, out = masks(5, 20, reverse)
    seen = (out @ into).reshape(2, 5, 5) > 0
    before = np.tril(np.ones((5, 5)), -1) > 0
    np.testing.assert_array_equal(seen[0], before.T if reverse else before)
    np.testing.assert_array_equal(seen[1], seen[0])


def test_smoother_sees_the_frames_that_share_variance_and_no_others(double):
    """Time is circular: with a window of two of six, frame 0 sees frames 5, 0 and 1."""
    settings = {"num_timesteps": 6, "temporal_window": 2, "capsule_dim": 6, "hidden": (32, 32)}
    experiment = small_experiment(**settings)
    frames = frames_of(experiment, batch=1)

    def seen_by(guide):
        before = posterior(guide, frames, **settings)[0].base_dist.loc
        changed = []
        for other in range(6):
            disturbed = frames.copy()
            disturbed[:, other] = 1 - disturbed[:, other]
            moved = np.abs(posterior(guide, disturbed, **settings)[0].base_dist.loc - before).max(axis=(0, 2, 3))
            changed.append(moved > 1e-9)
        return np.asarray(changed).T  # (frame, other)

    apart = (np.arange(6)[None, :] - np.arange(6)[:, None]) % 6
    np.testing.assert_array_equal(seen_by("smoother"), np.isin(apart, lattice_of(experiment).time_offsets))
    assert lattice_of(experiment).time_offsets == (0, 1, 5)
    np.testing.assert_array_equal(seen_by("mean-field"), apart == 0)


@pytest.mark.parametrize(("guide", "added"), [("smoother", "correction"), ("iaf", "flow"), ("low-rank", "factor")])
def test_without_what_it_adds_a_guide_is_mean_field(double, guide, added):
    experiment = small_experiment(guide=guide)
    frames, parameters = frames_of(experiment), random_parameters(experiment, np.random.default_rng(1))
    parameters = {name: value * (f".{added}" not in name) for name, value in parameters.items()}
    ours, theirs = (site_of(each, parameters, frames)["fn"] for each in (experiment, small_experiment()))
    values = jnp.asarray(np.random.default_rng(2).standard_normal((2, 4, 2, 5)))
    np.testing.assert_allclose(ours.log_prob(values), theirs.log_prob(values), rtol=1e-9)


def test_components_are_at_most_e_times_as_wide_or_narrow(double):
    """As the mean field beside them, however large the parameters of the components are."""
    experiment = small_experiment(guide="mixture")
    frames, parameters = frames_of(experiment), random_parameters(experiment, np.random.default_rng(1))
    parameters = {name: value * (1000 if ".components." in name else 1) for name, value in parameters.items()}
    mixture, normal = (site_of(each, parameters, frames)["fn"].base_dist for each in (experiment, small_experiment()))
    ratio = mixture.component_distribution.base_dist.scale / normal.scale[..., None, :]
    assert 2.5 < ratio.max() <= np.e * (1 + 1e-9)
    assert 1 / 2.5 > ratio.min() >= (1 - 1e-9) / np.e


def test_concentration_is_the_mean_precision_and_saturates(double):
    experiment = small_experiment(prior="hyperspherical")
    frames, parameters = frames_of(experiment), random_parameters(experiment, np.random.default_rng(1))
    ours, normal = (site_of(each, parameters, frames)["fn"].base_dist for each in (experiment, small_experiment()))
    precision = np.mean(np.asarray(normal.scale) ** -2.0, axis=-1)
    np.testing.assert_allclose(ours.concentration, 1 / (1 / precision + 1 / MOST_CONCENTRATED), rtol=1e-9)
