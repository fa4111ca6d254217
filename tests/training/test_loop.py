"""What `LoopTrainer` promises: its surface, its order of events, and the state it leaves."""

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from pytorch_accelerated.callbacks import LimitBatchesCallback, LimitEvalStepsCallback, StepBasedEvaluationCallback
from pytorch_accelerated.trainer import TrainerPlaceholderValues
from timm.utils import ModelEmaV3
from tiny_runs import fit, make_trainer, same_weights, tiny_data, tiny_model
from torch import nn

from timm_accel import LoopTrainer, TimmTrainer
from timm_accel.callbacks import Callback
from timm_accel.mixins import ModelEmaMixin


class Journal(Callback):
    """Writes down every event, and every hook of `Journalled`."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("on_"):
            return lambda trainer, **kwargs: self.lines.append(name)
        return super().__getattr__(name)


for event in [name for name in dir(Callback) if name.startswith("on_")]:
    setattr(Journal, event, lambda self, trainer, _event=event, **kwargs: self.lines.append(_event))

HOOKS = [
    "training_run_start", "train_epoch_start", "calculate_train_batch_loss", "backward_step", "clip_gradients",
    "optimizer_step", "after_update", "scheduler_step", "optimizer_zero_grad", "train_epoch_end", "eval_epoch_start",
    "calculate_eval_batch_loss", "update_metrics", "eval_epoch_end", "training_run_epoch_end", "training_run_end",
]  # fmt: skip


class Journalled(LoopTrainer):
    journal: Journal


def _noted(hook: str) -> Any:
    def method(self: Journalled, *args: Any) -> Any:
        self.journal.lines.append(hook)
        return getattr(super(Journalled, self), hook)(*args)

    return method


for hook in HOOKS:
    setattr(Journalled, hook, _noted(hook))


def test_hooks_and_events_come_in_upstreams_order() -> None:
    journal = Journal()
    Journalled.journal = journal
    trainer = make_trainer(Journalled, callbacks=[journal])
    constant = lambda optimizer: torch.optim.lr_scheduler.ConstantLR(optimizer)  # noqa: E731
    fit(trainer, tiny_data(8), tiny_data(4), num_epochs=1, gradient_accumulation_steps=2, create_scheduler_fn=constant)
    micro_batch = ["on_train_step_start", "calculate_train_batch_loss", "on_train_step_end", "backward_step"]
    assert journal.lines == [
        "on_init_end", "training_run_start", "on_training_run_start",
        "train_epoch_start", "on_train_epoch_start",
        *micro_batch, *micro_batch,
        "clip_gradients", "optimizer_step", "after_update", "scheduler_step", "optimizer_zero_grad", "on_update_end",
        "train_epoch_end", "on_train_epoch_end",
        "eval_epoch_start", "on_eval_epoch_start",
        "on_eval_step_start", "calculate_eval_batch_loss", "update_metrics", "on_eval_step_end",
        "eval_epoch_end", "on_eval_epoch_end",
        "training_run_epoch_end", "on_training_run_epoch_end",
        "training_run_end", "on_training_run_end",
    ]  # fmt: skip


class Surface(LoopTrainer):
    def training_run_start(self) -> None:
        self.seen: list[tuple[Any, ...]] = []
        super().training_run_start()

    def after_update(self) -> None:
        super().after_update()
        self.seen.append((self.epoch, self.batch_index, self.num_updates))


def test_the_surface_counts_epochs_batches_and_updates() -> None:
    trainer = make_trainer(Surface)
    assert (trainer.epoch, trainer.batch_index, trainer.num_updates, trainer.updates_per_epoch) == (None, None, 0, 0)
    assert (trainer.rank, trainer.train_dataloader, trainer.eval_dataloader) == (0, None, None)
    fit(trainer, tiny_data(12), gradient_accumulation_steps=2)
    assert trainer.seen == [(0, 1, 1), (0, 2, 2), (1, 1, 3), (1, 2, 4)]  # 3 batches: a group of 2 and a tail of 1
    assert trainer.updates_per_epoch == 2
    assert (trainer.epoch, trainer.batch_index, trainer.num_updates) == (None, None, 4)


def test_the_recorded_loss_is_the_mean_over_images_whatever_the_accumulation() -> None:
    for accumulation in (1, 2, 3):
        model = nn.Sequential(nn.Flatten(), nn.Linear(192, 3))
        trainer = make_trainer(model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.0))
        data = tiny_data(10)  # the last batch has 2 images
        fit(trainer, data, num_epochs=1, gradient_accumulation_steps=accumulation)
        images, labels = data.tensors
        expected = nn.functional.cross_entropy(model(images), labels).item()
        assert trainer.run_history.get_metric_values("train_loss_epoch") == [pytest.approx(expected, rel=1e-6)]


def test_it_works_without_callbacks_and_without_evaluation() -> None:
    trainer = fit(make_trainer(callbacks=()))
    assert set(trainer.run_history.get_metric_names()) == {"train_loss_epoch"}
    assert trainer.run_history.current_epoch == 3


def test_a_second_run_starts_from_scratch_and_is_bit_equal_to_a_fresh_trainer() -> None:
    class Averaging(ModelEmaMixin):
        pass

    trainer = fit(make_trainer(Averaging, ema_decay=0.5), eval_dataset=tiny_data(5))
    ema_model = trainer.ema_model
    middle = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    fit(trainer)
    assert trainer.num_updates == 8
    assert trainer.ema_model is not ema_model
    assert trainer.eval_dataloader is None
    assert trainer.run_history.get_metric_names() == {"train_loss_epoch"}

    model = tiny_model()
    model.load_state_dict(middle)
    fresh = fit(make_trainer(Averaging, model, ema_decay=0.5))
    assert same_weights(fresh.model, trainer.model)
    assert same_weights(fresh.ema_model.module, trainer.ema_model.module)


def test_evaluate_keeps_the_ema_weights_the_count_and_the_weights() -> None:
    class Averaging(ModelEmaMixin):
        pass

    trainer = fit(make_trainer(Averaging, ema_decay=0.5))
    ema_model, weights = trainer.ema_model, {k: v.clone() for k, v in trainer.model.state_dict().items()}
    trainer.evaluate(tiny_data(5), per_device_batch_size=2, dataloader_kwargs={"num_workers": 0})
    assert trainer.ema_model is ema_model
    assert trainer.num_updates == 8
    assert all(torch.equal(weights[k], v) for k, v in trainer.model.state_dict().items())
    names = trainer.run_history.get_metric_names()
    assert names == {"evaluation_loss", "ema_model_evaluation_loss"}


def test_evaluate_before_training_knows_no_ema_weights() -> None:
    class Averaging(ModelEmaMixin):
        pass

    trainer = make_trainer(Averaging)
    trainer.evaluate(tiny_data(5), dataloader_kwargs={"num_workers": 0})
    assert trainer.run_history.get_metric_names() == {"evaluation_loss"}
    assert isinstance(trainer.ema_model, ModelEmaV3)


def test_evaluation_equals_the_model_called_by_hand() -> None:
    trainer = fit(make_trainer(TimmTrainer, num_classes=3), eval_dataset=tiny_data(7))
    images, labels = tiny_data(7).tensors
    logits = trainer.model.eval()(images)
    accuracy = (logits.argmax(1) == labels).float().mean().item()
    assert trainer.run_history.get_latest_metric("accuracy") == pytest.approx(accuracy)
    loss = nn.functional.cross_entropy(logits, labels).item()
    assert trainer.run_history.get_latest_metric("eval_loss_epoch") == pytest.approx(loss, rel=1e-5)


def test_max_num_train_steps_counts_updates() -> None:
    trainer = fit(make_trainer(), num_epochs=10, max_num_train_steps=5)
    assert trainer.num_updates == 5  # an epoch and a quarter
    assert trainer.run_config.num_epochs == 2
    assert len(trainer.run_history.get_metric_values("train_loss_epoch")) == 2
    assert fit(make_trainer(), num_epochs=1, max_num_train_steps=6).num_updates == 4  # the smaller limit holds


def test_placeholders_of_upstream_count_updates() -> None:
    from functools import partial

    linear = partial(
        torch.optim.lr_scheduler.LinearLR,
        start_factor=1.0,
        end_factor=0.5,
        total_iters=TrainerPlaceholderValues.NUM_UPDATE_STEPS_PER_EPOCH,
    )
    trainer = fit(make_trainer(), num_epochs=1, gradient_accumulation_steps=3, create_scheduler_fn=linear)
    assert trainer.scheduler.total_iters == 2
    assert trainer.learning_rate == pytest.approx(0.05)


def test_limited_batches_end_the_group_that_they_cut() -> None:
    trainer = make_trainer(Surface, callbacks=[LimitBatchesCallback(3)])
    fit(trainer, gradient_accumulation_steps=2, eval_dataset=tiny_data(16))
    assert trainer.seen == [(0, 1, 1), (0, 2, 2), (1, 1, 3), (1, 2, 4)]
    longer = make_trainer(Surface, callbacks=[LimitBatchesCallback(100)])
    fit(longer, tiny_data(12), gradient_accumulation_steps=2)
    assert [update for *_, update in longer.seen] == [1, 2, 3, 4]  # the slice promises 100 batches and has 3


def test_an_intermediate_evaluation_changes_nothing() -> None:
    class Dropout(TimmTrainer):
        def calculate_train_batch_loss(self, batch: Any) -> dict[str, Any]:
            assert self.model.training
            return super().calculate_train_batch_loss(batch)

    steps: list[bool] = []

    class CountSteps(Callback):
        def on_eval_step_end(self, trainer: Any, **kwargs: Any) -> None:
            steps.append(trainer.batch_index is not None)

    plain = fit(make_trainer(Dropout, num_classes=3), eval_dataset=tiny_data(5))
    callbacks = [LimitEvalStepsCallback(1), StepBasedEvaluationCallback(eval_every_n_steps=2), CountSteps]
    evaluated = fit(make_trainer(Dropout, num_classes=3, callbacks=callbacks), eval_dataset=tiny_data(5))
    assert same_weights(plain.model, evaluated.model)
    assert len(evaluated.run_history.get_metric_values("intermediate_accuracy")) == 2
    assert steps == [True, False, False] * 2  # one batch within an epoch, both after it
    for name in ("train_loss_epoch", "eval_loss_epoch", "accuracy"):
        values = [trainer.run_history.get_metric_values(name) for trainer in (plain, evaluated)]
        assert values[0] == values[1]


def test_a_stop_is_acted_on_as_soon_as_the_update_is_complete() -> None:
    class Stop(Callback):
        def on_train_step_end(self, trainer: Any, step: int, **kwargs: Any) -> None:
            if step == 1:
                trainer.request_stop("Enough.")

    trainer = make_trainer(sync_every_n_updates=3, callbacks=[Stop])
    fit(trainer, tiny_data(40))
    assert trainer.num_updates == 2  # distributed runs wait for the third: see distributed/
    assert trainer.run_history.get_metric_names() == set()
    trainer.request_stop("There is no run.")


def test_a_loss_that_is_not_finite_ends_the_run_with_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    from timm_accel.callbacks import DEFAULT_CALLBACKS

    trainer = make_trainer(sync_every_n_updates=2, callbacks=DEFAULT_CALLBACKS)
    trainer.loss_func = lambda outputs, targets: outputs.mean() * float("nan")
    with pytest.raises(RuntimeError, match=r"training loss to be finite, but it is not in epoch 1, after 2 updates"):
        fit(trainer)
    assert trainer.num_updates == 2
    assert trainer.epoch is None


def test_a_compiled_model_trains_and_its_weights_have_plain_names() -> None:
    model = tiny_model()
    compiled = torch.compile(model, backend="eager")
    trainer = fit(make_trainer(ModelEmaMixin, compiled, ema_decay=0.5), eval_dataset=tiny_data(5))
    assert same_weights(model, fit(make_trainer()).model)
    assert trainer.unwrapped_model is model
    assert set(trainer.evaluated_models()["ema_model"].state_dict()) == set(model.state_dict())


def test_evaluate_within_a_run_is_refused() -> None:
    class Evaluate(Callback):
        def on_train_epoch_end(self, trainer: Any, **kwargs: Any) -> None:
            trainer.evaluate(tiny_data(4))

    trainer = make_trainer(callbacks=[Evaluate])
    with pytest.raises(RuntimeError, match=r"evaluate\(\) outside a run.*StepBasedEvaluationCallback"):
        fit(trainer)
    fit(make_trainer())
    trainer.evaluate(tiny_data(4), dataloader_kwargs={"num_workers": 0})


def test_a_failed_stop_is_not_hidden_by_an_ordinary_one() -> None:
    class Both(Callback):
        def on_update_end(self, trainer: Any, **kwargs: Any) -> None:
            trainer.request_stop("Time is up.")
            trainer.request_stop("Expected a number.", failed=True)
            trainer.request_stop("Too late.")

    with pytest.raises(RuntimeError, match=r"Expected a number\."):
        fit(make_trainer(callbacks=[Both], sync_every_n_updates=1))


@pytest.mark.parametrize("event", ["on_update_end", "on_train_epoch_end", "on_eval_epoch_end"])
@pytest.mark.parametrize("failed", [True, False])
def test_the_reason_of_a_stop_is_raised_or_printed_and_never_both(
    event: str, failed: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(self: Callback, trainer: Any, **kwargs: Any) -> None:
        trainer.request_stop("Expected a number.", failed=failed)

    trainer = make_trainer(callbacks=[type("Stop", (Callback,), {event: stop})])
    with pytest.raises(RuntimeError, match=r"^Expected a number\.$") if failed else nullcontext():
        fit(trainer, eval_dataset=tiny_data(4))
    assert capsys.readouterr().out.count("Expected a number.") == (0 if failed else 1)


def test_the_reason_of_a_failed_evaluation_is_raised_alone(capsys: pytest.CaptureFixture[str]) -> None:
    class Stop(Callback):
        def on_eval_epoch_end(self, trainer: Any, **kwargs: Any) -> None:
            trainer.request_stop("Expected a number.", failed=True)

    with pytest.raises(RuntimeError, match=r"^Expected a number\.$"):
        make_trainer(callbacks=[Stop]).evaluate(tiny_data(4), dataloader_kwargs={"num_workers": 0})
    assert "Expected a number." not in capsys.readouterr().out


def test_a_users_default_of_no_workers_works() -> None:
    class NoWorkers(LoopTrainer):
        def get_default_train_dl_kwargs(self, batch_size: int) -> dict[str, Any]:
            return super().get_default_train_dl_kwargs(batch_size) | {"num_workers": 0}

    assert fit(make_trainer(NoWorkers), train_dataloader_kwargs=None).num_updates == 8


def test_a_sampler_may_draw_more_images_than_there_are() -> None:
    data = tiny_data(8)
    sampler = torch.utils.data.RandomSampler(data, replacement=True, num_samples=64)
    loader = {"num_workers": 0, "sampler": sampler}
    trainer = fit(make_trainer(), data, per_device_batch_size=32, train_dataloader_kwargs=loader)
    assert trainer.num_updates == 4


def test_a_refused_run_leaves_the_ema_weights_and_the_count(tmp_path: Any) -> None:
    from timm_accel.callbacks import CsvHistoryCallback

    trainer = fit(make_trainer(ModelEmaMixin, ema_decay=0.5, callbacks=[CsvHistoryCallback], run_dir=tmp_path))
    ema_model = trainer.ema_model
    with pytest.raises(FileExistsError, match="never overwritten"):
        fit(trainer)
    assert trainer.ema_model is ema_model
    assert trainer.num_updates == 8


def test_loader_arguments_that_exclude_each_other_are_sorted_out() -> None:
    data = tiny_data()
    batches = torch.utils.data.BatchSampler(torch.utils.data.SequentialSampler(data), 8, drop_last=False)
    trainer = make_trainer(Surface)
    fit(trainer, data, num_epochs=1, train_dataloader_kwargs={"num_workers": 0, "batch_sampler": batches})
    assert trainer.num_updates == 2
