"""Training and evaluation datasets from any source of images, with timm's transforms."""

from functools import partial
from pathlib import Path
from typing import Any

from timm.data import create_transform
from timm.data.constants import DEFAULT_CROP_PCT

from timm_accel.data.classes import class_names
from timm_accel.data.labeled_images import LabeledImages
from timm_accel.data.readers.indexed_reader import log_files, name_alike
from timm_accel.data.readers.memory_cache import MemoryCache
from timm_accel.data.readers.reader_views import alike
from timm_accel.data.sources import Source
from timm_accel.data.splits.split_folders import open_class_folder
from timm_accel.data.splits.splitting import split_name
from timm_accel.data.streams.stream_reader import refuse_streams
from timm_accel.data.streams.streamed_images import create_image_dataset
from timm_accel.data.transforms.create import create_training_transform, height_and_width
from timm_accel.data.transforms.data_config import INTERPOLATIONS, check_crop, check_mean_and_std
from timm_accel.data.transforms.device_transform import DeviceTransform
from timm_accel.data.transforms.drafted_crop import take_crop
from timm_accel.data.transforms.late_color import color_late
from timm_accel.data.transforms.pixel_range import PixelRange, settled_pixel_range
from timm_accel.data.transforms.prepare_image import PrepareImage
from timm_accel.messages import nearest


