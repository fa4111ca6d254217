"""Code that people write against pytorch-accelerated works on our trainers."""

from collections.abc import Iterable
from functools import partial
from typing import Any

import pytest
import torch
from pytorch_accelerated.callbacks import (
    EarlyStoppingCallback,
    LogMetricsCallback,
    PrintProgressCallback,
    ProgressBarCallback,
    SaveBestModelCallback,
    TrainerCallback,
)
from pytorch_accelerated.run_config import TrainerRunConfig
from pytorch_accelerated.trainer import DEFAULT_CALLBACKS, Trainer, TrainerPlaceholderValues
from tiny_runs import fit, make_trainer, same_weights, tiny_data, tiny_model
from torch import nn
from torch.utils.data import DataLoader

from timm_accel import LoopTrainer, TimmTrainer

# Every public hook of upstream's Trainer, with what it is called with.
HOOKS = [
    "create_train_dataloader",
    "create_eval_dataloader",
    "create_scheduler",
    "training_run_start",
    "train_epoch_start",
    "calculate_train_batch_loss",
    "backward_step",
    "optimizer_step",
    "scheduler_step",
    "optimizer_zero_grad",
    "train_epoch_end",
    "eval_epoch_start",
    "calculate_eval_batch_loss",
    "eval_epoch_end",
    "training_run_epoch_end",
    "training_run_end",
    "get_default_train_dl_kwargs",
    "get_default_eval_dl_kwargs",
]
EVALUATION_HOOKS = ["evaluation_run_start", "evaluation_run_end"]


def calls_of(kind: type[Trainer], hooks: list[str], evaluate: bool = False) -> tuple[list[str], Trainer]:
    """Subclass `kind` so that each hook notes itself and calls ``super()``; train, and return the notes."""
    notes: list[str] = []

    def noted(hook: str) -> Any:
        def method(self: Any, *args: Any, **kwargs: Any) -> Any:
            notes.append(hook)
            return getattr(super(User, self), hook)(*args, **kwargs)

        return method

    User = type("User", (kind,), {hook: noted(hook) for hook in hooks})  # noqa: N806
    model = tiny_model()
    trainer = User(
        model=model,
        loss_func=nn.CrossEntropyLoss(),
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        callbacks=(),
    )
    if evaluate:
        trainer.evaluate(tiny_data(8), per_device_batch_size=4, dataloader_kwargs={"num_workers": 0})
    else:
        constant = partial(torch.optim.lr_scheduler.ConstantLR, total_iters=TrainerPlaceholderValues.NUM_EPOCHS)
        fit(trainer, tiny_data(12), tiny_data(8), gradient_accumulation_steps=2, create_scheduler_fn=constant)
    return notes, trainer


@pytest.mark.parametrize("hook", HOOKS)
def test_each_hook_is_called_as_often_as_upstream_calls_it(hook: str) -> None:
    theirs, _ = calls_of(Trainer, [hook])
    ours, trainer = calls_of(TimmTrainer, [hook])
    assert ours == theirs
    assert ours
    assert trainer.num_updates == 4


def test_all_hooks_together_come_in_upstreams_order() -> None:
    assert calls_of(TimmTrainer, HOOKS)[0] == calls_of(Trainer, HOOKS)[0]
    evaluation = [*EVALUATION_HOOKS, "eval_epoch_start", "calculate_eval_batch_loss", "eval_epoch_end"]
    theirs, _ = calls_of(Trainer, evaluation, evaluate=True)
    assert calls_of(TimmTrainer, evaluation, evaluate=True)[0] == theirs


def test_every_public_hook_of_upstream_is_looked_at() -> None:
    public = {
        name
        for name, value in vars(Trainer).items()
        if callable(value) and not name.startswith("_")
    } - {"train", "evaluate", "gather", "print", "save_checkpoint", "load_checkpoint", "save_training_state",
         "load_training_state", "get_model"}  # fmt: skip
    assert public == {*HOOKS, *EVALUATION_HOOKS}


# The subclasses that pytorch-accelerated's documentation shows


def test_a_documented_training_step_of_ones_own_works() -> None:
    class SamplesInLoss(LoopTrainer):
        def calculate_train_batch_loss(self, batch: Any) -> dict[str, Any]:
            inputs, targets = batch
            outputs = self.model(inputs)
            return {"loss": self.loss_func(outputs, targets), "model_outputs": outputs, "batch_size": len(targets)}

        def calculate_eval_batch_loss(self, batch: Any) -> dict[str, Any]:
            with torch.no_grad():
                return self.calculate_train_batch_loss(batch)

    own, plain = (fit(make_trainer(kind), eval_dataset=tiny_data(7)) for kind in (SamplesInLoss, LoopTrainer))
    assert same_weights(own.model, plain.model)
    assert own.run_history._metrics == plain.run_history._metrics


