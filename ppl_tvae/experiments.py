"""The experiments of the paper, as data: what is trained, under which budget, and by which numbers it is judged.

Source: Keller & Welling (2021), arXiv 2109.01394, and the configurations of the authors' released code.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ppl_tvae.errors import unknown_name

Settings = Mapping[str, Any]  # of config.Experiment, by name

# The paper's optimiser and likelihood. Its loss is a mean over frames, as ours is, so the step size carries over.
_PAPER: Settings = {
    "optimizer": "sgd", "learning_rate": 1e-4, "momentum": 0.9, "batch_size": 8, "likelihood": "bernoulli-grey",
    "log_every": 500, "evaluate_every": 5000,
}  # fmt: skip
# What learns within minutes on two cores; a likelihood that is one.
_SHORT: Settings = {
    "optimizer": "adam", "learning_rate": 1e-3, "schedule": "cosine", "clip_norm": 1.0, "batch_size": 8,
    "likelihood": "bernoulli",
}  # fmt: skip

_MNIST: Settings = {"num_timesteps": 18, "num_capsules": 18, "capsule_dim": 18, "hidden": (972, 648)}
_SPRITES: Settings = {"num_timesteps": 15, "num_capsules": 15, "capsule_dim": 15, "hidden": (675, 450)}


@dataclass(frozen=True)
class Column:
    """A number of a trained run: an estimate of evaluation.json, or a metric of diagnosis.json.

    name: `released-is-10`, `elbo`, `iwae-100`, or the metric's. convention: whose definition it is, "paper" or "ours".
    """

    name: str
    heading: str
    convention: str
    of: str = "evaluation"


@dataclass(frozen=True)
class Reproduction:
    """An experiment of the paper: rows that share all settings but those named.

    rows: label -> settings. budgets: "paper" and "short" -> settings, `steps` among them. test_transforms: what moves
    in the sequences it is judged on, where that is something else than in training. published: label -> heading -> the
    paper's number.
    """

    title: str
    data: str
    rows: Mapping[str, Settings]
    settings: Settings
    budgets: Mapping[str, Settings]
    columns: tuple[Column, ...]
    test_transforms: tuple[str, ...] | None = None
    published: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


_LIKELIHOODS = (
    Column("released-is-10", "released IS-10", "paper"),
    Column("elbo", "ELBO", "ours"),
    Column("iwae-100", "IWAE-100", "ours"),
)
_EQUIVARIANCE = (
    Column("equivariance_error", "E_eq", "paper", of="diagnosis"),
    Column("centred_equivariance_error", "centred E_eq", "ours", of="diagnosis"),
    Column("image_error_rolled", "image error, rolled", "ours", of="diagnosis"),
    Column("image_error_rolled_minus_not_rolled", "rolled - not rolled", "ours", of="diagnosis"),
)

EXPERIMENTS: dict[str, Reproduction] = {
    "table1": Reproduction(
        title="Table 1: likelihood and equivariance on MNIST sequences, by temporal coherence",
        data="mnist",
        rows={
            "tvae, L = 1/2 S": {"model": "tvae", "temporal_window": 18, "spatial_width": 3},
            "tvae, L = 13/36 S": {"model": "tvae", "temporal_window": 13, "spatial_width": 3},
            "tvae, L = 5/36 S": {"model": "tvae", "temporal_window": 5, "spatial_width": 3},
            "bubble, L = 5/36 S": {"model": "bubble", "temporal_window": 5, "spatial_width": 3},
            "static, L = 0": {"model": "static", "spatial_width": 3},
            "vae": {"model": "vae"},
        },
        settings=_MNIST,
        budgets={"paper": {**_PAPER, "steps": 600_000}, "short": {**_SHORT, "steps": 6000}},
        columns=_LIKELIHOODS + _EQUIVARIANCE,
        published={"bubble, L = 5/36 S": {"E_eq": "3,369"}, "vae": {"E_eq": "13,274"}},
    ),
}


def experiment_of_the_paper(name: str) -> Reproduction:
    """The experiment of that name. Raises UserError."""
    if name not in EXPERIMENTS:
        raise unknown_name("experiment of the paper", name, EXPERIMENTS)
    return EXPERIMENTS[name]
