"""The command line: parses, calls the functions of the package, prints. Imports nothing heavy before it must."""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import Field, fields, replace
from pathlib import Path
from typing import Any

from ppl_tvae.config import Experiment, read_toml, setting_type
from ppl_tvae.errors import UserError
from ppl_tvae.models import catalogue

EXIT_BAD_INPUT, EXIT_DIVERGED, EXIT_INTERRUPTED = 2, 3, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code: 0, 2 for bad input, 3 for a diverged run, 130 after Ctrl-C."""
    options = _parser().parse_args(arguments)
    try:
        options.run_command(options)
    except UserError as error:
        print(f"ppl-tvae: {error}", file=sys.stderr)
        return EXIT_BAD_INPUT
    except RuntimeError as error:
        code = {"Diverged": EXIT_DIVERGED, "Interrupted": EXIT_INTERRUPTED}.get(type(error).__name__)
        if code is None:
            raise
        print(f"ppl-tvae: {error}", file=sys.stderr)
        return code
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    return 0


def _train(options: argparse.Namespace) -> None:
    given = _given_settings(options)
    if options.resume:
        run = _resumed(options, given)
    else:
        from ppl_tvae.training import train

        experiment = replace(read_toml(options.config) if options.config else Experiment(), **given)
        out = options.out or Path("runs") / f"{Path(experiment.model).stem}-{experiment.backend}"
        run = train(experiment, out)
    measured = [row for row in run.metrics() if "elbo_per_frame" in row]
    best = max(measured, key=lambda row: row["elbo_per_frame"])
    _show(
        options,
        {
            "run": str(run.path),
            "first_elbo_per_frame": measured[0]["elbo_per_frame"],
            "best_elbo_per_frame": best["elbo_per_frame"],
            "best_step": int(best["step"]),
            "likelihood": run.experiment.likelihood,
        },
        "{run}: held-out ELBO {first_elbo_per_frame:.1f} before training, {best_elbo_per_frame:.1f} at step {best_step} "
        "(nats per frame, up is better, likelihood {likelihood})",
    )


def _resumed(options: argparse.Namespace, given: dict[str, Any]) -> Any:
    """Go on with a run; whatever was given beside the number of steps must be what the run has."""
    from ppl_tvae.runs import open_run
    from ppl_tvae.training import resume

    if options.out is None:
        raise UserError("expected --out RUN with --resume, found none; name the run directory to go on with")
    run = open_run(options.out)
    if options.config is not None:
        experiment = read_toml(options.config)
        given = {setting.name: getattr(experiment, setting.name) for setting in fields(Experiment)} | given
    for name, value in given.items():
        own = getattr(run.experiment, name)
        if name != "steps" and value is not None and value != own:
            raise UserError(
                f"expected the run's own {name} = {own!r} with --resume, found {value!r}; leave it out, or start a new run"
            )
    return resume(options.out, steps=given.get("steps"))


def _evaluate(options: argparse.Namespace) -> None:
    from ppl_tvae.evaluation import evaluate
    from ppl_tvae.runs import open_run

    records = evaluate(
        open_run(options.directory),
        estimators=options.estimators,
        particles=options.particles,
        split=options.split,
        max_sequences=options.max_sequences,
        backend=options.backend,
        device=options.device,
        seed=options.seed,
    )
    if options.json:
        print(json.dumps(records, indent=2))
        return
    first = records[0]
    print(f"{first['num_sequences']} {first['split']} sequences, likelihood {first['likelihood']}, {first['unit']} +- s.e.")
    for record in records:
        name = f"{record['estimator']}-{record['num_particles']}" if record["estimator"] == "iwae" else record["estimator"]
        print(f"  {name:12} {record['value']:10.3f} +- {record['standard_error']:.3f}   {record['side']}")


def _figures(options: argparse.Namespace) -> None:
    from ppl_tvae.evaluation import reconstruction_sheet
    from ppl_tvae.runs import open_run

    path = reconstruction_sheet(open_run(options.directory), backend=options.backend, device=options.device)
    _show(options, {"figures": [str(path)]}, f"reconstructions: {path}")


def _models(options: argparse.Namespace) -> None:
    if options.json:
        print(json.dumps(catalogue.KINDS, indent=2))
        return
    for kind, names in catalogue.KINDS.items():
        print(f"{kind}:")
        for name, description in names.items():
            print(f"  {name:22} {description}")


def _data(options: argparse.Namespace) -> None:
    from ppl_tvae import data

    if options.action == "list":
        _show(options, data.catalogue(), "\n".join(f"{name:16} {line}" for name, line in data.catalogue().items()))
        return
    if options.name is None:
        raise UserError(f"expected the name of a data set after 'data {options.action}', found none; see 'data list'")
    if options.action == "fetch":
        paths = data.fetch(options.name, options.data_dir)
        _show(options, {"files": [str(path) for path in paths]}, "\n".join(str(path) for path in paths))
        return
    from ppl_tvae.evaluation import data_sheet

    path = data_sheet(options.name, options.data_dir, options.transforms, options.sequences, options.out)
    _show(options, {"sheet": str(path)}, str(path))


def _show(options: argparse.Namespace, values: dict[str, Any], text: str) -> None:
    print(json.dumps(values, indent=2) if options.json else text.format(**values))


def _given_settings(options: argparse.Namespace) -> dict[str, Any]:
    """The settings that were written on the command line."""
    return {s.name: value for s in fields(Experiment) if (value := getattr(options, s.name, None)) is not None}


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="ppl-tvae", description="Topographic VAEs as Pyro and NumPyro programs.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    train = _command(commands, "train", _train, "train a program into a new run directory, or go on with one")
    for setting in fields(Experiment):
        _add_setting(train, setting)
    train.add_argument("--out", type=Path, metavar="RUN", help="the run directory (runs/MODEL-BACKEND)")
    train.add_argument("--config", type=Path, metavar="FILE.toml", help="start from these settings")
    train.add_argument("--resume", action="store_true", help="go on with the run in --out from its last checkpoint")

    evaluate = _command(commands, "evaluate", _evaluate, "estimate log p(x) of held-out sequences")
    evaluate.add_argument("directory", type=Path, metavar="RUN")
    evaluate.add_argument("--estimators", type=_list_of(str), default=("elbo", "iwae"), metavar="NAME,...")
    evaluate.add_argument("--particles", type=_list_of(int), default=(1, 10, 100), metavar="K,...", help="the K of IWAE")
    evaluate.add_argument("--split", default="test", help="train, validation or test")
    evaluate.add_argument("--max-sequences", type=int, default=200, metavar="N", help="the first N (200)")
    evaluate.add_argument("--seed", type=int, default=0, help="seed of the draws from the guide")
    _add_place(evaluate)

    figures = _command(commands, "figures", _figures, "draw reconstructions of test sequences")
    figures.add_argument("directory", type=Path, metavar="RUN")
    _add_place(figures)

    data = _command(commands, "data", _data, "list data sets, fetch one, or draw its sequences")
    data.add_argument("action", choices=("list", "fetch", "show"))
    data.add_argument("name", nargs="?", metavar="NAME|PATH.npz")
    data.add_argument("--data-dir", type=Path, metavar="DIR")
    data.add_argument("--transforms", type=_list_of(str), default=None, metavar="NAME,...")
    data.add_argument("--sequences", type=int, default=9, help="rows of the sheet (9)")
    data.add_argument("--out", type=Path, default=Path("sheet.png"), help="the picture that 'show' writes (sheet.png)")

    _command(commands, "models", _models, "list everything that can be named, with one line each")
    return parser


class _Parser(argparse.ArgumentParser):
    """Mistakes on the command line are one sentence too."""

    def error(self, message: str) -> Any:
        self.exit(EXIT_BAD_INPUT, f"{self.prog}: {message}; see {self.prog} --help\n")


def _command(commands: Any, name: str, function: Any, description: str) -> argparse.ArgumentParser:
    command = commands.add_parser(name, help=description, description=description)
    command.set_defaults(run_command=function)
    command.add_argument("--json", action="store_true", help="print JSON")
    return command


def _add_setting(command: argparse.ArgumentParser, setting: Field[Any]) -> None:
    kind, several = setting_type(setting)
    flag = "--" + setting.metadata.get("flag", setting.name).replace("_", "-")
    default = ",".join(map(str, setting.default)) if isinstance(setting.default, tuple) else setting.default
    text = setting.metadata["help"] + (f" [{default}]" if default not in (None, "") else "")
    metavar = f"{kind.__name__},..." if several else kind.__name__
    command.add_argument(
        flag, dest=setting.name, type=_list_of(kind) if several else kind, metavar=metavar.upper(), help=text
    )


def _add_place(command: argparse.ArgumentParser) -> None:
    command.add_argument("--backend", help="numpyro or pyro; the run's own unless given")
    command.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))


def _list_of(kind: type) -> Any:
    def parse(text: str) -> tuple[Any, ...]:
        return tuple(kind(part) for part in text.split(",") if part)

    parse.__name__ = f"comma-separated list of {kind.__name__}"
    return parse
