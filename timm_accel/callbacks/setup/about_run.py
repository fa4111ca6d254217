"""What the screen tells about model, device, batches, schedule, EMA weights, loss and results."""

from collections.abc import Callable, Iterator, Mapping
from math import isfinite
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate.utils import DynamoBackend

from timm_accel.callbacks.save_best import SaveBestCallback
from timm_accel.callbacks.setup.sizes import bytes_of_state, bytes_of_weights
from timm_accel.data.resources import in_megabytes
from timm_accel.messages import counted
from timm_accel.schedules import simulate_schedule
from timm_accel.schedules.fitting import bent_warmup
from timm_accel.states.weights import BEST_FOLDERS
from timm_accel.terminal import screen_width, sparkline

if TYPE_CHECKING:
    from timm_accel.training import LoopTrainer

Facts = Iterator[tuple[str, str]]
_SIMULATED = 2_000  # updates; of a longer schedule each epoch is simulated with fewer
_SIMULATED_OF_FUNCTIONS = 20_000  # a function may count updates itself


def about_model(trainer: "LoopTrainer") -> Facts:
    """Yield the model's name, parameters and input, and what of its weights was loaded."""
    model = trainer.current_run().unwrapped_model
    about = getattr(model, "pretrained_cfg", None) or {}
    trained = sum(each.numel() for each in model.parameters() if each.requires_grad)
    total = sum(each.numel() for each in model.parameters())
    share = "all trained" if trained == total else f"{_millions(trained)} trained"
    size = _image_size(trainer, about)
    yield "model", f"{about.get('architecture') or type(model).__name__}, {_millions(total)} parameters, {share}{size}"
    if (report := getattr(model, "weights_report", None)) is not None:
        yield "weights", str(report)


def _millions(count: int) -> str:
    return f"{count / 1e6:.1f} M" if count >= 1e6 else f"{count:,}"


def _image_size(trainer: Any, about: Mapping[str, Any]) -> str:
    sizes = getattr(trainer, "resolutions", None) or [tuple(about.get("input_size") or ())[1:]]
    shown = dict.fromkeys("×".join(map(str, size)) for size in sizes if size)
    return f", images of {' to '.join([*shown][:: max(1, len(shown) - 1)])}" if shown else ""


def about_device(trainer: "LoopTrainer") -> Facts:
    """Yield the device, the number of processes and the precision, and what a run that compiles waits for."""
    accelerator = trainer.current_run().accelerator
    device, count = accelerator.device, accelerator.num_processes
    name = f" ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else ""
    precision = {"no": "float32"}.get(accelerator.mixed_precision, accelerator.mixed_precision)
    shown = device.type if device.type == "cpu" else device  # accelerate numbers them by rank
    yield "device", f"{shown}{name}, {count} process{'es' if count > 1 else ''}, {precision}"
    if accelerator.state.dynamo_plugin.backend != DynamoBackend.NO:
        yield "", "the model is compiled at the first batch, which may take minutes"


def about_batches(trainer: "LoopTrainer") -> Facts:
    """Yield the images of an update, and the updates of an epoch and of the run."""
    run, config = trainer.current_run(), trainer.run_config
    batch, steps = config.train_per_device_batch_size, config.gradient_accumulation_steps
    processes = run.accelerator.num_processes
    factors = [
        counted(batch, "image"),
        *[f"{steps} steps"] * (steps > 1),
        *[f"{processes} processes"] * (processes > 1),
    ]
    total = f" = {batch * steps * processes:,}" if len(factors) > 1 else ""
    yield "batch", f"{' × '.join(factors)}{total} an update"
    epochs = f"each of {config.num_epochs:,} epochs" if config.num_epochs > 1 else "1 epoch"
    yield "updates", f"{run.updates_per_epoch:,} in {epochs}, {config.max_num_train_steps:,} in all"


