"""Mixup and CutMix on the device."""

from inspect import signature
from numbers import Integral
from typing import Any

from timm.data import Mixup

from timm_accel.data.classes import class_names
from timm_accel.messages import nearest
from timm_accel.training import LoopTrainer
from timm_accel.training.loaders import ShardedBatches

MODES = ("batch", "pair", "elem")


class MixupMixin(LoopTrainer):
    """Mix each training batch on the device, in the main process.

    The model sees mixed images ``(B, C, H, W)`` and the loss soft targets ``(B, num_classes)``; the batch itself keeps
    its images and its hard labels ``(B,)``, which are also in the batch output as ``targets``. The training loader
    drops its last, shorter batch by default, since mixing needs an even batch size. Multi-label targets
    ``(B, num_classes)`` are mixed as they are, and label smoothing moves each towards 0.5.

    Args:
        mixup_args: Keyword arguments of ``timm.data.Mixup``; ``num_classes`` is required. None turns mixing off.
        mixup_off_epoch: The epoch, from 0, from which images are no longer mixed. Targets stay soft (smoothed).

    Raises:
        ValueError: An argument is unknown or out of range; or, in `train`, the model or the data has another number of
            classes, or a batch has an odd number of images.

    Source: mixup, arXiv 1710.09412; CutMix, arXiv 1905.04899; ``timm.data.Mixup``.
    """

    def __init__(
        self,
        *args: Any,
        mixup_args: dict[str, Any] | None = None,
        mixup_off_epoch: int | None = None,
        **kwargs: Any,
    ) -> None:
        if mixup_off_epoch is not None and not (isinstance(mixup_off_epoch, int | Integral) and mixup_off_epoch >= 0):
            raise ValueError(
                f"Expected mixup_off_epoch to be an epoch from 0, but got {mixup_off_epoch!r}. Pass None to mix always."
            )
        self.mixup_fn = None if mixup_args is None else _create_mixup(mixup_args)
        self.mixup_off_epoch = mixup_off_epoch
        super().__init__(*args, **kwargs)

    @property
    def mixes_images(self) -> bool:
        return super().mixes_images or (self.mixup_fn is not None and self.mixup_fn.mixup_enabled)

    def get_default_train_dl_kwargs(self, batch_size: int) -> dict[str, Any]:
        kwargs = super().get_default_train_dl_kwargs(batch_size)
        return kwargs if self.mixup_fn is None else kwargs | {"drop_last": True}

    def training_run_start(self) -> None:
        if self.mixup_fn is not None:
            self._check_mixup_classes(self.mixup_fn.num_classes)
            self._check_even_batches()
        super().training_run_start()

    def _check_mixup_classes(self, num_classes: int) -> None:
        names = class_names(self.train_dataset)
        found = {
            "model": getattr(self.current_run().unwrapped_model, "num_classes", None),
            "data": names and len(names),
        }
        for where, count in found.items():
            if count is not None and count != num_classes:
                raise ValueError(
                    f"Expected mixup_args['num_classes'] to be that of the {where}, {count}, but got {num_classes}. "
                    f"Pass num_classes={count}."
                )

    def _check_even_batches(self) -> None:
        sampler = getattr(self.current_run().train_dataloader, "batch_sampler", None)
        batch_size = getattr(sampler, "batch_size", None)
        if sampler is None or batch_size is None:
            return
        remedy = "Choose an even per_device_batch_size, and leave drop_last=True."
        if batch_size % 2:
            raise ValueError(
                f"Expected the batch size to be even, since Mixup mixes pairs of images, but got {batch_size}. {remedy}"
            )
        rest = 0
        if isinstance(sampler, ShardedBatches):
            rest = next((size for size in sampler.last_batch_sizes() if size % 2), 0)
        elif not getattr(sampler, "drop_last", True) and self.current_run().accelerator.num_processes == 1:
            rest = len(sampler.sampler) % batch_size
        if rest % 2:
            raise ValueError(
                f"Expected the last batch to be even, since Mixup mixes pairs of images, but {len(sampler.sampler)} "
                f"images leave {rest} with batch size {batch_size}. {remedy}"
            )

    def train_epoch_start(self) -> None:
        if self.mixup_fn is not None:
            off, epoch = self.mixup_off_epoch, self.current_run().epoch
            self.mixup_fn.mixup_enabled = off is None or epoch is None or epoch < off
        super().train_epoch_start()

    def calculate_train_batch_loss(self, batch: Any) -> dict[str, Any]:
        batch_output = super().calculate_train_batch_loss(batch if self.mixup_fn is None else self._mix(batch))
        if self.mixup_fn is not None:
            batch_output.setdefault("targets", self.unpack_batch(batch)[1])
        return batch_output

    def _mix(self, batch: Any) -> Any:
        images, targets = self.unpack_batch(batch)
        if len(images) % 2:
            raise ValueError(
                f"Expected every training batch to be even, since Mixup mixes pairs of images, but got {len(images)} "
                "images. Pass drop_last=True to the loader."
            )
        assert self.mixup_fn is not None
        if targets.ndim == 2:  # timm would make one-hot vectors of them
            self.mixup_fn.multi_label = True
        return self.repack_batch(batch, *self.mixup_fn(images.clone(), targets))  # timm's Mixup edits images in place


def _create_mixup(mixup_args: dict[str, Any]) -> Mixup:
    known = signature(Mixup).parameters
    for name in mixup_args:
        if name not in known:
            raise ValueError(
                f"Expected mixup_args to be arguments of timm.data.Mixup, but got {name!r}. {nearest(name, known)}"
            )
    if "num_classes" not in mixup_args:
        raise ValueError("Expected mixup_args to name num_classes, but got none. Add num_classes=….")
    mode = mixup_args.get("mode", "batch")
    if mode not in MODES:  # timm treats any other word as "batch", "half" too
        raise ValueError(
            f"Expected mixup_args['mode'] to be one of {', '.join(MODES)}, but got {mode!r}. {nearest(mode, MODES)}"
        )
    for name in ("prob", "switch_prob", "label_smoothing"):
        value = mixup_args.get(name, 0)
        if not (isinstance(value, int | float) and 0 <= value <= 1):
            raise ValueError(
                f"Expected mixup_args[{name!r}] to be between 0 and 1, but got {value!r}. Choose a fraction."
            )
    mixup, cutmix = mixup_args.get("mixup_alpha", 1.0), mixup_args.get("cutmix_alpha", 0.0)
    if min(mixup, cutmix) < 0 or (mixup == cutmix == 0 and mixup_args.get("cutmix_minmax") is None):
        raise ValueError(
            f"Expected mixup_alpha or cutmix_alpha to be positive and none negative, but got {mixup!r} and "
            f"{cutmix!r}. Pass mixup_args=None to train without mixing."
        )
    return Mixup(**mixup_args)
