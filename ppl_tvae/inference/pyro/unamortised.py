"""The host's automatic guides, fitted to one sequence at a time while the model stays as it is.

How far the program's own guide is from the best of its family for a sequence is its amortisation gap (Cremer, Li &
Duvenaud 2018, arXiv 1801.03558). Automatic guides couple all that they see, so a fit never sees two sequences.
"""

from collections.abc import Mapping
from typing import Any

import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoLowRankMultivariateNormal, AutoNormal, init_to_value
from pyro.optim import ExponentialLR
from pyro.poutine import block
from torch import Tensor

from ppl_tvae.inference.pyro.tracing import (
    from_the_reals,
    latent_sites,
    latent_values,
    parameters_as,
    program_traces,
    replayed,
    traced,
)
from ppl_tvae.inference.unamortised import Unamortised, check_whole_plate
from ppl_tvae.program import Program

_GUIDES: dict[str, Any] = {"auto-normal": AutoNormal, "auto-low-rank": AutoLowRankMultivariateNormal}


def unamortised_log_weights(
    program: Program, parameters: Mapping[str, Tensor], frames: Tensor, num_particles: int, settings: Unamortised
) -> Tensor:
    """log weights (num_particles, batch), nats per sequence, with a guide fitted to each; frames (batch, ...).

    A fit begins at a draw from the program's guide. Raises UserError for latents without unconstrained coordinates,
    and for a plate larger than the batch.
    """
    each = [_of_one(program, parameters, one[None], num_particles, settings) for one in frames]
    return torch.stack(each, dim=1)


def _of_one(
    program: Program, parameters: Mapping[str, Tensor], frames: Tensor, count: int, settings: Unamortised
) -> Tensor:
    with parameters_as(parameters):
        with torch.no_grad():
            drawn, modelled = program_traces(program, frames)
        for name, site in latent_sites(modelled).items():
            from_the_reals(name, site["fn"].support)
            check_whole_plate(name, site["scale"])
        start = latent_values(drawn)
        # The model's parameters are hidden, so that the fit leaves them alone.
        model = block(program.model, hide_types=["param"])
        guide = _GUIDES[settings.name](model, init_loc_fn=init_to_value(values=start))
        adam = {"optimizer": torch.optim.Adam, "optim_args": {"lr": settings.learning_rate}, "gamma": settings.decay}
        optimizer = ExponentialLR(adam)
        fit = SVI(model, guide, optimizer, Trace_ELBO())
        for _ in range(settings.steps):
            fit.step(frames)
            optimizer.step()
        with torch.no_grad():
            return torch.stack([_log_weight(model, guide, frames) for _ in range(count)])


def _log_weight(model: Any, guide: Any, frames: Tensor) -> Tensor:
    guide_trace = traced(guide, frames)
    model_trace = replayed(model, frames, guide_trace)
    return torch.as_tensor(model_trace.log_prob_sum() - guide_trace.log_prob_sum())
