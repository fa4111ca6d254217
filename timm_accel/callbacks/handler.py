"""Select the callbacks of a trainer, and call their events."""

from collections.abc import Iterable, Mapping
from typing import Any

from timm_accel.callbacks.defaults import MoveModulesToDeviceCallback, StopOnNonFiniteLossCallback
from timm_accel.upstream import CallbackHandler, CallbackMethodNotImplementedError, TrainerCallback
from timm_accel.upstream import MoveModulesToDeviceCallback as UpstreamMoveModulesToDeviceCallback
from timm_accel.upstream import TerminateOnNaNCallback as UpstreamTerminateOnNaNCallback

_REPLACED = {
    UpstreamMoveModulesToDeviceCallback: MoveModulesToDeviceCallback,
    UpstreamTerminateOnNaNCallback: StopOnNonFiniteLossCallback,
}


class EventHandler(CallbackHandler):
    """Calls an event on each callback that has it, custom events too.

    Upstream's handler looks up the method and calls it in one ``try``, and our callbacks raise an `AttributeError` for
    an unknown name, as python does (pytorch-accelerated 0.1.61).
    """

    def call_event(self, event: str, *args: Any, **kwargs: Any) -> None:
        nothing = getattr(TrainerCallback, event, event)  # upstream's method, which does nothing
        for callback in self.callbacks if self._enabled else ():
            try:
                method = getattr(callback, event)
            except (CallbackMethodNotImplementedError, AttributeError):
                continue
            if getattr(method, "__func__", None) is nothing:
                continue
            try:
                method(*args, **kwargs)
            except CallbackMethodNotImplementedError:  # upstream's callbacks raise it for every unknown name
                continue


def admit(
    callbacks: Iterable[TrainerCallback | type[TrainerCallback]],
    refused: Mapping[type[TrainerCallback], tuple[str, str]],
) -> list[TrainerCallback | type[TrainerCallback]]:
    """Return the callbacks, with faulty ones from upstream replaced by ours.

    Args:
        callbacks: Classes or instances.
        refused: Classes that do not work here, each with the reason and a remedy.

    Raises:
        ValueError: One of them is refused.
    """
    if isinstance(callbacks, str) or not isinstance(callbacks, Iterable):
        raise TypeError(
            f"Expected callbacks to be a list of callbacks, but got {type(callbacks).__name__}. Put it into a list."
        )
    admitted = []
    for callback in callbacks:
        kind = callback if isinstance(callback, type) else type(callback)
        if not any(name.startswith("on_") for name in dir(kind)):
            raise TypeError(f"Expected each callback to have events, on_…, but got {callback!r}. Take it out.")
        for refused_kind, (reason, remedy) in refused.items():
            if issubclass(kind, refused_kind):
                raise ValueError(f"Expected callbacks without {kind.__name__}, since {reason}, but got one. {remedy}")
        admitted.append(_REPLACED.get(kind, callback))
    return admitted
