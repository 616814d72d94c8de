"""Topographic VAEs as Pyro and NumPyro programs, compared by likelihoods that can be trusted.

    run = ppl_tvae.train(ppl_tvae.Experiment(data="digits", steps=500), "runs/first")
    run = ppl_tvae.resume("runs/first", steps=1000)
    records = ppl_tvae.evaluate(ppl_tvae.open_run("runs/first"))

Importing this loads neither torch nor jax; training or evaluating loads the one that is asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ppl_tvae.assembly import assemble as assemble
    from ppl_tvae.comparison import compare as compare
    from ppl_tvae.config import Experiment as Experiment
    from ppl_tvae.diagnosis import diagnose as diagnose
    from ppl_tvae.errors import Diverged as Diverged
    from ppl_tvae.errors import Interrupted as Interrupted
    from ppl_tvae.errors import UserError as UserError
    from ppl_tvae.evaluation import evaluate as evaluate
    from ppl_tvae.figures import draw_figures as draw_figures
    from ppl_tvae.inference.annealing import Annealing as Annealing
    from ppl_tvae.inference.mcmc import MCMC as MCMC
    from ppl_tvae.inference.unamortised import Unamortised as Unamortised
    from ppl_tvae.own_training import OwnTraining as OwnTraining
    from ppl_tvae.posterior import to_datatree as to_datatree
    from ppl_tvae.program import Program as Program
    from ppl_tvae.report import write_report as write_report
    from ppl_tvae.reproduction import reproduce as reproduce
    from ppl_tvae.runs import Run as Run
    from ppl_tvae.runs import open_run as open_run
    from ppl_tvae.seeds import train_seeds as train_seeds
    from ppl_tvae.training import resume as resume
    from ppl_tvae.training import train as train

_HOMES = {
    "assemble": "assembly",
    "Experiment": "config",
    "diagnose": "diagnosis",
    "OwnTraining": "own_training",
    "to_datatree": "posterior",
    "UserError": "errors",
    "Diverged": "errors",
    "Interrupted": "errors",
    "evaluate": "evaluation",
    "draw_figures": "figures",
    "compare": "comparison",
    "Annealing": "inference.annealing",
    "MCMC": "inference.mcmc",
    "Unamortised": "inference.unamortised",
    "Program": "program",
    "Run": "runs",
    "write_report": "report",
    "reproduce": "reproduction",
    "open_run": "runs",
    "resume": "training",
    "train": "training",
    "train_seeds": "seeds",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'ppl_tvae' has no attribute '{name}'")
    return getattr(import_module(f"ppl_tvae.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
