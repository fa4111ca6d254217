"""Traps 1 to 7: what the article's script computes wrongly, and we do not."""

from copy import deepcopy
from functools import partial
from typing import Any

import pytest
import torch
import torchmetrics
from accelerate import Accelerator
from pytorch_accelerated.trainer import TrainerWithTimmScheduler
from timm.data import Mixup
from timm.loss import SoftTargetCrossEntropy
from timm.optim import Lookahead
from timm.scheduler import CosineLRScheduler
from timm.utils import ModelEmaV3
from tiny_runs import NO_WORKERS, fit, make_trainer, same_weights, tiny_data, tiny_model
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.classification import MulticlassAccuracy

from timm_accel import TimmMixupTrainer
from timm_accel.callbacks import Callback
from timm_accel.mixins import ClassificationMetricsMixin, LookaheadMixin, ModelEmaMixin, TimmSchedulerMixin

IN_ORDER = NO_WORKERS | {"shuffle": False}
TIMM_RATES = [0.0001, 0.00173, 0.00337, 0.0025, 0.00125, 0.00034]  # trap 5: of timm's loop
SCRIPT_RATES = [0.0001, 0.00337, 0.0025, 0.00125, 0.00034, 1e-6]


class RecordRates(Callback):
    """Keeps the learning rate of each epoch, and of each update."""

    def __init__(self) -> None:
        self.epochs: list[float] = []
        self.updates: list[float] = []

    def on_train_epoch_start(self, trainer: Any, **kwargs: Any) -> None:
        self.epochs.append(trainer.optimizer.param_groups[0]["lr"])

    def on_update_end(self, trainer: Any, **kwargs: Any) -> None:
        self.updates.append(trainer.optimizer.param_groups[0]["lr"])


class RecordModels(Callback):
    """Keeps a copy of the model after each update, and of model and slow weights after each training epoch."""

    def __init__(self) -> None:
        self.updates: list[nn.Module] = []
        self.epochs: list[nn.Module] = []
        self.slow: list[list[torch.Tensor]] = []

    def on_update_end(self, trainer: Any, **kwargs: Any) -> None:
        self.updates.append(deepcopy(trainer.unwrapped_model))

    def on_train_epoch_end(self, trainer: Any, **kwargs: Any) -> None:
        self.epochs.append(deepcopy(trainer.unwrapped_model))
        state = trainer.unwrapped_optimizer.state_dict()["state"]
        self.slow.append([s["lookahead_slow_buff"].clone() for s in state.values() if "lookahead_slow_buff" in s])


def no_dropout_model() -> nn.Sequential:
    model = tiny_model()
    model[4] = nn.Identity()
    return model


def sgd(model: nn.Module, lr: float = 0.1, momentum: float = 0.9) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=lr, momentum=momentum)


def mixup_trainer(lr: float = 0.1, **options: Any) -> TimmMixupTrainer:
    model = tiny_model()
    settings = {
        "optimizer": torch.optim.SGD(model.parameters(), lr=lr),
        "loss_func": SoftTargetCrossEntropy(),
        "eval_loss_fn": nn.CrossEntropyLoss(),
        "mixup_args": {},
        "num_class": 3,
        "ema_decay": 0.5,
    }
    return make_trainer(TimmMixupTrainer, model, **(settings | options))


# 1: accuracy of today's torchmetrics


def imbalanced_data() -> tuple[TensorDataset, torch.Tensor, torch.Tensor]:
    """Logits ``(40, 7)`` as images, where class 0 has 34 of 40 and is recognized better than the others."""
    labels = torch.cat([torch.zeros(34, dtype=torch.int64), torch.arange(1, 7)])
    logits = torch.randn(40, 7, generator=torch.Generator().manual_seed(3))
    logits[:20, 0] += 5
    return TensorDataset(logits, labels), logits, labels


def test_default_metrics_count_images_not_classes() -> None:
    data, logits, labels = imbalanced_data()
    model = nn.Linear(7, 7, bias=False)
    nn.init.eye_(model.weight)
    trainer = make_trainer(ClassificationMetricsMixin, model, num_classes=7)
    trainer.evaluate(data, per_device_batch_size=16, dataloader_kwargs=NO_WORKERS)

    ranked = logits.argsort(dim=1, descending=True).tolist()
    hits = sum(row[0] == label for row, label in zip(ranked, labels.tolist(), strict=True))
    hits_top5 = sum(label in row[:5] for row, label in zip(ranked, labels.tolist(), strict=True))
    assert 20 <= hits < hits_top5 < 40
    assert trainer.run_history.get_latest_metric("accuracy") == pytest.approx(hits / 40)
    assert trainer.run_history.get_latest_metric("accuracy_top5") == pytest.approx(hits_top5 / 40)
    assert abs(MulticlassAccuracy(7)(logits, labels).item() - hits / 40) > 0.1  # torchmetrics' default: by class


