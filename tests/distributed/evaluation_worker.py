"""What each rank evaluates for `test_evaluation_on_processes.py`: losses and metrics of 30 images, by batch size."""

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
from accelerate import Accelerator
from tiny_runs import NO_WORKERS, make_trainer, tiny_data, tiny_model
from torch import nn
from torch.utils.data import TensorDataset

from timm_accel import TimmTrainer

SIZES = (1, 4, 30)
NUM_CLASSES = 8
WEIGHTS = torch.tensor([10.0, 1.0, 1.0, 0.5, 1.0, 1.0, 1.0, 1.0])


def model() -> nn.Module:
    return tiny_model(NUM_CLASSES)


def data() -> TensorDataset:
    """30 images of classes 0, 1 and 3 in blocks; the last 5 and another are ignored, so that one rank may have none."""
    labels = torch.tensor([0] * 8 + [1] * 9 + [3] * 8 + [-100] * 5)
    labels[3] = -100
    return TensorDataset(tiny_data(30).tensors[0], labels)


LOSSES = {
    "plain": nn.CrossEntropyLoss(),
    "weighted": nn.CrossEntropyLoss(WEIGHTS),
    "smoothed": nn.CrossEntropyLoss(WEIGHTS, label_smoothing=0.1),
    "sum": nn.CrossEntropyLoss(WEIGHTS, reduction="sum"),
}


def evaluate(loss: nn.Module, batch_size: int) -> dict[str, float]:
    trainer = make_trainer(TimmTrainer, model(), loss_func=loss, num_classes=NUM_CLASSES)
    trainer.evaluate(data(), per_device_batch_size=batch_size, dataloader_kwargs=NO_WORKERS)
    history = trainer.run_history
    return {name: history.get_latest_metric(name) for name in history.get_metric_names()}


def ignored_only() -> str:
    """Return the error of an evaluation of ignored labels alone, which each rank raises."""
    trainer = make_trainer(TimmTrainer, model(), num_classes=NUM_CLASSES)
    images = data().tensors[0]
    try:
        trainer.evaluate(TensorDataset(images, torch.full((30,), -100)), dataloader_kwargs=NO_WORKERS)
    except ValueError as error:
        return str(error)
    return ""


def results() -> dict[str, Any]:
    """Everything, on however many processes there are."""
    found: dict[str, Any] = {f"{name} {size}": evaluate(loss, size) for name, loss in LOSSES.items() for size in SIZES}
    return found | {"ignored": ignored_only()}


def main() -> None:
    accelerator = Accelerator()
    torch.save(results(), Path(sys.argv[1], f"{accelerator.num_processes}_{accelerator.process_index}.pt"))
    accelerator.end_training()
