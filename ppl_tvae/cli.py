"""The command line: calls the functions of the package and prints. Imports nothing heavy before it must."""

import argparse
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from ppl_tvae import catalogue
from ppl_tvae.arguments import EXIT_BAD_INPUT, command_parser
from ppl_tvae.config import Experiment, read_settings, read_toml
from ppl_tvae.errors import Diverged, Interrupted, UserError, is_of_memory
from ppl_tvae.plain import to_json

if TYPE_CHECKING:
    from ppl_tvae.runs import Run

EXIT_DIVERGED, EXIT_INTERRUPTED = 3, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code: 0, 2 for bad input, 3 for a diverged run, 130 after Ctrl-C."""
    options = command_parser().parse_args(arguments)
    try:
        with _hearing_sigterm():
            _COMMANDS[options.command](options)
        _flush()
    except BrokenPipeError:
        # The reader, such as `head`, has seen enough. Python's own last flush must not complain about it either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except UserError as error:
        return _told(error, EXIT_BAD_INPUT)
    except Diverged as error:
        return _told(error, EXIT_DIVERGED)
    except Interrupted as error:
        return _told(error, EXIT_INTERRUPTED)
    except OSError as error:
        found = f"'{error.filename}': {error.strerror}" if error.filename else str(error)
        return _told(f"expected to be able to read and write what the command needs, found {found}", EXIT_BAD_INPUT)
    except (MemoryError, RuntimeError) as error:
        if not is_of_memory(error):
            raise
        found = str(error).strip().partition("\n")[0].rpartition(": ")[2] or "that it does not"
        return _told(
            f"expected what the command computes to fit in memory, found: {found}; lower the sizes and counts that it "
            f"was given, such as --batch-size, or take a device with more",
            EXIT_BAD_INPUT,
        )
    except KeyboardInterrupt:
        return _told("interrupted; what was written before is kept", EXIT_INTERRUPTED)
    return 0


def console() -> NoReturn:
    """What the shell calls: a command, then the end of the process with its exit code."""
    code = main()
    if code == EXIT_INTERRUPTED:
        # What XLA was compiling it goes on with in threads of its own; they crash when the interpreter, on its way out,
        # frees what they use. Nothing waits for them, so the process ends with everything in its place.
        _flush()
        os._exit(code)
    sys.exit(code)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:  # as where the process was started with it closed
            stream.flush()


@contextmanager
def _hearing_sigterm() -> Iterator[None]:
    """What ends a job on a cluster ends it as Ctrl-C does, also where that is ignored, as in a script's background.

    Processes of torchrun are ended by torchrun.
    """
    if "RANK" in os.environ or threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous or signal.SIG_DFL)


def _told(what: Exception | str, code: int) -> int:
    """One line on stderr, whatever an exception from elsewhere brought into the sentence."""
    print("ppl-tvae:", " ".join(str(what).split()), file=sys.stderr)
    return code


def _train(options: argparse.Namespace) -> None:
    from ppl_tvae.seeds import train_seeds
    from ppl_tvae.trainers import follow, is_follower
    from ppl_tvae.training import train

    if is_follower():
        follow()
        return
    given = _given_settings(options)
    if options.resume:
        if options.seeds is not None:
            raise UserError("expected one run with --resume, found --seeds; resume each of the runs by itself")
        _show_training(options, [_resumed(options, given)])
        return
    experiment = replace(read_toml(options.config) if options.config else Experiment(), **given)
    experiment.check_uses({*given, *(read_settings(options.config) if options.config else ())})
    out = options.out or Path("runs") / f"{Path(experiment.model).stem}-{experiment.backend}"
    several = options.seeds is not None
    runs = train_seeds(experiment, options.seeds, out) if several else [train(experiment, out)]
    _show_training(options, runs)


def _show_training(options: argparse.Namespace, runs: Sequence["Run"]) -> None:
    shown = [_outcome(run) for run in runs]
    values = [values for values, _ in shown]
    _show(options, values[0] if options.seeds is None else {"runs": values}, "\n".join(text for _, text in shown))


def _outcome(run: "Run") -> tuple[dict[str, Any], str]:
    """What a run came to, as values and as a sentence."""
    measured = {int(row["step"]): row["elbo_per_frame"] for row in run.metrics() if "elbo_per_frame" in row}
    best = max(measured, key=measured.__getitem__)
    first = measured.get(0)  # lost where somebody has damaged metrics.csv
    values = {
        "run": str(run.path),
        "first_elbo_per_frame": first,
        "best_elbo_per_frame": measured[best],
        "best_step": best,
        "likelihood": run.experiment.likelihood,
    }
    before = "unknown" if first is None else f"{first:.1f}"
    return values, (
        f"{run.path}: held-out ELBO {before} before training, {measured[best]:.1f} "
        f"at step {best} (nats per frame, up is better, likelihood {run.experiment.likelihood})"
    )


def _resumed(options: argparse.Namespace, given: dict[str, Any]) -> "Run":
    """Go on with a run; what was given beside that which may change must be what the run has."""
    from ppl_tvae.runs import open_run
    from ppl_tvae.training import CHANGEABLE, resume

    if options.out is None:
        raise UserError("expected --out RUN with --resume, found none; name the run directory to go on with")
    run, expected, written = open_run(options.out), given, set(given)
    if options.config is not None:
        expected = asdict(read_toml(options.config)) | given
        written |= set(read_settings(options.config))
    for name in sorted(written):
        own, value = getattr(run.experiment, name), expected[name]
        if name not in CHANGEABLE and value is not None and not _same(name, value, own):
            raise UserError(
                f"expected the run's own {name} = {own!r} with --resume, found {value!r}; leave it out, or start a "
                f"new run"
            )
    return resume(options.out, **{name: expected[name] for name in CHANGEABLE if name in written})


def _same(setting: str, value: Any, own: Any) -> bool:
    """Whether a setting has the value that the run has; the user's own files lie elsewhere than the run's copies."""
    if value == own:
        return True
    if setting not in ("model", "lattice", "data") or not (Path(value).is_file() and Path(own).is_file()):
        return False
    return Path(value).samefile(own) or (setting != "data" and Path(value).read_bytes() == Path(own).read_bytes())


def _new(options: argparse.Namespace) -> None:
    from ppl_tvae.starting_points import write_starting_point

    write_starting_point(options.model, options.path, options.backend)
    _show(
        options,
        {"program": str(options.path)},
        f"{options.path}: the program '{options.model}' in {options.backend}; its first lines say how to train it",
    )


def _check(options: argparse.Namespace) -> None:
    from ppl_tvae.inspection import as_text, draw_graph, sites

    given = _given_settings(options)
    experiment = replace(Experiment(), **given)
    experiment.check_uses(given)
    rows = sites(experiment)
    if options.graph:
        draw_graph(experiment, options.graph)
    trainable = any(row["kind"] == "parameter" for row in rows)
    found = "can train" if trainable else "can evaluate; it has no parameters, so there is nothing to train"
    _show(options, rows, f"{experiment.model} is a program that {experiment.backend} {found}\n{as_text(rows)}")


def _evaluate(options: argparse.Namespace) -> None:
    from ppl_tvae.evaluation import as_text, evaluate
    from ppl_tvae.inference.annealing import Annealing
    from ppl_tvae.inference.unamortised import Unamortised
    from ppl_tvae.runs import open_run

    names = ("start", "num_temperatures", "schedule", "num_leapfrog_steps", "num_chains")
    annealing = {name: value for name in names if (value := getattr(options, name)) is not None}
    if annealing and not {"ais", "sandwich"} & set(options.estimators):
        raise UserError(
            f"expected ais or sandwich among --estimators with settings of their chains, found only "
            f"{', '.join(options.estimators)}; name one, or leave the settings out"
        )
    particles = {} if options.particles is None else {"particles": options.particles}
    if particles and set(options.estimators) <= {"ais", "sandwich"}:
        raise UserError(
            f"expected an estimator of --particles among --estimators (elbo, iwae, log-evidence, released-is), found "
            f"only {', '.join(options.estimators)}; name one, or leave --particles out (of chains there are --chains)"
        )
    fit = {"steps": options.guide_steps, "learning_rate": options.guide_learning_rate}
    if options.guide is None and any(value is not None for value in fit.values()):
        raise UserError("expected --guide with --guide-steps or --guide-learning-rate, found none; name one")
    fitted = {name: value for name, value in fit.items() if value is not None}
    guide = None if options.guide is None else Unamortised(options.guide, **fitted)

    run = open_run(options.directory)
    records = evaluate(
        run,
        estimators=options.estimators,
        **particles,
        annealing=Annealing(**annealing),
        guide=guide,
        split=options.split,
        transforms=options.transforms,
        max_sequences=options.max_sequences,
        backend=options.backend,
        device=options.device,
        seed=options.seed,
    )
    unfinished = f"\n  training has not reached its last step: {run.steps_done:,} of {run.experiment.steps:,}"
    _show(options, records, as_text(records) + (unfinished if run.is_unfinished else ""))


def _compare(options: argparse.Namespace) -> None:
    from ppl_tvae import comparison
    from ppl_tvae.runs import open_run

    if len(forms := [name for name in ("json", "csv", "markdown") if getattr(options, name)]) > 1:
        raise UserError(f"expected one form of the table, found --{' and --'.join(forms)}; leave one")
    compared = comparison.compare([open_run(directory) for directory in options.directories])
    if options.csv:
        print(comparison.as_csv(compared), end="")
    else:
        _show(options, comparison.as_json(compared), comparison.as_text(compared, markdown=options.markdown))


def _diagnose(options: argparse.Namespace) -> None:
    from ppl_tvae.diagnosis import as_text, diagnose
    from ppl_tvae.runs import open_run

    run = open_run(options.directory)
    mcmc, gap = _guide_checks(options)
    sizes = {"mcmc_sequences": options.mcmc_sequences, "gap_sequences": options.gap_sequences}
    found = diagnose(
        run,
        num_sequences=options.sequences,
        num_draws=options.draws,
        metric_sequences=options.max_sequences,
        simulated_sequences=options.simulated,
        mcmc=mcmc,
        gap_guide=gap,
        **{name: size for name, size in sizes.items() if size is not None},
        split=options.split,
        transforms=options.transforms,
        seed=options.seed,
        backend=options.backend,
        device=options.device,
    )
    _show(options, found, as_text(run, found))


def _guide_checks(options: argparse.Namespace) -> tuple[Any, Any]:
    """The settings of MCMC and of the fitted guide that the guide is held against, None where it is not."""
    from ppl_tvae.inference.mcmc import MCMC
    from ppl_tvae.inference.unamortised import Unamortised

    of_mcmc = {
        "num_warmup": options.mcmc_warmup,
        "num_draws": options.mcmc_draws,
        "num_chains": options.mcmc_chains,
        "max_tree_depth": options.mcmc_tree_depth,
    }
    of_gap = {"steps": options.gap_steps, "learning_rate": options.gap_learning_rate}
    found: list[Any] = []
    for flag, name, kind, given, count in (
        ("--mcmc", options.mcmc, MCMC, of_mcmc, options.mcmc_sequences),
        ("--gap", options.gap, Unamortised, of_gap, options.gap_sequences),
    ):
        settings = {setting: value for setting, value in given.items() if value is not None}
        if name == "hmc" and "max_tree_depth" in settings:
            raise UserError("expected --mcmc-tree-depth only with --mcmc nuts, found it with hmc; leave it out")
        if name is None and (settings or count is not None):
            raise UserError(f"expected {flag} NAME with the other options {flag}-..., found none; name one")
        found.append(None if name is None else kind(name, **settings))
    return found[0], found[1]


def _figures(options: argparse.Namespace) -> None:
    from ppl_tvae.figures import draw_figures, save_charts
    from ppl_tvae.runs import open_run

    run = open_run(options.directory)
    drawn = draw_figures(run, backend=options.backend, device=options.device) | save_charts(run)
    paths = {name: str(path) for name, path in drawn.items()}
    _show(options, {"figures": list(paths.values())}, "\n".join(f"{name}: {path}" for name, path in paths.items()))


def _report(options: argparse.Namespace) -> None:
    from ppl_tvae.report import write_report
    from ppl_tvae.runs import open_run

    runs = [open_run(directory) for directory in options.directories]
    path = write_report(runs, options.out, backend=options.backend, device=options.device)
    _show(options, {"report": str(path)}, str(path))


def _reproduce(options: argparse.Namespace) -> None:
    from ppl_tvae import reproduction

    reproduced = reproduction.reproduce(
        options.name,
        budget=options.budget,
        seeds=range(options.seeds),
        together=options.together,
        rows=options.rows,
        max_sequences=options.max_sequences,
        out=options.out,
        **_given_settings(options),
    )
    text = reproduction.as_text(reproduced, markdown=options.markdown)
    _show(options, reproduction.as_json(reproduced), text)


def _models(options: argparse.Namespace) -> None:
    if options.json:
        print(to_json(catalogue.KINDS, indent=2))
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
    _check_folder(options.data_dir)
    if options.name is None:
        raise UserError(f"expected the name of a data set after 'data {options.action}', found none; see 'data list'")
    if options.action == "fetch":
        paths = data.fetch(options.name, options.data_dir)
        found = [str(path) for path in paths.values()]
        _show(options, {"files": found}, "\n".join(found))
        return
    from ppl_tvae.figures.sequences import data_sheet

    chosen = () if options.transforms is None else (options.transforms,)
    opened = data.open_data(options.name, options.data_dir, *chosen)
    path = data_sheet(opened, options.name, options.sequences, options.out)
    counts = {split: len(getattr(opened, split)) for split in data.SPLITS}
    of_frames = "x".join(map(str, opened.frame_shape))
    _show(
        options,
        {
            "sheet": str(path),
            "num_timesteps": opened.num_timesteps,
            "frame_shape": opened.frame_shape,
            "transforms": opened.transforms,
            "splits": counts,
        },
        f"{path}\n  sequences of {opened.num_timesteps} frames of {of_frames}; what moves: "
        f"{', '.join(opened.transforms)}; {', '.join(f'{count:,} {split}' for split, count in counts.items())}",
    )


def _show(options: argparse.Namespace, values: Any, text: str) -> None:
    """What a command found: as JSON where that is asked for, else as text."""
    print(to_json(values, indent=2) if options.json else text)


def _given_settings(options: argparse.Namespace) -> dict[str, Any]:
    """The settings that were written on the command line. Raises UserError for a folder that is none."""
    given = {s.name: value for s in fields(Experiment) if (value := getattr(options, s.name, None)) is not None}
    _check_folder(given.get("data_dir"))
    return given


def _check_folder(data_dir: Path | str | None) -> None:
    if data_dir is not None and not Path(data_dir).expanduser().is_dir():
        raise UserError(f"expected a folder of data files with --data-dir, found none at '{data_dir}'; check the path")


_COMMANDS = {
    "train": _train,
    "new": _new,
    "check": _check,
    "evaluate": _evaluate,
    "compare": _compare,
    "diagnose": _diagnose,
    "figures": _figures,
    "report": _report,
    "reproduce": _reproduce,
    "data": _data,
    "models": _models,
}


if __name__ == "__main__":
    console()
