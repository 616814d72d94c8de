"""Programs whose evidence is known: in closed form, or by quadrature. Written for both hosts."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as numpyro_dist
import pyro
import pyro.distributions as pyro_dist
import torch
from scipy.special import log_expit, logsumexp

from ppl_tvae.program import Program


class LinearGaussian(NamedTuple):
    """z ~ Normal(0, 1)^d, x | z ~ Normal(A z + b, noise^2), and the guide q(z | x) = Normal(G x + h, scale^2).

    frames: (batch, 1, 1, pixels, 1).
    """

    A: np.ndarray
    b: np.ndarray
    noise: float
    G: np.ndarray
    h: np.ndarray
    scale: np.ndarray

    def parameters(self):
        return {"G": self.G, "h": self.h, "scale": self.scale}

    def numpyro_program(self):
        A, b = self.A, self.b

        def model(frames):
            with numpyro.plate("sequences", frames.shape[0]):
                z = numpyro.sample("z", numpyro_dist.Normal(0, 1).expand([A.shape[1]]).to_event(1))
                mean = (z @ A.T + b).reshape(-1, *frames.shape[1:])
                numpyro.sample("x", numpyro_dist.Normal(mean, self.noise).to_event(4), obs=frames)

        def guide(frames):
            G, h = numpyro.param("G", jnp.asarray(self.G)), numpyro.param("h", jnp.asarray(self.h))
            scale = numpyro.param("scale", jnp.asarray(self.scale), constraint=numpyro_dist.constraints.positive)
            with numpyro.plate("sequences", frames.shape[0]):
                loc = frames.reshape(frames.shape[0], -1) @ G.T + h
                numpyro.sample("z", numpyro_dist.Normal(loc, scale).to_event(1))

        return Program(model, guide)

    def pyro_program(self):
        A, b = torch.tensor(self.A), torch.tensor(self.b)

        def model(frames):
            like = frames.new_zeros(A.shape[1])
            with pyro.plate("sequences", frames.shape[0]):
                z = pyro.sample("z", pyro_dist.Normal(like, 1.0).to_event(1))
                mean = (z @ A.to(frames.dtype).T + b.to(frames.dtype)).reshape(-1, *frames.shape[1:])
                pyro.sample("x", pyro_dist.Normal(mean, self.noise).to_event(4), obs=frames)

        def guide(frames):
            G, h = pyro.param("G", torch.tensor(self.G)), pyro.param("h", torch.tensor(self.h))
            scale = pyro.param("scale", torch.tensor(self.scale), constraint=pyro_dist.constraints.positive)
            with pyro.plate("sequences", frames.shape[0]):
                loc = frames.reshape(frames.shape[0], -1) @ G.T + h
                return pyro.sample("z", pyro_dist.Normal(loc, scale).to_event(1))

        return Program(model, guide)

    def frames(self, batch, rng):
        """Draws from the model."""
        z = rng.standard_normal((batch, self.A.shape[1]))
        x = z @ self.A.T + self.b + self.noise * rng.standard_normal((batch, len(self.b)))
        return x.reshape(batch, 1, 1, -1, 1)

    def log_evidence(self, frames):
        """log p(x), (batch,), exactly."""
        covariance = self.A @ self.A.T + self.noise**2 * np.eye(len(self.b))
        return _log_normal(frames.reshape(len(frames), -1) - self.b, covariance)

    def posterior(self, frames):
        """Mean (batch, d) and covariance (d, d) of z given x."""
        precision = np.eye(self.A.shape[1]) + self.A.T @ self.A / self.noise**2
        covariance = np.linalg.inv(precision)
        return (frames.reshape(len(frames), -1) - self.b) @ self.A @ covariance / self.noise**2, covariance

    def elbo(self, frames):
        """log p(x) - KL(q || p(z | x)), (batch,), exactly."""
        mean, covariance = self.posterior(frames)
        difference = frames.reshape(len(frames), -1) @ self.G.T + self.h - mean
        precision = np.linalg.inv(covariance)
        kl = 0.5 * (
            np.trace(precision @ np.diag(self.scale**2)) + np.einsum("bi,ij,bj->b", difference, precision, difference)
            - len(self.scale) + np.linalg.slogdet(covariance)[1] - 2 * np.log(self.scale).sum()
        )  # fmt: skip
        return self.log_evidence(frames) - kl


def linear_gaussian(rng, *, latents=3, pixels=6, exact=False):
    """Random A and b; the guide is off by a little, or is the exact posterior (A then has orthogonal columns)."""
    A = np.linalg.qr(rng.standard_normal((pixels, latents)))[0] if exact else rng.standard_normal((pixels, latents))
    b, noise = rng.standard_normal(pixels), 0.7
    covariance = np.linalg.inv(np.eye(latents) + A.T @ A / noise**2)
    G = covariance @ A.T / noise**2
    scale = np.sqrt(np.diag(covariance))
    if not exact:
        G, scale = G + 0.05 * rng.standard_normal(G.shape), 1.2 * scale
    return LinearGaussian(A, b, noise, G, -G @ b, scale)


def _log_normal(difference, covariance):
    solved = np.linalg.solve(covariance, difference.T).T
    log_det = np.linalg.slogdet(2 * np.pi * covariance)[1]
    return -0.5 * ((difference * solved).sum(axis=1) + log_det)


def tiny_tvae_log_evidence(parameters, frames, W, epsilon, nodes=40):
    """log p(x) of a one-frame, one-capsule, two-position TVAE with a Bernoulli likelihood, by Gauss-Hermite quadrature.

    Independent of the programs: written from the equations. parameters: flat names of a decoder without hidden
    layer; frames (batch, 1, height, width, channel), binary; W (2, 2). Latents (z1, z2, u1, u2) on a grid of nodes^4.
    """
    points, weights = np.polynomial.hermite_e.hermegauss(nodes)
    log_weights = np.log(weights / weights.sum())
    grid = np.stack(np.meshgrid(points, points, points, points, indexing="ij"), axis=-1).reshape(-1, 4)
    log_prior = sum(np.meshgrid(*[log_weights] * 4, indexing="ij")).reshape(-1)
    z, u = grid[:, :2], grid[:, 2:]
    t = (z + parameters["mu"]) / np.sqrt(u**2 @ W.T + epsilon)
    logits = t @ parameters["decoder.0.weight"].T + parameters["decoder.0.bias"]
    x = frames.reshape(len(frames), -1)
    log_likelihood = log_expit(logits) @ x.T + log_expit(-logits) @ (1 - x).T
    return logsumexp(log_prior[:, None] + log_likelihood, axis=0)
