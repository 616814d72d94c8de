"""What can be written on the command line: every command with its options, and nothing that they do."""

import argparse
from dataclasses import Field, fields
from pathlib import Path
from typing import Any

from ppl_tvae.config import Experiment, setting_type
from ppl_tvae.experiments import EXPERIMENTS
from ppl_tvae.models import catalogue

EXIT_BAD_INPUT = 2

# What decides which program is put together, and which frames it sees.
_OF_A_PROGRAM = (
    "backend", "guide", "prior", "prior_z", "prior_u", "likelihood", "data", "data_dir", "transforms", "num_timesteps",
    "num_capsules", "capsule_dim", "hidden", "temporal_window", "spatial_width", "lattice", "lattice_weights", "mu",
    "mu_per", "epsilon", "precision",
)  # fmt: skip
# What may be another than the paper's; the table says so.
_OF_A_REPRODUCTION = ("backend", "data", "data_dir", "likelihood", "steps", "device")


def command_parser() -> argparse.ArgumentParser:
    """The parser of `ppl-tvae`; the name of the command lands in `command`."""
    parser = _Parser(prog="ppl-tvae", description="Topographic VAEs as Pyro and NumPyro programs.")
    commands = parser.add_subparsers(required=True, dest="command", metavar="COMMAND")
    train = _command(commands, "train", "train a program into a new run directory, or go on with one")
    for setting in fields(Experiment):
        _add_setting(train, setting)
    train.add_argument("--out", type=Path, metavar="RUN", help="the run directory (runs/MODEL-BACKEND)")
    train.add_argument("--config", type=Path, metavar="FILE.toml", help="start from these settings")
    train.add_argument(
        "--seeds", type=int, metavar="N", help="this seed and the N - 1 after it, each its own RUN-seedN"
    )
    train.add_argument("--resume", action="store_true", help="go on with the run in --out from its last checkpoint")

    new = _command(commands, "new", "write a named model as a program file of your own, to edit")
    new.add_argument("model", metavar="MODEL")
    new.add_argument("path", type=Path, metavar="PATH.py")
    new.add_argument("--backend", default="numpyro", help="numpyro or pyro (numpyro)")

    check = _command(commands, "check", "say what is wrong with a program, or print its sites and their shapes")
    check.add_argument("model", metavar="MODEL|PATH.py")
    check.add_argument("--graph", type=Path, metavar="FILE", help="draw the model: .dot, or a picture with Graphviz")
    for setting in fields(Experiment):
        if setting.name in _OF_A_PROGRAM:
            _add_setting(check, setting)

    evaluate = _command(commands, "evaluate", "estimate log p(x) of held-out sequences")
    evaluate.add_argument("directory", type=Path, metavar="RUN")
    evaluate.add_argument("--estimators", type=_list_of(str), default=("elbo", "iwae"), metavar="NAME,...")
    evaluate.add_argument("--particles", type=_list_of(int), default=(1, 10, 100), metavar="K,...", help="K of IWAE")
    known = ", ".join(catalogue.AUTO_GUIDES)
    evaluate.add_argument("--guide", metavar="NAME", help=f"fitted to each sequence, not the run's own: {known}")
    evaluate.add_argument("--guide-steps", type=int, metavar="N", help="of Adam, to fit it to one sequence (500)")
    evaluate.add_argument("--guide-learning-rate", type=float, metavar="X", help="of Adam, at the start (0.01)")
    evaluate.add_argument("--start", help="ais, sandwich: where chains begin, prior or guide (guide)")
    evaluate.add_argument("--temperatures", dest="num_temperatures", type=int, metavar="T", help="of ais (200)")
    evaluate.add_argument(
        "--temperature-schedule", dest="schedule", help="ais, sandwich: their spacing, linear or sigmoid (sigmoid)"
    )
    evaluate.add_argument("--leapfrog-steps", dest="num_leapfrog_steps", type=int, metavar="L", help="per move (10)")
    evaluate.add_argument("--chains", dest="num_chains", type=int, metavar="M", help="per sequence (1)")
    evaluate.add_argument("--split", default="test", help="train, validation or test")
    _add_transforms(evaluate)
    evaluate.add_argument("--max-sequences", type=int, default=200, metavar="N", help="the first N (200)")
    evaluate.add_argument("--seed", type=int, default=0, help="seed of the draws from the guide")
    _add_place(evaluate)

    compare = _command(commands, "compare", "estimates of several runs side by side, and paired differences")
    compare.add_argument("directories", type=Path, nargs="+", metavar="RUN")
    compare.add_argument("--markdown", action="store_true", help="print a Markdown table")
    compare.add_argument("--csv", action="store_true", help="print comma-separated values")

    diagnose = _command(
        commands, "diagnose", "draws as posterior.nc (ArviZ), calibration, predictive checks, equivariance"
    )
    diagnose.add_argument("directory", type=Path, metavar="RUN")
    diagnose.add_argument("--sequences", type=int, default=8, metavar="N", help="sequences in posterior.nc (8)")
    diagnose.add_argument("--draws", type=int, default=100, metavar="N", help="draws for each of them (100)")
    diagnose.add_argument(
        "--max-sequences", type=int, default=200, metavar="N", help="of the metrics: the first N (200)"
    )
    diagnose.add_argument("--simulated", type=int, default=64, metavar="N", help="sequences, for calibration (64)")
    diagnose.add_argument("--mcmc", metavar="KERNEL", help="compare the guide with chains of nuts or hmc; slow (none)")
    diagnose.add_argument("--mcmc-sequences", type=int, metavar="N", help="of those in posterior.nc, the first N (2)")
    diagnose.add_argument("--mcmc-warmup", type=int, metavar="N", help="iterations that adapt a chain (200)")
    diagnose.add_argument("--mcmc-draws", type=int, metavar="N", help="of each chain (200)")
    diagnose.add_argument("--mcmc-chains", type=int, metavar="M", help="for each sequence (4)")
    diagnose.add_argument("--mcmc-tree-depth", type=int, metavar="N", help="of nuts: at most 2^N - 1 steps (6)")
    diagnose.add_argument("--gap", metavar="NAME", help=f"amortisation gap to a fitted guide; slow (none): {known}")
    diagnose.add_argument("--gap-sequences", type=int, metavar="N", help="the first N (8)")
    diagnose.add_argument("--gap-steps", type=int, metavar="N", help="of Adam, to fit it to one sequence (500)")
    diagnose.add_argument("--gap-learning-rate", type=float, metavar="X", help="of Adam, at the start (0.01)")
    diagnose.add_argument("--split", default="test", help="train, validation or test")
    _add_transforms(diagnose)
    diagnose.add_argument("--seed", type=int, default=0, help="seed of the draws")
    _add_place(diagnose)

    figures = _command(commands, "figures", "draw reconstructions, traversals, prior samples, maps of the lattice")
    figures.add_argument("directory", type=Path, metavar="RUN")
    _add_place(figures)

    report = _command(commands, "report", "write one HTML page on one or several runs")
    report.add_argument("directories", type=Path, nargs="+", metavar="RUN")
    report.add_argument("--out", type=Path, metavar="FILE.html", help="the page (report.html in the first run)")
    _add_place(report)

    reproduce = _command(commands, "reproduce", "run an experiment of the paper, or go on with it, and print its table")
    reproduce.add_argument("name", metavar="NAME", help=", ".join(EXPERIMENTS))
    reproduce.add_argument("--budget", default="short", help="paper, its optimiser and length, or short (short)")
    reproduce.add_argument("--seeds", type=int, default=1, metavar="N", help="seeds 0 to N - 1 (1)")
    reproduce.add_argument(
        "--together", action="store_true", help="train the seeds of a row in one compiled program (numpyro), on a GPU"
    )
    reproduce.add_argument("--rows", type=_list_of(str), metavar="NAME,...", help="some of the rows: tvae-13-36,vae")
    reproduce.add_argument(
        "--max-sequences", type=int, default=200, metavar="N", help="held-out sequences in every number (200)"
    )
    reproduce.add_argument("--out", type=Path, metavar="DIR", help="the folder of the runs (runs/NAME-BUDGET)")
    reproduce.add_argument("--markdown", action="store_true", help="print a Markdown table")
    for setting in fields(Experiment):
        if setting.name in _OF_A_REPRODUCTION:
            _add_setting(reproduce, setting)

    data = _command(commands, "data", "list data sets, fetch one, or draw its sequences")
    data.add_argument("action", choices=("list", "fetch", "show"))
    data.add_argument("name", nargs="?", metavar="NAME|PATH.npz")
    data.add_argument("--data-dir", type=Path, metavar="DIR")
    data.add_argument("--transforms", type=_list_of(str), default=None, metavar="NAME,...")
    data.add_argument("--sequences", type=int, default=9, help="rows of the sheet (9)")
    data.add_argument("--out", type=Path, default=Path("sheet.png"), help="the picture that 'show' writes (sheet.png)")

    _command(commands, "models", "list everything that can be named, with one line each")
    return parser


