"""The training by the article's script."""

from typing import Any

from torch import nn

from benchmarks.article_script import ArticleTrainer
from benchmarks.contenders.job import MIXUP, Job


class _PerUpdate(ArticleTrainer):
    """The article's trainer with the schedule of the others."""

    job: Job

    def train_epoch_start(self) -> None:
        super().train_epoch_start()
        self.num_updates -= len(self._train_dataloader)  # epochs count from 1

    def create_scheduler(self) -> Any:
        return self.job.schedule(self.optimizer)


def train(job: Job) -> None:
    """Train with the article's script, with the schedule and the loss of the others."""
    trainer = _PerUpdate(
        model=job.network,
        optimizer=job.optimizer(),
        loss_func=job.loss,
        eval_loss_fn=nn.CrossEntropyLoss(),
        mixup_args={**MIXUP, "num_classes": job.num_classes},
        num_class=job.num_classes,
    )
    trainer.job = job
    trainer.train(job.train_data, create_scheduler_fn=trainer.create_scheduler, **job.of_trainer())
