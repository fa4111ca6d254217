"""What the page shows of a cross-validation: mean and deviation of each metric, and images whose label to look at."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from timm_accel.audit.suspects import Suspect, find_suspects
from timm_accel.messages import quoted_sentence
from timm_accel.predict import Scores, load_classifier
from timm_accel.predict.scored_images import images_of
from timm_accel.recipes.cross_validation import OUT_OF_FOLD, RESULT
from timm_accel.recipes.past_run import data_of_run, recipe_of_run
from timm_accel.report.images import thumbnail_of

MAX_IMAGES = 60
_TITLES = {"label": "The label is likely wrong", "outlier": "Fits no class", "ambiguous": "Between two classes"}


@dataclass(frozen=True)
class SuspectGroup:
    """Suspect images of one kind: how many there are, and the first of them, each with a thumbnail or None."""

    title: str
    count: int
    images: list[tuple[Suspect, str | None]]


@dataclass(frozen=True)
class CrossValidated:
    """What the page shows of a cross-validation; what is missing is empty, and `notes` says why."""

    name: str
    num_images: int
    spreads: dict[str, tuple[float, float]]
    groups: list[SuspectGroup]
    notes: list[str]


def folds_of(folder: Path) -> list[Path]:
    """Return the runs of a cross-validation that is complete; none for any other folder."""
    if not (folder / OUT_OF_FOLD).is_file():
        return []
    return sorted(folder.glob("fold_*"), key=lambda fold: (len(fold.name), fold.name))


def cross_validated(folder: Path) -> CrossValidated:
    """Return what the page shows of a cross-validation.

    Args:
        folder: Its folder.

    Raises:
        ModuleNotFoundError: The extra ``parquet`` is not installed.
        ValueError: The file with the predictions is none.
    """
    scores, notes = Scores.from_parquet(folder / OUT_OF_FOLD), list[str]()
    suspects: Sequence[Suspect] = ()
    try:
        suspects = find_suspects(scores)
    except (ModuleNotFoundError, ValueError) as error:
        notes.append(f"Suspect images could not be found: {quoted_sentence(error, None)}")
    found = {kind: [each for each in suspects if each.kind == kind] for kind in _TITLES}
    shown = {kind: of_kind[:MAX_IMAGES] for kind, of_kind in found.items()}
    try:
        paths = [each.path for each in chain.from_iterable(shown.values())]
        thumbnails = _thumbnails(folder / "fold_1", paths)
    except (OSError, ValueError, TypeError, ModuleNotFoundError, RuntimeError) as error:
        thumbnails = {}
        notes.append(f"The images could not be read: {quoted_sentence(error, None)}")
    groups = [
        SuspectGroup(title, len(found[kind]), [(each, thumbnails.get(each.path)) for each in shown[kind]])
        for kind, title in _TITLES.items()
        if found[kind]
    ]
    return CrossValidated(folder.resolve().name, len(scores), _spreads(folder), groups, notes)


def _spreads(folder: Path) -> dict[str, tuple[float, float]]:
    """Return mean and deviation of each metric after the last epoch, which no image of a fold has chosen."""
    path = folder / RESULT
    written: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return {name: (mean, deviation) for name, (mean, deviation) in written.get("last_mean_and_deviation", {}).items()}


def _thumbnails(run: Path, paths: list[str]) -> dict[str, str]:
    """Return thumbnails of images, by path, from the data of one fold, which are those of all."""
    recipe = recipe_of_run(run)
    if not paths or recipe is None:
        return {}
    classifier = load_classifier(run)
    datasets = data_of_run(recipe, classifier.data_config)
    parts = [images_of(paths, dataset.reader, classifier.prepare) for dataset in datasets]
    pairs = chain.from_iterable(zip(paths, part, strict=True) for part in parts)
    return {path: thumbnail_of(image) for path, image in pairs if image is not None}
