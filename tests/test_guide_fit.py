"""The guide against MCMC and against fitted guides: known answers on conjugate programs, then whole runs."""

import json
import re
from html import escape
from types import SimpleNamespace
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as numpyro_dist
import pyro
import pyro.distributions as pyro_dist
import pytest
import torch
import xarray as xr

from ppl_tvae import cli, train
from ppl_tvae.data import Plan
from ppl_tvae.diagnostics.convergence import (
    _comparison,
    _Moments,
    _verdict,
    chosen_cells,
    convergence,
    guide_against_chains,
)
from ppl_tvae.diagnostics.datatree import LOG_LIKELIHOOD, datatree, with_chains
from ppl_tvae.diagnostics.guide_fit import _gap_verdict, _trouble, against_mcmc, amortisation_gap
from ppl_tvae.errors import UserError
from ppl_tvae.inference import reliability
from ppl_tvae.inference.mcmc import MCMC
from ppl_tvae.inference.numpyro.device import on_device as on_jax
from ppl_tvae.inference.numpyro.evaluator import Evaluator as NumpyroEvaluator
from ppl_tvae.inference.pyro.device import on_device as on_torch
from ppl_tvae.inference.pyro.evaluator import Evaluator as PyroEvaluator
from ppl_tvae.inference.unamortised import Unamortised
from ppl_tvae.posterior import save_datatree, to_datatree
from ppl_tvae.report import write_report
from tests.conftest import STANDARD_ERRORS
from tests.inference import linear_gaussian
from tests.inference.test_unamortised import divergence_of_the_best_diagonal_normal
from tests.small_runs import BACKENDS, small_training

CHAIN_GROUPS = {"posterior_mcmc", "log_likelihood_mcmc", "sample_stats_mcmc"}
FEW = MCMC(num_warmup=6, num_draws=6, num_chains=2, max_tree_depth=2)


class Tables(NamedTuple):
    frames: np.ndarray


class Data(NamedTuple):
    """As much of a SequenceData as is needed: any split holds these frames."""

    frames: np.ndarray

    def plan(self, split, count):
        return Plan(*(np.arange(count, dtype=np.int32) for _ in Plan._fields))


class Ready:
    """An evaluator of the linear Gaussian program, on the CPU in float64."""

    def __init__(self, backend, parameters, frames):
        self._backend, self.data = backend, Data(frames)
        with on_jax("cpu", "float64"), on_torch("cpu", "float64"):
            host, arrays, dist, kind = {
                "numpyro": (numpyro, jnp, numpyro_dist, NumpyroEvaluator),
                "pyro": (pyro, torch, pyro_dist, PyroEvaluator),
            }[backend]
            constants = {name: arrays.asarray(value) for name, value in parameters.items()}
            fixed = SimpleNamespace(plate=host.plate, sample=host.sample, param=constants.__getitem__)
            program = linear_gaussian.program(fixed, arrays.exp, dist)
            render = (lambda tables, plan: tables.frames[plan.image.long()]) if backend == "pyro" else _rendered
            self._ready = kind(program, {}, render, Tables(frames), self.data.plan("test", 1), "float64", 0)

    def __getattr__(self, name):
        method = getattr(self._ready, name)

        def called(*arguments):
            with on_jax("cpu", "float64"), on_torch("cpu", "float64"):
                return method(*arguments)

        return called


def _rendered(tables, plan):
    return tables.frames[plan.image]


def with_guide(**shifts):
    exact = linear_gaussian.parameters_with_exact_guide()
    return exact | {f"guide.{name}": exact[f"guide.{name}"] + shift for name, shift in shifts.items()}


# Pareto k-hat


