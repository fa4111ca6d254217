"""Batches of one image, models and optimizers that are none, images of a wrong dtype, and zero learning rates."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from refusal import refused
from timm.loss import SoftTargetCrossEntropy
from tiny_runs import NO_WORKERS, fit, make_trainer, same_weights, tiny_data, tiny_model
from torch import nn
from torch.utils.data import TensorDataset

from timm_accel import LoopTrainer, TimmMixupTrainer, TimmTrainer, create_classifier
from timm_accel.lr_finder import find_lr
from timm_accel.mixins import DistillationMixin


def pooled_norm() -> nn.Module:
    """BatchNorm over one value per image and channel, as in an MLP head."""
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.BatchNorm1d(4), nn.Linear(4, 3))


SENTENCE = ("at least 2 images", "BatchNorm", "got one of 1 image", "drop_last=True")


@pytest.mark.parametrize("kind", [LoopTrainer, TimmTrainer])
@pytest.mark.parametrize(
    ("images", "batch", "loader"),
    [(33, 8, {"drop_last": False}), (9, 4, {"drop_last": False}), (6, 1, {"drop_last": False}), (6, 1, {}), (1, 1, {})],
)
def test_a_batch_of_one_image_is_refused_before_training_where_batch_norm_fails(
    kind: type, images: int, batch: int, loader: dict[str, Any]
) -> None:
    trainer = make_trainer(kind, pooled_norm())
    with refused(ValueError, *SENTENCE):
        fit(trainer, tiny_data(images), per_device_batch_size=batch, train_dataloader_kwargs={**NO_WORKERS, **loader})
    assert trainer.num_updates == 0


def test_the_mlp_head_on_one_pixel_is_refused_too() -> None:
    model, _ = create_classifier("test_resnet", num_classes=3, head="mlp", image_size=32)
    data = TensorDataset(torch.randn(5, 3, 32, 32), torch.arange(5) % 3)
    options = {"per_device_batch_size": 4, "num_epochs": 1}
    with refused(ValueError, *SENTENCE):
        fit(make_trainer(LoopTrainer, model), data, **options)
    assert fit(make_trainer(TimmTrainer, model), data, **options).num_updates == 1


@pytest.mark.parametrize(
    ("model", "images", "loader"),
    [
        (tiny_model, 9, {"drop_last": False}),  # 36 values per channel
        (partial(tiny_model, batch_norm=False), 9, {"drop_last": False}),
        (pooled_norm, 9, {"drop_last": True}),
        (pooled_norm, 10, {"drop_last": False}),
    ],
)
def test_a_batch_of_one_image_that_the_model_can_take_is_trained_on(model: Any, images: int, loader: Any) -> None:
    trainer = make_trainer(LoopTrainer, model())
    fit(trainer, tiny_data(images), num_epochs=1, train_dataloader_kwargs={**NO_WORKERS, **loader})
    assert trainer.num_updates == images // 4 + (not loader["drop_last"])


def test_a_frozen_norm_takes_one_image() -> None:
    model = pooled_norm()

    class Frozen(LoopTrainer):
        def train_epoch_start(self) -> None:
            super().train_epoch_start()
            self.model[3].eval()

    loader = {**NO_WORKERS, "batch_sampler": [[0], [1, 2]]}  # a sampler that tells no sizes is not refused
    assert fit(make_trainer(Frozen, model), num_epochs=1, train_dataloader_kwargs=loader).num_updates == 2


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"optimizer": [torch.optim.SGD([nn.Parameter(torch.zeros(1))])]}, ("optimizer", "got list", "groups of one")),
        ({"optimizer": torch.optim.SGD}, ("optimizer", "got the class SGD", "was created")),
        ({"optimizer": "adamw"}, ("optimizer", "got str")),
        ({"model": nn.Linear}, ("model", "got the class Linear", "was created")),
        ({"model": "resnet18"}, ("model", "got str")),
    ],
)
def test_what_is_no_model_or_optimizer_is_one_sentence(options: dict[str, Any], words: tuple[str, ...]) -> None:
    given = {"model": tiny_model(), "optimizer": torch.optim.SGD([nn.Parameter(torch.zeros(1))]), **options}
    with refused(TypeError, *words):
        LoopTrainer(loss_func=nn.CrossEntropyLoss(), callbacks=(), **given)


@pytest.mark.parametrize("kind", [LoopTrainer, TimmTrainer, partial(TimmMixupTrainer, mixup_args={}, num_class=3)])
def test_a_trainer_without_an_optimizer_evaluates_and_refuses_to_train(kind: Any, tmp_path: Path) -> None:
    """Public clients evaluate so; `load_checkpoint` of upstream has a sentence for it."""
    words = ("one torch optimizer", "got NoneType", "created over the model's parameters")
    trainer, wanted = make_trainer(kind, optimizer=None), make_trainer(kind)
    for each in (trainer, trainer, wanted):
        each.evaluate(tiny_data(9), dataloader_kwargs=NO_WORKERS)
    losses = [each.run_history.get_latest_metric("evaluation_loss") for each in (trainer, wanted)]
    assert losses[0] == losses[1]
    with refused(TypeError, *words):
        fit(trainer)
    with refused(TypeError, *words):
        find_lr(trainer, tiny_data())
    trainer.save_checkpoint(tmp_path / "weights.pt")
    assert "optimizer_state_dict" not in torch.load(tmp_path / "weights.pt", weights_only=True)
    trainer.load_checkpoint(tmp_path / "weights.pt")
    trainer.optimizer = torch.optim.SGD(trainer.model.parameters(), lr=0.1)  # from now on it trains
    assert same_weights(fit(trainer).model, fit(wanted).model)


def test_a_projection_of_distillation_needs_an_optimizer() -> None:
    with refused(TypeError, "one torch optimizer", "got NoneType"):
        make_trainer(DistillationMixin, optimizer=None, distill_teacher=tiny_model(), distill_kind="feature")


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float64, torch.float16, torch.int64])
def test_images_of_a_dtype_that_the_model_does_not_take_are_one_sentence(dtype: torch.dtype) -> None:
    images, labels = tiny_data().tensors
    data = TensorDataset(images.to(dtype), labels)
    with refused(TypeError, "images to be torch.float32", f"got {dtype}", "create_datasets()"):
        fit(make_trainer(), data)
    trainer = make_trainer()
    with refused(TypeError, "images to be torch.float32", f"got {dtype}"):
        trainer.evaluate(data, dataloader_kwargs=NO_WORKERS)


def test_a_model_that_takes_bytes_is_given_them() -> None:
    class Bytes(nn.Sequential):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return super().forward(images.float() / 255)

    images, labels = tiny_data().tensors
    data = TensorDataset(images.clamp(0, 9).byte(), labels)
    assert fit(make_trainer(LoopTrainer, Bytes(*tiny_model())), data).num_updates == 8


def grouped(*groups: dict[str, float]) -> tuple[nn.Module, torch.optim.Optimizer]:
    model = tiny_model()
    parts = [model[0].parameters(), model[5].parameters(), model[1].parameters()]
    settings = [{"params": list(part), **group} for part, group in zip(parts, groups, strict=False)]
    return model, torch.optim.SGD(settings, lr=0.1)


@pytest.mark.parametrize(
    "scheduler", [{"sched": "cosine", "warmup_epochs": 0}, {"sched": "step", "decay_epochs": 1}, None]
)
def test_a_scale_or_learning_rate_of_zero_trains_and_leaves_its_group_as_it_is(scheduler: Any) -> None:
    model, optimizer = grouped({"lr_scale": 0.0}, {"lr_scale": 0.5}, {"lr": 0.0})
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    trainer = make_trainer(TimmTrainer, model, optimizer=optimizer, scheduler_args=scheduler)
    for _ in range(2):  # a second run begins with the same learning rates
        fit(trainer)
        after = model.state_dict()
        for name in ("0.weight", "0.bias", "1.weight", "1.bias"):
            assert torch.equal(after[name], before[name])
        assert not torch.equal(after["5.weight"], before["5.weight"])
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1)  # unscaled again, as it was given


@pytest.mark.parametrize("warmup", [0, 1])
def test_schedules_from_and_to_zero_work(warmup: int) -> None:
    args = {"sched": "cosine", "min_lr": 0.0, "warmup_lr": 0.0, "warmup_epochs": warmup, "step_on_epochs": False}
    trainer = fit(make_trainer(TimmTrainer, scheduler_args=args), num_epochs=3)
    assert trainer.learning_rate == pytest.approx(0.0, abs=1e-3)


def test_a_range_test_leaves_a_group_without_a_learning_rate_alone_and_refuses_a_first_one() -> None:
    model, optimizer = grouped({"lr": 0.1}, {"lr": 0.0})
    result = find_lr(make_trainer(LoopTrainer, model, optimizer=optimizer), tiny_data(), num_updates=10,
                     train_dataloader_kwargs=NO_WORKERS, per_device_batch_size=4)  # fmt: skip
    assert len(result.learning_rates) > 2
    model, optimizer = grouped({"lr": 0.0}, {"lr": 0.1})
    with refused(ValueError, "first group has a positive learning rate", "got [0.0, 0.1]"):
        find_lr(make_trainer(LoopTrainer, model, optimizer=optimizer), tiny_data())


def test_an_optimizer_of_another_model_is_refused() -> None:
    for kind in (LoopTrainer, TimmTrainer):
        trainer = make_trainer(kind, tiny_model(), optimizer=torch.optim.SGD(tiny_model().parameters(), lr=0.1))
        with refused(ValueError, "optimizer to have parameters of the model", "got none", "model.parameters()"):
            fit(trainer)


@pytest.mark.parametrize(
    ("callbacks", "words"),
    [("x", ("a list", "got str")), (None, ("got NoneType",)), (["x"], ("events", "'x'")), ([3], ("events", "got 3"))],
)
def test_what_is_no_callback_is_one_sentence(callbacks: Any, words: tuple[str, ...]) -> None:
    with refused(TypeError, *words):
        make_trainer(callbacks=callbacks)


@pytest.mark.parametrize("images", [3, 4, 5])
def test_a_soft_target_loss_on_integer_labels_is_refused_in_training_and_evaluation(images: int) -> None:
    soft = SoftTargetCrossEntropy()
    with refused(
        ValueError, "loss_func", "integer labels", "SoftTargetCrossEntropy", "eval_loss_fn=nn.CrossEntropyLoss()"
    ):
        fit(make_trainer(TimmTrainer, loss_func=soft))
    with refused(ValueError, "evaluation loss", "SoftTargetCrossEntropy"):
        make_trainer(TimmTrainer, loss_func=soft).evaluate(tiny_data(images), dataloader_kwargs=NO_WORKERS)
    with refused(ValueError, "eval_loss_fn", "SoftTargetCrossEntropy"):
        make_trainer(TimmTrainer, eval_loss_fn=soft).evaluate(tiny_data(images), dataloader_kwargs=NO_WORKERS)
