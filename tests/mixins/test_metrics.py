"""Default metrics: counts linear in the classes, labels to be ignored, and no hook that they depend on."""

from typing import Any

import pytest
import torch
from refusal import refused
from tiny_runs import NO_WORKERS, fit, make_trainer, tiny_data, tiny_model
from torch import nn
from torch.utils.data import TensorDataset
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score

from timm_accel import LoopTrainer, TimmMixupTrainer, TimmTrainer
from timm_accel.callbacks import Callback, PrintMetricsCallback
from timm_accel.losses import LabelCheck
from timm_accel.mixins import ClassificationMetricsMixin
from timm_accel.predict.counts import MacroF1, TopKAccuracy
from timm_accel.states.speed import Speed


def evaluated(labels: Any, kind: type[LoopTrainer] = TimmTrainer, **options: Any) -> dict[str, float]:
    images = tiny_data(len(labels)).tensors[0]
    trainer = make_trainer(kind, **({"num_classes": 3} | options))
    trainer.evaluate(
        TensorDataset(images, torch.as_tensor(labels)), per_device_batch_size=4, dataloader_kwargs=NO_WORKERS
    )
    return {name: trainer.run_history.get_latest_metric(name) for name in trainer.run_history.get_metric_names()}


def predictions(count: int) -> torch.Tensor:
    with torch.no_grad():
        return tiny_model().eval()(tiny_data(count).tensors[0]).argmax(1)


# Counts


@pytest.mark.parametrize("num_classes", [2, 3, 10, 60])
def test_counts_give_the_values_of_torchmetrics(num_classes: int) -> None:
    generator = torch.Generator().manual_seed(num_classes)
    ours = {"f1": MacroF1(num_classes), "accuracy": TopKAccuracy(), "top": TopKAccuracy(min(5, num_classes))}
    theirs = {
        "f1": MulticlassF1Score(num_classes, average="macro"),
        "accuracy": MulticlassAccuracy(num_classes, average="micro"),
        "top": MulticlassAccuracy(num_classes, average="micro", top_k=min(5, num_classes)),
    }
    for count in (7, 1, 20):
        logits = torch.randn(count, num_classes, generator=generator)
        labels = torch.randint(num_classes // 2 + 1, (count,), generator=generator)  # the others are absent
        for metric in (*ours.values(), *theirs.values()):
            metric.update(logits, labels)
    for name, metric in ours.items():
        assert metric.compute().item() == pytest.approx(theirs[name].compute().item(), rel=1e-6), name


def test_macro_f1_by_hand_leaves_absent_classes_out() -> None:
    metric = MacroF1(5)
    metric.update(torch.eye(5)[[0, 0, 1, 3]], torch.tensor([0, 1, 1, 0]))
    metric.update(torch.eye(5)[[2, 4]], torch.tensor([-1, 0]))
    # class 0: 1 right, 2 predicted, 3 actual; class 1: 1, 1, 2; classes 3 and 4 predicted wrongly; class 2 is absent
    assert metric.compute().item() == pytest.approx((2 / 5 + 2 / 3 + 0 + 0) / 4)
    assert (metric.right.tolist(), metric.predicted.tolist()) == ([1, 1, 0, 0, 0], [2, 1, 0, 1, 1])


def test_metrics_without_a_label_are_0_and_no_error() -> None:
    for metric in (MacroF1(3), TopKAccuracy()):
        metric.update(torch.zeros(2, 3), torch.tensor([-1, -1]))
        assert metric.compute() == 0


class LargestTensor(torch.utils._python_dispatch.TorchDispatchMode):
    """The number of elements of the largest tensor that is computed."""

    largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.largest = max(self.largest, result.numel())
        return result


def test_memory_is_linear_in_the_classes() -> None:
    classes, logits = 21_841, torch.randn(4, 21_841)
    metrics = make_trainer(TimmTrainer, tiny_model(classes), num_classes=classes).metrics
    assert set(metrics.keys()) == {"accuracy", "f1_macro", "accuracy_top5"}
    with LargestTensor() as watched:
        metrics.update(logits, torch.tensor([0, 5, 21_840, -1]))
        metrics.compute()
    assert watched.largest <= logits.numel()
    states = [state for metric in metrics.values() for state in metric.metric_state.values()]
    assert sum(state.numel() for state in states) == 3 * classes + 4


# Hooks that people override


class WithoutSuper(TimmTrainer):
    """Overrides both hooks as upstream's examples do."""

    def eval_epoch_start(self) -> None:
        self.model.eval()

    def eval_epoch_end(self) -> None:
        self.seen = dict(self.run_history._metrics)


def test_metrics_are_recorded_when_the_hooks_of_an_evaluation_are_overridden_without_super() -> None:
    labels = torch.arange(9) % 3
    right = (predictions(9) == labels).float().mean().item()
    for _ in range(2):
        found = evaluated(labels, WithoutSuper)
        assert found == pytest.approx(evaluated(labels))
        assert found["accuracy"] == pytest.approx(right)


def test_each_evaluation_starts_its_metrics_again_without_the_hook() -> None:
    trainer = fit(make_trainer(WithoutSuper, num_classes=3), tiny_data(), tiny_data(6), num_epochs=3)
    assert len(trainer.run_history.get_metric_values("accuracy")) == 3
    assert len(trainer.seen["accuracy"]) == 3  # known in the hook itself
    with torch.no_grad():
        logits = trainer.model.eval()(tiny_data(6).tensors[0])
    last = (logits.argmax(1) == tiny_data(6).tensors[1]).float().mean().item()
    assert trainer.run_history.get_latest_metric("accuracy") == pytest.approx(last)


class Twice(TimmTrainer):
    """Records a metric of the same name as the default one."""

    def eval_epoch_end(self) -> None:
        super().eval_epoch_end()
        self.run_history.update_metric("accuracy", 0.125)
        self.run_history.update_metric("mine", 1.0)


class LossTwice(Callback):
    def on_eval_epoch_end(self, trainer: Any, **kwargs: Any) -> None:
        trainer.run_history.update_metric("eval_loss_epoch", 0.5)


def test_a_name_that_is_recorded_twice_is_reported_once(capsys: pytest.CaptureFixture[str]) -> None:
    trainer = make_trainer(Twice, num_classes=3, callbacks=[PrintMetricsCallback, LossTwice])
    fit(trainer, tiny_data(), tiny_data(6), num_epochs=2)
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.startswith("Recorded")] == [
        "Recorded more than once in one evaluation: accuracy, eval_loss_epoch. The last value is shown; give your "
        "metric another name."
    ]
    values = list(trainer.run_history.get_metric_values("accuracy"))
    assert (len(values), values[1], values[3]) == (4, 0.125, 0.125)  # upstream appends
    assert all("accuracy 0.1250" in line for line in lines if line.startswith("epoch"))


