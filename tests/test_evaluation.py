"""Evaluating and comparing runs, through files, in both backends and across them."""

import re
import shutil
import tomllib
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tomli_w
from arviz_stats.base import array_stats
from scipy.special import logsumexp

import ppl_tvae
from ppl_tvae import cli, comparison
from ppl_tvae import trained as trained_runs
from ppl_tvae.assembly import assemble, data_of
from ppl_tvae.diagnosis import equivariance_metrics
from ppl_tvae.errors import Interrupted, UserError
from ppl_tvae.evaluation import _Request, evaluate
from ppl_tvae.inference import bounds, reliability
from ppl_tvae.inference.annealing import Annealed, Annealing
from ppl_tvae.inference.numpyro.evaluator import Evaluator
from ppl_tvae.inference.unamortised import Unamortised
from ppl_tvae.report import _compared, _warnings
from ppl_tvae.report.page import Table
from ppl_tvae.runs import create_run, open_run
from ppl_tvae.trained import evaluator
from tests.conftest import STANDARD_ERRORS
from tests.small import random_latents
from tests.small_runs import small_images, small_training
from tests.test_parity import numpyro_values, pyro_values

SMALL = {"hidden": (12,), "num_capsules": 2, "capsule_dim": 5, "num_timesteps": 4, "temporal_window": 3}
ALL = ("elbo", "iwae", "log-evidence", "released-is", "ais", "sandwich")
FEW = Annealing(num_temperatures=12, num_leapfrog_steps=3, num_chains=2)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    few = {"steps": 20, "batch_size": 4, "validation_sequences": 4, "data": "digits"}
    made = {}
    for backend in ("numpyro", "pyro"):
        experiment = ppl_tvae.Experiment(backend=backend, **SMALL, **few)
        made[backend] = ppl_tvae.train(experiment, folder / backend, quiet=True)
    return made


@pytest.mark.parametrize("backend", ["numpyro", "pyro"])
def test_every_estimator_has_a_record_that_says_what_it_is(runs, backend):
    records = ppl_tvae.evaluate(runs[backend], estimators=ALL, particles=(2, 30), annealing=FEW, max_sequences=8)
    found = {(record["estimator"], record.get("num_particles")): record for record in records}
    assert list(found) == [
        ("elbo", 30), ("iwae", 2), ("iwae", 30), ("log-evidence", 30), ("released-is", 2), ("released-is", 30),
        ("ais", None), ("sandwich-lower", None), ("sandwich-upper", None),
    ]  # fmt: skip
    assert runs[backend].evaluations() == records
    for record in records:
        assert len(record["per_sequence"]) == record["num_sequences"] == 8
        assert np.mean(record["per_sequence"]) == pytest.approx(record["value"], abs=1e-3)
        assert record["unit"] == "nats per frame"
        assert record["backend"] == backend
    assert found["elbo", 30]["value"] < found["iwae", 2]["value"] < found["iwae", 30]["value"]
    assert "NO bound" in found["released-is", 2]["side"]
    assert "simulated" in found["sandwich-upper", None]["notes"]["data"]
    assert found["sandwich-lower", None]["value"] < found["sandwich-upper", None]["value"] + 1
    assert "k-hat" in found["iwae", 30]["notes"]["verdict"]
    settings = ("start", "num_temperatures", "schedule", "num_leapfrog_steps", "num_chains")
    assert all(found["ais", None][name] == getattr(FEW, name) for name in settings)


def test_a_score_that_a_program_does_not_have_is_refused_before_others_are_computed(tmp_path, capsys):
    run = ppl_tvae.train(small_training(tmp_path, "pyro", guide="iaf", steps=1), tmp_path / "run", quiet=True)
    arguments = ["evaluate", str(run.path), "--estimators", "elbo,iwae,released-is", "--max-sequences", "3"]
    assert cli.main(arguments) == 2
    assert "frame" in capsys.readouterr().err
    assert not run.evaluations()


class Known:
    """An evaluator whose weights are given: 30 particles or 4 chains of 6 sequences of 4 frames."""

    def __init__(self):
        rng = np.random.default_rng(0)
        self.weights, self.per_frame = rng.normal(-100, 2, (30, 6)), rng.normal(-30, 1, (2, 6, 4))
        self.forward, self.backward = rng.normal(-100, 3, (2, 4, 6))

    def log_weights(self, part, index, count, per_frame=False):
        return self.per_frame if per_frame else self.weights

    def annealed(self, part, index, annealing, progress):
        return Annealed(self.forward, np.array([0.25, 0.75]), np.ones(2))

    def bracketed(self, part, index, annealing, progress):
        backward = Annealed(self.backward, np.ones(2), np.ones(2))
        return self.annealed(part, index, annealing, progress), backward


