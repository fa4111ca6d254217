"""The mean loss of an epoch, summed on the device so that no step waits for the host."""

from typing import Any

import torch
from accelerate import Accelerator


class RunningMean:
    """A sum and a count, in float64 if the device has it.

    Replaces pytorch-accelerated's ``LossTracker``, which reads every loss back to the host (0.1.61).
    """

    def __init__(self, device: torch.device) -> None:
        self.total = torch.zeros((), dtype=torch.float32 if device.type == "mps" else torch.float64, device=device)
        self.count = 0

    def update(self, value: torch.Tensor, count: int) -> None:
        """Add the mean `value` of `count` samples."""
        self.total.add_(value.detach().mean(), alpha=count)
        self.count += count

    def state_dict(self) -> dict[str, Any]:
        """Return the sum and the count, on the CPU."""
        return {"total": self.total.cpu(), "count": self.count}

    def merge(self, state_dict: dict[str, Any]) -> None:
        """Add the sum and the count of another."""
        self.total += state_dict["total"].to(self.total)
        self.count += state_dict["count"]

    def finite(self) -> bool:
        """Whether no loss so far was NaN or infinite. Waits for the device."""
        return bool(self.total.isfinite())

    @property
    def average(self) -> float:
        """The mean over the samples of this rank, or NaN without samples. Waits for the device."""
        return float(self.total) / self.count if self.count else float("nan")


def global_means(means: dict[str, RunningMean], accelerator: Accelerator) -> dict[str, float]:
    """Return the means over all ranks, in one reduction; a mean without samples is left out."""
    sums = torch.stack([torch.stack([mean.total, mean.total.new_tensor(mean.count)]) for mean in means.values()])
    sums = accelerator.reduce(sums, reduction="sum").tolist()
    return {name: total / count for name, (total, count) in zip(means, sums, strict=True) if count}
