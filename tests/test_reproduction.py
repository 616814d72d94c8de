"""Experiments of the paper from one command: what is trained, what is kept, what the table says."""

import json
import signal
from dataclasses import replace

import numpy as np
import pytest

from ppl_tvae import cli, experiments, reproduction
from ppl_tvae.config import Experiment, experiment_from
from ppl_tvae.data import open_data
from ppl_tvae.errors import Interrupted, UserError
from ppl_tvae.figures import old_figures
from ppl_tvae.loop import Loop
from ppl_tvae.runs import open_run
from tests.small_runs import small_images

FEW = {"num_timesteps": 4, "num_capsules": 2, "capsule_dim": 4, "hidden": (8,), "transforms": ("hue",)}
CAPCORR = experiments.Column("capsule_correlation_pooled[hue]", "CapCorr hue", "paper", of="diagnosis")


@pytest.fixture
def small(tmp_path, monkeypatch):
    """Table 1 with two of its rows, small; the folder of its runs and the data."""
    table = experiments.EXPERIMENTS["table1"]
    rows = {"tvae, L = 1/2 S": {"model": "tvae", "temporal_window": 4}, "vae": {"model": "vae"}}
    short = {**table.budgets["short"], "steps": 6, "log_every": 3, "evaluate_every": 3, "validation_sequences": 8}
    budgets, columns = {"paper": table.budgets["paper"], "short": short}, (CAPCORR, *table.columns)
    few = replace(table, rows=rows, settings=FEW, budgets=budgets, columns=columns)
    monkeypatch.setitem(experiments.EXPERIMENTS, "table1", few)
    return tmp_path / "runs", {"data": str(small_images(tmp_path)), "quiet": True, "max_sequences": 5}


@pytest.mark.parametrize("name", experiments.EXPERIMENTS)
@pytest.mark.parametrize("budget", ["paper", "short"])
def test_every_run_of_every_experiment_is_one_that_can_be_trained(name, budget):
    table = experiments.EXPERIMENTS[name]
    assert table.exceptions.get(budget, {}).keys() <= table.rows.keys()
    for label in table.rows:
        settings = table.settings_of(label, budget)
        resolved = experiment_from(settings).resolved()
        for setting, value in settings.items():
            assert getattr(resolved, setting) == value, setting


# name: what all rows share, resolved under the paper's budget; and (model, frames and positions that share variance) of
# each row, the kernels of the released code.
OF_MNIST = {
    "data": "mnist", "num_timesteps": 18, "num_capsules": 18, "capsule_dim": 18, "hidden": (972, 648), "batch_size": 8,
    "steps": 100 * 48_000 // 8, "transforms": ("rotation", "scale", "hue"),
}  # fmt: skip
TVAE_AND_VAE = [("tvae", 13, 3), ("vae", None, None)]
PAPER = {
    "table1": (OF_MNIST, [
        ("tvae", 18, 3), ("tvae", 13, 3), ("tvae", 5, 3), ("bubble", 5, 3), ("static", None, 3), ("vae", None, None),
    ]),
    "table2": (
        {
            "data": "sprites", "num_timesteps": 15, "num_capsules": 15, "capsule_dim": 15, "hidden": (675, 450),
            "batch_size": 8, "steps": 100 * 3 * 5 * 15 * 15 * 15 // 8,
            "transforms": ("scale", "orientation", "posX", "posY"),
        },
        [("tvae", 15, 1), ("tvae", 10, 1), ("tvae", 5, 1), ("bubble", 5, 5), ("static", None, 3), ("vae", None, None)],
    ),
    "figure3": (
        {
            "data": "mnist", "num_timesteps": 1, "num_capsules": 1, "capsule_dim": 18 * 18, "batch_size": 128,
            "steps": 250 * 48_000 // 128, "mu": 10, "transforms": ("none",),
        },
        [("torus", None, 5)],
    ),
    "generalisation": (OF_MNIST, TVAE_AND_VAE),
    "combined": (OF_MNIST | {"transforms": ("rotation+hue",)}, TVAE_AND_VAE),
    "perspective": (OF_MNIST | {"transforms": ("perspective+hue",)}, TVAE_AND_VAE),
}  # fmt: skip


