"""What a model gets wrong: the images with the highest loss, the most confident errors, and its calibration."""

from dataclasses import dataclass
from typing import Any

import torch

from timm_accel.data.transforms.prepare_image import PrepareImage
from timm_accel.predict import Scores
from timm_accel.predict.scored_images import images_of
from timm_accel.report.charts import Chart, line_chart
from timm_accel.report.images import thumbnail_of

_BINS = 10


@dataclass(frozen=True)
class ShownImage:
    """An image with its label, the prediction, its probability, its loss, and a thumbnail; None if there is none."""

    path: str
    label: str
    prediction: str
    probability: float
    loss: float
    thumbnail: str | None


def confident_errors(scores: Scores, count: int) -> list[int]:
    """Return the indices of the wrong predictions with the highest probabilities, the highest first."""
    if scores.is_multi_label:
        return []
    confidence, predictions = scores.probabilities.max(dim=1)
    wrong = (predictions != scores.targets).nonzero().flatten()
    return wrong[confidence[wrong].argsort(descending=True, stable=True)][:count].tolist()


def shown_images(scores: Scores, indices: list[int], reader: Any, prepare: PrepareImage) -> list[ShownImage]:
    """Return images to show.

    Args:
        scores: The scores.
        indices: The indices of the images in the scores.
        reader: The reader of all images; None where their files are not at hand.
        prepare: Decodes an image as training does.
    """
    losses, images = scores.losses, images_of([scores.paths[index] for index in indices], reader, prepare)
    shown = []
    for index, image in zip(indices, images, strict=True):
        path, probabilities = scores.paths[index], scores.probabilities[index]
        best = int(probabilities.argmax())
        thumbnail = None if image is None else thumbnail_of(image)
        label = ", ".join(scores.labels_of(index)) or "none"
        prediction, probability = scores.class_names[best], float(probabilities[best])
        shown.append(ShownImage(path, label, prediction, probability, float(losses[index]), thumbnail))
    return shown


def calibration_chart(scores: Scores) -> Chart | None:
    """Return the share of right predictions against their probability, in ten bins; None for multi-label images."""
    if scores.is_multi_label:
        return None
    confidence, predictions = scores.probabilities.max(dim=1)
    right = (predictions == scores.targets).double()
    bins = (confidence * _BINS).long().clamp(max=_BINS - 1)
    points = [
        (confidence[bins == each].mean().item(), right[bins == each].mean().item()) for each in torch.unique(bins)
    ]
    series = {"perfect": [(0.0, 0.0), (1.0, 1.0)], "model": points}
    return line_chart(
        "Calibration", series, dashed=["perfect"], x_label="probability of the prediction", y_range=(0.0, 1.0)
    )
