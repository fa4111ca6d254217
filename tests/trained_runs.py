"""A small model that was trained on odd images, and what its trainer saw in evaluation."""

import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from timm_accel import TimmTrainer, create_classifier, create_datasets
from timm_accel.callbacks import SaveBestCallback, SaveStateCallback
from timm_accel.export import export
from timm_accel.predict import Classifier

_FOLDER = tempfile.TemporaryDirectory()
CLASSES = ("cat", "dog", "owl")
EXPORTS: dict[str, dict[str, Any]] = {
    "model.onnx": {"normalize": True, "softmax": True},
    "model.pt": {},
    "model.pt2": {"normalize": True},
}


def brightness(**options: Any) -> Classifier:
    """A classifier whose three logits are the mean red, green and blue of the image, from 0 to 1."""
    config = {"mean": (0.5,), "std": (0.5,), "interpolation": "bilinear", "crop_pct": 0.8, "crop_mode": "center"}
    return Classifier(
        run=lambda images: images.float().mean(dim=(2, 3)) / 255,
        class_names=["red", "green", "blue"],
        data_config={"input_size": (3, 8, 8), **config},
        device=torch.device("cpu"),
        **options,
    )


class Watched(TimmTrainer):
    """Keeps the logits and labels of each evaluation."""

    def eval_epoch_start(self) -> None:
        self.seen = [*getattr(self, "seen", []), []]
        super().eval_epoch_start()

    def update_metrics(self, batch: Any, batch_output: dict[str, Any]) -> None:
        self.seen[-1].append((batch_output["model_outputs"], batch[1]))
        super().update_metrics(batch, batch_output)


@dataclass
class Trained:
    """A run, its images, and what the trainer's evaluation of the best epoch gave."""

    run: Path
    data: Path
    files: list[str]
    logits: Tensor
    labels: Tensor
    metrics: dict[str, float]
    last_logits: Tensor

    def path(self, kind: str) -> Path:
        """The run itself, its best, or one of the exported files."""
        return {"run": self.run, "best": self.run / "best"}.get(kind, self.run / "exported" / kind)


def draw_image(label: int, number: int) -> Image.Image:
    """An image 40 wide and 56 high that differs in every corner."""
    random = np.random.default_rng(100 * label + number)
    pixels = random.integers(0, 60, (56, 40, 3)) + np.linspace(0, 60, 56)[:, None, None]
    pixels[:20, :, label] += 120
    return Image.fromarray(pixels.clip(0, 255).astype("uint8"))


def write_odd(folder: Path, count: int) -> None:
    """Images in several modes: of each class one turned by EXIF, one gray, one of 16 bits, one CMYK, others RGB."""
    for label, name in enumerate(CLASSES):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            image, path = draw_image(label, number), folder / name / f"{number}.png"
            exif = Image.Exif()
            exif[0x0112] = 6
            if number == 0:
                image.save(path.with_suffix(".jpg"), exif=exif)
            elif number == 1:
                image.convert("L").save(path)
            elif number == 2:
                Image.fromarray(np.asarray(image.convert("L")).astype("uint16") * 257).save(path)
            elif number == 3:
                image.convert("CMYK").save(path.with_suffix(".jpg"))
            else:
                image.save(path)


@cache
def trained_run() -> Trained:
    """Five epochs of ``test_resnet`` at 32 pixels, with best weights, states and exported files; made once."""
    folder = Path(_FOLDER.name)
    write_odd(folder / "data" / "train", 8)
    write_odd(folder / "data" / "val", 5)
    torch.manual_seed(0)
    model, config = create_classifier("test_resnet", 3, image_size=32)
    train_set, eval_set = create_datasets(
        32,
        config["mean"],
        config["std"],
        data=folder / "data",
        auto_augment=None,
        scale=(0.7, 1.0),
        eval_interpolation=config["interpolation"],
        crop_pct=config["crop_pct"],
        crop_mode=config["crop_mode"],
    )
    run = folder / "run"
    trainer = Watched(
        model=model,
        loss_func=nn.CrossEntropyLoss(),
        optimizer=torch.optim.AdamW(model.parameters(), lr=1e-2),
        callbacks=[SaveBestCallback("eval_loss_epoch", greater_is_better=False), SaveStateCallback(1)],
        num_classes=3,
        run_dir=run,
        seed=0,
    )
    workers = {"num_workers": 0}
    trainer.train(
        train_dataset=train_set,
        eval_dataset=eval_set,
        num_epochs=5,
        per_device_batch_size=4,
        train_dataloader_kwargs=workers,
        eval_dataloader_kwargs=workers,
    )
    for name, options in EXPORTS.items():
        export(run, run / "exported" / name, **options)
    return _what_was_seen(trainer, run, folder / "data", eval_set)


def _what_was_seen(trainer: Any, run: Path, data: Path, eval_set: Any) -> Trained:
    history = trainer.run_history
    losses = history.get_metric_values("eval_loss_epoch")
    best = losses.index(min(losses))
    outputs = [[torch.cat(column) for column in zip(*seen, strict=True)] for seen in trainer.seen]
    return Trained(
        run=run,
        data=data,
        files=[eval_set.filename(number, absolute=True) for number in range(len(eval_set))],
        logits=outputs[best][0],
        labels=outputs[best][1],
        metrics={name: history.get_metric_values(name)[best] for name in ("eval_loss_epoch", "accuracy", "f1_macro")},
        last_logits=outputs[-1][0],
    )
