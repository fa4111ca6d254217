"""Bad input to trainers, mixins and callbacks: one sentence, before training, and nothing written over."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_accelerated.callbacks import ConvertSyncBatchNormCallback, ModelEmaCallback
from refusal import contents, refused
from timm.loss import SoftTargetCrossEntropy
from tiny_runs import NO_WORKERS, fit, make_trainer, same_weights, tiny_data, tiny_model
from torch import nn
from torch.utils.data import BatchSampler, SequentialSampler, TensorDataset
from torchmetrics.classification import MulticlassAccuracy

from timm_accel import LoopTrainer, TimmMixupTrainer, TimmTrainer
from timm_accel.callbacks import CsvHistoryCallback, EarlyStoppingCallback, SaveBestCallback
from timm_accel.mixins import (
    ClassificationMetricsMixin,
    DistributedBatchNormMixin,
    GradientClippingMixin,
    MixupMixin,
    ModelEmaMixin,
    TimmSchedulerMixin,
)

MIXING = {"num_classes": 3}
KEEP_REST = NO_WORKERS | {"drop_last": False}


class NamedData(TensorDataset):
    """`tiny_data` that knows its three classes."""

    class_names = ("cat", "dog", "owl")


def named_data(count: int = 16) -> NamedData:
    return NamedData(*tiny_data(count).tensors)


def with_head(num_classes: int) -> nn.Module:
    """`tiny_model` that tells the width of its head, as timm's models do."""
    model = tiny_model(num_classes)
    model.num_classes = num_classes
    return model


def refuse_to_train(
    error: type[BaseException],
    words: tuple[object, ...],
    kind: type[LoopTrainer] = LoopTrainer,
    train_dataset: Any = None,
    eval_dataset: Any = None,
    *,
    trainer_options: dict[str, Any] | None = None,
    **fit_options: Any,
) -> None:
    """Expect `fit` to be refused with these words, and the model to be as it was."""
    trainer = make_trainer(kind, **(trainer_options or {}))
    before = deepcopy(trainer.model)
    with refused(error, *words):
        fit(trainer, train_dataset, eval_dataset, **fit_options)
    assert same_weights(trainer.unwrapped_model, before)
    assert trainer.num_updates == 0


# Options


