"""The recorded evaluation loss is that of the whole set in one batch, worked out with numpy."""

import re
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from refusal import refused
from timm.loss import (
    AsymmetricLossMultiLabel,
    AsymmetricLossSingleLabel,
    BinaryCrossEntropy,
    JsdCrossEntropy,
    LabelSmoothingCrossEntropy,
    SoftTargetCrossEntropy,
    ZlprLoss,
)
from tiny_runs import NO_WORKERS, fit, make_trainer, tiny_data, tiny_model
from torch import nn
from torch.nn import functional
from torch.utils.data import TensorDataset

from timm_accel import LoopTrainer, TimmMixupTrainer, TimmTrainer
from timm_accel.losses import Divisors, ignored_label
from timm_accel.states.weights import metric_prefix


def named(value: object) -> str:
    """A name without an address in memory, the same in every process of the suite."""
    return re.sub(r" at 0x\w+", "", str(value))


WEIGHTS = torch.tensor([10.0, 1.0, 1.0])
SIZES = (1, 4, 7, 30)


def data(labels: torch.Tensor | None = None) -> TensorDataset:
    """30 images, whose classes come in blocks, so that batches have unequal weights."""
    images = tiny_data(30).tensors[0]
    return TensorDataset(images, torch.arange(30) // 10 if labels is None else labels)


def logits_of(dataset: TensorDataset, model: nn.Module | None = None) -> np.ndarray:
    with torch.no_grad():
        return (model or tiny_model()).eval()(dataset.tensors[0]).double().numpy()


def log_softmax(logits: np.ndarray) -> np.ndarray:
    return logits - np.log(np.exp(logits).sum(1, keepdims=True))


def weighted_cross_entropy(
    logits: np.ndarray, labels: np.ndarray, weights: Any = (1, 1, 1), ignored: int = -100, smoothing: float = 0.0
) -> float:
    logs, weights = log_softmax(logits), np.asarray(weights, dtype=float)
    total = divisor = 0.0
    for row, label in zip(logs, labels, strict=True):
        if label != ignored:
            total -= (1 - smoothing) * weights[label] * row[label] + smoothing / 3 * (weights * row).sum()
            divisor += weights[label]
    return total / divisor


def evaluated(loss: Any, dataset: Any, batch_size: int, kind: type[LoopTrainer] = LoopTrainer, **options: Any) -> float:
    trainer = make_trainer(kind, tiny_model(), loss_func=loss, **options)
    trainer.evaluate(dataset, per_device_batch_size=batch_size, dataloader_kwargs=NO_WORKERS)
    return trainer.run_history.get_latest_metric("evaluation_loss")


class WithinAnother(nn.Module):
    """A custom loss that computes a weighted mean as a function."""

    def forward(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return functional.cross_entropy(outputs, targets, WEIGHTS)


def as_function(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return functional.nll_loss(outputs.log_softmax(1), targets, WEIGHTS)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    "loss",
    [
        nn.CrossEntropyLoss(WEIGHTS),
        partial(functional.cross_entropy, weight=WEIGHTS),
        WithinAnother(),
        as_function,
        nn.Sequential(nn.LogSoftmax(1), nn.NLLLoss(WEIGHTS)),
    ],
    ids=["module", "partial", "custom", "function", "nll"],
)
def test_class_weights_give_the_loss_of_one_batch(loss: Any, size: int) -> None:
    if isinstance(loss, nn.Sequential):
        log_softmax_of, nll = loss

        def loss(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            return nll(log_softmax_of(outputs), targets)

    expected = weighted_cross_entropy(logits_of(data()), data().tensors[1].numpy(), WEIGHTS)
    assert evaluated(loss, data(), size) == pytest.approx(expected, rel=1e-6)


def test_the_mean_over_batches_of_class_weights_would_be_another() -> None:
    logits, labels = logits_of(data()), data().tensors[1].numpy()
    batches = [slice(start, start + 4) for start in range(0, 30, 4)]
    mean = sum(weighted_cross_entropy(logits[b], labels[b], WEIGHTS) * len(labels[b]) for b in batches) / 30
    assert abs(mean - weighted_cross_entropy(logits, labels, WEIGHTS)) > 0.01


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("ignored", "smoothing"), [(-100, 0.0), (2, 0.1), (255, 0.1), (-100, 0.2)])
@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_ignored_labels_and_smoothing_give_the_loss_of_one_batch(
    weights: Any, ignored: int, smoothing: float, size: int
) -> None:
    labels = torch.arange(30) // 10
    labels[3:9] = ignored  # all labels of a batch of 4 too
    loss = nn.CrossEntropyLoss(weights, ignore_index=ignored, label_smoothing=smoothing)
    given = (1, 1, 1) if weights is None else weights
    expected = weighted_cross_entropy(logits_of(data()), labels.numpy(), given, ignored, smoothing)
    assert evaluated(loss, data(labels), size) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("size", SIZES)
def test_probabilities_as_targets_are_a_mean_over_images(size: int) -> None:
    targets = torch.rand(30, 3, generator=torch.Generator().manual_seed(0)).softmax(1)
    expected = -(log_softmax(logits_of(data())) * targets.double().numpy() * WEIGHTS.numpy()).sum() / 30
    assert evaluated(nn.CrossEntropyLoss(WEIGHTS), data(targets), size) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("weighted", ["weight", "pos_weight"])
def test_binary_cross_entropy_with_weights_is_a_mean_over_elements(weighted: str, size: int) -> None:
    targets = (torch.rand(30, 3, generator=torch.Generator().manual_seed(0)) > 0.5).float()
    logits, labels, weights = logits_of(data()), targets.numpy(), WEIGHTS.numpy()
    positive, negative = labels * np.log1p(np.exp(-logits)), (1 - labels) * np.log1p(np.exp(logits))
    elements = (positive + negative) * weights if weighted == "weight" else positive * weights + negative
    loss = nn.BCEWithLogitsLoss(**{weighted: WEIGHTS})
    assert evaluated(loss, data(targets), size) == pytest.approx(elements.mean(), rel=1e-6)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("loss", "targets"),
    [
        (LabelSmoothingCrossEntropy(0.1), "label"),
        (AsymmetricLossSingleLabel(), "label"),
        (BinaryCrossEntropy(pos_weight=WEIGHTS), "label"),
        (SoftTargetCrossEntropy(), "soft"),
        (AsymmetricLossMultiLabel(weight=WEIGHTS), "several"),
        (AsymmetricLossMultiLabel(reduction="sum"), "several"),
        (ZlprLoss(), "several"),
        (nn.CrossEntropyLoss(WEIGHTS, reduction="sum"), "label"),
        (partial(functional.nll_loss, reduction="sum"), "label"),
        (nn.MultiMarginLoss(weight=WEIGHTS), "label"),
    ],
    ids=named,
)
def test_other_losses_of_torch_and_timm_give_that_of_one_batch(loss: Any, targets: str, size: int) -> None:
    drawn = torch.rand(30, 3, generator=torch.Generator().manual_seed(0))
    given = {"label": torch.arange(30) // 10, "soft": drawn.softmax(1), "several": (drawn > 0.5).float()}[targets]
    expected = loss(torch.from_numpy(logits_of(data())).float(), given).item()
    assert evaluated(loss, data(given), size) == pytest.approx(expected, rel=1e-5)


def test_the_loss_of_the_ema_model_is_weighted_in_the_same_way() -> None:
    recorded = []
    for size in (1, 7, 30):
        trainer = make_trainer(TimmMixupTrainer, loss_func=nn.CrossEntropyLoss(WEIGHTS), num_classes=3, ema_decay=0.1)
        fit(trainer, tiny_data(16), data(), num_epochs=1, eval_dataloader_kwargs=NO_WORKERS | {"batch_size": size})
        labels = data().tensors[1].numpy()
        for name, module in trainer.evaluated_models().items():
            expected = weighted_cross_entropy(logits_of(data(), module), labels, WEIGHTS)
            recorded.append(trainer.run_history.get_latest_metric(f"{metric_prefix(name)}eval_loss_epoch"))
            assert recorded[-1] == pytest.approx(expected, rel=1e-6)
    assert len(recorded) == 6


def test_the_evaluation_loss_decides_and_not_that_of_training() -> None:
    options = {"loss_func": nn.CrossEntropyLoss(WEIGHTS), "eval_loss_fn": nn.CrossEntropyLoss()}
    trainer = make_trainer(TimmTrainer, tiny_model(), **options)
    trainer.evaluate(data(), per_device_batch_size=4, dataloader_kwargs=NO_WORKERS)
    expected = weighted_cross_entropy(logits_of(data()), data().tensors[1].numpy())
    assert trainer.run_history.get_latest_metric("evaluation_loss") == pytest.approx(expected, rel=1e-6)


class OwnEvaluation(LoopTrainer):
    """Calls the loss itself, as upstream's examples do."""

    def calculate_eval_batch_loss(self, batch: Any) -> dict[str, Any]:
        outputs = self.model(batch[0])
        return {"loss": self.loss_func(outputs, batch[1]), "model_outputs": outputs, "batch_size": len(batch[1])}


class PlainEvaluation(LoopTrainer):
    """Evaluates without the weights that it trains with."""

    def evaluation_loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return functional.cross_entropy(outputs, targets)


def test_a_subclass_that_computes_its_loss_gets_what_that_loss_divides_by() -> None:
    logits, labels = logits_of(data()), data().tensors[1].numpy()
    weighted, plain = weighted_cross_entropy(logits, labels, WEIGHTS), weighted_cross_entropy(logits, labels)
    for loss in (nn.CrossEntropyLoss(WEIGHTS), as_function):
        assert evaluated(loss, data(), 4, OwnEvaluation) == pytest.approx(weighted, rel=1e-6)
    assert evaluated(nn.CrossEntropyLoss(WEIGHTS), data(), 4, PlainEvaluation) == pytest.approx(plain, rel=1e-6)


def test_a_loss_that_loops_over_images_is_a_mean_over_images() -> None:
    def one_by_one(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        pairs = zip(outputs.split(1), targets.split(1), strict=True)
        return torch.stack([functional.cross_entropy(*pair) for pair in pairs]).mean()

    expected = weighted_cross_entropy(logits_of(data()), data().tensors[1].numpy())
    for size in SIZES:
        assert evaluated(one_by_one, data(), size) == pytest.approx(expected, rel=1e-6)


class Still(LoopTrainer):
    """Trains in evaluation mode, so that the loss is that of the same weights without dropout."""

    def train_epoch_start(self) -> None:
        super().train_epoch_start()
        self.model.eval()


def trained(loss: Any, dataset: TensorDataset, batch_size: int, **options: Any) -> float:
    model = tiny_model()
    trainer = make_trainer(Still, model, loss_func=loss, optimizer=torch.optim.SGD(model.parameters(), lr=0.0))
    fit(trainer, dataset, num_epochs=1, per_device_batch_size=batch_size, **options)
    return trainer.run_history.get_latest_metric("train_loss_epoch")


@pytest.mark.parametrize("accumulation", [1, 3])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("loss", [nn.CrossEntropyLoss(WEIGHTS), WithinAnother(), as_function], ids=named)
def test_the_training_loss_with_class_weights_is_that_of_the_epoch_too(loss: Any, size: int, accumulation: int) -> None:
    expected = weighted_cross_entropy(logits_of(data()), data().tensors[1].numpy(), WEIGHTS)
    found = trained(loss, data(), size, gradient_accumulation_steps=accumulation)
    assert found == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("size", [4, 7, 30])
def test_the_training_loss_leaves_out_ignored_labels_and_counts_other_losses_by_images(size: int) -> None:
    logits, labels = logits_of(data()), torch.arange(30) // 10
    labels[::2] = 2
    some = torch.where(torch.arange(30) % 10 == 1, -100, labels)
    expected = weighted_cross_entropy(logits, some.numpy())
    assert trained(nn.CrossEntropyLoss(), data(some), size) == pytest.approx(expected, rel=1e-6)
    soft = functional.one_hot(labels, 3).float()
    expected = weighted_cross_entropy(logits, labels.numpy())
    assert trained(SoftTargetCrossEntropy(), data(soft), size) == pytest.approx(expected, rel=1e-6)
    total = trained(nn.CrossEntropyLoss(WEIGHTS, reduction="sum"), data(labels), size)
    divisor = WEIGHTS[labels].sum().item()
    assert total == pytest.approx(divisor * weighted_cross_entropy(logits, labels.numpy(), WEIGHTS), rel=1e-6)


def test_a_training_batch_of_ignored_labels_alone_is_a_loss_that_is_not_finite() -> None:
    labels = torch.arange(30) // 10
    labels[:29] = -100
    assert not np.isfinite(trained(nn.CrossEntropyLoss(), data(labels), 4))


def test_a_loss_that_is_an_object_keeps_its_attributes_in_training() -> None:
    class Counting:
        calls = 0

        def __call__(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            return functional.cross_entropy(outputs, targets)

    class Asking(Still):
        def calculate_train_batch_loss(self, batch: Any) -> dict[str, Any]:
            assert isinstance(self.loss_func, Counting)
            return super().calculate_train_batch_loss(batch)

    loss = Counting()
    fit(make_trainer(Asking, loss_func=loss), data(), num_epochs=1)
    assert loss.calls == 8


def test_losses_are_left_as_they_were() -> None:
    for loss in (nn.CrossEntropyLoss(WEIGHTS), as_function):
        trainer = make_trainer(loss_func=loss)
        trainer.evaluate(data(), per_device_batch_size=4, dataloader_kwargs=NO_WORKERS)
        assert trainer.loss_func is loss
        assert not getattr(loss, "_forward_hooks", {})
        assert not getattr(loss, "_forward_pre_hooks", {})


def test_a_loss_that_raises_is_no_longer_watched() -> None:
    owner = make_trainer(loss_func=nn.CrossEntropyLoss(WEIGHTS))
    divisors = Divisors()
    with pytest.raises(IndexError), divisors.watching(owner, "loss_func"):
        owner.loss_func(torch.zeros(2, 3), torch.tensor([0, 7]))
    divisors.take(2)
    functional.cross_entropy(torch.zeros(2, 3), torch.tensor([0, 1]))
    assert divisors.take(2) is None


@pytest.mark.parametrize("kind", [LoopTrainer, TimmTrainer])
def test_an_evaluation_of_ignored_labels_alone_is_an_error(kind: type[LoopTrainer]) -> None:
    ignored = data(torch.full((30,), -100))
    with refused(ValueError, "at least one label that the loss counts", "all of the 30 images"):
        evaluated(nn.CrossEntropyLoss(), ignored, 4, kind, **({"num_classes": 3} if kind is TimmTrainer else {}))


@pytest.mark.parametrize(
    ("loss", "ignored"),
    [
        (nn.CrossEntropyLoss(), -100),
        (nn.NLLLoss(ignore_index=255), 255),
        (nn.Sequential(nn.CrossEntropyLoss(ignore_index=7)), 7),
        (functional.cross_entropy, -100),
        (partial(functional.cross_entropy, ignore_index=9), 9),
        (partial(functional.nll_loss, weight=WEIGHTS), -100),
        (as_function, -100),
        (JsdCrossEntropy(smoothing=0), -100),
        (LabelSmoothingCrossEntropy(), None),
        (BinaryCrossEntropy(), None),
        (partial(LabelSmoothingCrossEntropy()), None),
    ],
    ids=named,
)
def test_the_label_that_a_loss_ignores_is_known(loss: Any, ignored: int | None) -> None:
    assert ignored_label(loss) == ignored
