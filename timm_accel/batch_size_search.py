"""Find the largest batch size that fits into memory, by training steps of a trainer that is then thrown away."""

import os
from typing import Any

import torch
from accelerate.utils import recursively_apply
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from torch.nn.functional import interpolate

from timm_accel.data.resources import free_memory
from timm_accel.distributed.consensus import min_over_ranks
from timm_accel.messages import counted
from timm_accel.training import LoopTrainer
from timm_accel.training.loaders import device_transform_of
from timm_accel.training.preparation import trial_trainer
from timm_accel.upstream import StopTrainingError

__all__ = ["find_batch_size"]

MAX_BATCH_SIZE = 1024
"""The largest batch size that is chosen; more images in a batch bring no speed."""
GPU_SHARE = 0.9
"""The share of a GPU's memory that the search may use."""
CPU_SHARE = 0.5
"""The share of the free memory that the activations of all processes of a machine may take."""
_TRIED = 2  # images in the batch that is repeated


def find_batch_size(trainer: LoopTrainer, train_dataset: Any, *, even: bool = False, **train_options: Any) -> int:
    """Return the largest batch size of a process that fits into memory, the same on all ranks. Collective.

    It is at most `MAX_BATCH_SIZE` and the training images of a process. On a GPU, training steps of the trainer (with
    its precision, EMA weights and largest image size, and with no stage frozen) double the batch until `GPU_SHARE` of
    the memory is full. On a CPU it is the power of two whose activations, as measured for two and four images, take
    `CPU_SHARE` of the free memory at most; the limit of a container counts.

    The trainer is used up: its model and optimizer are trained on repeated images. Create another for the run.

    Args:
        trainer: The trainer, before its first run.
        train_dataset: The dataset to train on.
        even: Whether the batch size must be even, for Mixup.
        **train_options: Options of ``trainer.train`` except the batch size.

    Raises:
        MemoryError: Not even the smallest batch fits.
    """
    search = _search_trainer(trainer)
    limit = MAX_BATCH_SIZE
    if hasattr(train_dataset, "__len__"):
        images = getattr(train_dataset, "num_samples", None) or len(train_dataset)
        limit = min(limit, images // search.accelerator.num_processes)
    search.search_limit = max(2 if even else 1, limit - limit % 2 if even else limit)
    search.search_smallest, search.search_result = 2 if even else 1, None
    options = train_options | {"per_device_batch_size": min(_TRIED, search.search_limit), "eval_dataset": None}
    options["train_dataloader_kwargs"] = (options.get("train_dataloader_kwargs") or {}) | {"num_workers": 0}
    try:
        search.train(train_dataset, 1, **options)
    finally:
        search.search_model = None
        clear_device_cache(garbage_collection=True)
    found = min_over_ranks(search.search_result or 0, search.accelerator.num_processes)
    if found == 0:
        raise MemoryError(
            f"Expected a batch of {counted(search.search_smallest, 'image')} to fit into memory, but got none that "
            "does. Choose a smaller model or image_size."
        )
    return found


class _SearchTrainer(LoopTrainer):
    """Override the hooks that the search needs; mixed into the class of the trainer."""

    search_limit: int
    search_smallest: int
    search_result: int | None
    search_model: Any

    def create_scheduler(self) -> None:
        """Return None, since the search has no schedule."""

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Print nothing: whatever a trial tells is not of the run."""

    def train_epoch_start(self) -> None:
        super().train_epoch_start()
        wrapped, self.model = self.model, self.current_run().unwrapped_model  # ranks do not wait for each other
        try:
            batch = self._batch()
            self.search_result = self._on_cpu(batch) if self.device.type == "cpu" else self._on_gpu(batch)
        finally:
            self.model = wrapped
        raise StopTrainingError("The search is over.")

    def _batch(self) -> Any:
        """Return the first training batch, on its device, with images of the largest size."""
        loader = self.current_run().train_dataloader
        batch = next(iter(loader))
        if hasattr(loader, "end"):
            loader.end()  # accelerate 1.15 counts a loader as active until its last batch
        inputs, targets = self.unpack_batch(batch)
        if (transform := device_transform_of(loader)) is not None:
            inputs = transform(inputs)
        if sizes := getattr(self, "resolutions", None):
            inputs = interpolate(inputs.float(), max(sizes, key=lambda size: size[0] * size[1]))
        return self.checked_batch(self.repack_batch(batch, inputs, targets), 0, training=True)

    def _on_gpu(self, batch: Any) -> int:
        if self.device.type == "cuda":
            torch.cuda.set_per_process_memory_fraction(GPU_SHARE, self.device)
        try:
            return self._largest_that_fits(batch)
        finally:
            if self.device.type == "cuda":
                torch.cuda.set_per_process_memory_fraction(1.0, self.device)

    def _largest_that_fits(self, batch: Any) -> int:
        """Double the batch size until it does not fit, and try one between the last two."""
        size, fits = self.search_smallest, 0
        while size <= self.search_limit and self._fits(batch, size):
            size, fits = (size if size == self.search_limit else min(2 * size, self.search_limit)), size
            if fits == self.search_limit:
                return fits
        between = fits + fits // 2
        between -= between % 2
        return between if fits < between < size and self._fits(batch, between) else fits

    def _fits(self, batch: Any, size: int) -> bool:
        try:
            for _ in range(2):  # the first step makes the optimizer's states
                self._step(_repeated(batch, size))
        except (RuntimeError, MemoryError) as error:
            if not (isinstance(error, torch.OutOfMemoryError | MemoryError) or should_reduce_batch_size(error)):
                raise
            return False
        finally:
            self.optimizer_zero_grad()
            clear_device_cache(garbage_collection=True)
        return True

    def _step(self, batch: Any) -> None:
        output = self.calculate_train_batch_loss(batch)
        self.backward_step(output["loss"])
        self.clip_gradients()
        self.optimizer_step()
        self.after_update()

    def _on_cpu(self, batch: Any) -> int:
        """Return the power of two that fits by the bytes of what a forward pass keeps for the backward pass."""
        few, many = (self._kept_bytes(_repeated(batch, size)) for size in (2, 4))
        of_image = max(1, (many - few) // 2)
        budget = CPU_SHARE * free_memory() / int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        fits = int(budget / of_image)
        if fits < self.search_smallest:
            return 0
        if fits >= self.search_limit:
            return self.search_limit
        return max(self.search_smallest, 1 << (fits.bit_length() - 1))

    def _kept_bytes(self, batch: Any) -> int:
        owned = {each.untyped_storage().data_ptr() for each in self.model.parameters()}
        kept: dict[int, int] = {}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in owned:
                kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            output = self.calculate_train_batch_loss(batch)
            total = sum(kept.values())
        del output
        return total


def _search_trainer(trainer: LoopTrainer) -> Any:
    """Return a copy of the trainer for the search: it writes and prints nothing, and freezes no stage."""
    search = trial_trainer(trainer, _SearchTrainer, "Search")
    search.ema_decay = getattr(search, "ema_decay", None) and 0.0  # None stays: the length of the search tells nothing
    for name, value in {"freeze_schedule": {}, "sync_bn": False}.items():  # BatchNorm would wait for other ranks
        if hasattr(search, name):
            setattr(search, name, value)
    return search


def _repeated(batch: Any, size: int) -> Any:
    """Return a batch of so many images: those of `batch`, again and again."""

    def repeat(tensor: torch.Tensor) -> torch.Tensor:
        return tensor if tensor.ndim == 0 else tensor[torch.arange(size, device=tensor.device) % len(tensor)]

    return recursively_apply(repeat, batch)
