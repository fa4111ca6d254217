"""Run an audit: read every file once, and summarize the results."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from statistics import median_low
from typing import TYPE_CHECKING, Any

import numpy as np

from timm_accel.audit.duplicates import equal_groups, near_groups
from timm_accel.audit.report import Audit, ReadableImage, Split, Unreadable
from timm_accel.audit.scan import Scanned, scan
from timm_accel.audit.splits import count_files, open_splits, unread_files
from timm_accel.audit.suspects import Suspect, find_suspects
from timm_accel.audit.wide_pixels import wide_pixels
from timm_accel.messages import counted, nearest

if TYPE_CHECKING:
    from timm_accel.predict import Scores

Numbers = tuple[float, ...]


def audit(
    data: Any,
    *,
    num_workers: int | None = None,
    progress: bool = True,
    model_config: Mapping[str, Any] | None = None,
    pixel_range: tuple[float, float] | None = None,
    predictions: "Scores | str | Path | None" = None,
) -> Audit:
    """Read every file of a dataset once, and report its faults.

    Images are fully decoded, without the transform, and compared upright and in RGB, as timm_accel's datasets decode
    them. Images with equal pixels are duplicates, even if their files differ. Near-duplicates differ in at most 3 of
    the 64 bits of a perceptual hash, and have similar thumbnails of 16 by 16 pixels: the same image compressed again,
    resized, or slightly brighter or noisier. A mirrored, rotated or cropped copy is not found. Images that differ only
    in fine detail may be reported. Near-duplicates of near-duplicates are in one group.

    Args:
        data: Datasets by the name of their split, such as ``{"train": train_set, "val": val_set}``, each over a timm
            reader of files; or a folder or tar with ``train``, ``val``, … in it, at any depth; or one with a folder
            for each class.
        num_workers: The worker processes; None for one for each CPU, 0 to read in this process.
        progress: Whether to show a bar.
        model_config: The model's config with ``mean`` and ``std`` on a scale from 0 to 1, such as
            ``model.pretrained_cfg``; the pixels of ``train``, or otherwise of the first split, are compared with it.
        pixel_range: The values (low, high) that become black and white in images of more than 8 bits; None for the
            ``pixel_range`` of each dataset.
        predictions: The scores of images by models that were not trained on them, or their parquet file, such as
            ``out_of_fold.parquet`` of `cross_validate`: images with a label that is likely wrong, that fit no class or
            that lie between two classes are then listed too. Needs the extra ``labels``.

    Raises:
        FileNotFoundError: `data` is a path without images, or there are no such predictions.
        ModuleNotFoundError: An extra is not installed for `predictions`.
        TypeError: `data` is neither a path nor a map of datasets over readers of files.
        ValueError: There are no images, `num_workers` is out of range, `model_config` has no mean and std,
            `pixel_range` is not two rising numbers, or `predictions` are of other images or classes.

    Source: The hash is that of ``imagehash.phash``.
    """
    if num_workers is not None and (not isinstance(num_workers, int) or num_workers < 0):
        raise ValueError(
            f"Expected num_workers to be a number of processes of at least 0, but got {num_workers!r}. "
            "None is one for each CPU."
        )
    from timm_accel.data.loader_errors import loader_errors_explained  # imports torch

    model_mean, model_std = _mean_and_std(model_config)
    datasets = open_splits(data)
    suspects = () if predictions is None else _suspects(predictions, datasets)
    ranges = {name: _range_of(dataset, pixel_range) for name, dataset in datasets.items()}
    with loader_errors_explained():
        scanned = {name: scan(name, dataset, num_workers, progress, ranges[name]) for name, dataset in datasets.items()}
    readable = [(name, image) for name, images in scanned.items() for image in images if not image.error]
    images = [ReadableImage(name, ";".join(image.classes), image.path) for name, image in readable]
    equal = equal_groups([image.digest for _, image in readable])
    near = near_groups([image.hash for _, image in readable], [image.thumbnail for _, image in readable], equal)
    return Audit(
        splits={name: _summary(dataset, scanned[name], ranges[name]) for name, dataset in datasets.items()},
        unreadable=tuple(
            Unreadable(name, image.path, image.error)
            for name, images in scanned.items()
            for image in images
            if image.error
        ),
        duplicates=tuple(tuple(images[index] for index in group) for group in equal),
        near_duplicates=tuple(tuple(images[index] for index in group) for group in near),
        model_mean=model_mean,
        model_std=model_std,
        suspects=suspects,
    )


def _suspects(predictions: "Scores | str | Path", datasets: Mapping[str, Any]) -> tuple[Suspect, ...]:
    """Return the suspect images of predictions, which must be of the images of the data."""
    from timm_accel.predict.scores import Scores  # imports torch

    scores = Scores.from_parquet(predictions) if isinstance(predictions, str | Path) else predictions
    readers = [getattr(dataset, "reader", dataset) for dataset in datasets.values()]
    known = {
        reader.filename(number, absolute=absolute)
        for reader in readers
        for number in range(len(reader))
        for absolute in (True, False)
    }
    if unknown := [path for path in scores.paths if path not in known]:
        raise ValueError(
            f"Expected predictions of images of the data, but got {counted(len(unknown), 'other image')} of "
            f"{len(scores):,}, such as {unknown[0]!r}. Predict these data again."
        )
    classes = {name for reader in readers for name in reader.class_to_idx}
    if other := sorted(set(scores.class_names) - set(scores.missing_classes) - classes):
        raise ValueError(
            f"Expected predictions of the classes of the data, but got {other[0]!r}. {nearest(other[0], classes)}"
        )
    return find_suspects(scores)


def _mean_and_std(model_config: Any) -> tuple[Numbers, Numbers] | tuple[None, None]:
    from timm_accel.data.transforms.data_config import check_mean_and_std

    if model_config is None:
        return None, None
    given = [model_config.get(name) if isinstance(model_config, Mapping) else None for name in ("mean", "std")]
    if any(not isinstance(numbers, list | tuple) or len(numbers) not in (1, 3) for numbers in given):
        raise ValueError(
            f"Expected model_config to have a mean and a std of one or three channels, but got {model_config!r}. "
            "Pass model.pretrained_cfg, or {'mean': (0.5, 0.5, 0.5), 'std': (0.2, 0.2, 0.2)}."
        )
    mean, std = check_mean_and_std(given[0], given[1], " of model_config")
    return mean * (3 // len(mean)), std * (3 // len(std))


def _range_of(dataset: Any, pixel_range: Any) -> tuple[float, float] | None:
    """Return the given range, or that of a dataset's `PrepareImage`; None where there is none."""
    from timm_accel.data.transforms.pixel_range import check_pixel_range

    if pixel_range is not None:
        return check_pixel_range(pixel_range)
    return getattr(_prepare_of(dataset), "pixel_range", None)


