"""The trainers of pytorch-accelerated's own timm examples (0.1.61), told again, run on `LoopTrainer`."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_accelerated.callbacks import SaveBestModelCallback, TrainerCallback
from pytorch_accelerated.trainer import DEFAULT_CALLBACKS, Trainer
from timm.data import ImageDataset, Mixup, create_loader
from timm.loss import BinaryCrossEntropy, LabelSmoothingCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from timm.utils import ModelEmaV2
from tiny_runs import NO_WORKERS, fit, make_trainer, tiny_data, tiny_model
from torch import nn
from torchmetrics.classification import MulticlassAccuracy

from timm_accel import LoopTrainer

EPOCHS = 3


def all_components(base: type[Trainer]) -> type[Trainer]:
    """``all_timm_components.py``: two losses, timm's loaders, and updates that the trainer counts by itself."""

    class AllComponents(base):  # type: ignore[misc, valid-type]
        def __init__(self, eval_loss_func: nn.Module, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.num_updates = None
            self.losses = {"train": kwargs["loss_func"], "eval": eval_loss_func}
            self.counted: list[int] = []

        def create_train_dataloader(self, batch_size: int, train_dl_kwargs: Any = None) -> Any:
            return self._timm_loader(self.train_dataset, batch_size, train_dl_kwargs)

        def create_eval_dataloader(self, batch_size: int, eval_dl_kwargs: Any = None) -> Any:
            return self._timm_loader(self.eval_dataset, batch_size, eval_dl_kwargs)

        def _timm_loader(self, dataset: Any, batch_size: int, options: dict[str, Any]) -> Any:
            return create_loader(dataset=dataset, batch_size=batch_size, collate_fn=self.collate_fn, **options)

        def train_epoch_start(self) -> None:
            super().train_epoch_start()
            self.num_updates = self.run_history.current_epoch * len(self._train_dataloader)
            self.loss_func = self.losses["train"]

        def eval_epoch_start(self) -> None:
            super().eval_epoch_start()
            self.loss_func = self.losses["eval"]

        def eval_epoch_end(self) -> None:
            self.scheduler.step(self.run_history.current_epoch + 1)

        def scheduler_step(self) -> None:
            self.num_updates += 1
            self.counted.append(self.num_updates)
            self.scheduler.step_update(num_updates=self.num_updates)

    return AllComponents


class AccuracyCallback(TrainerCallback):
    """A metric that a callback keeps."""

    def __init__(self) -> None:
        self.accuracy = MulticlassAccuracy(3, average="micro")

    def on_eval_step_end(self, trainer: Any, batch: Any, batch_output: Any, **kwargs: Any) -> None:
        self.accuracy.update(batch_output["model_outputs"].argmax(-1), batch[1])

    def on_eval_epoch_end(self, trainer: Any, **kwargs: Any) -> None:
        trainer.run_history.update_metric("accuracy", self.accuracy.compute().item())
        self.accuracy.reset()


def train_all_components(base: type[Trainer], data: Path) -> Any:
    model = tiny_model()
    trainer = all_components(base)(
        model=model,
        optimizer=create_optimizer_v2(model, "adamp", lr=5e-3),
        loss_func=LabelSmoothingCrossEntropy(),
        eval_loss_func=nn.CrossEntropyLoss(),
        callbacks=(AccuracyCallback(), *DEFAULT_CALLBACKS),
    )
    options = {"input_size": (3, 8, 8), "use_prefetcher": False, "num_workers": 0, "persistent_workers": False}
    trainer.train(
        train_dataset=ImageDataset(str(data / "train")),
        eval_dataset=ImageDataset(str(data / "val")),
        per_device_batch_size=4,
        num_epochs=EPOCHS,
        train_dataloader_kwargs={**options, "is_training": True},
        eval_dataloader_kwargs={**options, "is_training": False, "crop_pct": 1.0},
        create_scheduler_fn=partial(CosineLRScheduler, t_initial=EPOCHS),
    )
    return trainer


@pytest.mark.usefixtures("capsys")
def test_all_timm_components_runs_with_upstreams_numbers_beside_ours(image_folder: Path) -> None:
    theirs, ours = (train_all_components(base, image_folder) for base in (Trainer, LoopTrainer))
    assert ours.counted == theirs.counted  # 19 images, timm's loader drops the rest: 4 updates from 4, 8, 12 on
    assert ours.counted == [*range(5, 9), *range(9, 13), *range(13, 17)]
    assert ours.current_run().num_updates == 12
    for name in ("train_loss_epoch", "eval_loss_epoch", "accuracy"):
        values = list(ours.run_history.get_metric_values(name))
        assert len(values) == len(list(theirs.run_history.get_metric_values(name))) == EPOCHS
    assert ours.optimizer.param_groups[0]["lr"] == pytest.approx(theirs.optimizer.param_groups[0]["lr"])


def mixup_ema(base: type[Trainer]) -> type[Trainer]:
    """``train_mixup_ema.py``: Mixup, an EMA once an epoch, Lookahead, and metrics in the evaluation step."""

    class MixupEma(base):  # type: ignore[misc, valid-type]
        def __init__(
            self, eval_loss_fn: nn.Module, mixup_args: dict[str, Any], num_classes: int, *args: Any, **kwargs: Any
        ) -> None:
            super().__init__(*args, **kwargs)
            self.eval_loss_fn, self.mixup_fn = eval_loss_fn, Mixup(**mixup_args)
            self.num_updates = self.ema_model = None
            self.accuracies = {name: MulticlassAccuracy(num_classes, average="micro") for name in ("", "ema_model_")}

        def create_scheduler(self) -> CosineLRScheduler:
            return CosineLRScheduler(
                self.optimizer, t_initial=self.run_config.num_epochs, lr_min=1e-6, warmup_t=1, warmup_lr_init=1e-4
            )

        def training_run_start(self) -> None:
            self.ema_model = ModelEmaV2(self._accelerator.unwrap_model(self.model), decay=0.9)

        def train_epoch_start(self) -> None:
            super().train_epoch_start()
            self.num_updates = self.run_history.current_epoch * len(self._train_dataloader)

        def calculate_train_batch_loss(self, batch: Any) -> dict[str, Any]:
            return super().calculate_train_batch_loss(self.mixup_fn(batch[0].clone(), batch[1]))

        def train_epoch_end(self) -> None:
            self.ema_model.update(self.model)
            self.ema_model.eval()

        def scheduler_step(self) -> None:
            self.num_updates += 1
            self.scheduler.step_update(num_updates=self.num_updates)

        def calculate_eval_batch_loss(self, batch: Any) -> dict[str, Any]:
            with torch.no_grad():
                outputs = self.model(batch[0])
                self.accuracies[""].update(outputs.argmax(-1), batch[1])
                self.accuracies["ema_model_"].update(self.ema_model.module(batch[0]).argmax(-1), batch[1])
                loss = self.eval_loss_fn(outputs, batch[1])
            return {"loss": loss, "model_outputs": outputs, "batch_size": len(batch[1])}

        def eval_epoch_end(self) -> None:
            self.scheduler.step(self.run_history.current_epoch + 1)
            for prefix, accuracy in self.accuracies.items():
                self.run_history.update_metric(f"{prefix}accuracy", accuracy.compute().cpu())
                accuracy.reset()

    return MixupEma


def train_mixup_ema(base: type[Trainer], folder: Path) -> Any:
    model = tiny_model()
    trainer = mixup_ema(base)(
        model=model,
        optimizer=create_optimizer_v2(model, opt="lookahead_adamw", lr=5e-3, weight_decay=0.01),
        loss_func=BinaryCrossEntropy(target_threshold=0.2, smoothing=0.1),
        eval_loss_fn=nn.CrossEntropyLoss(),
        mixup_args={"mixup_alpha": 0.2, "cutmix_alpha": 1.0, "label_smoothing": 0.1, "num_classes": 3},
        num_classes=3,
        callbacks=[*DEFAULT_CALLBACKS, SaveBestModelCallback(folder / "best.pt", "accuracy", greater_is_better=True)],
    )
    return fit(
        trainer,
        tiny_data(18),
        tiny_data(7),
        num_epochs=EPOCHS,
        train_dataloader_kwargs={**NO_WORKERS, "drop_last": True},
        create_scheduler_fn=trainer.create_scheduler,
    )


@pytest.mark.usefixtures("capsys")
def test_mixup_and_ema_run_with_upstreams_numbers_beside_ours(tmp_path: Path) -> None:
    theirs, ours = (train_mixup_ema(base, tmp_path) for base in (Trainer, LoopTrainer))
    assert ours.num_updates == theirs.num_updates == 4 * EPOCHS + 4  # by the example's own count
    assert ours.current_run().num_updates == 4 * EPOCHS
    assert (tmp_path / "best.pt").is_file()
    for name in ("accuracy", "ema_model_accuracy", "eval_loss_epoch"):
        values = [float(value) for value in ours.run_history.get_metric_values(name)]
        assert len(values) == len(list(theirs.run_history.get_metric_values(name))) == EPOCHS
    assert ours.optimizer.param_groups[0]["lr"] == pytest.approx(theirs.optimizer.param_groups[0]["lr"])


def test_a_trainer_of_upstream_without_additions_gives_ours_the_same_losses() -> None:
    """One epoch on the same images in the same order: no dropout, no shuffle, no accumulation."""

    def train(base: type[Trainer]) -> Any:
        torch.manual_seed(3)
        model = nn.Sequential(nn.Flatten(), nn.Linear(192, 3))
        trainer = make_trainer(base, model)  # type: ignore[arg-type]
        return fit(trainer, tiny_data(), tiny_data(8), train_dataloader_kwargs={**NO_WORKERS, "shuffle": False})

    theirs, ours = train(Trainer), train(LoopTrainer)
    for name in ("train_loss_epoch", "eval_loss_epoch"):
        assert list(ours.run_history.get_metric_values(name)) == pytest.approx(
            list(theirs.run_history.get_metric_values(name)), rel=1e-6
        )
