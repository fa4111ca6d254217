"""What happens before a run: the trainer is made, its loaders are built, and accelerate prepares its parts."""

import os
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from math import ceil
from numbers import Integral
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedType
from accelerate.data_loader import prepare_data_loader
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.utils import DataLoaderConfiguration, DistributedDataParallelKwargs, extract_model_from_parallel
from torch import nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader, IterableDataset

from timm_accel.callbacks.defaults import (
    DEFAULT_CALLBACKS,
    MoveModulesToDeviceCallback,
    StopOnNonFiniteLossCallback,
)
from timm_accel.data.resources import available_cpus
from timm_accel.data.seeding import key_samples, seeded
from timm_accel.training.loaders import is_stream, share_stream
from timm_accel.training.signals import shield_workers
from timm_accel.upstream import (
    ConvertSyncBatchNormCallback,
    Trainer,
    TrainerCallback,
    TrainerRunConfig,
)
from timm_accel.upstream import MoveModulesToDeviceCallback as UpstreamMoveModulesToDeviceCallback
from timm_accel.upstream import TerminateOnNaNCallback as UpstreamTerminateOnNaNCallback

_EXCHANGED = {
    UpstreamMoveModulesToDeviceCallback: MoveModulesToDeviceCallback,
    UpstreamTerminateOnNaNCallback: StopOnNonFiniteLossCallback,
}
_ACCUMULATION = "ACCELERATE_GRADIENT_ACCUMULATION_STEPS"


