"""What each process of a group does; `test_two_processes.py` starts the group once and compares what it leaves.

Also run on one process, for the values that two must agree with.
"""

import sys
import warnings
from pathlib import Path
from typing import Any, ClassVar

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "mixins"))

import torch
from accelerate import Accelerator, PartialState
from conftest import write_images
from resumed_runs import Noting, every_update
from test_scheduler import EPOCHS, SETTINGS
from test_scheduler import Noting as NotingRates
from timm.loss import SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from tiny_runs import NO_WORKERS, fit, make_trainer, tiny_data, tiny_model
from torch import distributed, nn
from torch.utils.data import TensorDataset

from timm_accel import LoopTrainer, TimmMixupTrainer, TimmTrainer, create_datasets
from timm_accel.callbacks import DEFAULT_CALLBACKS, Callback, UnreadableImagesCallback
from timm_accel.callbacks.unreadable_images import images_read
from timm_accel.data import LabeledImages
from timm_accel.data.samplers import RepeatedSampler, class_balanced_sampler
from timm_accel.mixins import ModelEmaMixin, ScheduledResolutionMixin
from timm_accel.states.folder import open_state, state_folders

GLOBAL_BATCH = 8
RESULTS: dict[str, Any] = {}


def share(count: int = GLOBAL_BATCH) -> int:
    """This process's part of a global batch."""
    return count // PartialState().num_processes


def plain_model() -> nn.Sequential:
    """A model that computes the same for an image whatever stands beside it: no BatchNorm, no dropout."""
    model = tiny_model(batch_norm=False)
    model[4] = nn.Identity()
    return model