class _Parser(argparse.ArgumentParser):
    """Mistakes on the command line are one sentence too."""

    def error(self, message: str) -> Any:
        self.exit(EXIT_BAD_INPUT, f"{self.prog}: {message}; see {self.prog} --help\n")


def _command(commands: Any, name: str, description: str) -> argparse.ArgumentParser:
    command = commands.add_parser(name, help=description, description=description)
    command.add_argument("--json", action="store_true", help="print JSON")
    return command


def _add_setting(command: argparse.ArgumentParser, setting: Field[Any]) -> None:
    kind, several = setting_type(setting)
    flag = "--" + setting.metadata.get("flag", setting.name).replace("_", "-")
    default = ",".join(map(str, setting.default)) if isinstance(setting.default, tuple) else setting.default
    known = catalogue.KINDS.get(setting.metadata.get("kind", ""), ())
    text = setting.metadata["help"] + (f": {', '.join(known)}" if known else "")
    text += f" [{default}]" if default not in (None, "") else ""
    metavar = {int: "N", float: "X", str: "NAME"}[kind] + (",..." if several else "")
    command.add_argument(flag, dest=setting.name, type=_list_of(kind) if several else kind, metavar=metavar, help=text)


def _add_place(command: argparse.ArgumentParser) -> None:
    command.add_argument("--backend", help="numpyro or pyro; the run's own unless given")
    command.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))


def _add_transforms(command: argparse.ArgumentParser) -> None:
    text = "what moves in the sequences, where that is something else than in training"
    command.add_argument("--transforms", type=_list_of(str), metavar="NAME,...", help=text)


def _list_of(kind: type) -> Any:
    def parse(text: str) -> tuple[Any, ...]:
        return tuple(kind(part) for part in text.split(",") if part)

    parse.__name__ = f"comma-separated list of {kind.__name__}"
    return parse
