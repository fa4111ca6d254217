"""The ready-made trainers, which are ordered lists of mixins."""

from typing import Any, ClassVar

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
    """Combine every mixin except Mixup and EMA; each does nothing until its option is set.

    The training loader drops its last, shorter batch by default, as timm's does: other images are in it in each epoch.
    """

    default_drop_last: ClassVar[bool] = True


class TimmMixupTrainer(MixupMixin, ModelEmaMixin, TimmTrainer):
    """The trainer of the article's last script: Mixup, EMA weights, and all of `TimmTrainer`.

    With ``create_scheduler_fn=trainer.create_scheduler`` and no other option for the schedule, it is the article's: a
    warm-up and a cosine over the run. Its arguments are `default_scheduler_args`, which are also the defaults of a
    `Recipe`.

    Args:
        num_class: The number of classes; it sets ``num_classes`` and ``mixup_args["num_classes"]``.

    Raises:
        ValueError: One of these is given with another value.
    """

    default_scheduler_args: ClassVar[dict[str, Any] | None] = {
        "sched": "cosine",
        "min_lr": 1e-6,
        "warmup_lr": 1e-4,
        "warmup_epochs": 3,
        "cycle_decay": 0.5,
    }

    def __init__(self, *args: Any, num_class: int | None = None, **kwargs: Any) -> None:
        mixup_args = kwargs.get("mixup_args")
        if num_class is not None:
            kwargs["num_classes"] = _same(num_class, "num_classes", kwargs.get("num_classes"))
            if mixup_args is not None:
                same = _same(num_class, "mixup_args['num_classes']", mixup_args.get("num_classes"))
                kwargs["mixup_args"] = {**mixup_args, "num_classes": same}
        super().__init__(*args, **kwargs)


def _same(num_class: int, name: str, given: int | None) -> int:
    if given not in (None, num_class):
        raise ValueError(f"Expected {name} to be num_class, {num_class}, but got {given!r}. Leave it out.")
    return num_class
