"""Training and evaluation sets from two folders of images, one folder a class."""

from pathlib import Path
from typing import Any

from timm.data import create_transform

from timm_accel.data.classes import class_names
from timm_accel.data.image_size import height_and_width
from timm_accel.data.images import PrepareImage
from timm_accel.data.labelled_images import LabelledImages
from timm_accel.data.sources import Source, open_class_folder
from timm_accel.data.transforms import create_training_transform


class ImageFolderDataset(LabelledImages):
    """A folder with one folder of images for each class.

    Args:
        root: The folder.
        transform: What makes an image of the model's input.
        **options: Those of `LabelledImages`: ``on_error``, ``prepare``, ….

    Raises:
        FileNotFoundError: `root` is missing or holds no images.
        ValueError: An image lies in `root` itself.
        OSError: By indexing, at an image that cannot be read; its name is in the message.

    Source: ``timm.data.readers.ReaderImageFolder``.
    """

    def __init__(self, root: str | Path, transform: Any = None, **options: Any) -> None:
        super().__init__(open_class_folder(root), transform, **options)


def create_datasets(
    image_size: int | tuple[int, int],
    data_mean: tuple[float, ...],
    data_std: tuple[float, ...],
    train_path: str | Path | None = None,
    val_path: str | Path | None = None,
    *,
    data: Any = None,
    eval_split: str = "val",
    auto_augment: str | None = "rand-m7-mstd0.5-inc1",
    interpolation: str = "random",
    eval_interpolation: str = "bilinear",
    crop_pct: float | None = None,
    crop_mode: str | None = None,
    on_error: str | None = None,
    max_bad_fraction: float = 0.01,
    **train_transform: Any,
) -> tuple[LabelledImages, LabelledImages]:
    """Create the training and the evaluation set, with the article's transforms.

    Args:
        image_size: The size of the model's input in pixels, one number or (height, width).
        data_mean: The mean of each channel, on a scale from 0 to 1.
        data_std: The standard deviation of each channel, on the same scale.
        train_path: A folder with one folder of images for each class.
        val_path: The same for evaluation, with the same classes.
        data: In place of both any image set: a folder with ``train`` and ``val``, or without; tars; a manifest;
            ``torch/NAME``, ``hfds/NAME``; readers and data sets of your own: see `Source`, which takes further options.
        eval_split: The split of `data` to evaluate on; ``test`` for the final evaluation.
        auto_augment: timm's name of a policy such as ``rand-m7-mstd0.5-inc1``; None for none.
        interpolation: Of the random crop in training.
        eval_interpolation: Of the resize in evaluation.
        crop_pct: The share of the resized image that evaluation keeps; None for timm's 0.875.
        crop_mode: How evaluation crops: ``center``, ``squash`` or ``border``; None for timm's ``center``.
        on_error: What an image that cannot be read does: ``"raise"`` stops the run, ``"skip"`` puts the next one into
            its place in training, and leaves it out in evaluation. None: skip in training, raise in evaluation.
        max_bad_fraction: The share of unreadable images above which the run stops, but at least 10 of them.
        **train_transform: Further training options of ``timm.data.create_transform``: ``scale``, ``hflip``, ….

    Returns:
        Two data sets of (image ``(C, H, W)``, label) with ``class_names`` and ``class_sizes``.

    Raises:
        FileNotFoundError: A folder is missing or empty.
        ValueError: There is one class only, or the two folders have different ones; or the size or the policy is none.

    Source: ``timm.data.create_transform``.
    """
    shared = {"input_size": height_and_width(image_size), "mean": data_mean, "std": data_std}
    transform = create_training_transform(auto_augment, **shared, interpolation=interpolation, **train_transform)
    eval_transform = create_transform(
        **shared, interpolation=eval_interpolation, crop_pct=crop_pct, crop_mode=crop_mode
    )
    source = _source(data, train_path, val_path)
    options: dict[str, Any] = {"prepare": PrepareImage(len(data_mean)), "max_bad_fraction": max_bad_fraction}
    train_dataset = LabelledImages(
        source.open("train"), transform, on_error=on_error or "skip", is_training=True, **options
    )
    eval_dataset = LabelledImages(source.open(eval_split), eval_transform, on_error=on_error or "raise", **options)
    _check_classes(train_dataset, eval_dataset, train_path or "training", val_path or eval_split)
    return train_dataset, eval_dataset


def _source(data: Any, train_path: str | Path | None, val_path: str | Path | None) -> Source:
    paths = train_path is not None and val_path is not None
    if (data is None) != paths:
        raise ValueError(
            f"Expected data, or train_path and val_path, but got {'both' if paths else 'neither'}. Pass one of them."
        )
    if paths:
        folders = {"train": train_path, "val": val_path}
        return Source({split: open_class_folder(path) for split, path in folders.items() if path is not None})
    return data if isinstance(data, Source) else Source(data)


def _check_classes(train_dataset: Any, eval_dataset: Any, train_path: str | Path, val_path: str | Path) -> None:
    train_names, eval_names = class_names(train_dataset) or [], class_names(eval_dataset) or []
    if len(train_names) < 2:
        raise ValueError(
            f"Expected at least two classes, but got {train_names} alone in {str(train_path)!r}. "
            "Put the images of each class into a folder of its own."
        )
    if train_names != eval_names:
        missing = sorted(set(train_names) - set(eval_names))
        extra = sorted(set(eval_names) - set(train_names))
        raise ValueError(
            f"Expected the same classes in both splits, but got {str(val_path)!r}, which lacks {missing} and has "
            f"{extra} besides. Move the folders so that they agree."
        )