def test_records_hold_the_numbers_of_the_weights(tmp_path, monkeypatch):
    run = ppl_tvae.train(small_training(tmp_path, "pyro", steps=1), tmp_path / "run", quiet=True)
    known, asked = Known(), []
    monkeypatch.setattr("ppl_tvae.trained.evaluator", lambda *given: asked.append(given) or nullcontext(known))
    settings = {"max_sequences": 6, "seed": 7, "quiet": True}
    estimators = ("elbo", "iwae", "log-evidence", "ais", "sandwich")
    records = ppl_tvae.evaluate(run, estimators=estimators, particles=30, **settings)
    records += ppl_tvae.evaluate(run, estimators="released-is", particles=2, **settings)
    assert {arguments[4] for arguments in asked} == {7}
    found = {record["estimator"]: record for record in records}

    def log_mean(log_weights):
        return logsumexp(log_weights, axis=0) - np.log(len(log_weights))

    expected = {
        "elbo": known.weights.mean(axis=0),
        "iwae": log_mean(known.weights),
        "ais": log_mean(known.forward),
        "sandwich-lower": log_mean(known.forward),
        "sandwich-upper": -log_mean(-known.backward),
        "released-is": 4 * logsumexp(known.per_frame, axis=0).mean(axis=-1),
    }
    for name, values in expected.items():
        assert found[name]["value"] == pytest.approx(values.mean() / 4), name
        assert found[name]["standard_error"] == pytest.approx(values.std(ddof=1) / 4 / 6**0.5), name
        np.testing.assert_allclose(found[name]["per_sequence"], values / 4, atol=1e-4)
    bits = -expected["elbo"].mean() / 4 / (6 * 6 * 3) / np.log(2)
    assert found["elbo"]["bits_per_dimension"] == pytest.approx(bits)
    without_bits = {name for name, record in found.items() if record["bits_per_dimension"] is None}
    assert without_bits == {"sandwich-lower", "sandwich-upper", "released-is"}  # not of these data, or no density
    left_out = [log_mean(np.delete(known.weights, k, axis=0)) for k in range(30)]
    bias = 29 * (np.mean(left_out, axis=0) - log_mean(known.weights))
    removed = found["log-evidence"]["notes"]["mean_bias_added"]
    assert removed == pytest.approx(-bias.mean() / 4)
    notes, gap = found["sandwich-upper"]["notes"], expected["sandwich-upper"] - expected["sandwich-lower"]
    assert notes["mean_gap"] == pytest.approx(gap.mean() / 4)
    assert notes["gap_standard_error"] == pytest.approx(gap.std(ddof=1) / 6**0.5 / 4)
    assert (notes["acceptance_rate"], notes["lowest_acceptance_rate"]) == (0.5, 0.25)


def test_the_largest_number_of_particles_is_that_of_the_jackknife():
    asked = _Request(("iwae", "log-evidence"), (1, 10), Annealing(), None, "test", 1, 0)
    asked.check()
    with pytest.raises(ppl_tvae.UserError, match="at least 2 particles for log-evidence, found 1"):
        asked._replace(particles=(1,)).check()


def test_asking_again_replaces_the_record_and_gives_the_same_number(runs):
    first = ppl_tvae.evaluate(runs["numpyro"], estimators=("elbo",), particles=(3,), max_sequences=2)
    again = ppl_tvae.evaluate(runs["numpyro"], estimators=("elbo",), particles=(3,), max_sequences=2)
    assert first[0]["per_sequence"] == again[0]["per_sequence"]
    same = [r for r in runs["numpyro"].evaluations() if r["num_sequences"] == 2 and r["estimator"] == "elbo"]
    assert len(same) == 1


@pytest.mark.parametrize("trained", ["numpyro", "pyro"])
def test_a_run_has_the_same_elbo_in_both_backends_at_the_same_draws(runs, trained):
    run, rng = runs[trained], np.random.default_rng(0)
    data = data_of(run.experiment)
    frames = data_frames(data, data.test_plan(5))
    latents = random_latents(run.experiment, 5, rng)
    arguments = (run.experiment, run.parameters(), frames, latents, "float32")
    ours, theirs = numpyro_values(*arguments), pyro_values(*arguments)
    for name in ("elbo", "log weight"):
        np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-5)


@pytest.mark.parametrize("trained", ["numpyro", "pyro"])
def test_a_run_is_evaluated_in_the_other_backend(runs, trained):
    """The same frames, bit for bit; the estimates agree within the errors of their own draws."""
    data = data_of(runs[trained].experiment)
    plan, k = data.test_plan(4), 400
    drawn = {}
    for backend in ("numpyro", "pyro"):
        with evaluator(runs[trained], data, backend, "cpu", seed=0) as ready:
            assert ready.frames(plan).tobytes() == data_frames(data, plan).tobytes()
            drawn[backend] = ready.log_weights(plan, 0, k)
    error = np.hypot(*[weights.std(axis=0) for weights in drawn.values()]) / np.sqrt(k)
    difference = drawn["numpyro"].mean(axis=0) - drawn["pyro"].mean(axis=0)
    assert (np.abs(difference) < STANDARD_ERRORS * error).all()


def data_frames(data, plan):
    from ppl_tvae.data import render

    return render(data.tables, plan, True)


def copied_with(run, folder, **settings):
    """A copy of a run with other settings in its config.toml, and its estimates."""
    shutil.copytree(run.path, folder)
    config = folder / "config.toml"
    values = tomllib.loads(config.read_text()) | settings
    config.write_text(tomli_w.dumps(values))
    return ppl_tvae.open_run(folder)


