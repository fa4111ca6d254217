"""Freeze stages of the model for some epochs."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from timm_accel.models import FrozenParts, parts_to_freeze
from timm_accel.training import LoopTrainer


class FreezingMixin(LoopTrainer):
    """Freeze stages of the model in the epochs that a schedule names.

    Their parameters are in the optimizer's groups from the start, but get no gradient, hence no step, no weight decay
    and no optimizer state, except what Adagrad and Adahessian create for all parameters at once. Their BatchNorm stays
    in evaluation mode. ``requires_grad`` does not change: if it changed after DDP has wrapped the model, ranks would
    diverge. So a frozen stage still costs its backward pass; use ``create_classifier(freeze=…)`` for stages that are
    frozen for the whole run. A resumed run continues with the same schedule.

    Args:
        freeze_schedule: Which stages are frozen from an epoch on: ``{0: 4, 3: ["stem"], 6: 0}`` freezes the first
            four, from epoch 3 the stem alone, and from epoch 6 none. The epochs count from 0; the stages are those of
            `timm_accel.models.stage_names`, by number from the stem on (-1: all but the last), or by name. None
            freezes nothing.

    Raises:
        TypeError: `freeze_schedule` is no mapping.
        ValueError: It has an epoch below 0; or, in `train`, a stage is unknown or none is left to train, or what is to
            be trained later cannot be: it has ``requires_grad=False``, or is in no group of the optimizer.

    Source: gradual unfreezing, arXiv 1801.06146.
    """

    def __init__(
        self, *args: Any, freeze_schedule: Mapping[int, int | Sequence[str]] | None = None, **kwargs: Any
    ) -> None:
        if not isinstance(freeze_schedule, Mapping | None):
            raise TypeError(
                f"Expected freeze_schedule to be a mapping of epochs to stages, but got {freeze_schedule!r}. "
                "Pass {0: 3, 5: 0}: three stages until epoch 5."
            )
        for epoch in freeze_schedule or ():
            if not (isinstance(epoch, int) and epoch >= 0):
                raise ValueError(f"Expected freeze_schedule to name epochs from 0, but got {epoch!r}. Count from 0.")
        self.freeze_schedule = dict(freeze_schedule or {})
        self._frozen_in: dict[int, FrozenParts] = {}
        self._frozen: list[nn.Parameter] = []
        super().__init__(*args, **kwargs)

    def training_run_start(self) -> None:
        model = self.current_run().unwrapped_model
        self._frozen_in = {
            epoch: parts_to_freeze(model, stages) for epoch, stages in sorted(self.freeze_schedule.items())
        }
        self._check_trainable(set().union(*(parts.parameters for parts in self._frozen_in.values())))
        super().training_run_start()

    def _check_trainable(self, scheduled: set[str]) -> None:
        optimized = {
            id(each) for group in self.current_run().unwrapped_optimizer.param_groups for each in group["params"]
        }
        for name, parameter in self.current_run().unwrapped_model.named_parameters():
            if name in scheduled and not (parameter.requires_grad and id(parameter) in optimized):
                reason = "is in no group of the optimizer" if parameter.requires_grad else "has requires_grad=False"
                raise ValueError(
                    f"Expected what freeze_schedule thaws to be trainable, but got {name!r}, which {reason}. Leave "
                    "freeze and lora out of create_classifier(), and give the optimizer all parameters."
                )

    def train_epoch_start(self) -> None:
        super().train_epoch_start()
        epoch = self.current_run().epoch or 0
        started = [parts for start, parts in self._frozen_in.items() if start <= epoch]
        frozen, model = started[-1] if started else FrozenParts(set(), []), self.current_run().unwrapped_model
        self._frozen = [model.get_parameter(name) for name in frozen.parameters]
        for name in frozen.norms:
            model.get_submodule(name).eval()

    def clip_gradients(self) -> None:
        for parameter in self._frozen:
            parameter.grad = None
        super().clip_gradients()
