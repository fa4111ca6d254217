"""Public code written for pytorch-accelerated's `Trainer` (0.1.61), told again with small models.

Each is one body on two bases, and upstream's numbers stand beside ours. The repositories are named at the tests. Where
upstream is right, weights are bit-equal and histories are equal; where it is not, the test says what differs.
"""

from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from beside_upstream import IN_ORDER, assert_same, history, layers
from pytorch_accelerated.callbacks import (
    EarlyStoppingCallback,
    LogMetricsCallback,
    TrainerCallback,
    get_default_callbacks,
)
from pytorch_accelerated.finetuning import ModelFreezer
from pytorch_accelerated.schedulers import CosineLrScheduler
from pytorch_accelerated.trainer import Trainer
from tiny_runs import NO_WORKERS, differences, fit, tiny_data
from torch import nn
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import OneCycleLR

from timm_accel import LoopTrainer

pytestmark = pytest.mark.usefixtures("capsys")


class Autoencoder(nn.Module):
    """Computes its loss itself: the loss, its parts, and the codes."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = layers(192, 5, 192)

    def forward(self, faces: torch.Tensor, weights: torch.Tensor) -> tuple[torch.Tensor, ...]:
        codes = self.encoder(faces.flatten(1))
        error = (self.decoder(codes) - faces.flatten(1)).square().mean(1)
        commit = codes.square().mean()
        return (error * weights).mean() + 0.1 * commit, error.detach(), commit.detach(), codes


def autoencoder(base: type[Trainer]) -> type[Trainer]:
    class AutoencoderTrainer(base):  # type: ignore[misc, valid-type]
        @property
        def current_step(self) -> int:
            return self._current_step

        def train_epoch_start(self) -> None:
            super().train_epoch_start()
            self._current_step = 0

        def optimizer_step(self) -> None:
            super().optimizer_step()
            self._current_step += 1
            if self.scheduler is None:
                self.callback_handler.call_event("on_checkpoint_due", self)
            self.callback_handler.call_event("on_gradients_known", self)

        def scheduler_step(self) -> None:
            super().scheduler_step()
            self.callback_handler.call_event("on_checkpoint_due", self)

        def calculate_train_batch_loss(self, batch: dict[str, torch.Tensor]) -> dict[str, Any]:
            loss, *_ = self.model(**batch)
            size = torch.tensor(batch["faces"].size(0), device=self.device)
            losses, sizes = self.gather(loss.detach()), self.gather(size)
            self.callback_handler.call_event("on_loss_known", ((losses * sizes).sum() / sizes.sum()).item())
            return {"loss": loss, "batch_size": int(size)}

        def calculate_eval_batch_loss(self, batch: dict[str, torch.Tensor]) -> dict[str, Any]:
            mode = self.model.training
            self.model.eval()
            with torch.no_grad():
                loss, *_ = self.model(**batch)
            self.model.train(mode)
            return {"loss": loss, "batch_size": batch["faces"].size(0)}

    return AutoencoderTrainer


class Log(TrainerCallback):
    """Follows the events of the trainer above: losses, gradient norms, and a file after every second update."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.losses, self.norms = folder, [], []
        folder.mkdir()

    def on_loss_known(self, loss: float) -> None:
        self.losses.append(loss)

    def on_gradients_known(self, trainer: Any) -> None:
        self.norms.append({name: each.grad.norm().item() for name, each in trainer.model.named_parameters()})

    def on_checkpoint_due(self, trainer: Any) -> None:
        if (trainer.current_step + 1) % 2 == 0:
            name = f"{trainer.run_history.current_epoch:02}-{trainer.current_step + 1:04}.pt"
            trainer.save_checkpoint(self.folder / name, save_optimizer=True, save_scheduler=True)


@pytest.mark.parametrize("scheduled", [True, False])
def test_an_autoencoder_that_returns_its_loss_and_saves_within_the_epoch(scheduled: bool, tmp_path: Path) -> None:
    """github.com/Guest400123064/meshae: ``src/meshae/trainer.py``, ``train.py``. Batches are keywords of the model."""
    images, _ = tiny_data(16).tensors
    samples = [{"faces": image, "weights": torch.tensor(1.0 + row % 3)} for row, image in enumerate(images)]

    def train(base: type[Trainer], folder: Path) -> tuple[Any, Log]:
        model, log = Autoencoder(), Log(folder)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        trainer = autoencoder(base)(model=model, loss_func=None, optimizer=optimizer, callbacks=[log])
        schedule = partial(torch.optim.lr_scheduler.StepLR, step_size=3) if scheduled else None
        fit(trainer, samples, samples[:5], train_dataloader_kwargs=IN_ORDER, create_scheduler_fn=schedule)
        return trainer, log

    theirs, their_log = train(Trainer, tmp_path / "theirs")
    ours, our_log = train(LoopTrainer, tmp_path / "ours")
    assert_same(ours, theirs)
    assert (our_log.losses, our_log.norms) == (their_log.losses, their_log.norms)
    names = sorted(path.name for path in our_log.folder.iterdir())
    assert names == ["01-0002.pt", "01-0004.pt", "02-0002.pt", "02-0004.pt"]
    for name in names:
        files = [torch.load(log.folder / name, weights_only=True) for log in (our_log, their_log)]
        assert differences(*({key: file[key] for key in files[1]} for file in files)) == []