def test_runs_that_differ_in_their_seed_alone_are_averaged(runs, tmp_path):
    """Each difference is of the same seed and the same sequences, and its spread is that over seeds."""
    for seed in (0, 1, 2):
        for name, settings in (("plain", {}), ("warmed", {"kl_warmup_steps": 2})):
            run = copied_with(runs["pyro"], tmp_path / f"{name}-seed{seed}", seed=seed, **settings)
            (run.path / "evaluation.json").unlink(missing_ok=True)
            ppl_tvae.evaluate(
                run, estimators="elbo", particles=5, max_sequences=4, seed=10 * seed + len(name), quiet=True
            )
    paths = [tmp_path / f"{name}-seed{seed}" for name in ("plain", "warmed") for seed in (0, 1, 2)]
    compared = ppl_tvae.compare(paths[:5])
    value = {name: own["elbo"].value for name, own in compared.estimates.items()}
    plain, warmed = ([value[f"{name}-seed{seed}"] for seed in range(n)] for name, n in (("plain", 3), ("warmed", 2)))
    assert compared.over_seeds["plain"]["elbo"] == pytest.approx((np.mean(plain), np.std(plain, ddof=1), 3))
    assert compared.over_seeds["warmed"]["elbo"].num_seeds == 2
    differences = np.subtract(warmed, plain[:2])
    expected = (differences.mean(), differences.std(ddof=1), 2)
    assert compared.differences_over_seeds["warmed"]["elbo"] == pytest.approx(expected)
    told = comparison.as_text(compared)
    assert "mean ± standard deviation over seeds (plain 3, warmed 2):" in told
    assert "minus plain, paired by seed and sequence" in told
    assert f"{np.mean(plain):.2f} ± {np.std(plain, ddof=1):.2f}" in told
    assert comparison.as_json(compared)["over_seeds"]["plain"]["elbo"]["num_seeds"] == 3
    captions = [part.caption for part in _compared(compared) if isinstance(part, Table)]
    assert captions[1].startswith("mean ± standard deviation over seeds (plain 3, warmed 2)")

    apart = ppl_tvae.compare([paths[0], paths[3]])
    assert not apart.over_seeds
    assert "over seeds" not in comparison.as_text(apart)
    single = ppl_tvae.compare([paths[0], paths[1], paths[3]])
    assert single.over_seeds["warmed"]["elbo"].num_seeds == 1
    assert "±" not in str(single.over_seeds["warmed"]["elbo"])
    assert not single.differences_over_seeds
    ppl_tvae.evaluate(paths[1], estimators="elbo", particles=5, max_sequences=6, seed=15, quiet=True)
    assert not ppl_tvae.compare(paths[:2]).over_seeds  # of four sequences, and of six


def test_columns_come_in_the_order_of_their_particles(runs, tmp_path):
    run = ppl_tvae.open_run(shutil.copytree(runs["pyro"].path, tmp_path / "run"))
    for particles in ((3, 30), (2, 100)):
        ppl_tvae.evaluate(run, estimators="iwae", particles=particles, max_sequences=4, seed=9, quiet=True)
    headings, _ = comparison.headings_and_cells(ppl_tvae.compare(run).estimates)
    numbers = [int(name.split()[0].removeprefix("iwae-")) for name in headings.values() if name.startswith("iwae")]
    assert {2, 3, 30, 100} <= set(numbers)
    assert numbers == sorted(numbers)
    given = ["elbo", "iwae-100", "ais-guide-200x1", "iwae-10", "iwae-10-auto-normal-5", "iwae-2-auto-normal-5"]
    expected = ["elbo", "iwae-10", "iwae-100", "ais-guide-200x1", "iwae-2-auto-normal-5", "iwae-10-auto-normal-5"]
    assert comparison.in_order(given) == expected