def test_the_articles_metric_is_a_type_error_today() -> None:
    with pytest.raises(TypeError, match="task"):
        torchmetrics.Accuracy(num_classes=7)


# 2: the last batch is odd


@pytest.mark.parametrize(("batch_size", "updates"), [(4, 2 * 4), (6, 2 * 3)])
def test_an_odd_last_batch_does_not_stop_mixup(batch_size: int, updates: int) -> None:
    data = tiny_data(19)
    *_, (images, labels) = DataLoader(data, batch_size)
    with pytest.raises(AssertionError, match="even"):
        Mixup(num_classes=3)(images, labels)

    trainer = mixup_trainer(mixup_args={"mixup_alpha": 0.2, "cutmix_alpha": 1.0})
    fit(trainer, data, tiny_data(9), per_device_batch_size=batch_size)
    assert trainer.num_updates == updates


# 3 and 4: Lookahead


def lookahead_by_hand(model: nn.Module, optimizer: Lookahead, epochs: int, sync: str) -> list[nn.Module]:
    """Train in the data's order, sync ``with gradients`` or ``after zero_grad``, and return the model of each epoch."""
    models = []
    for _ in range(epochs):
        for images, labels in DataLoader(tiny_data(), 4):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images), labels).backward()
            optimizer.step()
        if sync == "after zero_grad":
            optimizer.zero_grad()
        optimizer.sync_lookahead()
        models.append(deepcopy(model))
    return models


def test_lookahead_is_hidden_by_accelerate_and_a_no_op_without_gradients() -> None:
    model = no_dropout_model()
    optimizer = Lookahead(sgd(model), k=3)
    assert not hasattr(Accelerator().prepare(optimizer), "sync_lookahead")
    (model,) = lookahead_by_hand(model, optimizer, 1, "after zero_grad")
    slow = [state["lookahead_slow_buff"] for state in optimizer.state_dict()["state"].values()]
    assert not all(map(torch.equal, model.parameters(), slow))


@pytest.mark.parametrize(
    ("momentum", "k"),
    [
        (0.9, 3),  # the 4 updates of an epoch end between two of Lookahead's own
        (0.9, 6),  # the end of the first epoch comes before Lookahead's own first
        (0.0, 3),
        (0.0, 6),
    ],
)
def test_lookahead_syncs_at_the_end_of_each_epoch(momentum: float, k: int) -> None:
    model = no_dropout_model()
    by_hand = deepcopy(model)
    expected = lookahead_by_hand(by_hand, Lookahead(sgd(by_hand, momentum=momentum), k=k), 3, "with gradients")

    record, optimizer = RecordModels(), Lookahead(sgd(model, momentum=momentum), k=k)
    trainer = make_trainer(LookaheadMixin, model, optimizer=optimizer, callbacks=[record])
    fit(trainer, num_epochs=3, train_dataloader_kwargs=IN_ORDER)

    for fast, slow in zip(record.epochs, record.slow, strict=True):
        assert len(slow) == len(list(fast.parameters()))
        assert all(map(torch.equal, fast.parameters(), slow))
    assert all(map(same_weights, record.epochs, expected))