@pytest.mark.parametrize(
    ("kind", "options", "words"),
    [
        (ModelEmaMixin, {"ema_decay": 1.0}, ("ema_decay", "below 1", "got 1.0", "0.99")),
        (ModelEmaMixin, {"ema_decay": -0.1}, ("ema_decay", "from 0", "got -0.1", "0.99")),
        (ModelEmaMixin, {"ema_decay": float("nan")}, ("ema_decay", "got nan", "0.99")),
        (ModelEmaMixin, {"ema_update_every": 0}, ("ema_update_every", "at least 1", "got 0", "default is 1")),
        (ModelEmaMixin, {"ema_update_every": 1.5}, ("ema_update_every", "got 1.5", "default is 1")),
        (ModelEmaMixin, {"ema_update_every": "step"}, ("ema_update_every", "'epoch'", "got 'step'", "default is 1")),
        (MixupMixin, {"mixup_args": MIXING, "mixup_off_epoch": -1}, ("mixup_off_epoch", "from 0", "-1", "Pass None")),
        (
            GradientClippingMixin,
            {"clip_mode": "nrom"},
            ("clip_mode", "norm, value, agc", "'nrom'", "Did you", "'norm'"),
        ),
        (GradientClippingMixin, {"clip_mode": None}, ("clip_mode", "norm, value, agc", "got None", "Known names")),
        (GradientClippingMixin, {"clip_grad": 0}, ("clip_grad", "positive", "got 0", "Pass None")),
        (GradientClippingMixin, {"clip_grad": -1.0}, ("clip_grad", "positive", "got -1.0", "Pass None")),
        (
            DistributedBatchNormMixin,
            {"dist_bn": "mean"},
            ("dist_bn", "'broadcast'", "got 'mean'", "default is 'reduce'"),
        ),
        (DistributedBatchNormMixin, {"dist_bn": True}, ("dist_bn", "got True", "default is 'reduce'")),
        (LoopTrainer, {"sync_every_n_updates": 0}, ("sync_every_n_updates", "at least 1", "got 0", "default is 10")),
        (LoopTrainer, {"sync_every_n_updates": 2.5}, ("sync_every_n_updates", "got 2.5", "default is 10")),
        (TimmSchedulerMixin, {"scheduler_args": {"sched": "cosin"}}, ("sched", "got 'cosin'", "Did you", "'cosine'")),
        (TimmSchedulerMixin, {"scheduler_args": {"sched": None}}, ("sched", "got None", "Did you", "'cosine'")),
        (
            TimmSchedulerMixin,
            {"scheduler_args": {"warm_up_epochs": 3}},
            ("scheduler_args", "create_scheduler_v2", "got 'warm_up_epochs'", "Did you mean", "'warmup_epochs'"),
        ),
    ],
)
def test_an_option_out_of_range_is_refused(kind: type, options: dict[str, Any], words: tuple[str, ...]) -> None:
    with refused(ValueError, *words):
        make_trainer(kind, **options)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"mixup_alhpa": 1.0}, ("mixup_args", "timm.data.Mixup", "got 'mixup_alhpa'", "Did you mean 'mixup_alpha'")),
        ({"mode": "half"}, ("mode", "batch, pair, elem", "got 'half'", "Known names")),
        ({"mode": "elm"}, ("mode", "got 'elm'", "Did you mean 'elem'")),
        ({"prob": 1.5}, ("'prob'", "between 0 and 1", "got 1.5", "fraction")),
        ({"switch_prob": -0.5}, ("'switch_prob'", "between 0 and 1", "got -0.5", "fraction")),
        ({"label_smoothing": 2}, ("'label_smoothing'", "between 0 and 1", "got 2", "fraction")),
        ({"mixup_alpha": 0.0, "cutmix_alpha": 0.0}, ("positive", "got 0.0 and 0.0", "mixup_args=None")),
        ({"mixup_alpha": 0.0}, ("positive", "got 0.0 and 0.0", "mixup_args=None")),
        ({"mixup_alpha": 1.0, "cutmix_alpha": -0.5}, ("none negative", "got 1.0 and -0.5", "mixup_args=None")),
    ],
)
@pytest.mark.parametrize("kind", [MixupMixin, TimmMixupTrainer])
def test_a_wrong_argument_of_mixup_is_refused(kind: type, arguments: dict[str, Any], words: tuple[str, ...]) -> None:
    with refused(ValueError, *words):
        make_trainer(kind, mixup_args=MIXING | arguments)


def test_mixup_needs_the_number_of_classes() -> None:
    with refused(ValueError, "mixup_args", "num_classes", "none", "Add num_classes"):
        make_trainer(MixupMixin, mixup_args={"mixup_alpha": 0.2})
    make_trainer(TimmMixupTrainer, mixup_args={"mixup_alpha": 0.2}, num_class=3)


@pytest.mark.parametrize(
    ("kind", "options", "words"),
    [
        (ModelEmaMixin, {"ema_decay": "0.9"}, ("ema_decay", "got '0.9'")),
        (GradientClippingMixin, {"clip_grad": "1"}, ("clip_grad", "got '1'", "Pass None")),
        (MixupMixin, {"mixup_args": MIXING, "mixup_off_epoch": "2"}, ("mixup_off_epoch", "got '2'", "Pass None")),
        (MixupMixin, {"mixup_args": MIXING | {"prob": "1"}}, ("'prob'", "got '1'", "fraction")),
    ],
)
def test_a_number_in_quotes_is_refused(kind: type, options: dict[str, Any], words: tuple[str, ...]) -> None:
    with refused((ValueError, TypeError), *words):
        make_trainer(kind, **options)


@pytest.mark.parametrize("metrics", [MulticlassAccuracy(3), {"accuracy": MulticlassAccuracy(3)}])
def test_metrics_that_are_no_collection_are_refused(metrics: Any) -> None:
    with refused(TypeError, "metrics", "MetricCollection", f"got {type(metrics).__name__}", "Wrap it"):
        make_trainer(ClassificationMetricsMixin, metrics=metrics)


def test_best_weights_are_watched_by_the_models_own_metric() -> None:
    with refused(ValueError, "watch_metric", "a metric of the model", "got 'ema_model_accuracy'", "Pass 'accuracy'"):
        SaveBestCallback("ema_model_accuracy")