@pytest.mark.parametrize("backend", BACKENDS)
def test_khat_tells_a_perfect_guide_from_a_bad_one(backend):
    """The ratio of normals with scales 1 and s < 1 has a tail of shape 1 - s**2; a wider guide's is bounded."""
    frames = linear_gaussian.observations(3)

    def khat(parameters):
        return reliability.khat(Ready(backend, parameters, frames).log_weights(Data(frames).plan("test", 3), 0, 2000))

    assert (khat(with_guide()) == -np.inf).all()
    assert (khat(with_guide(log_scale=0.1)) < 0.4).all()
    assert (khat(with_guide(log_scale=-1.6)) > 0.7).all()


# The guide against MCMC


def judged(backend, parameters, settings, num_draws=400):
    ready, frames = Ready(backend, parameters, linear_gaussian.observations(2)), linear_gaussian.observations(2)
    plan = ready.data.plan("test", 2)
    tree = datatree(ready.posterior(plan, 0, num_draws), ready.prior(plan, 0, 1), frames, {}, {})
    return against_mcmc(with_chains(tree, ready.mcmc(plan, 0, settings), {"sampling_time": 1.0}), settings, seed=0)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("shifts", "means", "scales"),
    [
        ({}, "means agree", "scales agree"),
        ({"log_scale": -0.7}, "means agree", "too narrow"),
        ({"gain_a": 0.6}, "means are off", "scales agree"),
    ],
)
def test_what_is_wrong_with_a_guide_is_found_and_noise_is_not(shifts, means, scales, backend):
    found = judged(backend, with_guide(**shifts), MCMC(num_warmup=150, num_draws=400, num_chains=2))
    assert re.match("MCMC can (roughly )?be believed for a, b and ", found["verdict"])
    assert set(found["convergence"]) == set(found["guide"]) == {"a", "b", LOG_LIKELIHOOD}
    assert found["convergence"]["a"]["num_cells"] == 2  # one for each sequence
    verdict = found["guide"]["a"]["verdict"]
    assert means in verdict
    assert scales in verdict
    if "log_scale" in shifts:
        ratio, error = (
            found["guide"]["a"]["ratio_of_scales_quantiles"][1],
            found["guide"]["a"]["log_ratio_standard_error"],
        )
        assert abs(np.log(ratio) + 0.7) < STANDARD_ERRORS * error
    assert json.loads(json.dumps(found)) == json.loads(json.dumps(found, allow_nan=False))


def of_cells(**sites):
    """Draws (chain, draw, cell) of each site, as `chosen_cells` gives them."""
    return xr.Dataset({name: (("chain", "draw", f"{name}_cell"), values) for name, values in sites.items()})


def test_chains_that_have_not_come_together_are_not_believed():
    rng = np.random.default_rng(0)
    good = rng.standard_normal((4, 300, 40))
    apart = good + np.arange(4)[:, None, None]
    still = np.repeat(rng.standard_normal((4, 1, 40)), 300, axis=1)
    chains = of_cells(good=good, apart=apart, still=still)
    found = convergence(chains)
    assert found["good"]["verdict"].startswith("believable")
    assert found["apart"]["verdict"].startswith("not to be believed")
    assert found["still"]["verdict"].startswith("not to be believed")
    assert found["apart"]["rhat_quantiles"][0] > 1.2
    assert abs(found["good"]["ess_quantiles"][1] / 1200 - 1) < 0.2
    assert "R-hat needs 2 chains" in convergence(chains[["good"]].isel(chain=[0]))["good"]["verdict"]
    short = chains[["good"]].isel(draw=slice(2))
    assert "too few draws" in guide_against_chains(short, chains[["good"]])["good"]["verdict"]


