"""Steps that a GPU can replay: the tensors they read, how it is decided, and that a CPU trains as it always did."""

import os
from collections import Counter

import numpy as np
import pyro
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ppl_tvae.assembly import assemble, data_of, renderer
from ppl_tvae.inference.objective import ELBO, Objective
from ppl_tvae.inference.optimization import Optimization, learning_rate_factor
from ppl_tvae.inference.pyro import graphs
from ppl_tvae.inference.pyro import svi as pyro_svi
from ppl_tvae.inference.pyro.device import on_device, to_device
from ppl_tvae.trainers import trainer_of
from ppl_tvae.training import batched
from tests.small_runs import small_training

BATCH, STEPS, SEED = 4, 12, 3
SCHEDULES = {
    "adam, warm-up and cosine, clipped": Optimization("adam", 1e-2, 0.9, 0.5, "cosine", 3, STEPS, 1e-4),
    "sgd": Optimization("sgd", 1e-3, 0.9, 0.0, "constant", 0, STEPS),
}


@pytest.fixture
def case(tmp_path):
    """A tiny experiment in Pyro, and its data."""
    experiment = small_training(tmp_path, "pyro", device="cpu").resolved()
    return experiment, data_of(experiment)


def trainer(experiment, data, optimization, objective=ELBO, **options):
    plans = data.train_plans(SEED, 0, 1, BATCH)
    first = type(plans)(*(field[0] for field in plans))
    program, render = assemble(experiment, "pyro"), renderer(experiment)
    return pyro_svi.Trainer(program, objective, optimization, render, data.tables, first, SEED, **options)


def written_plainly(experiment, data, optimization, start):
    """The same training with the host's own loss, and a loop as its tutorials write it."""
    program, render = assemble(experiment, "pyro"), renderer(experiment)
    plans, tables, losses = to_device(data.train_plans(SEED, 0, STEPS, BATCH)), to_device(data.tables), []
    torch.set_rng_state(torch.from_numpy(start["random.cpu"].copy()))
    with pyro.get_param_store().scope():
        for name in (key.removeprefix("parameter.") for key in start if key.startswith("parameter.")):
            pyro.param(name, torch.from_numpy(start[f"parameter.{name}"].copy()))
        named = dict(pyro.get_param_store().named_parameters())
        parameters = list(named.values())
        if optimization.method == "adam":
            rate, epsilon = optimization.learning_rate, optimization.adam_epsilon
            betas = (optimization.momentum, 0.999)
            optimizer = torch.optim.Adam(parameters, lr=rate, betas=betas, eps=epsilon, fused=True)
        else:
            rate, momentum = optimization.learning_rate, optimization.momentum
            optimizer = torch.optim.SGD(parameters, lr=rate, momentum=momentum, fused=True)
        for step in range(STEPS):
            frames = render(tables, type(plans)(*(field[step] for field in plans)))
            optimizer.zero_grad()
            loss = pyro_svi.sequence_loss(ELBO, program, frames, step)
            loss.backward()
            if optimization.clip_norm:
                torch.nn.utils.clip_grad_norm_(parameters, optimization.clip_norm)
            factor = float(learning_rate_factor(optimization, np.asarray(step)))
            optimizer.param_groups[0]["lr"] = optimization.learning_rate * factor
            optimizer.step()
            losses.append(loss.item())
        return losses, {name: value.detach().numpy() for name, value in named.items()}


@pytest.mark.parametrize("name", SCHEDULES)
def test_on_a_cpu_training_is_the_plain_loop_bit_for_bit(name, case):
    experiment, data = case
    with on_device("cpu", "float32"):
        ours = trainer(experiment, data, SCHEDULES[name])
        start = ours.state()
        losses = ours.advance(data.train_plans(SEED, 0, STEPS, BATCH))
        expected, parameters = written_plainly(experiment, data, SCHEDULES[name], start)
        assert losses.tolist() == expected
        assert losses[-1] != losses[0]
        for key, value in parameters.items():
            np.testing.assert_array_equal(ours.state()[f"parameter.{key}"], value)
        assert ours.execution == ""