@pytest.mark.parametrize("name", experiments.EXPERIMENTS)
def test_the_papers_settings(name):
    table, (shared, kernels) = experiments.EXPERIMENTS[name], PAPER[name]
    runs = {label: experiment_from(table.settings_of(label, "paper")).resolved() for label in table.rows}
    assert [(run.model, run.temporal_window, run.spatial_width) for run in runs.values()] == kernels
    for label, run in runs.items():
        assert {setting: getattr(run, setting) for setting in shared} == shared
        assert (run.optimizer, run.learning_rate, run.momentum) == ("sgd", 1e-4, 0.9)
        assert (run.schedule, run.warmup_steps, run.objective) == ("constant", 0, "elbo")
        assert (run.guide, run.prior, run.likelihood) == ("mean-field", "normal", "bernoulli-grey")
        diverges = (name, label) == ("table1", "static, L = 0")
        assert run.clip_norm == (100 if diverges else 0)
        if run.model != "vae":
            assert run.mu == shared.get("mu", 30)
            assert run.epsilon == (1e-3 if (name, run.model) == ("table2", "static") else 1e-6)
    assert table.test_transforms == (("rotation+hue",) if name == "generalisation" else None)


def test_a_row_that_needs_another_setting_has_it_and_the_table_says_so(small, monkeypatch):
    folder, settings = small
    table = experiments.EXPERIMENTS["table1"]
    excepted = replace(table, exceptions={"short": {"vae": {"clip_norm": 7.0}}, "paper": {"vae": {"clip_norm": 8.0}}})
    monkeypatch.setitem(experiments.EXPERIMENTS, "table1", excepted)
    found = reproduction.reproduce("table1", out=folder, **settings)
    assert [open_run(folder / f"{name}-seed0").experiment.clip_norm for name in ("tvae-1-2", "vae")] == [1.0, 7.0]
    assert "vae: with clip_norm = 7.0, without which it may diverge" in found.header
    found = reproduction.reproduce("table1", out=folder, rows=["tvae-1-2"], **settings)
    assert not any("diverge" in line for line in found.header)


def test_a_table_of_runs_that_are_ordinary_run_directories(small):
    folder, settings = small
    found = reproduction.reproduce("table1", out=folder, seeds=(0, 1), **settings)
    assert sorted(path.name for path in folder.iterdir() if path.is_dir()) == [
        "tvae-1-2-seed0", "tvae-1-2-seed1", "vae-seed0", "vae-seed1"
    ]  # fmt: skip
    for label, slug in {"tvae, L = 1/2 S": "tvae-1-2", "vae": "vae"}.items():
        runs = [open_run(folder / f"{slug}-seed{seed}") for seed in (0, 1)]
        assert [run.experiment.seed for run in runs] == [0, 1]
        elbos = [record["value"] for run in runs for record in run.evaluations() if record["estimator"] == "elbo"]
        assert found.values[label]["elbo"] == elbos
        metrics = [{r["metric"]: r["value"] for r in run.diagnosis()["equivariance"]} for run in runs]
        assert found.values[label]["equivariance_error"] == [own["equivariance_error"] for own in metrics]
        of_hue = [run.diagnosis()["by_transform"][0] for run in runs]
        assert found.values[label][CAPCORR.name] == [own["capsule_correlation_pooled"]["value"] for own in of_hue]
        assert all(run.is_up_to_date("figures/traversals.png") for run in runs)
    text = reproduction.as_text(found)
    elbos = found.values["vae"]["elbo"]
    assert f"{np.mean(elbos):,.2f} ± {np.std(elbos, ddof=1):,.2f}" in text
    assert found.header[0].endswith("; but of images.npz")
    assert "(paper" not in text  # whose numbers are of other data
    assert "(paper 13,274)" in reproduction.as_text(replace(found, published={"vae": {"E_eq": "13,274"}}))
    mnist = experiments.experiment_of_the_paper("table1")
    for changes in ({}, {"data": "mnist"}):
        assert reproduction._on_the_data_of(mnist, "paper", changes) == mnist
    correlations = found.values["vae"][CAPCORR.name]
    assert f"{np.mean(correlations):.2f} ± {np.std(correlations, ddof=1):.2f}" in text
    assert "5 held-out sequences; mean ± standard deviation over 2 seeds" in text
    assert (folder / "table.md").read_text().count("\n| ") == 4  # ruled: heading, rule, two rows
    assert json.loads((folder / "table.json").read_text())["values"]["vae"]["elbo"] == elbos


