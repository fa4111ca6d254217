"""Events of a user's own reach the callbacks that have them and pass over all others."""

from typing import Any

import pytest
from pytorch_accelerated.callbacks import TerminateOnNaNCallback, TrainerCallback
from pytorch_accelerated.trainer import DEFAULT_CALLBACKS as UPSTREAMS_CALLBACKS
from tiny_runs import fit, make_trainer, tiny_data

from timm_accel import LoopTrainer, TimmTrainer
from timm_accel.callbacks import DEFAULT_CALLBACKS, Callback, EarlyStoppingCallback


class Verifies(LoopTrainer):
    """Calls a custom event before each training batch, as upstream's documentation shows."""

    def calculate_train_batch_loss(self, batch: Any) -> dict[str, Any]:
        self.callback_handler.call_event("verify_train_batch", trainer=self, batch=batch)
        return super().calculate_train_batch_loss(batch)


class _Verifying:
    def __init__(self) -> None:
        self.sizes: list[int] = []

    def verify_train_batch(self, trainer: Any, batch: Any, **kwargs: Any) -> None:
        self.sizes.append(len(batch[0]))


class OfUpstream(_Verifying, TrainerCallback):
    """Upstream's base class."""


class OfOurs(_Verifying, Callback):
    """Our base class."""


@pytest.mark.usefixtures("capsys")
@pytest.mark.parametrize("kind", [OfUpstream, OfOurs])
@pytest.mark.parametrize("others", [(), DEFAULT_CALLBACKS, UPSTREAMS_CALLBACKS, (EarlyStoppingCallback,)])
def test_an_event_reaches_the_callbacks_that_define_it(kind: type, others: tuple) -> None:
    verifying = kind()
    trainer = make_trainer(Verifies, callbacks=[*others, verifying])
    fit(trainer, eval_dataset=tiny_data(4))
    assert verifying.sizes == [4] * 8


def test_an_event_that_no_callback_has_passes() -> None:
    trainer = make_trainer(Verifies, callbacks=[TerminateOnNaNCallback, EarlyStoppingCallback()])
    assert fit(trainer, eval_dataset=tiny_data(4)).num_updates == 8


def test_an_event_set_on_an_instance_is_called() -> None:
    callback, seen = Callback(), []
    callback.verify_train_batch = lambda trainer, batch: seen.append(len(batch))
    fit(make_trainer(Verifies, callbacks=[callback]), num_epochs=1)
    assert len(seen) == 4


@pytest.mark.parametrize("event", ["on_train_step_end", "verify_train_batch"])
def test_a_misspelled_attribute_inside_a_callback_raises(event: str) -> None:
    def misspelled(self: Any, *args: Any, **kwargs: Any) -> None:
        self.acuracy.update()

    callback = type("Misspelled", (Callback,), {event: misspelled})
    with pytest.raises(AttributeError, match="'Misspelled' object has no attribute 'acuracy'"):
        fit(make_trainer(Verifies, callbacks=[callback]))


def test_an_attribute_error_of_other_code_inside_an_event_raises() -> None:
    class Wrong(TrainerCallback):
        def on_train_epoch_end(self, trainer: Any, **kwargs: Any) -> None:
            trainer.no_such_attribute  # noqa: B018

    with pytest.raises(AttributeError, match="no_such_attribute"):
        fit(make_trainer(TimmTrainer, callbacks=[Wrong]))
