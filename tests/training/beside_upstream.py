"""Public code for pytorch-accelerated's `Trainer` is one body on two bases: upstream's numbers beside ours."""

from itertools import pairwise
from typing import Any

import torch
from tiny_runs import NO_WORKERS, same_weights
from torch import nn

IN_ORDER = {**NO_WORKERS, "shuffle": False}  # upstream shuffles by another random state


def history(trainer: Any) -> dict[str, list[Any]]:
    """All that a trainer recorded."""
    return {name: list(trainer.run_history.get_metric_values(name)) for name in trainer.run_history.get_metric_names()}


def assert_same(ours: Any, theirs: Any, train_loss_factor: int = 1) -> None:
    """Compare weights bit for bit, and all that was recorded; losses are summed up in another order."""
    assert same_weights(ours.get_model(), theirs.get_model())
    recorded, wanted = history(ours), history(theirs)
    assert recorded.keys() == wanted.keys()
    for name in wanted:
        factor = train_loss_factor if name == "train_loss_epoch" else 1
        assert len(recorded[name]) == len(wanted[name]) > 0
        for value, right in zip(recorded[name], wanted[name], strict=True):
            torch.testing.assert_close(torch.as_tensor(value), torch.as_tensor(right) * factor, rtol=1e-6, atol=1e-7)


def layers(*sizes: int) -> list[nn.Linear]:
    """Linear layers between these sizes, always with the same weights."""
    torch.manual_seed(5)
    return [nn.Linear(inputs, outputs) for inputs, outputs in pairwise(sizes)]