def test_patience_below_one_is_refused() -> None:
    with refused(ValueError, "patience", "at least 1", "got 0", "default is 5"):
        EarlyStoppingCallback(patience=0)


def test_accumulation_through_accelerates_variable_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "ACCELERATE_GRADIENT_ACCUMULATION_STEPS"
    trainer = make_trainer()
    monkeypatch.setenv(name, "2")
    words = (name, "unset", "divided twice", "got '2'", "gradient_accumulation_steps")
    with refused(ValueError, *words):
        make_trainer()
    with refused(ValueError, *words):
        fit(trainer)
    assert same_weights(trainer.model, tiny_model())
    monkeypatch.setenv(name, "1")
    assert fit(make_trainer()).num_updates == 8


# Numbers of images


@pytest.mark.parametrize("kind", [LoopTrainer, TimmTrainer])
def test_data_smaller_than_a_batch_is_trained_whole(kind: type[LoopTrainer]) -> None:
    assert fit(make_trainer(kind), per_device_batch_size=17).num_updates == 2


@pytest.mark.parametrize("kind", [LoopTrainer, TimmTrainer])
def test_data_smaller_than_a_batch_that_must_be_full_is_refused(kind: type[LoopTrainer]) -> None:
    words = ("train_dataset", "batch of 17", "got 16 images", "Lower per_device_batch_size")
    loader = {"num_workers": 0, "drop_last": True}
    refuse_to_train(ValueError, words, kind, per_device_batch_size=17, train_dataloader_kwargs=loader)


def test_an_even_number_of_images_below_a_batch_is_mixed_and_an_odd_one_refused() -> None:
    options = {"mixup_args": MIXING, "loss_func": SoftTargetCrossEntropy()}
    assert fit(make_trainer(MixupMixin, **options), per_device_batch_size=18).num_updates == 2
    words = ("last batch to be even", "15 images leave 15 with batch size 18")
    refuse_to_train(
        ValueError, words, MixupMixin, trainer_options=options, per_device_batch_size=18, train_dataset=tiny_data(15)
    )


def test_a_batch_as_large_as_the_data_is_accepted() -> None:
    assert fit(make_trainer(), per_device_batch_size=16).num_updates == 2


def test_an_empty_training_set_is_refused() -> None:
    words = ("train_dataset", "at least one batch of 4", "got 0 images", "add images")
    refuse_to_train(ValueError, words, train_dataset=tiny_data(0))


def test_an_empty_training_set_is_refused_with_upstreams_batch_size() -> None:
    with refused(ValueError, "train_dataset", "at least one batch of 8", "got 0 images"):
        make_trainer().train(tiny_data(0), 1)


def test_an_empty_evaluation_set_is_refused() -> None:
    words = ("eval_dataset", "batch of 4", "got 0 images", "add images")
    refuse_to_train(ValueError, words, eval_dataset=tiny_data(0))
    with refused(ValueError, "eval_dataset", "batch of 4", "got 0 images", "add images"):
        make_trainer().evaluate(tiny_data(0), per_device_batch_size=4, dataloader_kwargs=NO_WORKERS)


def test_a_training_loader_without_batches_is_refused() -> None:
    sampler = BatchSampler(SequentialSampler(range(3)), batch_size=4, drop_last=True)
    words = ("train loader", "at least one batch", "got none from 3 images", "drop_last=False")
    refuse_to_train(ValueError, words, train_dataloader_kwargs=NO_WORKERS | {"batch_sampler": sampler})


def test_an_evaluation_loader_without_batches_is_refused() -> None:
    words = ("eval loader", "at least one batch", "none from 3 images with batch size 4", "drop_last=False")
    kwargs = NO_WORKERS | {"drop_last": True}
    refuse_to_train(ValueError, words, eval_dataset=tiny_data(3), eval_dataloader_kwargs=kwargs)


@pytest.mark.parametrize(
    ("name", "value"), [("num_epochs", 0), ("gradient_accumulation_steps", 0), ("per_device_batch_size", 0)]
)
def test_a_count_below_one_is_refused(name: str, value: int) -> None:
    words = (f"Expected {name} to be", "at least 1", f"got {value}. ")
    refuse_to_train(ValueError, words, **{name: value})


