from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import nn
from torch.optim import Optimizer
from torchmetrics import MetricCollection

from timm_accel.mixins import (
    ClassificationMetricsMixin,
    DistillationMixin,
    DistributedBatchNormMixin,
    EvalLossMixin,
    FreezingMixin,
    GradientClippingMixin,
    LookaheadMixin,
    MixupMixin,
    ModelEmaMixin,
    OptimizerModeMixin,
    ScheduledResolutionMixin,
    SecondOrderMixin,
    SyncBatchNormMixin,
    TimmSchedulerMixin,
)
from timm_accel.upstream import TrainerCallback

class TimmTrainer(
    ClassificationMetricsMixin,
    EvalLossMixin,
    TimmSchedulerMixin,
    LookaheadMixin,
    DistributedBatchNormMixin,
    SyncBatchNormMixin,
    GradientClippingMixin,
    FreezingMixin,
    SecondOrderMixin,
    OptimizerModeMixin,
    ScheduledResolutionMixin,
    DistillationMixin,
):
    default_scheduler_args: ClassVar[dict[str, Any] | None]

    def __init__(
        self,
        model: nn.Module,
        loss_func: Callable[..., torch.Tensor],
        optimizer: Optimizer | None,
        callbacks: Iterable[TrainerCallback | type[TrainerCallback]] = ...,
        run_history: Any = ...,
        *,
        num_classes: int | None = ...,
        metrics: MetricCollection | None = ...,
        multi_label: bool = ...,
        train_accuracy: bool | None = ...,
        eval_loss_fn: Callable[..., torch.Tensor] | None = ...,
        scheduler_args: dict[str, Any] | None = ...,
        scheduler_metric: str = ...,
        dist_bn: str | None = ...,
        sync_bn: bool = ...,
        clip_grad: float | None = ...,
        clip_mode: str = ...,
        freeze_schedule: Mapping[int, int | Sequence[str]] | None = ...,
        resolutions: Sequence[int | tuple[int, int]] | None = ...,
        resolution_schedule: str = ...,
        distill_teacher: nn.Module | str | Path | None = ...,
        distill_kind: str = ...,
        distill_alpha: float = ...,
        distill_temperature: float = ...,
        distill_hard: bool = ...,
        seed: int = ...,
        run_dir: str | Path | None = ...,
        evaluate_every_n_epochs: int = ...,
        sync_every_n_updates: int = ...,
        recipe: Mapping[str, Any] | None = ...,
        mixed_precision: str | None = ...,
        torch_compile: bool | str | None = ...,
    ) -> None: ...

class TimmMixupTrainer(
    MixupMixin,
    ModelEmaMixin,
    TimmTrainer,
):
    default_scheduler_args: ClassVar[dict[str, Any] | None]

    def __init__(
        self,
        model: nn.Module,
        loss_func: Callable[..., torch.Tensor],
        optimizer: Optimizer | None,
        callbacks: Iterable[TrainerCallback | type[TrainerCallback]] = ...,
        run_history: Any = ...,
        *,
        num_class: int | None = ...,
        mixup_args: dict[str, Any] | None = ...,
        mixup_off_epoch: int | None = ...,
        ema_decay: float | None = ...,
        ema_warmup: bool = ...,
        ema_update_every: int | Literal["epoch"] = ...,
        ema_device: str | torch.device | None = ...,
        num_classes: int | None = ...,
        metrics: MetricCollection | None = ...,
        multi_label: bool = ...,
        train_accuracy: bool | None = ...,
        eval_loss_fn: Callable[..., torch.Tensor] | None = ...,
        scheduler_args: dict[str, Any] | None = ...,
        scheduler_metric: str = ...,
        dist_bn: str | None = ...,
        sync_bn: bool = ...,
        clip_grad: float | None = ...,
        clip_mode: str = ...,
        freeze_schedule: Mapping[int, int | Sequence[str]] | None = ...,
        resolutions: Sequence[int | tuple[int, int]] | None = ...,
        resolution_schedule: str = ...,
        distill_teacher: nn.Module | str | Path | None = ...,
        distill_kind: str = ...,
        distill_alpha: float = ...,
        distill_temperature: float = ...,
        distill_hard: bool = ...,
        seed: int = ...,
        run_dir: str | Path | None = ...,
        evaluate_every_n_epochs: int = ...,
        sync_every_n_updates: int = ...,
        recipe: Mapping[str, Any] | None = ...,
        mixed_precision: str | None = ...,
        torch_compile: bool | str | None = ...,
    ) -> None: ...
