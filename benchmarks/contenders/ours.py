"""The training by our trainers."""

from typing import Any

from torch import nn

from benchmarks.contenders.job import CLIP, EMA_DECAY, MIXUP, SCHEDULE, Job
from timm_accel import LoopTrainer, TimmMixupTrainer, TimmTrainer
from timm_accel.callbacks import DEFAULT_CALLBACKS, SaveStateCallback


def train(job: Job) -> None:
    """Train with our trainers."""
    states = [] if job.folder is None else [SaveStateCallback()]
    settings: dict[str, Any] = {
        "model": job.network,
        "optimizer": job.optimizer(),
        "loss_func": job.loss,
        "eval_loss_fn": nn.CrossEntropyLoss(),
        "num_classes": job.num_classes if job.eval_data is not None else None,
        "scheduler_args": SCHEDULE,
        "callbacks": [*DEFAULT_CALLBACKS, *states],
        "run_dir": job.folder,
    }
    trainer: LoopTrainer
    if job.all_parts:
        mixup = {**MIXUP, "num_classes": job.num_classes}
        trainer = TimmMixupTrainer(mixup_args=mixup, ema_decay=EMA_DECAY, clip_grad=CLIP, **settings)
    else:
        trainer = TimmTrainer(train_accuracy=False, **settings)
    trainer.train(job.train_data, **job.of_trainer())
