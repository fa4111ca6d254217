"""What single mixins do in numbers, beyond the reference loop and the traps."""

import warnings
from typing import Any

import pytest
import torch
from timm.optim import create_optimizer_v2
from timm.utils import ModelEmaV3
from tiny_runs import fit, make_trainer, same_weights, tiny_data, tiny_model
from torch import nn

from timm_accel import LoopTrainer
from timm_accel.callbacks import Callback
from timm_accel.mixins import ClassificationMetricsMixin, EvalLossMixin, ModelEmaMixin, SecondOrderMixin


class Weights(Callback):
    """Keeps the weights after each update and epoch."""

    def __init__(self) -> None:
        self.updates: list[dict[str, torch.Tensor]] = []

    def on_update_end(self, trainer: Any, **kwargs: Any) -> None:
        self.updates.append({name: tensor.clone() for name, tensor in trainer.model.state_dict().items()})


@pytest.mark.parametrize(("every", "steps"), [(1, range(1, 9)), (3, (3, 6)), ("epoch", (4, 8))])
def test_ema_weights_are_updated_when_they_should_and_by_the_number_of_updates(every: Any, steps: Any) -> None:
    weights = Weights()
    options = {"ema_decay": 0.3, "ema_update_every": every, "callbacks": [weights]}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="ema_decay")
        trainer = fit(make_trainer(ModelEmaMixin, **options))
    by_hand, model = ModelEmaV3(tiny_model(), decay=0.3, use_warmup=True), tiny_model()
    for step in steps:
        model.load_state_dict(weights.updates[step - 1])
        by_hand.update(model, step=step)
    assert same_weights(trainer.ema_model.module, by_hand.module)


def test_the_ema_model_is_not_evaluated_before_its_first_update() -> None:
    trainer = make_trainer(ModelEmaMixin, ema_decay=0.1, ema_update_every=6)
    with pytest.warns(UserWarning, match="averages over about 7 of the run's 8 updates"):
        fit(trainer, eval_dataset=tiny_data(5))
    assert len(trainer.run_history.get_metric_values("eval_loss_epoch")) == 2
    assert len(trainer.run_history.get_metric_values("ema_model_eval_loss_epoch")) == 1


@pytest.mark.parametrize(
    ("decay", "warmup", "total", "better"),
    [(0.999, False, 400, "0.9875"), (0.9998, True, 16, "0.6875"), (0.9, False, 20, "0.75")],
)
def test_a_window_of_over_a_third_of_the_run_warns_with_a_better_decay(
    decay: float, warmup: bool, total: int, better: str
) -> None:
    options = {"ema_warmup": warmup, "callbacks": ()}
    data = tiny_data(total * 4 // 2)
    with pytest.warns(UserWarning, match=rf"of the run's {total} updates.*Try ema_decay={better}\."):
        fit(make_trainer(ModelEmaMixin, ema_decay=decay, **options), data)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(make_trainer(ModelEmaMixin, ema_decay=float(better), **options), data)


@pytest.mark.parametrize(("num_classes", "top5"), [(5, False), (6, True)])
def test_top_five_is_recorded_where_it_says_something(num_classes: int, top5: bool) -> None:
    trainer = make_trainer(ClassificationMetricsMixin, tiny_model(num_classes), num_classes=num_classes)
    assert ("accuracy_top5" in trainer.evaluation_metrics()) == top5
    fit(trainer, tiny_data(12, num_classes), tiny_data(12, num_classes), num_epochs=1)
    assert ("accuracy_top5" in trainer.run_history.get_metric_names()) == top5


def test_a_decay_of_zero_is_the_model_itself() -> None:
    trainer = fit(make_trainer(ModelEmaMixin, ema_decay=0.0))
    assert same_weights(trainer.ema_model.module, trainer.model)


def test_an_ema_model_keeps_integer_buffers_as_the_model_has_them() -> None:
    trainer = fit(make_trainer(ModelEmaMixin, ema_decay=0.5))
    assert trainer.ema_model.module[1].num_batches_tracked == trainer.model[1].num_batches_tracked == 8


def test_another_loss_evaluates_model_and_ema_model() -> None:
    class Both(EvalLossMixin, ModelEmaMixin):
        pass

    def largest(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return outputs.max()

    trainer = fit(make_trainer(Both, ema_decay=0.5, eval_loss_fn=largest), eval_dataset=tiny_data(4))
    images, _ = tiny_data(4).tensors
    for prefix, module in (("", trainer.model), ("ema_model_", trainer.ema_model.module)):
        expected = module.eval()(images).max().item()
        assert trainer.run_history.get_latest_metric(f"{prefix}eval_loss_epoch") == pytest.approx(expected)
    plain = fit(make_trainer(EvalLossMixin), eval_dataset=tiny_data(4))
    assert plain.run_history._metrics == fit(make_trainer(), eval_dataset=tiny_data(4)).run_history._metrics


@pytest.mark.filterwarnings("ignore:Using backward\\(\\) with create_graph=True:UserWarning")
def test_second_order_optimizers_see_the_graph_of_the_gradients() -> None:
    def train_by_hand() -> nn.Module:
        model, data = tiny_model(batch_norm=False), tiny_data(4)
        model[4] = nn.Identity()
        optimizer = create_optimizer_v2(model, "adahessian", lr=0.05)
        for _ in range(3):
            loss = nn.functional.cross_entropy(model(data.tensors[0]), data.tensors[1])
            loss.backward(create_graph=True)
            optimizer.step()
            optimizer.zero_grad()
        return model

    model = tiny_model(batch_norm=False)
    model[4] = nn.Identity()
    trainer = make_trainer(SecondOrderMixin, model, optimizer=create_optimizer_v2(model, "adahessian", lr=0.05))
    order = {"num_workers": 0, "sampler": torch.utils.data.SequentialSampler(tiny_data(4))}
    fit(trainer, tiny_data(4), num_epochs=3, train_dataloader_kwargs=order)
    assert same_weights(trainer.model, train_by_hand())
    assert make_trainer(SecondOrderMixin).backward_kwargs() == {}
    assert issubclass(SecondOrderMixin, LoopTrainer)
