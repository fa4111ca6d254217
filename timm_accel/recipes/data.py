"""The data of a recipe: their source, the datasets, and how training loads them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from timm_accel.data import RepeatedSampler, Source, StreamedImages, class_balanced_sampler, create_datasets
from timm_accel.data.sources import is_stream
from timm_accel.recipes.recipe import Recipe


def source_of(recipe: Recipe, data: Any) -> Source:
    """Return the source of a recipe's images; a split that is drawn is that of the run folder.

    Args:
        recipe: The recipe.
        data: Its ``data_dir``, or the folder of digits.
    """
    return Source(
        data,
        root=recipe.data_root,
        download=recipe.download,
        val_fraction=recipe.val_fraction,
        group=recipe.group,
        split_file=None if is_stream(data) else Path(recipe.run_dir) / "split.csv",
        class_map=recipe.class_map,
        exclude=recipe.exclude,
        folds=recipe.folds,
        fold=recipe.fold,
    )


def create_data(recipe: Recipe, source: Source, data_config: Mapping[str, Any]) -> tuple[Any, Any]:
    """Return the training and the evaluation dataset of a recipe.

    Args:
        recipe: The recipe.
        source: The source of its images.
        data_config: The preprocessing of the model: mean, std, crop_pct, crop_mode, interpolation.
    """
    return create_datasets(
        recipe.image_size,
        data_config["mean"],
        data_config["std"],
        data=source,
        eval_split=recipe.eval_split,
        eval_image_size=recipe.eval_image_size,
        crop_pct=recipe.crop_pct or data_config["crop_pct"],
        crop_mode=recipe.crop_mode or data_config["crop_mode"],
        eval_interpolation=data_config["interpolation"],
        auto_augment=recipe.auto_augment,
        color_jitter=recipe.color_jitter or None,
        scale=recipe.scale,
        ratio=recipe.ratio,
        hflip=recipe.hflip,
        vflip=recipe.vflip,
        re_prob=recipe.re_prob,
        re_mode=recipe.re_mode,
        cache=recipe.cache,
        draft=recipe.draft,
        on_error=recipe.on_error,
        pixel_range=recipe.pixel_range,
    )


def train_arguments(recipe: Recipe, train_set: Any, eval_set: Any) -> dict[str, Any]:
    """Return the arguments of the trainer's ``train``.

    Args:
        recipe: The recipe.
        train_set: The training dataset.
        eval_set: The evaluation dataset.

    Raises:
        ValueError: The recipe asks for an order of the images, and they are a stream.
    """
    workers = {} if recipe.num_workers is None else {"num_workers": recipe.num_workers}
    order: dict[str, Any] = {} if recipe.drop_last is None else {"drop_last": recipe.drop_last}
    if isinstance(train_set, StreamedImages):
        _refuse_samplers(recipe)
    elif recipe.sampler is not None:
        order["sampler"] = class_balanced_sampler(train_set.labels)
    elif recipe.num_repeats > 1:
        order["sampler"] = RepeatedSampler(len(train_set), recipe.num_repeats, num_samples=len(train_set))
    return {
        "per_device_batch_size": recipe.batch_size,
        "train_dataset": train_set,
        "eval_dataset": eval_set,
        "num_epochs": recipe.num_epochs,
        "gradient_accumulation_steps": recipe.gradient_accumulation_steps,
        "train_dataloader_kwargs": workers | order,
        "eval_dataloader_kwargs": workers,
        "resume_from": recipe.resume,
    }


def _refuse_samplers(recipe: Recipe) -> None:
    for name in ("sampler", "num_repeats"):
        if (value := getattr(recipe, name)) != getattr(Recipe, name):
            raise ValueError(
                f"Expected no {name} beside {recipe.data_dir!r}, since a stream has its own order, but got {value!r}. "
                "Leave it out, or use a source that is no stream."
            )
