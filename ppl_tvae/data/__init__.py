"""Images into sequences of transformed images: sources, plans drawn on the host, frames drawn on the device."""

from ppl_tvae.data.datasets import SPLITS, SequenceData, check_split, open_data
from ppl_tvae.data.downloads import fetch
from ppl_tvae.data.images import Source
from ppl_tvae.data.plans import SEQUENCES_PER_BATCH, Plan, parts
from ppl_tvae.data.rendering import SequenceTables, factor_indices, render
from ppl_tvae.data.sources import catalogue, load_source

__all__ = [
    "SEQUENCES_PER_BATCH",
    "SPLITS",
    "Plan",
    "SequenceData",
    "SequenceTables",
    "Source",
    "catalogue",
    "check_split",
    "factor_indices",
    "fetch",
    "load_source",
    "open_data",
    "parts",
    "render",
]
