"""Compose a trainer from three mixins.

    python examples/compose_mixins.py

It trains on scikit-learn's digits with EMA weights, Lookahead and a schedule that steps per update, without Mixup and
metrics.
"""

from typing import Any

import torch
from timm.optim import create_optimizer_v2
from torch import nn

from timm_accel import create_classifier, create_datasets
from timm_accel.data import write_digits
from timm_accel.mixins import LookaheadMixin, ModelEmaMixin, TimmSchedulerMixin


class Lean(ModelEmaMixin, LookaheadMixin, TimmSchedulerMixin):
    """A trainer with three techniques and nothing else."""


def main(num_epochs: int = 5, model_name: str = "test_resnet", **options: Any) -> Lean:
    """Train, and return the trainer."""
    data_dir = write_digits()
    torch.manual_seed(0)
    model, config = create_classifier(model_name, num_classes=10, image_size=32)
    train_set, val_set = create_datasets(
        32, config["mean"], config["std"], data_dir / "train", data_dir / "val", auto_augment=None, hflip=0.0
    )
    trainer = Lean(
        model=model,
        optimizer=create_optimizer_v2(model, opt="lookahead_adamw", lr=5e-3, weight_decay=0.01),
        loss_func=nn.CrossEntropyLoss(),
        scheduler_args={"sched": "cosine", "warmup_epochs": 1, "step_on_epochs": False},
        ema_decay=0.9,
        **options,
    )
    trainer.train(train_set, num_epochs, val_set, per_device_batch_size=64)
    return trainer


if __name__ == "__main__":
    main()