@pytest.mark.parametrize("kind", [MixupMixin, TimmMixupTrainer])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_an_odd_batch_is_refused_with_mixup(kind: type, batch_size: int) -> None:
    words = ("batch size", "even", "Mixup", f"got {batch_size}.", "even per_device_batch_size")
    options = {"mixup_args": MIXING}
    refuse_to_train(ValueError, words, kind, trainer_options=options, per_device_batch_size=batch_size)
    loader = NO_WORKERS | {"batch_size": batch_size}
    refuse_to_train(ValueError, words, kind, trainer_options=options, train_dataloader_kwargs=loader)


@pytest.mark.parametrize("kind", [MixupMixin, TimmMixupTrainer])
@pytest.mark.parametrize(("images", "batch_size", "rest"), [(15, 4, 3), (17, 4, 1)])
def test_an_odd_rest_is_refused_with_mixup(kind: type, images: int, batch_size: int, rest: int) -> None:
    words = ("last batch", "even", "Mixup", f"{images} images leave {rest} with batch size {batch_size}", "drop_last")
    refuse_to_train(
        ValueError,
        words,
        kind,
        tiny_data(images),
        trainer_options={"mixup_args": MIXING},
        per_device_batch_size=batch_size,
        train_dataloader_kwargs=KEEP_REST,
    )


def test_an_even_rest_or_one_that_is_dropped_is_accepted_with_mixup() -> None:
    soft = nn.CrossEntropyLoss()
    for images, kwargs, updates in ((14, KEEP_REST, 8), (15, NO_WORKERS, 6)):
        trainer = make_trainer(MixupMixin, mixup_args=MIXING, loss_func=soft)
        assert fit(trainer, tiny_data(images), train_dataloader_kwargs=kwargs).num_updates == updates


def test_an_odd_batch_of_a_sampler_without_a_size_is_refused_when_it_is_met() -> None:
    trainer = make_trainer(MixupMixin, mixup_args=MIXING)
    sampler = [[0, 1, 2, 3], [4, 5, 6]]
    with refused(ValueError, "every training batch", "even", "Mixup", "got 3 images", "drop_last=True"):
        fit(trainer, train_dataloader_kwargs=NO_WORKERS | {"batch_sampler": sampler})
    assert trainer.num_updates == 1


def test_without_mixup_any_batch_is_accepted() -> None:
    assert fit(make_trainer(MixupMixin), per_device_batch_size=3).num_updates == 12


# Numbers of classes


def test_a_number_of_classes_other_than_the_heads_is_refused() -> None:
    with refused(ValueError, "num_classes", "model's head, 5", "got 3", "Pass 5"):
        make_trainer(TimmMixupTrainer, with_head(5), num_class=3)


@pytest.mark.parametrize("named", ["train_dataset", "eval_dataset"])
def test_a_number_of_classes_other_than_the_datas_is_refused(named: str) -> None:
    words = ("num_classes", "data, 3", "got 4", "Pass 3")
    options = {"model": tiny_model(4), "num_class": 4}
    refuse_to_train(ValueError, words, TimmMixupTrainer, trainer_options=options, **{named: named_data()})


def test_mixups_number_of_classes_must_be_the_trainers() -> None:
    with refused(ValueError, "mixup_args['num_classes']", "num_class, 3", "got 5", "Leave it out"):
        make_trainer(TimmMixupTrainer, num_class=3, mixup_args={"num_classes": 5})


@pytest.mark.parametrize("kind", [MixupMixin, TimmMixupTrainer])
def test_mixups_number_of_classes_must_be_the_heads_and_the_datas(kind: type) -> None:
    words = ("mixup_args['num_classes']", "model, 3", "got 5", "Pass num_classes=3")
    options = {"model": with_head(3), "mixup_args": {"num_classes": 5}}
    refuse_to_train(ValueError, words, kind, trainer_options=options)
    words = ("mixup_args['num_classes']", "data, 3", "got 5", "Pass num_classes=3")
    options = {"model": tiny_model(5), "mixup_args": {"num_classes": 5}}
    refuse_to_train(ValueError, words, kind, named_data(), trainer_options=options)


@pytest.mark.parametrize("num_classes", [0, 1, "3"])
def test_a_number_of_classes_below_two_is_refused(num_classes: Any) -> None:
    with refused(ValueError, "num_classes", "at least 2", f"got {num_classes!r}", "Count the classes"):
        make_trainer(ClassificationMetricsMixin, num_classes=num_classes)


