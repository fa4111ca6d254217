"""Losses: timm's, their class weights, and what goes with what."""

from typing import Any

import pytest
import torch
from refusal import refused
from timm.data import MultiLabelTarget
from timm.loss import (
    DistributionBalancedLoss,
    JsdCrossEntropy,
    LabelSmoothingCrossEntropy,
    PolyCrossEntropy,
    SoftTargetCrossEntropy,
)
from tiny_runs import fit, make_trainer, tiny_model
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, one_hot

from timm_accel import TimmTrainer
from timm_accel.losses import KINDS, create_loss, refuse_other_weights, refuse_softmax_loss

LOGITS = torch.tensor([[2.0, 0.0, 1.0], [0.5, 1.5, -1.0], [0.0, 0.0, 3.0], [1.0, -2.0, 0.5]])
LABELS = torch.tensor([0, 1, 1, 2])
SEVERAL = torch.tensor([[1.0, 0, 1], [0, 1, 0], [1, 1, 1], [0, 0, 0]])


class Counted:
    """What a loss reads from a dataset: 10 images, 6 cats, 3 dogs and 1 owl."""

    class_names = ("cat", "dog", "owl")
    class_sizes = {"cat": 6, "dog": 3, "owl": 1}  # noqa: RUF012
    target_transform: Any = None

    def __len__(self) -> int:
        return 10


class SeveralLabels(Counted):
    target_transform = MultiLabelTarget(3)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dataset", [Counted(), SeveralLabels()])
def test_every_kind_trains_and_evaluates_where_it_may(kind: str, dataset: Any) -> None:
    several = isinstance(dataset, SeveralLabels)
    if kind in (("ce",) if several else ("twoway", "zlpr", "db")):
        with refused(
            ValueError, "kind to be one of", "the dataset is multi-label" if several else "one label", repr(kind)
        ):
            create_loss(kind, dataset=dataset)
        return
    train_loss, eval_loss = create_loss(kind, dataset=dataset)
    logits = LOGITS.clone().requires_grad_()
    train_loss(logits, SEVERAL if several else LABELS).backward()
    assert logits.grad.abs().sum() > 0
    if several:
        assert eval_loss(LOGITS, SEVERAL) == binary_cross_entropy_with_logits(LOGITS, SEVERAL)
    else:
        assert eval_loss(LOGITS, LABELS) == cross_entropy(LOGITS, LABELS)


def test_the_default_is_cross_entropy_and_binary_cross_entropy_for_multi_label() -> None:
    assert torch.equal(create_loss()[0](LOGITS, LABELS), cross_entropy(LOGITS, LABELS))
    loss, _ = create_loss(multi_label=True, smoothing=0.2)
    assert torch.equal(loss(LOGITS, SEVERAL), binary_cross_entropy_with_logits(LOGITS, SEVERAL * 0.8 + 0.1))


def test_smoothing_is_for_hard_labels_since_mixup_smooths_soft_ones() -> None:
    assert isinstance(create_loss("ce", smoothing=0.1)[0], LabelSmoothingCrossEntropy)
    assert isinstance(create_loss("ce", smoothing=0.1, soft_targets=True)[0], SoftTargetCrossEntropy)
    hard, soft = (create_loss("ce", smoothing=0.1, class_weights=[1, 1, 1], soft_targets=soft)[0] for soft in (0, 1))
    assert torch.allclose(hard(LOGITS, LABELS), LabelSmoothingCrossEntropy(0.1)(LOGITS, LABELS))
    assert torch.allclose(soft(LOGITS, one_hot(LABELS).float()), cross_entropy(LOGITS, LABELS))


def test_options_of_the_kind_reach_timm() -> None:
    loss, _ = create_loss("poly", poly_epsilon=1.0)
    assert torch.equal(loss(LOGITS, LABELS), PolyCrossEntropy(epsilon=1.0)(LOGITS, LABELS))
    assert not torch.equal(loss(LOGITS, LABELS), PolyCrossEntropy(epsilon=2.0)(LOGITS, LABELS))


