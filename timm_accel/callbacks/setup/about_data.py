"""What the screen tells about the data, by facts that are known without decoding an image."""

import filecmp
import os
from collections import defaultdict
from collections.abc import Iterator
from time import monotonic
from typing import TYPE_CHECKING, Any

from timm_accel.data.classes import class_names
from timm_accel.data.equal_files import digest_of_end
from timm_accel.data.image_files import FileCounts
from timm_accel.messages import counted
from timm_accel.terminal import shortened

if TYPE_CHECKING:
    from timm_accel.training import LoopTrainer

_IMBALANCED = 10  # times the smallest class, as in an audit
_SECONDS = 2.0  # for the comparison of files
_NAME = 24  # columns of a class name
_SPLITS = {"train": "training", "val": "evaluation"}


def about_data(trainer: "LoopTrainer") -> Iterator[tuple[str, str]]:
    """Yield the lines about the data of a run, each with its label.

    Args:
        trainer: The trainer, in a run.
    """
    datasets = {"train": trainer.train_dataset, "val": trainer.eval_dataset}
    datasets = {split: dataset for split, dataset in datasets.items() if dataset is not None}
    yield "data", "; ".join(f"{split} {_size(dataset)}" for split, dataset in datasets.items())
    for counts in _file_counts(datasets):
        if rest := counts.rest():
            yield "", f"left out: {rest}"
    sizes = {split: _class_sizes(dataset) for split, dataset in datasets.items()}
    if found := sorted((count, name) for name, count in sizes["train"].items() if count):
        (low, smallest), (high, largest) = found[0], found[-1]
        extremes = f"largest class {_name(largest)} ({high:,}), smallest {_name(smallest)} ({low:,})"
        yield "", f"{counted(low, 'training image')} of each class" if low == high else extremes
    for warning in _warnings(datasets, sizes):
        yield "warning", warning


def _size(dataset: Any) -> str:
    count = getattr(dataset, "num_samples", None)  # a stream's length is that of a rank
    if count is None and hasattr(dataset, "__len__"):
        count = len(dataset)
    try:
        names = class_names(dataset)
    except Exception:  # a dataset of a user
        names = None
    known = "a stream" if count is None else counted(count, "image")
    return f"{known} of {counted(len(names), 'class')}" if names else known


def _class_sizes(dataset: Any) -> dict[str, int]:
    try:
        return dict(dataset.class_sizes)
    except Exception:  # a stream, or a dataset of a user
        return {}


def _file_counts(datasets: dict[str, Any]) -> list[FileCounts]:
    """Return the counts of the files of each split; once where one folder is split."""
    readers = (getattr(dataset, "reader", None) for dataset in datasets.values())
    whole = {id(reader): reader for reader in (getattr(each, "reader", each) for each in readers)}
    counts = (getattr(reader, "files", None) for reader in whole.values())
    return [each for each in counts if isinstance(each, FileCounts)]


def _warnings(datasets: dict[str, Any], sizes: dict[str, dict[str, int]]) -> Iterator[str]:
    for split, of_split in sizes.items():
        if empty := [name for name, count in of_split.items() if not count]:
            more = f" and {len(empty) - 1} more" if len(empty) > 1 else ""
            yield f"no {_SPLITS[split]} image of {_name(empty[0])}{more}"
    for counts in _file_counts(datasets):
        if folders := counts.empty_folders:
            more = f" and {len(folders) - 1} more folders" if len(folders) > 1 else ""
            yield f"no image in {folders[0]}{more}"
    trained = sorted(count for count in sizes["train"].values() if count)
    if trained and trained[-1] >= _IMBALANCED * trained[0]:
        yield f"the largest class has {trained[-1] / trained[0]:.0f} times as many images as the smallest"
    if "val" in datasets and (pairs := _in_both(datasets["train"], datasets["val"])):
        yield f"{counted(len(pairs), 'evaluation image')} also in training, such as {pairs[0]}"


def _in_both(train: Any, evaluation: Any) -> list[str]:
    """Return the evaluation files that equal a training file, as far as they are found in `_SECONDS`."""
    end = monotonic() + _SECONDS
    others = list(_sized_files(evaluation, end))
    files = list(_sized_files(train, end)) if others else []
    sizes = {size for _, size in files} & {size for _, size in others}
    by_content: dict[tuple[int, bytes | None], list[str]] = defaultdict(list)
    for path, size in others:
        if size in sizes and monotonic() <= end:
            by_content[size, digest_of_end(path)].append(path)
    found: dict[str, None] = {}
    for path, size in files:
        if size in sizes and monotonic() <= end and (content := digest_of_end(path)) is not None:
            same = by_content.get((size, content), ())
            found |= {other: None for other in same if other not in found and filecmp.cmp(path, other, shallow=False)}
    return list(found)


def _sized_files(dataset: Any, end: float) -> Iterator[tuple[str, int]]:
    """Yield the images that are separate files, with their sizes in bytes, until the time `end`."""
    if not (hasattr(dataset, "filename") and hasattr(dataset, "__len__")):
        return
    for number in range(len(dataset)):
        if monotonic() > end:
            return
        try:
            path = dataset.filename(number, absolute=True)
            size = os.stat(path).st_size
        except (OSError, TypeError, ValueError, NotImplementedError):
            return  # no separate files
        if size:
            yield path, size


def _name(name: str) -> str:
    return shortened(str(name), _NAME)
