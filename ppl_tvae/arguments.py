"""What can be written on the command line: every command with its options, and nothing that they do."""

import argparse
from collections.abc import Callable
from dataclasses import Field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from ppl_tvae import catalogue
from ppl_tvae.config import DEVICES, Experiment, setting_type
from ppl_tvae.experiments import EXPERIMENTS

EXIT_BAD_INPUT = 2

# What decides which program is put together, and which frames it sees.
_OF_A_PROGRAM = (
    "backend", "guide", "prior", "prior_z", "prior_u", "likelihood", "data", "data_dir", "transforms", "num_timesteps",
    "num_capsules", "capsule_dim", "hidden", "temporal_window", "spatial_width", "lattice", "lattice_weights", "mu",
    "mu_per", "epsilon", "precision",
)  # fmt: skip
# What may be another than the paper's; the table says so.
_OF_A_REPRODUCTION = (
    "backend", "guide", "prior", "prior_z", "prior_u", "likelihood", "data", "data_dir", "steps", "device", "matmul",
)  # fmt: skip
_FITTED = ", ".join(catalogue.AUTO_GUIDES)


def command_parser() -> argparse.ArgumentParser:
    """The parser of `ppl-tvae`; the name of the command lands in `command`."""
    parser = _Parser(prog="ppl-tvae", description="Topographic VAEs as Pyro and NumPyro programs.")
    commands = parser.add_subparsers(required=True, dest="command", metavar="COMMAND")
    for name, (description, add_options) in _COMMANDS.items():
        command = commands.add_parser(name, help=description, description=description)
        command.add_argument("--json", action="store_true", help="print JSON")
        add_options(command)
    return parser


def _train(command: argparse.ArgumentParser) -> None:
    for setting in fields(Experiment):
        if not setting.metadata.get("noted"):
            _add_setting(command, setting)
    command.add_argument("--out", type=Path, metavar="RUN", help="the run directory (runs/MODEL-BACKEND)")
    command.add_argument("--config", type=Path, metavar="FILE.toml", help="start from these settings")
    command.add_argument(
        "--seeds", type=_whole, metavar="N", help="this seed and the N - 1 after it, each its own RUN-seedN"
    )
    command.add_argument("--resume", action="store_true", help="go on with the run in --out from its last checkpoint")


def _new(command: argparse.ArgumentParser) -> None:
    command.add_argument("model", metavar="MODEL")
    command.add_argument("path", type=Path, metavar="PATH.py")
    command.add_argument("--backend", default="numpyro", help="numpyro or pyro (numpyro)")


def _check(command: argparse.ArgumentParser) -> None:
    command.add_argument("model", metavar="MODEL|PATH.py")
    command.add_argument("--graph", type=Path, metavar="FILE", help="draw the model: .dot, or a picture with Graphviz")
    for setting in fields(Experiment):
        if setting.name in _OF_A_PROGRAM:
            _add_setting(command, setting)


def _evaluate(command: argparse.ArgumentParser) -> None:
    command.add_argument("directory", type=Path, metavar="RUN")
    text = f"of {', '.join(catalogue.ESTIMATORS)} (elbo,iwae)"
    command.add_argument("--estimators", type=_list_of(str), default=("elbo", "iwae"), metavar="NAME,...", help=text)
    text = "the K of iwae and released-is; the largest is drawn for elbo and log-evidence (1,10,100)"
    command.add_argument("--particles", type=_list_of(int), metavar="K,...", help=text)
    command.add_argument("--guide", metavar="NAME", help=f"fitted to each sequence, not the run's own: {_FITTED}")
    command.add_argument("--guide-steps", type=_whole, metavar="N", help="of Adam, to fit it to one sequence (500)")
    command.add_argument("--guide-learning-rate", type=float, metavar="X", help="of Adam, at the start (0.1)")
    command.add_argument("--start", help="ais, sandwich: where chains begin, prior or guide (guide)")
    command.add_argument(
        "--temperatures", dest="num_temperatures", type=_whole, metavar="T", help="of ais, sandwich (200)"
    )
    command.add_argument(
        "--temperature-schedule", dest="schedule", help="ais, sandwich: their spacing, linear or sigmoid (sigmoid)"
    )
    command.add_argument(
        "--leapfrog-steps", dest="num_leapfrog_steps", type=_whole, metavar="L", help="ais, sandwich: per HMC move (10)"
    )
    command.add_argument(
        "--chains", dest="num_chains", type=_whole, metavar="M", help="ais, sandwich: for each sequence (1)"
    )
    command.add_argument("--split", default="test", help="train, validation or test (test)")
    _add_transforms(command)
    command.add_argument("--max-sequences", type=_whole, default=200, metavar="N", help="the first N (200)")
    command.add_argument("--seed", type=_whole, default=0, help="seed of the draws from the guide")
    _add_place(command)