def test_a_number_of_classes_other_than_the_logits_is_refused_when_it_shows() -> None:
    trainer = make_trainer(TimmTrainer, tiny_model(3), metrics=None, num_classes=4)
    with refused(ValueError, "num_classes", "3", "got 4", "Pass 3"):
        fit(trainer, eval_dataset=tiny_data(6))


# Schedules


def test_scheduler_args_beside_a_foreign_schedule_are_refused() -> None:
    def foreign(optimizer: torch.optim.Optimizer) -> Any:
        return torch.optim.lr_scheduler.ConstantLR(optimizer)

    words = ("scheduler_args or create_scheduler_fn", "got both", "Leave one of them out")
    options = {"scheduler_args": {"sched": "cosine"}}
    refuse_to_train(ValueError, words, TimmSchedulerMixin, trainer_options=options, create_scheduler_fn=foreign)


def test_a_scheduler_in_place_of_its_function_is_refused() -> None:
    model = tiny_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    words = ("create_scheduler_fn", "a function of the optimizer", "got ConstantLR", "Pass a function")
    options = {"model": model, "optimizer": optimizer}
    scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer)
    refuse_to_train(TypeError, words, trainer_options=options, create_scheduler_fn=scheduler)


def test_a_number_of_steps_below_one_is_refused() -> None:
    refuse_to_train(ValueError, ("max_num_train_steps", "at least 1", "got 0"), max_num_train_steps=0)


def test_a_seed_that_is_no_number_is_refused() -> None:
    with refused(TypeError, "seed", "integer", "got None", "default is 42"):
        make_trainer(seed=None)


def test_sharded_weights_are_refused() -> None:
    from accelerate import DistributedType

    from timm_accel.distributed.launching import refuse_sharding

    for kind in (DistributedType.FSDP, DistributedType.DEEPSPEED):
        with refused(ValueError, "complete weights", "EMA", f"got {kind.value}", "MULTI_GPU"):
            refuse_sharding(kind)
    refuse_sharding(DistributedType.MULTI_GPU)


def test_two_ways_of_clipping_are_refused() -> None:
    words = ("clip_grad or gradient_clip_value", "got 0.5 and 1.0", "Leave one of them out")
    options = {"clip_grad": 0.5}
    refuse_to_train(ValueError, words, GradientClippingMixin, trainer_options=options, gradient_clip_value=1.0)


def test_the_trainers_own_schedule_needs_scheduler_args() -> None:
    trainer = make_trainer(TimmSchedulerMixin)
    with refused(ValueError, "scheduler_args", "create_scheduler_fn", "got none", "scheduler_args={'sched': 'cosine'}"):
        fit(trainer, create_scheduler_fn=trainer.create_scheduler)
    assert same_weights(trainer.unwrapped_model, tiny_model())


def test_a_plateau_schedule_names_the_metric_that_it_misses() -> None:
    trainer = make_trainer(TimmSchedulerMixin, scheduler_metric="eval_los_epoch")
    with refused(ValueError, "scheduler_metric", "got 'eval_los_epoch'", "Did you mean 'eval_loss_epoch'"):
        fit(trainer, eval_dataset=tiny_data(6), create_scheduler_fn=torch.optim.lr_scheduler.ReduceLROnPlateau)
    assert trainer.num_updates == 0


# Watched metrics


@pytest.mark.parametrize("callback", [SaveBestCallback, EarlyStoppingCallback])
@pytest.mark.parametrize("kind", [TimmTrainer, TimmMixupTrainer])
@pytest.mark.parametrize(
    ("name", "near"),
    [("acuracy", "Did you mean 'accuracy'"), ("eval_loss", "Did you mean 'eval_loss_epoch'"), ("xyz", "Known names")],
)
def test_an_unknown_metric_is_refused_before_training(
    callback: type, kind: type, name: str, near: str, tmp_path: Path
) -> None:
    numbers = {"num_class": 3, "ema_decay": 0.5} if kind is TimmMixupTrainer else {"num_classes": 3}
    options = numbers | {"callbacks": [callback(name)], "run_dir": tmp_path / "run"}
    words = ("watch_metric", "run records", f"got {name!r}", near)
    refuse_to_train(ValueError, words, kind, eval_dataset=tiny_data(6), trainer_options=options)
    assert contents(tmp_path) == {"run": None}