def test_the_held_out_loss_is_the_mean_of_the_batches(case):
    """Of one stream of noise, whatever was trained or evaluated before, and in batches of another size too."""
    experiment, data = case
    with on_device("cpu", "float32"):
        ours = trainer(experiment, data, SCHEDULES["sgd"])
        plans = to_device(batched(data.validation_plan(6), 3))
        program, render, tables = assemble(experiment, "pyro"), renderer(experiment), to_device(data.tables)
        with pyro.get_param_store().scope(ours._store), torch.no_grad(), torch.random.fork_rng():
            torch.manual_seed(ours._evaluation_seed)
            batches = [render(tables, type(plans)(*(field[index] for field in plans))) for index in range(2)]
            expected = torch.stack([pyro_svi.sequence_loss(ELBO, program, frames, 0) for frames in batches]).mean()
        assert ours.held_out_loss(batched(data.validation_plan(6), 3)) == float(expected)
        assert ours.held_out_loss(batched(data.validation_plan(6), 2)) != float(expected)
        assert ours.held_out_loss(batched(data.validation_plan(6), 3)) == float(expected)


def counting(steps):
    """A way to record which takes steps, as the real one does, and counts replays."""

    def record(step):
        for _ in range(3):
            step()

        def replay():
            steps["replayed"] += 1
            step()

        return replay

    return record


def refusing(step):
    """A step, and then what torch says of a recording that failed."""
    step()
    raise RuntimeError("operation not permitted when stream is capturing\nCUDA kernel errors might be ...")


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("refused", [False, True])
def test_trying_to_record_leaves_training_as_it_was(name, refused, case, monkeypatch):
    """Parameters, the optimiser's slots and noise: on a CPU what is tried is the same arithmetic, so bit for bit."""
    experiment, data = case
    replayed, plans = Counter(), data.train_plans(SEED, 0, STEPS, BATCH)
    with on_device("cpu", "float32"):
        plain = trainer(experiment, data, SCHEDULES[name])
        expected = plain.advance(plans)
        monkeypatch.setattr(graphs, "recorded", refusing if refused else counting(replayed))
        tried = trainer(experiment, data, SCHEDULES[name])
        tried._on_gpu = True
        losses = tried.advance(plans)
        np.testing.assert_array_equal(losses, expected)
        for key, value in plain.state().items():
            np.testing.assert_array_equal(tried.state()[key], value, err_msg=key)
    assert replayed["replayed"] == (0 if refused else STEPS)
    reason = "cannot be recorded as a CUDA graph: operation not permitted when stream is capturing"
    assert tried.execution == (f"called one by one, since they {reason}" if refused else "replayed as a CUDA graph")


def test_a_restored_state_is_recorded_anew(case, monkeypatch):
    """The optimiser takes up other tensors, which an old recording would not see."""
    experiment, data = case
    recordings = []
    monkeypatch.setattr(graphs, "recorded", lambda step: recordings.append(step) or step)
    plans = data.train_plans(SEED, 0, STEPS, BATCH)
    with on_device("cpu", "float32"):
        ours = trainer(experiment, data, SCHEDULES["sgd"])
        ours._on_gpu = True
        start, first = ours.state(), ours.advance(plans)
        ours.restore(start)
        np.testing.assert_array_equal(ours.advance(plans), first)
    assert len(recordings) == 2


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_snapshot_is_gone_back_to_in_place(name, case, monkeypatch):
    """Before the first step, when the optimiser has no slots, and later; what is recorded is replayed."""
    experiment, data = case
    recordings = []
    monkeypatch.setattr(graphs, "recorded", lambda step: recordings.append(step) or step)
    with on_device("cpu", "float32"):
        ours = trainer(experiment, data, SCHEDULES[name])
        ours._on_gpu = True
        for step in (0, STEPS):
            start, plans = ours.snapshot(), data.train_plans(SEED, step, STEPS, BATCH)
            first, after = ours.advance(plans), ours.state()
            ours.rewind(start)
            np.testing.assert_array_equal(ours.advance(plans), first)
            for key, value in ours.state().items():
                np.testing.assert_array_equal(value, after[key], err_msg=key)
    assert len(recordings) == 1


@pytest.mark.parametrize("refused", ["a step", "the held-out loss"])
def test_a_recording_that_fails_has_the_other_made_anew(refused, case, monkeypatch):
    """It leaves torch another generator of random numbers, from which a recording made before does not draw."""
    experiment, data = case
    made = Counter()

    def record(step):
        kind = "a step" if step == ours._step else "the held-out loss"
        made[kind] += 1
        if kind == refused:
            raise RuntimeError("not while a stream is recorded")
        return lambda: step()

    monkeypatch.setattr(graphs, "recorded", record)
    plans, held_out = data.train_plans(SEED, 0, 2, BATCH), batched(data.validation_plan(8), BATCH)
    works = [lambda: ours.advance(plans), lambda: ours.held_out_loss(held_out)]
    with on_device("cpu", "float32"):
        ours = trainer(experiment, data, SCHEDULES["sgd"])
        ours._on_gpu = True
        for work in (works[::-1] if refused == "a step" else works) * 3:
            work()
    other = {"a step": "the held-out loss", "the held-out loss": "a step"}[refused]
    assert made == {refused: 1, other: 2}


