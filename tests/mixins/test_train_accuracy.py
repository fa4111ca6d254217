"""The accuracy in training is that of the forward passes that were trained on, against hard labels."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from refusal import refused
from resumed_runs import Noting
from timm.loss import SoftTargetCrossEntropy
from tiny_runs import fit, make_trainer, tiny_data
from torch import nn

from timm_accel import TimmMixupTrainer, TimmTrainer
from timm_accel.callbacks import SaveStateCallback

NAME = "train_accuracy"


def counting(kind: type) -> type:
    """A trainer that counts by hand, per epoch: (right, labels that count)."""

    class Counting(kind):  # type: ignore[misc, valid-type]
        def train_epoch_start(self) -> None:
            super().train_epoch_start()
            counts.append([0, 0])

        def calculate_train_batch_loss(self, batch: Any) -> dict[str, Any]:
            output = super().calculate_train_batch_loss(batch)
            labels = batch[1]
            kept = labels != getattr(self.loss_func, "ignore_index", -100)
            counts[-1][0] += int((output["model_outputs"].argmax(1) == labels)[kept].sum())
            counts[-1][1] += int(kept.sum())
            return output

    counts: list[list[int]] = []
    Counting.counts = counts
    return Counting


def recorded(trainer: Any) -> list[float]:
    history = trainer.run_history
    return list(history.get_metric_values(NAME)) if NAME in history.get_metric_names() else []


def ignoring(count: int) -> Any:
    data = tiny_data(count)
    labels = data.tensors[1].clone()
    labels[::3] = -100
    return torch.utils.data.TensorDataset(data.tensors[0], labels)


@pytest.mark.parametrize("kind", [TimmTrainer, TimmMixupTrainer])
@pytest.mark.parametrize("accumulation", [1, 3])
@pytest.mark.parametrize(("data", "ignored"), [(tiny_data, -100), (ignoring, -100), (tiny_data, 1)])
def test_it_is_the_share_of_right_labels_that_the_loss_counts(
    kind: type, accumulation: int, data: Any, ignored: int
) -> None:
    kind = counting(kind)
    trainer = make_trainer(kind, num_classes=3, loss_func=nn.CrossEntropyLoss(ignore_index=ignored))
    fit(trainer, data(18), num_epochs=3, gradient_accumulation_steps=accumulation)
    assert recorded(trainer) == pytest.approx([right / count for right, count in kind.counts], abs=1e-12)
    assert len({count for _, count in kind.counts}) <= 3


def mixing(train_accuracy: bool | None, off: int | None = None) -> Any:
    return make_trainer(
        counting(TimmMixupTrainer),
        loss_func=SoftTargetCrossEntropy(),
        eval_loss_fn=nn.CrossEntropyLoss(),
        num_class=3,
        mixup_args={},
        mixup_off_epoch=off,
        train_accuracy=train_accuracy,
    )


@pytest.mark.parametrize(
    ("train_accuracy", "off", "epochs"), [(None, None, []), (None, 1, [1, 2]), (True, None, [0, 1, 2]), (False, 0, [])]
)
def test_mixed_images_are_left_out_unless_asked_for(
    train_accuracy: bool | None, off: int | None, epochs: list[int]
) -> None:
    trainer = fit(mixing(train_accuracy, off), num_epochs=3)
    by_hand = [right / count for right, count in type(trainer).counts]
    assert recorded(trainer) == pytest.approx([by_hand[epoch] for epoch in epochs], abs=1e-12)


def test_soft_targets_and_several_labels_have_none() -> None:
    data = tiny_data()
    hot = torch.utils.data.TensorDataset(data.tensors[0], nn.functional.one_hot(data.tensors[1], 3).float())
    soft = make_trainer(TimmTrainer, num_classes=3, loss_func=SoftTargetCrossEntropy())
    assert recorded(fit(soft, hot)) == []
    several = make_trainer(TimmTrainer, num_classes=3, loss_func=nn.BCEWithLogitsLoss(), multi_label=True)
    assert recorded(fit(several, hot)) == []


def test_a_batch_that_only_hooks_read_has_none_unless_asked_for() -> None:
    class Pairs(TimmTrainer):
        def calculate_train_batch_loss(self, batch: Any) -> dict[str, Any]:
            outputs = self.model(batch["x"])
            return {"loss": self.loss_func(outputs, batch["y"]), "model_outputs": outputs, "batch_size": len(outputs)}

    data: Any = [{"x": image, "y": label} for image, label in tiny_data()]
    assert recorded(fit(make_trainer(Pairs, num_classes=3), data)) == []
    with refused(TypeError, "unpack_batch"):
        fit(make_trainer(Pairs, num_classes=3, train_accuracy=True), data)


@pytest.mark.parametrize("updates", [1, 3, 4, 6])
def test_a_run_cut_within_an_epoch_counts_all_of_it(updates: int, tmp_path: Path) -> None:
    class Cut(Noting):
        def after_update(self) -> None:
            super().after_update()
            if self.num_updates == updates and resume is None:
                self.request_stop("Cut.", interrupted=True)

    found = []
    for folder, tries in ((tmp_path / "whole", ["auto"]), (tmp_path / "cut", [None, "auto"])):
        for resume in tries:
            options: dict[str, Any] = {"num_class": 3, "run_dir": folder, "sync_every_n_updates": 1}
            trainer = make_trainer(Cut, callbacks=[SaveStateCallback()], **options)
            with pytest.raises(SystemExit, match="75") if resume is None else nullcontext():
                fit(trainer, num_epochs=2, resume_from=resume)
        found.append(recorded(trainer))
    assert found[0] == found[1]
    assert len(found[0]) == 2
