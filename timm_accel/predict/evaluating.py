"""Evaluate a classifier of any stored form on labeled images."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from timm_accel.data.classes import in_label_order, is_multi_label
from timm_accel.distributed.shares import share_of_process
from timm_accel.predict.augmentation import check_tta
from timm_accel.predict.classifier import Classifier
from timm_accel.predict.evaluation import Evaluation
from timm_accel.predict.labeled import (
    collect,
    model_numbers,
    open_labeled,
    open_shared,
    paths_of,
    unreadable_paths,
)
from timm_accel.predict.measures import (
    class_measures,
    confusion_matrix,
    most_confused,
    multiclass_metrics,
    multilabel_metrics,
)
from timm_accel.predict.opening import classifier_of, load_classifier, resolve_device
from timm_accel.predict.scores import Scores


def evaluate_classifier(
    path_or_model: str | Path | Classifier | nn.Module,
    data: Any,
    *,
    eval_split: str | None = "val",
    tta: Sequence[str] = (),
    batch_size: int = 64,
    num_workers: int = 0,
    device: str | torch.device | None = None,
    progress: bool = False,
    share: bool = False,
) -> Evaluation:
    """Compare the predictions of a classifier with the labels of images, by exact metrics over all images.

    Classes are matched by name, so their order in the data does not matter. The data may lack some of the model's
    classes: ``f1_macro``, and all metrics of a multi-label model, are then of the classes that they have. Images that
    cannot be read are left out and listed in the result; more than 1 % of them, and more than 10, are an error.

    Args:
        path_or_model: A path for `load_classifier`, a `Classifier`, or a model in memory with timm's data config. A
            model in memory is multi-label if the data are.
        data: A source as for ``data`` of `create_datasets`, or a dataset. A source without splits is split as there; a
            dataset is evaluated completely. The classifier's preprocessing replaces the dataset's.
        eval_split: The split to evaluate on; None for all images of a folder, tar or manifest without splits.
        tta: Test-time augmentation, some of ``hflip``, ``vflip`` and ``five_crop``: the probabilities are the mean over
            the views.
        batch_size: Images at a time.
        num_workers: Loader processes.
        device: The device to compute on; None for the GPU if there is one, or for the device of a `Classifier`.
        progress: Whether a bar is shown.
        share: Whether the processes of a launch share the images. Collective then: each process must make this call,
            and gets the complete result. False computes everything here, so that one process may call it alone.

    Raises:
        FileNotFoundError: The classifier or the data does not exist.
        TypeError: `path_or_model` is of another kind.
        ValueError: The data have a class that the model has not, a label is no class, no image has a label, an option
            is out of range, or no image or too few can be read.
    """
    scores = score_images(
        path_or_model,
        data,
        eval_split=eval_split,
        tta=tta,
        batch_size=batch_size,
        num_workers=num_workers,
        device=device,
        progress=progress,
        share=share,
    )
    return evaluation_of(scores)


def evaluation_of(scores: Scores) -> Evaluation:
    """Return the measures of scored images; they are those of `evaluate_classifier`.

    Args:
        scores: Scores from `score_images`.
    """
    probabilities, targets, names = scores.probabilities, scores.targets, scores.class_names
    multi_label, missing = scores.is_multi_label, set(scores.missing_classes)
    numbers = [number for number, name in enumerate(names) if name not in missing]
    return Evaluation(
        metrics=(multilabel_metrics if multi_label else multiclass_metrics)(probabilities, targets, numbers),
        classes=class_measures(probabilities, targets, names),
        confusion_matrix=None if multi_label else confusion_matrix(probabilities, targets),
        most_confused=[] if multi_label else most_confused(probabilities, targets, names),
        num_images=len(targets),
        unreadable=scores.unreadable,
        temperature=scores.temperature,
        tta=scores.tta,
        missing_classes=scores.missing_classes,
    )


def score_images(
    path_or_model: str | Path | Classifier | nn.Module,
    data: Any,
    *,
    eval_split: str | None = "val",
    tta: Sequence[str] = (),
    batch_size: int = 64,
    num_workers: int = 0,
    device: str | torch.device | None = None,
    progress: bool = False,
    share: bool = False,
) -> Scores:
    """Return the probabilities of a classifier for labeled images, with the path and the label of each image.

    The arguments and errors are those of `evaluate_classifier`.
    """
    part, tta = share_of_process(share), check_tta(tta)
    classifier = part.agreed(lambda: as_classifier(path_or_model, device))
    reader = open_shared(data, eval_split, part)

    def opened() -> Any:
        if isinstance(path_or_model, nn.Module):
            classifier.multi_label = is_multi_label(reader)
        return open_labeled(classifier, reader, classifier.transform_of_views(tta))

    dataset = part.agreed(opened)
    probabilities, targets = collect(
        partial(classifier.probabilities, tta=tta),
        dataset,
        batch_size=batch_size,
        num_workers=num_workers,
        progress=progress,
        share=part,
    )
    numbers, names = model_numbers(classifier, in_label_order(reader.class_to_idx)), classifier.class_names
    return Scores(
        paths=paths_of(dataset, len(targets)),
        targets=targets,
        probabilities=probabilities,
        class_names=names,
        unreadable=unreadable_paths(dataset, part),
        missing_classes=[name for number, name in enumerate(names) if number not in numbers],
        temperature=classifier.temperature,
        tta=tta,
    )


def as_classifier(
    path_or_model: str | Path | Classifier | nn.Module, device: str | torch.device | None = None
) -> Classifier:
    """Return a classifier, opened where it is a path or a model.

    Raises:
        TypeError: `path_or_model` is of another kind.
        ValueError: The device is unknown, or is not that of the classifier.
    """
    if isinstance(path_or_model, Classifier):
        if device is not None and resolve_device(device) != resolve_device(path_or_model.device):
            raise ValueError(
                f"Expected device to be None, since the classifier is on {str(path_or_model.device)!r} already, but "
                f"got {str(device)!r}. Open it there: load_classifier(…, device=…)."
            )
        return path_or_model
    if isinstance(path_or_model, nn.Module):
        return classifier_of(path_or_model, device)
    if not isinstance(path_or_model, str | Path):
        raise TypeError(
            f"Expected path_or_model to be a path, a Classifier or a torch module, but got "
            f"{type(path_or_model).__name__}. Open it with load_classifier."
        )
    return load_classifier(path_or_model, device=device)
