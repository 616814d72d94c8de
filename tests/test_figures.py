"""The figures of a run: which programs have which, and that they show what their captions say."""

import io
import json
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image

from ppl_tvae import OwnTraining, cli, train
from ppl_tvae.assembly import data_of
from ppl_tvae.config import Experiment
from ppl_tvae.data import Plan
from ppl_tvae.diagnosis import diagnose
from ppl_tvae.diagnostics.calibration import calibration
from ppl_tvae.errors import UserError
from ppl_tvae.figures import FIGURES, charts, diagnosis_charts, draw_figures, lattice, old_figures, save_charts
from ppl_tvae.figures.animation import animation
from ppl_tvae.figures.charts import khat_chart, predictive_chart
from ppl_tvae.figures.contact_sheet import contact_sheet
from ppl_tvae.models.lattice import static
from ppl_tvae.report import write_report
from ppl_tvae.runs import Run
from ppl_tvae.starting_points import starting_point
from tests.small_runs import small_training


def is_drawn(path):
    """A picture of some size that is not all of one colour."""
    with Image.open(path) as picture:
        pixels = np.asarray(picture.convert("RGB"))
    return min(pixels.shape[:2]) > 100 and len(np.unique(pixels.reshape(-1, 3), axis=0)) > 10


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tvae")
    return train(small_training(folder, "pyro"), folder / "run", quiet=True)


def test_one_name_and_one_transform_may_be_strings(run):
    (path,) = draw_figures(run, "reconstructions", transforms="hue").values()
    assert path.name == "reconstructions-hue.png"


def test_charts_of_a_former_diagnosis_do_not_stay(tmp_path):
    run = train(small_training(tmp_path, "pyro", steps=2), tmp_path / "run", quiet=True)
    few = {"num_sequences": 2, "metric_sequences": 2, "simulated_sequences": 8, "quiet": True}
    for num_draws, known in ((100, True), (30, False)):  # too few draws for k-hat
        diagnose(run, num_draws=num_draws, **few)
        assert ("khat" in save_charts(run)) == known
        assert (run.path / "figures/khat.png").exists() == known
        assert (run.path / "figures/calibration.png").exists()


@pytest.fixture(scope="module")
def torus(tmp_path_factory):
    """Images of two classes, which light up the upper or the lower half."""
    folder, rng = tmp_path_factory.mktemp("torus"), np.random.default_rng(0)
    labels = rng.integers(2, size=60)
    images = rng.integers(0, 60, (60, 6, 6), dtype=np.uint8)
    for image, label in zip(images, labels, strict=True):
        image[3 * label : 3 * label + 3] += 180
    np.savez(folder / "halves.npz", images=images, labels=labels)
    experiment = replace(
        small_training(folder, "numpyro", model="torus", num_timesteps=None, num_capsules=None, capsule_dim=25),
        data=str(folder / "halves.npz"),
    )  # fmt: skip
    return train(experiment, folder / "run", quiet=True)


def test_a_tvae_has_all_but_the_maps_of_a_torus(run):
    drawn = draw_figures(run)
    assert set(drawn) == {name for name in FIGURES if "torus" not in name}
    for name, path in drawn.items():
        assert path == run.path / "figures" / FIGURES[name].file
        assert is_drawn(path), name


def test_what_is_drawn_while_the_parameters_change_is_old(run, tmp_path, monkeypatch):
    """A training that goes on may write others between the first and the last figure."""
    copy = Run(tmp_path, run.experiment)
    copy.save_parameters(run.parameters())

    def draw(*_):
        copy.save_parameters({name: 2 * value for name, value in run.parameters().items()})
        return b"of the parameters before"

    monkeypatch.setitem(FIGURES, "reconstructions", FIGURES["reconstructions"]._replace(draw=draw))
    draw_figures(copy, ["reconstructions"])
    assert old_figures(copy, ["reconstructions"]) == ["reconstructions"]
    monkeypatch.setitem(FIGURES, "reconstructions", FIGURES["reconstructions"]._replace(draw=lambda *_: b"of these"))
    draw_figures(copy, ["reconstructions"])
    assert not old_figures(copy, ["reconstructions"])


def test_a_vae_has_no_lattice_and_unlabelled_images_no_classes(tmp_path):
    vae = train(small_training(tmp_path, "pyro", model="vae"), tmp_path / "vae", quiet=True)
    assert set(draw_figures(vae)) == {"reconstructions", "prior_samples", "traversals", "traversal_animation"}
    settings = {"model": "torus", "num_timesteps": None, "num_capsules": None, "capsule_dim": 25}
    unlabelled = train(small_training(tmp_path, "pyro", **settings), tmp_path / "torus", quiet=True)
    assert set(draw_figures(unlabelled)) == {"reconstructions", "prior_samples", "energies", "torus_images"}


