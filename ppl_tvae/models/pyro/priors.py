"""Priors of the latents: each a function (latent, frames) -> distribution with the latent's event shape.

frames is what the model was given; a prior reads their shape, never their values.
"""

import math
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor

from ppl_tvae.models.latent import Latent
from ppl_tvae.models.pyro.networks import encoder, lecun_normal
from ppl_tvae.models.pyro.spherical import HypersphericalUniform
from ppl_tvae.models.pyro.stable import StudentT

DEGREES_OF_FREEDOM = 5.0  # of student-t; where student-t-learned starts
COMPONENTS = 4  # of mixture
PSEUDO_FRAMES = 32  # of vamp


def normal(latent: Latent, frames: Tensor) -> dist.TorchDistribution:
    """Independent standard normals (the paper's, for z and u)."""
    return dist.Normal(torch.zeros(()), torch.ones(())).expand(latent.shape).to_event(3)


def laplace(latent: Latent, frames: Tensor) -> dist.TorchDistribution:
    """Independent Laplace of variance 1."""
    return dist.Laplace(torch.zeros(()), torch.full((), 0.5**0.5)).expand(latent.shape).to_event(3)


def student_t(latent: Latent, frames: Tensor) -> dist.TorchDistribution:
    """Independent Student-t of `DEGREES_OF_FREEDOM`, scaled to variance 1."""
    scale = ((DEGREES_OF_FREEDOM - 2) / DEGREES_OF_FREEDOM) ** 0.5
    cell = dist.StudentT(torch.full((), DEGREES_OF_FREEDOM), torch.zeros(()), torch.full((), scale))
    return cell.expand(latent.shape).to_event(3)


def student_t_learned(latent: Latent, frames: Tensor) -> dist.TorchDistribution:
    """Independent Student-t of scale 1 with learned degrees of freedom, one number for the latent."""
    name = f"prior.{latent.name}.degrees_of_freedom"
    nu = pyro.param(name, lambda: torch.tensor(DEGREES_OF_FREEDOM), constraint=constraints.positive)
    return StudentT(nu, torch.zeros(()), torch.ones(())).expand(latent.shape).to_event(3)


def mixture(latent: Latent, frames: Tensor) -> dist.TorchDistribution:
    """Each cell a mixture of `COMPONENTS` normals with learned weights, places and scales, one for all cells."""
    prefix = f"prior.{latent.name}"
    logits = pyro.param(f"{prefix}.logits", lambda: torch.zeros(COMPONENTS))
    loc = pyro.param(f"{prefix}.loc", lambda: torch.linspace(-1.0, 1.0, COMPONENTS))
    scale = pyro.param(f"{prefix}.scale", lambda: 0.7 * torch.ones(COMPONENTS), constraint=constraints.positive)
    cell = dist.MixtureSameFamily(dist.Categorical(logits=logits), dist.Normal(loc, scale))
    return cell.expand(latent.shape).to_event(3)


def vamp(latent: Latent, frames: Tensor) -> dist.TorchDistribution:
    """The latent of a frame is a mixture of the encoder's normals at `PSEUDO_FRAMES` learned frames.

    Tomczak & Welling 2018 (arXiv 1705.07120), with the mean-field encoder whichever the guide. Frames are independent.
    """
    size = math.prod(frames.shape[-3:])
    name = f"prior.{latent.name}.pseudo_frames"
    logits = pyro.param(name, lecun_normal(name, (PSEUDO_FRAMES, size)))
    pseudo = torch.sigmoid(logits).reshape(PSEUDO_FRAMES, 1, *frames.shape[-3:])
    loc, scale = encoder(latent.name, pseudo, latent.hidden, latent.shape)
    components = dist.Normal(loc[:, 0], scale[:, 0]).to_event(2)
    even = dist.Categorical(logits=torch.zeros(PSEUDO_FRAMES))
    return dist.MixtureSameFamily(even, components).expand(latent.shape[:1]).to_event(1)


def hyperspherical(latent: Latent, frames: Tensor) -> dist.TorchDistribution:
    """Each capsule uniform on the unit sphere of D dimensions (Davidson et al. 2018, arXiv 1804.00891)."""
    return HypersphericalUniform(latent.shape[2], latent.shape[:2]).to_event(2)


Prior = Callable[[Latent, Tensor], Any]
PRIORS: dict[str, Prior] = {
    "normal": normal,
    "laplace": laplace,
    "student-t": student_t,
    "student-t-learned": student_t_learned,
    "mixture": mixture,
    "vamp": vamp,
    "hyperspherical": hyperspherical,
}