def test_comparison_is_paired_and_refuses_what_cannot_be_ranked(runs, tmp_path):
    for run in runs.values():
        ppl_tvae.evaluate(run, estimators=("elbo", "iwae"), particles=(5,), max_sequences=8, seed=7)
    compared = ppl_tvae.compare(list(runs.values()))
    records = [next(r for r in reversed(run.evaluations()) if r["estimator"] == "elbo") for run in runs.values()]
    expected = np.asarray(records[1]["per_sequence"]) - np.asarray(records[0]["per_sequence"])
    entry = compared.differences["pyro"]["elbo"]
    assert entry.value == pytest.approx(expected.mean())
    assert entry.standard_error == pytest.approx(expected.std(ddof=1) / np.sqrt(len(expected)))
    assert "likelihood bernoulli" in compared.header
    assert comparison.as_text(compared, markdown=True).count("|") > 10
    assert "pyro,elbo," in comparison.as_csv(compared)
    assert "minus numpyro, paired over the same 8 sequences:" in comparison.as_text(compared)
    assert "different numbers" not in comparison.as_text(compared)
    assert comparison.as_json(compared)["estimates"]["pyro"]["elbo"]["value"] == records[1]["value"]

    settings = Annealing(num_temperatures=2, num_leapfrog_steps=1)
    beside = ppl_tvae.open_run(shutil.copytree(runs["pyro"].path, tmp_path / "beside"))
    ppl_tvae.evaluate(beside, estimators="sandwich", annealing=settings, max_sequences=8, seed=7)
    (remark,) = comparison.remarks(ppl_tvae.compare(beside))
    assert "sandwich-upper-guide-2x1" in remark
    assert remark.endswith("of sequences simulated from each model, and not of the held-out ones")

    longer = ppl_tvae.open_run(shutil.copytree(runs["pyro"].path, tmp_path / "longer"))
    steps, batch = longer.experiment.steps, longer.experiment.batch_size
    ppl_tvae.resume(longer.path, steps=steps + 2, quiet=True)
    ppl_tvae.evaluate(longer, estimators="elbo", particles=5, max_sequences=8, seed=7)
    remark, *_ = comparison.remarks(ppl_tvae.compare([runs["pyro"], longer]))
    pair = f"pyro by {steps} steps of {batch} sequences; longer by {steps + 2} steps of {batch} sequences"
    assert remark == f"not trained alike: {pair}"

    warmed = copied_with(runs["pyro"], tmp_path / "warmed", kl_warmup_steps=2, clip_norm=3.0)
    remark, *_ = comparison.remarks(ppl_tvae.compare([runs["pyro"], warmed]))
    alike = f"by {steps} steps of {batch} sequences"
    assert remark == (
        f"not trained alike: pyro {alike}, kl_warmup_steps 0, clip_norm 0.0; "
        f"warmed {alike}, kl_warmup_steps 2, clip_norm 3.0"
    )

    ppl_tvae.evaluate(runs["pyro"].path, estimators="elbo", particles=5, max_sequences=6, seed=7)  # a quick look
    assert ppl_tvae.compare([run.path for run in runs.values()]) == compared
    (longer,) = ppl_tvae.evaluate(runs["pyro"].path, estimators="elbo", particles=5, max_sequences=11, seed=7)
    more = ppl_tvae.compare([run.path for run in runs.values()])
    told = comparison.as_text(more)
    assert "elbo: means over different numbers of sequences, which only paired differences compare" in told
    assert "paired over the same 8 sequences:" in told
    pairs = np.subtract(longer["per_sequence"][:8], records[0]["per_sequence"])
    assert more.differences["pyro"]["elbo"] == pytest.approx(
        (pairs.mean(), pairs.std(ddof=1) / np.sqrt(8), 8), abs=1e-3
    )

    grey = ppl_tvae.Experiment(likelihood="bernoulli-grey", steps=1, batch_size=2, validation_sequences=2, **SMALL)
    other = ppl_tvae.train(grey, tmp_path / "grey", quiet=True)
    with pytest.raises(ppl_tvae.UserError, match="found none; run ppl-tvae evaluate"):
        ppl_tvae.compare([runs["numpyro"], other])
    ppl_tvae.evaluate(other, estimators=("elbo",), particles=(2,), max_sequences=8)
    with pytest.raises(ppl_tvae.UserError, match="found likelihood 'bernoulli' in 'numpyro' and 'bernoulli-grey'"):
        ppl_tvae.compare([runs["numpyro"], other])


@pytest.mark.parametrize(
    ("record", "label"),
    [
        ({"estimator": "elbo", "guide_name": "auto-normal", "guide_steps": 600}, "elbo-auto-normal-600"),
        (
            {"estimator": "elbo", "guide_name": "auto-normal", "guide_steps": 600, "guide_learning_rate": 0.03},
            "elbo-auto-normal-600-guide-learning-rate-0.03",
        ),
        ({"estimator": "ais"} | Annealing()._asdict(), "ais-guide-200x1"),
        ({"estimator": "ais"} | Annealing(schedule="linear")._asdict(), "ais-guide-200x1-schedule-linear"),
        (
            {"estimator": "ais"} | Annealing("prior", num_leapfrog_steps=5, target_acceptance=0.7)._asdict(),
            "ais-prior-200x1-num-leapfrog-steps-5-target-acceptance-0.7",
        ),
        ({"estimator": "ais"} | Annealing(step_size=0.1)._asdict(), "ais-guide-200x1-step-size-0.1"),
    ],
    ids=lambda case: case if isinstance(case, str) else "",
)
def test_columns_are_named_by_the_settings_that_make_two_estimates_differ(record, label):
    assert comparison._label(record | {"num_particles": 5}) == label


def recorded(folder, *records):
    """A run that was never trained, with records of estimates."""
    run = create_run(folder, ppl_tvae.Experiment().resolved())
    run.save_parameters({"mu": np.zeros(())})
    whole = {
        "estimator": "elbo", "num_particles": 5, "value": -1.0, "standard_error": 0.1, "num_sequences": 2, "notes": {},
        "per_sequence": [-1.5, -0.5], "likelihood": "bernoulli", "data": "mnist", "transforms": ["hue"],
        "split": "test", "num_timesteps": 18, "unit": "nats per frame", "parameters": run.parameters_digest(),
    }  # fmt: skip
    for record in records:
        run.add_evaluation(whole | record)
    return run


@pytest.mark.parametrize(
    "other",
    [
        {"likelihood": "normal"}, {"data": "digits"}, {"data_digest": "0"}, {"transforms": ["scale"]},
        {"split": "train"}, {"validation_fraction": 0.1}, {"num_timesteps": 6}, {"unit": "nats"},
    ],
    ids=lambda other: min(other),
)  # fmt: skip
def test_what_was_measured_otherwise_is_not_ranked(other, tmp_path):
    one, another = recorded(tmp_path / "a", {}), recorded(tmp_path / "b", other)
    with pytest.raises(ppl_tvae.UserError, match=f"the same thing, found {min(other)} '.*' in 'a' and '.*' in 'b'"):
        ppl_tvae.compare([one, another])


def test_two_sequences_have_a_paired_difference_and_one_has_none(tmp_path):
    base = recorded(tmp_path / "a", {})
    two = recorded(tmp_path / "b", {"per_sequence": [-1.0, 0.5]})
    one = recorded(tmp_path / "c", {"per_sequence": [-1.0], "num_sequences": 1, "standard_error": None})
    differences = ppl_tvae.compare([base, two, one]).differences
    assert differences["b"]["elbo"] == pytest.approx((0.75, 0.25, 2))  # of 0.5 and 1
    assert differences["c"] == {}


