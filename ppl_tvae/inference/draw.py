"""What one draw from a guide or a prior gives, the same for both backends."""

from typing import Any, NamedTuple


class Draw(NamedTuple):
    """One draw for each sequence of a batch.

    sites: values of the latents and of what the model computes from them (its deterministic sites, where their first
    dimension is the batch), by name, each (batch, ...). mean: E[x | latents], and frames: x ~ p(x | latents), shaped as
    the frames. log_likelihood: log p(x | latents) at the observed frames, and log_weights: log p(x, latents) -
    log q(latents | x), (batch,), nats per sequence. log_prior: log p(latent) of each latent by name, given those before
    it, (batch,), nats. A draw from the prior has no weights, and the log-likelihood of its own frames.
    """

    sites: dict[str, Any]
    mean: Any
    frames: Any
    log_likelihood: Any
    log_weights: Any | None
    log_prior: dict[str, Any]
