"""Options of a recipe that contradict each other."""

from collections.abc import Callable, Iterator
from dataclasses import fields
from functools import partial
from typing import TYPE_CHECKING, Any

from timm_accel.losses.create import HARD_LABEL_KINDS
from timm_accel.optim import check_optimizer
from timm_accel.optim.create import check_options
from timm_accel.schedules.fitting import schedule_faults

if TYPE_CHECKING:
    from timm_accel.recipes.recipe import Recipe

_WEIGHTED = {"class_weights": ("ce", "bce", "asl"), "pos_weights": ("bce", "asl")}


def _odd_batches(recipe: "Recipe") -> Iterator[str]:
    if recipe.mixes and recipe.batch_size != "auto" and recipe.batch_size % 2:
        yield (
            f"Expected batch_size to be even, since Mixup mixes pairs of images, but got {recipe.batch_size}. "
            f"The default is {type(recipe).batch_size}."
        )


def _schedules(recipe: "Recipe") -> Iterator[str]:
    for fault in schedule_faults(recipe.scheduler_args(), num_epochs=recipe.num_epochs):
        yield fault.replace("scheduler_args", "sched_args")


def _optimizers(recipe: "Recipe") -> Iterator[str]:
    try:
        check_optimizer(recipe.opt)
    except (ValueError, ModuleNotFoundError) as error:
        yield str(error)
        return
    given = recipe.opt_args or {}
    yield from _faults_of_options(recipe.opt, [{name: value} for name, value in given.items()]) or _faults_of_options(
        recipe.opt, [given]
    )


def _faults_of_options(opt: str, each: list[dict[str, Any]]) -> list[str]:
    faults = []
    for options in each:
        try:
            check_options(opt, options)
        except ValueError as error:
            faults.append(str(error).replace("options", "opt_args to be options", 1))
    return faults


def _options_of_models(recipe: "Recipe") -> Iterator[str]:
    if "num_classes" in (given := recipe.model_args or {}):
        yield (
            f"Expected model_args without 'num_classes', but got {given['num_classes']!r} for it. "
            "They follow from the data."
        )
    yield from _options_twice(recipe, "model_args")


def _options_twice(recipe: "Recipe", argument: str) -> Iterator[str]:
    options = [field.name for field in fields(recipe)]
    for name, value in (getattr(recipe, argument) or {}).items():
        if name in options:
            yield f"Expected {argument} without {name!r}, but got {value!r} for it. Set the option {name}."


def _freezing(recipe: "Recipe") -> Iterator[str]:
    if recipe.freeze_epochs > recipe.num_epochs:
        yield (
            f"Expected freeze_epochs to be at most num_epochs, {recipe.num_epochs}, but got {recipe.freeze_epochs}. "
            "Freeze for fewer."
        )


def _adapters(recipe: "Recipe") -> Iterator[str]:
    if recipe.lora is not None and recipe.freeze_epochs > 0:
        yield (
            "Expected freeze_epochs to be 0 with lora, which freezes all but the adapters and the classifier, but got "
            f"{recipe.freeze_epochs}. Leave one of them out."
        )


def _two_weights(recipe: "Recipe") -> Iterator[str]:
    if recipe.pretrained and recipe.weights is not None:
        yield f"Expected pretrained or weights, but got both, {recipe.weights!r} too. Leave one of them out."


def _two_orders(recipe: "Recipe") -> Iterator[str]:
    if recipe.sampler is not None and recipe.num_repeats > 1:
        yield (
            f"Expected sampler or num_repeats, since each draws its own order, but got both, {recipe.num_repeats!r} "
            "repeats too. Leave one of them out."
        )


def _resolutions(recipe: "Recipe") -> Iterator[str]:
    if recipe.resolutions is not None and recipe.gradient_accumulation_steps > 1:
        yield (
            "Expected gradient_accumulation_steps to be 1 with resolutions, since an update has images of one size, "
            f"but got {recipe.gradient_accumulation_steps}. Leave one of them out."
        )


def _drafts(recipe: "Recipe") -> Iterator[str]:
    for other in ("resolutions", "cache"):
        if recipe.draft and getattr(recipe, other) is not None:
            yield f"Expected draft or {other}, but got both, {getattr(recipe, other)!r} too. Leave out one."


def _hard_labels(recipe: "Recipe") -> Iterator[str]:
    for name in ("mixup", "cutmix", "smoothing"):
        value = getattr(recipe, name)
        if recipe.loss in HARD_LABEL_KINDS and value > 0:
            yield (
                f"Expected {name} to be 0 with the loss {recipe.loss!r}, since it takes only labels of 0 and 1, but "
                f"got {value!r}. Pass 0, or choose another loss."
            )


def _weighted_losses(recipe: "Recipe") -> Iterator[str]:
    for name, kinds in _WEIGHTED.items():
        if getattr(recipe, name) is not None and recipe.loss not in kinds:
            yield (
                f"Expected loss to be one of {', '.join(kinds)} with {name}, but got {recipe.loss!r}. Leave {name} out."
            )


def _distillation(recipe: "Recipe") -> Iterator[str]:
    if recipe.distill_hard and recipe.distill_kind != "token":
        yield (
            "Expected distill_kind to be 'token' with distill_hard, since no other learns the teacher's class, but got "
            f"{recipe.distill_kind!r}. Leave distill_hard out."
        )


def _early_stopping(recipe: "Recipe") -> Iterator[str]:
    if recipe.min_delta > 0 and recipe.patience is None:
        yield (
            "Expected patience to be a number of epochs with min_delta, since no run stops early without it, but got "
            "None. Pass patience, or leave min_delta out."
        )


def _folds(recipe: "Recipe") -> Iterator[str]:
    if recipe.fold is not None and (recipe.folds is None or recipe.fold > recipe.folds):
        upper = f"from 1 to {recipe.folds}" if recipe.folds else "None without folds"
        yield f"Expected fold to be {upper}, but got {recipe.fold}. Pass folds=5 fold=1, for example, or leave it out."


CONTRADICTIONS: dict[tuple[str, ...], Callable[["Recipe"], Iterator[str]]] = {
    ("batch_size", "mixup", "cutmix"): _odd_batches,
    ("sched", "sched_args", "min_lr", "warmup_lr", "warmup_epochs", "num_epochs"): _schedules,
    ("opt", "opt_args"): _optimizers,
    ("opt_args",): partial(_options_twice, argument="opt_args"),
    ("freeze_epochs", "num_epochs"): _freezing,
    ("lora", "freeze_epochs"): _adapters,
    ("pretrained", "weights"): _two_weights,
    ("model_args",): _options_of_models,
    ("sampler", "num_repeats"): _two_orders,
    ("resolutions", "gradient_accumulation_steps"): _resolutions,
    ("draft", "resolutions", "cache"): _drafts,
    ("loss", "mixup", "cutmix", "smoothing"): _hard_labels,
    ("loss", "class_weights", "pos_weights"): _weighted_losses,
    ("distill_kind", "distill_hard"): _distillation,
    ("patience", "min_delta"): _early_stopping,
    ("folds", "fold"): _folds,
}
"""Functions that yield a sentence on each contradiction, by the options that must be valid before they are called."""