def test_what_is_there_is_kept_and_what_was_interrupted_goes_on(small, monkeypatch):
    folder, settings = small
    trained = []
    train, resume = reproduction.train, reproduction.resume
    monkeypatch.setattr(reproduction, "train", lambda *args, **kw: trained.append("train") or train(*args, **kw))
    monkeypatch.setattr(reproduction, "resume", lambda *args, **kw: trained.append("resume") or resume(*args, **kw))
    whole = reproduction.reproduce("table1", out=folder, **settings)
    assert trained == ["train", "train"]

    run = open_run(folder / "vae-seed0")
    state = sorted((run.path / "state").glob("*.safetensors"))
    state[-1].unlink()  # as if it had been killed after the checkpoint of step 3
    run.forget_metrics_after(3)
    assert run.checkpoint().step == 3
    assert reproduction.reproduce("table1", out=folder, **settings).values == whole.values
    assert trained == ["train", "train", "resume"]


def test_what_diagnose_finds_while_a_table_is_measured_stays(small, monkeypatch):
    folder, settings = small
    measured = reproduction.equivariance_metrics

    def with_another_beside(run, **options):
        found = measured(run, **options)
        run.save_diagnosis({"prior_ranks": {}})
        return found

    monkeypatch.setattr(reproduction, "equivariance_metrics", with_another_beside)
    reproduction.reproduce("table1", out=folder, rows=["vae"], **settings)
    assert open_run(folder / "vae-seed0").diagnosis().keys() >= {"prior_ranks", "equivariance"}


def test_ctrl_c_in_the_last_chunk_of_a_run_begins_nothing_further(small, monkeypatch):
    folder, settings = small
    account = Loop._account

    def interrupted(loop, *args):
        account(loop, *args)
        if loop._finished():
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Loop, "_account", interrupted)
    with pytest.raises(Interrupted, match=r"after the last step of .*tvae-1-2-seed0"):
        reproduction.reproduce("table1", out=folder, backend="pyro", **settings)
    assert open_run(folder / "tvae-1-2-seed0").steps_done == 6
    assert open_run(folder / "tvae-1-2-seed0").evaluations() == []
    assert not (folder / "vae-seed0").exists()


def test_what_cannot_be_known_is_not_measured_again(small, monkeypatch):
    """CapCorr of two sequences: fewer than three say nothing."""
    folder, settings = small
    few = {"rows": ["vae"], **settings, "max_sequences": 2}
    first = reproduction.reproduce("table1", out=folder, **few)
    assert CAPCORR.name not in first.values["vae"]
    monkeypatch.setattr(reproduction, "equivariance_metrics", None)
    assert reproduction.reproduce("table1", out=folder, **few).values == first.values