def _compare(command: argparse.ArgumentParser) -> None:
    command.add_argument("directories", type=Path, nargs="+", metavar="RUN")
    command.add_argument("--markdown", action="store_true", help="print a Markdown table")
    command.add_argument("--csv", action="store_true", help="print comma-separated values")


def _diagnose(command: argparse.ArgumentParser) -> None:
    command.add_argument("directory", type=Path, metavar="RUN")
    command.add_argument("--sequences", type=_whole, default=8, metavar="N", help="sequences in posterior.nc (8)")
    command.add_argument("--draws", type=_whole, default=100, metavar="N", help="draws for each of them (100)")
    command.add_argument(
        "--max-sequences", type=_whole, default=200, metavar="N", help="of the metrics: the first N (200)"
    )
    command.add_argument(
        "--simulated", type=_whole, default=64, metavar="N", help="sequences, for calibration, at least 8 (64)"
    )
    command.add_argument("--mcmc", metavar="KERNEL", help="compare the guide with chains of nuts or hmc; slow (none)")
    command.add_argument("--mcmc-sequences", type=_whole, metavar="N", help="of those in posterior.nc, the first N (2)")
    command.add_argument("--mcmc-warmup", type=_whole, metavar="N", help="iterations that adapt a chain (200)")
    command.add_argument("--mcmc-draws", type=_whole, metavar="N", help="of each chain (200)")
    command.add_argument("--mcmc-chains", type=_whole, metavar="M", help="for each sequence (4)")
    command.add_argument("--mcmc-tree-depth", type=_whole, metavar="N", help="of nuts: at most 2^N - 1 steps (6)")
    command.add_argument("--gap", metavar="NAME", help=f"amortisation gap to a fitted guide; slow (none): {_FITTED}")
    command.add_argument("--gap-sequences", type=_whole, metavar="N", help="the first N (8)")
    command.add_argument("--gap-steps", type=_whole, metavar="N", help="of Adam, to fit it to one sequence (500)")
    command.add_argument("--gap-learning-rate", type=float, metavar="X", help="of Adam, at the start (0.1)")
    command.add_argument("--split", default="test", help="train, validation or test (test)")
    _add_transforms(command)
    command.add_argument("--seed", type=_whole, default=0, help="seed of the draws")
    _add_place(command)


def _figures(command: argparse.ArgumentParser) -> None:
    command.add_argument("directory", type=Path, metavar="RUN")
    _add_place(command)


def _report(command: argparse.ArgumentParser) -> None:
    command.add_argument("directories", type=Path, nargs="+", metavar="RUN")
    command.add_argument("--out", type=Path, metavar="FILE.html", help="the page (report.html in the first run)")
    _add_place(command)


def _reproduce(command: argparse.ArgumentParser) -> None:
    command.add_argument("name", metavar="NAME", help=", ".join(EXPERIMENTS))
    command.add_argument("--budget", default="short", help="paper, its optimiser and length, or short (short)")
    command.add_argument("--seeds", type=_whole, default=1, metavar="N", help="seeds 0 to N - 1 (1)")
    command.add_argument(
        "--together", action="store_true", help="train the seeds of a row in one compiled program (numpyro), on a GPU"
    )
    command.add_argument("--rows", type=_list_of(str), metavar="NAME,...", help="some of the rows: tvae-13-36,vae")
    command.add_argument(
        "--max-sequences", type=_whole, default=200, metavar="N", help="held-out sequences in every number (200)"
    )
    command.add_argument("--out", type=Path, metavar="DIR", help="the folder of the runs (runs/NAME-BUDGET)")
    command.add_argument("--markdown", action="store_true", help="print a Markdown table")
    for setting in fields(Experiment):
        if setting.name in _OF_A_REPRODUCTION:
            decided = setting.name in ("data", "likelihood", "steps")
            _add_setting(command, setting, "the experiment's own" if decided else None)


