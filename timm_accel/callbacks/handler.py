"""Which callbacks a trainer has, and how their events are called."""

from collections.abc import Iterable, Mapping
from typing import Any

from timm_accel.callbacks.defaults import MoveModulesToDeviceCallback, StopOnNonFiniteLossCallback
from timm_accel.upstream import CallbackHandler, CallbackMethodNotImplementedError, TrainerCallback
from timm_accel.upstream import MoveModulesToDeviceCallback as UpstreamMoveModulesToDeviceCallback
from timm_accel.upstream import TerminateOnNaNCallback as UpstreamTerminateOnNaNCallback

_EXCHANGED = {
    UpstreamMoveModulesToDeviceCallback: MoveModulesToDeviceCallback,
    UpstreamTerminateOnNaNCallback: StopOnNonFiniteLossCallback,
}


class EventHandler(CallbackHandler):
    """Calls an event of each callback that has it, events of a user's own too.

    Upstream's handler asks for the method and calls it in one ``try``, and our callbacks answer an unknown name with an
    `AttributeError`, as python does (pytorch-accelerated 0.1.61).
    """

    def call_event(self, event: str, *args: Any, **kwargs: Any) -> None:
        for callback in self.callbacks if self._enabled else ():
            try:
                method = getattr(callback, event)
            except (CallbackMethodNotImplementedError, AttributeError):
                continue
            try:
                method(*args, **kwargs)
            except CallbackMethodNotImplementedError:  # upstream's callbacks answer every unknown name with it
                continue


def admit(
    callbacks: Iterable[TrainerCallback | type[TrainerCallback]],
    refused: Mapping[type[TrainerCallback], tuple[str, str]],
) -> list[TrainerCallback | type[TrainerCallback]]:
    """Return the callbacks, with those of upstream's that are known to be wrong exchanged for ours.

    Args:
        callbacks: Classes or instances.
        refused: Classes that would do harm, each with the reason and a remedy.

    Raises:
        ValueError: One of them is refused.
    """
    admitted = []
    for callback in callbacks:
        kind = callback if isinstance(callback, type) else type(callback)
        for harmful, (reason, remedy) in refused.items():
            if issubclass(kind, harmful):
                raise ValueError(f"Expected callbacks without {kind.__name__}, since {reason}, but got one. {remedy}")
        admitted.append(_EXCHANGED.get(kind, callback))
    return admitted