@pytest.mark.parametrize(
    ("off", "rhat", "size", "num_chains", "words"),
    [
        (1, 9.0, 0, 4, "believable"),
        (3, 1.02, 4000, 4, "rough"),
        (3, 1.0, 399, 4, "rough"),
        (3, 1.0, 799, 8, "rough"),
        (3, 1.06, 4000, 4, "not to be believed"),
        (3, 1.0, 39, 4, "not to be believed"),
    ],
)
def test_one_cell_in_twenty_may_be_off(off, rhat, size, num_chains, words):
    """Of forty: the limits are 1.01 and 100 effective draws for each chain, for rough ones 1.05 and 10."""
    rhats, sizes = np.full(40, 1.0), np.full(40, 4000.0)
    rhats[:off], sizes[:off] = rhat, size
    assert _verdict(rhats, sizes, num_chains).startswith(words)


def test_draws_are_counted_for_each_chain():
    """Every half of eight chains holds the same numbers in another order: these agree, but 640 are fewer than 800."""
    rng = np.random.default_rng(0)
    halves = rng.permuted(np.broadcast_to(rng.standard_normal((40, 1)), (16, 40, 40)), axis=1)
    verdict = convergence(of_cells(u=halves.reshape(8, 80, 40)))["u"]["verdict"]
    assert verdict.startswith("rough: R-hat at most 0.9")


def test_shift_and_width_by_hand():
    """The guide N(1, 1), MCMC N(0, 2): half a standard deviation off, half as wide."""
    rng = np.random.default_rng(0)
    guide, exact = 1 + rng.standard_normal((1, 400, 200)), 2 * rng.standard_normal((4, 400, 200))
    found = guide_against_chains(of_cells(u=guide), of_cells(u=exact))["u"]
    assert found["difference_of_means_quantiles"][1] == pytest.approx(0.5, abs=0.02)
    assert found["ratio_of_scales_quantiles"][1] == pytest.approx(0.5, abs=0.02)
    assert found["difference_standard_error"] == pytest.approx(np.hypot(1 / 20, 2 / 40) / 2, rel=0.1)
    assert found["difference_beyond_noise"] == pytest.approx(0.5, abs=0.02)
    assert "too narrow" in found["verdict"]
    alike = 2 * rng.standard_normal((1, 400, 200))
    beyond_noise = guide_against_chains(of_cells(u=alike), of_cells(u=exact))["u"]["difference_beyond_noise"]
    assert beyond_noise < np.hypot(2 / 20, 2 / 40) / 2 / 2


def test_cells_are_the_same_of_guide_and_chains_and_those_that_vary():
    """Of the first two of three sequences; each number says which draw, sequence and place it is."""
    dims = ("chain", "draw", "sequence", "place")
    guide = np.arange(3 * 4)[None, None] + 100.0 * np.arange(6)[None, :, None]
    guide = guide.reshape(1, 6, 3, 4)
    chains = np.tile(guide[:, :, :2], (2, 1, 1, 1))
    chains[..., 1, 2] = 7.0  # which never varies
    likelihoods = {"x": (dims[:3], guide[..., 0])}, {"x": (dims[:3], chains[..., 0])}
    tree = xr.DataTree.from_dict({
        "posterior": xr.Dataset({"u": (dims, guide), "w": (dims, guide)}),
        "posterior_mcmc": xr.Dataset({"u": (dims, chains), "w": (dims, np.ones_like(chains))}),
        "log_likelihood": xr.Dataset(likelihoods[0]),
        "log_likelihood_mcmc": xr.Dataset(likelihoods[1]),
    })  # fmt: skip
    ours, theirs = chosen_cells(tree, seed=0)
    assert set(ours) == set(theirs) == {"u", LOG_LIKELIHOOD}
    assert sorted(ours["u"].values[0, 0]) == [0, 1, 2, 3, 4, 5, 7]
    assert sorted(ours[LOG_LIKELIHOOD].values[0, 0]) == [0, 4]
    for name in ours:
        np.testing.assert_array_equal(np.tile(ours[name].values, (2, 1, 1)), theirs[name].values)


