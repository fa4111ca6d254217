"""Traps of timm (8, 34 to 39), torchmetrics (44, compute groups) and torch (60) that we do not fall into."""

from collections.abc import Callable
from copy import deepcopy
from functools import partial
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchmetrics
from pytorch_accelerated.callbacks import ConvertSyncBatchNormCallback
from pytorch_accelerated.trainer import Trainer
from timm.data import FastCollateMixup, Mixup
from timm.data.mixup import mixup_target
from timm.loss import SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from timm.utils import ModelEmaV3
from tiny_runs import NO_WORKERS, fit, make_trainer, same_weights, tiny_data, tiny_model
from torch import nn
from torch.optim.lr_scheduler import ReduceLROnPlateau, StepLR
from torch.utils.data import BatchSampler, DataLoader, Dataset, SequentialSampler, TensorDataset
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score

from timm_accel.callbacks import Callback
from timm_accel.mixins import (
    ClassificationMetricsMixin,
    DistributedBatchNormMixin,
    MixupMixin,
    ModelEmaMixin,
    SyncBatchNormMixin,
    TimmSchedulerMixin,
    batch_norm,
)
from timm_accel.training import LoopTrainer

SMOOTHING = 0.1


def echo_model(num_classes: int) -> nn.Module:
    """A model whose logits are the images ``(B, num_classes)`` themselves."""
    model = nn.Linear(num_classes, num_classes, bias=False)
    nn.init.eye_(model.weight)
    return model


class RecordSteps(Callback):
    """Keeps, of each training step, the loader's batch and the batch output's ``targets`` and logits."""

    def __init__(self) -> None:
        self.images: list[torch.Tensor] = []
        self.labels: list[torch.Tensor] = []
        self.targets: list[torch.Tensor] = []
        self.outputs: list[torch.Tensor] = []

    def on_train_step_end(self, trainer: Any, batch: Any, batch_output: Any, **kwargs: Any) -> None:
        self.images.append(batch[0].clone())
        self.labels.append(batch[1].clone())
        self.targets.append(batch_output["targets"].clone())
        self.outputs.append(batch_output["model_outputs"].detach().clone())


