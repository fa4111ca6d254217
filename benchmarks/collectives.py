"""Record the collectives of a run over gloo, as torch's profiler sees them: ours, DDP's and those of the libraries."""

from collections.abc import Callable
from math import prod
from typing import Any, NamedTuple

from torch.profiler import ProfilerActivity, profile, record_function

from timm_accel.callbacks import Callback

_BYTES = {"unsigned char": 1, "int": 4, "float": 4, "long int": 8, "double": 8}
_EVENT = "event: "
_PARTS = {
    "on_training_run_start": "start",
    "on_train_epoch_start": "update",
    "on_train_step_start": "update",
    "on_train_step_end": "update",
    "on_update_end": "sync point",
    "on_train_epoch_end": "training epoch",
    "on_eval_epoch_start": "evaluation",
    "on_eval_epoch_end": "evaluation",
    "on_training_run_epoch_end": "epoch",
    "on_training_run_end": "end",
}  # what begins after each event; between the last update and the end of its epoch it is the training epoch


class Collective(NamedTuple):
    """One call: the part of the run that issued it, its name, and the bytes that each rank puts in."""

    part: str
    name: str
    num_bytes: int


class RunParts(Callback):
    """Tells the recorder where the run is; as the last callback, so that those of the others are of the part."""


def _event(name: str) -> Callable[..., None]:
    def note(self: RunParts, trainer: Any, **kwargs: Any) -> None:
        with record_function(_EVENT + name):
            pass

    return note


for _name in _PARTS:
    setattr(RunParts, _name, _event(_name))


def recorded(run: Callable[[], Any]) -> list[Collective]:
    """Run it, and return its collectives on this rank in their order; those that precede a run are of its start."""
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiler:
        run()
    assert profiler.profiler is not None
    events = profiler.profiler.kineto_results.events()  # `profiler.events()` takes a second for a thousand updates
    found, since, part = list[Collective](), 0, "start"
    for event in sorted(events, key=lambda each: each.start_ns()):
        name = event.name()
        if name.startswith(_EVENT):
            if name == f"{_EVENT}on_train_epoch_end":  # what came after the last update
                found[since:] = [each._replace(part="training epoch") for each in found[since:]]
            part, since = _PARTS[name.removeprefix(_EVENT)], len(found)
        elif name.startswith("gloo:"):
            num_bytes = prod(event.shapes()[0]) * _BYTES[event.dtypes()[0]]
            found.append(Collective(part, name.removeprefix("gloo:"), num_bytes))
    return found
