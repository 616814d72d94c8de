"""Small programs with random parameters, the same in both backends."""

import numpy as np
import pyro
import torch

from ppl_tvae.assembly import assemble
from ppl_tvae.catalogue import GUIDES, LIKELIHOODS, MODELS, PRIORS
from ppl_tvae.config import Experiment
from ppl_tvae.inference.pyro.tracing import program_traces

FRAME = (4, 5, 3)
POSITIVE = (".scale", ".degrees_of_freedom", "lattice.weight")


def small_experiment(model="tvae", likelihood="bernoulli", **settings):
    shape = {"num_capsules": 1, "capsule_dim": 25} if model == "torus" else {"num_capsules": 2, "capsule_dim": 5}
    shape |= {} if model == "torus" else {"num_timesteps": 4}
    shape |= {"temporal_window": 3} if model in ("tvae", "bubble") else {}
    return Experiment(model=model, likelihood=likelihood, **({"hidden": (7, 6)} | shape | settings)).resolved()


def small_frames(experiment, batch, rng):
    frames = rng.random((batch, experiment.num_timesteps, *FRAME))
    return (frames > 0.5).astype(np.float64) if experiment.likelihood == "bernoulli" else frames


def random_parameters(experiment, rng):
    """Positive random values for the scale, normal ones for the rest: not what a run starts from, but any point."""
    program = assemble(experiment, "pyro")
    frames = torch.zeros(1, experiment.num_timesteps, *FRAME)
    with pyro.get_param_store().scope() as store, torch.no_grad():
        program_traces(program, frames)
    shapes = {name: tuple(value.shape) for name, value in store["params"].items()}
    values = {name: 0.4 * rng.standard_normal(shape) for name, shape in shapes.items()}
    return {name: np.exp(value) if name.endswith(POSITIVE) else value for name, value in values.items()}


def random_latents(experiment, batch, rng):
    shape = (batch, experiment.num_timesteps, experiment.num_capsules, experiment.capsule_dim)
    names = ("z",) if experiment.model == "vae" else ("z", "u")
    latents = {name: rng.standard_normal(shape) for name in names}
    lengths = {name: np.linalg.norm(value, axis=-1, keepdims=True) for name, value in latents.items()}
    spherical = {name for name, prior in experiment.priors.items() if prior == "hyperspherical"}
    return {name: value / lengths[name] if name in spherical else value for name, value in latents.items()}


EVERY_PROGRAM = [(model, likelihood) for model in MODELS for likelihood in LIKELIHOODS]
EVERY_SWAP = [  # every guide with the paper's prior, every prior with its guide
    (model, *swap)
    for model in ("tvae", "vae")
    for swap in [
        *((guide, "normal") for guide in GUIDES),
        *(("mean-field", prior) for prior in PRIORS if prior != "normal"),
    ]
]
