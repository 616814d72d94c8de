"""The two backends are one program: site by site, at the same parameters, latents and frames."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax.tree_util import tree_map
from numpyro.handlers import seed, substitute, trace
from numpyro.infer import TraceMeanField_ELBO as NumpyroMeanField
from pyro.infer import TraceMeanField_ELBO as PyroMeanField

from ppl_tvae.assembly import assemble
from ppl_tvae.inference.numpyro import objectives as numpyro_objectives
from ppl_tvae.inference.numpyro import tracing as numpyro_tracing
from ppl_tvae.inference.numpyro.device import on_device as on_jax
from ppl_tvae.inference.pyro import objectives as pyro_objectives
from ppl_tvae.inference.pyro import tracing as pyro_tracing
from ppl_tvae.inference.pyro.device import on_device as on_torch
from tests.small import EVERY_PROGRAM, EVERY_SWAP, random_latents, random_parameters, small_experiment, small_frames
from tests.weights import numpyro_log_weights_at, pyro_log_weights_at

TOLERANCE = {"float32": 1e-5, "float64": 1e-10}
PLACES_OF_TERMS = ("guide z", "guide u", "model z", "model u", "model x")


def numpyro_values(experiment, parameters, frames, latents, precision):
    with on_jax("cpu", precision):
        program = assemble(experiment, "numpyro")
        parameters, frames, latents = tree_map(lambda a: jnp.asarray(a, precision), (parameters, frames, latents))
        traces = numpyro_tracing.traces_at(program, parameters, frames, latents)
        values = {
            f"{kind} {name}": numpyro_tracing.log_prob(site)
            for kind, sites in zip(("guide", "model"), traces, strict=True)
            for name, site in sites.items()
            if site["type"] == "sample"
        }
        values["elbo"] = numpyro_objectives.elbo(*traces)
        values["log weight"] = numpyro_log_weights_at(program, parameters, frames, latents)
        values["t"] = traces[1]["t"]["value"]
        return {name: np.asarray(value) for name, value in values.items()}


def pyro_values(experiment, parameters, frames, latents, precision):
    with on_torch("cpu", precision), torch.no_grad():
        program = assemble(experiment, "pyro")
        dtype = getattr(torch, precision)
        parameters, frames, latents = tree_map(lambda a: torch.tensor(a, dtype=dtype), (parameters, frames, latents))
        with pyro_tracing.parameters_as(parameters):
            traces = pyro_tracing.traces_at(program, frames, latents)
            values = {
                f"{kind} {name}": pyro_tracing.log_prob(site)
                for kind, sites in zip(("guide", "model"), traces, strict=True)
                for name, site in (pyro_tracing.latent_sites(sites) | pyro_tracing.observed_sites(sites)).items()
            }
            values["elbo"] = pyro_objectives.elbo(*traces)
        values["log weight"] = pyro_log_weights_at(program, parameters, frames, latents)
        values["t"] = traces[1].nodes["t"]["value"]
        return {name: value.numpy() for name, value in values.items()}


@pytest.mark.parametrize("precision", ["float32", "float64"])
@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize(("model", "likelihood"), EVERY_PROGRAM)
def test_every_site_agrees(model, likelihood, batch, precision):
    rng = np.random.default_rng([batch, len(model), len(likelihood)])
    experiment = small_experiment(model, likelihood)
    parameters = random_parameters(experiment, rng)
    frames = small_frames(experiment, batch, rng)
    latents = random_latents(experiment, batch, rng)
    agree(experiment, parameters, frames, latents, precision)


@pytest.mark.parametrize("precision", ["float32", "float64"])
@pytest.mark.parametrize(("model", "guide", "prior"), EVERY_SWAP)
def test_every_guide_and_prior_agrees(model, guide, prior, precision):
    rng = np.random.default_rng([len(model), len(guide), len(prior)])
    experiment = small_experiment(model, guide=guide, prior=prior)
    parameters, latents = random_parameters(experiment, rng), random_latents(experiment, 3, rng)
    # torch knows KL(normal || Laplace) in closed form (right by quadrature); NumPyro takes the difference at the draw.
    own_ways = {"elbo"} if prior == "laplace" else set()
    agree(experiment, parameters, small_frames(experiment, 3, rng), latents, precision, own_ways)


@pytest.mark.parametrize(
    "settings",
    [
        {"mu_per": "capsule"},
        {"mu_per": "cell", "lattice_weights": "learned"},
        {"prior_z": "vamp", "prior_u": "laplace"},
    ],
)
def test_other_parts_agree(settings):
    rng = np.random.default_rng(7)
    experiment = small_experiment(**settings)
    parameters, latents = random_parameters(experiment, rng), random_latents(experiment, 3, rng)
    own_ways = {"elbo"} if "prior_u" in settings else set()
    agree(experiment, parameters, small_frames(experiment, 3, rng), latents, "float64", own_ways)


def agree(experiment, parameters, frames, latents, precision, own_ways=()):
    ours = numpyro_values(experiment, parameters, frames, latents, precision)
    theirs = pyro_values(experiment, parameters, frames, latents, precision)
    assert ours.keys() == theirs.keys()
    sites = {"guide z", "model z", "model x"} | (set() if experiment.model == "vae" else {"guide u", "model u"})
    assert sites <= ours.keys()
    # A log-probability is a sum of terms of both signs; what rounding can reach is relative to the terms, not to what
    # is left when they cancel. The largest site of the sequence stands for the size of the terms.
    terms = np.max([np.abs(value) for name, value in theirs.items() if name in PLACES_OF_TERMS], axis=0)
    for name in ours.keys() - set(own_ways):
        assert str(ours[name].dtype) == str(theirs[name].dtype) == precision
        assert ours[name].shape[0] == len(frames)
        scale = terms if ours[name].ndim == 1 else np.abs(theirs[name]) + 1
        assert (np.abs(ours[name] - theirs[name]) <= TOLERANCE[precision] * scale).all(), name


@pytest.mark.parametrize(("model", "likelihood"), EVERY_PROGRAM)
def test_elbo_is_the_hosts_mean_field_elbo(model, likelihood):
    """Ours is per sequence; the hosts' TraceMeanField_ELBO at the same noise is its sum over the batch."""
    rng = np.random.default_rng(0)
    experiment = small_experiment(model, likelihood)
    parameters, frames = random_parameters(experiment, rng), small_frames(experiment, 3, rng)
    with on_jax("cpu", "float64"):
        program = assemble(experiment, "numpyro")
        parameters_jax, frames_jax = tree_map(jnp.asarray, (parameters, frames))
        key = jax.random.key(1)
        host = -NumpyroMeanField().loss(key, parameters_jax, *program, frames_jax)
        _, key_guide = jax.random.split(key)  # as the host does: the model's first
        guide = trace(substitute(seed(program.guide, key_guide), data=parameters_jax)).get_trace(frames_jax)
        latents = {name: site["value"] for name, site in numpyro_tracing.latent_sites(guide).items()}
        own = numpyro_objectives.elbo(*numpyro_tracing.traces_at(program, parameters_jax, frames_jax, latents))
        np.testing.assert_allclose(own.sum(), host, rtol=1e-12)
    with on_torch("cpu", "float64"), torch.no_grad():
        program = assemble(experiment, "pyro")
        with pyro_tracing.parameters_as({name: torch.tensor(value) for name, value in parameters.items()}):
            torch.manual_seed(1)
            host = -PyroMeanField().loss(*program, torch.tensor(frames))
            torch.manual_seed(1)
            own = pyro_objectives.elbo(*pyro_tracing.program_traces(program, torch.tensor(frames)))
        np.testing.assert_allclose(own.sum(), host, rtol=1e-12)