def weights_of(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def check_same_weights() -> None:
    """The same global batches on one and on two processes."""
    for accumulation in (1, 2):
        model = plain_model()
        trainer = make_trainer(
            Noting,
            model,
            optimizer=create_optimizer_v2(model, "lookahead_adamw", lr=1e-2),
            loss_func=nn.CrossEntropyLoss(),
            num_class=3,
            ema_decay=0.5,
            clip_grad=0.5,
            scheduler_args={"sched": "cosine", "warmup_epochs": 1, "step_on_epochs": False},
        )
        fit(
            trainer,
            tiny_data(40),
            tiny_data(31, seed=5),
            num_epochs=3,
            per_device_batch_size=share(),
            gradient_accumulation_steps=accumulation,
        )
        RESULTS[f"same/{accumulation}"] = {
            "model": weights_of(trainer.model),
            "ema_model": weights_of(trainer.ema_model.module),
            "rates": trainer.rates,
            "images": trainer.images,
            "history": {name: trainer.run_history.get_metric_values(name) for name in ("accuracy", "eval_loss_epoch",
                        "train_loss_epoch", "ema_model_accuracy")},
            "updates": (trainer.num_updates, trainer.updates_per_epoch),
        }  # fmt: skip


def check_evaluation_sets() -> None:
    """Evaluation sets that do not divide, down to an empty rank."""
    for count in (1, 7, 31):
        trainer = make_trainer(TimmTrainer, num_classes=3)
        options = {"per_device_batch_size": share(), "dataloader_kwargs": NO_WORKERS}
        trainer.evaluate(tiny_data(count, seed=3), **options)
        history = trainer.run_history
        RESULTS[f"evaluate/{count}"] = {
            name: history.get_latest_metric(name) for name in ("accuracy", "f1_macro", "evaluation_loss")
        }


def check_mixup_draws() -> None:
    """Each process mixes in its own way."""
    seen = []

    def loss(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        seen.append(targets.clone())
        return SoftTargetCrossEntropy()(outputs, targets)

    trainer = make_trainer(TimmMixupTrainer, mixup_args={"mode": "elem"}, num_class=3, loss_func=loss, ema_decay=0.1)
    fit(trainer, per_device_batch_size=4, num_epochs=1 if PartialState().num_processes == 1 else 2)
    RESULTS["mixup"] = seen


def check_batch_norm() -> None:
    """Statistics after each way of distributing them, and those that each process would have had alone."""
    for mode in ("reduce", "broadcast", None):

        class Before(TimmMixupTrainer):
            def train_epoch_end(self) -> None:
                self.before = [weights_of(module) for module in self.evaluated_models().values()]
                super().train_epoch_end()
                self.after = [weights_of(module) for module in self.evaluated_models().values()]

        trainer = make_trainer(Before, num_class=3, loss_func=nn.CrossEntropyLoss(), ema_decay=0.1, dist_bn=mode)
        fit(trainer, tiny_data(32), num_epochs=1)
        RESULTS[f"batch_norm/{mode}"] = {"before": trainer.before, "after": trainer.after}


def check_unreadable_images() -> None:
    """Training batches stay full, evaluation counts what it saw, and rank 0 lists all."""
    root = Path(sys.argv[1]) / f"images_{PartialState().num_processes}"
    if PartialState().is_main_process:
        for split, count in (("train", 20), ("val", 8)):
            write_images(root / split, {"cat": count, "dog": count})
            for number in range(4):  # in evaluation a full batch of rank 0
                path = root / split / "cat" / f"{number:03d}.png"
                path.write_bytes(path.read_bytes()[:60])
    PartialState().wait_for_everyone()
    data = create_datasets(8, (0.5,) * 3, (0.5,) * 3, root / "train", root / "val", on_error="skip", auto_augment=None)
    sizes: list[int] = []

    class Sizes(TimmTrainer):
        def calculate_train_batch_loss(self, batch: Any) -> dict[str, Any]:
            sizes.append(len(batch[0]))
            return super().calculate_train_batch_loss(batch)

    trainer = make_trainer(Sizes, callbacks=[UnreadableImagesCallback], run_dir=root / "run", num_classes=2,
                           model=tiny_model(num_classes=2))  # fmt: skip
    fit(trainer, *data, num_epochs=1, per_device_batch_size=share())
    metrics, counted = trainer.run_history, images_read(data[1])
    strict = create_datasets(8, (0.5,) * 3, (0.5,) * 3, root / "train", root / "val", on_error="raise")
    sizes_before, refused = len(sizes), ""
    try:
        early = make_trainer(
            Sizes, callbacks=[UnreadableImagesCallback], num_classes=2, model=tiny_model(num_classes=2)
        )
        fit(early, *strict, num_epochs=1, per_device_batch_size=share())
    except OSError as error:
        refused = str(error)
    assert len(sizes) == sizes_before  # before the first step
    alone = make_trainer(Sizes, model=trainer.unwrapped_model, num_classes=2, optimizer=trainer.unwrapped_optimizer)
    for number in range(4):
        if PartialState().is_main_process:
            (root / "val" / "cat" / f"{number:03d}.png").unlink()
    PartialState().wait_for_everyone()
    _, clean = create_datasets(8, (0.5,) * 3, (0.5,) * 3, root / "train", root / "val", auto_augment=None)
    alone.evaluate(clean, per_device_batch_size=share(), dataloader_kwargs=NO_WORKERS)
    RESULTS["unreadable"] = {
        "sizes": sizes,
        "accuracy": (metrics.get_latest_metric("accuracy"), alone.run_history.get_latest_metric("accuracy")),
        "loss": (metrics.get_latest_metric("eval_loss_epoch"), alone.run_history.get_latest_metric("evaluation_loss")),
        "listed": (root / "run" / "bad_images.csv").read_text().count("\n") - 1,
        "counted": counted,
        "refused": refused,
    }


def check_samplers() -> None:
    """Which images each process draws from one order of all."""

    class Numbers(LoopTrainer):
        def calculate_train_batch_loss(self, batch: Any) -> dict[str, Any]:
            drawn.extend(batch[1].tolist())
            return super().calculate_train_batch_loss((batch[0], batch[1] % 3))

    for name, sampler in (
        ("repeated", RepeatedSampler(16, 2)),
        ("balanced", class_balanced_sampler([0] * 12 + [1] * 4, 32)),
    ):
        drawn: list[int] = []
        data = TensorDataset(tiny_data(16).tensors[0], torch.arange(16))
        options = {"train_dataloader_kwargs": NO_WORKERS | {"sampler": sampler}, "num_epochs": 1}
        fit(make_trainer(Numbers), data, per_device_batch_size=share(), **options)
        RESULTS[f"sampler/{name}"] = drawn


class Indexed(LabeledImages):
    """Notes which images are loaded."""

    indices: ClassVar[list[int]] = []

    def load(self, index: int) -> Any:
        self.indices.append(index)
        return super().load(index)


def check_scheduled_sizes() -> None:
    """One size on all processes at the same step, no image lost or doubled, erased otherwise on each."""
    root = Path(sys.argv[1]) / f"scheduled_{PartialState().num_processes}"
    if PartialState().is_main_process:
        for split in ("train", "val"):
            write_images(root / split, {"cat": 13, "dog": 13})
    PartialState().wait_for_everyone()
    train_set, _ = create_datasets(8, (0.5,) * 3, (0.5,) * 3, data=root, re_prob=1.0, re_mode="pixel")
    train_set.__class__ = Indexed
    train_set.transform_of_size = lambda input_size: lambda image: torch.zeros(3, *input_size, dtype=torch.uint8)
    sizes: list[int] = []
    erased: list[torch.Tensor] = []

    class Sizes(ScheduledResolutionMixin):
        def calculate_train_batch_loss(self, batch: Any) -> dict[str, Any]:
            sizes.append(batch[0].shape[2])
            erased.append(batch[0][:2])
            return super().calculate_train_batch_loss(batch)

    model = nn.Sequential(nn.Conv2d(3, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    fit(make_trainer(Sizes, model, resolutions=[8, 16]), train_set, num_epochs=2, per_device_batch_size=share(4))
    RESULTS["scheduled"] = {"sizes": sizes, "indices": list(Indexed.indices), "erased": erased[0]}


def check_freezing() -> None:
    """What is frozen keeps its bits on all processes, what is thawed moves alike, after a resume too.

    An epoch has 5 updates; the run is cut while the body is frozen, just after it is thawed, and just before it is
    frozen again.
    """
    run_dir = Path(sys.argv[1]) / f"freezing_{PartialState().num_processes}"

    class Watching(TimmTrainer):
        def train_epoch_start(self) -> None:
            super().train_epoch_start()
            copies.append(weights_of(self.unwrapped_model))

    def run(**options: Any) -> list[dict[str, torch.Tensor]]:
        copies.clear()
        model = tiny_model()
        optimizer = create_optimizer_v2(model, "lookahead_adamw", lr=1e-2, weight_decay=0.1)
        schedule, resume_from = {0: 2, 1: 0, 2: 2}, options.pop("resume_from", None)
        trainer = make_trainer(Watching, model, optimizer=optimizer, freeze_schedule=schedule, **options)
        fit(trainer, tiny_data(40), num_epochs=3, per_device_batch_size=share(), resume_from=resume_from)
        return [*copies, weights_of(trainer.unwrapped_model)]

    copies: list[dict[str, torch.Tensor]] = []
    RESULTS["freezing"] = run(run_dir=run_dir, callbacks=[every_update()])
    states = {open_state(folder).manifest["num_updates"]: folder for folder in state_folders(run_dir / "state")}
    for updates in (2, 6, 9):
        RESULTS[f"freezing/{updates}"] = run(resume_from=states[updates])


def check_not_finite_on_one_rank() -> None:
    """A loss that is not finite on the last process alone."""

    def loss(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        value = nn.functional.cross_entropy(outputs, targets)
        last = PartialState().process_index == PartialState().num_processes - 1
        return value * float("nan") if last and trainer.num_updates == 3 else value

    trainer = make_trainer(loss_func=loss, callbacks=[*DEFAULT_CALLBACKS], sync_every_n_updates=5)
    try:
        fit(trainer, tiny_data(160))
    except RuntimeError as error:
        RESULTS["not_finite"] = (str(error), trainer.num_updates)


def check_stop_asked_by_one_rank() -> None:
    """A stop that the last process asks for."""

    class Stop(Callback):
        def on_update_end(self, trainer: Any, **kwargs: Any) -> None:
            if trainer.rank == trainer.accelerator.num_processes - 1 and trainer.num_updates == 2:
                trainer.request_stop("Enough.")

    trainer = make_trainer(callbacks=[Stop], sync_every_n_updates=4)
    fit(trainer, tiny_data(160))
    RESULTS["stop"] = trainer.num_updates


def check_compiled() -> None:
    """``torch.compile`` under DDP: the EMA weights move, names are clean, DDP still synchronizes gradients."""

    class Watching(ModelEmaMixin):
        def after_update(self) -> None:
            super().after_update()
            self.kinds = [type(m).__name__ for m in (self.model, getattr(self.model, "module", self.model))]

    model = plain_model()
    trainer = make_trainer(Watching, torch.compile(model, backend="eager"), ema_decay=0.5)
    fit(trainer, tiny_data(40), tiny_data(7), per_device_batch_size=share())
    RESULTS["compiled"] = {
        "model": weights_of(trainer.unwrapped_model),
        "ema_model": weights_of(trainer.ema_model.module),
        "kinds": trainer.kinds,
    }
    plain = make_trainer(ModelEmaMixin, plain_model(), ema_decay=0.5)
    fit(plain, tiny_data(40), per_device_batch_size=share())
    RESULTS["compiled/plain"] = {"model": weights_of(plain.model), "ema_model": weights_of(plain.ema_model.module)}


def check_refusals() -> None:
    """What cannot be right on several CPU processes is refused on all of them."""
    if PartialState().num_processes == 1:
        return
    model = tiny_model()
    options = {
        "sync_bn": {"sync_bn": True},
        "second_order": {"optimizer": create_optimizer_v2(model, "adahessian", lr=0.01)},
    }
    for name, option in options.items():
        try:
            fit(make_trainer(TimmTrainer, model, **option))
        except ValueError as error:
            RESULTS[f"refused/{name}"] = str(error)

    class Stream(LoopTrainer):
        def create_train_dataloader(self, batch_size: int, train_dl_kwargs: Any = None) -> Any:
            return [(torch.zeros(2, 3, 8, 8), torch.zeros(2, dtype=torch.int64))]

    try:
        fit(make_trainer(Stream))
    except TypeError as error:
        RESULTS["refused/loader"] = str(error)


def check_empty_share() -> None:
    """A loader that leaves a process without a batch."""
    if PartialState().num_processes > 1:
        try:
            fit(make_trainer(), tiny_data(5), train_dataloader_kwargs=NO_WORKERS | {"drop_last": True})
        except ValueError as error:
            RESULTS["refused/share"] = str(error)


def check_schedules() -> None:
    """A scheduler of the user's own is stepped once an update, not once a process."""

    class Noted(TimmTrainer):
        def optimizer_step(self) -> None:
            rates.append(self.learning_rate)
            super().optimizer_step()

    class Own(Noted):
        def create_scheduler(self) -> CosineLRScheduler:
            updates = self.updates_per_epoch * self.run_config.num_epochs
            return CosineLRScheduler(self.optimizer, updates, t_in_epochs=False)

    def linear(optimizer: Any) -> Any:
        return torch.optim.lr_scheduler.LinearLR(optimizer, end_factor=0.1, total_iters=10)

    for name, create_scheduler_fn in (("timm", None), ("torch", linear)):
        rates: list[float] = []
        kind = Own if create_scheduler_fn is None else Noted
        trainer = make_trainer(kind)
        fit(trainer, tiny_data(40), per_device_batch_size=share(), create_scheduler_fn=create_scheduler_fn)
        RESULTS[f"schedule/{name}"] = (rates, trainer.learning_rate)


def check_every_schedule() -> None:
    """The learning rate of each update, for every scheduler of timm, by epochs and by updates."""
    for name, settings in SETTINGS.items():
        for on_updates in (False, True)[: 1 if settings["sched"] == "plateau" else 2]:
            model = plain_model()
            options = {"scheduler_args": settings | {"step_on_epochs": not on_updates}, "scheduler_metric": "score"}
            trainer = make_trainer(NotingRates, model, **options)
            fit(trainer, tiny_data(24), tiny_data(3), num_epochs=EPOCHS, per_device_batch_size=share())
            RESULTS[f"every schedule/{name}/{on_updates}"] = [*trainer.rates, trainer.learning_rate]


def main() -> None:
    warnings.simplefilter("error")
    for words in ("`broadcast_buffers` is deprecated", "PlateauLRScheduler is deprecated"):
        warnings.filterwarnings("ignore", message=words)
    state = Accelerator().state  # before any PartialState(), which alone does not read ACCELERATE_USE_CPU
    for check in [value for name, value in list(globals().items()) if name.startswith("check_")]:
        check()
    torch.save(RESULTS, Path(sys.argv[1], f"{state.num_processes}_{state.process_index}.pt"))
    if distributed.is_initialized():
        distributed.destroy_process_group()