class Captioner(nn.Module):
    """Tokens of a short text for each image; `infer` reads them off."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.head = *layers(192, 6), *layers(6, 5)
        self.tokens = nn.Embedding(5, 6)

    def forward(self, images: torch.Tensor, inputs: torch.Tensor, padding_mask: torch.Tensor) -> torch.Tensor:
        tokens = self.tokens(inputs) * (~padding_mask)[..., None]
        return self.head(self.encoder(images.flatten(1))[:, None] + tokens)

    def infer(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.encoder(images.flatten(1))).argmax(1)


class CaptionCollate:
    """Shifts and pads sequences; training sequences are in reverse order."""

    def __init__(self) -> None:
        self.is_training, self.calls = True, []

    def __call__(self, samples: list[Any]) -> dict[str, torch.Tensor]:
        self.calls.append(self.is_training)
        texts = [torch.arange(1, 2 + int(label)).flip(0) if self.is_training else torch.arange(1, 2 + int(label))
                 for _, label in samples]  # fmt: skip
        inputs = nn.utils.rnn.pad_sequence([torch.cat([torch.tensor([4]), text[:-1]]) for text in texts], True)
        targets = nn.utils.rnn.pad_sequence(texts, True)
        images = torch.stack([image for image, _ in samples])
        return {"image": images, "inputs": inputs, "targets": targets, "weights": 1.0 + (targets == 1)}


def captioner(base: type[Trainer]) -> type[Trainer]:
    class CaptionTrainer(base):  # type: ignore[misc, valid-type]
        def __init__(self, model: Any, optimizer: Any, every: int = 2, **kwargs: Any) -> None:
            super().__init__(model, nn.CrossEntropyLoss(reduction="none", ignore_index=0), optimizer, **kwargs)
            self.every = every

        def train_epoch_start(self) -> None:
            self.collate_fn.is_training = True
            return super().train_epoch_start()

        def eval_epoch_start(self) -> None:
            self.collate_fn.is_training = False
            return super().eval_epoch_start()

        def calculate_train_batch_loss(self, batch: dict[str, torch.Tensor]) -> dict[str, Any]:
            logits = self.model(batch["image"], batch["inputs"], padding_mask=batch["inputs"] == 0)
            losses = self.loss_func(logits.flatten(0, 1), batch["targets"].flatten()) * batch["weights"].flatten()
            loss = losses.sum() / (batch["targets"] != 0).sum()
            return {"loss": loss, "model_outputs": logits, "batch_size": len(logits)}

        def calculate_eval_batch_loss(self, batch: dict[str, torch.Tensor]) -> dict[str, Any]:
            with torch.no_grad():
                output = self.calculate_train_batch_loss(batch)
                first = torch.full((1,), -1)
                if self.run_history.current_epoch % self.every == 0:
                    first = self.get_model().infer(images=batch["image"])
            return {**output, "predictions": self.gather(first, padding_value=-1)}

    return CaptionTrainer


class TokenLog(LogMetricsCallback):
    """A logger that takes the run's config as tags, and the learning rate as a metric."""

    def __init__(self) -> None:
        self.logged, self.found = [], []

    def on_training_run_start(self, trainer: Any, **kwargs: Any) -> None:
        self.logged.append(trainer.run_config.to_dict()["num_epochs"])

    def on_eval_step_end(self, trainer: Any, batch: Any, batch_output: Any, **kwargs: Any) -> None:
        self.found.append(batch_output["predictions"].tolist())

    def on_train_epoch_end(self, trainer: Any, **kwargs: Any) -> None:
        trainer.run_history.update_metric("learning_rate", trainer.optimizer.param_groups[0]["lr"])
        super().on_train_epoch_end(trainer, **kwargs)

    def log_metrics(self, trainer: Any, metrics: dict[str, float]) -> None:
        self.logged.append(sorted(metrics))


