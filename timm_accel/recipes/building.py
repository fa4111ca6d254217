"""Build what a recipe describes: model, datasets, optimizer, losses, trainer."""

from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import set_seed
from timm.layers import DropPath
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from timm_accel.batch_size_search import find_batch_size
from timm_accel.callbacks import (
    DEFAULT_CALLBACKS,
    CsvHistoryCallback,
    EarlyStoppingCallback,
    PrintResultsCallback,
    PrintSetupCallback,
    SaveBestCallback,
    SaveStateCallback,
    TimeLimitCallback,
    TrackerCallback,
)
from timm_accel.callbacks.tracking.services import check_trackers, require_packages
from timm_accel.data import (
    Source,
    write_digits,
)
from timm_accel.data.classes import class_names, is_multi_label
from timm_accel.data.image_files import counts_on_screen
from timm_accel.distributed.consensus import on_main_process
from timm_accel.distributed.processes import on_each_host, process_state
from timm_accel.losses import create_loss
from timm_accel.models import create_classifier
from timm_accel.models.lora import require_peft
from timm_accel.models.trial import output_shape
from timm_accel.optim import create_optimizer
from timm_accel.recipes.data import create_data, source_of, train_arguments
from timm_accel.recipes.fast import choose_fast
from timm_accel.recipes.past_run import read_options
from timm_accel.recipes.recipe import Recipe
from timm_accel.recipes.run import Run, plain_options
from timm_accel.states.folder import STATES, open_state, state_folders
from timm_accel.states.run_dir import RUN_CONTENTS, UnstartedRun, check_run_dir
from timm_accel.terminal import print_fitted
from timm_accel.trainers import TimmMixupTrainer

_OF_ONE_HOST = {"data_dir", "data_root", "run_dir", "num_workers", "cache", "download", "resume"}


def build_run(recipe: Recipe, callbacks: Iterable[Any] = ()) -> Run:
    """Build everything that a recipe describes.

    Args:
        recipe: The recipe. Its ``run_dir`` is created, and gets ``split.csv`` if the dataset is split.
        callbacks: Further callbacks, which come after those of the recipe, such as `WriteReportCallback`.

    Raises:
        FileExistsError: The run folder holds a run, and the recipe does not resume.
        FileNotFoundError: There is no such dataset, or no such weights.
        ValueError: The model, the data and the options do not fit each other.
        MemoryError: ``batch_size`` is ``auto``, and not even the smallest batch fits.
    """
    if recipe.folds is not None and recipe.fold is None:
        raise ValueError(
            f"Expected fold to be from 1 to {recipe.folds} for one run, but got None. Choose one, or train on all "
            "of them with cross_validate(recipe)."
        )
    if recipe.trackers:
        require_packages(check_trackers(recipe.trackers))  # a missing package is reported before the data are read
    if recipe.lora is not None:
        require_peft()
    state = process_state()
    unstarted = UnstartedRun(recipe.run_dir)
    data = on_each_host(state, write_digits) if recipe.data_dir is None else recipe.data_dir
    try:
        with counts_on_screen():  # of `PrintSetupCallback`
            return _build(recipe, data, unstarted, state, callbacks)
    except Exception:
        if state.is_main_process:
            unstarted.undo()
        raise


def _build(recipe: Recipe, data: Any, unstarted: UnstartedRun, state: Any, callbacks: Iterable[Any]) -> Run:
    on_main_process(state, lambda: check_run_dir(recipe.run_dir, () if recipe.resume else RUN_CONTENTS))
    if not recipe.fast and on_main_process(state, lambda: _resumes_fast_run(recipe)):
        recipe = replace(recipe, fast=True)
    follows_state = recipe.fast or recipe.batch_size == "auto"
    saved = on_main_process(state, lambda: _manifest_to_resume(recipe)) if follows_state else None
    if recipe.fast:
        recipe, chosen = choose_fast(recipe, state.device, saved)
        _say(state, chosen)
    source = on_each_host(state, lambda: _opened(source_of(recipe, data), recipe.eval_split))
    set_seed(recipe.seed)
    try:
        model, data_config = _create_model(recipe, source)
    except TypeError as error:
        if recipe.drop_path_rate != Recipe.drop_path_rate or "'drop_path_rate'" not in str(error.__cause__):
            raise
        _say(state, f"drop_path_rate is 0, since {recipe.model} has no stochastic depth.")
        recipe = replace(recipe, drop_path_rate=0.0)
        set_seed(recipe.seed)
        model, data_config = _create_model(recipe, source)
    train_set, eval_set = create_data(recipe, source, data_config)
    if recipe.batch_size == "auto":
        recipe = replace(recipe, batch_size=_batch_size_of(recipe, state, model, train_set, saved))
        set_seed(recipe.seed)
        model, _ = _create_model(recipe, source)  # the search has trained the other one
    further = [*_create_trackers(recipe), PrintSetupCallback, PrintResultsCallback(data), *callbacks]
    trainer = _create_trainer(recipe, state, model, train_set, further)
    options = {name: value for name, value in asdict(recipe).items() if name not in _OF_ONE_HOST}
    trainer.same_on_hosts = plain_options(options)
    return Run(recipe.resolved(), trainer, train_arguments(recipe, train_set, eval_set), unstarted)


