"""Draws from the guide and what the model makes of them."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from ppl_tvae.inference.pyro.tracing import OBSERVED, parameters_as, program_traces
from ppl_tvae.program import Program


def reconstruction(program: Program) -> Callable[[Mapping[str, Tensor], Tensor], Tensor]:
    """A function (parameters, frames) -> E[x | one draw of the latents from the guide]."""

    @torch.no_grad()
    def mean_frames(parameters: Mapping[str, Tensor], frames: Tensor) -> Tensor:
        with parameters_as(parameters):
            _, sites = program_traces(program, frames)
            return sites.nodes[OBSERVED]["fn"].mean

    return mean_frames