class ImageFolderDataset(LabeledImages):
    """A folder with one folder of images for each class.

    Args:
        root: The folder.
        transform: Turns an image into the model's input.
        **options: Options of `LabeledImages`: ``on_error``, ``prepare``, ….

    Raises:
        FileNotFoundError: `root` is missing or holds no images.
        ValueError: An image lies in `root` itself.
        OSError: An indexed image cannot be read; the message has its name.

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
    eval_image_size: int | tuple[int, int] | None = None,
    auto_augment: str | None = "rand-m7-mstd0.5-inc1",
    interpolation: str = "random",
    eval_interpolation: str = "bilinear",
    crop_pct: float | None = None,
    crop_mode: str | None = None,
    on_error: str | None = None,
    max_bad_fraction: float = 0.01,
    pixel_range: PixelRange | None = None,
    cache: str | None = None,
    draft: bool = False,
    re_prob: float = 0.0,
    re_mode: str = "const",
    re_count: int = 1,
    **train_transform: Any,
) -> tuple[LabeledImages, LabeledImages]:
    """Create the training and the evaluation dataset, with the article's transforms.

    Args:
        image_size: The size of the model's input in pixels, one number or (height, width).
        data_mean: The mean of each channel, on a scale from 0 to 1.
        data_std: The standard deviation of each channel, on the same scale.
        train_path: A folder with one folder of images for each class.
        val_path: The same for evaluation, with the same classes.
        data: Any source, in place of the two folders: a folder with or without ``train`` and ``val``, tars, a manifest,
            ``torch/NAME``, ``hfds/NAME``, custom readers and datasets. `Source` takes further options. For the streams
            ``wds/FOLDER``, ``hfids/NAME`` and ``tfds/NAME`` the result is `StreamedImages`, not `LabeledImages`.
        eval_split: The split of `data` to evaluate on; ``test`` for the final evaluation, which may lack classes.
        eval_image_size: The size in evaluation; None for the same.
        auto_augment: timm's name of a policy such as ``rand-m7-mstd0.5-inc1``; None for none.
        interpolation: The interpolation of the random crop in training.
        eval_interpolation: The interpolation of the resize in evaluation.
        crop_pct: The share of the resized image that evaluation keeps; None for timm's 0.875.
        crop_mode: How evaluation crops: ``center``, ``squash`` or ``border``; None for timm's ``center``.
        on_error: What happens at an image that cannot be read: ``"raise"`` stops the run, ``"skip"`` replaces it by the
            next image in training and leaves it out in evaluation. None is ``"skip"``. In evaluation ``"raise"``
            reads all images before the first epoch.
        max_bad_fraction: The share of unreadable images above which the run stops, but at least 10 of them.
        pixel_range: The values (low, high) that become black and white in images of more than 8 bits, such as
            (0, 4095); None for the range of 16 bits. Images of 32 bits have one scale too: with None it is 0 to 1, 0
            to 255, or 0 to 65535 for integers, if up to 1,000 images of each split agree on it.
        cache: ``"memory"`` decodes every image once, at the start, and keeps it in memory that loader workers share.
        draft: Whether training may decode a JPEG at a reduced scale where the random crop allows: this is faster
            for large images, and pixels differ by about 1/255.
        re_prob: The probability that training erases a part of an image.
        re_mode: What fills it: ``const`` (0), ``rand`` (a random color), ``pixel`` (random pixels).
        re_count: The largest number of erased parts.
        **train_transform: Further training options of ``timm.data.create_transform``: ``scale``, ``hflip``, ….

    Returns:
        Two datasets of (image ``(C, H, W)``, label) with ``class_names`` and ``class_sizes``. Images are float32 and
        normalized. `LoopTrainer` loads them as ``uint8``, and normalizes and erases batches on the device. Multi-label
        targets are ``(num_classes,)`` of 0 and 1.

    Raises:
        FileNotFoundError: A folder is missing or empty.
        ValueError: There is only one class, the two folders have different classes, a label is no class, a split has
            no labels, an option is out of range, or the images need a `pixel_range`.
        MemoryError: The decoded images do not fit into memory.

    Source: ``timm.data.create_transform``.
    """
    check_mean_and_std(data_mean, data_std)
    crop_pct = DEFAULT_CROP_PCT if crop_pct is None else crop_pct
    crop_mode = "center" if crop_mode is None else crop_mode
    check_crop(crop_pct, crop_mode, eval_interpolation)
    if interpolation not in ("random", *INTERPOLATIONS):
        raise ValueError(
            f"Expected interpolation to be 'random' or one of timm's, but got {interpolation!r}. "
            f"{nearest(interpolation, INTERPOLATIONS)}"
        )
    size = height_and_width(image_size)
    eval_size = height_and_width(eval_image_size or size)
    statistics: dict[str, Any] = {"mean": data_mean, "std": data_std, "normalize": False}
    transform_of_size = partial(
        _training_transform, len(data_mean), auto_augment, **statistics, interpolation=interpolation, **train_transform
    )
    transform = transform_of_size(input_size=size)
    eval_transform = create_transform(
        eval_size,
        **statistics,
        interpolation=eval_interpolation,
        crop_pct=crop_pct,
        crop_mode=crop_mode,
    )
    eval_transform = color_late(eval_transform, len(data_mean))
    source = _source(data, train_path, val_path)
    opened = {"train": source.open("train"), eval_split: source.open(eval_split)}
    name_alike(opened.values())
    log_files(opened)
    is_test = split_name(eval_split) != "val"
    readers = alike(opened["train"], opened[eval_split], is_test)
    prepare = PrepareImage(len(data_mean), settled_pixel_range(readers, pixel_range), keep_gray=True)
    train_prepare = take_crop(transform, prepare) if draft else prepare
    readers = _cached(cache, draft, prepare, *readers)
    train_dataset = create_image_dataset(
        readers[0],
        transform,
        prepare=train_prepare,
        device_transform=DeviceTransform(data_mean, data_std, re_prob, re_mode, re_count),
        on_error=on_error or "skip",
        is_training=True,
        max_bad_fraction=max_bad_fraction,
    )
    eval_dataset = create_image_dataset(
        readers[1],
        eval_transform,
        prepare=prepare,
        device_transform=DeviceTransform(data_mean, data_std),
        on_error=on_error or "skip",
        max_bad_fraction=max_bad_fraction,
    )
    eval_dataset.data_config = {
        "input_size": (len(data_mean), *eval_size),
        "mean": tuple(data_mean),
        "std": tuple(data_std),
        "interpolation": eval_interpolation,
        "crop_pct": crop_pct,
        "crop_mode": crop_mode,
        "pixel_range": prepare.pixel_range,
    }
    if not draft:
        train_dataset.transform_of_size = transform_of_size
    if isinstance(eval_dataset, LabeledImages):
        eval_dataset.require_labels()
    where = source.data if isinstance(source.data, str | Path) else "data"
    _check_classes(train_dataset, eval_dataset, train_path or f"{where}/train", val_path or f"{where}/{eval_split}")
    return train_dataset, eval_dataset


def _training_transform(channels: int, auto_augment: str | None, **options: Any) -> Any:
    return color_late(create_training_transform(auto_augment, **options), channels)


def _cached(cache: str | None, draft: bool, prepare: PrepareImage, *readers: Any) -> tuple[Any, ...]:
    if cache not in (None, "memory"):
        raise ValueError(f"Expected cache to be 'memory' or None, but got {cache!r}. None reads files in each epoch.")
    if cache is not None and draft:
        raise ValueError(
            "Expected cache or draft, since cached images are decoded once and at full scale, but got both. Leave "
            "draft out."
        )
    if cache is not None:
        refuse_streams(readers)
    return readers if cache is None else tuple(MemoryCache(reader, prepare) for reader in readers)


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
            "Put the images of each class into a separate folder, or name their classes in a manifest."
        )
    if train_names != eval_names:
        missing = sorted(set(train_names) - set(eval_names))
        extra = sorted(set(eval_names) - set(train_names))
        parts = [f"lacks {missing}"] * bool(missing) + [f"has {extra} besides"] * bool(extra)
        raise ValueError(
            f"Expected the same classes in both splits, but got {str(val_path)!r}, which {' and '.join(parts)}. "
            "Move the folders so that they agree."
        )
