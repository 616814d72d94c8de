"""The report: one page that needs nothing else, with what the runs hold and nothing that they do not."""

import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from ppl_tvae import cli, evaluate, open_run, report, train
from ppl_tvae.diagnosis import diagnose
from ppl_tvae.diagnostics.predictive import extremes
from ppl_tvae.errors import UserError
from ppl_tvae.report import write_report
from ppl_tvae.report.page import Picture, Section, Table, page, with_error
from ppl_tvae.runs import Run
from tests.small_runs import small_training

BROWSER = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), ""
)
CHECK = """<script>addEventListener("load", () => { document.title = "images " +
  [...document.images].filter(image => image.naturalWidth > 0).length + ", tables " +
  [...document.querySelectorAll("table")].filter(table => table.offsetHeight > 0).length + ", wide " +
  (document.documentElement.scrollWidth > innerWidth); });</script>"""


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (0.04213, 0.00123, "0.0421 ± 0.0012"),
        (3.2e-6, 2.6e-5, "0.000003 ± 0.000026"),
        (-210.041, 12.34, "-210 ± 12"),
        (13277.4, 123.0, "13277 ± 123"),
        (1.0, 1.4e-15, "1 ± 0"),
        (0.0, 0.0, "0 ± 0"),
        (13277.4, None, "13277"),
        (float("nan"), 1.0, "nan"),
    ],
)
def test_a_number_has_the_digits_of_its_error(value, error, text):
    assert with_error(value, error) == text


