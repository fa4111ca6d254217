"""Temperature scaling: calibrate probabilities by one number that is fitted on held-out images."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from timm_accel.atomic import atomic_write
from timm_accel.distributed.shares import share_of_process
from timm_accel.models import CONFIG_FILE, read_config, signed_config
from timm_accel.predict.classifier import Classifier
from timm_accel.predict.labeled import collect, open_labeled, open_shared

RANGE = (0.01, 100.0)


def fit_temperature(
    classifier: Classifier,
    data: Any,
    *,
    eval_split: str | None = "val",
    batch_size: int = 64,
    num_workers: int = 0,
    progress: bool = False,
    share: bool = False,
) -> float:
    """Find the temperature, the divisor of the logits, with the smallest negative log likelihood.

    The order of the classes and the accuracy do not change. The classifier uses the temperature from then on. If it
    was loaded from a folder, the temperature is also written into its ``config.json`` for `load_classifier`.

    Args:
        classifier: A classifier from `load_classifier`.
        data: Held-out images, neither from the training nor from the reported evaluation; as for
            `evaluate_classifier`.
        eval_split: The split to fit on; None for all images of a folder, tar or manifest without splits.
        batch_size: Images at a time.
        num_workers: Loader processes.
        progress: Whether a bar is shown.
        share: Whether the processes of a launch share the images. Collective then: each process must make this call
            and gets the temperature, and rank 0 writes it. False computes everything here, so that one process may call
            it alone.

    Raises:
        OSError: The temperature cannot be written into the folder.
        ValueError: The classes of the data are not the model's, or no temperature can be fitted: all predictions are
            correct, or it would be out of range.

    Source: Guo et al. 2017, arXiv 1706.04599.
    """
    part = share_of_process(share)
    reader = open_shared(data, eval_split, part)
    dataset = part.agreed(lambda: open_labeled(classifier, reader, classifier.transform))
    loading: dict[str, Any] = {"batch_size": batch_size, "num_workers": num_workers, "progress": progress}
    logits, targets = collect(lambda images, _: classifier.logits(images), dataset, **loading, share=part)
    classifier.temperature = part.of_first(lambda: _fitted(classifier, logits, targets))
    return classifier.temperature


def _fitted(classifier: Classifier, logits: Tensor, targets: Tensor) -> float:
    """Return the best temperature, and write it into the folder of the classifier."""
    temperature = best_temperature(logits, targets)
    if classifier.folder is not None:
        _store(classifier.folder / CONFIG_FILE, temperature)
    return temperature


def best_temperature(logits: Tensor, targets: Tensor) -> float:
    """Return the temperature with the smallest negative log likelihood, by L-BFGS over its logarithm.

    Args:
        logits: ``(N, num_classes)``, float64.
        targets: Labels ``(N,)``, or ``(N, num_classes)`` of 0 and 1.

    Raises:
        ValueError: The data determine no temperature.
    """
    multi_label = targets.ndim == 2
    right = ((logits > 0) == (targets > 0.5)) if multi_label else logits.argmax(dim=1) == targets
    if right.all():
        raise ValueError(
            f"Expected data with an image that the classifier gets wrong, since else the best temperature is 0, but "
            f"got {len(targets)} without. Pass more held-out images."
        )
    loss = binary_cross_entropy_with_logits if multi_label else cross_entropy
    wanted = targets.to(logits.dtype) if multi_label else targets
    log_temperature = torch.zeros((), dtype=logits.dtype, requires_grad=True)
    optimizer = torch.optim.LBFGS([log_temperature], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss(logits / log_temperature.exp(), wanted)
        value.backward()
        return value

    optimizer.step(closure)
    temperature = log_temperature.exp().item()
    if not RANGE[0] <= temperature <= RANGE[1]:
        raise ValueError(
            f"Expected data that determine a temperature from {RANGE[0]} to {RANGE[1]}, but got {temperature:.3g}, as "
            "for a classifier that guesses. Look at its accuracy on them."
        )
    return temperature


def _store(path: Path, temperature: float) -> None:
    config = signed_config(path.parent, {**read_config(path.parent), "temperature": temperature})
    with atomic_write(path) as unfinished:
        unfinished.write_text(json.dumps(config, indent=2))
