"""`LoopTrainer`: pytorch-accelerated's `Trainer` with a correct loop, and the hooks that mixins override."""

import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from numbers import Integral
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from accelerate import Accelerator
from accelerate.utils import convert_to_fp32, extract_model_from_parallel
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.utils.data import DataLoader
from tqdm import tqdm

from timm_accel.callbacks import DEFAULT_CALLBACKS
from timm_accel.callbacks.handler import EventHandler, admit
from timm_accel.callbacks.recorded_metrics import one_number, refuse_unless_recorded
from timm_accel.distributed.consensus import Stop
from timm_accel.distributed.processes import check_accelerator
from timm_accel.losses.softmax import refuse_integer_labels
from timm_accel.messages import printable
from timm_accel.states.weights import metric_prefix
from timm_accel.terminal import fitted
from timm_accel.training import batches, preparation
from timm_accel.training.checkpointer import Checkpointer
from timm_accel.training.gradient_group import zero_grad
from timm_accel.training.options import FromRun, merged_signature, names_unknown_options, refuse_unknown_options
from timm_accel.training.precision import check_precision
from timm_accel.training.run import Run
from timm_accel.training.snapshot import Stateful, load_components, with_components
from timm_accel.training.training_run import TrainingRun
from timm_accel.upstream import ConvertSyncBatchNormCallback, Trainer, TrainerCallback, TrainerRunConfig

_OURS = {"timm_accel", "pytorch_accelerated", "builtins"}


