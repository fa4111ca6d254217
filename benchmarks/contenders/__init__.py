"""The same training by each peer: a bare loop of timm's parts, libraries with a trainer of their kind, and ours.

The function `train` of each module takes a `Job` and trains it to its end, with AdamW and a cosine schedule that steps
per update; with all parts also with timm's Mixup, clipping of the norm and EMA weights. With data to evaluate on, it
evaluates after each epoch; with a folder, it saves a state after each epoch, all that it resumes from. Where a peer
differs, `NOTES` says so. Only what a contender needs is imported for it.
"""

from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from benchmarks.contenders.job import Job

NOTES = {
    "article": "all parts only; no clipping; updates EMA once an epoch; saves no state",
    "pytorch-accelerated": "timm's Mixup, EMA and clipping of the norm in its hooks, EMA once an epoch",
    "lightning": "timm's Mixup in its hook; torch's cosine; with EMA, it evaluates the EMA weights only",
    "fastai": "timm's Mixup in a callback; the cosine of fastai; no EMA",
}
MODULES = {
    "bare": "bare",
    "article": "article",
    "pytorch-accelerated": "accelerated",
    "lightning": "with_lightning",
    "fastai": "with_fastai",
    "timm_accel": "ours",
}
Loop = Callable[["Job"], None]


def contender(name: str) -> Loop:
    """Return the function that trains by this contender."""
    return import_module(f"{__name__}.{MODULES[name]}").train


def names(all_parts: bool = True) -> list[str]:
    """Return the contenders that are installed."""
    absent = {name for name in ("lightning", "fastai") if find_spec(name) is None}
    return [name for name in MODULES if name not in absent and (all_parts or name != "article")]
