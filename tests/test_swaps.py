"""Every guide and every prior, by one flag: it trains, it learns, and every estimator takes it."""

from dataclasses import replace

import numpy as np
import pytest

from ppl_tvae import Annealing, evaluate, train
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


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("guide", ["smoother", "low-rank", "iaf"])
def test_annealing_starts_from_any_guide(guide, backend, tmp_path):
    """Its density is asked for at latents that it did not draw."""
    run = train(small_training(tmp_path, backend, guide=guide), tmp_path / "run", quiet=True)
    settings = Annealing(num_temperatures=4, num_leapfrog_steps=2)
    records = evaluate(run, estimators=("ais", "sandwich"), annealing=settings, max_sequences=4, quiet=True)
    assert np.isfinite([record["value"] for record in records]).all()
    assert records[0]["notes"]["acceptance_rate"] > 0
