"""Distillation: timm's losses in the trainer's loop, and the student alone everywhere else."""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from accelerate.state import AcceleratorState
from refusal import refused
from timm.data import MultiLabelTarget
from timm.loss import SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2
from tiny_runs import NO_WORKERS, differences, fit, make_trainer, same_weights, tiny_data, tiny_model
from torch import nn
from torch.nn.functional import cross_entropy, kl_div, log_softmax, mse_loss
from torch.utils.data import TensorDataset

from timm_accel import TimmMixupTrainer
from timm_accel.callbacks import SaveBestCallback, SaveStateCallback
from timm_accel.mixins import DistillationMixin, GradientClippingMixin, MixupMixin
from timm_accel.models import save_classifier

SIZE = 32


def images(count: int = 8) -> TensorDataset:
    generator = torch.Generator().manual_seed(4)
    labels = torch.arange(count) % 3
    return TensorDataset(torch.randn(count, 3, SIZE, SIZE, generator=generator) + labels[:, None, None, None], labels)


def create(name: str, seed: int = 0, **options: Any) -> Any:
    torch.manual_seed(seed)
    return timm.create_model(name, **({"num_classes": 3} | options))


def token_student(seed: int = 0) -> Any:
    small = dict(img_size=SIZE, embed_dim=24, depth=1, num_heads=2)
    return create("deit_tiny_distilled_patch16_224", seed, **small)


class Losses(DistillationMixin):
    """Notes the loss of each batch, and the student before it."""

    def training_run_start(self) -> None:
        self.losses: list[float] = []
        super().training_run_start()

    def calculate_train_batch_loss(self, batch: Any) -> dict[str, Any]:
        output = super().calculate_train_batch_loss(batch)
        self.losses.append(output["loss"].item())
        self.logits = output["model_outputs"]
        return output


def first_loss(student: nn.Module, data: TensorDataset, **options: Any) -> Any:
    trainer = make_trainer(Losses, student, **options)
    return fit(trainer, data, num_epochs=1, per_device_batch_size=8)


def as_seen_by(teacher: Any, batch_images: torch.Tensor, student: Any) -> torch.Tensor:
    """Images normalized as the teacher wants them, from those of the student."""
    (mean, std), (own_mean, own_std) = (
        [torch.tensor(model.pretrained_cfg[name]).view(1, 3, 1, 1) for name in ("mean", "std")]
        for model in (student, teacher)
    )
    return (batch_images * std + mean - own_mean) / own_std