def test_data_that_are_hard_to_draw_are_drawn(tmp_path):
    """Two channels, and a test set of one sequence, over which nothing correlates."""
    frames = np.random.default_rng(0).random((20, 4, 5, 6, 2))
    np.savez(tmp_path / "mine.npz", sequences=frames, test=[3])
    settings = {"likelihood": "normal", "num_timesteps": None, "transforms": None, "steps": 2}
    experiment = replace(small_training(tmp_path, "pyro", **settings), data=str(tmp_path / "mine.npz"))
    run = train(experiment, tmp_path / "run", quiet=True)
    drawn = draw_figures(run.path)
    assert set(drawn) == {"reconstructions", "prior_samples", "traversals", "traversal_animation"}
    assert all(is_drawn(path) for path in drawn.values())
    assert write_report(run.path, str(tmp_path / "page.html")).exists()


def test_a_torus_has_maps(torus):
    drawn = draw_figures(torus)
    assert set(drawn) == {"reconstructions", "prior_samples", "energies", "torus_images", "torus_selectivity"}
    assert all(is_drawn(path) for path in drawn.values())


def test_the_maps_show_what_the_code_says(torus, monkeypatch, tmp_path):
    """An evaluator whose t is known: position 7 answers to the second class, 3 to one image alone."""
    data, shown = data_of(torus.experiment), {}
    plan = data.test_plan(2000)
    labels = data.labels[plan.image]

    class Ready:
        def latents(self, part, index):
            t = np.zeros((len(part.image), 1, 1, 25))
            t[:, 0, 0, 7] = data.labels[part.image] + 0.001 * part.image
            t[:, 0, 0, 3] = part.image == plan.image[4]
            return {"t": t}

        def frames(self, part):
            return part.image[:, None]

    monkeypatch.setattr(lattice, "image_map", lambda images, *_: shown.update(images=images) or b"")
    lattice.draw_preferred_images(torus, data, Ready())
    assert shown["images"][3] == plan.image[4]
    assert data.labels[shown["images"][7]] == 1
    monkeypatch.setattr(lattice, "selectivity_map", lambda dprime, *_: shown.update(dprime=dprime) or b"")
    lattice.draw_selectivity(torus, data, Ready())
    assert shown["dprime"].shape == (len(np.unique(labels)), 25)
    assert shown["dprime"][1, 7] > 5
    assert shown["dprime"][0, 7] < -5
    assert not shown["dprime"][:, 0].any()


TORUS_SIZES = {
    "S, C, D = 1, 1, 324": "S, C, D = 1, 1, 25",
    "(972, 648)": "(8,)",
    "torus(18, 18, spatial_width=5)": "torus(5, 5, spatial_width=5)",
}


TORUS_MAPS = {"torus_images", "torus_selectivity"}


def own_torus(torus, folder, edits):
    """What `new torus` writes, with edits, as a run with the parameters of the named one."""
    text = starting_point("torus", "numpyro", "own.py")
    for before, after in edits.items():
        assert before in text, before
        text = text.replace(before, after)
    (folder / "own.py").write_text(text)
    settings = {"data": torus.experiment.data, "seed": torus.experiment.seed, "batch_size": 4}
    own = OwnTraining(Experiment(model=str(folder / "own.py"), transforms=("none",), num_timesteps=1, **settings))
    return own.save_run(folder / "run", torus.parameters(), trained_by="the named program")


def test_an_edited_program_has_the_pictures_of_its_lattice(torus, tmp_path):
    """To the byte those of the named torus, whose program and parameters it has."""
    names = {"energies"} | TORUS_MAPS
    theirs, ours = (draw_figures(run, names) for run in (torus, own_torus(torus, tmp_path, TORUS_SIZES)))
    assert set(theirs) == names
    assert {name: ours[name].read_bytes() for name in names} == {name: theirs[name].read_bytes() for name in names}


@pytest.mark.parametrize(
    ("edits", "drawn"),
    [
        ({'(name, dist': '(name.replace("u", "noise"), dist', 'sample("u"': 'sample("noise"'}, TORUS_MAPS),
        ({"LATTICE": "TOP"}, set()),
        ({"torus(18, 18, spatial_width=5)": "static(1, 25, 3)", "import torus": "import static"}, {"energies"}),
        ({"torus(18, 18, spatial_width=5)": "static(1, 25, 1)", "import torus": "import static"}, {"energies"}),
    ],
    ids=["other names of sites", "no LATTICE", "a ring", "no neighbours"],
)  # fmt: skip
def test_pictures_that_an_edited_program_cannot_have(torus, edits, drawn, tmp_path):
    sizes = {name: size for name, size in TORUS_SIZES.items() if name not in edits}
    run = own_torus(torus, tmp_path, edits | sizes)
    assert set(draw_figures(run)) - {"reconstructions", "prior_samples"} == drawn


