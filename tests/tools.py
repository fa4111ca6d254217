"""What many tests build: a small model, data in memory, and a trainer that prints nothing."""

from typing import Any

import torch
from torch import nn
from torch.utils.data import TensorDataset

from timm_accel.training import LoopTrainer

NO_WORKERS = {"num_workers": 0}


def tiny_model(num_classes: int = 3, batch_norm: bool = True) -> nn.Sequential:
    """A convolution, BatchNorm, dropout and a head, for images of ``(3, 8, 8)``."""
    torch.manual_seed(1)
    norm = nn.BatchNorm2d(4) if batch_norm else nn.Identity()
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), norm, nn.ReLU(), nn.Flatten(), nn.Dropout(0.1), nn.Linear(144, num_classes)
    )


def tiny_data(count: int = 16, num_classes: int = 3, seed: int = 2) -> TensorDataset:
    """Images of ``(3, 8, 8)`` whose brightness tells their class."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % num_classes
    images = torch.randn(count, 3, 8, 8, generator=generator) + labels[:, None, None, None]
    return TensorDataset(images, labels)


def make_trainer(kind: type[LoopTrainer] = LoopTrainer, model: nn.Module | None = None, **options: Any) -> Any:
    """A trainer of `kind` with SGD, cross-entropy and no callbacks unless given."""
    model = tiny_model() if model is None else model
    options.setdefault("optimizer", torch.optim.SGD(model.parameters(), lr=0.1))
    options.setdefault("loss_func", nn.CrossEntropyLoss())
    options.setdefault("callbacks", ())
    return kind(model=model, **options)


def fit(trainer: Any, train_dataset: Any = None, eval_dataset: Any = None, **options: Any) -> Any:
    """Train for 2 epochs with batch size 4 and no workers unless told otherwise, and return the trainer."""
    settings = {
        "train_dataset": tiny_data() if train_dataset is None else train_dataset,
        "eval_dataset": eval_dataset,
        "num_epochs": 2,
        "per_device_batch_size": 4,
        "train_dataloader_kwargs": NO_WORKERS,
        "eval_dataloader_kwargs": NO_WORKERS,
    }
    trainer.train(**(settings | options))
    return trainer


def difference(first: Any, second: Any, where: str = "it") -> str | None:
    """Where two nested values differ, bit by bit; None where they do not."""
    if isinstance(first, dict) and isinstance(second, dict):
        if first.keys() != second.keys():
            return f"{where}: {sorted(map(str, first.keys() ^ second.keys()))} in one alone"
        found = (difference(first[key], second[key], f"{where}[{key!r}]") for key in first)
    elif isinstance(first, list | tuple) and isinstance(second, list | tuple):
        if len(first) != len(second):
            return f"{where}: {len(first)} and {len(second)} items"
        found = (difference(a, b, f"{where}[{i}]") for i, (a, b) in enumerate(zip(first, second, strict=True)))
    elif isinstance(first, torch.Tensor) and isinstance(second, torch.Tensor):
        return None if torch.equal(first, second) and first.dtype == second.dtype else f"{where}: tensors differ"
    else:
        return None if first == second or first is second else f"{where}: {first!r} and {second!r}"
    return next((text for text in found if text), None)


def same_weights(first: nn.Module, second: nn.Module) -> bool:
    """Whether every tensor of the two state dicts is bit-equal."""
    a, b = first.state_dict(), second.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