def kullback_leibler(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    student, teacher = (log_softmax(logits / temperature, 1) for logits in (student, teacher))
    return (teacher.exp() * (teacher - student)).sum(1).mean() * temperature**2


def test_the_logit_loss_is_that_of_a_hand_written_loop() -> None:
    data, teacher, twin = images(), create("test_resnet", 1).eval(), create("test_efficientnet")
    batch_images, labels = data.tensors
    with torch.no_grad():
        taught = teacher(as_seen_by(teacher, batch_images, twin))
        logits = twin.train()(batch_images)
    trainer = first_loss(
        create("test_efficientnet"), data, distill_teacher=teacher.train(), distill_alpha=0.3, distill_temperature=2.0
    )
    expected = 0.7 * cross_entropy(logits, labels) + 0.3 * kullback_leibler(logits, taught, 2.0)
    assert trainer.losses[0] == pytest.approx(expected.item(), rel=1e-5)
    assert trainer.logits.shape == (8, 3)
    assert not teacher.training


@pytest.mark.parametrize("hard", [False, True])
def test_the_token_loss_is_of_the_distillation_head(hard: bool) -> None:
    data, teacher, twin = images(), create("test_resnet", 1).eval(), token_student()
    batch_images, labels = data.tensors
    twin.set_distilled_training(True)
    with torch.no_grad():
        taught = teacher(as_seen_by(teacher, batch_images, twin))
        logits, token = twin.train()(batch_images)
    student = token_student()
    trainer = make_trainer(Losses, student, distill_teacher=teacher, distill_kind="token", distill_hard=hard)
    assert not student.distilled_training
    fit(trainer, data, num_epochs=1, per_device_batch_size=8)
    distance = cross_entropy(token, taught.argmax(1)) if hard else kullback_leibler(token, taught, 1.0)
    expected = 0.5 * cross_entropy(logits, labels) + 0.5 * distance
    assert trainer.losses[0] == pytest.approx(expected.item(), rel=1e-5)
    assert isinstance(student.train()(batch_images), torch.Tensor)  # as before the run


def feature_options(**options: Any) -> dict[str, Any]:
    teacher = create("test_resnet", 1, num_classes=5)  # whose classes do not matter
    return {"distill_teacher": teacher, "distill_kind": "feature", **options}


def test_the_feature_loss_is_of_projected_features() -> None:
    data, student, options = images(), create("test_efficientnet"), feature_options(distill_alpha=0.4)
    teacher = options["distill_teacher"].eval()
    trainer = make_trainer(Losses, student, **options)
    projection = trainer.components()["distill_projection"]
    weight, bias = (parameter.detach().clone() for parameter in projection.parameters())
    batch_images, labels = data.tensors
    twin = create("test_efficientnet").train()
    with torch.no_grad():
        seen = as_seen_by(teacher, batch_images, twin)
        taught = teacher.forward_head(teacher.forward_features(seen), pre_logits=True)
        maps = twin.forward_features(batch_images)
        logits, features = twin.forward_head(maps), twin.forward_head(maps, pre_logits=True)
    fit(trainer, data, num_epochs=1, per_device_batch_size=8)
    expected = 0.6 * cross_entropy(logits, labels) + 0.4 * mse_loss(features @ weight.T + bias, taught)
    assert trainer.losses[0] == pytest.approx(expected.item(), rel=1e-5)
    assert not torch.equal(projection.weight, weight)  # it is trained
    assert trainer.model is student


@pytest.mark.parametrize("opt", ["sgd", "lookahead_adamw"])
def test_the_projection_joins_the_optimizer_once(opt: str) -> None:
    student = create("test_efficientnet")
    optimizer = create_optimizer_v2(student, opt, lr=0.01)
    groups = len(optimizer.param_groups)
    trainer = make_trainer(DistillationMixin, student, optimizer=optimizer, **feature_options())
    projection = trainer.components()["distill_projection"]
    before = projection.weight.clone()
    for _ in range(2):
        fit(trainer, images(), images(), num_epochs=1)
    trainer.evaluate(images(), per_device_batch_size=4, dataloader_kwargs=NO_WORKERS)
    assert trainer.model is student
    assert len(optimizer.param_groups) == groups + 1
    assert [id(each) for each in optimizer.param_groups[-1]["params"]] == [id(each) for each in projection.parameters()]
    assert not torch.equal(before, projection.weight)


def test_named_parameters_stay_named() -> None:
    student = create("test_efficientnet")
    optimizer = torch.optim.SGD(student.named_parameters(), lr=0.1)
    make_trainer(DistillationMixin, student, optimizer=optimizer, **feature_options())
    assert optimizer.param_groups[-1]["param_names"] == ["projection.weight", "projection.bias"]


def states_of_the_generators() -> tuple[Any, ...]:
    return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()


def test_the_projection_comes_from_the_seed_and_nothing_else_moves() -> None:
    def projection(seed: int, moved: int) -> nn.Module:
        student, options = create("test_efficientnet"), feature_options()
        for generator in (random.seed, np.random.seed, torch.manual_seed):
            generator(moved)
        before = states_of_the_generators()
        trainer = make_trainer(DistillationMixin, student, seed=seed, **options)
        assert states_of_the_generators() == before
        return trainer.components()["distill_projection"]

    first = projection(7, moved=1)
    assert same_weights(first, projection(7, moved=2))
    other = projection(8, moved=1)
    assert not torch.equal(first.weight, other.weight)
    assert not torch.equal(first.bias, other.bias)
    bound = first.in_features**-0.5  # that of torch's initialization
    assert 0.9 * bound < first.weight.abs().max() <= bound


def test_two_runs_with_the_same_seed_have_the_same_bits_whatever_was_drawn_before() -> None:
    def trained(moved: int) -> Any:
        student, options = create("test_efficientnet"), feature_options()
        torch.manual_seed(moved)
        return fit(make_trainer(DistillationMixin, student, seed=7, **options), images(), num_epochs=1)

    first, second = trained(1), trained(2)
    assert same_weights(first.model, second.model)
    assert same_weights(*(each.components()["distill_projection"] for each in (first, second)))


def test_making_a_trainer_of_all_mixins_draws_nothing(tmp_path: Path) -> None:
    save_classifier(create("test_resnet"), tmp_path / "teacher", ["a", "b", "c"])  # a model is made from it
    student = create("test_efficientnet")
    before = states_of_the_generators()
    make_trainer(
        TimmMixupTrainer,
        student,
        loss_func=SoftTargetCrossEntropy(),
        num_class=3,
        mixup_args={"mixup_alpha": 0.8},
        ema_decay=0.9,
        clip_grad=1.0,
        freeze_schedule={0: -1, 1: 0},
        resolutions=[32, 64],
        scheduler_args={"sched": "cosine", "warmup_epochs": 0},
        distill_teacher=tmp_path / "teacher",
        distill_kind="feature",
    )
    assert states_of_the_generators() == before


def test_equal_widths_need_no_projection() -> None:
    student = create("test_resnet")
    trainer = make_trainer(DistillationMixin, student, **feature_options())
    assert trainer.components() == {}
    assert len(trainer.optimizer.param_groups) == 1
    fit(trainer, images(), num_epochs=1)


def run(run_dir: Path, epochs: int, teacher: Any, **options: Any) -> Any:
    student = create("test_efficientnet")
    trainer = make_trainer(
        TimmMixupTrainer,
        student,
        optimizer=torch.optim.AdamW(student.parameters(), lr=0.01),
        loss_func=SoftTargetCrossEntropy(),
        eval_loss_fn=nn.CrossEntropyLoss(),
        mixup_args={"cutmix_alpha": 1.0},
        num_class=3,
        ema_decay=0.1,
        callbacks=[SaveBestCallback(), SaveStateCallback],
        run_dir=run_dir,
        distill_teacher=teacher,
        distill_kind=options.pop("kind"),
    )
    return fit(trainer, images(), images(), num_epochs=epochs, per_device_batch_size=2, **options)


@pytest.mark.parametrize("kind", ["logit", "feature"])
def test_a_resumed_run_is_bit_equal_and_best_holds_the_student_alone(kind: str, tmp_path: Path) -> None:
    teacher = create("test_resnet", 1)
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    whole = run(tmp_path / "whole", 2, teacher, kind=kind)
    run(tmp_path / "cut", 1, teacher, kind=kind)
    resumed = run(tmp_path / "cut", 2, teacher, kind=kind, resume_from="auto")
    assert same_weights(whole.unwrapped_model, resumed.unwrapped_model)
    assert same_weights(whole.ema_model.module, resumed.ema_model.module)
    states = [trainer.unwrapped_optimizer.state_dict() for trainer in (whole, resumed)]
    assert differences(*states) == []
    if kind == "feature":
        assert same_weights(*(trainer.components()["distill_projection"] for trainer in (whole, resumed)))
    student = create("test_efficientnet")
    for folder in ("best", "best_ema"):
        kept = timm.create_model(f"local-dir:{tmp_path / 'whole' / folder}", pretrained=True)
        assert kept.state_dict().keys() == student.state_dict().keys()
    assert differences(before, dict(teacher.state_dict())) == []  # BatchNorm's statistics too
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_a_teacher_of_the_users_own_sees_the_students_images() -> None:
    data, student = images(), create("vit_tiny_patch16_224", img_size=SIZE, embed_dim=24, depth=1, num_heads=2)
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIZE * SIZE, 3))
    trainer = first_loss(student, data, distill_teacher=teacher, distill_alpha=1.0)
    batch_images, _ = data.tensors
    with torch.no_grad():
        twin = create("vit_tiny_patch16_224", img_size=SIZE, embed_dim=24, depth=1, num_heads=2).train()
        teacher_logs, student_logs = log_softmax(teacher(batch_images), 1), log_softmax(twin(batch_images), 1)
    expected = kl_div(student_logs, teacher_logs, reduction="batchmean", log_target=True)
    assert trainer.losses[0] == pytest.approx(expected.item(), rel=1e-5)


