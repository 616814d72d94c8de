"""What one draw from a guide or a prior gives, the same for both backends."""

from collections.abc import Callable
from typing import Any, NamedTuple

from ppl_tvae.errors import UserError

DRAWS_OF_A_MEAN = 64  # where a host has no mean of a likelihood: an eighth of a pixel's deviation is left in pictures


class Draw(NamedTuple):
    """One draw for each sequence of a batch.

    sites: values of the latents and of what the model computes from them (its deterministic sites, where their first
    dimension is the batch), by name, each (batch, ...). mean: E[x | latents], of `DRAWS_OF_A_MEAN` draws where the host
    has none, and frames: x ~ p(x | latents), shaped as the frames; pixels that a mask leaves out of the likelihood are
    as they were given. log_likelihood: log p(x | latents) at the observed frames, and log_weights: log p(x, latents) -
    log q(latents | x), (batch,), nats per sequence. log_prior and log_guide: log p(latent) and log q(latent | x) of
    each latent by name, given those before it, (batch,), nats. A draw from the prior has no weights, nothing of the
    guide, and the log-likelihood of its own frames.
    """

    sites: dict[str, Any]
    mean: Any
    frames: Any
    log_likelihood: Any
    log_weights: Any | None
    log_prior: dict[str, Any]
    log_guide: dict[str, Any]


def settled(draw: Callable[[Any], Draw], frames: Any) -> Draw:
    """A draw from the joint distribution of latents and frames, given draws beside any frames (batch, S, ...).

    draw(given) -> a draw from p(latents | given) and p(x | latents, given), with the same noise at each call. It is
    drawn again beside its own frames until these stay as they are: at once where the given ones do not matter, and
    after t rounds up to frame t where each frame depends on those before it. Raises UserError after S + 1 rounds.
    """
    rounds = frames.shape[1] + 1
    for _ in range(rounds):
        drawn = draw(frames)
        if bool((drawn.frames == frames).all()):
            return drawn
        if bool((drawn.frames != drawn.frames).any()):
            raise UserError("expected frames in numbers to be simulated, found nan; look at what was trained")
        frames = drawn.frames
    raise UserError(
        f"expected frames that depend on latents and earlier frames alone, from which sequences can be simulated, "
        f"found frames that still change when drawn beside themselves for {rounds} rounds; use what simulates "
        f"nothing, such as elbo, iwae and ais"
    )