class PreparedTrainer(Trainer):
    """The half of `LoopTrainer` that works before a run; see there for its options."""

    model: Any  # upstream declares none of its attributes
    optimizer: Any
    _accelerator: Any
    _callbacks: Any
    _train_dataloader: Any
    _eval_dataloader: Any
    create_scheduler_fn: Any
    scheduler: Any

    def __init__(
        self,
        model: nn.Module,
        loss_func: Callable[..., torch.Tensor],
        optimizer: Optimizer,
        callbacks: Iterable[TrainerCallback | type[TrainerCallback]] = DEFAULT_CALLBACKS,
        run_history: Any = None,
        *,
        seed: int = 42,
        run_dir: str | Path | None = None,
        agree_every: int = 10,
        recipe: Mapping[str, Any] | None = None,
    ) -> None:
        if not isinstance(agree_every, int | Integral) or agree_every < 1:
            raise ValueError(
                f"Expected agree_every to be a number of updates of at least 1, but got {agree_every!r}. "
                "The default is 10."
            )
        if not isinstance(seed, int | Integral):
            raise TypeError(f"Expected seed to be a whole number, but got {seed!r}. The default is 42.")
        self.seed, self.agree_every = int(seed), agree_every
        self.run_dir = None if run_dir is None else Path(run_dir)
        self.recipe = dict(recipe or {})
        super().__init__(model, loss_func, optimizer, callbacks, run_history)

    def refused_callbacks(self) -> dict[type[TrainerCallback], tuple[str, str]]:
        """Return the callbacks that would do harm here, each with its reason and a remedy. Mixins add theirs."""
        reason = "it drops the activation inside timm's BatchNormAct2d"
        return {ConvertSyncBatchNormCallback: (reason, "Pass sync_bn=True instead (SyncBatchNormMixin).")}

    def _create_callback_handler(self) -> Any:
        kept = []
        for callback in self._callbacks:
            kind = callback if isinstance(callback, type) else type(callback)
            for refused, (reason, remedy) in self.refused_callbacks().items():
                if issubclass(kind, refused):
                    raise ValueError(
                        f"Expected callbacks without {kind.__name__}, since {reason}, but got one. {remedy}"
                    )
            kept.append(_EXCHANGED.get(kind, callback))
        self._callbacks = kept
        return super()._create_callback_handler()

    def ddp_kwargs(self) -> dict[str, Any]:
        """Return the options of torch's ``DistributedDataParallel``. Mixins add theirs."""
        return {}

    def _create_accelerator(self) -> Accelerator:
        if os.environ.get(_ACCUMULATION, "1") != "1":
            raise ValueError(
                f"Expected {_ACCUMULATION} to be unset, since losses would be divided twice, but got "
                f"{os.environ[_ACCUMULATION]!r}. Pass gradient_accumulation_steps to train() instead."
            )
        accelerator = Accelerator(
            dataloader_config=DataLoaderConfiguration(non_blocking=torch.cuda.is_available()),
            kwargs_handlers=[DistributedDataParallelKwargs(**self.ddp_kwargs())],
        )
        refuse_sharding(accelerator.distributed_type)
        return accelerator

    @property
    def unwrapped_model(self) -> nn.Module:
        """The module whose weights are trained, without DDP's, FSDP's or ``torch.compile``'s wrapper."""
        model = self.model
        while (inner := extract_model_from_parallel(model, keep_torch_compile=False)) is not model:
            model = inner
        return model

    @property
    def unwrapped_optimizer(self) -> Optimizer:
        """The user's optimizer, without accelerate's wrapper."""
        optimizer = self.optimizer
        while isinstance(optimizer, AcceleratedOptimizer):
            optimizer = optimizer.optimizer
        return optimizer

    def _check_arguments(self, train_dataset: Any, num_epochs: int, kwargs: dict[str, Any]) -> None:
        """Raise for arguments of `train` that cannot be right, before any work."""
        counts = {"num_epochs": num_epochs} | {
            name: kwargs.get(name, 1) for name in ("per_device_batch_size", "gradient_accumulation_steps")
        }
        if kwargs.get("max_num_train_steps") is not None:
            counts["max_num_train_steps"] = kwargs["max_num_train_steps"]
        for name, count in counts.items():
            if not isinstance(count, int | Integral) or count < 1:
                raise ValueError(f"Expected {name} to be a number of at least 1, but got {count!r}. Choose another.")
        create_scheduler_fn = kwargs.get("create_scheduler_fn")
        if not (create_scheduler_fn is None or callable(create_scheduler_fn)):
            raise TypeError(
                "Expected create_scheduler_fn to be a function of the optimizer, since that is prepared first, "
                f"but got {type(create_scheduler_fn).__name__}. Pass a function that returns the scheduler."
            )
        if _count_images(train_dataset) == 0:
            raise _too_few_images("train", 0, kwargs.get("per_device_batch_size", 8))

    def train(self, train_dataset: Any, num_epochs: int, eval_dataset: Any = None, *args: Any, **kwargs: Any) -> None:
        self.scheduler = self._eval_dataloader = None  # upstream keeps those of the run before (0.1.61)
        train_dataset, eval_dataset = seeded(train_dataset, self.seed), seeded(eval_dataset, self.seed)
        try:
            super().train(train_dataset, num_epochs, eval_dataset, *args, **kwargs)
        finally:
            self.create_scheduler_fn = None  # often a method of ours: a cycle that would keep loader workers alive

    def evaluate(self, dataset: Any = None, *args: Any, **kwargs: Any) -> None:
        super().evaluate(seeded(dataset, self.seed), *args, **kwargs)

    def get_default_train_dl_kwargs(self, batch_size: int) -> dict[str, Any]:
        return super().get_default_train_dl_kwargs(batch_size) | self._worker_kwargs()

    def get_default_eval_dl_kwargs(self, batch_size: int) -> dict[str, Any]:
        return super().get_default_eval_dl_kwargs(batch_size) | self._worker_kwargs()

    def _worker_kwargs(self) -> dict[str, Any]:
        processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        return {
            "num_workers": max(1, available_cpus() // processes),
            "persistent_workers": True,
            "worker_init_fn": None,
        }

    def create_train_dataloader(self, batch_size: int, train_dl_kwargs: dict[str, Any] | None = None) -> Iterable:
        defaults = self.get_default_train_dl_kwargs(batch_size)
        self._train_dl_kwargs = self._merge(self.train_dataset, defaults, train_dl_kwargs)
        return DataLoader(self.train_dataset, **self._train_dl_kwargs)

    def create_eval_dataloader(self, batch_size: int, eval_dl_kwargs: dict[str, Any] | None = None) -> Iterable:
        defaults = self.get_default_eval_dl_kwargs(batch_size)
        self._eval_dl_kwargs = self._merge(self.eval_dataset, defaults, eval_dl_kwargs)
        return DataLoader(self.eval_dataset, **self._eval_dl_kwargs)

    def _merge(self, dataset: Any, defaults: dict[str, Any], given: dict[str, Any] | None) -> dict[str, Any]:
        """Let what was given win, and drop the defaults that `DataLoader` refuses beside it."""
        given = given or {}
        refused: set[str] = set()
        if given.get("sampler") is not None or isinstance(dataset, IterableDataset):
            refused |= {"shuffle"}
        if given.get("batch_sampler") is not None:
            refused |= {"batch_size", "shuffle", "drop_last"}
        if (defaults | given).get("num_workers") == 0:
            refused |= {"persistent_workers"}
        collate_fn = self.collate_fn or getattr(dataset, "collate_fn", None)  # ours leaves out what cannot be read
        return {"collate_fn": collate_fn} | {k: v for k, v in defaults.items() if k not in refused} | given

    def before_prepare(self) -> None:
        """Change the plain model before accelerate wraps it. Called by `train` and `evaluate`, so idempotent.

        Copies of the model are made before ``super()``, conversions of it after.
        """

    def _prepare_model_optimizer_and_dataloaders(self) -> None:
        self._accelerator.free_memory()
        self._accelerator = self._create_accelerator()
        self._check_loaders()
        # a second run must not wrap what the first one has wrapped: autocast twice, or a scaler that is gone
        self._strip_model()
        self.optimizer = self.unwrapped_optimizer
        self.before_prepare()
        for loader in (self._train_dataloader, self._eval_dataloader):
            shield_workers(loader)
            share_stream(loader, self._accelerator, self.seed)
        key_samples(self._train_dataloader, self.seed)
        key_samples(self._eval_dataloader, self.seed, fixed_epoch=0)
        self._train_dataloader, self._eval_dataloader = map(
            self._prepare_alone, (self._train_dataloader, self._eval_dataloader)
        )
        with warnings.catch_warnings():  # torch 2.14 deprecates the one name of the option that accelerate 1.15 knows
            warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated", category=FutureWarning)
            self.model, self.optimizer, self._train_dataloader, self._eval_dataloader = self._accelerator.prepare(
                self.model, self.optimizer, self._train_dataloader, self._eval_dataloader
            )
        if self._train_dataloader is not None and len(self._train_dataloader) == 0:
            raise ValueError(
                f"Expected train_dataset to fill a batch on each of {self._accelerator.num_processes} processes, but "
                f"got {_count_images(self.train_dataset)} images. Lower per_device_batch_size or pass drop_last=False."
            )
        if hasattr(getattr(self._eval_dataloader, "batch_sampler", None), "even_batches"):
            self._eval_dataloader.batch_sampler.even_batches = False

    def _prepare_alone(self, loader: Any) -> Any:
        """Prepare a loader that deals out the images to the processes by itself, so that accelerate does not again."""
        if not any(
            getattr(getattr(loader, name, None), "shards_itself", False) for name in ("dataset", "batch_sampler")
        ):
            return loader
        prepared = prepare_data_loader(
            loader,
            self.device,
            num_processes=1,
            process_index=0,
            put_on_device=True,
            dispatch_batches=False,  # True for any iterable data set otherwise (accelerate 1.15)
            non_blocking=self._accelerator.non_blocking,
        )
        prepared._is_accelerate_prepared = True
        return prepared

    def _strip_model(self) -> None:
        plain = self.unwrapped_model
        if plain is not self.model and (forward := plain.__dict__.pop("_original_forward", None)) is not None:
            self.model.forward = forward  # accelerate 1.15 wraps a compiled model's own forward, and notes it inside
        self.model = extract_model_from_parallel(self.model, keep_fp32_wrapper=False)
        for module in (self.model, plain):
            module.__dict__.pop("_is_accelerate_prepared", None)

    def _check_loaders(self) -> None:
        for name, loader in (("train", self._train_dataloader), ("eval", self._eval_dataloader)):
            if loader is None or is_stream(loader):  # evaluation on one process has none on the others
                continue
            batch_size = getattr(loader, "batch_size", None)
            sampler = getattr(getattr(loader, "batch_sampler", None), "sampler", None)
            images = _count_images(getattr(loader, "dataset", None) if sampler is None else sampler)
            if images == 0 or (name == "train" and images is not None and (batch_size or 0) > images):
                raise _too_few_images(name, images, batch_size)
            if self._accelerator.num_processes > 1 and not isinstance(loader, DataLoader):
                raise TypeError(
                    f"Expected create_{name}_dataloader() to return a torch DataLoader, since accelerate shards no "
                    f"other and every process would train on everything, but got {type(loader).__name__}."
                )
            if len(loader) == 0:
                raise ValueError(
                    f"Expected the {name} loader to give at least one batch, but got none from {images} images with "
                    f"batch size {batch_size}. Lower per_device_batch_size or pass drop_last=False."
                )

    def _check_eval_batch_size(self) -> None:
        """Do nothing: our evaluation takes any number of images on any number of processes."""

    def _create_run_config(
        self,
        per_device_batch_size: int,
        num_epochs: int,
        gradient_accumulation_steps: int,
        max_num_train_steps: int | None,
        gradient_clip_value: float | None,
    ) -> TrainerRunConfig:
        config = super()._create_run_config(
            per_device_batch_size, num_epochs, gradient_accumulation_steps, None, gradient_clip_value
        )
        updates = config.num_local_update_steps_per_epoch  # upstream's other number is multiplied by the processes
        if max_num_train_steps is not None:
            num_epochs = min(num_epochs, ceil(max_num_train_steps / updates))
        return replace(
            config,
            num_epochs=num_epochs,
            num_update_steps_per_epoch=updates,
            max_num_train_steps=num_epochs * updates if max_num_train_steps is None else max_num_train_steps,
        )


def refuse_sharding(distributed_type: DistributedType) -> None:
    """Raise a `ValueError` where the weights are sharded: the average and the evaluation need them whole."""
    if distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM):
        raise ValueError(
            "Expected whole weights on every process, since the average and the evaluation need them, but got "
            f"{distributed_type.value}. Choose MULTI_GPU in the accelerate config."
        )


def _count_images(dataset: Any) -> int | None:
    """Return the number of images, None where the data set does not know it."""
    return len(dataset) if hasattr(dataset, "__len__") else None


def _too_few_images(name: str, images: int, batch_size: int | None) -> ValueError:
    return ValueError(
        f"Expected {name}_dataset to fill at least one batch of {batch_size}, but got {images} images. "
        "Lower per_device_batch_size or add images."
    )
