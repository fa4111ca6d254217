"""The training by fastai."""

from typing import Any

import torch
from fastai.callback.core import Callback
from fastai.callback.schedule import ParamScheduler, SchedCos
from fastai.callback.tracker import SaveModelCallback
from fastai.callback.training import GradientClip
from fastai.data.core import DataLoaders
from fastai.learner import Learner
from fastai.metrics import accuracy
from fastai.optimizer import OptimWrapper
from torch import nn

from benchmarks.contenders.job import CLIP, Job


class _Mixup(Callback):
    """timm's Mixup; fastai's mixes losses, so another loss would be trained."""

    def __init__(self, mixup: Any) -> None:
        self.mixup = mixup

    def before_batch(self) -> None:
        if self.training:
            images, targets = self.mixup(self.x, self.y)
            self.learn.xb, self.learn.yb = (images,), (targets,)


class _Loss(nn.Module):
    """The job's loss for mixed targets, the usual one for labels."""

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return self.loss(logits, targets) if targets.ndim == 2 else nn.functional.cross_entropy(logits, targets)


def train(job: Job) -> None:
    """Train with fastai's learner and its progress bar."""
    train, evaluation = job.loaders()
    learner = Learner(
        DataLoaders(train, [] if evaluation is None else evaluation),
        job.network,
        loss_func=_Loss(job.loss),
        opt_func=lambda parameters, lr=None: OptimWrapper(opt=job.optimizer()),
        metrics=[] if evaluation is None else [accuracy],
        path=job.folder,
        model_dir=".",
    )
    callbacks: list[Any] = [ParamScheduler({"lr": SchedCos(1e-3, 0)})]
    if job.all_parts:
        callbacks += [_Mixup(job.mixup), GradientClip(CLIP)]
    if job.folder is not None:
        callbacks.append(SaveModelCallback(every_epoch=True, with_opt=True))
    learner.fit(job.num_epochs, lr=1e-3, cbs=callbacks)