def test_numbers_of_older_parameters_or_of_fewer_sequences_are_measured_anew(small, monkeypatch):
    folder, settings = small
    reproduction.reproduce("table1", out=folder, **settings)
    more = reproduction.reproduce("table1", out=folder, **(settings | {"max_sequences": 7}))
    run = open_run(folder / "vae-seed0")
    by_count = {r["num_sequences"]: r["value"] for r in run.evaluations() if r["estimator"] == "elbo"}
    assert set(by_count) == {5, 7}
    assert more.values["vae"]["elbo"] == [by_count[7]]

    run.save_parameters({name: 2 * value for name, value in run.parameters().items()})
    assert not run.is_up_to_date("evaluation.json")
    again = reproduction.reproduce("table1", out=folder, **(settings | {"max_sequences": 7}))
    assert again.values["vae"]["elbo"] != more.values["vae"]["elbo"]
    assert again.values["vae"]["equivariance_error"] != more.values["vae"]["equivariance_error"]
    assert again.values["tvae, L = 1/2 S"] == more.values["tvae, L = 1/2 S"]


def test_what_is_tested_on_other_motions_is_measured_on_them(small, monkeypatch):
    folder, settings = small
    few = replace(experiments.EXPERIMENTS["table1"], test_transforms=("rotation",), figures=())
    monkeypatch.setitem(experiments.EXPERIMENTS, "table1", few)
    reproduction.reproduce("table1", out=folder, rows=["vae"], **settings)
    records = open_run(folder / "vae-seed0").evaluations()
    assert {tuple(record["transforms"]) for record in records} == {("rotation",)}


def test_two_experiments_of_the_same_runs_have_each_its_own_pictures(small, monkeypatch):
    """Those of other motions than the run's own have names of their own; who asks for the run's own finds those."""
    folder, settings = small
    table = replace(experiments.EXPERIMENTS["table1"], columns=())
    monkeypatch.setitem(experiments.EXPERIMENTS, "table1", table)
    elsewhere = replace(table, test_transforms=("rotation", "rotation+hue"))
    monkeypatch.setitem(experiments.EXPERIMENTS, "generalisation", elsewhere)
    reproduction.reproduce("table1", out=folder, rows=["vae"], **settings)
    run = open_run(folder / "vae-seed0")
    own, other = (run.path / "figures" / f"traversals{moving}.png" for moving in ("", "-rotation-rotation+hue"))
    drawn = own.read_bytes()
    found = reproduction.reproduce("generalisation", out=folder, rows=["vae"], **settings)
    assert own.read_bytes() == drawn != other.read_bytes()
    assert f"in each run's figures/: {other.name}" in reproduction.as_text(found)
    other.write_bytes(b"up to date, so it stays")
    reproduction.reproduce("generalisation", out=folder, rows=["vae"], **settings)
    assert other.read_bytes() == b"up to date, so it stays"

    assert not old_figures(run, ["traversals"])
    own.unlink()
    assert old_figures(run, ["traversals"]) == ["traversals"]


def test_only_pictures_that_are_there_are_named(small, monkeypatch):
    """Images without labels have no map of classes."""
    folder, settings = small
    torus = {"model": "torus", "capsule_dim": 9, "num_capsules": 1, "transforms": ("none",), "num_timesteps": 1}
    pictures = experiments.EXPERIMENTS["figure3"].figures
    table = replace(experiments.EXPERIMENTS["table1"], rows={"torus": torus}, settings={"hidden": (8,)}, columns=())
    monkeypatch.setitem(experiments.EXPERIMENTS, "figure3", replace(table, figures=pictures))
    found = reproduction.reproduce("figure3", out=folder, **settings)
    named = reproduction.as_text(found).partition("in each run's figures/: ")[2].partition("\n")[0].split(", ")
    assert "torus_images.png" in named
    assert set(named) == {path.name for path in (folder / "torus-seed0" / "figures").iterdir()}
    assert len(named) == len(pictures) - 1


