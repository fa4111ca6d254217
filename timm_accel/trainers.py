"""The ready-made trainers: ordered lists of mixins."""

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
    """Every mixin but Mixup and the average, each inert until asked for; their options are the keywords."""


class TimmMixupTrainer(MixupMixin, ModelEmaMixin, TimmTrainer):
    """The trainer of the article's last script: Mixup, an average of the weights, and all of `TimmTrainer`.

    With ``create_scheduler_fn=trainer.create_scheduler`` and nothing else said of a schedule, it is the article's, a
    cosine over the run after a warm-up: `default_scheduler_args`, of which a `Recipe` has its defaults too.

    Args:
        eval_loss_fn: The loss for evaluation.
        mixup_args: Keyword arguments of ``timm.data.Mixup``; ``num_classes`` may be left to `num_class`.
        num_class: The number of classes.

    Raises:
        ValueError: `num_class` and ``mixup_args["num_classes"]`` differ.
    """

    default_scheduler_args: ClassVar[dict[str, Any] | None] = {
        "sched": "cosine",
        "min_lr": 1e-6,
        "warmup_lr": 1e-4,
        "warmup_epochs": 3,
        "cycle_decay": 0.5,
    }

    def __init__(
        self,
        *args: Any,
        eval_loss_fn: Any = None,
        mixup_args: dict[str, Any] | None = None,
        num_class: int | None = None,
        **kwargs: Any,
    ) -> None:
        if mixup_args is not None and num_class is not None:
            mixup_args = {"num_classes": num_class, **mixup_args}
            if mixup_args["num_classes"] != num_class:
                raise ValueError(
                    f"Expected mixup_args['num_classes'] to be num_class, {num_class}, but got "
                    f"{mixup_args['num_classes']!r}. Leave it out of mixup_args."
                )
        super().__init__(*args, eval_loss_fn=eval_loss_fn, mixup_args=mixup_args, num_classes=num_class, **kwargs)
