"""Train on images of several sizes, one size per batch, in rising or random order."""

from collections.abc import Iterable, Iterator, Sequence
from copy import copy, deepcopy
from itertools import islice
from typing import Any

import torch
from timm.data.scheduled_sampler import ScheduledBatchSampler, ScheduledTransformDataset
from torch.utils.data import DataLoader, Sampler

from timm_accel.data.seeding import KeyedSampler, SeededDataset
from timm_accel.data.transforms.create import height_and_width
from timm_accel.training import LoopTrainer

SCHEDULES = ("progressive", "constant")
_LOADER_OPTIONS = (
    *("num_workers", "collate_fn", "pin_memory", "timeout", "worker_init_fn", "persistent_workers"),
    *("prefetch_factor", "multiprocessing_context"),
)


class ScheduledResolutionMixin(LoopTrainer):
    """Train on images of several sizes. All ranks use the same size in an update, and batches keep their batch size.

    Evaluation keeps the size of its dataset. Each rank takes its batches from the global order of the epoch, so no
    image comes twice, and only the rest that does not fill a batch on every rank is left out.

    Args:
        resolutions: The sizes in pixels, numbers or (height, width), from first to last. None for that of the dataset.
        resolution_schedule: ``progressive`` moves from the first size to the last over the run; ``constant`` draws all
            with equal probability.

    Raises:
        ValueError: An option is out of range; or, in `train`, gradients are accumulated, or the model cannot take a
            size.
        TypeError: In `train`, the training dataset cannot make images of another size.

    Source: ``timm.data.ScheduledBatchSampler``; progressive resizing, arXiv 2104.00298.
    """

    def __init__(
        self,
        *args: Any,
        resolutions: Sequence[int | tuple[int, int]] | None = None,
        resolution_schedule: str = "progressive",
        **kwargs: Any,
    ) -> None:
        if resolution_schedule not in SCHEDULES:
            raise ValueError(
                f"Expected resolution_schedule to be one of {', '.join(SCHEDULES)}, but got {resolution_schedule!r}. "
                "The default is 'progressive'."
            )
        if resolutions is not None and len(resolutions) < 2:
            raise ValueError(
                f"Expected resolutions to be at least two sizes, but got {resolutions!r}. Create the dataset with one."
            )
        self.resolutions = None if resolutions is None else [height_and_width(size) for size in resolutions]
        self.resolution_schedule = resolution_schedule
        super().__init__(*args, **kwargs)

    def create_train_dataloader(self, batch_size: int, train_dl_kwargs: dict[str, Any] | None = None) -> Iterable:
        loader = super().create_train_dataloader(batch_size, train_dl_kwargs)
        return loader if self.resolutions is None else self._scheduled(loader, self.resolutions)

    def _scheduled(self, loader: Any, sizes: list[tuple[int, int]]) -> DataLoader:
        plain = copy(self.train_dataset)
        transform_of_size = getattr(plain, "transform_of_size", None)
        if plain is None or transform_of_size is None:
            raise TypeError(
                "Expected a training dataset that can make images of other sizes, as create_datasets() without draft "
                f"does, but got {type(plain).__name__}. Leave resolutions out, or give it a transform_of_size."
            )
        plain.transform = None
        dataset = ScheduledTransformDataset(
            SeededDataset(plain, self.seed), [transform_of_size(input_size=size) for size in sizes]
        )
        order = KeyedSampler(loader.batch_sampler.sampler, self.seed)
        share = _Share(order, self.current_run().rank, self.current_run().accelerator.num_processes)
        batches = _ScheduledBatches(share, loader.batch_size, len(sizes), self.seed, self.resolution_schedule)
        return DataLoader(dataset, batch_sampler=batches, **{name: getattr(loader, name) for name in _LOADER_OPTIONS})

    def training_run_start(self) -> None:
        if self.resolutions is not None:
            if (steps := self.run_config.gradient_accumulation_steps) > 1:
                raise ValueError(
                    "Expected gradient_accumulation_steps to be 1, since an update has images of one size, but got "
                    f"{steps}. Leave it or resolutions out."
                )
            self._check_sizes(self.resolutions)
            self.current_run().train_dataloader.batch_sampler.schedule_epochs = self.run_config.num_epochs
        super().training_run_start()

    def _check_sizes(self, sizes: list[tuple[int, int]]) -> None:
        """Try the model on each size, in a copy without values."""
        model = deepcopy(self.current_run().unwrapped_model).to("meta").eval()
        channels = len(self.train_dataset.device_transform.mean)
        for size in sizes:
            try:
                with torch.no_grad():
                    model(torch.zeros(1, channels, *size, device="meta"))
            except (AssertionError, RuntimeError, ValueError) as error:
                raise ValueError(
                    f"Expected resolutions that the model can take, but got {size} ({error}). Leave it out, or create "
                    "the model with dynamic_img_size=True where it knows that."
                ) from error


class _Share(Sampler[Any]):
    """Every n-th index of a global order; each rank gets equally many."""

    def __init__(self, order: KeyedSampler, rank: int, num_processes: int) -> None:
        self.order, self.rank, self.num_processes = order, rank, num_processes

    def set_epoch(self, epoch: int) -> None:
        self.order.set_epoch(epoch)

    def __iter__(self) -> Iterator[Any]:
        return islice(self.order, self.rank, len(self) * self.num_processes, self.num_processes)

    def __len__(self) -> int:
        return len(self.order) // self.num_processes


class _ScheduledBatches(ScheduledBatchSampler):
    """timm's sampler with one batch size; accelerate (1.15) would shard it without its ``set_epoch``."""

    shards_itself = True

    def __init__(self, share: _Share, batch_size: int, num_sizes: int, seed: int, schedule: str) -> None:
        self.batch_size = batch_size
        super().__init__(share, [batch_size] * num_sizes, seed=seed, choice_schedule=schedule, schedule_epochs=1)
