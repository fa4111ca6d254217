"""Evaluate a classifier of any stored form on labeled images."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

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
    Outcomes,
    confusion_matrix,
    most_confused,
    multiclass_measures,
    multiclass_metrics,
    multilabel_measures,
    multilabel_metrics,
    outcome_rows,
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
    rows, targets, _, about = _compute(
        _kept,
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
    return _evaluation(rows, targets, **about)


def evaluation_of(scores: Scores) -> Evaluation:
    """Return the measures of scored images; they are those of `evaluate_classifier`.

    Args:
        scores: Scores from `score_images`.
    """
    return _evaluation(
        _kept(scores.probabilities, scores.targets),
        scores.targets,
        scores.class_names,
        unreadable=scores.unreadable,
        missing_classes=scores.missing_classes,
        temperature=scores.temperature,
        tta=scores.tta,
    )


def _evaluation(rows: Tensor, targets: Tensor, class_names: list[str], **about: Any) -> Evaluation:
    """Return the measures of images from what `_kept` returned for them."""
    missing, count = set(about["missing_classes"]), len(class_names)
    numbers = [number for number, name in enumerate(class_names) if name not in missing]
    if targets.ndim == 2:
        metrics, measures = multilabel_metrics(rows, targets, numbers), multilabel_measures(rows, targets, class_names)
        return Evaluation(metrics, measures, None, [], len(targets), **about)
    outcomes = Outcomes.of_rows(rows, targets)
    return Evaluation(
        metrics=multiclass_metrics(outcomes, count, numbers),
        classes=multiclass_measures(outcomes, class_names),
        confusion_matrix=confusion_matrix(outcomes, count),
        most_confused=most_confused(outcomes, class_names),
        num_images=len(targets),
        **about,
    )


def _kept(probabilities: Tensor, targets: Tensor) -> Tensor:
    """Return what an evaluation keeps of images: four numbers, of multi-label images all probabilities."""
    return probabilities if targets.ndim == 2 else outcome_rows(probabilities, targets)


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
    probabilities, targets, dataset, about = _compute(
        lambda probabilities, _: probabilities,
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
    return Scores(paths_of(dataset, len(targets)), targets, probabilities, **about)


def _compute(
    kept: Callable[[Tensor, Tensor], Tensor],
    path_or_model: str | Path | Classifier | nn.Module,
    data: Any,
    *,
    eval_split: str | None,
    tta: Sequence[str],
    device: str | torch.device | None,
    share: bool,
    **loading: Any,
) -> tuple[Tensor, Tensor, Any, dict[str, Any]]:
    """Return what is `kept` of each image, the targets, the dataset, and what is told about all images."""
    part, tta = share_of_process(share), check_tta(tta)
    classifier = part.agreed(lambda: as_classifier(path_or_model, device))
    reader = open_shared(data, eval_split, part)

    def opened() -> Any:
        if isinstance(path_or_model, nn.Module):
            classifier.multi_label = is_multi_label(reader)
        return open_labeled(classifier, reader, classifier.transform_of_views(tta))

    dataset = part.agreed(opened)
    rows, targets = collect(
        lambda images, targets: kept(classifier.probabilities(images, tta=tta), targets), dataset, share=part, **loading
    )
    numbers, names = set(model_numbers(classifier, in_label_order(reader.class_to_idx))), classifier.class_names
    about = {
        "class_names": names,
        "unreadable": unreadable_paths(dataset, part),
        "missing_classes": [name for number, name in enumerate(names) if number not in numbers],
        "temperature": classifier.temperature,
        "tta": tta,
    }
    return rows, targets, dataset, about


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
