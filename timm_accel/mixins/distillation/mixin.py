"""Knowledge distillation: a student learns from a teacher's outputs as well as from the labels."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from timm.task import FeatureDistillationTask, LogitDistillationTask, TokenDistillationTask
from timm.task.distillation import FeatureDistillationTrainableModule
from torch import nn

from timm_accel.data.classes import is_multi_label
from timm_accel.data.seeding import seeded_construction
from timm_accel.messages import nearest
from timm_accel.mixins.distillation.teachers import Teacher, check_images, check_student, check_teacher, open_teacher
from timm_accel.training import LoopTrainer
from timm_accel.training.preparation import require_optimizer

KINDS = {"logit": LogitDistillationTask, "token": TokenDistillationTask, "feature": FeatureDistillationTask}


class DistillationMixin(LoopTrainer):
    """Add the distance between the outputs of student and teacher to the training loss.

    The loss is ``(1 - distill_alpha) * loss_func + distill_alpha * distance``, by timm's tasks. The distance is, for
    ``logit``, the Kullback-Leibler divergence of softened outputs; for ``token``, the same on the student's
    distillation head, or cross-entropy with the teacher's classes; for ``feature``, the squared distance of pooled
    features. Both models get the same images, after Mixup; the teacher gets them with its mean and standard deviation.
    The teacher is in evaluation mode, under autocast, without gradients, and in no state. Evaluation, the EMA weights
    and the best weights are those of the student alone.

    If the features of student and teacher differ in width, the trainer creates a linear projection and adds it to the
    optimizer as a group with default options. During the run ``trainer.model`` holds student and projection, so that
    DDP synchronizes both; ``feature`` runs a compiled student uncompiled. Clipping by norm looks at the student alone.

    Args:
        distill_teacher: A model, the name of a pretrained model of timm, or a folder of weights (``best`` of a run).
            None turns distillation off.
        distill_kind: ``logit``; ``token``, for students with a distillation head, such as DeiT's; or ``feature``.
        distill_alpha: The share of the distance in the loss.
        distill_temperature: What logits are divided by, for ``logit`` and ``token``.
        distill_hard: Whether ``token`` learns the teacher's class instead of its probabilities.

    Raises:
        ValueError: An option is out of range; the student cannot be distilled in this way; the teacher has other
            classes or, in `train`, cannot take the images or gives other outputs; or the targets are multi-label.
        TypeError: The teacher is of another type.

    Source: arXiv 1503.02531, DeiT, arXiv 2012.12877; ``timm.task``.
    """

    loss_func: Any  # upstream declares none of its attributes

    def __init__(
        self,
        *args: Any,
        distill_teacher: nn.Module | str | Path | None = None,
        distill_kind: str = "logit",
        distill_alpha: float = 0.5,
        distill_temperature: float = 1.0,
        distill_hard: bool = False,
        **kwargs: Any,
    ) -> None:
        if distill_kind not in KINDS:
            raise ValueError(
                f"Expected distill_kind to be one of {', '.join(KINDS)}, but got {distill_kind!r}. "
                f"{nearest(distill_kind, KINDS)}"
            )
        if not (isinstance(distill_alpha, int | float) and 0 <= distill_alpha <= 1):
            raise ValueError(
                f"Expected distill_alpha to be from 0 to 1, but got {distill_alpha!r}. The default is 0.5."
            )
        if not (isinstance(distill_temperature, int | float) and distill_temperature > 0):
            raise ValueError(
                f"Expected distill_temperature to be positive, but got {distill_temperature!r}. The default is 1."
            )
        if distill_hard and distill_kind != "token":
            raise ValueError(
                f"Expected distill_hard to be False but for 'token', but got True with {distill_kind!r}. Leave it out."
            )
        self.distill_kind, self.distill_alpha = distill_kind, distill_alpha
        self.distill_temperature, self.distill_hard = distill_temperature, distill_hard
        self._distill_task: Any = None
        self._distill_projection: nn.Module | None = None
        self._distill_names: list[str] | None = None
        super().__init__(*args, **kwargs)
        if distill_teacher is not None:
            with seeded_construction(self.seed):
                self._create_task(distill_teacher)

    def _create_task(self, given: nn.Module | str | Path) -> None:
        if self.distill_kind == "feature":  # it trains a projection too
            require_optimizer(self.optimizer)
        student: Any = self.current_run().unwrapped_model
        check_student(student, self.distill_kind)
        teacher, self._distill_names = open_teacher(given, student)
        check_teacher(teacher, student, self.distill_kind)
        options: dict[str, Any] = {} if self.distill_kind == "feature" else {"temperature": self.distill_temperature}
        if self.distill_kind == "token":
            options["distill_type"] = "hard" if self.distill_hard else "soft"
        self._distill_task = KINDS[self.distill_kind](
            student,
            Teacher(teacher, student),
            criterion=self.loss_func,
            task_loss_weight=1 - self.distill_alpha,
            distill_loss_weight=self.distill_alpha,
            verbose=False,
            **options,
        )
        if self.distill_kind == "feature":
            self._distill_projection = self._distill_task.trainable_module.projection
        elif self.distill_kind == "token":
            student.set_distilled_training(False)  # timm's task turns it on; outside a run it is off
        self._distill_task.trainable_module = _StudentOutputs()
        if self._distill_projection is not None:
            _add_group(self.optimizer, self._distill_projection)

    def get_unwrapped_model(self) -> nn.Module:
        model = super().get_unwrapped_model()
        return model.student if isinstance(model, FeatureDistillationTrainableModule) else model

    def before_prepare(self) -> None:
        super().before_prepare()
        if self._distill_task is not None and self.distill_kind == "feature":
            self.model = self.current_run().unwrapped_model
            if self.current_run().train_dataloader is not None:
                self.model = FeatureDistillationTrainableModule(self.model, self._distill_projection)

    def training_run_start(self) -> None:
        if self._distill_task is not None:
            self._check_data()
            self._distill_task.to(self.device)
            self._distill_task.teacher.autocast = self.current_run().accelerator.autocast
            self._set_distilled_training(True)
        super().training_run_start()

    def _check_data(self) -> None:
        if self.distill_kind != "feature" and is_multi_label(self.train_dataset):
            raise ValueError(
                f"Expected distill_kind to be 'feature', since targets are multi-label and {self.distill_kind!r} is "
                f"over a softmax, but got {self.distill_kind!r}. Use 'feature'."
            )
        num_outputs = (
            None if self.distill_kind == "feature" else getattr(self.current_run().unwrapped_model, "num_classes", None)
        )
        check_images(self._distill_task.teacher.model, self._distill_names, self.train_dataset, num_outputs)

    def _set_distilled_training(self, enable: bool) -> None:
        if self.distill_kind == "token":
            student: Any = self.current_run().unwrapped_model
            student.set_distilled_training(enable)

    def calculate_train_batch_loss(self, batch: Any) -> dict[str, Any]:
        task = self._distill_task
        with nullcontext() if task is None else self._distilling(task):
            return super().calculate_train_batch_loss(batch)

    @contextmanager
    def _distilling(self, task: Any) -> Iterator[None]:
        """Let timm's task compute the loss from the outputs of student and teacher."""
        student = task.trainable_module
        loss_func = self.loss_func
        hook = self.model.register_forward_hook(student.remember)

        def distilled_loss(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            student.logits = outputs
            return task(student.images, targets)["loss"]

        self.loss_func = distilled_loss
        try:
            yield
        finally:
            self.loss_func = loss_func
            hook.remove()
            student.images = student.logits = student.other = None

    def components(self) -> dict[str, Any]:
        components = super().components()
        if self._distill_projection is not None:
            components["distill_projection"] = self._distill_projection
        return components

    def training_run_end(self) -> None:
        if self._distill_task is not None:
            self._set_distilled_training(False)
            if self.distill_kind == "feature":
                self.model = self.current_run().unwrapped_model
        super().training_run_end()


class _StudentOutputs(nn.Module):
    """Replaces the student in timm's task, since the trainer has run the student already."""

    images: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    other: torch.Tensor | None = None

    def remember(self, student: nn.Module, inputs: tuple[Any, ...], outputs: Any) -> torch.Tensor:
        """Keep the student's images and second output, and return its first: a forward hook."""
        self.images = inputs[0]
        logits, self.other = outputs if isinstance(outputs, tuple) else (outputs, None)
        return logits

    def forward(self, images: torch.Tensor) -> Any:
        return self.logits if self.other is None else (self.logits, self.other)


def _add_group(optimizer: Any, projection: nn.Module) -> None:
    named = [(f"projection.{name}", parameter) for name, parameter in projection.named_parameters()]
    with_names = "param_names" in optimizer.param_groups[0]
    optimizer.add_param_group({"params": named if with_names else [parameter for _, parameter in named]})
