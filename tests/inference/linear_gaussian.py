"""A program whose evidence, posterior and bounds are known exactly, written once for both hosts.

    a ~ Normal(0, 1)     b ~ Normal(coupling a, 1)     x ~ Normal(offset + loading (a, b), NOISE)
    guide:  a ~ Normal(gain_a . (x - offset), scale[0])
            b ~ Normal(gain_b . (x - offset) + link a, scale[1])

`offset` occurs in model and guide, and the guide's b depends on its a: both have to be right in an estimator.
"""

import jax
import jax.numpy as jnp
import numpy as np

from ppl_tvae.program import Program

NOISE = 0.7
NUM_FRAMES = 3


def program(host, exp, dist, *plate_size):
    """host: numpyro or pyro. plate_size: of a plate larger than the frames, whose scale must not count."""

    def plate(frames):
        if plate_size:
            return host.plate("sequences", *plate_size, subsample_size=frames.shape[0])
        return host.plate("sequences", frames.shape[0])

    def model(frames):
        coupling, loading, offset = (host.param(name) for name in ("coupling", "loading", "offset"))
        with plate(frames):
            a = host.sample("a", dist.Normal(0.0, 1.0))
            b = host.sample("b", dist.Normal(coupling * a, 1.0))
            mean = offset + a[..., None] * loading[0] + b[..., None] * loading[1]
            host.sample("x", dist.Normal(mean[..., None, None, None], NOISE).to_event(4), obs=frames)

    def guide(frames):
        offset, link, log_scale = (host.param(name) for name in ("offset", "guide.link", "guide.log_scale"))
        residual, scale = frames[:, :, 0, 0, 0] - offset, exp(log_scale)
        with plate(frames):
            a = host.sample("a", dist.Normal(residual @ host.param("guide.gain_a"), scale[0]))
            host.sample("b", dist.Normal(residual @ host.param("guide.gain_b") + link * a, scale[1]))

    return Program(model, guide)


def parameters_with_exact_guide():
    model = {
        "coupling": np.asarray(0.6),
        "loading": np.asarray([[0.8, -0.5, 0.3], [0.2, 0.9, -0.7]]),
        "offset": np.asarray([0.1, -0.2, 0.4]),
    }
    prior_covariance = _prior_covariance(model)
    loading = model["loading"].T
    covariance = np.linalg.inv(np.linalg.inv(prior_covariance) + loading.T @ loading / NOISE**2)
    gain = covariance @ loading.T / NOISE**2
    link = covariance[0, 1] / covariance[0, 0]
    conditional = covariance[1, 1] - link * covariance[0, 1]
    return model | {
        "guide.gain_a": gain[0],
        "guide.gain_b": gain[1] - link * gain[0],
        "guide.link": np.asarray(link),
        "guide.log_scale": 0.5 * np.log(np.asarray([covariance[0, 0], conditional])),
    }


def parameters(perturbation=0.2):
    """The guide is off by a little everywhere, differently in each component."""
    rng = np.random.default_rng(5)
    exact = parameters_with_exact_guide()
    shifts = {name: perturbation * rng.standard_normal(v.shape) for name, v in exact.items() if "guide" in name}
    return {name: value + shifts.get(name, 0.0) for name, value in exact.items()}


def observations(batch):
    return np.random.default_rng(6).normal(0.0, 1.2, (batch, NUM_FRAMES, 1, 1, 1))


def log_evidence(values, frames):
    """log p(x) of each sequence, (batch,), nats."""
    loading = values["loading"].T
    covariance = loading @ _prior_covariance(values) @ loading.T + NOISE**2 * np.eye(NUM_FRAMES)
    residual = frames[:, :, 0, 0, 0] - values["offset"]
    squares = np.einsum("bs,st,bt->b", residual, np.linalg.inv(covariance), residual)
    return -0.5 * (squares + np.linalg.slogdet(2 * np.pi * covariance)[1])


def expected_bound(values, frames, num_particles, alpha):
    """The expectation of the Renyi bound of one or two particles, (batch,), by Gauss-Hermite quadrature; JAX."""
    nodes, node_weights = np.polynomial.hermite_e.hermegauss(20)
    noise = jnp.asarray(np.stack(np.meshgrid(nodes, nodes), -1).reshape(-1, 2))
    weights = jnp.asarray(np.outer(node_weights, node_weights).reshape(-1) / node_weights.sum() ** 2)
    log_w = _log_weights(values, jnp.asarray(frames[:, :, 0, 0, 0]), noise)
    if num_particles == 1:
        return weights @ log_w
    power = (1 - alpha) * log_w
    pairs = (jnp.logaddexp(power[:, None], power[None]) - jnp.log(2)) / (1 - alpha)
    return jnp.einsum("i,j,ijb->b", weights, weights, pairs)


def _log_weights(values, x, noise):
    """(points, batch) at standard normal noise (points, 2)."""
    normal = jax.scipy.stats.norm.logpdf
    residual, scale = x - values["offset"], jnp.exp(values["guide.log_scale"])
    a = residual @ values["guide.gain_a"] + scale[0] * noise[:, :1]
    b = residual @ values["guide.gain_b"] + values["guide.link"] * a + scale[1] * noise[:, 1:]
    log_q = normal(noise[:, :1]) - jnp.log(scale[0]) + normal(noise[:, 1:]) - jnp.log(scale[1])
    mean = values["offset"] + a[..., None] * values["loading"][0] + b[..., None] * values["loading"][1]
    log_likelihood = normal(x, mean, NOISE).sum(-1)
    return normal(a) + normal(b, values["coupling"] * a) + log_likelihood - log_q


def _prior_covariance(values):
    c = values["coupling"]
    return np.asarray([[1.0, c], [c, 1.0 + c**2]])