@pytest.mark.parametrize(
    ("callback", "name"), [(SaveBestCallback, "accuracy"), (EarlyStoppingCallback, "eval_loss_epoch")]
)
def test_a_metric_of_evaluation_is_refused_without_evaluation(callback: type, name: str, tmp_path: Path) -> None:
    options = {"num_classes": 3, "callbacks": [callback()], "run_dir": tmp_path / "run"}
    words = ("watch_metric", "run records", f"got {name!r}", "'train_")
    refuse_to_train(ValueError, words, TimmTrainer, trainer_options=options)


def test_the_metric_of_ema_weights_is_refused_without_them(tmp_path: Path) -> None:
    best = EarlyStoppingCallback("ema_model_accuracy", greater_is_better=True)
    options = {"num_classes": 3, "callbacks": [best], "run_dir": tmp_path / "run"}
    words = ("watch_metric", "got 'ema_model_accuracy'", "Did you mean", "'accuracy'")
    refuse_to_train(ValueError, words, TimmTrainer, eval_dataset=tiny_data(6), trainer_options=options)


def test_the_metric_of_ema_weights_is_accepted_with_them() -> None:
    stopping = EarlyStoppingCallback("ema_model_accuracy", greater_is_better=True)
    trainer = make_trainer(TimmMixupTrainer, num_class=3, ema_decay=0.5, callbacks=[stopping])
    fit(trainer, eval_dataset=tiny_data(6))
    assert stopping.best == max(trainer.run_history.get_metric_values("ema_model_accuracy"))


class Recording(TimmTrainer):
    """A custom trainer that records one more metric."""

    def training_run_epoch_end(self) -> None:
        self.run_history.update_metric("my_score", float(self.num_updates))
        super().training_run_epoch_end()


@pytest.mark.parametrize("callback", [SaveBestCallback, EarlyStoppingCallback])
def test_a_users_own_metric_is_accepted(callback: type, tmp_path: Path) -> None:
    watching = callback("my_score", greater_is_better=True)
    trainer = fit(make_trainer(Recording, callbacks=[watching], run_dir=tmp_path))
    assert trainer.num_updates == 8
    assert watching.best in (8.0, {"model": {"metric": "my_score", "value": 8.0, "epoch": 2}})


@pytest.mark.parametrize("callback", [SaveBestCallback, EarlyStoppingCallback])
def test_a_users_trainer_is_told_of_a_missing_metric_after_one_epoch(callback: type, tmp_path: Path) -> None:
    trainer = make_trainer(Recording, callbacks=[callback("my_scor")], run_dir=tmp_path)
    with refused(ValueError, "watch_metric", "run records", "got 'my_scor'", "Did you mean 'my_score'"):
        fit(trainer)
    assert trainer.num_updates == 4
    assert contents(tmp_path) == {}


# Folders


@pytest.mark.parametrize("callback", [SaveBestCallback, CsvHistoryCallback])
def test_a_callback_without_a_folder_is_refused(callback: type) -> None:
    for given in (callback, callback()):
        with refused(ValueError, callback.__name__, "neither", "run_dir", "Pass run_dir to the trainer"):
            make_trainer(callbacks=[given])


