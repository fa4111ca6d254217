"""Optimizers with modes: `schedulefree` is told of training and evaluation, and resumes with the same bits."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from schedulefree import AdamWScheduleFree, RAdamScheduleFree, SGDScheduleFree
from timm.optim import Lookahead
from tiny_runs import differences, fit, make_trainer, same_weights, tiny_data, tiny_model
from torch import nn

from timm_accel import TimmTrainer
from timm_accel.callbacks import SaveBestCallback, SaveStateCallback
from timm_accel.mixins import OptimizerModeMixin

KINDS = {"adamw": AdamWScheduleFree, "sgd": SGDScheduleFree, "radam": RAdamScheduleFree}


def quiet_model() -> nn.Module:
    model = tiny_model(batch_norm=False)
    model[4] = nn.Identity()
    return model


def trainer_with(kind: str = "adamw", trainer_kind: type = OptimizerModeMixin, **options: Any) -> Any:
    model = tiny_model()
    return make_trainer(trainer_kind, model, optimizer=KINDS[kind](model.parameters(), lr=0.05), **options)


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_is_that_of_the_package_s_own_loop(kind: str) -> None:
    model, data, held_out = quiet_model(), tiny_data(8), tiny_data(4, seed=3)
    in_order = {"num_workers": 0, "sampler": torch.utils.data.SequentialSampler(data)}
    trainer = make_trainer(OptimizerModeMixin, model, optimizer=KINDS[kind](model.parameters(), lr=0.05))
    fit(trainer, data, held_out, train_dataloader_kwargs=in_order)

    by_hand = quiet_model()
    optimizer, losses = KINDS[kind](by_hand.parameters(), lr=0.05), []
    for _ in range(2):
        optimizer.train()
        for batch in (slice(0, 4), slice(4, 8)):
            nn.functional.cross_entropy(by_hand(data.tensors[0][batch]), data.tensors[1][batch]).backward()
            optimizer.step()
            optimizer.zero_grad()
        optimizer.eval()
        losses.append(nn.functional.cross_entropy(by_hand(held_out.tensors[0]), held_out.tensors[1]).item())
    assert same_weights(trainer.model, by_hand)
    assert list(trainer.run_history.get_metric_values("eval_loss_epoch")) == pytest.approx(losses)


def lookahead_trainer(**options: Any) -> Any:
    model = quiet_model()
    optimizer = Lookahead(AdamWScheduleFree(model.parameters(), lr=0.05), alpha=0.25, k=2)
    return make_trainer(TimmTrainer, model, optimizer=optimizer, **options)


def test_an_optimizer_within_lookahead_is_told_too() -> None:
    """An epoch of 3 updates: the slow weights are those after 2, and move towards those after 3 at its end."""
    data, held_out = tiny_data(12), tiny_data(4, seed=3)
    in_order = {"num_workers": 0, "sampler": torch.utils.data.SequentialSampler(data)}
    trainer = lookahead_trainer()
    fit(trainer, data, held_out, num_epochs=1, train_dataloader_kwargs=in_order)

    by_hand = quiet_model()
    optimizer = AdamWScheduleFree(by_hand.parameters(), lr=0.05)
    optimizer.train()
    for update in range(3):
        batch = slice(4 * update, 4 * update + 4)
        nn.functional.cross_entropy(by_hand(data.tensors[0][batch]), data.tensors[1][batch]).backward()
        optimizer.step()
        optimizer.zero_grad()
        if update == 1:
            slow = [parameter.detach().clone() for parameter in by_hand.parameters()]
    with torch.no_grad():
        for parameter, weight in zip(by_hand.parameters(), slow, strict=True):
            parameter.copy_(weight + 0.25 * (parameter - weight))
    optimizer.eval()
    for name, weight in by_hand.state_dict().items():
        torch.testing.assert_close(trainer.model.state_dict()[name], weight)
    loss = nn.functional.cross_entropy(by_hand(held_out.tensors[0]), held_out.tensors[1]).item()
    assert trainer.run_history.get_latest_metric("eval_loss_epoch") == pytest.approx(loss, rel=1e-5)
    assert not trainer.unwrapped_optimizer.param_groups[0]["train_mode"]


@pytest.mark.parametrize("create", [trainer_with, lookahead_trainer])
@pytest.mark.parametrize("cut_after", range(5))
def test_it_resumes_from_any_state_with_the_same_bits(create: Any, cut_after: int, tmp_path: Path) -> None:
    callbacks = [SaveStateCallback(every_n_epochs=1, every_n_updates=1, keep=99, keep_when_done=99)]
    whole = fit(create(run_dir=tmp_path, callbacks=callbacks), tiny_data(8), tiny_data(4))
    states = sorted((tmp_path / "state").glob("0*"))
    resumed = fit(create(), tiny_data(8), tiny_data(4), resume_from=states[cut_after])
    assert same_weights(whole.model, resumed.model)
    assert not differences(whole.unwrapped_optimizer.state_dict(), resumed.unwrapped_optimizer.state_dict())
    assert whole.run_history._metrics == resumed.run_history._metrics


def test_an_evaluation_within_an_epoch_sees_the_weights_to_use_and_changes_no_bit() -> None:
    from pytorch_accelerated.callbacks import StepBasedEvaluationCallback

    class Noting(TimmTrainer):
        seen: list[tuple[bool, torch.Tensor]]

        def calculate_eval_batch_loss(self, batch: Any) -> dict[str, Any]:
            group = self.unwrapped_optimizer.param_groups[0]
            self.seen = [*getattr(self, "seen", []), (group["train_mode"], self.model[5].weight.clone())]
            return super().calculate_eval_batch_loss(batch)

    def run(**options: Any) -> Any:
        return fit(trainer_with(trainer_kind=Noting, **options), tiny_data(16), tiny_data(4))

    plain, evaluated = run(), run(callbacks=[StepBasedEvaluationCallback(2)])
    assert len(evaluated.seen) > len(plain.seen) == 2
    assert not any(in_training for in_training, _ in evaluated.seen)
    assert same_weights(plain.model, evaluated.model)
    assert not differences(plain.unwrapped_optimizer.state_dict(), evaluated.unwrapped_optimizer.state_dict())


def test_the_kept_weights_are_those_to_use(tmp_path: Path) -> None:
    best = SaveBestCallback("train_loss_epoch", greater_is_better=False)
    trainer = trainer_with(run_dir=tmp_path, callbacks=[best])
    fit(trainer, tiny_data(8), num_epochs=1)
    kept = load_file(tmp_path / "best" / "model.safetensors")
    assert torch.equal(kept["5.weight"], trainer.model[5].weight)
    trainer.unwrapped_optimizer.train()
    assert not torch.equal(kept["5.weight"], trainer.model[5].weight)


def test_a_run_that_stops_within_an_epoch_ends_with_the_weights_to_use() -> None:
    class Stopping(OptimizerModeMixin):
        def after_update(self) -> None:
            super().after_update()
            self.request_stop("Enough.")

    trainer = fit(trainer_with(trainer_kind=Stopping, sync_every_n_updates=1), tiny_data(16))
    assert trainer.num_updates == 1
    assert not trainer.unwrapped_optimizer.param_groups[0]["train_mode"]


def test_an_interrupted_evaluation_leaves_nothing_for_the_next_run() -> None:
    class Stopping(OptimizerModeMixin):
        stops = True

        def eval_epoch_end(self) -> None:
            if self.batch_index is not None and self.stops:
                raise KeyboardInterrupt
            super().eval_epoch_end()

    from pytorch_accelerated.callbacks import StepBasedEvaluationCallback

    trainer = trainer_with(trainer_kind=Stopping, callbacks=[StepBasedEvaluationCallback(2)])
    with pytest.raises(KeyboardInterrupt):
        fit(trainer, tiny_data(12), tiny_data(4))
    trainer.stops = False
    before = trainer.model[5].weight.clone()
    trainer.evaluate(tiny_data(4), dataloader_kwargs={"num_workers": 0})
    assert torch.equal(trainer.model[5].weight, before)
