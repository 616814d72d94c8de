"""Images into sequences of transformed images: sources, plans drawn on the host, frames drawn on the device."""

from ppl_tvae.data.datasets import SPLITS, SequenceData, open_data
from ppl_tvae.data.downloads import fetch
from ppl_tvae.data.images import Source
from ppl_tvae.data.plans import Plan, fixed_plan, parts, training_plans
from ppl_tvae.data.rendering import (
    FactorTables,
    ImageTables,
    PlainTables,
    SequenceTables,
    Tables,
    factor_indices,
    render,
)
from ppl_tvae.data.sources import catalogue, load_source
from ppl_tvae.data.sprites import SPRITES
from ppl_tvae.data.transforms import FACTORS, factor_values

__all__ = [
    "FACTORS",
    "SPLITS",
    "SPRITES",
    "FactorTables",
    "ImageTables",
    "PlainTables",
    "Plan",
    "SequenceData",
    "SequenceTables",
    "Source",
    "Tables",
    "catalogue",
    "factor_indices",
    "factor_values",
    "fetch",
    "fixed_plan",
    "load_source",
    "open_data",
    "parts",
    "render",
    "training_plans",
]
