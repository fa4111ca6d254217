"""Multi-label training, from a manifest to the best weights."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from refusal import refused
from timm.data import Mixup
from tiny_runs import fit, make_trainer, tiny_data, tiny_model
from torch import nn
from torch.utils.data import TensorDataset, default_collate
from torchmetrics.classification import (
    MultilabelAveragePrecision,
    MultilabelExactMatch,
    MultilabelF1Score,
)

from timm_accel import TimmMixupTrainer, create_datasets
from timm_accel.callbacks import SaveBestCallback
from timm_accel.losses import create_loss
from timm_accel.mixins import ClassificationMetricsMixin, MixupMixin
from timm_accel.models import open_classifier

NAMES = ("blue", "green", "red")


def write_manifest(root: Path, count: int = 32) -> Path:
    """Write images with a bright square for each color, each in its corner, and the manifest."""
    random = np.random.default_rng(0)
    root.mkdir()
    rows = [("path", "label", "split")]
    for number in range(count):
        present = [name for bit, name in enumerate(NAMES) if (number % 7 + 1) >> bit & 1]
        pixels = random.integers(0, 60, (16, 16, 3))
        for name in present:
            pixels[..., 2 - NAMES.index(name)] += 180
        Image.fromarray(pixels.astype("uint8")).save(root / f"{number}.png")
        rows.append((f"{number}.png", ";".join(present), "val" if number % 4 == 3 else "train"))
    with open(root / "set.csv", "w", newline="") as file:
        csv.writer(file).writerows(rows)
    return root / "set.csv"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    manifest = write_manifest(tmp_path_factory.mktemp("several") / "data")
    return create_datasets(
        16, (0.5,) * 3, (0.5,) * 3, data=manifest, auto_augment=None, scale=(1.0, 1.0), ratio=(1.0, 1.0)
    )


def multi_label_data(count: int = 12, seed: int = 3) -> TensorDataset:
    generator = torch.Generator().manual_seed(seed)
    targets = (torch.rand(count, 3, generator=generator) > 0.5).float()
    return TensorDataset(torch.randn(count, 3, 8, 8, generator=generator), targets)


def test_a_multi_label_manifest_is_learned_with_mixup_and_the_best_are_saved(
    data: tuple[Any, Any], tmp_path: Path
) -> None:
    train_dataset, eval_dataset = data
    torch.manual_seed(1)
    model = timm.create_model("test_resnet", num_classes=3)
    loss, eval_loss = create_loss(dataset=train_dataset, soft_targets=True, pos_weights="auto")
    trainer = make_trainer(
        TimmMixupTrainer,
        model,
        optimizer=torch.optim.AdamW(model.parameters(), lr=5e-3),
        loss_func=loss,
        eval_loss_fn=eval_loss,
        num_class=3,
        mixup_args={"mixup_alpha": 0.2, "cutmix_alpha": 0.0, "prob": 0.5, "label_smoothing": 0.05},
        ema_decay=0.6,
        callbacks=[SaveBestCallback("map")],
        run_dir=tmp_path / "run",
    )
    fit(trainer, *data, num_epochs=8, per_device_batch_size=8)
    history = {name: list(trainer.run_history.get_metric_values(name)) for name in ("map", "eval_loss_epoch")}
    assert history["eval_loss_epoch"][-1] < 0.7 * history["eval_loss_epoch"][0]
    assert history["map"][-1] > 0.95
    assert {"ema_model_map", "ema_model_f1_macro", "exact_match"} <= trainer.run_history.get_metric_names()
    assert "accuracy" not in trainer.run_history.get_metric_names()
    for folder, prefix in (("best", ""), ("best_ema", "ema_model_")):
        kept, config = open_classifier(tmp_path / "run" / folder)
        assert config["label_names"] == list(NAMES)
        images, targets = default_collate([eval_dataset[number] for number in range(len(eval_dataset))])
        with torch.no_grad():
            logits = kept(images)
        value = MultilabelAveragePrecision(3)(logits.sigmoid(), targets.long()).item()
        assert config["best"]["metric"] == f"{prefix}map"
        assert config["best"]["value"] == pytest.approx(value, abs=1e-6)


def test_metrics_are_torchmetrics_of_all_images_at_once() -> None:
    evaluated = multi_label_data(13)
    model = tiny_model()
    trainer = make_trainer(
        ClassificationMetricsMixin, model, loss_func=create_loss("bce")[0], num_classes=3, multi_label=True
    )
    fit(trainer, multi_label_data(), evaluated)
    images, targets = evaluated.tensors
    with torch.no_grad():
        probabilities = model.eval()(images).sigmoid()
    for name, kind in (
        ("map", MultilabelAveragePrecision),
        ("f1_macro", MultilabelF1Score),
        ("exact_match", MultilabelExactMatch),
    ):
        expected = kind(3)(probabilities, targets.long()).item()
        assert trainer.run_history.get_latest_metric(name) == pytest.approx(expected, abs=1e-6)


def test_logits_between_0_and_1_are_not_taken_for_probabilities() -> None:
    """torchmetrics would find a logit of 0.3 below 0.5, though its probability is 0.57."""

    class Constant(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.logits = nn.Parameter(torch.full((3,), 0.3))

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.logits.expand(len(images), 3)

    dataset = TensorDataset(torch.zeros(4, 3, 8, 8), torch.ones(4, 3))
    trainer = make_trainer(
        ClassificationMetricsMixin, Constant(), loss_func=create_loss("bce")[0], num_classes=3, multi_label=True
    )
    fit(trainer, dataset, dataset, num_epochs=1)
    assert trainer.run_history.get_latest_metric("exact_match") == 1


def test_the_dataset_tells_that_it_is_multi_label(data: tuple[Any, Any]) -> None:
    model = timm.create_model("test_resnet", num_classes=3)
    trainer = make_trainer(ClassificationMetricsMixin, model, loss_func=create_loss("bce")[0], num_classes=3)
    assert set(trainer.evaluation_metrics()) == {"eval_loss_epoch", "accuracy", "f1_macro"}
    fit(trainer, *data, num_epochs=1)
    assert set(trainer.evaluation_metrics()) == {"eval_loss_epoch", "map", "f1_macro", "exact_match"}


@pytest.mark.parametrize("mode", ["batch", "pair", "elem"])
def test_mixup_mixes_multi_label_targets_as_timm_does(mode: str) -> None:
    args = {"num_classes": 3, "mixup_alpha": 0.4, "cutmix_alpha": 1.0, "mode": mode, "label_smoothing": 0.2}
    images, targets = multi_label_data(4).tensors
    seen = []

    class Looking(MixupMixin):
        def calculate_train_batch_loss(self, batch: Any) -> dict[str, Any]:
            np.random.seed(5)
            output = super().calculate_train_batch_loss(batch)
            assert torch.equal(output["targets"], batch[1])
            return output

    def loss(logits: torch.Tensor, mixed: torch.Tensor) -> torch.Tensor:
        seen.append(mixed)
        return nn.functional.binary_cross_entropy_with_logits(logits, mixed)

    trainer = make_trainer(Looking, loss_func=loss, mixup_args=args)
    unshuffled = {"num_workers": 0, "shuffle": False}
    fit(trainer, TensorDataset(images, targets), num_epochs=1, train_dataloader_kwargs=unshuffled)
    np.random.seed(5)
    expected = Mixup(**args, multi_label=True)(images.clone(), targets)[1]
    assert torch.equal(seen[0], expected)
    assert not torch.equal(expected, targets)


@pytest.mark.parametrize("argument", ["loss_func", "eval_loss_fn"])
def test_cross_entropy_is_refused_before_training(data: tuple[Any, Any], argument: str) -> None:
    model = timm.create_model("test_resnet", num_classes=3)
    losses = dict(loss_func=create_loss("bce")[0], eval_loss_fn=create_loss("bce")[0])
    losses[argument] = nn.CrossEntropyLoss()
    trainer = make_trainer(TimmMixupTrainer, model, num_class=3, **losses)
    with refused(ValueError, argument, "each class by itself", "CrossEntropyLoss"):
        fit(trainer, *data)
    assert trainer.num_updates == 0


@pytest.mark.parametrize("multi_label", [True, False])
def test_targets_of_the_other_kind_are_refused(multi_label: bool) -> None:
    dataset = tiny_data() if multi_label else multi_label_data()
    trainer = make_trainer(
        ClassificationMetricsMixin, loss_func=create_loss("bce")[0], num_classes=3, multi_label=multi_label
    )
    trainer.loss_func = trainer.evaluation_loss = lambda outputs, targets: outputs.square().mean()
    with refused(ValueError, "targets", f"multi_label={multi_label}", f"Pass multi_label={not multi_label}"):
        fit(trainer, dataset, dataset)