@pytest.fixture
def _in_bf16(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """accelerate fixes the precision at its first use, until its state is forgotten."""
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    AcceleratorState._reset_state()
    yield
    AcceleratorState._reset_state()


@pytest.mark.usefixtures("_in_bf16")
def test_the_teacher_runs_under_autocast_and_gives_float32() -> None:
    seen = []
    teacher = create("test_resnet", 1)
    teacher.get_classifier().register_forward_hook(lambda module, args, output: seen.append(output))
    trainer = first_loss(create("test_efficientnet"), images(), distill_teacher=teacher)
    (taught,) = [output for output in seen if output.device.type != "meta"]
    assert taught.dtype == torch.bfloat16
    assert not taught.requires_grad
    task = trainer._distill_task
    assert task.teacher(images().tensors[0]).dtype == torch.float32
    assert trainer.logits.dtype == torch.float32


@pytest.mark.parametrize("order", [(DistillationMixin, MixupMixin), (MixupMixin, DistillationMixin)])
def test_student_and_teacher_see_the_same_mixed_images_in_any_order(order: tuple[type, ...]) -> None:
    seen: dict[str, torch.Tensor] = {}
    teacher, student = create("test_resnet", 1), create("test_resnet")
    for name, model in (("teacher", teacher), ("student", student)):
        model.register_forward_pre_hook(lambda module, args, name=name: seen.__setitem__(name, args[0]))
    trainer = make_trainer(
        type("Both", order, {}),
        student,
        loss_func=SoftTargetCrossEntropy(),
        mixup_args={"num_classes": 3},
        distill_teacher=teacher,
    )
    fit(trainer, images(), num_epochs=1, per_device_batch_size=8)
    assert torch.equal(seen["teacher"], seen["student"])
    assert not any(torch.equal(seen["student"][0], image) for image, _ in images())


def test_a_folder_of_weights_teaches(tmp_path: Path) -> None:
    teacher = create("test_resnet", 1)
    save_classifier(teacher, tmp_path / "best", ["a", "b", "c"])
    by_model = first_loss(create("test_resnet"), images(), distill_teacher=teacher)
    for given in (tmp_path / "best", str(tmp_path / "best")):
        assert first_loss(create("test_resnet"), images(), distill_teacher=given).losses == by_model.losses


def test_after_a_run_the_loss_is_as_before_and_no_batch_is_held() -> None:
    student, loss = create("test_efficientnet"), nn.CrossEntropyLoss()
    kind = type("Clipped", (GradientClippingMixin, DistillationMixin), {})
    trainer = make_trainer(kind, student, loss_func=loss, clip_grad=0.1, **feature_options())
    fit(trainer, images(), num_epochs=1)
    assert trainer.loss_func is loss
    held = vars(trainer._distill_task.trainable_module).values()
    assert not any(isinstance(value, torch.Tensor) for value in held)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"distill_kind": "logits"}, ("distill_kind", "'logits'", "Did you mean 'logit'")),
        ({"distill_alpha": 1.5}, ("distill_alpha", "from 0 to 1", "1.5")),
        ({"distill_temperature": 0}, ("distill_temperature", "positive", "0")),
        ({"distill_hard": True}, ("distill_hard", "'token'", "'logit'")),
        ({"distill_teacher": "resnet1888"}, ("resnet1888", "Did you mean 'resnet18'")),
        ({"distill_kind": "token"}, ("model", "set_distilled_training", "ResNet", "deit_tiny_distilled")),
        (
            {"distill_kind": "feature", "distill_teacher": nn.Flatten()},
            ("distill_teacher", "forward_features", "Flatten"),
        ),
        ({"model": tiny_model()}, ("model", "pretrained_cfg", "Sequential", "timm")),
    ],
)
def test_bad_options_are_named(options: dict[str, Any], words: tuple[str, ...]) -> None:
    options = {"distill_teacher": create("test_resnet", 1), "model": create("test_resnet")} | options
    with refused(ValueError, "Expected", *words):
        make_trainer(DistillationMixin, **options)


