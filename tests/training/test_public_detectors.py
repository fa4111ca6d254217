"""Public detectors written for pytorch-accelerated's `Trainer` (0.1.61), told again with small models.

Each is one body on two bases, and upstream's numbers stand beside ours. The repositories are named at the tests. Where
upstream is right, weights are bit-equal and histories are equal; where it is not, the test says what differs.
"""

from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch
from beside_upstream import IN_ORDER, assert_same, history, layers
from pytorch_accelerated.callbacks import (
    ModelEmaCallback,
    SaveBestModelCallback,
    TrainerCallback,
    get_default_callbacks,
)
from pytorch_accelerated.schedulers import CosineLrScheduler
from pytorch_accelerated.tracking import LossTracker
from pytorch_accelerated.trainer import Trainer
from tiny_runs import NO_WORKERS, fit, same_weights, tiny_data
from torch import nn
from torch.nn.functional import cross_entropy
from torchmetrics import MetricCollection
from torchmetrics.classification import BinaryConfusionMatrix, BinaryPrecision, BinaryPrecisionRecallCurve

from timm_accel import LoopTrainer

pytestmark = pytest.mark.usefixtures("capsys")


class TwoHeads(nn.Module):
    """A detector with two heads, of which only the first has a confidence."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.first, self.second = *layers(192, 6), *layers(6, 3), *layers(6, 3)
        self.norm = nn.BatchNorm1d(6)

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        features = self.norm(self.body(images.flatten(1)))
        return [self.first(features), self.second(features)]


class HeadsLoss(nn.Module):
    """A loss with modes: both heads and the images in training, the first head in evaluation."""

    def forward(self, heads: list[torch.Tensor], targets: torch.Tensor, images: Any = None) -> tuple[Any, Any]:
        rows, classes = targets[:, 0].long(), targets[:, 1].long()
        items = torch.stack([cross_entropy(head[rows], classes) for head in (heads if self.training else heads[:1])])
        if self.training:
            items = items * images.std()
        return items.sum(), items.detach()


def boxes(count: int, seed: int) -> list[tuple[Any, ...]]:
    """Images with 1, 2 or 3 objects each: image, classes, number of the image, original size."""
    data = tiny_data(count, seed=seed)
    return [(image, label.repeat(1 + int(label)), index, (9, 7)) for index, (image, label) in enumerate(data)]


def collate_boxes(samples: list[tuple[Any, ...]]) -> tuple[torch.Tensor, ...]:
    images, classes, numbers, sizes = zip(*samples, strict=True)
    rows = [torch.stack([torch.full_like(each, row), each], 1) for row, each in enumerate(classes)]
    return torch.stack(images), torch.cat(rows), torch.tensor(numbers), torch.tensor(sizes)


def detector(base: type[Trainer]) -> type[Trainer]:
    class Detector(base):  # type: ignore[misc, valid-type]
        def __init__(self, model: Any, loss_func: Any, optimizer: Any, callbacks: Any, threshold: float = 0.4) -> None:
            super().__init__(model=model, loss_func=loss_func, optimizer=optimizer, callbacks=callbacks)
            self.threshold = threshold

        def training_run_start(self) -> None:
            self.loss_func.to(self.device)

        def evaluation_run_start(self) -> None:
            self.loss_func.to(self.device)

        def train_epoch_start(self) -> None:
            super().train_epoch_start()
            self.loss_func.train()

        def eval_epoch_start(self) -> None:
            super().eval_epoch_start()
            self.loss_func.eval()

        def calculate_train_batch_loss(self, batch: Any) -> dict[str, Any]:
            heads = self.model(batch[0])
            loss, _ = self.loss_func(heads=heads, targets=batch[1], images=batch[0])
            return {"loss": loss, "model_outputs": heads, "batch_size": batch[0].size(0)}

        def calculate_eval_batch_loss(self, batch: Any) -> dict[str, Any]:
            images, targets, numbers, sizes = batch
            heads = self.model(images)
            loss, _ = self.loss_func(heads=heads, targets=targets)
            scores, classes = heads[0].softmax(1).max(1)
            found = torch.stack([numbers, classes, scores, sizes[:, 0]], 1)[scores > self.threshold]
            found = found if len(found) else torch.full((1, 4), -2.0)
            predictions = self.gather(found, padding_value=-2.0).cpu()
            return {"loss": loss, "model_outputs": heads, "predictions": predictions, "batch_size": len(images)}

    return Detector


class Found(TrainerCallback):
    """Records the share of found images, and, after an evaluation alone, a curve and a matrix."""

    def __init__(self) -> None:
        self.single = MetricCollection({"precision": BinaryPrecision()})
        self.series = MetricCollection({"curve": BinaryPrecisionRecallCurve(), "matrix": BinaryConfusionMatrix()})
        self.is_evaluation = False

    def on_training_run_start(self, trainer: Any, **kwargs: Any) -> None:
        self.single.to(trainer.device)

    def on_evaluation_run_start(self, trainer: Any, **kwargs: Any) -> None:
        self.is_evaluation = True

    def on_eval_step_end(self, trainer: Any, batch: Any, batch_output: Any, **kwargs: Any) -> None:
        labels = {int(number): int(number) % 3 for number in batch[2]}
        for number, label, score, _ in batch_output["predictions"].tolist():
            hit = torch.tensor([int(labels[int(number)] == int(label))])
            for metrics in (self.single, self.series):
                metrics.update(torch.tensor([score]), hit)

    def on_eval_epoch_end(self, trainer: Any, **kwargs: Any) -> None:
        computed = {**self.single.compute(), **(self.series.compute() if self.is_evaluation else {})}
        curve = dict(zip(("curve_precision", "curve_recall"), computed.pop("curve", ()), strict=False))
        for name, value in {**computed, **curve}.items():
            trainer.run_history.update_metric(name, value.cpu())
        self.single.reset()
        self.series.reset()


def train_detector(base: type[Trainer], folder: Path, images: int = 16) -> Any:
    model, found = TwoHeads(), Found()
    heads = [*model.first.parameters(), *model.second.parameters()]
    optimizer = torch.optim.SGD(heads, lr=0.05, momentum=0.9, nesterov=True)
    callbacks = [
        found,
        ModelEmaCallback(decay=0.8, save_path=folder / "ema.pt", callbacks=[found]),
        SaveBestModelCallback(folder / "best.pt", watch_metric="precision", greater_is_better=True),
        *get_default_callbacks(progress_bar=True),
    ]
    trainer = detector(base)(model=model, loss_func=HeadsLoss(), optimizer=optimizer, callbacks=callbacks)
    optimizer.add_param_group({"params": list(model.body.parameters()), "weight_decay": 0.01})
    return fit(
        trainer,
        boxes(images, 2),
        boxes(10, 3),
        num_epochs=4,
        collate_fn=collate_boxes,
        train_dataloader_kwargs=IN_ORDER,
        create_scheduler_fn=CosineLrScheduler.create_scheduler_fn(num_warmup_epochs=1, num_cooldown_epochs=1),
        gradient_accumulation_steps=2,
    )


def test_a_detector_with_a_moded_loss_an_ema_callback_and_accumulation(tmp_path: Path) -> None:
    """github.com/Chris-hughes10/Yolov7-training: ``yolov7/trainer.py``, ``examples/train_cars.py``.

    Upstream records the training loss divided by the accumulation steps, and divides that of a single last micro-batch
    too: with 20 images it agrees when that loss is doubled.
    """

    class WholeTail(Trainer):
        def backward_step(self, loss: torch.Tensor) -> None:
            self.step = getattr(self, "step", 0) % 5 + 1
            super().backward_step(2 * loss if self.step == 5 else loss)

    for base, images in ((Trainer, 16), (WholeTail, 20)):
        theirs, ours = (train_detector(kind, tmp_path, images) for kind in (base, LoopTrainer))
        assert_same(ours, theirs, train_loss_factor=2)
    assert not same_weights(ours.get_model(), train_detector(Trainer, tmp_path, 20).get_model())
    assert {"ema_model_precision", "ema_model_eval_loss_epoch"} <= history(ours).keys()


def test_a_detector_is_evaluated_without_an_optimizer(tmp_path: Path) -> None:
    """github.com/JakubSzukala/jszukala-masters-degree-proj: ``test.py``, ``model/callbacks.py``.

    ``examples/evaluate_coco.py`` of the repository above makes its trainer so, too.
    """
    saved = train_detector(Trainer, tmp_path)
    saved.save_checkpoint(tmp_path / "weights.pt", save_scheduler=False)

    def evaluate(base: type[Trainer]) -> Any:
        callbacks = [Found(), *get_default_callbacks(progress_bar=True)]
        trainer = detector(base)(TwoHeads(), HeadsLoss(), None, callbacks, threshold=0.0)
        trainer.load_checkpoint(tmp_path / "weights.pt", load_optimizer=False)
        trainer.evaluate(boxes(10, 3), per_device_batch_size=4, dataloader_kwargs=NO_WORKERS, collate_fn=collate_boxes)
        return trainer

    theirs, ours = evaluate(Trainer), evaluate(LoopTrainer)
    assert_same(ours, theirs)
    assert ours.run_history.get_latest_metric("matrix").shape == (2, 2)
    assert same_weights(ours.get_model(), saved.get_model())


class RegionDetector(nn.Module):
    """Returns its losses in training mode, from targets of any number of boxes, and its boxes in evaluation mode."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.norm = *layers(192, 6), nn.BatchNorm1d(6)
        self.classes, self.centers = *layers(6, 3), *layers(6, 1)

    def forward(self, images: torch.Tensor, targets: Any = None) -> Any:
        features = self.norm(self.body(images.flatten(1)))
        logits, centers = self.classes(features), self.centers(features)
        if not self.training:
            scores, labels = logits.softmax(1).max(1)
            rows = zip(centers, scores, labels, strict=True)
            return [{"boxes": c[None], "scores": s[None], "labels": label[None]} for c, s, label in rows]
        counts = torch.tensor([len(target["labels"]) for target in targets])
        labels, wanted = (torch.cat([target[name] for target in targets]) for name in ("labels", "boxes"))
        return {
            "loss_class": cross_entropy(logits.repeat_interleave(counts, 0), labels),
            "loss_box": (centers.repeat_interleave(counts, 0).flatten() - wanted).square().mean(),
        }