class LoopTrainer(Trainer):
    """pytorch-accelerated's `Trainer` with a correct loop, and the hooks that mixins override.

    Upstream's public hooks keep their names, order and meaning. One update is: seed the step, forward, loss, backward,
    `clip_gradients`, ``optimizer_step``, `after_update`, ``scheduler_step``, ``optimizer_zero_grad``, the event
    ``on_update_end`` (`timm_accel.training.training_run`). The recorded losses are true means over images, whatever the
    accumulation; a shorter last accumulation group is divided by its actual size. Evaluation runs the unwrapped model,
    so processes may have different numbers of batches.

    A subclass may set any attribute that upstream's trainer lets it set, `epoch` and `num_updates` too: the loop reads
    the attributes of its `Run` instead.

    Args:
        model: The model to train.
        loss_func: Called with (outputs, targets); returns the mean loss.
        optimizer: The optimizer of the model's parameters; None for a trainer that only evaluates.
        callbacks: Classes or instances; faulty ones from upstream are replaced by ours or refused.
        run_history: Upstream's history; in memory by default.
        seed: The only seed. It makes a run repeatable, whatever the number of workers.
        run_dir: The folder for states and the files of callbacks. It must not hold a run, unless that run is resumed.
        evaluate_every_n_epochs: Epochs between two evaluations of a training run; the last epoch always has one.
        sync_every_n_updates: Updates between two sync points, at which all processes agree on saving and stopping.
        recipe: Plain values that describe the run. Its states hold them, and a state with other values is refused.
        mixed_precision: ``"no"``, ``"fp16"`` or ``"bf16"``; None for that of the launcher.
        torch_compile: Whether to compile the model, or a mode of ``torch.compile``: ``"default"``,
            ``"reduce-overhead"`` or ``"max-autotune"``; None as the launcher says. A model is saved without it.

    Raises:
        TypeError: An option is unknown; the nearest one is named. By `train`, when there is no optimizer.
        ValueError: The processes that were launched do not run together (on CPUs without ``ACCELERATE_USE_CPU``), or
            the weights are to be sharded.
        RuntimeError: By `train` and `evaluate`, when a stop was requested as failed (a loss that is not finite), or
            within a run.
        BlockingIOError: By `train`, when another run uses `run_dir`.
        SystemExit: By `train`, with exit code 75, when the run was interrupted and can resume later.

    Source: ``pytorch_accelerated.trainer.Trainer`` 0.1.61.
    """

    model: Any  # upstream declares none of its attributes
    optimizer: Any
    create_scheduler_fn: Any
    scheduler: Any
    keep_states: int | None = None
    data_identity: str | None = None
    same_on_hosts: Mapping[str, Any] = MappingProxyType({})  # further options, compared at the start of a run
    default_drop_last: ClassVar[bool] = False
    """Whether the training loader drops its last, shorter batch unless told otherwise."""
    _accelerator: Any
    _callbacks: Any
    _loss_tracker: Any
    _train_dataloader: Any
    _eval_dataloader: Any
    _current_run: Run | None = None
    _num_updates = 0

    accelerator, rank, epoch, batch_index, num_updates = FromRun(), FromRun(), FromRun(), FromRun(), FromRun()
    updates_per_epoch, epochs_done, batches_done = FromRun(), FromRun(), FromRun()
    learning_rate, epoch_learning_rate, running_loss = FromRun(), FromRun(), FromRun()
    train_dataloader, eval_dataloader = FromRun(), FromRun()
    unwrapped_model, unwrapped_optimizer = FromRun(), FromRun()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.__signature__ = merged_signature(cls, LoopTrainer)

    def __init__(
        self,
        model: nn.Module,
        loss_func: Callable[..., torch.Tensor],
        optimizer: Optimizer | None,
        callbacks: Iterable[TrainerCallback | type[TrainerCallback]] = DEFAULT_CALLBACKS,
        run_history: Any = None,
        *,
        seed: int = 42,
        run_dir: str | Path | None = None,
        evaluate_every_n_epochs: int = 1,
        sync_every_n_updates: int = 10,
        recipe: Mapping[str, Any] | None = None,
        mixed_precision: str | None = None,
        torch_compile: bool | str | None = None,
        **unknown: Any,
    ) -> None:
        """Create the trainer. The docstrings of its class and of the mixins explain the options."""
        refuse_unknown_options(type(self), unknown)
        preparation.check_interval("sync_every_n_updates", sync_every_n_updates, "updates", 10)
        preparation.check_interval("evaluate_every_n_epochs", evaluate_every_n_epochs, "epochs", 1)
        preparation.check_parts(model, optimizer)
        if not isinstance(seed, int | Integral):
            raise TypeError(f"Expected seed to be an integer, but got {seed!r}. The default is 42.")
        self.seed, self.sync_every_n_updates = int(seed), sync_every_n_updates
        self.evaluate_every_n_epochs = evaluate_every_n_epochs
        self.run_dir = None if run_dir is None else Path(run_dir)
        self.recipe = dict(recipe or {})
        check_precision(mixed_precision, torch_compile)
        self.mixed_precision, self.torch_compile = mixed_precision, torch_compile
        super().__init__(model, loss_func, optimizer, callbacks, run_history)

    def current_run(self) -> Run:
        """Return the current run; outside a run, one that has not started."""
        return self._current_run or Run(self, self._num_updates)

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Print on rank 0, above a progress bar if there is one; upstream prints on one rank of each machine."""
        if self._accelerator is None or self._accelerator.is_main_process:
            separator, stream = kwargs.pop("sep", None), kwargs.get("file") or sys.stdout
            text = (" " if separator is None else separator).join(printable(str(each)) for each in args)
            with tqdm.external_write_mode(kwargs.get("file")):
                print(fitted(text, stream), **kwargs)

    # What a mixin or a subclass overrides, beside upstream's own hooks

    def get_unwrapped_model(self) -> nn.Module:
        """Return the module whose weights are trained, without DDP's, FSDP's or ``torch.compile``'s wrapper."""
        model = self.model
        while (inner := extract_model_from_parallel(model, keep_torch_compile=False)) is not model:
            model = inner
        return model

    def unpack_batch(self, batch: Any) -> tuple[Any, Any]:
        """Return the inputs and targets of a batch; override it, and `repack_batch`, for a batch of another form.

        By default a batch is a tuple, list or named tuple that begins with them, or a mapping with one of ``image``,
        ``images``, ``pixel_values``, ``inputs`` and one of ``label``, ``labels``, ``target``, ``targets``.
        """
        return batches.unpack(batch)

    def repack_batch(self, batch: Any, inputs: Any, targets: Any) -> Any:
        """Return a batch of the same form with other inputs and targets, for Mixup and on-device normalization."""
        return batches.repack(batch, inputs, targets)

    def logits_of(self, outputs: Any) -> torch.Tensor:
        """Return the logits ``(B, num_classes)`` in what the model returned, for metrics and losses.

        By default they are the tensor itself, its ``logits``, or the first of several tensors. In training a custom
        loss gets all that the model returned.
        """
        return batches.logits_of(outputs)

    def evaluated_models(self) -> dict[str, nn.Module]:
        """Return every set of weights that is evaluated and saved: the model, and what mixins add."""
        return {"model": self.get_unwrapped_model()}

    def components(self) -> dict[str, Stateful]:
        """Return what must survive a resume besides model, optimizer and scheduler. Mixins add theirs.

        The loss is one of them when it has parameters or buffers.
        """
        loss = self.loss_func
        return {"loss_func": loss} if isinstance(loss, nn.Module) and loss.state_dict() else {}

    def refused_callbacks(self) -> dict[type[TrainerCallback], tuple[str, str]]:
        """Return the callbacks that do not work here, each with the reason and a remedy. Mixins add theirs."""
        reason = "it drops the activation inside timm's BatchNormAct2d"
        return {ConvertSyncBatchNormCallback: (reason, "Pass sync_bn=True instead (SyncBatchNormMixin).")}

    def ddp_kwargs(self) -> dict[str, Any]:
        """Return the options of torch's ``DistributedDataParallel``. Mixins add theirs."""
        return {}

    def before_prepare(self) -> None:
        """Change the plain model before accelerate wraps it. Called by `train` and `evaluate`, so it is idempotent.

        Copy the model before ``super()``, and convert it after.
        """

    def backward_kwargs(self) -> dict[str, Any]:
        """Return keyword arguments for ``loss.backward``. Mixins add theirs."""
        return {}

    def clip_gradients(self) -> None:
        """Clip the gradients, once for each update; by value when ``gradient_clip_value`` was given to `train`."""
        if self.run_config.gradient_clip_value is not None:
            self._clip_gradients()

    def after_update(self) -> None:
        """Do nothing. Called after every optimizer update that was not skipped; ``num_updates`` counts it already."""

    def evaluation_loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return the mean loss of an evaluation batch: ``loss_func`` unless a mixin has another."""
        refuse_integer_labels("the evaluation loss", self.loss_func, targets)
        return self.loss_func(outputs, targets)

    def checked_batch(self, batch: Any, number: int, training: bool) -> Any:
        """Return a batch on its device, before any hook sees it. Mixins check it.

        Args:
            batch: What the loader gave.
            number: Its number in the epoch, from 0.
            training: Whether the model is trained on it; otherwise it is evaluated.
        """
        return batch

    def update_training_metrics(self, batch: Any, batch_output: dict[str, Any]) -> None:
        """Do nothing. Called with each training batch, before it is mixed, and its output."""

    def start_evaluation_metrics(self) -> None:
        """Do nothing. Called before each evaluation, before ``eval_epoch_start``."""

    def record_evaluation_metrics(self) -> None:
        """Do nothing. Called after the last evaluation batch, before ``eval_epoch_end``."""

    def update_metrics(self, batch: Any, batch_output: dict[str, Any]) -> None:
        """Do nothing. Called with each evaluation batch and its output, after every mixin has added to the output."""

    def metric_prefixes(self) -> list[str]:
        """Return the prefixes of the metrics that an evaluation records, one for each set of weights."""
        return [metric_prefix("model")]

    @property
    def mixes_images(self) -> bool:
        """Whether the model now sees mixed images in training, so that their hard labels are not what it learns."""
        return False

    def training_metrics(self) -> list[str]:
        """Return the names of the metrics that a training epoch records beside its loss.

        Each is a mean over images: add to it by ``current_run().training_means[name].update(...)``.
        """
        return []

    def evaluation_metrics(self) -> list[str]:
        """Return the names of the metrics, without prefix, that an evaluation in training records."""
        return ["eval_loss_epoch"]

    def scheduler_state(self) -> dict[str, Any]:
        """Return what the scheduler cannot compute from the number of updates and epochs."""
        return self.scheduler.state_dict()

    def restore_scheduler(self, state: dict[str, Any], same_length: bool) -> bool:
        """Move a new scheduler to the position of the run. The optimizer has its initial learning rates until then.

        Args:
            state: What `scheduler_state` returned.
            same_length: Whether the run is as long as when it was saved.

        Returns:
            Whether the optimizer now has the learning rates of the schedule; otherwise the saved ones are loaded.
        """
        if same_length or isinstance(self.scheduler, ReduceLROnPlateau):
            self.scheduler.load_state_dict(state)
            return False
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step")
            for _ in range(self.current_run().num_updates):
                self.scheduler.step()
        return True

    # What mixins and callbacks request

    def request_stop(self, reason: str, *, failed: bool = False, interrupted: bool = False) -> None:
        """Request, on any process, that the run ends at the next sync point.

        Outside a run nothing happens. If the run saves states, it writes one, unless it failed.

        Args:
            reason: One sentence, printed on rank 0 unless `failed`.
            failed: Whether `train` then raises a `RuntimeError` with that sentence on all processes.
            interrupted: Whether the run is to resume later: it writes a state, and `train` ends all processes with exit
                code 75 (`SystemExit`).
        """
        stop = Stop.FAILED if failed else Stop.INTERRUPTED if interrupted else Stop.FINISHED
        self.current_run().request_stop(stop, reason)

    def request_save(self, *, milestone: bool = False, everywhere: bool = False) -> None:
        """Request, on any process, that a state is written at the next sync point.

        Args:
            milestone: Whether to keep the state forever, whatever ``keep_states`` is.
            everywhere: Whether every process requests it at the same moment, so that no sync is needed first: the state
                is then written as soon as the update or the epoch is complete.

        Raises:
            ValueError: The trainer has no ``run_dir``.
        """
        if self.run_dir is None:
            raise ValueError("Expected run_dir to be given, since states are saved there, but got None. Pass run_dir.")
        self.current_run().request_save(milestone, everywhere)

    def belongs_to_run(self, path: Path) -> bool:
        """Whether an existing file or folder belongs to this run, which resumes or began in this folder before."""
        return self.current_run().belongs_to_run(path)

    def check_metric(self, argument: str, name: str) -> None:
        """Raise before training when the run will not record a metric.

        A custom trainer or callback may record more than the mixins know of; then the check waits for the end of the
        first epoch.

        Args:
            argument: The name of the user's argument, for the message.
            name: The metric's name in the history.

        Raises:
            ValueError: The run will not record it.
        """
        kinds = [*type(self).__mro__, *(type(callback) for callback in self.callback_handler)]
        if all(kind.__module__.split(".")[0] in _OURS for kind in kinds):
            evaluated = [] if self.eval_dataset is None else self.evaluation_metrics()
            names = [prefix + metric for prefix in self.metric_prefixes() for metric in evaluated]
            refuse_unless_recorded(argument, name, ["train_loss_epoch", *self.training_metrics(), *names])

    def latest_metric(self, argument: str, name: str) -> float:
        """Return a metric's latest value.

        Args:
            argument: The name of the user's argument, for the message.
            name: The metric's name in the history.

        Raises:
            ValueError: The metric has no value, or it is not one number.
        """
        refuse_unless_recorded(argument, name, self.run_history.get_metric_names())
        return one_number(argument, name, self.run_history.get_latest_metric(name))

    # Upstream's public methods

    @names_unknown_options
    def train(
        self,
        train_dataset: Any,
        num_epochs: int,
        eval_dataset: Any = None,
        *args: Any,
        resume_from: str | Path | None = None,
        **kwargs: Any,
    ) -> None:
        """Train for all epochs that are left, and evaluate after each if there is an `eval_dataset`.

        Args:
            train_dataset: The dataset to train on.
            num_epochs: Epochs of the whole run, those before a resume included.
            eval_dataset: The dataset to evaluate on.
            resume_from: ``"auto"`` for the newest state in ``run_dir``, if there is one; a state's path; None for none.
            **kwargs: Upstream's further arguments, also by position. ``max_num_train_steps`` counts optimizer updates.
        """
        counts = preparation.check_train_arguments(train_dataset, num_epochs, args, kwargs)
        current = self.current_run()
        preparation.check_optimizes(current.unwrapped_model, current.unwrapped_optimizer, self.loss_func)
        checkpointer = Checkpointer(self, resume_from)
        run = TrainingRun(self, checkpointer)
        with checkpointer.claimed(train_dataset, eval_dataset, counts), self._running(run):
            self.scheduler = self._eval_dataloader = None  # upstream keeps those of the previous run (0.1.61)
            super().train(train_dataset, num_epochs, eval_dataset, *args, **kwargs)

    @names_unknown_options
    def evaluate(self, dataset: Any = None, *args: Any, **kwargs: Any) -> None:
        """Evaluate every set of weights on each image once, with a new history. The arguments are upstream's."""
        preparation.check_counts(per_device_batch_size=(args or (kwargs.get("per_device_batch_size", 8),))[0])
        with self._running(Run(self, self._num_updates)):
            super().evaluate(dataset, *args, **kwargs)

    @contextmanager
    def _running(self, run: Run) -> Iterator[None]:
        if self._current_run is not None:
            raise RuntimeError(
                "Expected train() and evaluate() outside a run, since they reset the history, but got one within a "
                "run. Use pytorch-accelerated's StepBasedEvaluationCallback to evaluate in between."
            )
        self._current_run = run
        try:
            yield
        finally:
            self._current_run, self._num_updates = None, run.num_updates
            run.at_exit.close()
            self.create_scheduler_fn = None  # often a bound method: the cycle would keep loaders alive
            run.loader_workers.end()

    def get_default_train_dl_kwargs(self, batch_size: int) -> dict[str, Any]:
        kwargs = super().get_default_train_dl_kwargs(batch_size) | preparation.worker_kwargs()
        return kwargs | {"drop_last": self.default_drop_last}

    def get_default_eval_dl_kwargs(self, batch_size: int) -> dict[str, Any]:
        return super().get_default_eval_dl_kwargs(batch_size) | preparation.worker_kwargs()

    def create_train_dataloader(self, batch_size: int, train_dl_kwargs: dict[str, Any] | None = None) -> Iterable:
        defaults = self.get_default_train_dl_kwargs(batch_size)
        merged = preparation.merge_loader_kwargs(self.train_dataset, defaults, train_dl_kwargs, self.collate_fn)
        preparation.keep_small_dataset(self.train_dataset, merged, train_dl_kwargs, self._accelerator.num_processes)
        preparation.fit_workers_to_shards(self.train_dataset, merged, train_dl_kwargs, self._accelerator.num_processes)
        self._train_dl_kwargs = merged
        return DataLoader(self.train_dataset, **merged)

    def create_eval_dataloader(self, batch_size: int, eval_dl_kwargs: dict[str, Any] | None = None) -> Iterable:
        defaults = self.get_default_eval_dl_kwargs(batch_size)
        merged = preparation.merge_loader_kwargs(self.eval_dataset, defaults, eval_dl_kwargs, self.collate_fn)
        self._eval_dl_kwargs = merged
        return DataLoader(self.eval_dataset, **merged)

    def backward_step(self, loss: torch.Tensor) -> None:
        self._accelerator.backward(loss, **self.backward_kwargs())

    def optimizer_zero_grad(self) -> None:
        zero_grad(self.current_run().unwrapped_optimizer)

    def calculate_train_batch_loss(self, batch: Any) -> dict[str, Any]:
        """Return ``loss``, a mean over images, ``model_outputs`` and ``batch_size``; further keys reach callbacks."""
        inputs, targets = self.unpack_batch(batch)
        outputs = self._outputs(self.model, inputs)
        refuse_integer_labels("loss_func", self.loss_func, targets)
        seen = outputs if batches.takes_all_outputs(self.loss_func) else self.logits_of(outputs)
        return {"loss": self.loss_func(seen, targets), "model_outputs": outputs, "batch_size": len(targets)}

    def _outputs(self, model: Any, inputs: Any) -> Any:
        try:
            return model(inputs)
        except (RuntimeError, TypeError) as error:
            if (wrong := batches.wrong_dtype(model, inputs)) is not None:
                raise wrong from error
            raise

    def calculate_eval_batch_loss(self, batch: Any) -> dict[str, Any]:
        outputs, loss = self.evaluate_batch(self.model, batch)
        return {"loss": loss, "model_outputs": outputs, "batch_size": len(self.unpack_batch(batch)[1])}

    def evaluate_batch(self, model: nn.Module, batch: Any) -> tuple[Any, torch.Tensor]:
        """Return the outputs of one of the `evaluated_models` for a batch, in float32, and their evaluation loss."""
        inputs, targets = self.unpack_batch(batch)
        with torch.no_grad():
            with self._accelerator.autocast():
                outputs = self._outputs(model, inputs)
            outputs = convert_to_fp32(outputs)
            return outputs, self.evaluation_loss(self.logits_of(outputs), targets)

    def get_model(self, keep_torch_compile: bool = True) -> nn.Module:
        # accelerate 1.15 strips DDP from the model that is being trained when a compiled one is unwrapped
        return super().get_model() if keep_torch_compile else self.get_unwrapped_model()

    def save_checkpoint(
        self, save_path: str | Path, checkpoint_kwargs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        kwargs.setdefault("save_optimizer", self.optimizer is not None)
        super().save_checkpoint(save_path, with_components(self, checkpoint_kwargs), **kwargs)

    def load_checkpoint(self, checkpoint_path: str | Path, **kwargs: Any) -> dict[str, Any]:
        return load_components(self, super().load_checkpoint(checkpoint_path, **kwargs))

    def save_training_state(self, output_dir: str | Path, checkpoint_kwargs: dict[str, Any] | None = None) -> None:
        self._forget_registered()
        super().save_training_state(output_dir, with_components(self, checkpoint_kwargs))

    def load_training_state(self, input_dir: str | Path) -> dict[str, Any]:
        self._forget_registered()
        return load_components(self, super().load_training_state(input_dir))

    def _forget_registered(self) -> None:
        """Upstream registers the scheduler at every call, so that the second state cannot be loaded (0.1.61)."""
        others = [each for each in self._accelerator._custom_objects if each is not self.scheduler]
        self._accelerator._custom_objects[:] = others

    # Upstream's private seams, which its own methods and callbacks call

    def _create_callback_handler(self) -> EventHandler:
        self._callbacks = admit(self._callbacks, self.refused_callbacks())
        return EventHandler(list(super()._create_callback_handler()))

    def _create_accelerator(self) -> Accelerator:
        return preparation.create_accelerator(self.ddp_kwargs(), self.model, self.mixed_precision, self.torch_compile)

    def _prepare_model_optimizer_and_dataloaders(self) -> None:
        self._accelerator.free_memory()
        self._accelerator = self._create_accelerator()
        check_accelerator(self._accelerator, self.model)  # again, since a subclass may have created it
        processes = self._accelerator.num_processes
        preparation.check_loaders({"train": self._train_dataloader, "eval": self._eval_dataloader}, processes)
        self.model = preparation.strip_model(self.model, self.get_unwrapped_model())
        if self._train_dataloader is not None:
            preparation.refuse_batch_of_one(
                self.get_unwrapped_model(), self._train_dataloader, processes, self.unpack_batch
            )
        self.optimizer = self.current_run().unwrapped_optimizer
        self.before_prepare()
        loaders = preparation.seed_and_shard(
            self._train_dataloader, self._eval_dataloader, self._accelerator, self.seed
        )
        with warnings.catch_warnings():  # torch 2.14 deprecates the one name of the option that accelerate 1.15 knows
            warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated", category=FutureWarning)
            self.model, self.optimizer, self._train_dataloader, self._eval_dataloader = self._accelerator.prepare(
                self.model, self.optimizer, *loaders
            )
        preparation.check_share(self._train_dataloader, self.train_dataset, processes)
        if hasattr(getattr(self._eval_dataloader, "batch_sampler", None), "even_batches"):
            self._eval_dataloader.batch_sampler.even_batches = False

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
        self.current_run().max_updates = max_num_train_steps
        return preparation.count_local_updates(config, num_epochs, max_num_train_steps)

    def _run_training(self) -> None:
        self.current_run().execute()

    def _run_evaluation(self) -> None:
        self.current_run().execute()

    def _run_train_epoch(self, train_dl: Iterable) -> None:
        assert isinstance(self._current_run, TrainingRun)
        self._current_run.train_epoch(train_dl)

    def _run_eval_epoch(self, valid_dl: Iterable, is_training: bool = True, is_intermediate: bool = False) -> None:
        self.current_run().eval_epoch(valid_dl, is_training, is_intermediate)


LoopTrainer.__signature__ = merged_signature(LoopTrainer, LoopTrainer)