def test_names_that_are_recorded_once_are_not_reported(capsys: pytest.CaptureFixture[str]) -> None:
    fit(make_trainer(TimmTrainer, num_classes=3, callbacks=[PrintMetricsCallback]), tiny_data(), tiny_data(6))
    assert "Recorded" not in capsys.readouterr().out


# Labels


@pytest.mark.parametrize(
    ("ignored", "options"), [(-100, {}), (255, {"loss_func": nn.CrossEntropyLoss(ignore_index=255)})]
)
def test_ignored_labels_do_not_count(ignored: int, options: dict[str, Any]) -> None:
    labels = torch.arange(14) % 3
    labels[1] = labels[13] = ignored
    labels[4:8] = ignored  # a whole batch
    kept = labels != ignored
    found = evaluated(labels, **options)
    assert found["accuracy"] == pytest.approx((predictions(14) == labels)[kept].float().mean().item())
    expected = MulticlassF1Score(3)(predictions(14)[kept], labels[kept]).item()
    assert found["f1_macro"] == pytest.approx(expected)


def test_a_class_that_the_loss_ignores_is_left_out_as_in_torchmetrics() -> None:
    labels = torch.arange(15) % 3
    found = evaluated(labels, loss_func=nn.CrossEntropyLoss(ignore_index=2))
    assert found["f1_macro"] == pytest.approx(MulticlassF1Score(3, ignore_index=2)(predictions(15), labels).item())
    kept = labels != 2
    assert found["accuracy"] == pytest.approx((predictions(15) == labels)[kept].float().mean().item())


def test_custom_metrics_see_no_ignored_label() -> None:
    labels = torch.arange(14) % 3
    labels[1] = -100
    labels[4:8] = -100
    metrics = MetricCollection({"f1": MulticlassF1Score(3), "share": MulticlassAccuracy(3, average="micro")})
    found = evaluated(labels, metrics=metrics)
    kept = labels != -100
    assert found["share"] == pytest.approx((predictions(14) == labels)[kept].float().mean().item())
    assert found["f1"] == pytest.approx(MulticlassF1Score(3)(predictions(14)[kept], labels[kept]).item())


def test_the_loss_of_the_evaluation_decides_what_is_ignored() -> None:
    labels = torch.arange(12) % 3
    labels[5] = 9
    options = {"loss_func": nn.CrossEntropyLoss(), "eval_loss_fn": nn.CrossEntropyLoss(ignore_index=9)}
    kept = labels != 9
    expected = (predictions(12) == labels)[kept].float().mean().item()
    assert evaluated(labels, **options)["accuracy"] == pytest.approx(expected)
    with refused(ValueError, "Expected labels to be from 0 to 2", "got 9 for image 1 of batch 1"):
        fit(
            make_trainer(TimmTrainer, num_classes=3, **options),
            TensorDataset(tiny_data(12).tensors[0], labels),
            train_dataloader_kwargs=NO_WORKERS | {"shuffle": False},
        )


@pytest.mark.parametrize("wrong", [-1, 3, -99])
@pytest.mark.parametrize("num_classes", [3, None])
def test_a_label_out_of_range_is_one_sentence_in_an_evaluation(wrong: int, num_classes: int | None) -> None:
    labels = torch.arange(12) % 3
    labels[6] = wrong
    model = tiny_model()
    model.num_classes = 3
    with refused(ValueError, "Expected labels to be from 0 to 2", f"got {wrong} for image 2 of batch 1"):
        evaluated(labels, model=model, num_classes=num_classes)