def test_errors_and_ratios_of_few_draws_by_hand():
    """Of a cell with scales 1.3 and 1, each known to a tenth: their ratio, 1.3, is within twice its error of one."""

    def moments(mean, scale, mean_error, scale_error):
        values = (mean, scale, mean_error, scale_error)
        return _Moments(*(xr.Dataset({"u": ("u_cell", np.full(5, value))}) for value in values))

    exact, wide = moments(2.0, 1.0, 0.04, 0.1), moments(2.3, 1.3, 0.03, 0.13)
    found = _comparison(wide, exact, "u")
    assert found["difference_of_means_quantiles"] == [0.3] * 3
    assert found["difference_standard_error"] == 0.05
    assert found["difference_beyond_noise"] == round((0.3**2 - 0.05**2) ** 0.5, 3)
    assert found["ratio_of_scales_quantiles"] == [1.3] * 3
    assert found["log_ratio_standard_error"] == round(0.1 * 2**0.5, 3)
    assert found["verdict"].endswith("scales agree within noise or a tenth")
    wider = _comparison(moments(2.3, 1.4, 0.03, 0.14), exact, "u")  # log 1.4 is 0.336
    assert wider["verdict"].endswith("the guide is too wide: 1.4 times the scale of MCMC (median)")


def test_a_guide_that_is_too_narrow_here_and_too_wide_there_does_not_agree():
    rng = np.random.default_rng(8)
    chains, guide = rng.standard_normal((4, 250, 200)), rng.standard_normal((1, 100, 200))
    alike = guide_against_chains(of_cells(u=guide), of_cells(u=chains))["u"]
    assert alike["verdict"].endswith("scales agree within noise or a tenth")
    guide[..., :100] *= 0.5
    guide[..., 100:] *= 2
    found = guide_against_chains(of_cells(u=guide), of_cells(u=chains))["u"]
    assert "too narrow in some cells and too wide in others, by a factor of 2 (root" in found["verdict"]


def test_quantiles_over_cells_err_to_the_worse_side_and_scales_are_of_samples():
    from arviz_stats import ess, rhat

    rng = np.random.default_rng(3)
    draws = of_cells(u=rng.standard_normal((4, 20, 8)))
    found = convergence(draws)["u"]
    for told, values, side in (
        (found["rhat_quantiles"], rhat(draws)["u"], "higher"),
        (found["ess_quantiles"], ess(draws, method="bulk")["u"], "lower"),
    ):
        np.testing.assert_allclose(told, np.quantile(values, (0.1, 0.5, 0.9), method=side), atol=0.05)
        assert not np.allclose(told, np.quantile(values, (0.1, 0.5, 0.9)), rtol=1e-4)
    few = rng.standard_normal((1, 5, 8))
    ratios = few.std(axis=(0, 1), ddof=1) / draws["u"].values.std(axis=(0, 1), ddof=1)
    compared = guide_against_chains(of_cells(u=few), draws)["u"]
    np.testing.assert_allclose(compared["ratio_of_scales_quantiles"], np.quantile(ratios, (0.1, 0.5, 0.9)), atol=6e-4)


def test_trajectories_that_are_cut_are_told():
    """Three in ten have all the 2**6 - 1 steps of a tree, which HMC does not build."""
    dims, steps = ("chain", "draw", "sequence"), np.full((1, 10, 1), 62)
    steps[:, :3] = 63
    stats = xr.Dataset({"diverging": (dims, np.zeros((1, 10, 1), bool)), "n_steps": (dims, steps)})
    assert "30% of trajectories were cut at 63 steps" in _trouble(MCMC(max_tree_depth=6), stats)
    assert _trouble(MCMC("hmc", max_tree_depth=6), stats) == ""


def test_the_r_hat_that_is_told_is_on_the_side_of_the_limit_that_the_verdict_is():
    told = [_verdict(np.full(40, rhat), np.full(40, 1e4), 4) for rhat in (1.00999, 1.01001, 1.0549, np.inf)]
    assert told[0].startswith("believable: R-hat at most 1.0100")
    assert told[1].startswith("rough: R-hat at most 1.0101")
    assert told[2].startswith("not to be believed: R-hat at most 1.0549")
    assert told[3].startswith("not to be believed: R-hat at most inf")