def region_trainer(base: type[Trainer]) -> type[Trainer]:
    class RegionTrainer(base):  # type: ignore[misc, valid-type]
        def __init__(self, class_weight: float = 1.0, box_weight: float = 1.0, **kwargs: Any) -> None:
            super().__init__(**kwargs, loss_func=None)
            self.loss_weights = {"loss_class": class_weight, "loss_box": box_weight}
            self.trackers: defaultdict[str, LossTracker] = defaultdict(LossTracker)
            self.prefix = ""

        def _begin(self, prefix: str) -> None:
            self.prefix, self.predictions = prefix, []
            for tracker in self.trackers.values():
                tracker.reset()

        def _end(self) -> None:
            for name, tracker in self.trackers.items():
                self.run_history.update_metric(f"{self.prefix}{name}", tracker.average)

        def _loss(self, images: torch.Tensor, targets: Any) -> torch.Tensor:
            losses = self.model(images, targets)
            for name in self.loss_weights:
                self.trackers[name].update(self.gather(losses[name]).detach().mean().item(), len(images))
            return sum(weight * losses[name] for name, weight in self.loss_weights.items())

        def train_epoch_start(self) -> None:
            super().train_epoch_start()
            self._begin("train_epoch_")

        def train_epoch_end(self) -> None:
            self._end()

        def evaluation_run_start(self) -> None:
            self._begin("evaluation_epoch_")

        def eval_epoch_start(self) -> None:
            super().eval_epoch_start()
            self._begin("eval_epoch_" if self.prefix != "evaluation_epoch_" else self.prefix)

        def eval_epoch_end(self) -> None:
            self._end()

        def calculate_train_batch_loss(self, batch: Any) -> dict[str, Any]:
            images, targets, _ = batch
            return {"loss": self._loss(images, targets), "model_outputs": None, "batch_size": images.size(0)}

        def calculate_eval_batch_loss(self, batch: Any) -> dict[str, Any]:
            images, targets, numbers = batch
            self.model.train()
            loss = self._loss(images, targets)
            self.model.eval()
            found = [torch.stack([*each["boxes"][:, 0], *each["scores"], *each["labels"], number])
                     for each, number in zip(self.model(images), numbers, strict=True)]  # fmt: skip
            self.predictions.append(self.gather(torch.stack(found), padding_value=-1).detach().cpu())
            return {"loss": loss, "model_outputs": self.predictions[-1], "batch_size": images.size(0)}

    return RegionTrainer