def test_sequences_that_each_run_has_simulated_are_not_paired(tmp_path):
    sides = [{"estimator": f"sandwich-{side}"} for side in ("lower", "upper")]
    compared = ppl_tvae.compare([recorded(tmp_path / name, {}, *sides) for name in ("a", "b")])
    assert set(compared.estimates["b"]) == {"elbo", "sandwich-lower", "sandwich-upper"}
    assert set(compared.differences["b"]) == {"elbo"}


def test_verdicts_are_on_the_runs_own_guides(tmp_path):
    fitted = {"guide_name": "auto-normal", "guide_steps": 5, "estimator": "iwae", "notes": {"verdict": "of the fit"}}
    own = {"estimator": "iwae", "notes": {"verdict": "of its own"}}
    assert ppl_tvae.compare(recorded(tmp_path / "a", own, fitted)).verdicts == {"a": "of its own"}


def test_one_sequence_has_no_error_in_text_and_in_json(runs):
    (record,) = ppl_tvae.evaluate(runs["numpyro"], estimators="elbo", particles=3, max_sequences=1, seed=11)
    compared = comparison.Comparison("", {"a": {"elbo": comparison._entry(record)}}, {}, {}, {}, {}, {})
    assert comparison.as_json(compared)["estimates"]["a"]["elbo"]["standard_error"] is None
    assert f"{record['value']:.2f}\n" in comparison.as_text(compared) + "\n"


def test_estimates_over_other_numbers_of_sequences_say_so_in_every_form():
    """Of one run all in the heading; of two runs whose numbers differ in the cells."""
    few, many = comparison.Entry(-1.0, 0.5, 40), comparison.Entry(-2.0, 0.25, 300)
    mixed = comparison.Comparison("", {"a": {"iwae-10": few, "iwae-7": many}}, {}, {}, {}, {}, {})
    for markdown in (False, True):
        text = comparison.as_text(mixed, markdown=markdown)
        assert "iwae-10 (40)" in text
        assert "iwae-7 (300)" in text
        assert "0.50 (" not in text
    assert "a,iwae-7,-2.0,0.25,300" in comparison.as_csv(mixed)
    alike = comparison.Comparison("", {"a": {"elbo": few}, "b": {"elbo": few}}, {"b": {"elbo": few}}, {}, {}, {}, {})
    assert "(40)" not in comparison.as_text(alike)

    estimates = {"a": {"elbo": few, "iwae-7": many}, "b": {"elbo": many, "iwae-7": many}}
    unlike = comparison.Comparison("", estimates, {"b": {"elbo": few, "iwae-7": many}}, {}, {}, {}, {})
    lines = comparison.as_text(unlike).splitlines()
    assert lines[2].split("  ")[-1].strip() == "iwae-7 (300)"
    assert [line.split("±")[1].split()[1] for line in lines[3:5]] == ["(40)", "(300)"]
    (table,) = [part for part in _compared(unlike) if isinstance(part, Table)]
    assert table.rows == [
        ["elbo", "-1.00 ± 0.50 (40)", "-2.00 ± 0.25 (300)", "-1.00 ± 0.50 (40)"],
        ["iwae-7 (300)", "-2.00 ± 0.25", "-2.00 ± 0.25", "-2.00 ± 0.25"],
    ]


def test_validation_sequences_of_another_fraction_are_not_compared(runs, tmp_path):
    for name, fraction in (("a", 0.2), ("b", 0.02)):
        shutil.copytree(runs["pyro"].path, tmp_path / name)
        run = open_run(tmp_path / name)
        replace(run, experiment=replace(run.experiment, validation_fraction=fraction)).save_config()
        (run.path / "evaluation.json").unlink(missing_ok=True)
        ppl_tvae.evaluate(run.path, estimators="elbo", particles=2, max_sequences=4, split="validation")
    with pytest.raises(ppl_tvae.UserError, match=r"found validation_fraction '0.2' in 'a' and '0.02' in 'b'"):
        ppl_tvae.compare([tmp_path / "a", tmp_path / "b"])


def test_ctrl_c_ends_an_evaluation_and_keeps_what_is_done(runs, tmp_path, monkeypatch):
    """In the second of three batches: both numbers of these weights are over one batch, and no estimator follows."""
    run = open_run(shutil.copytree(runs["numpyro"].path, tmp_path / "run"))
    (run.path / "evaluation.json").unlink(missing_ok=True)
    draw = Evaluator.log_weights

    def interrupted(self, plan, batch_index, *arguments, **options):
        if batch_index == 1:
            raise KeyboardInterrupt
        return draw(self, plan, batch_index, *arguments, **options)

    (whole,) = ppl_tvae.evaluate(runs["numpyro"], estimators="elbo", particles=2, max_sequences=9)
    monkeypatch.setattr(Evaluator, "log_weights", interrupted)
    with pytest.raises(Interrupted, match=r"stopped after 8 of 20 sequences; .*evaluation.json"):
        ppl_tvae.evaluate(run, estimators=ALL, particles=2, annealing=FEW, max_sequences=20, quiet=True)
    found = [(record["estimator"], record["num_sequences"]) for record in run.evaluations()]
    assert found == [("elbo", 8), ("iwae", 8), ("log-evidence", 8)]
    assert {record["stopped_before"] for record in run.evaluations()} == {20}
    (stopped,) = [record for record in run.evaluations() if record["estimator"] == "elbo"]
    run.add_evaluation(stopped | {"num_sequences": 16})
    assert ppl_tvae.compare(run).estimates["run"]["elbo"].num_sequences == 16  # the newer of two that were stopped
    run.add_evaluation(whole)
    run.add_evaluation(stopped | {"seed": 5})
    assert ppl_tvae.compare(run).estimates["run"]["elbo"].num_sequences == 9
    assert cli.main(["evaluate", str(run.path), "--max-sequences", "20"]) == cli.EXIT_INTERRUPTED


