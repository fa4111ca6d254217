"""Freezing: what is frozen keeps its bits, what is not moves, and a resumed run continues with the schedule."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from refusal import refused
from resumed_runs import Augmented, cut, every_update
from timm.optim import create_optimizer_v2
from tiny_runs import NO_WORKERS, fit, make_trainer, same_weights, tiny_data, tiny_model

from timm_accel import TimmTrainer, create_classifier
from timm_accel.mixins import FreezingMixin, GradientClippingMixin

BODY = ("0.weight", "1.weight", "1.bias", "1.running_mean", "1.running_var")
HEAD = ("5.weight", "5.bias")
IGNORED = {"1.num_batches_tracked", "0.bias"}  # a bias before BatchNorm has next to no gradient


class Watching(FreezingMixin):
    """Keeps a copy of the weights before each epoch and at the end."""

    def training_run_start(self) -> None:
        super().training_run_start()
        self.copies: list[dict[str, torch.Tensor]] = []

    def _copy(self) -> None:
        self.copies.append({name: each.clone() for name, each in self.unwrapped_model.state_dict().items()})

    def train_epoch_start(self) -> None:
        super().train_epoch_start()
        self._copy()

    def training_run_end(self) -> None:
        super().training_run_end()
        self._copy()


class Everything(Watching, TimmTrainer):
    """Beside all other mixins."""


def moved(trainer: Any) -> list[set[str]]:
    """Return which weights moved in each epoch."""
    pairs = zip(trainer.copies, trainer.copies[1:], strict=False)
    return [{name for name in a if not torch.equal(a[name], b[name])} - IGNORED for a, b in pairs]


def frozen_run(schedule: Any, kind: type = Watching, opt: str = "adamw", **options: Any) -> Any:
    model = tiny_model()
    optimizer = create_optimizer_v2(model, opt, lr=0.05, weight_decay=0.1)
    run = {name: options.pop(name) for name in ("num_epochs", "resume_from", "train_dataset") if name in options}
    trainer = make_trainer(kind, model, optimizer=optimizer, freeze_schedule=schedule, **options)
    return fit(trainer, **({"num_epochs": 3} | run))


@pytest.mark.parametrize("opt", ["adamw", "lookahead_adamw", "sgd", "lookahead_momentum"])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_frozen_stages_keep_every_bit_and_the_rest_moves(opt: str, accumulation: int) -> None:
    model = tiny_model()
    optimizer = create_optimizer_v2(model, opt, lr=0.05, weight_decay=0.1)
    trainer = make_trainer(Everything, model, optimizer=optimizer, freeze_schedule={0: 2, 1: 0, 2: ["0", "1"]},
                           clip_grad=1.0, num_classes=3)  # fmt: skip
    fit(trainer, num_epochs=4, gradient_accumulation_steps=accumulation)
    assert moved(trainer) == [set(HEAD), {*BODY, *HEAD}, set(HEAD), set(HEAD)]
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_frozen_parameter_has_no_optimizer_state_until_it_is_thawed() -> None:
    trainer = frozen_run({0: 2}, num_epochs=1)
    kept = trainer.unwrapped_optimizer.state
    assert {name for name, each in trainer.model.named_parameters() if each in kept} == set(HEAD)
    trainer = frozen_run({0: 2, 1: 0}, num_epochs=2)
    steps = [trainer.unwrapped_optimizer.state[each]["step"].item() for each in trainer.model.parameters()]
    assert steps == [4, 4, 4, 4, 8, 8]


@pytest.mark.parametrize("order", [(GradientClippingMixin, FreezingMixin), (FreezingMixin, GradientClippingMixin)])
def test_the_head_is_clipped_by_its_own_gradients_alone(order: tuple[type, ...]) -> None:
    """One update of plain SGD, with a limit far below the norm."""
    model, data = tiny_model(), tiny_data(4)
    model[4] = torch.nn.Identity()
    start = model[5].weight.detach().clone()
    twin = deepcopy(model)
    twin[1].eval()
    torch.nn.functional.cross_entropy(twin(data.tensors[0]), data.tensors[1]).backward()
    head = twin[5].weight.grad
    norm = torch.cat([each.grad.flatten() for each in twin[5].parameters()]).norm()
    of_all = torch.cat([each.grad.flatten() for each in twin.parameters()]).norm()
    assert of_all > 1.05 * norm > 0.1
    trainer = make_trainer(type("Clipped", order, {}), model, clip_grad=0.01, freeze_schedule={0: 2})
    fit(trainer, data, num_epochs=1)
    torch.testing.assert_close(model[5].weight.detach(), start - 0.1 * 0.01 / norm * head, rtol=0, atol=1e-7)


def test_all_but_the_last_stage_are_frozen_by_minus_one() -> None:
    assert moved(frozen_run({0: -1})) == [set(HEAD)] * 3


def test_the_epochs_before_the_first_of_the_schedule_are_free() -> None:
    assert moved(frozen_run({1: 2})) == [{*BODY, *HEAD}, set(HEAD), set(HEAD)]


def test_frozen_norms_stay_in_evaluation_and_return_to_training() -> None:
    modes: list[bool] = []

    class Modes(FreezingMixin):
        def calculate_train_batch_loss(self, batch: Any) -> dict[str, Any]:
            modes.append(self.unwrapped_model[1].training)
            assert self.unwrapped_model[4].training
            return super().calculate_train_batch_loss(batch)

    fit(make_trainer(Modes, freeze_schedule={0: 2, 1: 0}), None, tiny_data(4))
    assert modes == [False] * 4 + [True] * 4


def test_a_run_without_a_schedule_is_the_same_to_the_bit() -> None:
    assert same_weights(fit(make_trainer()).model, fit(make_trainer(FreezingMixin)).model)


@pytest.mark.parametrize("after", [2, 6])
def test_a_resumed_run_continues_by_the_schedule(after: int, tmp_path: Path) -> None:
    def run(run_dir: Path, **options: Any) -> Any:
        trainer = frozen_run({0: 2, 1: 0, 2: 1}, run_dir=run_dir, callbacks=[every_update()],
                             train_dataset=Augmented(16), **options)  # fmt: skip
        return trainer

    whole = run(tmp_path / "whole")
    resumed = run(cut(tmp_path / "whole", after, tmp_path / "cut"), resume_from="auto")
    assert same_weights(resumed.model, whole.model)
    assert moved(resumed)[-1] == moved(whole)[-1] == {*BODY, *HEAD} - {"0.weight"}


def test_the_ema_weights_of_what_is_frozen_stay_too() -> None:
    from timm_accel import TimmMixupTrainer

    model = tiny_model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    trainer = make_trainer(TimmMixupTrainer, model, freeze_schedule={0: 2}, num_class=3, ema_decay=0.3)
    fit(trainer, train_dataloader_kwargs=NO_WORKERS)
    ema_weights = trainer.ema_model.module.state_dict()
    assert all(torch.equal(ema_weights[name], before[name]) for name in BODY)
    assert not any(torch.equal(ema_weights[name], before[name]) for name in HEAD)


def test_bad_schedules_are_refused_before_training() -> None:
    with refused(TypeError, "mapping of epochs to stages", "got 3", "{0: 3, 5: 0}"):
        make_trainer(FreezingMixin, freeze_schedule=3)
    with refused(ValueError, "epochs from 0", "got -1"):
        make_trainer(FreezingMixin, freeze_schedule={-1: 2})
    with refused(ValueError, "stages of the model", "got '7'"):
        frozen_run({0: ["7"]})
    with refused(ValueError, "since one must be left to train", "got 3"):
        frozen_run({0: 3})
    model = tiny_model()
    model[0].weight.requires_grad_(False)
    with refused(ValueError, "trainable", "'0.weight', which has requires_grad=False", "create_classifier()"):
        fit(make_trainer(FreezingMixin, model, freeze_schedule={0: 1, 1: 0}))
    model = tiny_model()
    head_alone = torch.optim.SGD(model[5].parameters(), lr=0.1)
    with refused(ValueError, "'0.weight', which is in no group of the optimizer"):
        fit(make_trainer(FreezingMixin, model, optimizer=head_alone, freeze_schedule={0: 1, 1: 0}))


def test_a_vision_transformer_thaws_its_tokens_with_the_stem() -> None:
    model, _ = create_classifier("test_vit", 3, image_size=160)
    before = {name: each.detach().clone() for name, each in model.named_parameters()}
    data = torch.utils.data.TensorDataset(torch.randn(8, 3, 160, 160), torch.arange(8) % 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    fit(make_trainer(FreezingMixin, model, optimizer=optimizer, freeze_schedule={0: 1}), data, num_epochs=1)
    kept = {name for name, each in model.named_parameters() if torch.equal(before[name], each)}
    assert {"cls_token", "pos_embed", "patch_embed.proj.weight"} <= kept
    assert "head.weight" not in kept
