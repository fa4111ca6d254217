"""The mean loss of an epoch, summed on the device so that no step waits for the host."""

from math import isfinite
from typing import Any

import torch
from accelerate import Accelerator


class RunningMean:
    """A sum and what it is divided by, in float64 if the device has it.

    Replaces pytorch-accelerated's ``LossTracker``, which reads every loss back to the host (0.1.61).
    """

    def __init__(self, device: torch.device) -> None:
        self.total = torch.zeros((), dtype=torch.float32 if device.type == "mps" else torch.float64, device=device)
        self.weight = torch.zeros_like(self.total)
        self.count = 0
        self.sums = False
        self.last_average: float | None = None  # as it was last read back

    def update(
        self,
        value: torch.Tensor,
        count: int,
        weight: torch.Tensor | None = None,
        is_sum: bool = False,
        *,
        skips_empty: bool = False,
    ) -> None:
        """Add the mean `value` of `count` samples.

        Args:
            value: The mean.
            count: The number of samples.
            weight: What the mean was divided by; None for `count`.
            is_sum: Whether `value` is a sum instead; the result then is one too.
            skips_empty: Whether a mean of weight 0, which is NaN, adds nothing. In training it makes the result NaN,
                as the weights are then.
        """
        value, self.sums = value.detach().mean(), is_sum
        if is_sum:
            self.total.add_(value)
        elif weight is None:
            self.total.add_(value, alpha=count)
            self.weight.add_(count)
        else:
            weight = weight.to(self.total)
            added = value * weight
            self.total.add_(torch.where(weight == 0, weight, added) if skips_empty else added)
            self.weight.add_(weight)
        self.count += count

    def state_dict(self) -> dict[str, Any]:
        """Return the sum, its divisor and the number of samples, on the CPU."""
        return {"total": self.total.cpu(), "weight": self.weight.cpu(), "count": self.count}

    def merge(self, state_dict: dict[str, Any]) -> None:
        """Add the sum and the count of another; an older state has no divisor beside the count."""
        self.total += state_dict["total"].to(self.total)
        weight = state_dict.get("weight", state_dict["count"])
        self.weight += weight.to(self.weight) if isinstance(weight, torch.Tensor) else weight
        self.count += state_dict["count"]

    def sum_and_weight(self) -> torch.Tensor:
        """Return the sum and its divisor as one complex number, on the device, to be read back at once."""
        return torch.complex(self.total, self.weight)

    def is_finite(self, sum_and_weight: torch.Tensor) -> bool:
        """Whether no loss was NaN or infinite when `sum_and_weight` was called. `last_average` is the mean of then."""
        read = sum_and_weight.item()
        self.last_average = read.real if self.sums else read.real / read.imag if read.imag else None
        return isfinite(read.real)

    def finite(self) -> bool:
        """Whether no loss so far was NaN or infinite. Waits for the device."""
        return self.is_finite(self.sum_and_weight())

    @property
    def average(self) -> float:
        """The mean over the samples of this rank, or NaN without samples. Waits for the device."""
        return float(self.total if self.sums else self.total / self.weight)


def global_means(means: dict[str, RunningMean], accelerator: Accelerator) -> dict[str, float]:
    """Return the means over all ranks, in one reduction; a mean without samples is left out.

    Raises:
        ValueError: There are samples, but all of them have no weight.
    """
    sums = torch.stack(
        [
            torch.stack([mean.total, mean.weight, mean.total.new_tensor(mean.count), mean.total.new_tensor(mean.sums)])
            for mean in means.values()
        ]
    )
    found = {}
    for name, (total, weight, count, added) in zip(means, accelerator.reduce(sums, "sum").tolist(), strict=True):
        if count and not weight and not added:
            raise ValueError(
                f"Expected at least one label that the loss counts, but all of the {count:.0f} images have its "
                "ignore_index or a class of weight 0. Evaluate images with labels."
            )
        if count:
            found[name] = total if added else total / weight
    return found
