"""`TimmMixupTrainer` against a loop written by hand from timm's parts, as in timm's script."""

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from timm.data import Mixup
from timm.loss import BinaryCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import ModelEmaV3
from tiny_runs import NO_WORKERS, ON_EACH_DEVICE, fit, make_trainer, same_weights, tiny_data, tiny_model
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, RandomSampler

from timm_accel import TimmMixupTrainer
from timm_accel.data.seeding import KeyedSampler, SeededDataset, seed_step

SEED, EPOCHS, BATCH_SIZE = 7, 3, 4
MIXUP = dict(mixup_alpha=0.2, cutmix_alpha=1.0, label_smoothing=0.1, num_classes=3)
OPTIMIZER = dict(opt="lookahead_adamw", lr=5e-3, weight_decay=0.01)
SGD = dict(opt="lookahead_sgd", lr=0.05, weight_decay=0.01)
SCHEDULE = dict(sched="cosine", warmup_epochs=1, warmup_lr=1e-4, min_lr=1e-6)


class WrongLength(BatchSampler):
    """Has another length than the number of batches that it gives."""

    def __init__(self, sampler: Any, drop_last: bool = True, off: int = 0) -> None:
        super().__init__(sampler, BATCH_SIZE, drop_last)
        self.off = off

    def __len__(self) -> int:
        return super().__len__() + self.off


def tied_model() -> nn.Module:
    """A layer and a norm that are used twice, and a second layer with the weight of the first."""
    torch.manual_seed(1)
    shared, norm, tied = nn.Linear(12, 12), nn.BatchNorm1d(12), nn.Linear(12, 12, bias=False)
    tied.weight = shared.weight
    body = [nn.Linear(192, 12), norm, nn.ReLU(), shared, norm, nn.ReLU(), tied, nn.Dropout(0.1), shared]
    return nn.Sequential(nn.Flatten(), *body, nn.Linear(12, 3))


class Case(NamedTuple):
    """What is trained on what.

    The bits of an update depend on the order of its divisions, unless they are exact. Where they are not, SGD takes
    the place of AdamW, which would turn a rounding error of a bias before a norm into a step.
    """

    model: Callable[[], nn.Module] = tiny_model
    images: int = 31  # 7 full batches: a tail group for accumulation 2 and 3
    drop_last: bool = True
    off: int = 0
    clip_grad: float = 0.5
    bit_equal_up_to: int = 3  # accumulation

    def is_exact(self, accumulation: int) -> bool:
        return accumulation <= self.bit_equal_up_to

    def create_optimizer(self, model: nn.Module, accumulation: int) -> Any:
        return create_optimizer_v2(model, **(OPTIMIZER if self.is_exact(accumulation) else SGD))

    def trainer_options(self, data: Any) -> dict[str, Any]:
        if self.off:
            return {"batch_sampler": WrongLength(RandomSampler(data), self.drop_last, self.off)}
        return {} if self.drop_last else {"drop_last": False}


SOME_CLIPPED = 1.2  # a factor on all gradients shows where they are not clipped
CASES = {
    "tied weights": Case(tied_model),
    "two images in the last batch": Case(clip_grad=SOME_CLIPPED, images=30, drop_last=False, bit_equal_up_to=1),
    "two images in the last batch, tied weights": Case(
        tied_model, images=30, clip_grad=0.6, drop_last=False, bit_equal_up_to=1
    ),
    "a loader of fewer batches than its length": Case(clip_grad=SOME_CLIPPED, off=2, bit_equal_up_to=2),
    "a loader of more batches than its length": Case(clip_grad=SOME_CLIPPED, images=47, off=-2, bit_equal_up_to=2),
    "a loader of fewer batches, the last of two images": Case(
        clip_grad=SOME_CLIPPED, images=30, drop_last=False, off=1, bit_equal_up_to=1
    ),
}


def train_by_hand(
    case: Case, accumulation: int, on_updates: bool, device: torch.device
) -> tuple[nn.Module, nn.Module, Any, list[float]]:
    """Train as timm's ``train.py`` does; return model, EMA model, optimizer and the learning rate of each update."""
    model, data = case.model().to(device), tiny_data(case.images)
    optimizer = case.create_optimizer(model, accumulation)
    sampler = KeyedSampler(RandomSampler(data), SEED)
    loader = DataLoader(SeededDataset(data, SEED), batch_sampler=WrongLength(sampler, case.drop_last, case.off))
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
        batches = list(loader)
        for start in range(0, len(batches), accumulation):
            group = batches[start : start + accumulation]
            total = sum(len(images) for images, _ in group)
            for index, (images, labels) in enumerate(group, start):
                images, labels = images.to(device), labels.to(device)
                seed_step(SEED, epoch, index, 0, device)
                loss = loss_fn(*_forward_mixed(model, mixup, images, labels))
                (loss * len(images) / total).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), case.clip_grad)
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            num_updates += 1
            _update_ema(ema_model, model, num_updates)
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