def test_correlated_draws_count_for_less():
    """The mean of a slow chain that is off by its own noise is no misfit; the same of independent draws is one."""
    rng = np.random.default_rng(1)
    slow = np.empty((4, 400, 300))
    slow[:, 0] = rng.standard_normal((4, 300))
    for draw in range(1, 400):
        slow[:, draw] = 0.95 * slow[:, draw - 1] + (1 - 0.95**2) ** 0.5 * rng.standard_normal((4, 300))
    guide, exact, chains = (
        of_cells(u=values) for values in (rng.standard_normal((1, 400, 300)), rng.standard_normal((4, 400, 300)), slow)
    )
    found = guide_against_chains(guide, chains)["u"]
    assert "means agree" in found["verdict"]
    assert found["difference_standard_error"] > 2 * guide_against_chains(guide, exact)["u"]["difference_standard_error"]
    assert "means are off by 0.2" in guide_against_chains(guide + 0.2, exact)["u"]["verdict"]


# The amortisation gap


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_amortisation_gap_is_the_difference_of_two_known_elbos(backend):
    values, frames = linear_gaussian.parameters(0.4), linear_gaussian.observations(6)
    ready = Ready(backend, values, frames)
    settings = Unamortised("auto-normal", steps=600, learning_rate=0.05)
    plan = ready.data.plan("test", 6)
    found = amortisation_gap(ready, plan, linear_gaussian.NUM_FRAMES, settings, quiet=True)
    with on_jax("cpu", "float64"):
        own = np.asarray(linear_gaussian.expected_bound(values, frames, 1, 0.0))
    fitted = linear_gaussian.log_evidence(values, frames) - divergence_of_the_best_diagonal_normal(values)
    exact = (fitted - own) / linear_gaussian.NUM_FRAMES
    off = np.asarray(found["per_sequence"]) - exact
    assert exact.mean() > 0.1
    assert abs(off.mean()) < STANDARD_ERRORS * off.std(ddof=1) / 6**0.5
    assert off.std(ddof=1) < 0.3 * exact.mean()
    assert found["value"] == pytest.approx(found["elbo_fitted"] - found["elbo_own"])
    assert found["value"] == pytest.approx(np.mean(found["per_sequence"]), abs=1e-3)
    assert found["standard_error"] == pytest.approx(np.std(found["per_sequence"], ddof=1) / 6**0.5, abs=1e-3)
    assert found["unit"] == "nats per frame"
    assert (found["guide_name"], found["guide_steps"]) == ("auto-normal", 600)


@pytest.mark.parametrize(
    ("gap", "error", "num_sequences", "words"),
    [
        (0.1, 0.06, 100, "no gap"),
        (0.13, 0.06, 100, "is better"),
        (-0.13, 0.06, 100, "is worse"),
        (0.13, 0.06, 4, "no gap"),
        (9.0, None, 1, "no gap"),
        (np.nan, np.nan, 4, "the fit has diverged"),
    ],
)
def test_a_gap_is_one_beyond_its_error(gap, error, num_sequences, words):
    assert words in _gap_verdict(gap, error, num_sequences)


@pytest.mark.parametrize("num_sequences", [2, 3, 8, 30])
def test_where_there_is_no_gap_one_in_twenty_is_found(num_sequences):
    """Also of few sequences, of which two standard errors would find one in three to one in eleven."""
    rng, trials = np.random.default_rng(0), 4000
    gaps = rng.standard_normal((trials, num_sequences))
    errors = gaps.std(axis=1, ddof=1) / num_sequences**0.5
    verdicts = [_gap_verdict(*each, num_sequences) for each in zip(gaps.mean(axis=1), errors, strict=True)]
    found = sum("no gap" not in words for words in verdicts)
    assert abs(found / trials - 0.05) < STANDARD_ERRORS * (0.05 * 0.95 / trials) ** 0.5