def test_tested_on_other_transforms_than_trained_on(runs):
    """Other sequences, labelled as such; not ranked beside the run's own."""
    ours, theirs = runs["numpyro"], runs["pyro"]
    settings = {"estimators": ("elbo",), "particles": (4,), "max_sequences": 6}
    (own,) = ppl_tvae.evaluate(ours, **settings)
    (other,) = ppl_tvae.evaluate(ours, transforms=("rotation+hue",), **settings)
    assert (own["transforms"], other["transforms"]) == (["rotation", "scale", "hue"], ["rotation+hue"])
    assert own["per_sequence"] != other["per_sequence"]
    kept = [r for r in ours.evaluations() if r["estimator"] == "elbo" and r.get("num_particles") == 4]
    assert [r["transforms"] for r in kept] == [own["transforms"], other["transforms"]]
    both = (equivariance_metrics(ours, transforms=moving, num_sequences=2) for moving in (None, ("rotation+hue",)))
    metrics = [found["equivariance"] for found in both]
    assert [part[0]["transforms"] for part in metrics] == [own["transforms"], other["transforms"]]
    assert metrics[0][0]["value"] != metrics[1][0]["value"]

    ppl_tvae.evaluate(theirs, **settings)
    with pytest.raises(ppl_tvae.UserError, match=r"found transforms 'rotation\+hue' in 'numpyro' and 'rotation, scale"):
        ppl_tvae.compare([ours, theirs])
    ppl_tvae.evaluate(theirs, transforms=("rotation+hue",), **settings)
    compared = ppl_tvae.compare([ours, theirs])
    assert "(rotation+hue)" in compared.header
    assert list(compared.estimates["numpyro"]) == ["elbo"]  # those of its other sequences are left out
    with pytest.raises(ppl_tvae.UserError, match="did you mean 'hue'"):
        ppl_tvae.evaluate(ours, transforms=("huw",), **settings)


def test_estimates_of_earlier_parameters_are_left_out(runs, tmp_path):
    run = open_run(Path(shutil.copytree(runs["pyro"].path, tmp_path / "run")))
    settings = {"particles": (4,), "max_sequences": 12, "quiet": True}
    (first,) = ppl_tvae.evaluate(run, estimators=("elbo",), **settings)
    assert ppl_tvae.compare([run]).estimates["run"]["elbo"].value == first["value"]
    run.save_parameters({name: 1.1 * value for name, value in run.parameters().items()})
    with pytest.raises(ppl_tvae.UserError, match="found only those of earlier parameters; run ppl-tvae evaluate"):
        ppl_tvae.compare([run])
    ppl_tvae.evaluate(run, estimators=("iwae",), **settings)
    assert list(ppl_tvae.compare([run]).estimates["run"]) == ["iwae-4"]
    told = [warning.text for warning in _warnings([run])]
    assert any("estimates of earlier parameters are left out" in text for text in told)
    (again,) = ppl_tvae.evaluate(run, estimators=("elbo",), **settings)
    assert ppl_tvae.compare([run]).estimates["run"]["elbo"].value == again["value"] != first["value"]
    assert first not in run.evaluations()  # the same question: replaced


def test_estimates_are_of_the_parameters_that_are_named_with_them(runs, tmp_path, monkeypatch):
    """A training that goes on replaces them while the evaluation gets ready."""
    run = open_run(Path(shutil.copytree(runs["numpyro"].path, tmp_path / "run")))
    settings = {"estimators": ("elbo",), "particles": (4,), "max_sequences": 12, "quiet": True}
    (expected,) = ppl_tvae.evaluate(run, **settings)

    def assembled(*arguments):
        run.save_parameters({name: 1.1 * value for name, value in run.parameters().items()})
        return assemble(*arguments)

    monkeypatch.setattr(trained_runs, "assemble", assembled)
    (found,) = ppl_tvae.evaluate(run, **settings)
    assert (found["value"], found["parameters"]) == (expected["value"], expected["parameters"])
    assert run.present_evaluations() == []


def test_bounds_against_their_definitions():
    rng = np.random.default_rng(0)
    log_weights = rng.standard_normal((50, 3)) - 900
    w = np.exp(log_weights + 900)
    np.testing.assert_allclose(bounds.effective_sample_size(log_weights), w.sum(0) ** 2 / (w**2).sum(0))
    left_out = [np.log(np.delete(w, k, axis=0).mean(axis=0)) - 900 for k in range(50)]
    whole = np.log(w.mean(axis=0)) - 900
    value, bias = bounds.jackknifed_log_evidence(log_weights)
    np.testing.assert_allclose(value, 50 * whole - 49 * np.mean(left_out, axis=0), rtol=1e-12)
    np.testing.assert_allclose(value + bias, whole, rtol=1e-12)
    assert np.isnan(bounds.log_mean_exp(np.array([[0.0], [np.nan]]))).all()
    np.testing.assert_allclose(bounds.standard_error(np.array([1.0, 3.0, 8.0])), (13 / 3) ** 0.5)
    assert bounds.standard_error(np.array([1.0])) is None
    per_frame = rng.standard_normal((10, 3, 4))
    expected = np.log(np.exp(per_frame).sum(axis=0)).mean(axis=1)
    np.testing.assert_allclose(bounds.released_is(per_frame), expected)


