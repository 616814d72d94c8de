"""How much the guide's draws say of the frames: the rate, which is the KL divergence of the guide from the prior.

The ELBO is the expected log p(x | latents) minus the rates of all latents (Alemi et al. 2018, arXiv 1711.00464, whose
distortion is minus the first of the two). Where the rate is zero the guide is the prior, whatever the frames: posterior
collapse (Bowman et al. 2016, arXiv 1511.06349).
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ppl_tvae.inference import bounds

if TYPE_CHECKING:
    import xarray as xr

ALL = "all latents"
_NOTHING = 0.05  # nats per frame
_NO_NEARER = 0.98  # of the mean frame's error


def rates(tree: "xr.DataTree") -> list[dict[str, Any]]:
    """A record for each latent, and for all: latent, value and standard_error over sequences, unit.

    E[log q(latent | x) - log p(latent)] over the guide's draws and the sequences, each given the latents before it. Of
    one latent it may be negative where it depends on others; of all it is a KL divergence, up to the noise of the
    draws. tree: of `datatree`. Nats per frame.
    """
    log_guide, log_prior = tree["log_guide"].to_dataset(), tree["log_prior"].to_dataset()
    num_timesteps = tree["observed_data"].sizes["time"]
    by_latent = {
        str(name): (log_guide[name] - log_prior[name]).mean(("chain", "draw")).values / num_timesteps
        for name in log_prior
    }
    return [
        {
            "latent": name,
            "value": float(values.mean()),
            "standard_error": bounds.standard_error(values),
            "unit": "nats per frame",
        }
        for name, values in {**by_latent, ALL: np.sum(list(by_latent.values()), axis=0)}.items()
    ]


def as_text(found: list[dict[str, Any]]) -> str:
    """The rates in a line."""

    def number(value: float | None, digits: int) -> str:
        return "unknown" if value is None else f"{value:.{digits}g}"

    shown = (
        f"{record['latent']} {number(record['value'], 3)} +- {number(record['standard_error'], 2)}" for record in found
    )
    return f"rate, the KL divergence of the guide from the prior: {', '.join(shown)} {found[0]['unit']}"


def signs_of_collapse(diagnosis: Mapping[str, Any]) -> list[str]:
    """Sentences where a diagnosis shows that the latents are not used; mostly none."""
    found = []
    total = next((record["value"] for record in diagnosis.get("rates", []) if record["latent"] == ALL), None)
    if total is not None and total < _NOTHING:
        found.append(
            f"posterior collapse: the guide's draws are those of the prior but for {total:.2g} nats per frame, and say "
            "next to nothing of the frames; weights that are alike and a calibrated guide are no sign of a good model"
        )
    errors = {record["metric"]: record["value"] for record in diagnosis.get("equivariance", [])}
    reconstruction, mean_frame = (errors.get(f"image_error_{name}") for name in ("reconstruction", "mean_frame"))
    if reconstruction is not None and mean_frame is not None and reconstruction > _NO_NEARER * mean_frame:
        found.append(
            f"the codes are not used: the squared error of frames decoded from them, {reconstruction:.3g}, is no lower "
            f"than that of the mean training frame, {mean_frame:.3g}"
        )
    return found