def _update_ema(ema_model: ModelEmaV3, model: nn.Module, num_updates: int) -> None:
    """Update as timm does; timm moves a tensor once for each of its names, so tied ones are moved by hand."""
    tensors, ema_tensors = ([*each.parameters(), *each.buffers()] for each in (model, ema_model.module))
    if len(tensors) == len(model.state_dict()):
        ema_model.update(model, step=num_updates)
        return
    with torch.no_grad():
        for ema_tensor, tensor in zip(ema_tensors, tensors, strict=True):
            if tensor.is_floating_point():
                ema_tensor.lerp_(tensor, weight=1.0 - ema_model.get_decay(num_updates))
            else:
                ema_tensor.copy_(tensor)


class Recording(TimmMixupTrainer):
    def training_run_start(self) -> None:
        self.rates: list[float] = []
        super().training_run_start()

    def optimizer_step(self) -> None:
        self.rates.append(self.learning_rate)
        super().optimizer_step()


def assert_trainer_equals_the_loop(
    case: Case, accumulation: int, on_updates: bool, evaluated: bool, device: str
) -> None:
    model, ema_model, optimizer, rates = train_by_hand(case, accumulation, on_updates, torch.device(device))

    ours, data = case.model(), tiny_data(case.images)
    trainer = make_trainer(
        Recording,
        ours,
        optimizer=case.create_optimizer(ours, accumulation),
        loss_func=BinaryCrossEntropy(target_threshold=0.2, smoothing=0.1),
        eval_loss_fn=nn.CrossEntropyLoss(),
        mixup_args=MIXUP,
        num_class=3,
        scheduler_args=SCHEDULE | {"step_on_epochs": not on_updates},
        ema_decay=0.6,
        clip_grad=case.clip_grad,
        seed=SEED,
    )
    fit(
        trainer,
        data,
        tiny_data(5) if evaluated else None,
        num_epochs=EPOCHS,
        per_device_batch_size=BATCH_SIZE,
        gradient_accumulation_steps=accumulation,
        train_dataloader_kwargs=NO_WORKERS | case.trainer_options(data),
    )

    def assert_equal(mine: torch.Tensor, by_hand: torch.Tensor) -> None:
        tolerance = 0.0 if case.is_exact(accumulation) else 1e-5
        torch.testing.assert_close(mine, by_hand, rtol=tolerance, atol=tolerance)

    assert trainer.rates == rates
    assert len(set(rates)) > 3 or not on_updates
    for mine, by_hand in ((trainer.model, model), (trainer.ema_model.module, ema_model)):
        assert mine.state_dict().keys() == by_hand.state_dict().keys()
        for name, tensor in by_hand.state_dict().items():
            assert_equal(mine.state_dict()[name], tensor)
    assert not same_weights(trainer.model, ema_model)
    slow, slow_by_hand = (
        [state["lookahead_slow_buff"] for state in wrapped._base_optimizer.state.values()]
        for wrapped in (trainer.unwrapped_optimizer, optimizer)
    )
    assert len(slow) == len(slow_by_hand) == len(list(model.parameters()))
    for pair in zip(slow, slow_by_hand, strict=True):
        assert_equal(*pair)


@pytest.mark.usefixtures("deterministic")
@pytest.mark.parametrize("device", ON_EACH_DEVICE)
@pytest.mark.parametrize("evaluated", [True, False])
@pytest.mark.parametrize("on_updates", [True, False])
@pytest.mark.parametrize("accumulation", [1, 2, 3])
def test_trainer_is_bit_equal_to_the_loop_written_by_hand(
    accumulation: int, on_updates: bool, evaluated: bool, device: str
) -> None:
    assert_trainer_equals_the_loop(Case(), accumulation, on_updates, evaluated, device)


@pytest.mark.usefixtures("deterministic")
@pytest.mark.parametrize("device", ON_EACH_DEVICE)
@pytest.mark.parametrize("on_updates", [True, False])
@pytest.mark.parametrize("accumulation", [1, 2, 3])
@pytest.mark.parametrize("case", CASES)
def test_it_is_so_with_tied_weights_and_loaders_whose_last_group_is_another(
    case: str, accumulation: int, on_updates: bool, device: str
) -> None:
    """Gradients of an update are the mean over its images, and each tensor moves once, whatever its names."""
    assert_trainer_equals_the_loop(CASES[case], accumulation, on_updates, not on_updates, device)
