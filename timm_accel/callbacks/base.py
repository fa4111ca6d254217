"""The base class of our callbacks."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from timm_accel.upstream import CallbackMethodNotImplementedError, TrainerCallback

if TYPE_CHECKING:
    from timm_accel.training import LoopTrainer


class Callback(TrainerCallback):
    """Base class: all of upstream's events, `on_update_end` and `on_resumed`.

    Upstream's base turns every missing attribute into "event not implemented", which the handler swallows, so that a
    misspelled attribute silently ends a hook (pytorch-accelerated 0.1.61). Here it is an `AttributeError`.
    """

    def __getattr__(self, name: str) -> Any:
        if name.startswith("on_"):
            raise CallbackMethodNotImplementedError
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def on_resumed(self, trainer: "LoopTrainer", state: Path, **kwargs: Any) -> None:
        """Event called when all of a state is restored, before training continues; `state` is its folder."""

    def on_update_end(self, trainer: "LoopTrainer", **kwargs: Any) -> None:
        """Event called when an optimizer update is complete, EMA weights, schedule and zeroed gradients included."""
