"""BatchNorm in distributed training: sync it in each forward pass, or make its statistics equal each epoch."""

from typing import Any

import torch
from accelerate.utils import broadcast
from timm.layers import FrozenBatchNormAct2d, convert_sync_batchnorm
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from timm_accel.models import memory_of
from timm_accel.training import LoopTrainer

DIST_BN_MODES = ("reduce", "broadcast")
_ALWAYS_FROZEN = (FrozenBatchNorm2d, FrozenBatchNormAct2d)


class SyncBatchNormMixin(LoopTrainer):
    """Convert BatchNorm to SyncBatchNorm in distributed training, before the model is wrapped.

    Uses timm's converter, since torch's drops the activation inside ``BatchNormAct2d`` (timm 1.0.31, torch 2.14).

    Args:
        sync_bn: Whether to convert.

    Raises:
        ValueError: In `train`, in distributed training on CPUs: torch's ``SyncBatchNorm`` needs an accelerator.

    Source: ``timm.layers.convert_sync_batchnorm``.
    """

    def __init__(self, *args: Any, sync_bn: bool = False, **kwargs: Any) -> None:
        self.sync_bn = sync_bn
        super().__init__(*args, **kwargs)

    def before_prepare(self) -> None:
        super().before_prepare()
        if not self.sync_bn or self.current_run().accelerator.num_processes == 1:
            return
        if self.device.type == "cpu":
            raise ValueError(
                "Expected sync_bn to be False on CPU processes, since torch's SyncBatchNorm needs an accelerator, but "
                "got True. Use dist_bn='reduce'."
            )
        self.model = convert_sync_batchnorm(self.model)


class DistributedBatchNormMixin(LoopTrainer):
    """Make the running BatchNorm statistics of the model and the EMA model equal on all ranks before each evaluation.

    DDP's ``broadcast_buffers`` is turned off for this: it would overwrite the statistics of every rank with those of
    rank 0 at each forward pass. Frozen norms, those of the model in evaluation mode, are left alone: a mean of equal
    numbers over three ranks need not be that number.

    Args:
        dist_bn: ``reduce`` averages the statistics, ``broadcast`` takes those of rank 0, None leaves DDP's default
            on.

    Raises:
        ValueError: `dist_bn` is unknown.

    Source: ``timm.utils.distribute_bn``.
    """

    def __init__(self, *args: Any, dist_bn: str | None = "reduce", **kwargs: Any) -> None:
        if dist_bn not in (*DIST_BN_MODES, None):
            raise ValueError(
                f"Expected dist_bn to be 'reduce', 'broadcast' or None, but got {dist_bn!r}. The default is 'reduce'."
            )
        self.dist_bn = dist_bn
        super().__init__(*args, **kwargs)

    def ddp_kwargs(self) -> dict[str, Any]:
        kwargs = super().ddp_kwargs()
        return kwargs if self.dist_bn is None else kwargs | {"broadcast_buffers": False}

    def train_epoch_end(self) -> None:
        if self.dist_bn is not None and self.current_run().accelerator.num_processes > 1:
            names = _moving_statistics(self.current_run().unwrapped_model)
            buffers = [
                buffer
                for module in self.evaluated_models().values()
                for name, buffer in module.named_buffers(remove_duplicate=False)
                if name in names
            ]
            self._distribute(list({memory_of(buffer): buffer for buffer in buffers}.values()))  # one may have two names
        super().train_epoch_end()

    def _distribute(self, buffers: list[torch.Tensor]) -> None:
        """Make buffers equal on all ranks: one collective for all of a type, however many layers there are."""
        for dtype in dict.fromkeys(buffer.dtype for buffer in buffers):
            same = [buffer for buffer in buffers if buffer.dtype == dtype]
            # the EMA model may be on the CPU, where nccl does not work
            statistics = torch.cat([buffer.flatten().to(self.device) for buffer in same])
            if self.dist_bn == "reduce":
                statistics = self.current_run().accelerator.reduce(statistics, reduction="mean")
            else:
                statistics = broadcast(statistics)
            for buffer, part in zip(same, statistics.split([buffer.numel() for buffer in same]), strict=True):
                buffer.copy_(part.view_as(buffer))


def _moving_statistics(model: nn.Module) -> set[str]:
    """Return the names of the statistics that training changes; the EMA model has the same names."""
    return {
        f"{prefix}.{name}" if prefix else name
        for prefix, module in model.named_modules()
        for name, _ in module.named_buffers(recurse=False)
        if module.training and not isinstance(module, _ALWAYS_FROZEN) and name in ("running_mean", "running_var")
    }