def test_a_teacher_that_is_none_is_a_type_error() -> None:
    with refused(TypeError, "distill_teacher", "a name or a folder", "int"):
        make_trainer(DistillationMixin, create("test_resnet"), distill_teacher=3)


def test_a_teacher_with_other_classes_is_refused(tmp_path: Path) -> None:
    with refused(ValueError, "distill_teacher", "3 classes", "got 5", "feature"):
        make_trainer(DistillationMixin, create("test_resnet"), distill_teacher=create("test_resnet", num_classes=5))
    save_classifier(create("test_resnet"), tmp_path / "best", ["cat", "owl", "dog"])
    trainer = make_trainer(DistillationMixin, create("test_resnet"), distill_teacher=tmp_path / "best")
    data = images()
    data.classes = ["cat", "dog", "owl"]  # type: ignore[attr-defined]
    with refused(ValueError, "distill_teacher", "same order", "'cat', 'dog', 'owl'", "'cat', 'owl', 'dog'"):
        fit(trainer, data)


def test_a_teacher_of_another_size_is_refused_before_training() -> None:
    teacher = create("vit_tiny_patch16_224", img_size=64, embed_dim=24, depth=1, num_heads=2)
    trainer = make_trainer(DistillationMixin, create("test_resnet"), distill_teacher=teacher)
    with refused(ValueError, "distill_teacher", "(3, 32, 32)", "AssertionError"):
        fit(trainer, images())
    assert trainer.num_updates == 0


@pytest.mark.parametrize("outputs", [(5,), (3, 1, 1)])
def test_a_module_with_other_outputs_is_refused_before_training(outputs: tuple[int, ...]) -> None:
    count = torch.Size(outputs).numel()
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIZE * SIZE, count), nn.Unflatten(1, outputs))
    trainer = make_trainer(DistillationMixin, create("test_resnet"), distill_teacher=teacher)
    found = ", ".join(map(str, outputs))
    with refused(ValueError, "distill_teacher to give the 3 outputs", f"but got (B, {found})", "feature"):
        fit(trainer, images())
    assert trainer.num_updates == 0


def test_multi_label_students_are_distilled_by_features_alone() -> None:
    data = images()
    data.target_transform = MultiLabelTarget(3)  # type: ignore[attr-defined]
    trainer = make_trainer(DistillationMixin, create("test_resnet"), distill_teacher=create("test_resnet", 1))
    with refused(ValueError, "distill_kind", "multi-label", "'logit'", "feature"):
        fit(trainer, data)


def test_without_a_teacher_any_model_trains_as_ever() -> None:
    plain, inert = fit(make_trainer()), fit(make_trainer(DistillationMixin), tiny_data())
    assert same_weights(plain.model, inert.model)
