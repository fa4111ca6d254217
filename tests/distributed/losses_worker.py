"""What each process of a group does for `test_losses_on_two_processes.py`; alone, the values that two agree with."""

import sys
import warnings
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import timm
import torch
from accelerate import Accelerator, PartialState
from tiny_runs import NO_WORKERS, fit, make_trainer
from torch import nn
from torch.utils.data import TensorDataset

from timm_accel import TimmTrainer
from timm_accel.losses import create_loss
from timm_accel.lr_finder import find_lr
from timm_accel.mixins import ClassificationMetricsMixin, DistillationMixin, ModelEmaMixin

KINDS = ("logit", "token", "feature")


def share(count: int) -> int:
    """This process's part of a global batch."""
    return count // PartialState().num_processes


def multi_label_data(count: int, seed: int = 0) -> TensorDataset:
    generator = torch.Generator().manual_seed(seed)
    targets = (torch.rand(count, 3, generator=generator) > 0.4).float()
    return TensorDataset(torch.randn(count, 3, 8, 8, generator=generator), targets)


def learn_multi_label() -> dict[str, Any]:
    """Train on multi-label targets, and evaluate 7 images and 1 image, so that one of two ranks is empty."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 3))
    kind = type("MultiLabel", (ClassificationMetricsMixin, ModelEmaMixin), {})
    loss, _ = create_loss("bce", pos_weights=[1, 2, 1.5])
    trainer = make_trainer(kind, model, loss_func=loss, num_classes=3, multi_label=True, ema_decay=0.3)
    histories = {}
    for count in (7, 1):
        fit(trainer, multi_label_data(16), multi_label_data(count, 5), num_epochs=1, per_device_batch_size=share(4))
        history = trainer.run_history
        histories[str(count)] = {name: list(history.get_metric_values(name)) for name in history.get_metric_names()}
    return histories


def distil(kind: str) -> dict[str, torch.Tensor]:
    """Train a student without BatchNorm for an epoch; return its weights and the projection's, as each process has."""
    torch.manual_seed(2 + PartialState().process_index)  # ranks start unequal: DDP gives all the weights of rank 0
    small = dict(num_classes=3, img_size=32, depth=1, num_heads=2, drop_path_rate=0.0)
    teacher = timm.create_model("vit_tiny_patch16_224", **small, embed_dim=32)
    for number, parameter in enumerate(teacher.parameters()):
        nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(number))
    name = "deit_tiny_distilled_patch16_224" if kind == "token" else "vit_tiny_patch16_224"
    student = timm.create_model(name, **small, embed_dim=24)
    trainer = make_trainer(
        DistillationMixin,
        student,
        optimizer=torch.optim.SGD(student.parameters(), lr=0.05),
        distill_teacher=teacher,
        distill_kind=kind,
    )
    generator = torch.Generator().manual_seed(3)
    data = TensorDataset(torch.randn(16, 3, 32, 32, generator=generator), torch.arange(16) % 3)
    fit(trainer, data, num_epochs=1, per_device_batch_size=share(4))
    parts = {"student": trainer.unwrapped_model} | trainer.components()
    return {f"{part}.{name}": value for part in parts for name, value in parts[part].state_dict().items()}


def range_test() -> dict[str, Any]:
    """Run the LR range test; return the losses, and the largest change to the model, which must be 0."""
    torch.manual_seed(4)
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 3))
    trainer = make_trainer(TimmTrainer, model, optimizer=torch.optim.SGD(model.parameters(), lr=0.01), num_classes=3)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    images = torch.randn(32, 3, 8, 8, generator=torch.Generator().manual_seed(5))
    data = TensorDataset(images, torch.arange(32) % 3)
    options = {"per_device_batch_size": share(8), "train_dataloader_kwargs": NO_WORKERS}
    found = find_lr(trainer, data, min_lr=1e-4, max_lr=1e3, num_updates=20, **options)
    after = [parameter.detach() for parameter in trainer.unwrapped_model.parameters()]
    changes = [(new - old).abs().max().item() for old, new in zip(before, after, strict=True)]
    return {"losses": found.losses.tolist(), "rates": found.learning_rates.tolist(), "change": max(changes)}


def results() -> dict[str, Any]:
    """Everything, on however many processes there are."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="ema_decay=")
        multi_label = learn_multi_label()
    return {"multi_label": multi_label, "range_test": range_test()} | {kind: distil(kind) for kind in KINDS}


def main() -> None:
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated")
    accelerator = Accelerator()  # PartialState alone ignores ACCELERATE_USE_CPU (1.15)
    torch.save(results(), Path(sys.argv[1], f"{accelerator.process_index}.pt"))
    accelerator.end_training()
