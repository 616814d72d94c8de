"""All figures of a run: what there is, what each shows, and which program has it."""

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ppl_tvae.assembly import data_of
from ppl_tvae.config import Experiment
from ppl_tvae.data import SequenceData
from ppl_tvae.diagnostics.calibration import calibration
from ppl_tvae.errors import unknown_name
from ppl_tvae.figures.charts import calibration_chart, khat_chart, predictive_chart, prior_ranks_chart
from ppl_tvae.figures.lattice import (
    draw_energies,
    draw_preferred_images,
    draw_selectivity,
    may_be_torus,
    may_have_lattice,
)
from ppl_tvae.figures.sequences import (
    draw_prior_samples,
    draw_reconstructions,
    draw_traversal_animation,
    draw_traversals,
)
from ppl_tvae.files import replacing, write
from ppl_tvae.inference.interfaces import Evaluator
from ppl_tvae.runs import Run, run_at
from ppl_tvae.trained import evaluator


class Figure(NamedTuple):
    """file in the run's figures; draw: (run, data, evaluator) -> its content, None where the program lacks what it
    shows; caption in words; applies: whether an experiment can have it."""

    file: str
    draw: Callable[[Run, SequenceData, Evaluator], bytes | None]
    caption: str
    applies: Callable[[Experiment], bool] = lambda experiment: True


def has_time(experiment: Experiment) -> bool:
    """Whether sequences have more than one frame; ready sequences say so only themselves."""
    return experiment.num_timesteps != 1


FIGURES: dict[str, Figure] = {
    "reconstructions": Figure(
        "reconstructions.png",
        draw_reconstructions,
        "Test sequences, and below each the mean of p(x | latents) at a draw from the guide.",
    ),
    "prior_samples": Figure(
        "prior_samples.png",
        draw_prior_samples,
        "Sequences decoded from draws of the prior: what the model believes before it sees data. Above the mean of "
        "p(x | latents), below pixels drawn from it.",
    ),
    "traversals": Figure(
        "traversals.png",
        draw_traversals,
        "Test sequences; decoded from their own codes; and decoded from the first frame's code, rolled one position "
        "per frame. Where capsules are equivariant, the third row of each follows the first.",
        has_time,
    ),
    "traversal_animation": Figure(
        "traversals.gif",
        draw_traversal_animation,
        "The same with time as time: does the lowest row follow the upper?",
        has_time,
    ),
    "energies": Figure(
        "energies.png",
        draw_energies,
        "Which cells are active together, by time and position or on a torus by row and column. Above: the overlap of "
        "their neighbourhoods, which is the correlation of the energies W u² under the prior. Below: of the guide's "
        "draws for test sequences, the energies and |t|. Where these repeat W, they show W; what departs from it comes "
        "from the data.",
        may_have_lattice,
    ),
    "torus_images": Figure(
        "torus_images.png",
        draw_preferred_images,
        "At each position of the torus, the test image with the largest t. Neighbours should look alike.",
        may_be_torus,
    ),
    "torus_selectivity": Figure(
        "torus_selectivity.png",
        draw_selectivity,
        "The class that each position prefers, by d' (mean of the class minus that of the others, in standard "
        "deviations). Patches of one class are topography; under 0.5 a position hardly tells the class.",
        may_be_torus,
    ),
}


CHARTS = ("khat", "calibration", "prior_ranks", "predictive_checks")


def draw_figures(
    run: Run | Path | str,
    names: str | Iterable[str] | None = None,
    *,
    transforms: str | Sequence[str] | None = None,
    backend: str | None = None,
    device: str = "auto",
) -> dict[str, Path]:
    """Draw the named figures of `FIGURES` that the run's program can have, all by default; their paths by name.

    transforms: what moves in the test sequences, where that is something else than in training; it then stands in the
    names of the files. One program is made ready for all figures. A file is as old as the parameters that it shows, so
    that those of a training that goes on meanwhile make it an old one. Raises UserError.
    """
    run = run_at(run)
    wanted = [names] if isinstance(names, str) else list(FIGURES if names is None else names)
    transforms = (transforms,) if isinstance(transforms, str) else transforms
    for name in wanted:
        if name not in FIGURES:
            raise unknown_name("figure", name, FIGURES)
    wanted = [name for name in wanted if FIGURES[name].applies(run.experiment)]
    if not wanted:
        return {}
    data = data_of(run.experiment, transforms)
    paths, shown = {}, run.parameters_time()
    with evaluator(run, data, backend, device, seed=0) as ready:
        for name in wanted:
            if (content := FIGURES[name].draw(run, data, ready)) is not None:
                paths[name] = run.figure(figure_file(run.experiment, name, transforms))
                with replacing(paths[name]) as beside:
                    beside.write_bytes(content)
                    os.utime(beside, ns=(shown, shown))
    return paths


def figure_file(experiment: Experiment, name: str, transforms: Sequence[str] | None = None) -> str:
    """The file of a figure in the run's figures; other transforms than the run's own stand in its name.

    So no picture is taken for one of other sequences: `traversals.png`, `traversals-rotation+hue.png`.
    """
    path = Path(FIGURES[name].file)
    if transforms is None or tuple(transforms) == experiment.transforms:
        return path.name
    return f"{path.stem}-{'-'.join(transforms)}{path.suffix}"


def old_figures(run: Run, names: Iterable[str], transforms: Sequence[str] | None = None) -> list[str]:
    """Those of the named figures that are missing, or older than the run's parameters."""
    return [name for name in names if not run.is_up_to_date(f"figures/{figure_file(run.experiment, name, transforms)}")]


def save_charts(run: Run) -> dict[str, Path]:
    """The charts of what `diagnose` found of the present parameters, in the run's figures, in place of former ones."""
    charts, paths = diagnosis_charts(run.present_diagnosis()), {}
    for name in CHARTS:
        path = run.figure(f"{name}.png")
        if name in charts:
            paths[name] = path
            write(path, charts[name])
        else:
            path.unlink(missing_ok=True)
    return paths


def diagnosis_charts(found: dict[str, Any]) -> dict[str, bytes]:
    """PNGs by name, from the content of diagnosis.json; what that lacks is left out."""
    charts = {}
    khats = [np.nan if value is None else float(value) for value in found.get("posterior", {}).get("khat", [])]
    if not np.isnan(khats).any() and khats:
        charts["khat"] = khat_chart(khats, found["posterior"]["num_draws"])
    if ranks := found.get("calibration"):
        charts["calibration"] = calibration_chart(
            {name: calibration(np.asarray(own["ranks"])) for name, own in ranks.items()}
        )
    if differences := found.get("prior_ranks"):
        charts["prior_ranks"] = prior_ranks_chart(differences)
    if records := found.get("predictive_checks"):
        charts["predictive_checks"] = predictive_chart(records)
    return charts
