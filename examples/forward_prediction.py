"""What comes next, predicted by rolling capsules: the first frames of test sequences are given, the others are not.

    ppl-tvae train --model examples/causal_numpyro.py --steps 3000 --clip-norm 1.0 --out runs/causal
    python examples/forward_prediction.py runs/causal --given 12

t is inferred from the given frames; the last of them, rolled one position per frame, is decoded. Printed is the mean
squared error per pixel of the predicted frames, as the program observes pixels, beside that of two predictions without
motion: +- one standard error over sequences, and paired differences, positive where the rolled capsules are nearer.
Expect about 0.051 +- 0.001, against 0.056 and 0.057, after the training above (200 test sequences of the digits).

The frames that are to be predicted are blanked before the guide runs, so it cannot see them. The t of the given frames
depends on the blanks where W is circular in time, as in the packaged tvae, and does not in the causal programs.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

import ppl_tvae
from ppl_tvae.assembly import data_of
from ppl_tvae.data import Plan, SequenceData, Source, render
from ppl_tvae.figures.contact_sheet import contact_sheet
from ppl_tvae.files import write
from ppl_tvae.trained import evaluator

NUM_SHOWN = 6  # sequences in the picture
ROLLED = "rolled capsules"


# Edit here for another prediction.
def predict(t: np.ndarray, num_ahead: int) -> np.ndarray:
    """The next t, (batch, num_ahead, C, D), after those of the given frames, (batch, given, C, D)."""
    return np.stack([np.roll(t[:, -1], ahead, axis=-1) for ahead in range(1, num_ahead + 1)], axis=1)


def predictions(run: ppl_tvae.Run, frames: np.ndarray, given: int) -> dict[str, np.ndarray]:
    """By name, each shaped as the frames (batch, S, ...); the first `given` of them are no predictions."""
    data, plan = blanked(frames, given)
    with evaluator(run, data, None, "auto", seed=0) as ready:
        sites = ready.latents(plan)
        if "t" not in sites:
            raise ppl_tvae.UserError("expected a program with a site 't', whose capsules can be rolled, found none")
        t = sites["t"][:, :given]
        decoded = ready.decode(np.concatenate([t, predict(t, frames.shape[1] - given)], axis=1), "t")
    return {
        ROLLED: decoded,
        "last reconstruction, repeated": np.broadcast_to(decoded[:, given - 1 : given], frames.shape),
        "mean of the given frames": np.broadcast_to(frames[:, :given].mean(axis=1, keepdims=True), frames.shape),
    }


def blanked(frames: np.ndarray, given: int) -> tuple[SequenceData, Plan]:
    """Data of these sequences with zeros after the given frames, and the plan that draws each of them once, in order.

    Pixels that are binarised already stay as they are when they are binarised again.
    """
    seen, order = frames.copy(), np.arange(len(frames), dtype=np.int32)
    seen[:, given:] = 0
    source = Source("given frames", "sequences", seen, labels=order, train=order, test=order)
    data = SequenceData(source, ("none",), frames.shape[1], train=order, validation=order, test=order)
    return data, data.test_plan()._replace(image=order)


def report(run: ppl_tvae.Run, given: int, num_sequences: int, out: Path) -> str:
    """The table of errors, and a picture at `out`. Raises UserError."""
    data = data_of(run.experiment)
    if not 1 <= given < data.num_timesteps:
        raise ppl_tvae.UserError(f"expected between 1 and {data.num_timesteps - 1} given frames, found {given}")
    plan = data.test_plan(num_sequences)
    frames = render(data.tables, plan, run.experiment.binarize)
    if len(frames) < 2:
        raise ppl_tvae.UserError(f"expected at least 2 test sequences for a standard error, found {len(frames)}")
    predicted = predictions(run, frames, given)
    moves = [data.transforms[index] for index in plan.transform[:NUM_SHOWN]]
    rows = [text for move in moves for text in (f"truth, {move}", "prediction")]
    shown = np.stack([frames, predicted[ROLLED]], axis=1)[:NUM_SHOWN].reshape(-1, *frames.shape[1:])
    write(out, contact_sheet(shown, rows, f"E[x | t], with t inferred before s = {given} and rolled from there on"))
    errors = {name: squared_error(frames, each, given) for name, each in predicted.items()}
    lines = [f"squared error per pixel, s = {given} to {data.num_timesteps - 1}, {len(frames)} test sequences"]
    for name, values in errors.items():
        difference = "" if name == ROLLED else f"   minus {ROLLED}: {_with_error(values - errors[ROLLED])}"
        lines.append(f"{name:30} {_with_error(values)}{difference}")
    return "\n".join([*lines, str(out)])


def squared_error(frames: np.ndarray, predicted: np.ndarray, given: int) -> np.ndarray:
    """(batch,): the mean over predicted frames and their pixels."""
    return np.mean((frames[:, given:] - predicted[:, given:]) ** 2, axis=(1, 2, 3, 4), dtype=np.float64)


def _with_error(values: np.ndarray) -> str:
    return f"{values.mean():.4f} +- {values.std(ddof=1) / len(values) ** 0.5:.4f}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0, or 2 with the sentence that says what was wrong."""
    parser = argparse.ArgumentParser(description="What comes next, predicted by rolling capsules.")
    parser.add_argument("run", help="the directory of a trained run")
    parser.add_argument("--given", type=int, default=12, help="frames that are given (12)")
    parser.add_argument("--sequences", type=int, default=200, help="test sequences (200)")
    parser.add_argument("--out", type=Path, help="the picture (RUN/figures/forward_prediction.png)")
    options = parser.parse_args(arguments)
    try:
        run = ppl_tvae.open_run(options.run)
        out = options.out or run.figure("forward_prediction.png")
        print(report(run, options.given, options.sequences, out))
    except ppl_tvae.UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