def collate_targets(samples: list[tuple[Any, ...]]) -> tuple[torch.Tensor, list[dict[str, torch.Tensor]], torch.Tensor]:
    targets = [{"labels": classes, "boxes": classes / 3} for _, classes, *_ in samples]
    return torch.stack([each[0] for each in samples]), targets, torch.tensor([each[2] for each in samples])


def test_a_detector_whose_model_returns_losses_or_boxes_by_its_mode() -> None:
    """github.com/Chris-hughes10/pytorch-accelerated: ``examples/vision/faster_rcnn/``. There is no loss function."""

    def train(base: type[Trainer]) -> tuple[Any, dict[str, list[float]]]:
        model = RegionDetector()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=0.01)
        callbacks = get_default_callbacks()
        trainer = region_trainer(base)(model=model, optimizer=optimizer, callbacks=callbacks, box_weight=0.5)
        fit(trainer, boxes(15, 2), boxes(7, 3), collate_fn=collate_targets, train_dataloader_kwargs=IN_ORDER)
        trained = history(trainer)
        trainer.evaluate(boxes(7, 3), collate_fn=collate_targets, dataloader_kwargs=NO_WORKERS)
        return trainer, trained

    (theirs, their_epochs), (ours, our_epochs) = train(Trainer), train(LoopTrainer)
    assert_same(ours, theirs)
    assert our_epochs.keys() == their_epochs.keys()
    for name, values in their_epochs.items():
        assert our_epochs[name] == pytest.approx(values, rel=1e-6)
    assert len(our_epochs["eval_epoch_loss_box"]) == 2
    assert torch.equal(torch.cat(ours.predictions), torch.cat(theirs.predictions))