def _data(command: argparse.ArgumentParser) -> None:
    command.add_argument("action", choices=("list", "fetch", "show"))
    command.add_argument("name", nargs="?", metavar="NAME|PATH.npz")
    command.add_argument("--data-dir", type=Path, metavar="DIR")
    command.add_argument("--transforms", type=_list_of(str), default=None, metavar="NAME,...")
    command.add_argument("--sequences", type=_whole, default=9, help="rows of the sheet (9)")
    command.add_argument(
        "--out", type=Path, default=Path("sheet.png"), help="the picture that 'show' writes (sheet.png)"
    )


class _Parser(argparse.ArgumentParser):
    """Mistakes on the command line are one sentence too."""

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse's, but that what it does not know is said by the command at hand, with its nearest option."""
        options, unknown = self.parse_known_args(args, namespace)
        if unknown:
            (commands,) = (action for action in self._actions if action.dest == "command")
            command = dict(commands.choices or {})[options.command]
            first = next((each for each in unknown if each.startswith("--")), "").partition("=")[0]
            near = get_close_matches(first, command._option_string_actions, n=1)
            hint = f"; did you mean '{near[0]}'?" if near else ""
            command.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
        return options

    def error(self, message: str) -> Any:
        self.exit(EXIT_BAD_INPUT, f"{self.prog}: {message}; see {self.prog} --help\n")


def _add_setting(command: argparse.ArgumentParser, setting: Field[Any], otherwise: str | None = None) -> None:
    """otherwise: what holds where it is not given, if that is not the setting's default."""
    kind, several = setting_type(setting)
    flag = "--" + setting.metadata.get("flag", setting.name).replace("_", "-")
    known = catalogue.KINDS.get(setting.metadata.get("kind", ""), ())
    text = setting.metadata["help"] + (f": {', '.join(known)}" if known else "")
    text += f" [{otherwise or setting.default}]" if otherwise or setting.default not in (None, "") else ""
    metavar = {int: "N", float: "X", str: "NAME"}[kind] + (",..." if several else "")
    read = _list_of(kind) if several else {int: _whole}.get(kind, kind)
    command.add_argument(flag, dest=setting.name, type=read, metavar=metavar, help=text)


def _add_place(command: argparse.ArgumentParser) -> None:
    command.add_argument("--backend", help="numpyro or pyro; the run's own unless given")
    command.add_argument("--device", default="auto", choices=DEVICES)


def _add_transforms(command: argparse.ArgumentParser) -> None:
    text = "what moves in the sequences, where that is something else than in training"
    command.add_argument("--transforms", type=_list_of(str), metavar="NAME,...", help=text)


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a whole number, found '{text}'") from None


def _list_of(kind: type) -> Any:
    def parse(text: str) -> tuple[Any, ...]:
        parts = text.split(",")
        if not any(parts) and kind is str:
            return ()
        if not all(parts):
            raise argparse.ArgumentTypeError(f"expected values between commas, found none in '{text}'")
        return tuple(kind(part) for part in parts)

    parse.__name__ = f"comma-separated list of {kind.__name__}"
    return parse


_COMMANDS: dict[str, tuple[str, Callable[[argparse.ArgumentParser], None]]] = {
    "train": ("train a program into a new run directory, or go on with one", _train),
    "new": ("write a named model as a program file of your own, to edit", _new),
    "check": ("say what is wrong with a program, or print its sites and their shapes", _check),
    "evaluate": ("estimate log p(x) of held-out sequences", _evaluate),
    "compare": ("estimates of several runs side by side, and paired differences", _compare),
    "diagnose": ("draws as posterior.nc (ArviZ), calibration, predictive checks, equivariance", _diagnose),
    "figures": ("draw reconstructions, traversals, prior samples, maps of the lattice", _figures),
    "report": ("write one HTML page on one or several runs", _report),
    "reproduce": ("run an experiment of the paper, or go on with it, and print its table", _reproduce),
    "data": ("list data sets, fetch one, or draw its sequences", _data),
    "models": ("list everything that can be named, with one line each", lambda command: None),
}
