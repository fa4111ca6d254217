"""Preparation of a run: check arguments and loaders, and prepare loaders and model for accelerate."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy, deepcopy
from dataclasses import replace
from inspect import signature
from math import ceil
from numbers import Integral
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.data_loader import prepare_data_loader
from accelerate.utils import DataLoaderConfiguration, DistributedDataParallelKwargs, extract_model_from_parallel
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from timm_accel.callbacks.defaults import MoveModulesToDeviceCallback
from timm_accel.data.resources import available_cpus
from timm_accel.data.seeding import key_samples
from timm_accel.distributed.processes import check_accelerator, process_state
from timm_accel.messages import counted, one_line
from timm_accel.training.loaders import batch_sizes, deal_out_rest, is_stream, share_stream
from timm_accel.training.precision import accelerator_options, refuse_half_on_cpu, warn_of_emulation
from timm_accel.training.signals import shield_workers
from timm_accel.upstream import Trainer, TrainerRunConfig

_ACCUMULATION = "ACCELERATE_GRADIENT_ACCUMULATION_STEPS"
_FURTHER_OPTIONS = list(signature(Trainer.train).parameters)[4:]  # after train_dataset, num_epochs, eval_dataset


def check_parts(model: Any, optimizer: Any) -> None:
    """Raise a `TypeError` for what is no model or no optimizer, before any work. None stands for no optimizer."""
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"Expected model to be a torch nn.Module, but got {_kind(model)}. Pass a model that was created."
        )
    if optimizer is not None:
        require_optimizer(optimizer)


def require_optimizer(optimizer: Any) -> None:
    """Raise a `TypeError` where training has no optimizer."""
    if isinstance(optimizer, type) or not (hasattr(optimizer, "param_groups") and hasattr(optimizer, "step")):
        raise TypeError(
            f"Expected optimizer to be one torch optimizer, but got {_kind(optimizer)}. Pass an optimizer that was "
            "created over the model's parameters; several learning rates are groups of one optimizer."
        )


def _kind(value: Any) -> str:
    return f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__


def check_interval(option: str, value: Any, unit: str, default: int) -> None:
    """Raise a `ValueError` for an interval that is not an integer of at least 1."""
    if not isinstance(value, int | Integral) or value < 1:
        raise ValueError(
            f"Expected {option} to be a number of {unit} of at least 1, but got {value!r}. The default is {default}."
        )


def check_optimizes(model: nn.Module, optimizer: Any, loss_func: Any) -> None:
    """Raise where training has no optimizer, or one without a parameter of the model or the loss."""
    require_optimizer(optimizer)
    parts = [part for part in (model, loss_func) if isinstance(part, nn.Module)]
    trained = {id(parameter) for part in parts for parameter in part.parameters()}
    if not any(id(parameter) in trained for group in optimizer.param_groups for parameter in group["params"]):
        raise ValueError(
            "Expected optimizer to have parameters of the model, but got none, so that training would change nothing. "
            "Create it over model.parameters()."
        )


def check_counts(**counts: Any) -> None:
    """Raise a `ValueError` for a count that is no integer of at least 1."""
    for name, count in counts.items():
        if isinstance(count, bool) or not isinstance(count, int | Integral) or count < 1:
            raise ValueError(f"Expected {name} to be an integer of at least 1, but got {count!r}. Choose another.")


def check_train_arguments(
    train_dataset: Any, num_epochs: int, positional: Sequence[Any], named: Mapping[str, Any]
) -> dict[str, Any]:
    """Raise for arguments of `LoopTrainer.train` that cannot be right, before any work, and return the counts."""
    options = {**dict(zip(_FURTHER_OPTIONS, positional, strict=False)), **named}
    counts = {"num_epochs": num_epochs} | {
        name: options.get(name, 1) for name in ("per_device_batch_size", "gradient_accumulation_steps")
    }
    if options.get("max_num_train_steps") is not None:
        counts["max_num_train_steps"] = options["max_num_train_steps"]
    check_counts(**counts)
    create_scheduler_fn = options.get("create_scheduler_fn")
    if not (create_scheduler_fn is None or callable(create_scheduler_fn)):
        raise TypeError(
            "Expected create_scheduler_fn to be a function of the optimizer, since that is prepared first, "
            f"but got {type(create_scheduler_fn).__name__}. Pass a function that returns the scheduler."
        )
    if _count_images(train_dataset) == 0:
        raise _too_few_images("train", 0, options.get("per_device_batch_size", 8))
    return counts


def create_accelerator(
    ddp_kwargs: Mapping[str, Any],
    model: nn.Module,
    mixed_precision: str | None = None,
    torch_compile: bool | str | None = None,
) -> Accelerator:
    """Return accelerate's `Accelerator`, with options of torch's ``DistributedDataParallel`` and of the trainer.

    Raises:
        ValueError: What was launched is not what runs, or accelerate is to accumulate or to shard.
    """
    if os.environ.get(_ACCUMULATION, "1") != "1":
        raise ValueError(
            f"Expected {_ACCUMULATION} to be unset, since losses would be divided twice, but got "
            f"{os.environ[_ACCUMULATION]!r}. Pass gradient_accumulation_steps to train() instead."
        )
    refuse_half_on_cpu(mixed_precision, process_state().device)
    accelerator = Accelerator(
        **accelerator_options(mixed_precision, torch_compile),
        dataloader_config=DataLoaderConfiguration(non_blocking=torch.cuda.is_available()),
        kwargs_handlers=[DistributedDataParallelKwargs(**ddp_kwargs)],
    )
    check_accelerator(accelerator, model)
    warn_of_emulation(accelerator.mixed_precision, accelerator.device)
    return accelerator


def worker_kwargs() -> dict[str, Any]:
    """Return the defaults of loader workers: one per core of this process, and only the dataset seeds them."""
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    return {"num_workers": max(1, available_cpus() // processes), "worker_init_fn": None}


def merge_loader_kwargs(
    dataset: Any, defaults: Mapping[str, Any], given: Mapping[str, Any] | None, collate_fn: Any
) -> dict[str, Any]:
    """Let the given keyword arguments of a `DataLoader` override the defaults, and drop defaults that conflict."""
    given = given or {}
    refused: set[str] = set()
    if given.get("sampler") is not None or isinstance(dataset, IterableDataset):
        refused |= {"shuffle"}
    if given.get("batch_sampler") is not None:
        refused |= {"batch_size", "shuffle", "drop_last"}
    collate_fn = collate_fn or getattr(dataset, "collate_fn", None)  # that of our datasets leaves out unreadable images
    return {"collate_fn": collate_fn} | {k: v for k, v in defaults.items() if k not in refused} | dict(given)


def keep_small_dataset(dataset: Any, merged: dict[str, Any], given: Mapping[str, Any] | None, processes: int) -> None:
    """Train on a dataset whole that is smaller than one global batch, unless ``drop_last`` was given."""
    images, batch_size = _count_images(dataset), merged.get("batch_size")
    if images is not None and batch_size and images < batch_size * processes and "drop_last" not in (given or {}):
        merged["drop_last"] = False


def fit_workers_to_shards(
    dataset: Any, merged: dict[str, Any], given: Mapping[str, Any] | None, processes: int
) -> None:
    """Use no more workers than a stream has shards for, unless ``num_workers`` was given."""
    if (max_workers := getattr(dataset, "max_workers", None)) is not None and "num_workers" not in (given or {}):
        merged["num_workers"] = min(merged["num_workers"], max(1, max_workers(processes)))


def check_loaders(loaders: Mapping[str, Any], num_processes: int) -> None:
    """Raise for a loader without a batch, or one that accelerate cannot shard.

    Args:
        loaders: The loaders by name, ``train`` and ``eval``; None where there is none.
        num_processes: The number of processes of the run.
    """
    for name, loader in loaders.items():
        if loader is None or is_stream(loader):  # evaluation on one rank has no loader on the others
            continue
        batch_size = getattr(loader, "batch_size", None)
        sampler = getattr(getattr(loader, "batch_sampler", None), "sampler", None)
        images = _count_images(getattr(loader, "dataset", None) if sampler is None else sampler)
        drops = getattr(loader, "drop_last", False)
        if images == 0 or (name == "train" and drops and images is not None and (batch_size or 0) > images):
            raise _too_few_images(name, images, batch_size)
        if num_processes > 1 and not isinstance(loader, DataLoader):
            raise TypeError(
                f"Expected create_{name}_dataloader() to return a torch DataLoader, since accelerate shards no "
                f"other and every process would train on everything, but got {type(loader).__name__}."
            )
        if len(loader) == 0:
            raise ValueError(
                f"Expected the {name} loader to give at least one batch, but got none from {_in_words(images)} with "
                f"batch size {batch_size}. Lower per_device_batch_size or pass drop_last=False."
            )


def check_share(loader: Any, dataset: Any, num_processes: int) -> None:
    """Raise a `ValueError` where a process has no training batch."""
    if loader is not None and len(loader) == 0:
        raise ValueError(
            f"Expected train_dataset to fill a batch on each of {counted(num_processes, 'process')}, but "
            f"got {_in_words(_count_images(dataset))}. Lower per_device_batch_size or pass drop_last=False."
        )


def refuse_batch_of_one(model: nn.Module, loader: Any, num_processes: int, unpack: Callable[[Any], Any]) -> None:
    """Raise a `ValueError` where a training batch of one image will come, and BatchNorm in the model cannot take it.

    The model is tried in a copy without values. Where it cannot be tried, nothing is refused.
    """
    if 1 not in batch_sizes(loader, num_processes):
        return
    try:
        images, _ = unpack(loader.collate_fn([loader.dataset[0]]))
        trial = deepcopy(model).to("meta").train()
        trial(torch.zeros_like(images, device="meta", dtype=next(trial.parameters()).dtype))
    except ValueError as error:
        if "more than 1 value per channel" in str(error):  # torch.nn.functional.batch_norm (2.14)
            raise ValueError(
                "Expected every training batch to have at least 2 images, since a BatchNorm of the model needs them, "
                f"but got one of 1 image ({one_line(error)}). Choose another "
                "per_device_batch_size, or pass drop_last=True in train_dataloader_kwargs."
            ) from error
    except Exception:
        return


def seed_and_shard(train_loader: Any, eval_loader: Any, accelerator: Accelerator, seed: int) -> Iterator[Any]:
    """Yield both loaders, seeded; one that shards itself is prepared here."""
    for loader, fixed_epoch in ((train_loader, None), (eval_loader, 0)):
        shield_workers(loader)
        share_stream(loader, accelerator, seed)
        key_samples(loader, seed, fixed_epoch)
        if loader is train_loader:
            deal_out_rest(loader, accelerator.process_index, accelerator.num_processes)
        yield _prepare_alone(loader, accelerator)


def _prepare_alone(loader: Any, accelerator: Accelerator) -> Any:
    """Prepare a loader that shards the images itself, so that accelerate does not shard them again."""
    parts = (getattr(loader, name, None) for name in ("dataset", "batch_sampler"))
    shards_itself = any(getattr(part, "shards_itself", False) for part in parts)
    # accelerate's dispatcher of iterable datasets has nothing to dispatch, and an error for an empty epoch
    alone = accelerator.num_processes == 1 and isinstance(getattr(loader, "dataset", None), IterableDataset)
    if not (shards_itself or alone):
        return loader
    prepared = prepare_data_loader(
        loader,
        accelerator.device,
        num_processes=1,
        process_index=0,
        put_on_device=True,
        dispatch_batches=False,  # True for any iterable dataset otherwise (accelerate 1.15)
        non_blocking=accelerator.non_blocking,
    )
    prepared._is_accelerate_prepared = True
    return prepared


def strip_model(model: Any, plain: nn.Module) -> Any:
    """Return the model as it was before accelerate prepared it: it must not wrap twice (autocast, a lost scaler).

    Args:
        model: The model as accelerate returned it.
        plain: The unwrapped model.
    """
    if plain is not model and (forward := plain.__dict__.pop("_original_forward", None)) is not None:
        model.forward = forward  # accelerate 1.15 wraps the forward of a compiled model, and stores it inside
    model = extract_model_from_parallel(model, keep_fp32_wrapper=False)
    for module in (model, plain):
        module.__dict__.pop("_is_accelerate_prepared", None)
    return model


def count_local_updates(config: TrainerRunConfig, num_epochs: int, max_num_train_steps: int | None) -> TrainerRunConfig:
    """Return upstream's run config in updates of this process: upstream multiplies some of them by the processes."""
    updates = config.num_local_update_steps_per_epoch
    if max_num_train_steps is not None:
        num_epochs = min(num_epochs, ceil(max_num_train_steps / updates))
    return replace(
        config,
        num_epochs=num_epochs,
        num_update_steps_per_epoch=updates,
        max_num_train_steps=num_epochs * updates if max_num_train_steps is None else max_num_train_steps,
    )


def _count_images(dataset: Any) -> int | None:
    """Return the number of images, None where the dataset does not know it."""
    return len(dataset) if hasattr(dataset, "__len__") else None


def _in_words(images: int | None) -> str:
    return "an unknown number of images" if images is None else counted(images, "image")


def _too_few_images(name: str, images: int | None, batch_size: int | None) -> ValueError:
    return ValueError(
        f"Expected {name}_dataset to fill at least one batch of {batch_size}, but got {_in_words(images)}. "
        "Lower per_device_batch_size or add images."
    )


def trial_trainer(trainer: Any, overrides: type, name: str) -> Any:
    """Return a copy of a trainer for a trial: it shares model, optimizer and options, and writes no file.

    Args:
        trainer: The trainer.
        overrides: A subclass of `LoopTrainer` whose hooks come before those of the trainer.
        name: What the name of the trainer's class is extended by.
    """
    trial = copy(trainer)
    trial.__class__ = type(f"{type(trainer).__name__}{name}", (overrides, type(trainer)), {})
    trial.run_history = type(trainer.run_history)()
    trial.callback_handler = type(trainer.callback_handler)([MoveModulesToDeviceCallback])
    trial.run_dir = trial.keep_states = None
    return trial