# Whole runs


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("numpyro")
    return train(small_training(folder, "numpyro"), folder / "run", quiet=True)


def test_both_backends_give_the_same_groups(run):
    trees = [to_datatree(run, num_sequences=3, num_draws=4, mcmc=FEW, backend=backend) for backend in BACKENDS]
    for tree in trees:
        posterior, chains = tree["posterior"], tree["posterior_mcmc"]
        assert set(tree.children) >= CHAIN_GROUPS
        assert set(chains.data_vars) == set(posterior.data_vars) == {"z", "u", "t"}
        assert all(chains[name].dims == posterior[name].dims for name in "zut")
        assert set(chains.coords) == set(posterior.coords)
        for name in set(chains.coords) - {"chain", "draw"}:
            own = posterior[name].isel(sequence=slice(2)) if "sequence" in posterior[name].dims else posterior[name]
            assert chains[name].equals(own)
        assert chains["t"].shape == (2, 6, 2, 4, 2, 4)
        assert tree["sample_stats_mcmc"]["energy"].dims == ("chain", "draw", "sequence")
        assert tree["log_likelihood_mcmc"]["x"].dims == ("chain", "draw", "sequence")
        assert chains.attrs["kernel"] == "nuts"
    for group in CHAIN_GROUPS:
        first, second = (tree[group].to_dataset().variables for tree in trees)
        assert {n: (v.dims, v.shape, v.dtype) for n, v in first.items()} == {
            n: (v.dims, v.shape, v.dtype) for n, v in second.items()
        }


def test_t_is_that_of_the_drawn_latents(run):
    from ppl_tvae.assembly import lattice_of

    tree = to_datatree(run, num_sequences=2, num_draws=4, mcmc=FEW)
    z, u, t = (tree["posterior_mcmc"][name].values.astype(np.float64) for name in "zut")
    energy = lattice_of(run.experiment).energy(u)
    np.testing.assert_allclose(t, (z + run.parameters()["mu"]) / np.sqrt(energy + run.experiment.epsilon), rtol=1e-4)
    assert np.ptp(u, axis=1).min() >= 0
    assert (np.ptp(u, axis=1) > 0).any()  # chains move


@pytest.mark.parametrize("backend", BACKENDS)
def test_command_file_and_report(backend, run, tmp_path, capsys):
    from arviz_stats import summary

    arguments = ["diagnose", str(run.path), "--backend", backend, "--draws", "30", "--sequences", "2",
                 "--max-sequences", "2", "--simulated", "8", "--mcmc", "nuts", "--mcmc-sequences", "1",
                 "--mcmc-warmup", "6", "--mcmc-draws", "6", "--mcmc-chains", "2", "--mcmc-tree-depth", "2",
                 "--gap", "auto-normal", "--gap-sequences", "2", "--gap-steps", "5"]  # fmt: skip
    assert cli.main(arguments) == 0
    printed = capsys.readouterr().out
    found = run.diagnosis()
    assert f"nuts on 1 sequences, {found['mcmc']['seconds']:.0f} s: MCMC" in printed
    assert "amortisation gap to auto-normal" in printed
    assert found["mcmc"]["guide"]["u"]["verdict"].startswith("nothing can be said")
    assert found["mcmc"]["guide"]["u"]["verdict"] in printed
    assert (found["mcmc"]["num_warmup"], found["mcmc"]["num_draws"], found["mcmc"]["max_tree_depth"]) == (6, 6, 2)
    assert found["mcmc"]["num_steps"] <= 3
    with xr.open_datatree(run.path / "posterior.nc", engine="h5netcdf") as tree:
        assert set(tree.children) >= CHAIN_GROUPS
        place = {"sequence": 0, "time": 0, "capsule": 0}
        assert len(summary(tree.load(), group="posterior_mcmc", var_names=["u"], coords=place)) == 4
    page = write_report([run], tmp_path / "page.html", backend=backend).read_text()
    assert "How far is the guide from the posterior?" in page
    assert escape(found["amortisation_gap"]["verdict"]) in page
    assert "effective draws" in page
    assert 'class="warning"' in page[page.index("How far is the guide") :][:400]  # six draws are too few to believe
    if backend == "pyro":  # once: files know no backend
        what_took_long_stays(run, found)


