"""Every guide and every prior, by one flag: it trains, it learns, it is evaluated, ArviZ gets its draws."""

from dataclasses import replace

import numpy as np
import pytest

from ppl_tvae import Annealing, UserError, evaluate, to_datatree, train
from ppl_tvae.assembly import lattice_of
from ppl_tvae.inference.unamortised import Unamortised
from tests.small import EVERY_SWAP
from tests.small_runs import BACKENDS, small_training


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("model", "guide", "prior"), EVERY_SWAP)
def test_a_swap_learns_and_is_evaluated(model, guide, prior, backend, tmp_path):
    settings = {"data": "digits", "model": model, "guide": guide, "prior": prior, "steps": 200, "evaluate_every": 200}
    experiment = replace(small_training(tmp_path, backend), **settings, learning_rate=3e-3, log_every=50)
    run = train(experiment, tmp_path / "run", quiet=True)
    losses = [row["loss"] for row in run.metrics() if row["step"]]
    assert np.isfinite(losses).all()
    assert losses[-1] < 0.9 * losses[0]
    records = evaluate(run, particles=(1, 20), max_sequences=8, quiet=True)
    by_name = {(record["estimator"], record["num_particles"]): record["value"] for record in records}
    assert np.isfinite(list(by_name.values())).all()
    assert by_name["iwae", 20] > by_name["iwae", 1]
    tree = to_datatree(run, num_sequences=2, num_draws=3)
    assert tree["posterior"]["t"].dims == ("chain", "draw", "sequence", "time", "capsule", "position")
    assert all(np.isfinite(values).all() for group in tree.children.values() for values in _known(group))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("guide", ["smoother", "low-rank", "iaf", "mixture"])
def test_annealing_starts_from_any_guide(guide, backend, tmp_path):
    """Its density is asked for at latents that it did not draw."""
    run = train(small_training(tmp_path, backend, guide=guide), tmp_path / "run", quiet=True)
    settings = Annealing(num_temperatures=4, num_leapfrog_steps=2)
    records = evaluate(run, estimators=("ais", "sandwich"), annealing=settings, max_sequences=4, quiet=True)
    assert np.isfinite([record["value"] for record in records]).all()
    assert records[0]["notes"]["acceptance_rate"] > 0


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("prior", ["mixture", "vamp"])
def test_annealing_and_automatic_guides_move_within_mixtures(prior, backend, tmp_path):
    """Of which torch has no unconstrained coordinates by itself."""
    run = train(small_training(tmp_path, backend, prior=prior), tmp_path / "run", quiet=True)
    settings = Annealing(num_temperatures=4, num_leapfrog_steps=2)
    records = evaluate(run, estimators=("ais",), annealing=settings, max_sequences=2, quiet=True)
    records += evaluate(
        run, guide=Unamortised("auto-normal", steps=3), estimators="elbo", particles=2, max_sequences=1, quiet=True
    )
    assert np.isfinite([record["value"] for record in records]).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_annealing_and_automatic_guides_refuse_the_sphere(backend, tmp_path):
    run = train(small_training(tmp_path, backend, prior_u="hyperspherical"), tmp_path / "run", quiet=True)
    with pytest.raises(UserError, match="found site 'u' with the support"):
        evaluate(run, estimators=("ais",), annealing=Annealing(num_temperatures=4), max_sequences=2, quiet=True)
    with pytest.raises(UserError, match="found site 'u' with the support"):
        evaluate(run, guide=Unamortised("auto-normal"), particles=(2,), max_sequences=2, quiet=True)


@pytest.mark.parametrize("backend", BACKENDS)
def test_learned_lattice_and_mu_per_cell(backend, tmp_path):
    """They start as the paper's program and are trained: only the weights that W uses, and those stay positive."""
    settings = {"lattice_weights": "learned", "mu_per": "cell", "learning_rate": 0.01}
    run = train(small_training(tmp_path, backend, **settings), tmp_path / "run", quiet=True)
    plain = train(small_training(tmp_path, backend, learning_rate=0.01), tmp_path / "plain", quiet=True)
    assert run.metrics()[0]["elbo_per_frame"] == pytest.approx(plain.metrics()[0]["elbo_per_frame"], rel=1e-5)
    values, used = run.parameters(), lattice_of(run.experiment).neighborhood > 0
    weights = values["lattice.weight"]
    assert values["mu"].shape == (2, 4)
    assert len(np.unique(values["mu"])) == 8
    assert (weights[used] > 0).all()
    assert (weights[used] != 1).all()
    np.testing.assert_allclose(weights[~used], 1, rtol=1e-6)


def _known(group):
    """The values of a group, without k-hat, which three draws do not give."""
    return [values for name, values in group.data_vars.items() if name != "khat"]