class Tags(HTMLParser):
    """Counts of tags, and every attribute that could fetch something."""

    def __init__(self, text):
        super().__init__()
        self.counts, self.sources, self.text = {}, [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.counts[tag] = self.counts.get(tag, 0) + 1
        self.sources += [value for name, value in attrs if name in ("src", "href", "srcset", "data", "action")]

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    runs = [train(small_training(folder, "pyro", model=model), folder / model, quiet=True) for model in ("tvae", "vae")]
    for run in runs:
        evaluate(run, particles=(1, 30), max_sequences=4, quiet=True)
        diagnose(run, num_sequences=2, num_draws=100, metric_sequences=4, simulated_sequences=16, quiet=True)
    return runs


def test_mistakes_are_one_sentence(runs, tmp_path):
    with pytest.raises(UserError, match="expected the name of a backend, found 'jax'"):
        write_report(runs, tmp_path / "page.html", backend="jax")
    with pytest.raises(UserError, match=r"expected the name of a file to write, found '\.'"):
        write_report(runs, ".")


def test_page_holds_tables_pictures_and_how_to_repeat(runs):
    path = write_report(runs)
    tags = Tags(path.read_text())
    assert path == runs[0].path / "report.html"
    assert tags.counts["table"] == 3 + 2 * 5
    assert tags.counts["img"] == 2 + 2 * 4 + 5 + 4  # the vae has no energies
    for words in ("iwae-30", "vae minus tvae", "centred equivariance error", "likelihood bernoulli", "config.toml"):
        assert words in tags.text
    value = f"{runs[0].evaluations()[0]['value']:.2f}"
    assert value in tags.text


def test_page_fetches_nothing(runs):
    tags = Tags(write_report(runs).read_text())
    assert all(source.startswith(("data:image/png;base64,", "data:image/gif;base64,")) for source in tags.sources)
    assert not {"script", "link", "iframe", "object"} & tags.counts.keys()
    assert not re.search(r"url\(|@import", write_report(runs).read_text())


def test_what_is_missing_is_named_with_its_command(tmp_path, capsys):
    run = train(small_training(tmp_path, "pyro"), tmp_path / "bare run", quiet=True)
    assert cli.main(["report", str(run.path), "--out", str(tmp_path / "page.html")]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "page.html")
    text = Tags((tmp_path / "page.html").read_text()).text
    assert f"ppl-tvae evaluate '{run.path}'" in text
    assert f"ppl-tvae diagnose '{run.path}'" in text


def test_runs_that_measure_different_things_are_not_ranked(runs, tmp_path):
    grey = train(small_training(tmp_path, "pyro", likelihood="bernoulli-grey"), tmp_path / "grey", quiet=True)
    evaluate(grey, particles=(1,), max_sequences=4, quiet=True)
    text = Tags(write_report([runs[0], grey], tmp_path / "page.html").read_text()).text
    assert "These runs are not ranked" in text
    assert "grey minus" not in text
    assert "a score of grey pixels, not a density" in text


def test_extreme_p_values_are_warned_of(runs, tmp_path):
    """One that is put there is named at the head of the page, with its kind."""
    copy = open_run(shutil.copytree(runs[0].path, tmp_path / "copy"))
    found = copy.diagnosis()
    for record in found["predictive_checks"]:
        record["extreme"] = False
    copy.save_diagnosis(found)
    assert "predictive check: frames replicated" not in write_report([copy]).read_text()
    record = {r["statistic"]: r for r in found["predictive_checks"] if r["replicates"] == "prior"}["edge_energy"]
    record |= {"p_value": 0.995, "extreme": True}
    copy.save_diagnosis(found)
    text = Tags(write_report([copy]).read_text()).text
    assert "copy, prior predictive check: frames replicated from draws of the prior differ" in text
    assert "in edge energy (p-value within 0.01 of 0 or 1)" in text
    assert "no misfit" not in text
    assert "no misfit of itself" in extremes(found["predictive_checks"], "bernoulli-grey")[0]


def test_collapse_is_warned_of(runs, tmp_path):
    copy = open_run(shutil.copytree(runs[0].path, tmp_path / "copy"))
    found = copy.diagnosis()
    assert "posterior collapse" not in Tags(write_report(copy).read_text()).text
    for record in found["rates"]:
        record["value"] = 0.001
    copy.save_diagnosis(found)
    text = Tags(write_report(copy).read_text()).text
    assert "copy: posterior collapse: the guide's draws are those of the prior but for 0.001 nats per frame" in text


def test_a_verdict_is_told_where_there_is_no_chart_of_it(runs, tmp_path):
    """As where the weights of a sequence are not finite, so that one k-hat is not known."""
    copy = open_run(shutil.copytree(runs[0].path, tmp_path / "copy"))
    found = copy.diagnosis()
    found["posterior"] |= {"khat": [None, 0.2], "verdict": "unreliable: no k-hat for half of them"}
    copy.save_diagnosis(found)
    assert "unreliable: no k-hat for half of them" in Tags(write_report(copy).read_text()).text


def test_a_program_in_another_encoding_is_shown(runs, tmp_path):
    copy = open_run(shutil.copytree(runs[0].path, tmp_path / "copy"))
    (copy.path / "program.py").write_bytes("# -*- coding: latin-1 -*- für".encode("latin-1"))
    run = Run(copy.path, replace(copy.experiment, model=str(copy.path / "program.py")))
    assert report._repeat(run).parts[-1].text.startswith("# -*- coding: latin-1 -*- f")


def test_text_is_escaped():
    parts = [Table("<b>", ["<i>"], [["<script>alert(1)</script>"]]), Picture(b"x", '"><script>'), "<script>"]
    assert "<script>" not in page("<title>", [Section("<h2>", parts)])


@pytest.mark.skipif(not BROWSER, reason="no Chromium on this machine")
@pytest.mark.parametrize("width", [1100, 390])
def test_a_browser_shows_it(runs, width, tmp_path):
    path = tmp_path / "page.html"
    path.write_text(write_report(runs).read_text().replace("</body>", CHECK + "</body>"))
    options = [
        "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
        "--disable-component-update", "--disable-sync", "--enable-logging=stderr",
        f"--user-data-dir={tmp_path}/browser", f"--window-size={width},900", "--virtual-time-budget=3000", "--dump-dom",
    ]  # fmt: skip
    done = subprocess.run([BROWSER, *options, path.as_uri()], capture_output=True, text=True, timeout=120)
    assert "<title>images 19, tables 11, wide false</title>" in done.stdout
    assert "CONSOLE" not in done.stderr


def test_measures_of_unlike_sequences_are_not_put_side_by_side(runs, tmp_path):
    other = open_run(shutil.copytree(runs[0].path, tmp_path / "other"))
    together = Tags(write_report([runs[0], other], tmp_path / "alike.html").read_text()).text
    assert "mean ± standard error over 4 test sequences (rotation, scale, hue)" in together
    assert "unlike sequences" not in together
    few = {"num_sequences": 2, "num_draws": 2, "metric_sequences": 6, "simulated_sequences": 8, "quiet": True}
    diagnose(other, split="train", **few)
    apart = Tags(write_report([runs[0], other], tmp_path / "unlike.html").read_text()).text
    for words in ("measured on unlike sequences", "over 4 test sequences", "over 6 train sequences"):
        assert words in apart


def test_a_diagnosis_of_earlier_parameters_is_left_out(runs, tmp_path):
    copy = open_run(shutil.copytree(runs[1].path, tmp_path / "copy"))
    copy.save_parameters({name: value + 1 for name, value in copy.parameters().items()})
    text = Tags(write_report([copy]).read_text()).text
    assert "a diagnosis of earlier parameters is left out; make it again" in text
    assert "ppl-tvae diagnose" in text
    assert "centred equivariance error" not in text
    assert "posterior predictive" not in text