@pytest.mark.parametrize("scale", [1.0, 20.0, 60.0])
@pytest.mark.parametrize("num_particles", [2, 10, 100])
def test_jackknife_where_one_weight_carries_all(num_particles, scale):
    """Leaving out a weight that is all of the sum to a float leaves the others, not what the float cannot hold."""
    log_weights = scale * np.random.default_rng(1).standard_normal((num_particles, 200))
    each = [np.delete(log_weights, k, axis=0) for k in range(num_particles)]
    left_out = [np.logaddexp.reduce(rest, axis=0) - np.log(num_particles - 1) for rest in each]
    whole = np.logaddexp.reduce(log_weights, axis=0) - np.log(num_particles)
    expected = num_particles * whole - (num_particles - 1) * np.mean(left_out, axis=0)
    value, bias = bounds.jackknifed_log_evidence(log_weights)
    np.testing.assert_allclose(value, expected, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(value + bias, whole, rtol=1e-9, atol=1e-9)


def test_khat_and_its_verdict():
    """Weights with a Pareto tail of a known shape; equal weights; too few draws."""
    rng = np.random.default_rng(0)
    n = 4000
    for shape in (0.3, 1.2):
        log_weights = -shape * np.log(rng.random((n, 16)))  # w = U**-shape has a tail of that shape
        error = (1 + shape) / np.sqrt(3 * np.sqrt(n) * 16)  # of a fit to the 3 sqrt(n) largest, 16 times
        assert abs(reliability.khat(log_weights).mean() - shape) < STANDARD_ERRORS * error
    sizes = np.full(4, 10.0)
    assert reliability.verdict(np.full(4, 1.2), sizes, n).startswith("unreliable")
    assert reliability.verdict(np.full(4, 0.3), sizes, n).startswith("reliable")
    alike = reliability.verdict(np.full(4, -np.inf), np.full(4, 0.95 * n), n)
    assert alike.startswith("reliable")
    assert "latents that say nothing of the frames" in alike
    assert "latents" not in reliability.verdict(np.full(4, -np.inf), np.full(4, 0.85 * n), n)
    assert reliability.verdict(np.array([0.3, 0.3, 0.9, 0.2]), sizes, n).startswith("doubtful")
    assert (reliability.khat(np.full((100, 2), 3.0)) == -np.inf).all()
    assert reliability.verdict(reliability.khat(np.zeros((5, 2))), sizes, 5).startswith("too few")
    far_apart = 1000.0 * rng.standard_normal((100, 4))  # where all but one weight are zero in floating point
    assert (reliability.khat(far_apart) == np.inf).all()
    assert reliability.verdict(reliability.khat(far_apart), np.ones(4), 100).startswith("unreliable")
    mostly_zero = np.where(np.arange(100)[:, None] < [1, 2, 15, 100], rng.standard_normal((100, 4)), -np.inf)
    assert (reliability.khat(mostly_zero)[:3] == np.inf).all()
    assert np.isfinite(reliability.khat(mostly_zero)[3])
    assert np.isnan(reliability.khat(np.full((100, 1), -np.inf))).all()
    rounded = np.repeat([[-29000.002], [-29000.0]], [20, 80], axis=0)  # of a perfect guide, in float32
    assert (reliability.khat(rounded) == -np.inf).all()
    # a few larger weights, and all others equal: those few are the estimate, or hardly matter
    for count, size, expected in ((1, 8.0, np.inf), (3, 8.0, np.inf), (8, 8.0, np.inf), (8, 0.1, -np.inf)):
        tied = np.where(np.arange(200)[:, None] < count, size, np.zeros((200, 2)))
        assert (reliability.khat(tied) == expected).all()
    tail = np.repeat([[-0.002], [0.0]], [80, 20], axis=0)  # as many as are fitted, and all alike
    assert (reliability.khat(tail) == -np.inf).all()
    at_the_cut = np.sort(rng.standard_normal((100, 1)), axis=0)
    at_the_cut[-21] = at_the_cut[-20]  # one tie leaves the other nineteen to be fitted
    assert np.isfinite(reliability.khat(at_the_cut)).all()
    assert np.isnan(reliability.khat(rng.standard_normal((99, 2)))).all()
    for spread in (0.01, 0.1):  # of log weights: a good guide is known as one by as few as are judged
        good = spread * rng.standard_normal((100, 400))
        assert reliability.verdict(reliability.khat(good), np.ones(1), 100).startswith("reliable")
    for num_particles, limit in ((100, 0.5), (1000, 2 / 3), (2154, 0.69999), (4000, 0.7)):
        assert reliability.khat_limit(num_particles) == pytest.approx(limit, abs=1e-5)
        for above, words in ((-1e-4, "reliable"), (1e-4, "unreliable")):
            assert reliability.verdict(np.full(4, limit + above), sizes, num_particles).startswith(words)
    for bad, words in ((1, "reliable"), (2, "doubtful"), (10, "doubtful"), (11, "unreliable")):  # of twenty
        khats = np.where(np.arange(20) < bad, 0.71, 0.69)
        assert reliability.verdict(khats, np.full(20, 10.0), n).startswith(words)
    with_nan = rng.standard_normal((100, 4))
    with_nan[3, 0] = np.nan
    assert "no k-hat for 25% of sequences" in reliability.verdict(reliability.khat(with_nan), sizes, 100)


@pytest.mark.parametrize("num_particles", [100, 101, 224, 225, 226, 1000, 1001])
def test_ties_anywhere_are_looked_for_where_the_tail_is_fitted(num_particles):
    """arviz-stats refuses a tail of ties, and fits nonsense where its lower quartile ties with its cut."""
    tail = reliability._largest_that_are_fitted(num_particles)
    assert tail == array_stats._get_ps_tails(num_particles, 1.0, "right")
    draws = np.sort(np.random.default_rng(num_particles).standard_normal((num_particles, 3)), axis=0)
    draws[-tail:, 0] = 4.0  # all of the tail
    draws[-tail - 1 : -tail + int(tail / 4 + 0.5), 1] = draws[-tail - 1, 1]  # its lower quartile and the cut
    draws[-1, 1] = 99.0
    found = reliability.khat(draws)
    assert found[0] == -np.inf
    assert found[1] == np.inf
    assert np.isfinite(found[2])
    nearly_exact = np.float32(-5000 + 2e-4 * np.random.default_rng(1).standard_normal((num_particles, 500)))
    assert not np.isnan(reliability.khat(nearly_exact)).any()


def test_own_data_are_the_same_wherever_they_lie(tmp_path, monkeypatch):
    """Named by a relative path in Python, by an absolute one in an opened run, and moved in between."""
    images = small_images(tmp_path)
    monkeypatch.chdir(tmp_path)
    here = replace(small_training(tmp_path, "pyro"), data=images.name)
    trained = ppl_tvae.train(here, tmp_path / "a", quiet=True)
    (tmp_path / "elsewhere").mkdir()
    shutil.copy(images, tmp_path / "elsewhere")
    there = replace(here, data=str(tmp_path / "elsewhere" / images.name), seed=4)
    for run in (trained, open_run(tmp_path / "a"), ppl_tvae.train(there, tmp_path / "b", quiet=True)):
        ppl_tvae.evaluate(run, particles=(2,), max_sequences=4, quiet=True)
    assert len(open_run(tmp_path / "a").evaluations()) == 2
    assert ppl_tvae.compare([tmp_path / "a", tmp_path / "b"]).differences["b"].keys() == {"elbo", "iwae-2"}


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda run: ppl_tvae.evaluate(run, particles="5"), "a number of particles as a whole number, found '5'"),
        (lambda run: ppl_tvae.evaluate(run, particles=(1.5,)), "a number of particles as a whole number, found 1.5"),
        (lambda run: ppl_tvae.evaluate(run, max_sequences=2.5), "max_sequences as a whole number, found 2.5"),
        (lambda run: ppl_tvae.evaluate(run, seed="a"), "a seed between 0 and"),
        (lambda run: ppl_tvae.evaluate(run, split=3), "the name of a split, found '3'"),
        (lambda run: ppl_tvae.evaluate(run, transforms="rotatoin"), "did you mean 'rotation'"),
        (lambda run: ppl_tvae.to_datatree(run, num_draws="5"), "num_draws as a whole number, found '5'"),
        (lambda run: ppl_tvae.to_datatree(run, mcmc="nuts"), "expected mcmc as ppl_tvae.MCMC"),
        (lambda run: ppl_tvae.diagnose(run, gap_sequences=0), "gap_sequences of at least 1, found 0"),
        (lambda run: ppl_tvae.assemble(run.experiment, "jax"), "the name of a backend, found 'jax'"),
    ],
)
def test_wrong_arguments_in_python(call, words, runs):
    with pytest.raises(ppl_tvae.UserError, match=words):
        call(runs["pyro"])


