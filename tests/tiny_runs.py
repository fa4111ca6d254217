"""What many tests build: a small model, data in memory, and a trainer that prints nothing."""

import importlib.util
from copy import deepcopy
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from timm_accel.commands.parsing import options_of_command, split_words
from timm_accel.commands.parsing.signatures import typed_arguments
from timm_accel.commands.train import train
from timm_accel.recipes import Recipe
from timm_accel.states.late_reads import Copying
from timm_accel.training import LoopTrainer

NO_WORKERS = {"num_workers": 0}
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
ON_EACH_DEVICE = ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, needs_gpu])]


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


def differences(first: Any, second: Any, where: str = "") -> list[str]:
    """Return where two values differ, down to the last bit and the sign of zero."""
    if type(first) is not type(second):
        return [where]
    if isinstance(first, dict):
        shared = [key for key in first if key in second]
        missing = [f"{where}/{key}" for key in first.keys() ^ second.keys()]
        return missing + [place for key in shared for place in differences(first[key], second[key], f"{where}/{key}")]
    if isinstance(first, list | tuple):
        return differences(dict(enumerate(first)), dict(enumerate(second)), where)
    return [] if _bits(first) == _bits(second) else [where]


def _bits(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.dtype, value.shape, value.cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
    return value.hex() if isinstance(value, float) else value


def same_weights(first: nn.Module, second: nn.Module) -> bool:
    """Whether every tensor of the two state dicts is bit-equal."""
    a, b = first.state_dict(), second.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@torch.no_grad()
def exact_and_rounding(model: nn.Module, images: torch.Tensor) -> tuple[torch.Tensor, float]:
    """What the float64 copy of a model gives in evaluation mode, and how far the float32 model is from it at most."""
    copy = deepcopy(model).eval()
    rounded = copy(images)
    exact = copy.double()(images.double())
    return exact, float((rounded - exact).abs().max())


def as_on_a_gpu(value: torch.Tensor) -> Copying:
    """Begin a copy that holds nothing until somebody waits for it."""
    copy, taken = torch.full_like(value, 77), value.detach().clone()
    return copy, lambda: copy.copy_(taken)


class Seen(LoopTrainer):
    """Remembers every training image."""

    def training_run_start(self) -> None:
        self.images: list[torch.Tensor] = []
        super().training_run_start()

    def calculate_train_batch_loss(self, batch: Any) -> dict[str, Any]:
        self.images.append(batch[0])
        return super().calculate_train_batch_loss(batch)


def load_example(path: Path) -> ModuleType:
    """Import an example by its path, without running it."""
    spec = importlib.util.spec_from_file_location(f"example_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def parse_recipe(words: list[str]) -> Recipe:
    """The recipe of a command line, from the words after ``timm-accel train``."""
    return typed_arguments(train, split_words(words, options_of_command("train").options))["recipe"]
