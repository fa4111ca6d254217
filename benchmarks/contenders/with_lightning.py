"""The training by Lightning."""

import logging
import warnings
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR

from benchmarks.contenders.job import CLIP, EMA_DECAY, Job


class _Classifier(LightningModule):
    def __init__(self, job: Job) -> None:
        super().__init__()
        self.job, self.model, self.loss, self.mixup = job, job.network, job.loss, job.mixup

    def configure_optimizers(self) -> Any:
        optimizer = self.job.optimizer()
        schedule = CosineAnnealingLR(optimizer, self.job.num_epochs * self.job.num_updates)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        images, targets = batch if self.mixup is None else self.mixup(*batch)
        loss = self.loss(self.model(images), targets)
        self.log("train_loss", loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: Any, index: int) -> None:
        images, labels = batch
        logits = self.model(images)
        self.log("eval_loss", nn.functional.cross_entropy(logits, labels))
        self.log("accuracy", (logits.argmax(1) == labels).float().mean())


def train(job: Job) -> None:
    """Train with Lightning's trainer and its progress bar."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    callbacks: list[Any] = [EMAWeightAveraging(decay=EMA_DECAY)] if job.all_parts else []
    if job.folder is not None:
        callbacks.append(ModelCheckpoint(job.folder))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = Trainer(
            accelerator="cpu",
            devices=1,
            max_epochs=job.num_epochs,
            gradient_clip_val=CLIP if job.all_parts else None,
            callbacks=callbacks,
            logger=False,
            enable_checkpointing=job.folder is not None,
            enable_model_summary=False,
            num_sanity_val_steps=0,
        )
        trainer.fit(_Classifier(job), *job.loaders())
