"""Looking at a program before it is trained: what is wrong with it, and a table of its sites."""

from dataclasses import replace
from importlib import import_module
from typing import Any

from ppl_tvae.assembly import assemble
from ppl_tvae.config import Experiment
from ppl_tvae.data import Plan
from ppl_tvae.training import data_of, naming_the_program, renderer


def sites(experiment: Experiment) -> list[dict[str, Any]]:
    """A row for each site of the guide and of the model, after all that training checks of a program first.

    Keys: part, site, kind (latent, observed, deterministic, parameter), distribution, batch_shape, event_shape (of a
    parameter and of what is deterministic: its shape). The program runs on two sequences of the experiment's data.
    Raises UserError with what is wrong.
    """
    data = data_of(experiment)
    resolved = replace(experiment, num_timesteps=data.num_timesteps, transforms=data.transforms).resolved()
    checks = import_module(f"ppl_tvae.inference.{resolved.backend}.checks")
    device = import_module(f"ppl_tvae.inference.{resolved.backend}.device")
    with device.on_device(resolved.device, resolved.precision):
        program = assemble(resolved, resolved.backend)
        plan = Plan(*(field[0] for field in data.train_plans(resolved.seed, 0, 1, 2)))
        frames = renderer(resolved)(device.to_device(data.tables), device.to_device(plan))
        with naming_the_program(resolved):
            checks.check_program(program, frames)
            return checks.site_table(program, frames)
