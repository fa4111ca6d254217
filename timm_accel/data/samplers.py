"""Samplers for the order of an epoch; with `LoopTrainer` their draws depend only on (seed, epoch).

Pass one as ``train_dataloader_kwargs={"sampler": ...}``. It draws one order for all ranks, and accelerate shards it, so
no image is lost or repeated.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Sampler, WeightedRandomSampler

from timm_accel.data.labels import are_lists, check_labels, require_labels


def class_balanced_sampler(labels: Sequence[Any] | np.ndarray, num_samples: int | None = None) -> WeightedRandomSampler:
    """Return a sampler that draws every class equally often, with replacement.

    A multi-label image is drawn as often as one of its rarest class, so every class is drawn at least as often
    as if its images had no other label. Images without a label are drawn like a class.

    Args:
        labels: The label of each image, ``(N,)``, or a list of labels for each.
        num_samples: Draws in an epoch; None for as many as there are images.

    Raises:
        ValueError: There are no labels, one is no class, or `num_samples` is below 1.

    Source: ``torch.utils.data.WeightedRandomSampler``.
    """
    if len(labels) == 0:
        raise ValueError("Expected labels to be those of some images, but got none. Pass dataset.labels.")
    if num_samples is not None and num_samples < 1:
        raise ValueError(f"Expected num_samples to be at least 1, but got {num_samples!r}. None is as many as images.")
    checked = check_labels(labels, None, lambda index: f"image {index}")
    require_labels(checked, lambda index: f"image {index}")
    if are_lists(checked):
        unlabeled = max(map(max, filter(None, checked))) + 1
        lists = [each or [unlabeled] for each in checked]
        counts = np.bincount([label for each in lists for label in {*each}])
        weights = [1 / min(counts[label] for label in each) for each in lists]
    else:
        weights = (1 / np.bincount(checked)[checked]).tolist()
    return WeightedRandomSampler(weights, num_samples or len(labels))


class RepeatedSampler(Sampler[int]):
    """Draw every image several times in an epoch, in sequence; each copy gets a different augmentation.

    So the copies are in one batch. timm's ``RepeatAugSampler`` (1.0.31) returns three quarters of the draws of a small
    dataset, depends only on the epoch for its seed, and shards by itself.

    Args:
        num_images: The number of images.
        num_repeats: How often each image is drawn.
        num_samples: Draws in an epoch; None for all. DeiT passes the number of images: each epoch then draws another
            part of the images.

    Raises:
        ValueError: A number is below 1.

    Source: Repeated augmentation, arXiv 1901.09335.
    """

    def __init__(self, num_images: int, num_repeats: int, num_samples: int | None = None) -> None:
        num_samples = num_images * num_repeats if num_samples is None else num_samples
        for name, number in (("num_images", num_images), ("num_repeats", num_repeats), ("num_samples", num_samples)):
            if number < 1:
                raise ValueError(f"Expected {name} to be at least 1, but got {number!r}. Choose another.")
        self.num_images, self.num_repeats, self.num_samples = num_images, num_repeats, num_samples
        self.generator: torch.Generator | None = None

    def __iter__(self) -> Iterator[int]:
        order = torch.randperm(self.num_images, generator=self.generator).repeat_interleave(self.num_repeats)
        return iter(order[: self.num_samples].tolist())

    def __len__(self) -> int:
        return min(self.num_samples, self.num_images * self.num_repeats)