def test_batches_leave_no_sequence_out(torus):
    data = data_of(torus.experiment)
    plan = data.test_plan(300)

    class Ready:
        def latents(self, part: Plan, index):
            return {"image": np.broadcast_to(part.image[:, None, None, None], (len(part.image), 1, 1, 25))}

    of_long_sequences = replace(data, num_timesteps=18)  # the same images in batches of 8
    found = lattice._codes(of_long_sequences, Ready(), static(1, 25, 1), 300, ("image",))
    np.testing.assert_array_equal(found["image"][:, 0, 0, 0], plan.image)


def test_an_animation_shows_every_frame_and_loops():
    frames = np.zeros((2, 3, 5, 8, 8, 1))
    for s in range(5):
        frames[:, :, s, :, s] = 1
    with Image.open(io.BytesIO(animation(frames, ["above", "below"], ["a", "b", "c"]))) as moving:
        assert (moving.n_frames, moving.info["loop"]) == (5, 0)
        pictures = []
        for s in range(5):
            moving.seek(s)
            pictures.append(np.asarray(moving.convert("L")).astype(int))
    assert all((first != second).any() for first, second in pairwise(pictures))
    with pytest.raises(UserError, match="a label for each row and column"):
        animation(frames, ["above"], ["a", "b", "c"])


def test_charts_of_a_diagnosis_are_saved_with_the_figures(run, capsys):
    assert cli.main(["figures", str(run.path), "--json"]) == 0
    before = {path.rpartition("/")[2] for path in json.loads(capsys.readouterr().out)["figures"]}
    diagnose(run, num_sequences=2, num_draws=100, metric_sequences=6, simulated_sequences=8, quiet=True)
    assert cli.main(["figures", str(run.path), "--json"]) == 0
    after = json.loads(capsys.readouterr().out)["figures"]
    charts = {path.rpartition("/")[2] for path in after} - before
    assert charts == {"khat.png", "calibration.png", "prior_ranks.png", "predictive_checks.png"}
    assert all(is_drawn(path) for path in after)


def test_charts_take_what_can_be_found(tmp_path):
    for name, khats in {"all": [0.2, 0.9, np.inf, -np.inf], "good": [0.1], "infinite": [np.inf]}.items():
        (tmp_path / f"{name}.png").write_bytes(khat_chart(khats, 100))
        assert is_drawn(tmp_path / f"{name}.png")
    assert diagnosis_charts({}) == {}
    assert diagnosis_charts({"posterior": {"khat": [None, "inf"]}}) == {}
    record = {"statistic": "contrast", "unit": "u", "observed": 1.0, "p_value": 0.5, "extreme": False}
    same = [record | {"replicates": "prior", "replicated": [1.0, 1.0]}]
    assert predictive_chart(same).startswith(b"\x89PNG")


def test_names_are_shown_as_they_are(monkeypatch):
    """A legend of matplotlib's has no place for an underscore's, and reads what is between dollars as a formula."""
    figures, png = [], charts.png
    monkeypatch.setattr(charts, "png", lambda figure: figures.append(figure) or png(figure))
    names = [r"$\frac$", "_base", "plain"]
    charts.training_curves({name: [{"step": 1, "loss": 2.0, "elbo_per_frame": -2.0}] for name in names})
    charts.bounds_chart({name: {"elbo": (-2.0, 0.1, 4)} for name in names})
    charts.prior_ranks_chart({name: [0.0, 0.1, 0.0] for name in names})
    charts.calibration_chart(dict.fromkeys(names, calibration(np.linspace(0, 1, 20))))
    assert len(figures) == 4
    for figure in figures:
        shown = {text.get_text().partition(",")[0].strip() for text in figure.axes[0].get_legend().get_texts()}
        assert shown == set(names)
    frames = np.zeros((1, 1, 2, 8, 8, 1))
    assert animation(frames, names[:1], names[:1]).startswith(b"GIF")
    for one_or_more in (frames[0], frames[0, :, :1]):
        assert contact_sheet(one_or_more, names[:1], names[0]).startswith(b"\x89PNG")


def test_unknown_figures_are_refused(run):
    with pytest.raises(UserError, match="traversal"):
        draw_figures(run, ["traversal"])
