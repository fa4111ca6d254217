"""What does not compare of several runs: their tasks, classes and images."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from timm_accel.data.classes import class_name
from timm_accel.messages import counted
from timm_accel.models import read_config
from timm_accel.models.opening import best_folders
from timm_accel.report.history import History, progress_of

_OF_IMAGES = ("data_dir", "data_root", "eval_split", "val_fraction", "group", "exclude", "folds", "fold")


def check_tasks(runs: Mapping[str, Path]) -> None:
    """Raise a `ValueError` if only some runs are multi-label: their losses and F1 are of different problems.

    Args:
        runs: The folders of the runs by name; a run without weights has no task yet.
    """
    tasks = {name: bool(config.get("multi_label")) for name, config in _configs(runs)}
    if len(set(tasks.values())) > 1:
        found = ", ".join(f"{name!r} ({'multi' if task else 'single'}-label)" for name, task in tasks.items())
        raise ValueError(f"Expected runs of one task, but got {found}. Report those of each task together.")


def notes_on(
    runs: Mapping[str, Path],
    histories: Mapping[str, History],
    recipes: Mapping[str, Mapping[str, Any]],
    metrics: Sequence[str],
) -> list[str]:
    """Return sentences about runs that are not finished, and about what does not compare.

    Args:
        runs: The folders of the runs by name.
        histories: Their histories.
        recipes: The options of their recipes.
        metrics: The metrics that are shown.
    """
    notes = [
        f"{name} {progress}"
        for name, folder in runs.items()
        if (progress := progress_of(folder, histories[name], recipes[name]))
    ]
    known = dict(_configs(runs))
    notes += [f"{name} has no weights yet, so that its classes are not known." for name in runs if name not in known]
    notes += [f"{name} has no recipe.yaml, so that its images are not known." for name in runs if not recipes[name]]
    notes += _on_classes({name: config.get("label_names") for name, config in known.items()})
    given = [recipe for recipe in recipes.values() if recipe]
    if others := [each for each in _OF_IMAGES if any(one.get(each) != given[0].get(each) for one in given)]:
        notes.append(
            f"The runs differ in {', '.join(others)}: compare their metrics only if the evaluation images are the same."
        )
    if missing := dict.fromkeys(each for one in histories.values() for each in one.metrics() if each not in metrics):
        notes.append(f"Not shown, since not all runs recorded them: {', '.join(missing)}.")
    return notes


def _configs(runs: Mapping[str, Path]) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, folder in runs.items():
        if folders := best_folders(folder):
            yield name, read_config(folders[0])


def _on_classes(classes: Mapping[str, Any]) -> list[str]:
    named = {name: {class_name(each) for each in names} for name, names in classes.items() if names}
    if len({frozenset(each) for each in named.values()}) < 2:
        return []
    common = set.intersection(*named.values())
    found = ", ".join(f"{name} {counted(len(each), 'class')}" for name, each in named.items())
    return [f"The classes differ ({found}; {len(common):,} in common): the metrics of these runs do not compare."]
