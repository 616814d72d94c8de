"""Is the guide any good? Its draws beside those of the host's NUTS on the same posterior, cell by cell.

    python examples/compare_guide_with_nuts.py runs/tvae --sequences 1
    python examples/compare_guide_with_nuts.py runs/small        # there is no such run: trains a small one there first

Prints whether NUTS itself can be believed, then for each latent how far apart the means are, in standard deviations,
and how wide the guide is compared with NUTS; and draws a few cells of both with arviz-plots. What costs is NUTS: a run
of the default size takes many minutes on a CPU, the small one about one. docs/diagnosis.md has what each number means.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import arviz_plots
import matplotlib
import numpy as np
import xarray as xr

import ppl_tvae
from ppl_tvae.diagnostics.guide_fit import against_mcmc

NUM_CELLS = 6


# Edit here for another program to begin with.
def small_run(path: Path, backend: str) -> ppl_tvae.Run:
    """A tvae of 144 latents, trained for a minute on digits whose hue changes."""
    experiment = ppl_tvae.Experiment(
        backend=backend, data="digits", transforms=("hue",), num_timesteps=4, num_capsules=3, capsule_dim=6,
        hidden=(32,), steps=1000, learning_rate=3e-3, validation_sequences=16, evaluate_every=500,
    )  # fmt: skip
    return ppl_tvae.train(experiment, path)


def report(run: ppl_tvae.Run, settings: ppl_tvae.MCMC, num_sequences: int, site: str, out: Path) -> str:
    """The comparison in words and numbers, and a picture of a few cells at `out`. Raises UserError."""
    tree = ppl_tvae.to_datatree(
        run, num_sequences=num_sequences, num_draws=400, mcmc=settings, mcmc_sequences=num_sequences, quiet=False
    )
    if site not in tree["posterior"].data_vars:
        known = ", ".join(map(str, tree["posterior"].data_vars))
        raise ppl_tvae.UserError(f"expected a site of {known}, found '{site}'; name one of these")
    found = against_mcmc(tree, settings, seed=0)
    lines = [found["verdict"], f"{'':22} {'R-hat':>7} {'draws':>7} {'means':>7} {'scales':>7}  the guide"]
    for name, judged in found["convergence"].items():
        compared = found["guide"][name]
        numbers = [judged.get("rhat_quantiles"), judged.get("ess_quantiles"), compared.get("ratio_of_scales_quantiles")]
        rhat, draws, ratio = ("-" if each is None else str(each[1]) for each in numbers)
        means = compared.get("difference_beyond_noise", "-")
        lines.append(f"{name:22} {rhat:>7} {draws:>7} {means:>7} {ratio:>7}  {compared['verdict']}")
    draw(tree, site, out)
    return "\n".join([*lines, str(out)])


def draw(tree: xr.DataTree, site: str, out: Path) -> None:
    """Intervals of a few cells of the first sequence, guide and NUTS in turn."""
    *others, last = tree["posterior"][site].dims[2:]
    place = dict.fromkeys(others, 0) | {last: list(range(min(NUM_CELLS, tree["posterior"][site].sizes[last])))}
    both = {"guide": "posterior", "nuts": "posterior_mcmc"}
    count = min(tree[group].sizes["chain"] * tree[group].sizes["draw"] for group in both.values())
    draws = {
        name: xr.DataTree.from_dict({"posterior": one_chain(tree[group].to_dataset()[[site]], count)})
        for name, group in both.items()
    }
    plot = arviz_plots.plot_forest(draws, var_names=[site], coords=place, backend="matplotlib")
    plot.add_legend("model")
    plot.savefig(out)


def one_chain(draws: xr.Dataset, count: int) -> xr.Dataset:
    """So many draws, evenly spaced over all chains: in one picture both sets must have equally many."""
    joined = draws.stack(sample=("chain", "draw")).reset_index("sample", drop=True)
    places = np.linspace(0, joined.sizes["sample"] - 1, count).astype(int)
    one = joined.isel(sample=places).rename(sample="draw").expand_dims(chain=[0])
    return one.assign_coords(draw=np.arange(count)).transpose("chain", "draw", ...)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0, or 2 with the sentence that says what was wrong."""
    parser = argparse.ArgumentParser(description="The guide's draws beside those of NUTS.")
    parser.add_argument("run", type=Path, help="a trained run; where there is none, a small one is trained")
    parser.add_argument("--backend", default="numpyro", help="of a run to come (numpyro)")
    parser.add_argument("--sequences", type=int, default=2, help="test sequences (2)")
    parser.add_argument("--warmup", type=int, default=300, help="iterations that adapt a chain (300)")
    parser.add_argument("--draws", type=int, default=300, help="of each chain (300)")
    parser.add_argument("--chains", type=int, default=4, help="for each sequence (4)")
    parser.add_argument("--tree-depth", type=int, default=6, help="at most 2^N - 1 leapfrog steps (6)")
    parser.add_argument("--site", default="t", help="which latent to draw (t)")
    parser.add_argument("--out", type=Path, help="the picture (RUN/figures/guide_and_nuts.png)")
    options = parser.parse_args(arguments)
    matplotlib.use("agg")
    settings = ppl_tvae.MCMC("nuts", options.warmup, options.draws, options.chains, options.tree_depth)
    try:
        run = ppl_tvae.open_run(options.run) if options.run.exists() else small_run(options.run, options.backend)
        out = options.out or run.figure("guide_and_nuts.png")
        print(report(run, settings, options.sequences, options.site, out))
    except ppl_tvae.UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
