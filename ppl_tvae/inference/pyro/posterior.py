"""Draws from guide and prior, what the model makes of them, and what it makes of a site that is set by hand."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor

from ppl_tvae.errors import UserError
from ppl_tvae.inference.draw import DRAWS_OF_A_MEAN, Draw, settled
from ppl_tvae.inference.pyro.device import forked
from ppl_tvae.inference.pyro.tracing import (
    Trace,
    deterministic_sites,
    draw_observed,
    latent_sites,
    log_joint,
    log_prob,
    parameters_as,
    program_traces,
    traced,
)
from ppl_tvae.inference.sites import Site
from ppl_tvae.program import OBSERVED, Program

Parameters = Mapping[str, Tensor]


def posterior_draw(program: Program, computed: Sequence[str]) -> Callable[[Parameters, Tensor], Draw]:
    """A function (parameters, frames) -> a draw from the guide.

    computed: the deterministic sites to keep, `computed_sites`.
    """

    @torch.no_grad()
    def draw(parameters: Parameters, frames: Tensor) -> Draw:
        with parameters_as(parameters):
            guide_trace, model_trace = program_traces(program, frames)
            log_weights = log_joint(model_trace) - log_joint(guide_trace)
            log_guide = {name: log_prob(site) for name, site in latent_sites(guide_trace).items()}
            return _draw(model_trace, computed)._replace(log_weights=log_weights, log_guide=log_guide)

    return draw


def prior_draw(program: Program, computed: Sequence[str]) -> Callable[[Parameters, Tensor], Draw]:
    """A function (parameters, frames) -> a draw from the model.

    computed: as of `posterior_draw`. frames give the shape, and what a mask leaves out. Raises UserError where no
    frames can be simulated (`settled`).
    """

    @torch.no_grad()
    def beside(parameters: Parameters, noise: int, frames: Tensor) -> Draw:
        with parameters_as(parameters), forked():
            torch.manual_seed(noise)
            return _draw(traced(program.model, frames), computed)

    def draw(parameters: Parameters, frames: Tensor) -> Draw:
        noise = int(torch.randint(2**62, ()))  # the next of the stream, for all rounds
        return settled(partial(beside, parameters, noise), frames)

    return draw


def decoding(program: Program, site: str) -> Callable[[Parameters, Tensor, Tensor], Tensor]:
    """A function (parameters, values, frames) -> E[x | the model's site has these values].

    values: (batch, ...) in place of what the model computes or draws at the site; frames: of their shape. What x
    depends on beside the site is drawn from the prior. Raises UserError where the model has no such site.
    """

    @torch.no_grad()
    def decode(parameters: Parameters, values: Tensor, frames: Tensor) -> Tensor:
        with parameters_as(parameters), _set_by_hand(site, values):
            sites = traced(program.model, frames)
        if site not in deterministic_sites(sites) | latent_sites(sites):
            raise UserError(
                f"expected a site '{site}' in the model, from which frames can be decoded, found none; register it "
                f'with pyro.deterministic("{site}", ...)'
            )
        return _mean(sites.nodes[OBSERVED])

    return decode


def _mean(site: Site) -> Tensor:
    """E[x | latents]; of a distribution of which the host has no mean, the average of draws."""
    try:
        return site["fn"].mean
    except NotImplementedError:
        return torch.mean(site["fn"].sample((DRAWS_OF_A_MEAN,)), dim=0)


def _draw(model_trace: Trace, computed: Sequence[str]) -> Draw:
    observed = model_trace.nodes[OBSERVED]
    return Draw(
        {name: model_trace.nodes[name]["value"] for name in (*latent_sites(model_trace), *computed)},
        _mean(observed),
        draw_observed(observed),
        log_prob(observed),
        None,
        {name: log_prob(site) for name, site in latent_sites(model_trace).items()},
        {},
    )


class _set_by_hand(Messenger):
    """A latent or deterministic site has the given value."""

    def __init__(self, site: str, value: Tensor) -> None:
        super().__init__()
        self._site, self._value = site, value

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] == self._site and (msg["infer"].get("_deterministic") or not msg["is_observed"]):
            msg["value"] = self._value
