"""Capsule traversals of a trained run: what is decoded while the code of one frame rolls, alone or capsule by capsule.

    ppl-tvae train --data digits --steps 2000 --clip-norm 1.0 --out runs/tvae
    python examples/traversals.py runs/tvae --frame 4 --capsules 0 1 2

Of each test sequence the code t of one frame is taken. Rolled by one position per frame, backwards to the first frame
and forwards to the last, it is decoded to a whole sequence: where capsules are equivariant, that is the sequence that
was observed. With --capsules, further rows roll one capsule alone and leave the others at rest: what this one stands
for. Written are RUN/figures/traversals_from_4.png and .gif.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

import ppl_tvae
from ppl_tvae.assembly import data_of
from ppl_tvae.diagnostics import equivariance
from ppl_tvae.figures.animation import animation
from ppl_tvae.figures.contact_sheet import contact_sheet
from ppl_tvae.files import write
from ppl_tvae.trained import evaluator


# Edit here for another traversal.
def traversals(t: np.ndarray, frame: int, capsules: Sequence[int]) -> dict[str, np.ndarray]:
    """By name, codes (batch, S, C, D): all capsules of t's `frame` rolled, then each named one alone."""
    rolled = equivariance.rolled_from(t, frame)
    still = np.repeat(t[:, frame : frame + 1], t.shape[1], axis=1)
    only = np.arange(t.shape[2])[:, None]
    return {"all capsules": rolled} | {f"capsule {c}": np.where(only == c, rolled, still) for c in capsules}


def draw(run: ppl_tvae.Run, frame: int, capsules: Sequence[int], num_sequences: int) -> list[Path]:
    """Write a sheet and an animation into the run's figures. Raises UserError."""
    data = data_of(run.experiment)
    plan = data.test_plan(num_sequences)
    with evaluator(run, data, None, "auto", seed=0) as ready:
        t = ready.latents(plan).get("t")
        if not equivariance.rolls(t, data.num_timesteps):
            raise ppl_tvae.UserError("expected a program with a site 't' of event shape (S, C, D), found none to roll")
        if wrong := [c for c in capsules if not 0 <= c < t.shape[2]]:
            raise ppl_tvae.UserError(f"expected capsules in 0..{t.shape[2] - 1}, found {wrong[0]}")
        codes = traversals(t, frame, capsules)
        rows = {"observed": ready.frames(plan)} | {name: ready.decode(code, "t") for name, code in codes.items()}
    shown = np.clip(np.stack(list(rows.values())), 0, 1)  # (row, sequence, S, H, W, channel)
    moves = [data.transforms[index] for index in plan.transform]
    sheet, moving = (run.figure(f"traversals_from_{frame}{ending}") for ending in (".png", ".gif"))
    labels = [f"{move}, {row}" for move in moves for row in rows]
    title = f"E[x | the code of frame s = {frame}, rolled one position per frame]"
    write(sheet, contact_sheet(shown.swapaxes(0, 1).reshape(-1, *shown.shape[2:]), labels, title))
    write(moving, animation(shown, list(rows), moves))
    return [sheet, moving]


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0, or 2 with the sentence that says what was wrong."""
    parser = argparse.ArgumentParser(description="Capsule traversals of a trained run.")
    parser.add_argument("run", help="the directory of a trained run")
    parser.add_argument("--frame", type=int, default=0, help="the frame whose code rolls (0)")
    parser.add_argument("--capsules", type=int, nargs="*", default=[], help="capsules that roll alone, too (none)")
    parser.add_argument("--sequences", type=int, default=4, help="test sequences (4)")
    options = parser.parse_args(arguments)
    try:
        for path in draw(ppl_tvae.open_run(options.run), options.frame, options.capsules, options.sequences):
            print(path)
    except ppl_tvae.UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
