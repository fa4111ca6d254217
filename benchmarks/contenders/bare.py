"""The training by a bare loop of timm's parts."""

import torch
from timm.utils import ModelEmaV3, dispatch_clip_grad
from torch import nn
from torch.utils.data import DataLoader

from benchmarks.contenders.job import CLIP, EMA_DECAY, Job


def train(job: Job) -> None:
    """Train with a loop of timm's parts."""
    model, optimizer, loss_fn, total = job.network.train(), job.optimizer(), job.loss, torch.zeros(())
    mixup, ema = job.mixup, ModelEmaV3(model, decay=EMA_DECAY, use_warmup=True) if job.all_parts else None
    scheduler, (loader, eval_loader) = job.schedule(optimizer), job.loaders()
    for epoch in range(job.num_epochs):
        model.train()
        for number, (images, targets) in enumerate(loader, 1 + epoch * job.num_updates):
            if mixup is not None:
                images, targets = mixup(images, targets)
            loss = loss_fn(model(images), targets)
            total += loss.detach() * len(targets)
            loss.backward()
            if job.all_parts:
                dispatch_clip_grad(model.parameters(), CLIP, mode="norm")
            optimizer.step()
            if ema is not None:
                ema.update(model, step=number)
            scheduler.step_update(number)
            optimizer.zero_grad()
        for weights in (model, ema.module if ema is not None else None):
            if eval_loader is not None and weights is not None:
                _evaluate(weights.eval(), eval_loader)
        if job.folder is not None:
            parts = [model, optimizer, *([] if ema is None else [ema])]
            torch.save([part.state_dict() for part in parts], job.folder / f"{epoch}.pt")


@torch.inference_mode()
def _evaluate(model: nn.Module, loader: DataLoader) -> tuple[float, float]:
    loss, right, count = torch.zeros(()), torch.zeros(()), 0
    for images, labels in loader:
        logits = model(images)
        loss += nn.functional.cross_entropy(logits, labels, reduction="sum")
        right += (logits.argmax(1) == labels).sum()
        count += len(labels)
    return loss.item() / count, right.item() / count
