"""Teachers for distillation: open them, and check them against student and data before a run."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import convert_to_fp32
from timm.task import DistillationTeacher
from torch import nn
from torch.utils.data import IterableDataset

from timm_accel.data.classes import class_names
from timm_accel.messages import one_line
from timm_accel.models import check_model_name, open_classifier
from timm_accel.models.sources import create_pretrained
from timm_accel.models.trial import output_shape


class Teacher(DistillationTeacher):
    """timm's teacher, under autocast; without a config it gets the student's images.

    Args:
        model: The model to learn from.
        student: The model that learns.

    Source: ``timm.task.DistillationTeacher``.
    """

    autocast: Callable[[], Any]
    """Return the context of the run's precision."""

    def __init__(self, model: nn.Module, student: Any) -> None:
        super().__init__(model)
        config: Any = getattr(model, "pretrained_cfg", None)  # without one timm assumes ImageNet's mean (1.0.31)
        other = student.pretrained_cfg
        self.has_same_input = config is None or all(
            tuple(config[name]) == tuple(other[name]) for name in ("mean", "std")
        )

    def normalize_input(
        self, images: torch.Tensor, student_mean: torch.Tensor, student_std: torch.Tensor
    ) -> torch.Tensor:
        if self.has_same_input:  # timm compares the tensors at each step, and waits for the device (1.0.31)
            return images
        return (images * student_std + student_mean - self.mean_kd) / self.std_kd

    def forward(self, images: torch.Tensor, return_features: bool = False) -> torch.Tensor:
        with self.autocast():
            outputs = super().forward(images, return_features)
        return convert_to_fp32(outputs)


def open_teacher(given: Any, student: nn.Module) -> tuple[nn.Module, list[str] | None]:
    """Return the teacher, and the names of its classes if they are known.

    Args:
        given: A model, the name of a model of timm, or a folder of weights.
        student: The model that learns from it.

    Raises:
        TypeError: It is of another type.
        ValueError: timm has no such model, or cannot rebuild that of the folder.
        FileNotFoundError: The folder holds no weights.
        OSError: The weights could not be downloaded.
    """
    if isinstance(given, nn.Module):
        return given, None
    if not isinstance(given, str | Path):
        raise TypeError(
            f"Expected distill_teacher to be a model, a name or a folder, but got {type(given).__name__}. Pass one."
        )
    if isinstance(given, Path) or Path(given).is_dir():
        model, config = open_classifier(given)
        return model, config.get("label_names")
    check_model_name(given)
    return create_pretrained(given, in_chans=getattr(student, "in_chans", 3)), None


def check_student(student: nn.Module, kind: str) -> None:
    """Raise if a student cannot be distilled in this way.

    Args:
        student: The model that learns.
        kind: ``logit``, ``token`` or ``feature``.

    Raises:
        ValueError: It lacks an attribute that timm's models have.
    """
    needed = {
        "logit": ("pretrained_cfg",),
        "token": ("pretrained_cfg", "set_distilled_training"),
        "feature": ("pretrained_cfg", "forward_features", "forward_head", "num_features"),
    }[kind]
    if missing := [name for name in needed if not hasattr(student, name)]:
        remedy = "Choose one such as deit_tiny_distilled_patch16_224." if kind == "token" else "Use a model of timm."
        raise ValueError(
            f"Expected model to have {missing[0]}, since distill_kind={kind!r} needs it, but got "
            f"{type(student).__name__} without. {remedy}"
        )


def check_teacher(teacher: nn.Module, student: nn.Module, kind: str) -> None:
    """Raise if a teacher cannot teach this student in this way.

    Args:
        teacher: The model to learn from.
        student: The model that learns.
        kind: ``logit``, ``token`` or ``feature``.

    Raises:
        ValueError: It has other classes, or no features.
    """
    if kind == "feature":
        if missing := [
            name for name in ("forward_features", "forward_head", "num_features") if not hasattr(teacher, name)
        ]:
            raise ValueError(
                f"Expected distill_teacher to have {missing[0]}, since distill_kind='feature' needs it, but got "
                f"{type(teacher).__name__} without. Use a model of timm, or another kind."
            )
        return
    wanted, found = getattr(student, "num_classes", None), getattr(teacher, "num_classes", None)
    if None not in (wanted, found) and wanted != found:
        raise ValueError(
            f"Expected distill_teacher to have the {wanted} classes of the student, but got {found}. Train a teacher "
            "on this data, or use distill_kind='feature', which needs no classes."
        )


def check_images(teacher: nn.Module, names: list[str] | None, dataset: Any, num_outputs: int | None) -> None:
    """Raise if a teacher does not fit a training dataset.

    Args:
        teacher: The model to learn from.
        names: The names of its classes, if they are known.
        dataset: The training dataset; its first image is read, unless it is a stream.
        num_outputs: The number of outputs that the student learns from; None if it learns from none.

    Raises:
        ValueError: The classes differ, the teacher cannot take the images, or it gives another number of outputs.
    """
    wanted = class_names(dataset)
    if None not in (names, wanted) and names != wanted:
        raise ValueError(
            f"Expected distill_teacher to have the classes of the data in the same order, {_shorten(wanted)}, but got "
            f"{_shorten(names)}. Train a teacher on this data."
        )
    image = None if isinstance(dataset, IterableDataset) else dataset[0][0]
    if isinstance(image, torch.Tensor):
        _try_out(teacher, tuple(image.shape), num_outputs)


def _try_out(teacher: nn.Module, image_shape: Any, num_outputs: int | None) -> None:
    try:
        _, *found = output_shape(teacher, image_shape)
    except Exception as error:  # the layers of the teacher may raise anything
        raise ValueError(
            f"Expected distill_teacher to take the images of the data, {image_shape}, but it raised "
            f"{type(error).__name__} ({one_line(error)}). Create it with their size and channels, "
            "or create the dataset with its size and channels."
        ) from error
    if num_outputs is not None and found != [num_outputs]:
        raise ValueError(
            f"Expected distill_teacher to give the {num_outputs} outputs of the student, (B, {num_outputs}), but got "
            f"(B, {', '.join(map(str, found))}). Train a teacher on this data, or use distill_kind='feature'."
        )


def _shorten(names: list[str] | None) -> str:
    names = names or []
    return f"{names[:5]}{' …' if len(names) > 5 else ''}"
