"""Time the evaluation of a model and its EMA weights beside two bare passes of timm's parts.

    python -m benchmarks evaluation

The bare passes evaluate one after the other, under ``torch.no_grad``, with cross-entropy and timm's top-1 and top-5
accuracy; ours is what `LoopTrainer` does at the end of an epoch, without the start of a run. With images in memory the
model is the limit, with JPEG files and a small model the data. Then the share of the metrics, the counts of a batch,
and the time by batch size.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, create_dataset, create_loader
from timm.utils import AverageMeter, accuracy
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.pairs import in_turn, spread
from benchmarks.photos import write_photos
from benchmarks.quiet import quiet
from benchmarks.tables import Table
from benchmarks.update_cost import Operators, PythonCalls
from timm_accel import TimmMixupTrainer, create_datasets
from timm_accel.callbacks import DEFAULT_CALLBACKS, Callback

NUM_CLASSES = 1000


class Clock(Callback):
    """Measures each evaluation from its first event to its last."""

    def on_eval_epoch_start(self, trainer: Any, **kwargs: Any) -> None:
        self.began = time.perf_counter()

    def on_eval_epoch_end(self, trainer: Any, **kwargs: Any) -> None:
        self.seconds = time.perf_counter() - self.began


class Metered(TimmMixupTrainer):
    """Measures the processor time of the metrics, and of whole evaluations."""

    def start_evaluation_metrics(self) -> None:
        self.began, self.of_metrics = time.process_time(), 0.0
        self._measured(super().start_evaluation_metrics)

    def update_metrics(self, batch: Any, batch_output: dict[str, Any]) -> None:
        self._measured(super().update_metrics, batch, batch_output)

    def record_evaluation_metrics(self) -> None:
        self._measured(super().record_evaluation_metrics)
        self.share = self.of_metrics / (time.process_time() - self.began)

    def _measured(self, work: Callable[..., None], *args: Any) -> None:
        began = time.process_time()
        work(*args)
        self.of_metrics += time.process_time() - began


def in_memory(count: int, px: int) -> TensorDataset:
    """Return random images with labels."""
    return TensorDataset(torch.randn(count, 3, px, px), torch.arange(count) % NUM_CLASSES)


def trained(
    name: str, px: int, num_classes: int = NUM_CLASSES, kind: type[TimmMixupTrainer] = TimmMixupTrainer
) -> tuple[Any, Clock]:
    """Return a trainer whose model and EMA weights were trained for one update, and its clock."""
    torch.manual_seed(0)
    model, clock = timm.create_model(name, num_classes=num_classes), Clock()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    options = {"num_classes": num_classes, "ema_decay": 0.1, "callbacks": [*DEFAULT_CALLBACKS, clock]}
    trainer = kind(model, nn.CrossEntropyLoss(), optimizer, **options)
    with quiet():
        trainer.train(in_memory(2, px), 1, per_device_batch_size=4, train_dataloader_kwargs={"num_workers": 0})
    return trainer, clock


def evaluate(trainer: Any, dataset: Any, batch_size: int, num_workers: int) -> list[float]:
    """Evaluate with our trainer, and return the loss and accuracy of both sets of weights."""
    loading = {"num_workers": num_workers, "pin_memory": False}
    with quiet():
        trainer.evaluate(dataset, per_device_batch_size=batch_size, dataloader_kwargs=loading)
    names = [f"{prefix}{name}" for prefix in ("", "ema_model_") for name in ("evaluation_loss", "accuracy")]
    return [trainer.run_history.get_latest_metric(name) for name in names]


def evaluate_bare(
    trainer: Any, loader: Iterable[Any], without_gradients: Callable[[], Any] = torch.no_grad
) -> list[float]:
    """Evaluate model and EMA model one after the other, and return the same numbers."""
    loss_fn, found = nn.CrossEntropyLoss(), []
    for model in (trainer.model, trainer.ema_model.module):
        model.eval()
        losses, top1, top5 = AverageMeter(), AverageMeter(), AverageMeter()
        with without_gradients():
            for images, labels in loader:
                outputs = model(images)
                first, fifth = accuracy(outputs, labels, topk=(1, 5))
                losses.update(loss_fn(outputs, labels).item(), len(labels))
                top1.update(first.item(), len(labels))
                top5.update(fifth.item(), len(labels))
        found += [losses.avg, top1.avg / 100]
    return found


def against_bare(
    name: str, trainer: Any, clock: Clock, data: Any, bare: Any, workers: int, options: argparse.Namespace
) -> Table:
    """Time both in turn."""

    def ours() -> float:
        evaluate(trainer, data, options.batch_size, workers)
        return clock.seconds

    ways = {
        "two bare passes": lambda: evaluate_bare(trainer, bare),
        "two bare passes, inference_mode": lambda: evaluate_bare(trainer, bare, torch.inference_mode),
        "timm_accel": ours,
    }
    return in_turn(ways, options.rounds, count=len(data)).table(name)


def compute_bound(options: argparse.Namespace) -> Table:
    """Images in memory."""
    trainer, clock = trained(options.model, options.px)
    data = in_memory(options.count, options.px)
    bare = DataLoader(data, options.batch_size)
    both = [evaluate(trainer, data, options.batch_size, 0), evaluate_bare(trainer, bare)]
    assert np.allclose(*both, rtol=1e-4), both
    return against_bare("images in memory", trainer, clock, data, bare, 0, options)


def data_bound(options: argparse.Namespace) -> Table:
    """JPEG files and a small model."""
    trainer, clock = trained("test_resnet", 64, num_classes=2)
    with tempfile.TemporaryDirectory() as folder:
        write_photos(Path(folder) / "val", options.count, (480, 640, 3))
        write_photos(Path(folder) / "train", 2, (480, 640, 3))
        _, data = create_datasets(64, IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, data=folder)
        bare = create_loader(
            create_dataset("", str(Path(folder) / "val")),
            (3, 64, 64),
            options.batch_size,
            num_workers=options.num_workers,
            device=torch.device("cpu"),
            persistent_workers=False,
        )
        return against_bare("JPEG files", trainer, clock, data, bare, options.num_workers, options)


def metrics_share(options: argparse.Namespace) -> Table:
    """Return the processor time of the metrics over that of the evaluation."""
    trainer, _ = trained(options.model, options.px, kind=Metered)
    data, shares = in_memory(options.count, options.px), []
    for _ in range(options.rounds):
        evaluate(trainer, data, options.batch_size, 0)
        shares.append(100 * trainer.share)
    names = ", ".join(str(name) for name in trainer.metrics)
    return Table("the metrics", ["metrics", "classes", "% of the evaluation"], [[names, NUM_CLASSES, spread(shares)]])


def counts(options: argparse.Namespace) -> Table:
    """Return Python calls and operators of a batch, which no other program disturbs."""
    trainer, _ = trained("test_resnet", 32)
    ways: dict[str, Callable[[Any], Any]] = {
        "two bare passes": lambda data: evaluate_bare(trainer, DataLoader(data, 4)),
        "timm_accel": lambda data: evaluate(trainer, data, 4, 0),
    }
    rows: list[list[str | int]] = []
    for way, run in ways.items():
        found = []
        for batches in (2, 2, 6):  # the first fills caches
            with PythonCalls() as calls:
                run(in_memory(4 * batches, 32))
            with Operators() as operators:
                run(in_memory(4 * batches, 32))
            found.append(calls.counts + operators.counts)
        kinds = ("Python calls", "operators", "host reads")
        rows.append([way, *(f"{(found[-1][kind] - found[-2][kind]) / 4:.1f}" for kind in kinds)])
    return Table("counts of a batch", ["evaluation", "Python calls", "operators", "host reads"], rows)


def batch_sizes(options: argparse.Namespace) -> Table:
    """Time our evaluation by batch size."""
    trainer, clock = trained(options.model, options.px)
    data = in_memory(2 * options.count, options.px)

    def at(batch_size: int) -> Callable[[], float]:
        def timed() -> float:
            evaluate(trainer, data, batch_size, 0)
            return clock.seconds

        return timed

    return in_turn({str(size): at(size) for size in (32, 64, 128, 256)}, options.rounds, len(data)).table("batch sizes")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    parser.add_argument("--model", default="resnet18", help="the model where images are in memory")
    parser.add_argument("--px", type=int, default=64, help="pixels of these images")
    parser.add_argument("--count", type=int, default=128, help="images")
    parser.add_argument("--batch-size", type=int, default=32, help="images at a time")
    parser.add_argument("--num-workers", type=int, default=1, help="loader processes of the files")
    parser.add_argument("--rounds", type=int, default=7, help="rounds of each pair")


def main(arguments: argparse.Namespace) -> list[Table]:
    """Return the tables."""
    torch.set_num_threads(1)
    return [part(arguments) for part in (compute_bound, data_bound, metrics_share, counts, batch_sizes)]
