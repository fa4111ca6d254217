"""Subclass `TimmMixupTrainer` in your own code: any hook of pytorch-accelerated's Trainer may be overridden.

    python examples/custom_trainer.py

This one adds a confidence penalty, the negative entropy of the predictions, to the loss (Pereyra et al., arXiv
1701.06548). It records the mean entropy as a custom metric, and trains on scikit-learn's digits.
"""

from typing import Any

import torch
from timm.loss import SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2
from torch import nn

from timm_accel import TimmMixupTrainer, create_classifier, create_datasets
from timm_accel.data import write_digits


def entropy(logits: torch.Tensor) -> torch.Tensor:
    """Return the mean entropy of the predictions, from logits ``(B, num_classes)``, in nats."""
    return torch.distributions.Categorical(logits=logits).entropy().mean()


class LessConfidentTrainer(TimmMixupTrainer):
    """Adds `penalty` times the negative entropy to the training loss, and records ``entropy`` in each evaluation."""

    def __init__(self, *args: Any, penalty: float = 0.1, **kwargs: Any) -> None:
        self.penalty = penalty
        super().__init__(*args, **kwargs)

    def calculate_train_batch_loss(self, batch: Any) -> dict[str, Any]:
        batch_output = super().calculate_train_batch_loss(batch)
        batch_output["loss"] = batch_output["loss"] - self.penalty * entropy(batch_output["model_outputs"])
        return batch_output

    def eval_epoch_start(self) -> None:
        super().eval_epoch_start()
        self.entropies: list[torch.Tensor] = []

    def calculate_eval_batch_loss(self, batch: Any) -> dict[str, Any]:
        batch_output = super().calculate_eval_batch_loss(batch)
        self.entropies.append(entropy(batch_output["model_outputs"]))
        return batch_output

    def eval_epoch_end(self) -> None:
        super().eval_epoch_end()
        self.run_history.update_metric("entropy", torch.stack(self.entropies).mean().item())


def main(penalty: float = 0.1, num_epochs: int = 5, model_name: str = "test_resnet") -> LessConfidentTrainer:
    """Train, and return the trainer."""
    data_dir = write_digits()
    torch.manual_seed(0)
    model, config = create_classifier(model_name, num_classes=10, image_size=32)
    train_set, val_set = create_datasets(
        32, config["mean"], config["std"], data_dir / "train", data_dir / "val", auto_augment=None, hflip=0.0
    )
    trainer = LessConfidentTrainer(
        model=model,
        optimizer=create_optimizer_v2(model, opt="adamw", lr=5e-3, weight_decay=0.01),
        loss_func=SoftTargetCrossEntropy(),
        eval_loss_fn=nn.CrossEntropyLoss(),
        mixup_args={"mixup_alpha": 0.2},
        num_class=10,
        scheduler_args={"sched": "cosine", "warmup_epochs": 1},
        ema_decay=0.9,
        penalty=penalty,
    )
    trainer.train(train_set, num_epochs, val_set, per_device_batch_size=64)
    return trainer


if __name__ == "__main__":
    main()