class RecordingLoss(SoftTargetCrossEntropy):
    """Keeps the targets that the loss receives."""

    def __init__(self) -> None:
        super().__init__()
        self.targets: list[torch.Tensor] = []

    def forward(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        self.targets.append(targets.clone())
        return super().forward(logits, targets)


def mixup_trainer(mixup_off_epoch: int | None = None, callbacks: Any = (), **mixup_args: Any) -> MixupMixin:
    """A trainer that keeps the soft targets in its loss, and the images that its model sees in ``mixed``."""
    mixup_args = {"num_classes": 3, "label_smoothing": SMOOTHING} | mixup_args
    trainer = make_trainer(
        MixupMixin,
        loss_func=RecordingLoss(),
        mixup_args=mixup_args,
        mixup_off_epoch=mixup_off_epoch,
        callbacks=callbacks,
    )
    trainer.mixed = mixed = []
    trainer.model.register_forward_pre_hook(lambda model, inputs: mixed.append(inputs[0].clone()))
    return trainer


# 8: SyncBatchNorm


def test_our_conversion_to_sync_batch_norm_keeps_timms_activations() -> None:
    model, images = timm.create_model("test_efficientnet", num_classes=3).eval(), torch.randn(2, 3, 32, 32)
    ours = batch_norm.convert_sync_batchnorm(deepcopy(model))
    torchs = nn.SyncBatchNorm.convert_sync_batchnorm(deepcopy(model))

    num_norms = sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    assert sum(isinstance(module, nn.SyncBatchNorm) for module in ours.modules()) == num_norms > 0
    with torch.no_grad():
        torch.testing.assert_close(ours(images), model(images))
        assert (torchs(images) - model(images)).abs().max() > 0.01


def test_upstreams_conversion_is_refused() -> None:
    with pytest.raises(ValueError, match=r"drops the activation .* Pass sync_bn=True"):
        make_trainer(SyncBatchNormMixin, callbacks=[ConvertSyncBatchNormCallback])


@pytest.mark.parametrize(
    ("mixin", "options"),
    [
        (SyncBatchNormMixin, {"sync_bn": True}),
        (DistributedBatchNormMixin, {"dist_bn": "reduce"}),
        (DistributedBatchNormMixin, {"dist_bn": "broadcast"}),
        (DistributedBatchNormMixin, {"dist_bn": None}),
    ],
)
def test_on_one_process_batch_norm_stays_as_it_is(mixin: type, options: dict[str, Any]) -> None:
    expected = fit(make_trainer(), eval_dataset=tiny_data(6))
    trainer = fit(make_trainer(mixin, **options), eval_dataset=tiny_data(6))
    assert type(trainer.model[1]) is nn.BatchNorm2d
    assert same_weights(trainer.model, expected.model)
    assert trainer.run_history._metrics == expected.run_history._metrics


def test_ddp_leaves_batch_norm_statistics_alone_when_we_distribute_them() -> None:
    assert make_trainer(DistributedBatchNormMixin).ddp_kwargs() == {"broadcast_buffers": False}
    assert make_trainer(DistributedBatchNormMixin, dist_bn=None).ddp_kwargs() == {}


# 34: Mixup that is really off


def test_timms_mixup_in_the_collate_function_continues_in_persistent_workers() -> None:
    pixels = np.zeros((3, 8, 8), dtype=np.uint8)
    mixup = FastCollateMixup(num_classes=3, label_smoothing=SMOOTHING)
    loader = DataLoader(
        [(pixels, number % 3) for number in range(4)],
        batch_size=4,
        collate_fn=mixup,
        num_workers=1,
        persistent_workers=True,
    )
    smoothed = mixup_target(torch.tensor([0, 1, 2, 0]), 3, smoothing=SMOOTHING)
    assert not torch.equal(next(iter(loader))[1], smoothed)
    mixup.mixup_enabled = False
    assert not torch.equal(next(iter(loader))[1], smoothed)


PERSISTENT = {"num_workers": 1, "persistent_workers": True}


@pytest.mark.parametrize(
    ("off", "mixed_epochs", "mode", "loader"),
    [
        (2, 2, "batch", PERSISTENT),
        (2, 2, "batch", NO_WORKERS),
        (2, 2, "pair", NO_WORKERS),
        (2, 2, "elem", NO_WORKERS),
        (0, 0, "batch", NO_WORKERS),
        (None, 4, "batch", NO_WORKERS),
    ],
)
def test_mixup_is_off_from_its_epoch_on(off: int | None, mixed_epochs: int, mode: str, loader: dict[str, Any]) -> None:
    record = RecordSteps()
    trainer = mixup_trainer(off, [record], mode=mode, cutmix_alpha=1.0)
    fit(trainer, num_epochs=4, train_dataloader_kwargs=loader)

    smoothed = [mixup_target(labels, 3, smoothing=SMOOTHING) for labels in record.labels]
    targets_mixed = [not torch.allclose(*pair) for pair in zip(trainer.loss_func.targets, smoothed, strict=True)]
    images_mixed = [not torch.equal(*pair) for pair in zip(trainer.mixed, record.images, strict=True)]
    assert images_mixed == [True] * 4 * mixed_epochs + [False] * 4 * (4 - mixed_epochs)
    assert targets_mixed[4 * mixed_epochs :] == [False] * 4 * (4 - mixed_epochs)
    assert sum(targets_mixed) >= 3 * mixed_epochs  # a batch whose labels read the same backwards stays


def test_a_second_run_mixes_again_until_that_epoch() -> None:
    record = RecordSteps()
    trainer = mixup_trainer(1, [record])
    for _ in range(2):
        fit(trainer)
    mixed = [not torch.equal(*pair) for pair in zip(trainer.mixed, record.images, strict=True)]
    assert mixed == 2 * ([True] * 4 + [False] * 4)


# 35: layer decay


class RecordRates(LoopTrainer):
    """Keeps, for each update and parameter group, the learning rate that moved it, and the group's ``lr``."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.rates: list[list[float]] = []
        self.group_rates: list[list[float]] = []
        super().__init__(*args, **kwargs)

    def optimizer_step(self) -> None:
        groups = [group["params"] for group in self.optimizer.param_groups]
        before = [[parameter.detach().clone() for parameter in group] for group in groups]
        super().optimizer_step()
        self.rates.append([_rate(*pair) for pair in zip(before, groups, strict=True)])
        self.group_rates.append([group["lr"] for group in self.optimizer.param_groups])


def _rate(before: list[torch.Tensor], parameters: list[nn.Parameter]) -> float:
    """The learning rate of plain SGD: the length of the step over that of the gradient."""
    moved = torch.cat([(old - new.detach()).flatten() for old, new in zip(before, parameters, strict=True)])
    gradient = torch.cat([parameter.grad.flatten() for parameter in parameters])
    return float(moved.norm() / gradient.norm())


class RecordScheduledRates(RecordRates, TimmSchedulerMixin):
    """The same with our schedules."""


def train_with_layer_decay(kind: type, **options: Any) -> tuple[Any, list[float]]:
    """Train for 4 updates in 2 epochs, and return the trainer and the ``lr_scale`` of each group."""
    torch.manual_seed(0)
    model = timm.create_model("test_vit", img_size=16, num_classes=3).double()
    optimizer = create_optimizer_v2(model, opt="momentum", momentum=0, lr=0.1, weight_decay=0, layer_decay=0.5)
    scales = [group["lr_scale"] for group in optimizer.param_groups]
    assert len(set(scales)) > 3
    images = torch.randn(8, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    data = TensorDataset(images, torch.arange(8) % 3)
    init_options = {name: options.pop(name) for name in ("scheduler_args",) if name in options}
    return fit(make_trainer(kind, model, optimizer=optimizer, **init_options), data, **options), scales


HALVING: dict[str, Callable[..., Any]] = {
    "none": lambda optimizer: None,
    "StepLR": partial(StepLR, step_size=1, gamma=0.5),
    "ReduceLROnPlateau": partial(ReduceLROnPlateau, factor=0.5, patience=0, threshold=1e9, mode="max"),
    "timm": partial(CosineLRScheduler, t_initial=4, t_in_epochs=False),
}
EXPECTED_RATES = {
    "none": [0.1, 0.1, 0.1, 0.1],
    "StepLR": [0.1, 0.05, 0.025, 0.0125],
    "ReduceLROnPlateau": [0.1, 0.1, 0.1, 0.1],
    "timm": [0.1, 0.05 * (1 + 0.5**0.5), 0.05, 0.05 * (1 - 0.5**0.5)],
}


@pytest.mark.parametrize("name", HALVING)
def test_layer_decay_acts_with_every_kind_of_schedule_and_with_none(name: str) -> None:
    schedule = {} if name == "none" else {"create_scheduler_fn": HALVING[name]}
    trainer, scales = train_with_layer_decay(RecordScheduledRates, **schedule)
    for update, rate in enumerate(EXPECTED_RATES[name]):
        assert trainer.rates[update] == pytest.approx([rate * scale for scale in scales], rel=1e-6)
        in_group = [rate * scale for scale in scales] if name == "timm" else [rate] * len(scales)
        assert trainer.group_rates[update] == pytest.approx(in_group, rel=1e-9)


def test_layer_decay_acts_once_in_a_run_after_one_with_a_schedule_of_timm() -> None:
    model = tiny_model()
    groups = [{"params": [parameter], "lr_scale": 0.5} for parameter in model.parameters()]
    optimizer = torch.optim.SGD(groups, lr=0.1)
    trainer = make_trainer(TimmSchedulerMixin, model, optimizer=optimizer, scheduler_args={"sched": "constant"})
    fit(trainer)
    assert [group["lr"] for group in trainer.optimizer.param_groups] == [0.1] * len(groups)


def test_layer_decay_acts_with_scheduler_args() -> None:
    trainer, scales = train_with_layer_decay(RecordScheduledRates, scheduler_args={"sched": "step", "decay_epochs": 1})
    for update, rate in enumerate([0.1, 0.1, 0.01, 0.01]):
        assert trainer.rates[update] == pytest.approx([rate * scale for scale in scales], rel=1e-6)


@pytest.mark.parametrize("name", ["none", "StepLR"])
def test_without_the_mixin_layer_decay_is_ignored(name: str) -> None:
    schedule = {} if name == "none" else {"create_scheduler_fn": HALVING[name]}
    trainer, scales = train_with_layer_decay(RecordRates, **schedule)
    for update, rate in enumerate(EXPECTED_RATES[name]):
        assert trainer.rates[update] == pytest.approx([rate] * len(scales), rel=1e-6)


def test_learning_rates_are_restored_when_the_step_fails() -> None:
    def fail(*args: Any) -> None:
        raise RuntimeError("broken optimizer")

    model = tiny_model()
    optimizer = torch.optim.SGD([{"params": model.parameters(), "lr_scale": 0.5}], lr=0.1)
    optimizer.register_step_pre_hook(fail)
    trainer = make_trainer(TimmSchedulerMixin, model, optimizer=optimizer)
    with pytest.raises(RuntimeError, match="broken optimizer"):
        fit(trainer)
    assert optimizer.param_groups[0]["lr"] == 0.1


# 36: the warm-up of EMA weights


class RecordModels(Callback):
    """Keeps a copy of the weights after each update."""

    def __init__(self) -> None:
        self.models: list[dict[str, torch.Tensor]] = []

    def on_update_end(self, trainer: Any, **kwargs: Any) -> None:
        self.models.append(deepcopy(trainer.unwrapped_model.state_dict()))


def warmed_up(num_updates: int, decay: float) -> float:
    """The decay at an update by timm's rule: none at the first, then 1 - n^(-2/3), at most `decay`."""
    return 0.0 if num_updates == 1 else min(decay, 1 - num_updates ** (-2 / 3))


def test_timms_ema_without_a_step_ignores_the_warm_up() -> None:
    ema_model = ModelEmaV3(nn.Linear(1, 1), decay=0.9, use_warmup=True)
    assert ema_model.get_decay() == 0.9
    assert [ema_model.get_decay(step) for step in range(1, 40)] == pytest.approx(
        [warmed_up(step, 0.9) for step in range(1, 40)]
    )


@pytest.mark.parametrize("every", [1, 2, "epoch"])
def test_the_warm_up_of_ema_weights_depends_on_the_number_of_updates(every: int | str) -> None:
    record = RecordModels()
    trainer = make_trainer(ModelEmaMixin, callbacks=[record], ema_decay=0.65, ema_update_every=every)
    for _ in range(2):  # a second run begins the warm-up again
        initial = trainer.model[0].weight.detach().clone()
        record.models.clear()
        fit(trainer, num_epochs=10)

        assert len(record.models) == 40
        expected = initial
        for number, model in enumerate(record.models, start=1):
            if number % (4 if every == "epoch" else every) == 0:
                expected = expected.lerp(model["0.weight"], 1 - warmed_up(number, 0.65))
        torch.testing.assert_close(trainer.ema_model.module[0].weight.detach(), expected, rtol=1e-5, atol=1e-7)


# 38: nothing to train on


def test_torch_and_upstream_train_on_no_batch_in_silence() -> None:
    data, model = tiny_data(3), tiny_model()
    assert len(DataLoader(data, batch_size=4, drop_last=True)) == 0
    before = deepcopy(model)
    trainer = Trainer(model, nn.CrossEntropyLoss(), torch.optim.SGD(model.parameters(), lr=0.1), callbacks=())
    fit(trainer, data, train_dataloader_kwargs=NO_WORKERS | {"drop_last": True})
    assert same_weights(model, before)


def test_fewer_images_than_a_batch_are_an_error_when_the_last_batch_is_dropped() -> None:
    with pytest.raises(ValueError, match="Expected train_dataset to fill at least one batch of 4, but got 3 images"):
        fit(make_trainer(), tiny_data(3), train_dataloader_kwargs=NO_WORKERS | {"drop_last": True})
    with pytest.raises(ValueError, match="Expected train_dataset to fill at least one batch of 4, but got 2 images"):
        fit(mixup_trainer(), tiny_data(2), train_dataloader_kwargs=NO_WORKERS | {"drop_last": True})
    with pytest.raises(ValueError, match="Expected the eval loader to give at least one batch, but got none from 3"):
        fit(make_trainer(), eval_dataset=tiny_data(3), eval_dataloader_kwargs=NO_WORKERS | {"drop_last": True})
    with pytest.raises(ValueError, match="Expected the eval loader to give at least one batch, but got none from 3"):
        make_trainer().evaluate(
            tiny_data(3), per_device_batch_size=4, dataloader_kwargs=NO_WORKERS | {"drop_last": True}
        )


def test_a_batch_sampler_that_drops_everything_is_an_error_too() -> None:
    data = tiny_data(3)
    loader = NO_WORKERS | {"batch_sampler": BatchSampler(SequentialSampler(data), 4, drop_last=True)}
    with pytest.raises(ValueError, match="Expected the train loader to give at least one batch, but got none from 3"):
        fit(make_trainer(), data, train_dataloader_kwargs=loader)


# 39: Mixup's manners


@pytest.mark.parametrize("mode", ["batch", "pair", "elem"])
@pytest.mark.parametrize("alphas", [{"mixup_alpha": 1.0}, {"mixup_alpha": 0.0, "cutmix_alpha": 1.0}])
def test_mixing_leaves_the_loaders_batch_as_it_was(alphas: dict[str, float], mode: str) -> None:
    data = tiny_data()
    images, labels = data[:8]
    mixed = images.clone()
    Mixup(num_classes=3, mode=mode, **alphas)(mixed, labels)
    assert not torch.equal(mixed, images)  # timm's Mixup edits in place

    record = RecordSteps()
    trainer = mixup_trainer(callbacks=[record], mode=mode, **alphas)
    fit(trainer, data, train_dataloader_kwargs=NO_WORKERS | {"shuffle": False})
    assert torch.equal(torch.cat(record.images), torch.cat([data[:][0], data[:][0]]))
    assert torch.equal(torch.cat(record.labels), torch.cat([data[:][1], data[:][1]]))
    assert not torch.equal(torch.cat(trainer.mixed), torch.cat(record.images))


class DisturbNumpy(Callback):
    """Leaves numpy's global generator in another state before each step."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_step_start(self, trainer: Any, **kwargs: Any) -> None:
        np.random.seed(self.seed)


def test_what_is_mixed_does_not_depend_on_numpys_state_before() -> None:
    def mixed(seed: int) -> torch.Tensor:
        np.random.seed(seed)
        trainer = mixup_trainer(callbacks=[DisturbNumpy(seed)], cutmix_alpha=1.0)
        fit(trainer)
        return torch.cat(trainer.mixed)

    assert torch.equal(mixed(0), mixed(1))


# 44: hard labels for metrics


def test_soft_targets_give_torchmetrics_accuracy_0_without_an_error() -> None:
    labels = torch.arange(3)
    soft = mixup_target(labels, 3, smoothing=SMOOTHING)
    logits = 5 * torch.eye(3)
    assert torchmetrics.functional.accuracy(logits, labels, "multiclass", num_classes=3) == 1
    assert torchmetrics.functional.accuracy(logits, soft, "multiclass", num_classes=3) == 0


class MixupWithMetrics(MixupMixin, ClassificationMetricsMixin):
    """Mixes, and counts the training images that were classified rightly by the batch output's ``targets``."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.training_accuracy = MulticlassAccuracy(3, average="micro")
        super().__init__(*args, **kwargs)

    def calculate_train_batch_loss(self, batch: Any) -> dict[str, Any]:
        output = super().calculate_train_batch_loss(batch)
        self.training_accuracy.update(output["model_outputs"], output["targets"])
        return output

    def evaluation_loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return super().evaluation_loss(outputs, mixup_target(targets, 3))


def test_metrics_see_hard_labels_although_the_loss_sees_soft_ones() -> None:
    record, loss_func, eval_data = RecordSteps(), RecordingLoss(), tiny_data(9, seed=5)
    trainer = make_trainer(
        MixupWithMetrics, loss_func=loss_func, mixup_args={"num_classes": 3}, num_classes=3, callbacks=[record]
    )
    fit(trainer, eval_dataset=eval_data, num_epochs=3)

    assert {(targets.ndim, targets.dtype) for targets in loss_func.targets} == {(2, torch.float32)}
    assert {(targets.ndim, targets.dtype) for targets in record.targets} == {(1, torch.int64)}
    assert torch.equal(torch.cat(record.targets), torch.cat(record.labels))
    rightly = (torch.cat(record.outputs).argmax(dim=1) == torch.cat(record.labels)).float().mean()
    assert trainer.training_accuracy.compute() == rightly > 0.2
    trainer.model.eval()
    images, labels = eval_data[:]
    with torch.no_grad():
        hits = sum(
            int(trainer.model(image[None]).argmax()) == label for image, label in zip(images, labels, strict=True)
        )
    assert hits > 2
    assert trainer.run_history.get_latest_metric("accuracy") == pytest.approx(hits / 9)


def test_a_trainer_over_soft_labels_can_hand_hard_ones_to_the_metrics() -> None:
    class Hardened(ClassificationMetricsMixin):
        def calculate_eval_batch_loss(self, batch: Any) -> dict[str, Any]:
            return {"targets": batch[1].argmax(dim=1)} | super().calculate_eval_batch_loss(batch)

    labels = torch.tensor([0, 1, 2, 1, 0, 2])
    logits = 3 * nn.functional.one_hot(torch.tensor([0, 1, 2, 1, 2, 1]), 3).float()  # 4 of 6
    data = TensorDataset(logits, mixup_target(labels, 3, smoothing=SMOOTHING))
    trainer = make_trainer(Hardened, echo_model(3), num_classes=3)
    trainer.evaluate(data, dataloader_kwargs=NO_WORKERS)
    assert trainer.run_history.get_latest_metric("accuracy") == pytest.approx(4 / 6)


# Found here: torchmetrics' compute groups


def logits_right_at_first() -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and labels of 42 images in 7 classes: none of the first 14 is wrong, most of the others are."""
    labels = torch.arange(42) % 7
    logits = torch.randn(42, 7, generator=torch.Generator().manual_seed(4))
    logits[torch.arange(14), labels[:14]] += 20
    return logits, labels


def f1_by_hand(logits: torch.Tensor, labels: torch.Tensor) -> float:
    predicted, labels = logits.argmax(dim=1).tolist(), labels.tolist()
    scores = []
    for label in range(7):
        right = sum(p == t == label for p, t in zip(predicted, labels, strict=True))
        scores.append(2 * right / (predicted.count(label) + labels.count(label)))
    return sum(scores) / 7


def three_metrics() -> dict[str, torchmetrics.Metric]:
    return {
        "accuracy": MulticlassAccuracy(7, average="micro"),
        "f1_macro": MulticlassF1Score(7, average="macro"),
        "accuracy_top5": MulticlassAccuracy(7, top_k=5, average="micro"),
    }


def test_torchmetrics_lets_f1_become_another_metric_after_a_first_batch_without_errors() -> None:
    logits, labels = logits_right_at_first()
    collection = MetricCollection(three_metrics())
    for batch in zip(logits.split(14), labels.split(14), strict=True):
        collection.update(*batch)
    assert abs(collection.compute()["f1_macro"].item() - f1_by_hand(logits, labels)) > 0.1


@pytest.mark.parametrize("options", [{"num_classes": 7}, {"metrics": MetricCollection(three_metrics())}])
def test_a_first_batch_without_errors_does_not_mix_metrics_up(options: dict[str, Any]) -> None:
    logits, labels = logits_right_at_first()
    top5 = sum(int(label) in row[-5:] for row, label in zip(logits.argsort(dim=1).tolist(), labels, strict=True)) / 42
    expected = {
        "accuracy": float((logits.argmax(dim=1) == labels).float().mean()),
        "f1_macro": f1_by_hand(logits, labels),
        "accuracy_top5": top5,
    }
    trainer = make_trainer(ClassificationMetricsMixin, echo_model(7), **options)
    for _ in range(2):
        trainer.evaluate(TensorDataset(logits, labels), per_device_batch_size=14, dataloader_kwargs=NO_WORKERS)
        found = {name: trainer.run_history.get_latest_metric(name) for name in expected}
        assert found == pytest.approx(expected)
    assert len(set(expected.values())) == 3


# 60: dropout and the loader


class Noisy(Dataset):
    """Images that are drawn again each time, by the generator that dropout uses too."""

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return torch.randn(3, 8, 8), index % 3

    def __len__(self) -> int:
        return 16


class RecordMasks(nn.Dropout):
    """Dropout that keeps which values it dropped."""

    def __init__(self) -> None:
        super().__init__(0.5)
        self.masks: list[torch.Tensor] = []

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        self.masks.append(super().forward(torch.ones_like(values)) == 0)
        return values * ~self.masks[-1]


def masks_of(train: Callable[[nn.Module, dict[str, Any]], Any], loader: dict[str, Any]) -> torch.Tensor:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Flatten(), RecordMasks(), nn.Linear(192, 3))
    train(model, loader)
    return torch.cat(model[1].masks)


def train_bare(model: nn.Module, loader: dict[str, Any]) -> None:
    torch.manual_seed(1)
    for images, _ in DataLoader(Noisy(), batch_size=4, **loader):
        model(images)


def train_ours(model: nn.Module, loader: dict[str, Any]) -> None:
    fit(make_trainer(model=model), Noisy(), train_dataloader_kwargs=loader)


def test_a_bare_loops_dropout_depends_on_the_number_of_workers() -> None:
    assert not torch.equal(masks_of(train_bare, {"num_workers": 0}), masks_of(train_bare, {"num_workers": 1}))


@pytest.mark.parametrize("persistent", [False, True])
def test_dropout_does_not_depend_on_the_number_of_workers(persistent: bool) -> None:
    alone = masks_of(train_ours, {"num_workers": 0})
    assert len(alone.unique(dim=0)) == 32  # 16 images in 2 epochs, each dropped otherwise
    assert torch.equal(alone, masks_of(train_ours, {"num_workers": 1, "persistent_workers": persistent}))
