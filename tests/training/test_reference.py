"""`TimmMixupTrainer` against a loop written by hand from timm's parts, as in timm's script."""

from typing import Any

import pytest
import torch
from timm.data import Mixup
from timm.loss import BinaryCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import ModelEmaV3
from tiny_runs import ON_EACH_DEVICE, fit, make_trainer, same_weights, tiny_data, tiny_model
from torch import nn
from torch.utils.data import DataLoader, RandomSampler

from timm_accel import TimmMixupTrainer
from timm_accel.data.seeding import KeyedSampler, SeededDataset, seed_step

SEED, EPOCHS, BATCH_SIZE, IMAGES = 7, 3, 4, 31  # 7 full batches: a tail group for accumulation 2 and 3
MIXUP = dict(mixup_alpha=0.2, cutmix_alpha=1.0, label_smoothing=0.1, num_classes=3)
OPTIMIZER = dict(opt="lookahead_adamw", lr=5e-3, weight_decay=0.01)
SCHEDULE = dict(sched="cosine", warmup_epochs=1, warmup_lr=1e-4, min_lr=1e-6)


def train_by_hand(
    accumulation: int, on_updates: bool, device: torch.device
) -> tuple[nn.Module, nn.Module, Any, list[float]]:
    """Train as timm's ``train.py`` does; return model, EMA model, optimizer and the learning rate of each update."""
    model, data = tiny_model().to(device), tiny_data(IMAGES)
    optimizer = create_optimizer_v2(model, **OPTIMIZER)
    sampler = KeyedSampler(RandomSampler(data), SEED)
    loader = DataLoader(SeededDataset(data, SEED), BATCH_SIZE, sampler=sampler, drop_last=True)
    updates_per_epoch = -(-len(loader) // accumulation)
    scheduler, _ = create_scheduler_v2(
        optimizer,
        num_epochs=EPOCHS,
        updates_per_epoch=updates_per_epoch,
        step_on_epochs=not on_updates,
        **SCHEDULE,
    )
    ema_model = ModelEmaV3(model, decay=0.6, use_warmup=True)
    mixup, loss_fn = Mixup(**MIXUP), BinaryCrossEntropy(target_threshold=0.2, smoothing=0.1)
    num_updates, rates = 0, []
    for epoch in range(EPOCHS):
        sampler.set_epoch(epoch)
        model.train()
        for index, (images, labels) in enumerate(loader):
            images, labels = images.to(device), labels.to(device)
            seed_step(SEED, epoch, index, 0, device)
            tail = len(loader) % accumulation
            group = tail if index >= len(loader) - tail else accumulation
            loss = loss_fn(*_forward_mixed(model, mixup, images, labels))
            (loss / group).backward()
            if (index + 1) % accumulation == 0 or index + 1 == len(loader):
                torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
                rates.append(optimizer.param_groups[0]["lr"])
                optimizer.step()
                num_updates += 1
                ema_model.update(model, step=num_updates)
                scheduler.step_update(num_updates)
                optimizer.zero_grad()
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)  # timm's sync passes over parameters without a gradient
        optimizer.sync_lookahead()
        optimizer.zero_grad()
        model.eval()
        scheduler.step(epoch + 1)
    return model, ema_model.module, optimizer, rates


def _forward_mixed(model: nn.Module, mixup: Mixup, images: torch.Tensor, labels: torch.Tensor) -> tuple[Any, Any]:
    images, soft = mixup(images, labels)
    return model(images), soft


class Recording(TimmMixupTrainer):
    def training_run_start(self) -> None:
        self.rates: list[float] = []
        super().training_run_start()

    def optimizer_step(self) -> None:
        self.rates.append(self.learning_rate)
        super().optimizer_step()


@pytest.mark.usefixtures("deterministic")
@pytest.mark.parametrize("device", ON_EACH_DEVICE)
@pytest.mark.parametrize("evaluated", [True, False])
@pytest.mark.parametrize("on_updates", [True, False])
@pytest.mark.parametrize("accumulation", [1, 2, 3])
def test_trainer_is_bit_equal_to_the_loop_written_by_hand(
    accumulation: int, on_updates: bool, evaluated: bool, device: str
) -> None:
    model, ema_model, optimizer, rates = train_by_hand(accumulation, on_updates, torch.device(device))

    ours = tiny_model()
    trainer = make_trainer(
        Recording,
        ours,
        optimizer=create_optimizer_v2(ours, **OPTIMIZER),
        loss_func=BinaryCrossEntropy(target_threshold=0.2, smoothing=0.1),
        eval_loss_fn=nn.CrossEntropyLoss(),
        mixup_args=MIXUP,
        num_class=3,
        scheduler_args=SCHEDULE | {"step_on_epochs": not on_updates},
        ema_decay=0.6,
        clip_grad=0.5,
        seed=SEED,
    )
    fit(
        trainer,
        tiny_data(IMAGES),
        tiny_data(5) if evaluated else None,
        num_epochs=EPOCHS,
        per_device_batch_size=BATCH_SIZE,
        gradient_accumulation_steps=accumulation,
    )

    assert trainer.rates == rates
    assert len(set(rates)) > 3 or not on_updates
    assert same_weights(trainer.model, model)
    assert same_weights(trainer.ema_model.module, ema_model)
    assert not same_weights(trainer.model, ema_model)
    slow, slow_by_hand = (
        [state["lookahead_slow_buff"] for state in wrapped._base_optimizer.state.values()]
        for wrapped in (trainer.unwrapped_optimizer, optimizer)
    )
    assert len(slow) == len(slow_by_hand) == len(list(model.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(slow, slow_by_hand, strict=True))