def test_a_documented_metric_callback_works() -> None:
    class Accuracy(TrainerCallback):
        def on_eval_epoch_start(self, trainer: Any, **kwargs: Any) -> None:
            self.right = self.seen = 0

        def on_eval_step_end(self, trainer: Any, batch: Any, batch_output: Any, **kwargs: Any) -> None:
            predictions = trainer.gather(batch_output["model_outputs"].argmax(-1))
            labels = trainer.gather(batch[1])
            self.right += (predictions == labels).sum().item()
            self.seen += len(labels)

        def on_eval_epoch_end(self, trainer: Any, **kwargs: Any) -> None:
            trainer.run_history.update_metric("by_callback", self.right / self.seen)

    trainer = fit(make_trainer(TimmTrainer, num_classes=3, callbacks=[Accuracy]), eval_dataset=tiny_data(7))
    history = trainer.run_history
    assert history.get_metric_values("by_callback") == pytest.approx(history.get_metric_values("accuracy"))


def test_documented_overrides_of_loader_and_scheduler_work() -> None:
    class Own(TimmTrainer):
        def create_train_dataloader(self, batch_size: int, train_dl_kwargs: Any = None) -> Iterable:
            return DataLoader(self.train_dataset, batch_size=batch_size, shuffle=True)

        def get_default_eval_dl_kwargs(self, batch_size: int) -> dict[str, Any]:
            return {"shuffle": False, "batch_size": batch_size, "num_workers": 0}

        def create_scheduler(self) -> Any:
            return torch.optim.lr_scheduler.OneCycleLR(
                self.optimizer,
                max_lr=0.2,
                epochs=self.run_config.num_epochs,
                steps_per_epoch=self.run_config.num_update_steps_per_epoch,
            )

    trainer = make_trainer(Own)
    trainer.train(tiny_data(), 2, tiny_data(5), 4, create_scheduler_fn=trainer.create_scheduler)
    assert trainer.num_updates == 8
    assert trainer.scheduler.last_epoch == 8
    assert trainer.learning_rate < 0.1


def test_the_run_config_tells_the_truth() -> None:
    trainer = fit(make_trainer(), eval_dataset=tiny_data(4), gradient_accumulation_steps=3)
    config = trainer.run_config
    assert isinstance(config, TrainerRunConfig)
    assert (config.num_update_steps_per_epoch, config.num_local_update_steps_per_epoch) == (2, 2)
    assert (config.max_num_train_steps, config.train_total_batch_size) == (4, 12)
    assert config.to_dict()["num_epochs"] == 2


@pytest.mark.usefixtures("capsys")
def test_upstreams_callbacks_work_together(tmp_path: Any) -> None:
    callbacks = [
        *DEFAULT_CALLBACKS,
        SaveBestModelCallback(tmp_path / "best.pt", watch_metric="accuracy", greater_is_better=True),
        EarlyStoppingCallback(early_stopping_patience=2, watch_metric="train_loss_epoch"),
    ]
    trainer = make_trainer(TimmTrainer, num_classes=3, callbacks=callbacks)
    fit(trainer, eval_dataset=tiny_data(6), num_epochs=8)
    assert (tmp_path / "best.pt").is_file()
    kinds = {type(callback) for callback in trainer.callback_handler}
    assert {PrintProgressCallback, ProgressBarCallback, LogMetricsCallback} <= kinds


def test_a_stop_raised_by_a_callback_ends_the_run() -> None:
    from pytorch_accelerated.callbacks import StopTrainingError

    events = []

    class Stop(TrainerCallback):
        def on_train_epoch_end(self, trainer: Any, **kwargs: Any) -> None:
            raise StopTrainingError("Enough.")

        def on_stop_training_error(self, trainer: Any, **kwargs: Any) -> None:
            events.append("stopped")

        def on_training_run_end(self, trainer: Any, **kwargs: Any) -> None:
            events.append("ended")

    trainer = fit(make_trainer(callbacks=[Stop]))
    assert events == ["stopped", "ended"]
    assert trainer.num_updates == 4


def test_checkpoints_of_upstream_still_work(tmp_path: Any) -> None:
    trainer = fit(make_trainer())
    trainer.save_checkpoint(tmp_path / "model.pt")
    other = make_trainer(model=tiny_model())
    assert not same_weights(other.model, trainer.model)
    other.load_checkpoint(tmp_path / "model.pt")
    assert same_weights(other.model, trainer.model)


def test_hooks_may_compute_gradients_in_an_evaluation_and_train_on_what_it_computed() -> None:
    class Attacking(LoopTrainer):
        """Evaluates on images that raise the loss, and trains towards the outputs of the evaluation."""

        def calculate_eval_batch_loss(self, batch: Any) -> dict[str, Any]:
            images, labels = batch
            with torch.enable_grad():  # torch.inference_mode() would refuse this
                images = images.clone().requires_grad_()
                self.loss_func(self.model(images), labels).backward(inputs=[images])
            output = super().calculate_eval_batch_loss([images.detach() + 0.1 * images.grad.sign(), labels])
            self.kept = output["model_outputs"]
            return output

        def calculate_train_batch_loss(self, batch: Any) -> dict[str, Any]:
            output = super().calculate_train_batch_loss(batch)
            if self.epoch:
                output["loss"] = output["loss"] + (output["model_outputs"] * self.kept).mean()  # and this
            return output

    plain, attacked = (fit(make_trainer(kind), eval_dataset=tiny_data(4, seed=3)) for kind in (LoopTrainer, Attacking))
    losses = [trainer.run_history.get_metric_values("eval_loss_epoch")[0] for trainer in (plain, attacked)]
    assert losses[1] > losses[0] + 0.1
    assert not same_weights(plain.model, attacked.model)