@pytest.mark.parametrize("name", ["history.csv", "state", "best", "best_ema"])
def test_a_folder_that_holds_a_run_is_never_written_over(name: str, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    file = run_dir / name if name == "history.csv" else run_dir / name / "kept"
    file.parent.mkdir(parents=True)
    file.write_text("of an earlier run")
    before = contents(tmp_path)
    callbacks = [SaveBestCallback("train_loss_epoch", greater_is_better=False), CsvHistoryCallback]
    words = ("run_dir", "no run yet", "never overwritten", f"got '{run_dir}'", f"holds '{name}'", "Name a new folder")
    options = {"run_dir": run_dir, "callbacks": callbacks}
    refuse_to_train(FileExistsError, words, trainer_options=options)
    assert contents(tmp_path) == before


def test_a_second_run_into_the_same_folder_is_refused(tmp_path: Path) -> None:
    trainer = fit(make_trainer(callbacks=[CsvHistoryCallback], run_dir=tmp_path))
    before, weights = contents(tmp_path), deepcopy(trainer.model)
    with refused(FileExistsError, "run_dir", f"got '{tmp_path}'", "holds 'history.csv'", "Name a new folder"):
        fit(trainer)
    assert contents(tmp_path) == before
    assert same_weights(trainer.model, weights)


@pytest.mark.parametrize(
    ("callback", "file", "argument"),
    [
        (lambda folder: SaveBestCallback("train_loss_epoch", False, folder), "best/config.json", "save_dir"),
        (lambda folder: SaveBestCallback("train_loss_epoch", False, folder), "best_ema/config.json", "save_dir"),
        (lambda folder: CsvHistoryCallback(folder / "log.csv"), "log.csv", "path"),
    ],
)
def test_a_callbacks_own_folder_is_never_written_over(callback: Any, file: str, argument: str, tmp_path: Path) -> None:
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text("of an earlier run")
    before = contents(tmp_path)
    words = (argument, "never overwritten", f"got '{tmp_path}'", f"holds '{Path(file).parts[0]}'", "Name a new folder")
    refuse_to_train(FileExistsError, words, trainer_options={"callbacks": [callback(tmp_path)]})
    assert contents(tmp_path) == before


@pytest.mark.parametrize("below", ["file", "file/run"])
def test_a_run_folder_that_cannot_be_written_is_refused(below: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a regular file")
    run_dir = tmp_path / below
    words = ("run_dir", "can be written to", f"got '{run_dir}'", "Name another folder")
    refuse_to_train(OSError, words, trainer_options={"run_dir": run_dir, "callbacks": [CsvHistoryCallback]})
    assert contents(tmp_path) == {"file": b"a regular file"}


@pytest.mark.parametrize(
    ("callback", "argument"),
    [
        (lambda folder: SaveBestCallback("train_loss_epoch", False, folder), "save_dir"),
        (lambda folder: CsvHistoryCallback(folder / "log.csv"), "path"),
    ],
)
def test_a_callbacks_own_folder_that_cannot_be_written_is_refused(callback: Any, argument: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a regular file")
    folder = tmp_path / "file" / "run"
    words = (argument, "can be written to", f"got '{folder}'", "Name another folder")
    refuse_to_train(OSError, words, trainer_options={"callbacks": [callback(folder)]})
    assert contents(tmp_path) == {"file": b"a regular file"}


# Callbacks of upstream that do harm here


class MySyncBatchNorm(ConvertSyncBatchNormCallback):
    pass


class MyModelEma(ModelEmaCallback):
    pass


@pytest.mark.parametrize("kind", [LoopTrainer, ModelEmaMixin, TimmMixupTrainer])
@pytest.mark.parametrize("callback", [ConvertSyncBatchNormCallback, MySyncBatchNorm])
def test_upstreams_sync_batch_norm_is_refused(kind: type, callback: type) -> None:
    for given in (callback, callback()):
        with refused(ValueError, "callbacks", callback.__name__, "BatchNormAct2d", "sync_bn=True"):
            make_trainer(kind, callbacks=[given])


@pytest.mark.parametrize("kind", [ModelEmaMixin, TimmMixupTrainer])
@pytest.mark.parametrize("callback", [ModelEmaCallback, MyModelEma])
def test_upstreams_ema_callback_is_refused_beside_ours(kind: type, callback: type) -> None:
    for given in (callback, callback()):
        with refused(ValueError, "callbacks", callback.__name__, "has EMA weights already", "Remove it"):
            make_trainer(kind, callbacks=[given])
    make_trainer(TimmTrainer, callbacks=[callback])


@pytest.mark.parametrize(
    ("callback", "remedy"), [(ConvertSyncBatchNormCallback, "sync_bn=True"), (ModelEmaCallback, "Remove it")]
)
def test_a_refused_callbacks_sentence_ends_before_its_remedy(callback: type, remedy: str) -> None:
    with refused(ValueError, f"Expected callbacks without {callback.__name__}, since ", ", but got one. ", remedy):
        make_trainer(ModelEmaMixin, callbacks=[callback])
    with pytest.raises(ValueError, match=r"^[^.]*, but got one\. ") as caught:
        make_trainer(ModelEmaMixin, callbacks=[callback])
    assert str(caught.value).endswith(".")