def test_numbers_of_a_fitted_guide_and_of_another_seed_answer_other_questions(small):
    folder, settings = small
    found = reproduction.reproduce("table1", out=folder, rows=["vae"], **settings)
    run = open_run(folder / "vae-seed0")
    elbo = next(record for record in run.evaluations() if record["estimator"] == "elbo")
    run.add_evaluation(elbo | {"guide_name": "auto-normal", "guide_steps": 5, "value": -1.0})
    run.add_evaluation(elbo | {"seed": 5, "value": -2.0})
    again = reproduction.reproduce("table1", out=folder, rows=["vae"], **settings)
    assert again.values["vae"]["elbo"] == found.values["vae"]["elbo"]


def test_numbers_of_fewer_draws_and_of_the_other_backend_answer_other_questions(small):
    """What `evaluate` and `diagnose` were asked for meanwhile, with other settings, does not come into the table."""
    folder, settings = small
    found = reproduction.reproduce("table1", out=folder, rows=["vae"], **settings)
    run = open_run(folder / "vae-seed0")
    for record in run.evaluations():
        run.add_evaluation(record | {"backend": "pyro", "value": -1.0})
        if record["estimator"] in ("elbo", "iwae"):
            drawn = "num_particles" if record["estimator"] == "elbo" else "num_drawn"
            run.add_evaluation(record | {drawn: 7, "value": -2.0})
    metrics = [record | {"backend": "pyro", "value": -3.0} for record in run.diagnosis()["equivariance"]]
    run.save_diagnosis(run.diagnosis() | {"equivariance": metrics})
    again = reproduction.reproduce("table1", out=folder, rows=["vae"], **settings)
    assert again.values == found.values


def test_the_table_of_the_seeds_that_are_done_is_there_before_the_next(small, monkeypatch):
    folder, settings = small
    train = reproduction.train

    def until_the_second_seed(experiment, path, **kwargs):
        if experiment.seed == 1:
            raise KeyboardInterrupt
        return train(experiment, path, **kwargs)

    monkeypatch.setattr(reproduction, "train", until_the_second_seed)
    with pytest.raises(KeyboardInterrupt):
        reproduction.reproduce("table1", out=folder, seeds=(0, 1), **settings)
    table = json.loads((folder / "table.json").read_text())
    assert "one seed: no spread is known" in table["header"][2]
    assert {len(own["elbo"]) for own in table["values"].values()} == {1}


def test_seeds_together_are_the_seeds_one_by_one(small, monkeypatch):
    """The seeds of a row in one program, and the same table; an interrupted run goes on alone."""
    folder, settings = small
    settings["rows"] = ["vae"]
    together = []
    train_seeds = reproduction.train_seeds
    monkeypatch.setattr(reproduction, "train_seeds", lambda *a, **kw: together.append(a[1]) or train_seeds(*a, **kw))
    found = reproduction.reproduce("table1", out=folder / "together", seeds=(0, 1), together=True, **settings)
    assert together == [2]
    expected = reproduction.reproduce("table1", out=folder / "alone", seeds=(0, 1), **settings)
    np.testing.assert_allclose(found.values["vae"]["elbo"], expected.values["vae"]["elbo"], rtol=1e-4)

    run = open_run(folder / "together" / "vae-seed1")
    max((run.path / "state").glob("*.safetensors")).unlink()  # as if it had been killed after the checkpoint of step 3
    run.forget_metrics_after(3)
    again = reproduction.reproduce("table1", out=folder / "together", seeds=(0, 1), together=True, **settings)
    assert together == [2]
    np.testing.assert_allclose(again.values["vae"]["elbo"], found.values["vae"]["elbo"], rtol=1e-4)


@pytest.mark.parametrize(
    ("asked", "words"),
    [({"backend": "pyro"}, "expected backend 'numpyro'"), ({"seeds": (0, 2)}, "expected consecutive seeds .* 0, 2")],
)
def test_what_is_not_trained_together(asked, words, small):
    folder, settings = small
    with pytest.raises(UserError, match=words):
        reproduction.reproduce("table1", out=folder, together=True, **(settings | asked))
    assert not folder.exists()