def _prepare_of(dataset: Any) -> Any:
    prepare = getattr(dataset, "prepare", None)
    return getattr(prepare, "prepare", prepare)  # that of a `DraftedCrop`


def _summary(dataset: Any, scanned: list[Scanned], pixel_range: tuple[float, float] | None) -> Split:
    from timm_accel.data.classes import class_names
    from timm_accel.data.transforms.prepare_image import PrepareImage

    images = [image for image in scanned if not image.error]
    sizes = Counter(dict.fromkeys(class_names(dataset) or sorted({name for one in scanned for name in one.classes}), 0))
    sizes.update(name for image in images for name in image.classes)
    mean, std = _mean_and_std_of(images)
    counts = count_files(dataset.reader)
    return Split(
        num_files=len(scanned),
        class_sizes=dict(sizes),
        width=_spread([image.width for image in images]),
        height=_spread([image.height for image in images]),
        modes=dict(sorted(Counter(image.mode for image in images).items())),
        num_turned=sum(image.is_turned for image in images),
        mean=mean,
        std=std,
        is_prepared=isinstance(_prepare_of(dataset), PrepareImage),
        empty_folders=counts.empty_folders,
        unread_files=unread_files(counts),
        files=counts,
        wide_pixels=wide_pixels([image.values for image in images if image.values is not None], pixel_range),
    )


def _spread(numbers: list[int]) -> tuple[int, int, int] | None:
    return (min(numbers), median_low(numbers), max(numbers)) if numbers else None


def _mean_and_std_of(images: list[Scanned]) -> tuple[Numbers, Numbers] | tuple[None, None]:
    """Return the mean and std of all pixels; every image has the same weight, as in training."""
    if not images:
        return None, None
    mean = np.mean([image.mean for image in images], axis=0)
    square = np.mean([image.square for image in images], axis=0)
    std = np.sqrt(np.maximum(square - mean**2, 0))
    return tuple(mean.round(6).tolist()), tuple(std.round(6).tolist())
