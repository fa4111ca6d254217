"""Training images as the model sees them: augmented, and mixed."""

from typing import Any

import torch
from timm.data import Mixup

from timm_accel.data import LabeledImages
from timm_accel.data.seeding import seeded_construction
from timm_accel.recipes import Recipe
from timm_accel.report.images import thumbnail_of

COUNT = 8


def augmented_examples(recipe: Recipe, train_set: Any) -> tuple[list[str], list[str]]:
    """Return thumbnails of the first images that a run draws, augmented, and of the same images mixed.

    Args:
        recipe: The recipe.
        train_set: The training dataset; a stream, or None, has no examples.
    """
    if not isinstance(train_set, LabeledImages) or len(train_set) < 2:
        return [], []
    with seeded_construction(recipe.seed):
        numbers = torch.randperm(len(train_set))[:COUNT].tolist()
        images = [train_set.load(number)[0] for number in numbers]
        plain = [thumbnail_of(image) for image in images]
        if not recipe.mixes or len(images) % 2:
            return plain, []
        mixup = Mixup(recipe.mixup, recipe.cutmix, prob=1.0, mode="elem", num_classes=2)
        mixed, _ = mixup(torch.stack(images).float(), torch.zeros(len(images), dtype=torch.long))
    return plain, [thumbnail_of(image) for image in mixed.round().clamp(0, 255).to(torch.uint8)]