def test_another_guide_and_a_score_that_it_does_not_give(small):
    """An iaf has no score per frame: the paper's column stays empty, and everything else is there."""
    folder, settings = small
    found = reproduction.reproduce("table1", out=folder, rows=["vae"], guide="iaf", **settings)
    run = open_run(folder / "vae-seed0")
    assert run.experiment.guide == "iaf"
    assert {"elbo", "iwae-100", "equivariance_error"} <= set(found.values["vae"])
    assert "released-is-10" not in found.values["vae"]
    text = reproduction.as_text(found)
    assert "changed: guide = iaf" in text
    assert "released IS-10" not in text
    bounds = [record for record in run.evaluations() if record["estimator"] == "elbo"]
    reproduction.reproduce("table1", out=folder, rows=["vae"], guide="iaf", **settings)
    assert [record for record in run.evaluations() if record["estimator"] == "elbo"] == bounds


def test_some_of_the_rows(small):
    folder, settings = small
    found = reproduction.reproduce("table1", out=folder, rows=["vae"], **settings)
    assert list(found.values) == ["vae"]
    assert [path.name for path in folder.iterdir() if path.is_dir()] == ["vae-seed0"]


def test_a_shrunk_table_says_so(small):
    folder, settings = small
    found = reproduction.reproduce("table1", out=folder, steps=3, **settings)
    text = reproduction.as_text(found)
    assert "3 steps of 8 sequences, adam at 0.001 (the budget 'short' has 6 steps); the paper: 600,000 of 8" in text
    assert "changed: steps = 3, data = " in text
    with pytest.raises(UserError, match=r"expected steps 6 in .*, found 3: .*choose another --out"):
        reproduction.reproduce("table1", out=folder, **settings)


def test_a_run_of_a_setting_that_is_left_out_is_another(small):
    folder, settings = small
    reproduction.reproduce("table1", out=folder, rows=["vae"], kl_warmup_steps=2, **settings)
    with pytest.raises(UserError, match=r"expected kl_warmup_steps 0 in .*, found 2: it is a run of other settings"):
        reproduction.reproduce("table1", out=folder, rows=["vae"], **settings)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["table9"], "expected the name of an experiment of the paper, found 'table9'"),
        (["table1", "--budget", "long"], "expected the name of a budget, found 'long'; choose one of paper, short."),
        (["table1", "--seeds", "0"], "expected a number of seeds of at least 1, found 0"),
        (["table1", "--seeds", "4000000000"], "expected a number of seeds of at most 1000, found 4000000000"),
        (["table1", "--max-sequences", "0"], "expected max_sequences of at least 1, found 0"),
        (["table1", "--rows", "nvae"], "expected the name of a row, found 'nvae'; did you mean 'vae'?"),
        (["table1", "--steps", "0"], "expected steps of at least 1, found 0"),
    ],
)
def test_mistakes_are_one_sentence(arguments, words, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["reproduce", *arguments, "--data", "digits"]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_from_the_command_line(small, capsys):
    folder, settings = small
    arguments = ["reproduce", "table1", "--data", settings["data"], "--max-sequences", "5", "--out", str(folder)]
    assert cli.main(arguments) == 0
    text = capsys.readouterr().out
    assert cli.main([*arguments, "--markdown"]) == 0
    assert capsys.readouterr().out == (folder / "table.md").read_text()
    assert "one seed: no spread is known" in text
    assert "E_eq [paper]" in text
    assert "centred E_eq [ours]" in text


def test_the_data_of_table_1_has_the_papers_split():
    """80 % of the training images train: 48,000 of MNIST's 60,000; here the share, of the digits."""
    data = open_data("digits", num_timesteps=18, validation_fraction=Experiment().validation_fraction)
    assert len(data.train) == round(0.8 * (len(data.train) + len(data.validation)))