def _opened(source: Source, eval_split: str) -> Source:
    """Open the splits of a source, which lists its images, draws a split and writes it down."""
    for split in ("train", eval_split):
        source.open(split)
    return source


def _batch_size_of(recipe: Recipe, state: Any, model: nn.Module, train_set: Any, saved: dict[str, Any] | None) -> int:
    """Return the batch size of the state that the run resumes from, or else the largest that fits into memory."""
    if saved is not None:
        found = saved["batch_size"]
        _say(state, f"batch_size is {found} per process, as in the run that is resumed.")
        return found
    smallest = replace(recipe, batch_size=2)
    trainer = _create_trainer(smallest, state, model, train_set, [])
    arguments = train_arguments(smallest, train_set, None)
    options = {name: arguments[name] for name in ("gradient_accumulation_steps", "train_dataloader_kwargs")}
    found = find_batch_size(trainer, train_set, even=recipe.mixes, **options)
    _say(state, f"batch_size is {found} per process, the largest of those tried that fits into memory.")
    return found


def _say(state: Any, text: str) -> None:
    if state.is_main_process:
        print_fitted(text)


def _manifest_to_resume(recipe: Recipe) -> dict[str, Any] | None:
    """Return the manifest of the state that the run resumes from; None for a new run."""
    return next((open_state(folder).manifest for folder in _states_to_resume(recipe)), None)


def _states_to_resume(recipe: Recipe) -> list[Path]:
    if recipe.resume in (None, "auto"):
        return [] if recipe.resume is None else state_folders(Path(recipe.run_dir) / STATES)[:1]
    return [Path(recipe.resume)]


def _resumes_fast_run(recipe: Recipe) -> bool:
    """Whether the device decided on the options of the run that this one resumes."""
    return any(read_options(folder.parents[1]).get("fast") for folder in _states_to_resume(recipe))


def _create_trainer(
    recipe: Recipe, state: Any, model: nn.Module, train_set: Any, further: list[Any]
) -> TimmMixupTrainer:
    assert isinstance(recipe.batch_size, int)
    loss_fn, eval_loss_fn = _create_losses(recipe, train_set)
    images = recipe.batch_size * recipe.gradient_accumulation_steps * state.num_processes
    learning_rate: dict[str, Any] = {"lr": recipe.lr}
    if recipe.base_batch_size is not None:
        learning_rate = {"base_lr": recipe.lr, "base_batch_size": recipe.base_batch_size, "global_batch_size": images}
    return TimmMixupTrainer(
        model=model,
        optimizer=create_optimizer(
            model,
            recipe.opt,
            **learning_rate,
            lr_scaling=recipe.lr_scaling,
            weight_decay=recipe.weight_decay,
            layer_decay=recipe.layer_decay,
            layer_decay_min_scale=recipe.layer_decay_min_scale,
            **(recipe.opt_args or {}),
        ),
        loss_func=loss_fn,
        eval_loss_fn=eval_loss_fn,
        num_class=len(train_set.class_names),
        callbacks=[
            *_create_callbacks(recipe, "map" if is_multi_label(train_set) else "accuracy"),
            *further,
        ],
        run_dir=recipe.run_dir,
        seed=recipe.seed,
        recipe=plain_options(_resume_key(recipe, model)),
        **_mixin_options(recipe),
    )


def _resume_key(recipe: Recipe, model: nn.Module) -> dict[str, Any]:
    """Return the recipe's key, with checkpointing only where it changes values: BatchNorm counts each batch twice."""
    key = recipe.resume_key()
    if not (recipe.grad_checkpointing and any(isinstance(module, _BatchNorm) for module in model.modules())):
        del key["grad_checkpointing"]
    return key


