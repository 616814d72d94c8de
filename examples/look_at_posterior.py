"""The draws of `ppl-tvae diagnose`, opened with xarray, summarised and drawn with ArviZ, just as they lie in the file.

    ppl-tvae diagnose runs/tvae --mcmc nuts
    python examples/look_at_posterior.py runs/tvae

Prints a summary of a few cells of one capsule, and writes pictures into the run's figures: a forest plot of them and,
where the file has chains of MCMC, their rank plot, which is in the band where the chains have come together. Without
MCMC there is one chain of independent draws from the guide.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import arviz_plots
import matplotlib
import xarray as xr
from arviz_stats import summary

import ppl_tvae

NUM_CELLS = 6
_RANKS = {"figsize": (18, 4), "figsize_units": "inches"}  # room for the titles


def look(run: ppl_tvae.Run, site: str, place: dict[str, int]) -> str:
    """The summary, and the paths of the pictures. Raises UserError."""
    path = run.path / "posterior.nc"
    if not path.exists():
        raise ppl_tvae.UserError(f"expected draws in '{path}', found no file; run ppl-tvae diagnose {run.path}")
    with xr.open_datatree(path, engine="h5netcdf") as opened:
        tree = opened.load()
    if site not in tree["posterior"].data_vars:
        known = ", ".join(map(str, tree["posterior"].data_vars))
        raise ppl_tvae.UserError(f"expected a site of {known}, found '{site}'; name one of these")
    group = "posterior_mcmc" if "posterior_mcmc" in tree.children else "posterior"
    chosen = {"group": group, "var_names": [site], "coords": cells(tree[group][site], place)}
    several, drawing = tree[group].sizes["chain"] > 1, {"backend": "matplotlib", **chosen}
    drawn = {"forest": arviz_plots.plot_forest(tree, **drawing)}
    if several:
        drawn["ranks"] = arviz_plots.plot_rank(tree, col_wrap=NUM_CELLS, figure_kwargs=_RANKS, **drawing)
    table = summary(tree, kind="all" if several else "stats", round_to=3, **chosen)
    lines = [f"{site} in {group}, {chosen['coords']}", table.to_string()]
    for name, plot in drawn.items():
        out = run.figure(f"{group}_{name}.png")
        plot.savefig(out, bbox_inches="tight")
        lines.append(str(out))
    return "\n".join(lines)


def cells(values: xr.DataArray, place: dict[str, int]) -> dict[str, object]:
    """A few cells along the last dimension of a site, at one place of its other dimensions, by their coordinates."""
    *others, last = values.dims[2:]
    return {dim: place.get(str(dim), 0) for dim in others} | {last: list(range(min(NUM_CELLS, values.sizes[last])))}


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0, or 2 with the sentence that says what was wrong."""
    parser = argparse.ArgumentParser(description="Summary and pictures of the draws in a run's posterior.nc.")
    parser.add_argument("run", type=Path, help="the directory of a run that was diagnosed")
    parser.add_argument("--site", default="t", help="which latent (t)")
    parser.add_argument("--sequence", type=int, default=0, help="of which sequence (0)")
    options = parser.parse_args(arguments)
    matplotlib.use("agg")
    try:
        print(look(ppl_tvae.open_run(options.run), options.site, {"sequence": options.sequence}))
    except ppl_tvae.UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