def test_steps_are_not_recorded_where_that_is_not_wanted(case, monkeypatch):
    experiment, data = case
    monkeypatch.setattr(graphs, "recorded", lambda step: pytest.fail("recorded"))
    with on_device("cpu", "float32"):
        ours = trainer(experiment, data, SCHEDULES["sgd"], may_record=False)
        ours._on_gpu = True
        ours.advance(data.train_plans(SEED, 0, 2, BATCH))
    assert ours.execution == ""


class HostValues(TorchDispatchMode):
    """Counts what a recording forbids: tensors made from the host's numbers, and values asked for on the host."""

    FORBIDDEN = ("aten.lift_fresh.default", "aten._local_scalar_dense.default", "aten.nonzero.default")

    def __init__(self):
        super().__init__()
        self.found = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        # The host's plate asks an empty tensor for the default device; nothing of it is copied.
        if str(function) in self.FORBIDDEN and not (isinstance(result, torch.Tensor) and result.numel() == 0):
            self.found[str(function)] += 1
        return result


@pytest.mark.parametrize(
    "settings",
    [
        {}, {"model": "vae"}, {"lattice_weights": "learned"}, {"kl_warmup_steps": 5}, {"objective": "iwae-dreg"},
        {"objective": "renyi"}, {"guide": "smoother"}, {"guide": "iaf"}, {"guide": "mixture"}, {"prior": "laplace"},
        {"prior": "mixture"}, {"prior": "vamp"}, {"prior": "hyperspherical"}, {"likelihood": "continuous-bernoulli"},
        {"clip_norm": 1.0},
    ],
)  # fmt: skip
def test_no_number_crosses_between_host_and_device_within_a_step(settings, tmp_path):
    """All of a step but the optimiser, whose update on a GPU is another one than on a CPU."""
    experiment = small_training(tmp_path, "pyro", device="cpu", **settings).resolved()
    data = data_of(experiment)
    with trainer_of(experiment, data) as ours:
        plans = to_device(data.train_plans(SEED, 0, 1, BATCH))
        ours.advance(plans)
        ours._optimizer.step = lambda: None
        with pyro.get_param_store().scope(ours._store), HostValues() as seen:
            ours._batches.prepare(plans, 0)
            ours._step()
    assert not seen.found


def test_numbers_that_cross_are_seen():
    """What the test above would say of a step that asks for a value, or makes a tensor of one."""
    with HostValues() as seen:
        if torch.zeros(2).sum().item() == 0:
            torch.tensor(1.0)
    assert seen.found.total() == 2


@pytest.mark.skipif(
    os.environ.get("PPL_TVAE_GPU") != "1", reason="needs a GPU: PPL_TVAE_GPU=1 pytest tests/inference/test_graphs.py"
)
@pytest.mark.parametrize("objective", [ELBO, Objective("iwae-dreg", 3)], ids=lambda objective: objective.name)
@pytest.mark.parametrize("name", SCHEDULES)
def test_replayed_steps_are_those_called_one_by_one(name, objective, tmp_path):
    """On a GPU: the same kernels on the same noise. Products may be summed in another order, hence the tolerance."""
    experiment = small_training(tmp_path, "pyro", device="cuda", precision="float64").resolved()
    data = data_of(experiment)
    plans = data.train_plans(SEED, 0, STEPS, BATCH)
    with on_device("cuda", "float64"):
        by_graph = trainer(experiment, data, SCHEDULES[name], objective)
        called = trainer(experiment, data, SCHEDULES[name], objective, may_record=False)
        start, expected = called.state(), called.advance(plans)
        by_graph.restore(start)  # the stream of random numbers too
        losses = by_graph.advance(plans)
        assert by_graph.execution == "replayed as a CUDA graph"
        np.testing.assert_allclose(losses, expected, rtol=1e-9)
        held_out = batched(data.validation_plan(8), BATCH)
        np.testing.assert_allclose(by_graph.held_out_loss(held_out), called.held_out_loss(held_out), rtol=1e-9)
        assert by_graph.held_out_loss(held_out) == by_graph.held_out_loss(held_out)
        for key, value in called.parameters().items():
            np.testing.assert_allclose(by_graph.parameters()[key], value, rtol=1e-7, atol=1e-9, err_msg=key)
        assert len(set(losses.tolist())) == STEPS