def about_schedule(trainer: "LoopTrainer") -> Facts:
    """Yield the learning rates as a line of bars, with the lowest and the highest."""
    scheduler, lr = trainer.scheduler, trainer.current_run().learning_rate
    if scheduler is None:
        yield "schedule", f"constant learning rate {lr:.3g}" if isfinite(lr) else "of the optimizer"
        return
    arguments = _schedule_of(trainer)
    name = arguments.get("sched") if isinstance(arguments, Mapping) else None
    name = name or type(scheduler).__name__
    lrs = None if arguments is None or "plateau" in name.lower() else _simulated(trainer, arguments)
    if lrs is None:
        yield "schedule", f"{name}, learning rate {lr:.3g} at first"
        return
    yield "schedule", sparkline(lrs.tolist(), min(80, screen_width()) * 3 // 4)
    yield "", f"{name}, learning rate {lrs.min():.3g} to {lrs.max():.3g}"


def _schedule_of(trainer: Any) -> Mapping[str, Any] | Callable[..., Any] | None:
    """Return the arguments or the function that the scheduler was made from; None where they are not known."""
    create = trainer.create_scheduler_fn
    if create is not None and getattr(create, "__self__", None) is not trainer:
        return create
    if type(trainer).create_scheduler.__module__.split(".")[0] != "timm_accel":
        return None
    if given := getattr(trainer, "scheduler_args", None):
        return given
    default = getattr(trainer, "default_scheduler_args", None)
    return default and {**default, "warmup_epochs": bent_warmup(default, trainer.run_config.num_epochs)}


def _simulated(trainer: Any, schedule: Mapping[str, Any] | Callable[..., Any]) -> np.ndarray | None:
    """Return the highest learning rate of all groups over the run, ``(N,)``; None where that takes too long."""
    config, updates = trainer.run_config, trainer.current_run().updates_per_epoch
    in_epochs = isinstance(schedule, Mapping) and not any("updates" in name for name in schedule)
    if in_epochs:
        updates = min(updates, max(1, _SIMULATED // config.num_epochs))
    if updates * config.num_epochs > _SIMULATED_OF_FUNCTIONS:
        return None
    optimizer = trainer.current_run().unwrapped_optimizer
    simulated = simulate_schedule(
        schedule, updates_per_epoch=updates, num_epochs=config.num_epochs, optimizer=optimizer
    )
    share = config.max_num_train_steps / (trainer.current_run().updates_per_epoch * config.num_epochs)
    lrs = simulated.learning_rates.max(axis=1)
    return lrs[: max(1, round(len(lrs) * share))]


def about_ema(trainer: "LoopTrainer") -> Facts:
    """Yield over how many updates and epochs the EMA weights average."""
    ema_model: Any = getattr(trainer, "ema_model", None)
    if ema_model is None:
        return
    every = getattr(trainer, "ema_update_every", 1)
    updates_per_epoch = trainer.current_run().updates_per_epoch
    step = updates_per_epoch if every == "epoch" else every
    window = step / (1 - ema_model.get_decay(trainer.run_config.max_num_train_steps))
    yield (
        "EMA",
        f"decay {ema_model.decay:.4g}: averages over {counted(round(window), 'update')}, "
        f"{window / updates_per_epoch:.1f} epochs",
    )


def about_loss(trainer: "LoopTrainer") -> Facts:
    """Yield the loss and how images are mixed."""
    loss = trainer.loss_func
    name = getattr(loss, "__name__", None) or type(loss).__name__
    parts = [name]
    mixup: Any = getattr(trainer, "mixup_fn", None)
    if mixup is not None:
        mixes = {"Mixup": mixup.mixup_alpha, "CutMix": mixup.cutmix_alpha}
        parts += [f"{kind} {alpha:g}" for kind, alpha in mixes.items() if alpha > 0]
        if mixup.label_smoothing:
            parts.append(f"smoothing {mixup.label_smoothing:g}")
    yield "loss", ", ".join(parts)


def about_results(trainer: "LoopTrainer") -> Facts:
    """Yield the run folder, how much its states and best weights will take, and the state that the run resumes from."""
    if trainer.run_dir is None:
        yield "results", "no run_dir"
    else:
        parts, total = [], 0
        if (keep := trainer.keep_states) is not None and (state := bytes_of_state(trainer)) is not None:
            parts.append(f"{keep} state{'s' if keep > 1 else ''} of {in_megabytes(state)}")
            total += (keep + 1) * state  # a new one is written before the oldest is deleted
        if any(isinstance(each, SaveBestCallback) for each in trainer.callback_handler):
            kinds = len(BEST_FOLDERS) if getattr(trainer, "ema_model", None) is not None else 1
            weights = bytes_of_weights(trainer)
            parts.append(f"best weights {kinds} × {in_megabytes(weights)}")
            total += (kinds + 1) * weights
        at_most = [f"at most {in_megabytes(total)}"] if parts else []
        yield "results", f"{trainer.run_dir}{': ' * bool(parts)}{', '.join([*parts, *at_most])}"
    checkpointer: Any = getattr(trainer.current_run(), "checkpointer", None)
    if checkpointer is not None and checkpointer.resumed is not None:
        yield "resumes", f"{checkpointer.resumed.folder}: {checkpointer.resumes_at(trainer.current_run())}"


ABOUT_RUN = (about_model, about_device, about_batches, about_schedule, about_ema, about_loss, about_results)
