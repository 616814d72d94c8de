"""One batch on two devices: the parameters of one device, up to rounding. In processes that have two devices."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ppl_tvae.config import Experiment
from ppl_tvae.errors import UserError
from ppl_tvae.training import train
from tests.small_runs import small_training

ROOT = Path(__file__).parents[1]
TWO_CPUS = "--xla_force_host_platform_device_count=2"


def run_with_two_cpus(code: str, *arguments: str) -> str:
    flags = f"{os.environ.get('XLA_FLAGS', '')} {TWO_CPUS}"
    environment = os.environ | {"XLA_FLAGS": flags, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env=environment, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


COMPARED = """
import sys
from dataclasses import replace
from pathlib import Path
import jax, numpy as np
from ppl_tvae.assembly import data_of
from ppl_tvae.trainers import trainer_of
from tests.small_runs import small_training

found, seen = {}, set()
for devices in (1, 2):
    experiment = small_training(Path(sys.argv[1]), "numpyro", precision="float64", devices=devices, clip_norm=5.0)
    experiment = experiment.resolved()
    data = data_of(experiment)
    with trainer_of(experiment, data) as trainer:
        frames_of = type(trainer)._frames
        def watched(self, tables, plan):
            frames = frames_of(self, tables, plan)
            jax.debug.inspect_array_sharding(
                frames, callback=lambda s, shape=frames.shape, n=devices: seen.add((n, s.shard_shape(shape)))
            )
            return frames
        type(trainer)._frames = watched
        start = trainer.parameters()
        losses = trainer.advance(data.train_plans(experiment.seed, 0, 20, experiment.batch_size))
        held_out = [trainer.held_out_loss(data.train_plans(7, 0, 2, size)) for size in (4, 3)]
        type(trainer)._frames = frames_of
        found[devices] = losses, held_out, start, trainer.parameters()
        placed = [leaf.sharding for leaf in jax.tree.leaves(trainer._state)]
        assert all(sharding.is_fully_replicated and len(sharding.device_set) == devices for sharding in placed)
        # Where the run was resumed here, its next steps would be the same, bit for bit.
        plans, state = data.train_plans(experiment.seed, 20, 5, experiment.batch_size), trainer.state()
        straight = trainer.advance(plans)
        trainer.restore(state)
        np.testing.assert_array_equal(trainer.advance(plans), straight)
(losses, held_out, start, one), (their_losses, their_held_out, _, two) = found[1], found[2]
print(sorted(seen))
np.testing.assert_allclose(their_losses, losses, rtol=1e-10)
np.testing.assert_allclose(their_held_out, held_out, rtol=1e-10)
for name, value in one.items():
    assert np.abs(value - start[name]).max() > 1e-3, name
    np.testing.assert_allclose(two[name], value, rtol=1e-8, atol=1e-10)
"""


def test_two_devices_train_as_one(tmp_path):
    """Batches of four, of which each device has two; the held-out batch of three fits on no two devices."""
    told = run_with_two_cpus(COMPARED, str(tmp_path))
    shards = {(devices, shape[0]) for devices, shape in eval(told)}
    assert shards == {(1, 4), (1, 3), (2, 2), (2, 3)}


def test_a_run_begun_on_one_device_goes_on_with_two(tmp_path):
    train(small_training(tmp_path, "numpyro", steps=20), tmp_path / "run", quiet=True)
    code = "import sys; from ppl_tvae.cli import main; sys.exit(main(sys.argv[1:]))"
    run_with_two_cpus(code, "train", "--resume", f"--out={tmp_path / 'run'}", "--steps=40", "--devices=2")
    train(small_training(tmp_path, "numpyro", steps=40), tmp_path / "one", quiet=True)
    from ppl_tvae.runs import open_run

    run, one = open_run(tmp_path / "run"), open_run(tmp_path / "one")
    assert run.experiment.devices == 2
    np.testing.assert_allclose(
        [row["loss"] for row in run.metrics() if "loss" in row],
        [row["loss"] for row in one.metrics() if "loss" in row],
        rtol=1e-4,
    )


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"devices": 0}, "expected devices of at least 1, found 0"),
        ({"devices": 3}, "expected a batch_size that is a multiple of the 3 devices, found 4"),
        ({"devices": 2, "backend": "pyro"}, "torchrun --nproc-per-node 2 -m ppl_tvae.cli train"),
    ],
)
def test_devices_that_do_not_fit(settings, words, tmp_path):
    with pytest.raises(UserError, match=words):
        replace(small_training(tmp_path, "numpyro"), **settings).resolved()


def test_more_devices_than_there_are(tmp_path):
    experiment: Experiment = small_training(tmp_path, "numpyro", devices=4)
    with pytest.raises(UserError, match=r"expected 4 devices, found 1 of 'cpu'; .*device_count=4"):
        train(experiment, tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()