def _create_model(recipe: Recipe, source: Source) -> tuple[nn.Module, dict[str, Any]]:
    names = class_names(source.open("train")) or []
    model, data_config = create_classifier(
        recipe.model,
        max(2, len(names)),
        pretrained=recipe.pretrained,
        weights=recipe.weights,
        class_names=names if len(names) > 1 else None,
        head=recipe.head,
        image_size=recipe.image_size,
        grad_checkpointing=recipe.grad_checkpointing,
        lora=recipe.lora,
        drop_path_rate=recipe.drop_path_rate or None,  # None is left out: not every model takes it
        **(recipe.model_args or {}),
    )
    if recipe.drop_path_rate == 0:
        for module in model.modules():
            if isinstance(module, DropPath):
                module.drop_prob = 0.0
    _try_evaluation_size(recipe, model, data_config["input_size"][0])
    return model.to(memory_format=torch.channels_last) if recipe.channels_last else model, data_config


def _try_evaluation_size(recipe: Recipe, model: nn.Module, channels: int) -> None:
    size = recipe.eval_image_size
    if size in (None, recipe.image_size):
        return
    try:
        output_shape(model, (channels, size, size))
    except Exception as error:  # the model's layers may raise anything
        raise ValueError(
            f"Expected eval_image_size to be a size that {recipe.model} takes as well as {recipe.image_size}, but got "
            f"{size} ({error}). Choose the same size, or a model that takes any."
        ) from error


def _create_losses(recipe: Recipe, train_set: Any) -> tuple[nn.Module, nn.Module]:
    thresholded = recipe.loss == "bce" and not is_multi_label(train_set)
    options: dict[str, Any] = {"bce_target_thresh": recipe.bce_target_thresh} if thresholded else {}
    return create_loss(
        recipe.loss,
        dataset=train_set,
        smoothing=recipe.smoothing,
        soft_targets=recipe.mixes,
        class_weights=recipe.class_weights,
        pos_weights=recipe.pos_weights,
        **options,
    )


def _create_callbacks(recipe: Recipe, watched: str) -> list[Any]:
    state = SaveStateCallback(
        recipe.save_every_n_epochs,
        recipe.save_every_n_updates,
        recipe.save_every_minutes,
        recipe.keep_states,
        data_identity=recipe.data_identity,
        keep_when_done=recipe.keep_states_when_done,
    )
    saving = [SaveBestCallback(watched), CsvHistoryCallback, state, TimeLimitCallback(recipe.max_minutes)]
    stopping = []
    if recipe.patience is not None:
        stopping = [EarlyStoppingCallback(watched, True, patience=recipe.patience, min_delta=recipe.min_delta)]
    return [*DEFAULT_CALLBACKS, *stopping, *saving]


def _create_trackers(recipe: Recipe) -> list[TrackerCallback]:
    return (
        [TrackerCallback(recipe.trackers, config=plain_options(asdict(recipe.resolved())))] if recipe.trackers else []
    )


def _mixin_options(recipe: Recipe) -> dict[str, Any]:
    mixup_args = {
        "mixup_alpha": recipe.mixup,
        "cutmix_alpha": recipe.cutmix,
        "label_smoothing": recipe.smoothing,
        "mode": recipe.mixup_mode,
        "prob": recipe.mixup_prob,
        "switch_prob": recipe.mixup_switch_prob,
    }
    return {
        "mixup_args": mixup_args if recipe.mixes else None,
        "mixup_off_epoch": recipe.mixup_off_epoch,
        "scheduler_args": recipe.scheduler_args(),
        "scheduler_metric": recipe.scheduler_metric,
        "ema_decay": recipe.ema_decay,
        "clip_grad": recipe.clip_grad,
        "clip_mode": recipe.clip_mode,
        "dist_bn": recipe.dist_bn,
        "sync_bn": recipe.sync_bn,
        "evaluate_every_n_epochs": recipe.evaluate_every_n_epochs,
        "train_accuracy": recipe.train_accuracy,
        "mixed_precision": recipe.mixed_precision,
        "torch_compile": recipe.torch_compile,
        "freeze_schedule": {0: -1, recipe.freeze_epochs: 0} if recipe.freeze_epochs else None,
        "resolutions": recipe.resolutions,
        "distill_teacher": recipe.distill_teacher,
        "distill_kind": recipe.distill_kind,
        "distill_alpha": recipe.distill_alpha,
        "distill_temperature": recipe.distill_temperature,
        "distill_hard": recipe.distill_hard,
    }