def test_distribution_balanced_loss_counts_the_dataset() -> None:
    loss, _ = create_loss("db", dataset=SeveralLabels())
    assert torch.equal(loss(LOGITS, SEVERAL), DistributionBalancedLoss([6, 3, 1], 10)(LOGITS, SEVERAL))
    given, _ = create_loss("db", multi_label=True, class_counts=[5, 5, 5], num_samples=10)
    assert not torch.equal(given(LOGITS, SEVERAL), loss(LOGITS, SEVERAL))


def test_auto_weights_are_inverse_to_the_numbers_of_images_with_mean_1() -> None:
    loss, _ = create_loss("ce", dataset=Counted(), class_weights="auto")
    inverse = torch.tensor([10 / 6, 10 / 3, 10])
    assert torch.allclose(loss.weight, inverse / inverse.mean())
    assert loss.weight.mean().item() == pytest.approx(1)
    own = cross_entropy(LOGITS, LABELS, loss.weight)
    assert torch.equal(loss(LOGITS, LABELS), own)


def test_auto_positive_weights_are_the_images_without_over_those_with() -> None:
    loss, _ = create_loss("bce", dataset=SeveralLabels(), pos_weights="auto")
    assert loss.weight is None
    expected = binary_cross_entropy_with_logits(LOGITS, SEVERAL, pos_weight=torch.tensor([4 / 6, 7 / 3, 9.0]))
    assert torch.allclose(loss(LOGITS, SEVERAL), expected)


@pytest.mark.parametrize("kind", ["ce", "bce"])
def test_weights_by_name_leave_the_other_classes_alone(kind: str) -> None:
    by_name, _ = create_loss(kind, dataset=Counted(), class_weights={"owl": 3})
    listed, _ = create_loss(kind, class_weights=[1, 1, 3.0])
    assert by_name.weight.tolist() == listed.weight.tolist() == [1, 1, 3]


def test_torch_has_two_formulas_for_the_same_hard_and_one_hot_label() -> None:
    loss, _ = create_loss("ce", class_weights=[1.6, 1.0])
    logits, label = torch.tensor([[0.2371, 0.7629]]).log(), torch.tensor([0])
    assert loss(logits, label).item() == pytest.approx(1.439, abs=5e-4)
    assert loss(logits, one_hot(label, 2).float()).item() == pytest.approx(2.303, abs=5e-4)


def test_a_loss_over_a_softmax_is_refused_for_multi_label_alone() -> None:
    refuse_softmax_loss("loss_func", nn.CrossEntropyLoss(), Counted(), None)
    refuse_softmax_loss("loss_func", create_loss("bce")[0], SeveralLabels())
    plain, weighted = create_loss("ce")[0], create_loss("ce", class_weights=[1, 2])[0]
    smooth, soft = create_loss("ce", smoothing=0.1)[0], create_loss("ce", soft_targets=True)[0]
    for loss in (plain, weighted, smooth, soft, create_loss("poly")[0], create_loss("asl")[0], JsdCrossEntropy()):
        with refused(ValueError, "loss_func", "each class by itself", type(loss).__name__, "create_loss"):
            refuse_softmax_loss("loss_func", loss, Counted(), SeveralLabels())


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({"class_weights": [1, 2]}, "2 numbers as its weight"),
        ({"class_weights": [2]}, "1 numbers as its weight"),
        ({"kind": "bce", "class_weights": [1, 2, 1, 2]}, "4 numbers as its weight"),
        ({"kind": "bce", "pos_weights": [1, 2]}, "2 numbers as its pos_weight"),
        ({"kind": "asl", "multi_label": True, "pos_weights": [1, 2]}, "2 numbers as its pos_weight"),
    ],
)
@pytest.mark.parametrize("num_classes", [3, None])
def test_weights_for_another_number_of_classes_are_refused_before_the_first_batch(
    options: dict[str, Any], found: str, num_classes: int | None
) -> None:
    """Also where the model alone tells how many there are."""
    loss, _ = create_loss(**options)
    model = tiny_model()
    if num_classes is None:
        model.num_classes = 3  # type: ignore[assignment]
    trainer = make_trainer(TimmTrainer, model, loss_func=loss, num_classes=num_classes)
    with refused(ValueError, "loss_func to weigh each of the 3 classes", found):
        fit(trainer)
    assert trainer.num_updates == 0
    trainer = make_trainer(TimmTrainer, model, eval_loss_fn=loss, num_classes=num_classes)
    with refused(ValueError, "eval_loss_fn to weigh each of the 3 classes", found):
        fit(trainer)