def what_took_long_stays(run, found):
    """Chains and gaps, with their groups in the tree, until other sequences are asked about."""
    few = ["diagnose", str(run.path), "--draws", "4", "--sequences", "1", "--max-sequences", "2", "--simulated", "8"]
    assert cli.main(few) == 0
    again = run.diagnosis()
    assert (again["mcmc"], again["amortisation_gap"]) == (found["mcmc"], found["amortisation_gap"])
    assert again["posterior"]["num_draws"] == 4
    with xr.open_datatree(run.path / "posterior.nc", engine="h5netcdf") as tree:
        assert set(tree.children) >= CHAIN_GROUPS
        assert tree["posterior"].sizes["draw"] == 4
    assert cli.main([*few, "--split", "validation"]) == 0  # of other sequences
    assert not {"mcmc", "amortisation_gap"} & set(run.diagnosis())
    with xr.open_datatree(run.path / "posterior.nc", engine="h5netcdf") as tree:
        assert not CHAIN_GROUPS & set(tree.children)


def test_chains_of_which_no_draw_differs_are_not_believed(run, tmp_path, capsys):
    few = ["--draws", "4", "--sequences", "1", "--max-sequences", "2", "--simulated", "8", "--mcmc-sequences", "1"]
    chain = ["--mcmc", "hmc", "--mcmc-warmup", "1", "--mcmc-draws", "1", "--mcmc-chains", "1"]
    assert cli.main(["diagnose", str(run.path), *few, *chain]) == 0
    assert "MCMC cannot be believed: no cell differs between its draws" in capsys.readouterr().out
    assert run.diagnosis()["mcmc"]["convergence"] == {}
    page = write_report([run], tmp_path / "page.html").read_text()
    assert "MCMC cannot be believed" in page[page.index("How far is the guide") :][:400]


def test_refused_in_a_sentence(run, capsys):
    for arguments, words in [
        (["--mcmc", "gibbs"], "kernel of MCMC"),
        (["--mcmc-draws", "3"], "expected --mcmc NAME"),
        (["--gap-sequences", "3"], "expected --gap NAME"),
        (["--mcmc", "nuts", "--mcmc-sequences", "9"], "between 1 and 8 sequences"),
        (["--mcmc", "nuts", "--mcmc-chains", "0"], "num_chains of at least 1"),
        (["--gap", "auto-cauchy"], "automatic guide"),
        (["--gap", "auto-normal", "--gap-sequences", "1"], "at least 2 sequences"),
        (["--mcmc", "hmc", "--mcmc-tree-depth", "3"], "only with --mcmc nuts"),
    ]:
        assert cli.main(["diagnose", str(run.path), *arguments]) == 2
        assert words in capsys.readouterr().err
    with pytest.raises(UserError, match="num_draws of at least 1"):
        to_datatree(run, mcmc=MCMC(num_draws=0))


def test_the_tree_is_saved_with_chains(run, tmp_path):
    tree = to_datatree(run, num_sequences=2, num_draws=4, mcmc=FEW, mcmc_sequences=1)
    with xr.open_datatree(save_datatree(run, tree), engine="h5netcdf") as opened:
        np.testing.assert_array_equal(opened["posterior_mcmc"]["u"], tree["posterior_mcmc"]["u"])
        assert opened["sample_stats_mcmc"]["diverging"].dtype == bool
