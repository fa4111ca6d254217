"""The training by pytorch-accelerated."""

from typing import Any

from pytorch_accelerated.callbacks import SaveTrainingStateCallback
from pytorch_accelerated.trainer import DEFAULT_CALLBACKS, TrainerWithTimmScheduler
from timm.data import Mixup
from timm.utils import ModelEmaV3
from torch import nn

from benchmarks.contenders.job import CLIP, EMA_DECAY, Job


class _AllParts(TrainerWithTimmScheduler):
    """pytorch-accelerated's trainer with what it has no option for: Mixup, and clipping of the norm."""

    mixup: Mixup | None
    ema: ModelEmaV3 | None = None

    def training_run_start(self) -> None:
        if self.mixup is not None:
            self.ema = ModelEmaV3(self._accelerator.unwrap_model(self.model), decay=EMA_DECAY)

    def train_epoch_start(self) -> None:
        super().train_epoch_start()
        self.num_updates -= len(self._train_dataloader)  # epochs count from 1

    def calculate_train_batch_loss(self, batch: Any) -> Any:
        return super().calculate_train_batch_loss(batch if self.mixup is None else self.mixup(*batch))

    def calculate_eval_batch_loss(self, batch: Any) -> Any:
        self.loss_func, training = nn.CrossEntropyLoss(), self.loss_func
        if self.ema is not None:
            self.ema.module.eval()(batch[0])
        output = super().calculate_eval_batch_loss(batch)
        self.loss_func = training
        return output

    def _clip_gradients(self) -> None:
        self._accelerator.clip_grad_norm_(self.model.parameters(), self.run_config.gradient_clip_value)

    def train_epoch_end(self) -> None:
        if self.ema is not None:
            self.ema.update(self._accelerator.unwrap_model(self.model))


def train(job: Job) -> None:
    """Train with pytorch-accelerated's trainer for timm's schedulers."""
    callbacks = list(DEFAULT_CALLBACKS)
    if job.folder is not None:
        callbacks.append(SaveTrainingStateCallback(str(job.folder), save_every_n_epochs=1, max_checkpoints=3))
    trainer = _AllParts(model=job.network, loss_func=job.loss, optimizer=job.optimizer(), callbacks=callbacks)
    trainer.mixup = job.mixup
    trainer.train(
        job.train_data,
        create_scheduler_fn=job.schedule,
        gradient_clip_value=CLIP if job.all_parts else None,
        **job.of_trainer(),
    )