class LateBias(nn.Module):
    """A head whose bias gets no gradient until it is switched on."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.bias, self.on = nn.Linear(192, 3, bias=False), nn.Parameter(torch.zeros(3)), False

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits = self.head(images.flatten(1))
        return logits + self.bias if self.on else logits


class SwitchOn(Callback):
    """Switches the bias on after the first epoch."""

    def on_training_run_epoch_end(self, trainer: Any, **kwargs: Any) -> None:
        trainer.unwrapped_model.on = True


def test_a_parameter_that_gets_its_first_gradient_late_trains_on_from_there() -> None:
    model = LateBias()
    optimizer = Lookahead(torch.optim.AdamW(model.parameters()), k=3)
    fit(make_trainer(LookaheadMixin, model, optimizer=optimizer, callbacks=[SwitchOn]))
    assert model.bias.abs().min() > 0


# 5 and 6: the schedule


def article_schedule(optimizer: Any, **options: Any) -> CosineLRScheduler:
    settings = dict(t_initial=6, cycle_decay=0.5, lr_min=1e-6, warmup_t=3, warmup_lr_init=1e-4, cycle_limit=1)
    return CosineLRScheduler(optimizer, **(settings | options))


def learning_rates_of_timms_loop(epochs: int, updates_per_epoch: int, lr: float, **options: Any) -> list[float]:
    """The learning rate at the end of each update, by timm's rule: count updates, then epochs."""
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=lr)
    scheduler = article_schedule(optimizer, **options)
    rates, num_updates = [optimizer.param_groups[0]["lr"]], 0
    for epoch in range(epochs):
        for _ in range(updates_per_epoch):
            num_updates += 1
            scheduler.step_update(num_updates)
            rates.append(optimizer.param_groups[0]["lr"])
        scheduler.step(epoch + 1)
    return rates


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("eval_count", [0, 3])
def test_the_articles_schedule_has_timms_learning_rates_with_and_without_evaluation(
    accumulation: int, eval_count: int
) -> None:
    record = RecordRates()
    trainer = mixup_trainer(lr=5e-3, callbacks=[record])
    fit(
        trainer,
        eval_dataset=tiny_data(eval_count) if eval_count else None,
        num_epochs=6,
        gradient_accumulation_steps=accumulation,
        create_scheduler_fn=trainer.create_scheduler,
    )
    updates_per_epoch = 4 // accumulation
    assert record.epochs == learning_rates_of_timms_loop(6, updates_per_epoch, 5e-3)[1::updates_per_epoch]
    assert record.epochs == pytest.approx(TIMM_RATES, abs=5e-6)


def test_a_schedule_of_updates_has_timms_learning_rates_after_every_update() -> None:
    by_update = dict(t_initial=12, warmup_t=3, t_in_epochs=False)
    record = RecordRates()
    trainer = make_trainer(TimmSchedulerMixin, callbacks=[record])
    fit(trainer, num_epochs=3, create_scheduler_fn=partial(article_schedule, **by_update))
    assert record.updates == learning_rates_of_timms_loop(3, 4, 0.1, **by_update)[1:]
    assert len(set(record.updates)) == 12


@pytest.mark.parametrize(("eval_count", "expected"), [(3, SCRIPT_RATES), (0, [1e-4] * 6)])
def test_upstreams_timm_trainer_runs_an_epoch_ahead_and_needs_an_evaluation_set(
    eval_count: int, expected: list[float]
) -> None:
    record, model = RecordRates(), tiny_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=5e-3)
    trainer = TrainerWithTimmScheduler(model, nn.CrossEntropyLoss(), optimizer, callbacks=[record])
    data = tiny_data(eval_count) if eval_count else None
    fit(trainer, eval_dataset=data, num_epochs=6, create_scheduler_fn=article_schedule)
    assert record.epochs == pytest.approx(expected, abs=5e-6)


def test_evaluate_changes_no_learning_rate() -> None:
    trainer = mixup_trainer(lr=5e-3)
    fit(trainer, eval_dataset=tiny_data(3), num_epochs=3, create_scheduler_fn=article_schedule)
    rate = trainer.learning_rate
    assert rate == pytest.approx(TIMM_RATES[3], abs=5e-6)
    for _ in range(2):
        trainer.evaluate(tiny_data(3), dataloader_kwargs=NO_WORKERS)
    assert trainer.learning_rate == rate


# 7: EMA weights


def ema_by_hand(initial: nn.Module, models: list[nn.Module], warmup: bool, step: bool) -> nn.Module:
    ema = ModelEmaV3(initial, decay=0.6, use_warmup=warmup)
    for number, model in enumerate(models, start=1):
        ema.update(model, step=number if step else None)
    return ema.module


@pytest.mark.parametrize("warmup", [False, True])
def test_ema_weights_follow_every_update(warmup: bool) -> None:
    record, initial = RecordModels(), tiny_model()
    trainer = make_trainer(ModelEmaMixin, deepcopy(initial), callbacks=[record], ema_decay=0.6, ema_warmup=warmup)
    fit(trainer, num_epochs=3)

    assert len(record.updates) == 12
    assert same_weights(trainer.ema_model.module, ema_by_hand(initial, record.updates, warmup, step=True))
    once_an_epoch = record.updates[3::4]
    assert not same_weights(trainer.ema_model.module, ema_by_hand(initial, once_an_epoch, warmup, step=True))


def test_the_articles_trainer_updates_ema_weights_after_every_update_too() -> None:
    record = RecordModels()
    trainer = mixup_trainer(callbacks=[record], ema_decay=0.6)
    initial = deepcopy(trainer.model)
    fit(trainer, eval_dataset=tiny_data(3))
    assert same_weights(trainer.ema_model.module, ema_by_hand(initial, record.updates, warmup=True, step=True))
