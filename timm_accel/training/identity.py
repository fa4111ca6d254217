"""The identity of a run: what a resumed run must share with its state, and what it should share."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from importlib.metadata import version
from platform import python_version_tuple
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.optim import Optimizer

from timm_accel.data.classes import class_names
from timm_accel.messages import shortened
from timm_accel.training.loaders import stream_of

if TYPE_CHECKING:
    from timm_accel.training.trainer import LoopTrainer
    from timm_accel.training.training_run import TrainingRun

PACKAGES = ("timm_accel", "torch", "torchvision", "timm", "accelerate", "pytorch-accelerated")
LENGTH = ("num_epochs", "updates_per_epoch", "max_num_train_steps")
CONDITIONS = ("num_processes", "batch_size", "accumulation", "images", "stream_workers", "mixed_precision")
FOLLOWS_RUN = "follows the run"
"""The key of a value in a recipe that was left at its default, and may be another one in a longer run."""


@cache  # each is looked for on the disk, at every state
def versions() -> dict[str, str]:
    """Return the version of each package that a run's numbers depend on."""
    return {package: version(package) for package in PACKAGES}


def geometry(run: TrainingRun) -> dict[str, Any]:
    """Return the counts on which positions and schedules depend."""
    dataset, config = run.trainer.train_dataset, run.trainer.run_config
    stream = stream_of(run.train_dataloader)
    return {
        "num_processes": run.accelerator.num_processes,
        "batch_size": config.train_per_device_batch_size,
        "accumulation": config.gradient_accumulation_steps,
        "images": len(dataset) if hasattr(dataset, "__len__") else None,
        "stream_workers": None if stream is None else max(1, stream.num_workers),
        "num_epochs": config.num_epochs,
        "updates_per_epoch": run.updates_per_epoch,
        "max_num_train_steps": config.max_num_train_steps,
        "mixed_precision": config.mixed_precision,
    }


def describe_start(
    trainer: LoopTrainer, run: Mapping[str, Any], counts: Mapping[str, Any], resume_from: Any
) -> dict[str, Any]:
    """Return plain values that must be the same on all hosts when a run begins.

    Args:
        trainer: The trainer of the run.
        run: What `describe_run` returned.
        counts: The counts among the arguments of ``train``, and whether there are evaluation data.
        resume_from: As for ``train``: a path may be another one on each host.
    """
    names = ("evaluate_every_n_epochs", "sync_every_n_updates", "keep_states")
    return {
        "python": ".".join(python_version_tuple()[:2]),
        **versions(),
        **counts,
        "resume_from": resume_from if resume_from in (None, "auto") else "a path",
        "mixed_precision": trainer._accelerator.mixed_precision,
        **{name: getattr(trainer, name) for name in names},
        **{name: value for name, value in run.items() if name != "recipe"},
        **(trainer.same_on_hosts or {"recipe": run["recipe"]}),
    }


def describe_run(
    model: nn.Module, optimizer: Optimizer, train_dataset: Any, seed: int, recipe: Mapping[str, Any]
) -> dict[str, Any]:
    """Return plain values that are equal if and only if one run may resume from the other's state."""
    base = getattr(optimizer, "_base_optimizer", None)  # timm's Lookahead
    kinds = [type(part).__name__ for part in (optimizer, base) if part is not None]
    scaled = {"lr"} if recipe.get("base_batch_size") else set()  # the learning rate follows the global batch size
    defaults = {name: value for name, value in optimizer.defaults.items() if name not in scaled and _is_plain(value)}
    tensors = {name: value for name, value in model.state_dict().items() if hasattr(value, "shape")}
    described = {
        "model": (getattr(model, "pretrained_cfg", None) or {}).get("architecture") or type(model).__name__,
        "tensors": {name: list(tensor.shape) for name, tensor in tensors.items()},
        "classes": class_names(train_dataset),
        "optimizer": {"kind": kinds, **defaults, "groups": [_describe_group(each) for each in optimizer.param_groups]},
        "seed": seed,
        "recipe": dict(recipe),
    }
    return json.loads(json.dumps(described, default=str))


def _describe_group(group: dict[str, Any]) -> dict[str, Any]:
    """Return the options of a parameter group that no schedule changes."""
    kept = {name: group[name] for name in ("weight_decay", "lr_scale") if name in group and _is_plain(group[name])}
    return {"parameters": len(group["params"])} | kept


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return all(map(_is_plain, value))
    return isinstance(value, bool | int | float | str | None)


def differences(saved: Any, current: Any, name: str = "", max_items: int = 5) -> list[str]:
    """Return ``"recipe.lr (0.1 in the state, 0.2 now)"`` for each field that differs, at most `max_items`.

    A saved value that followed the run, ``{FOLLOWS_RUN: value}``, may follow another length now, or be chosen.
    """
    if _follows(saved):
        return []
    current = current[FOLLOWS_RUN] if _follows(current) else current
    found = []
    if isinstance(saved, dict) and isinstance(current, dict):
        for key in dict.fromkeys([*saved, *current]):
            found += differences(saved.get(key), current.get(key), f"{name}.{key}" if name else str(key))
    elif isinstance(saved, list) and isinstance(current, list) and len(saved) == len(current) and saved != current:
        for number, pair in enumerate(zip(saved, current, strict=True)):
            found += differences(*pair, f"{name}[{number}]")
    elif saved != current:
        found = [f"{name} ({shortened(saved)} in the state, {shortened(current)} now)"]
    return found if len(found) <= max_items else [*found[: max_items - 1], f"{len(found) - max_items + 1} more"]


def _follows(value: Any) -> bool:
    return isinstance(value, dict) and value.keys() == {FOLLOWS_RUN}


def changes(names: tuple[str, ...], saved: Mapping[str, Any], current: Mapping[str, Any]) -> str:
    """Return ``"num_processes 1 before, 2 now"`` for each of `names` that differs."""
    pairs = {name: (saved.get(name), current.get(name)) for name in names}
    return "; ".join(f"{name} {before} before, {now} now" for name, (before, now) in pairs.items() if before != now)


def describe_inexact_resume(changed: str, saved: Mapping[str, Any], current: Mapping[str, Any]) -> str:
    """Return what differs from an uninterrupted run where a run resumes under other conditions."""
    batches = [each["num_processes"] * each["batch_size"] * each["accumulation"] for each in (saved, current)]
    if batches[0] == batches[1]:
        kept = f"Updates and schedule are still those of the global batch size {batches[0]}"
    else:
        kept = f"An update has {batches[1]} images instead of {batches[0]}, at the same place in epoch and schedule"
    order = "" if saved["images"] == current["images"] else ", and so does the order of the images"
    if current["stream_workers"] is not None and any(
        saved.get(name) != current[name] for name in ("num_processes", "batch_size", "accumulation", "stream_workers")
    ):
        order += ". The stream has another order: of the current epoch some images may come twice and others not at all"
    return (
        f"The run resumes under other conditions ({changed}). {kept}; dropout, Mixup and BatchNorm's statistics differ "
        f"from those of an uninterrupted run{order}."
    )