@pytest.mark.parametrize("kind", [TimmTrainer, TimmMixupTrainer])
def test_a_label_out_of_range_is_one_sentence_in_training(kind: type[LoopTrainer]) -> None:
    labels = torch.arange(12) % 3
    labels[6] = 3
    options: dict[str, Any] = {}
    if kind is TimmMixupTrainer:
        options = {"mixup_args": {"num_classes": 3, "mixup_alpha": 0.5}, "ema_decay": 0.1}
    with refused(ValueError, "Expected labels to be from 0 to 2", "got 3 for image 2 of batch 1"):
        fit(
            make_trainer(kind, num_classes=3, **options),
            TensorDataset(tiny_data(12).tensors[0], labels),
            train_dataloader_kwargs=NO_WORKERS | {"shuffle": False},
        )


def test_a_custom_loss_may_train_with_labels_of_its_choice() -> None:
    def where_known(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(outputs, targets, ignore_index=-1)

    labels = torch.arange(16) % 3
    labels[::4] = -1
    trainer = make_trainer(ClassificationMetricsMixin, loss_func=where_known, num_classes=3)
    fit(trainer, TensorDataset(tiny_data(16).tensors[0], labels), num_epochs=1)
    assert trainer.num_updates == 4


def test_a_check_on_a_device_waits_until_it_is_asked_and_names_the_first_label() -> None:
    check = LabelCheck(3, torch.device("cpu"))
    check._found = torch.zeros(4, dtype=torch.int64)  # as on a GPU
    assert check(torch.tensor([0, 2, -100]), -100, 0).tolist() == [0, 2, -100]
    assert check.fault() is None
    assert check(torch.tensor([0, 5, -1]), -100, 1).tolist() == [0, 0, 0]
    check(torch.tensor([7, 0, 0]), -100, 2)
    assert "got 5 for image 1 of batch 1" in str(check.fault())
    assert check(torch.tensor([-100, 1]), None, 3).tolist() == [0, 1]


class OnADevice(TimmTrainer):
    """Checks labels as on a GPU."""

    def before_prepare(self) -> None:
        super().before_prepare()
        self._label_check = LabelCheck(3, torch.device("cpu"))
        self._label_check._found = torch.zeros(4, dtype=torch.int64)


@pytest.mark.parametrize("where", ["update", "epoch", "evaluation"])
def test_a_label_out_of_range_on_a_device_fails_the_run_at_the_next_sync_point(where: str) -> None:
    labels = torch.arange(16) % 3
    labels[1] = -1
    wrong = TensorDataset(tiny_data(16).tensors[0], labels)
    trainer = make_trainer(OnADevice, num_classes=3, sync_every_n_updates=2 if where == "update" else 100)
    data = (tiny_data(16), wrong) if where == "evaluation" else (wrong, None)
    with refused(RuntimeError, "Expected labels to be from 0 to 2", "got -1 for image 1 of batch 0"):
        fit(trainer, *data, train_dataloader_kwargs=NO_WORKERS | {"shuffle": False})
    assert trainer.num_updates == (2 if where == "update" else 4)


def test_a_failed_check_is_forgotten_by_the_next_run() -> None:
    trainer = make_trainer(TimmTrainer, num_classes=3)
    trainer._label_check = LabelCheck(3, torch.device("cpu"))
    trainer._label_check._found = torch.tensor([1, 5, 0, 0])
    fit(trainer, tiny_data(), tiny_data(4))
    assert trainer.num_updates == 8


def test_the_number_of_a_batch_counts_from_the_start_of_its_epoch() -> None:
    trainer = fit(make_trainer(TimmTrainer, num_classes=3), num_epochs=1)
    batch = [torch.zeros(2, 3, 8, 8), torch.tensor([0, 4])]
    with refused(ValueError, "got 4 for image 1 of batch 5"):
        list(trainer.current_run()._prefetched(Speed(), [batch], start=5))


def test_a_batch_of_another_form_is_left_to_the_hooks_that_read_it() -> None:
    class Triples(TimmTrainer):
        def calculate_train_batch_loss(self, batch: Any) -> dict[str, Any]:
            outputs = self.model(batch["x"])
            return {"loss": self.loss_func(outputs, batch["y"]), "model_outputs": outputs, "batch_size": len(outputs)}

    data = [{"x": image, "y": label} for image, label in tiny_data()]
    assert fit(make_trainer(Triples, num_classes=3), data, num_epochs=1).num_updates == 4


def test_an_evaluation_of_ignored_labels_alone_records_no_metric() -> None:
    trainer = make_trainer(TimmTrainer, num_classes=3)
    data = TensorDataset(tiny_data(8).tensors[0], torch.full((8,), -100))
    with refused(ValueError, "at least one label that the loss counts"):
        trainer.evaluate(data, per_device_batch_size=4, dataloader_kwargs=NO_WORKERS)
    assert not trainer.run_history.get_metric_names()