@pytest.mark.parametrize(
    "loss",
    [
        create_loss(class_weights=[1, 2, 3])[0],
        create_loss("bce", pos_weights=[1, 2, 3])[0],
        nn.BCEWithLogitsLoss(pos_weight=torch.tensor(3.0)),
        nn.BCEWithLogitsLoss(pos_weight=torch.tensor([3.0])),
        nn.BCEWithLogitsLoss(weight=torch.ones(4, 3)),
        nn.CrossEntropyLoss(),
        lambda outputs, targets: outputs.sum(),
    ],
)
def test_weights_that_torch_can_use_are_left_alone(loss: Any) -> None:
    refuse_other_weights("loss_func", loss, 3)
    refuse_other_weights("loss_func", create_loss(class_weights=[1, 2])[0], None)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"kind": "jsd"}, ("kind", "augmented copies", "'jsd'", "Choose one of ce, bce, asl, poly")),
        ({"kind": "bec"}, ("kind", "'bec'", "Did you mean 'bce'")),
        ({"class_weights": [1, 2]}, ("class_weights", "3 classes", "got 2")),
        ({"class_weights": {"cta": 2}}, ("class_weights", "'cta'", "Did you mean 'cat'")),
        ({"class_weights": {"cat": -1}}, ("class_weights", "positive", "-1")),
        ({"class_weights": [1, 0, 1]}, ("class_weights", "positive", "0")),
        ({"class_weights": [1, float("nan"), 1]}, ("class_weights", "positive", "nan")),
        ({"class_weights": "balanced"}, ("class_weights", "'auto'", "'balanced'")),
        ({"class_weights": [1, 1, 1], "kind": "poly"}, ("class_weights", "None", "'poly'", "choose bce")),
        ({"class_weights": [1, 1, 1], "kind": "asl"}, ("class_weights", "None", "'asl'", "choose bce")),
        ({"pos_weights": [1, 1, 1]}, ("pos_weights", "None", "'ce'", "use class_weights")),
        ({"kind": "asl", "soft_targets": True}, ("soft_targets", "hard labels", "Mixup")),
        ({"kind": "zlpr", "multi_label": True, "soft_targets": True}, ("soft_targets", "zlpr")),
        ({"kind": "twoway", "multi_label": True, "smoothing": 0.1}, ("smoothing", "twoway", "0.1")),
        ({"smoothing": 1}, ("smoothing", "below 1", "1")),
        ({"kind": "bce", "bce_target_tresh": 0.2}, ("options", "'bce_target_tresh'", "'bce_target_thresh'")),
        ({"kind": "ce", "bce_sum": True}, ("options", "'ce'", "'bce_sum'", "It has none")),
        ({"kind": "bce", "asl_clip": 0.1}, ("options", "'bce'", "'asl_clip'")),
        ({"kind": "poly", "poly_gamma": 2.0}, ("options", "'poly'", "poly_gamma", "multi-label")),
    ],
)
def test_bad_options_are_named(options: dict[str, Any], words: tuple[str, ...]) -> None:
    with refused(ValueError, "Expected", *words):
        create_loss(**({"dataset": Counted()} | options))


def test_what_is_counted_or_named_needs_a_dataset_that_can() -> None:
    with refused(TypeError, "class_sizes", "class_weights='auto'", "NoneType"):
        create_loss(class_weights="auto")
    with refused(TypeError, "name its classes", "class_weights", "cat"):
        create_loss(class_weights={"cat": 2})
    with refused(TypeError, "class_sizes", "kind='db'"):
        create_loss("db", multi_label=True)