def test_a_captioner_with_a_collate_of_two_modes_token_weights_and_a_limit_of_steps() -> None:
    """github.com/Chris-hughes10/pix2seq: ``src/pix2seq/training/``, ``src/pix2seq/train.py``."""

    def train(base: type[Trainer]) -> tuple[Any, TokenLog, CaptionCollate]:
        model, log, collate = Captioner(), TokenLog(), CaptionCollate()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.05, betas=(0.9, 0.95))
        trainer = captioner(base)(model=model, optimizer=optimizer, callbacks=[log])
        fit(
            trainer,
            tiny_data(18),
            tiny_data(9, seed=3),
            num_epochs=6,
            max_num_train_steps=13,
            gradient_clip_value=0.01,
            collate_fn=collate,
            train_dataloader_kwargs=IN_ORDER,
            eval_dataloader_kwargs={**NO_WORKERS, "batch_size": 6},
            create_scheduler_fn=CosineLrScheduler.create_scheduler_fn(num_warmup_epochs=1),
        )
        return trainer, log, collate

    (theirs, their_log, their_collate), (ours, our_log, our_collate) = train(Trainer), train(LoopTrainer)
    assert_same(ours, theirs)
    assert (our_log.logged, our_log.found) == (their_log.logged, their_log.found)
    whole, cut = [True] * 5 + [False] * 2, [True] * 4 + [False] * 2  # accelerate loads one batch ahead
    assert our_collate.calls == their_collate.calls == [*whole, *whole, *cut]
    assert ours.current_run().num_updates == 13


class Normalized(nn.Sequential):
    default_cfg: ClassVar = {"mean": (0.1, 0.2, 0.3), "std": (0.9, 1.0, 1.1)}


def pets_trainer(base: type[Trainer]) -> type[Trainer]:
    class PetsTrainer(base):  # type: ignore[misc, valid-type]
        def training_run_start(self) -> None:
            config = self._accelerator.unwrap_model(self.model).default_cfg
            self.mean, self.std = (
                torch.tensor(config[name])[None, :, None, None].to(self._accelerator.device) for name in ("mean", "std")
            )

        def calculate_train_batch_loss(self, batch: dict[str, torch.Tensor]) -> dict[str, Any]:
            return super().calculate_train_batch_loss(((batch["image"] - self.mean) / self.std, batch["label"]))

        def eval_epoch_start(self) -> None:
            super().eval_epoch_start()
            self.hits = self.seen = 0

        def calculate_eval_batch_loss(self, batch: dict[str, torch.Tensor]) -> dict[str, Any]:
            with torch.no_grad():
                outputs = self.model((batch["image"] - self.mean) / self.std)
                loss = self.loss_func(outputs, batch["label"])
            right = self._accelerator.gather(outputs.argmax(-1)) == self._accelerator.gather(batch["label"])
            self.hits, self.seen = self.hits + right.sum(), self.seen + right.shape[0]
            return {"loss": loss, "model_outputs": outputs, "batch_size": outputs.size(0)}

        def eval_epoch_end(self) -> None:
            super().eval_epoch_end()
            self.run_history.update_metric("accuracy", round(100 * self.hits.item() / self.seen, 2))

        def create_scheduler(self) -> Any:
            steps, epochs = len(self._train_dataloader), self.run_config.num_epochs
            return self.create_scheduler_fn(optimizer=self.optimizer, steps_per_epoch=steps, epochs=epochs)

    return PetsTrainer


def test_one_trainer_trains_a_frozen_model_and_then_all_of_it_until_a_callback_stops_it() -> None:
    """github.com/Chris-hughes10/pytorch-accelerated: ``examples/vision/transfer_learning/pets_finetune.py``.

    The callbacks, and one history over the runs, are those of ``progressive_resizing.py`` beside it.
    """
    train_data, eval_data = (
        [{"image": image, "label": label} for image, label in tiny_data(count, seed=seed)]
        for count, seed in ((15, 2), (10, 3))
    )

    def train(base: type[Trainer]) -> tuple[Any, list[torch.Tensor]]:
        body, head = layers(192, 6, 3)
        model = Normalized(nn.Flatten(), body, nn.BatchNorm1d(6), nn.ReLU(), head)
        freezer = ModelFreezer(model, freeze_batch_norms=False)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.03 / 25)
        freezer.freeze(set_modules_as_eval=False)
        callbacks = (*get_default_callbacks(progress_bar=False), EarlyStoppingCallback(2, early_stopping_threshold=0.2))
        trainer = pets_trainer(base)(model=model, loss_func=cross_entropy, optimizer=optimizer, callbacks=callbacks)
        kept = [body.weight.clone()]
        for num_epochs, max_lr in ((2, 0.03), (8, 0.0003)):
            schedule = partial(OneCycleLR, max_lr=max_lr)
            options = {"train_dataloader_kwargs": IN_ORDER, "create_scheduler_fn": schedule}
            fit(trainer, train_data, eval_data, num_epochs=num_epochs, reset_run_history=False, **options)
            kept.append(body.weight.detach().clone())
            freezer.unfreeze()
        return trainer, kept

    (theirs, _), (ours, kept) = train(Trainer), train(LoopTrainer)
    assert_same(ours, theirs)
    assert torch.equal(kept[0], kept[1])
    assert not torch.equal(kept[1], kept[2])
    assert 3 <= len(history(ours)["accuracy"]) < 10  # the second run was stopped
