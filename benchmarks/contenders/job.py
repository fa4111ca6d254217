"""What the contenders train, from parts of timm and torch alone."""

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data import Mixup
from timm.loss import SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

MIXUP = {"mixup_alpha": 0.2, "cutmix_alpha": 1.0}
SCHEDULE: dict[str, Any] = {"sched": "cosine", "step_on_epochs": False}
EMA_DECAY, CLIP = 0.5, 1.0


@dataclass(frozen=True)
class Job:
    """What is trained.

    Args:
        model: The name of timm's model.
        num_updates: Optimizer updates of an epoch; random images are made for them.
        all_parts: Whether Mixup, clipping and EMA are there.
        data: The training dataset; None for random images.
        eval_data: The evaluation dataset; None for none.
        folder: Where states are saved; None to save none.
        max_updates: Updates after which our trainer and pytorch-accelerated's stop; None for all of the epochs.
    """

    model: str = "test_resnet"
    num_updates: int = 4
    all_parts: bool = False
    data: Dataset | None = None
    eval_data: Dataset | None = None
    folder: Path | None = None
    num_epochs: int = 1
    num_classes: int = 10
    batch_size: int = 4
    image_size: int = 32
    num_workers: int = 0
    model_args: dict[str, Any] = field(default_factory=dict)
    max_updates: int | None = None

    @cached_property
    def train_data(self) -> Any:
        """The training dataset."""
        if self.data is not None:
            return self.data
        count = self.num_updates * self.batch_size
        images = torch.randn(count, 3, self.image_size, self.image_size)
        return TensorDataset(images, torch.arange(count) % self.num_classes)

    @cached_property
    def network(self) -> nn.Module:
        """A new model."""
        return timm.create_model(self.model, num_classes=self.num_classes, **self.model_args)

    @property
    def loss(self) -> nn.Module:
        """The loss of training."""
        return SoftTargetCrossEntropy() if self.all_parts else nn.CrossEntropyLoss()

    @property
    def mixup(self) -> Mixup | None:
        """timm's Mixup; None without all parts."""
        return Mixup(**MIXUP, num_classes=self.num_classes) if self.all_parts else None

    def optimizer(self) -> torch.optim.Optimizer:
        """Return timm's AdamW."""
        return create_optimizer_v2(self.network, "adamw", lr=1e-3)

    def schedule(self, optimizer: torch.optim.Optimizer) -> Any:
        """Return timm's cosine schedule."""
        options = {"num_epochs": self.num_epochs, "updates_per_epoch": self.num_updates}
        return create_scheduler_v2(optimizer, **SCHEDULE, **options)[0]

    @property
    def workers(self) -> dict[str, Any]:
        """The options of loaders that need not know the data."""
        return {"num_workers": self.num_workers, "persistent_workers": self.num_workers > 0}

    def loaders(self) -> tuple[DataLoader, DataLoader | None]:
        """Return torch's loaders of the training and the evaluation data."""
        train = DataLoader(self.train_data, self.batch_size, shuffle=True, drop_last=True, **self.workers)
        return train, self.eval_data and DataLoader(self.eval_data, self.batch_size, **self.workers)

    def of_trainer(self) -> dict[str, Any]:
        """Return the arguments of `train` of pytorch-accelerated and those that are built on it."""
        return {
            "num_epochs": self.num_epochs,
            "eval_dataset": self.eval_data,
            "max_num_train_steps": self.max_updates,
            "per_device_batch_size": self.batch_size,
            "train_dataloader_kwargs": {**self.workers, "drop_last": True},
            "eval_dataloader_kwargs": self.workers,
        }