def test_numbers_of_numpy_are_numbers(runs):
    """They pass every check, and have to be written after all is computed."""
    run = runs["pyro"]
    settings = Annealing(num_temperatures=np.int64(2), num_leapfrog_steps=1, step_size=np.float32(0.1))
    few = {"max_sequences": np.int64(2), "seed": np.int64(7), "quiet": True}
    evaluate(run, estimators=("elbo", "iwae", "ais"), particles=np.array([1, 2]), annealing=settings, **few)
    guide = Unamortised("auto-normal", steps=np.int64(1), learning_rate=np.float64(0.1))
    evaluate(run, estimators="elbo", particles=np.int64(2), guide=guide, **few)
    found = [record for record in run.evaluations() if record["seed"] == 7]
    assert {record["estimator"] for record in found} == {"elbo", "iwae", "ais"}
    assert all(type(record["num_sequences"]) is int for record in found)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"guide": "auto-normal"}, "expected guide as ppl_tvae.Unamortised(...), found 'auto-normal'"),
        ({"annealing": {}}, "expected annealing as ppl_tvae.Annealing(...), found {}"),
        ({"device": "gpu"}, "expected the name of a device, found 'gpu'"),
    ],
)
def test_settings_of_another_kind_are_refused(settings, words, runs):
    with pytest.raises(UserError, match=re.escape(words)):
        evaluate(runs["pyro"], particles=2, max_sequences=2, **settings)
