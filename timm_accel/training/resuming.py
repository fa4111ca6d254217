"""Resuming: the run folder is claimed, its newest whole state found, checked, and taken up."""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from math import ceil
from pathlib import Path
from typing import Any

import torch
from torch.optim.lr_scheduler import ReduceLROnPlateau

from timm_accel.states.consensus import on_main_process
from timm_accel.states.folder import COMMON, STATES, SavedState, newest_state, open_state, rank_file, tidy_states
from timm_accel.states.run_dir import RUN_CONTENTS, check_run_dir, lock_run_dir, unlock_run_dir
from timm_accel.states.running_mean import RunningMean
from timm_accel.training.identity import describe_run, differences
from timm_accel.training.saving import PACKAGES, Progress, SavingTrainer

_SCHEDULED = ("lr", "momentum", "betas")  # what torch's schedulers change in a parameter group
_LENGTH = ("num_epochs", "updates_per_epoch", "max_num_train_steps")
_CONDITIONS = ("num_processes", "batch_size", "accumulation", "images", "mixed_precision")


class ResumingTrainer(SavingTrainer):
    """The part of `LoopTrainer` that goes on from a state; see there."""

    _resume_from: str | Path | None = None
    _resumed: SavedState | None = None
    _resumed_loss: RunningMean | None = None
    _lock: Any = None

    def owns(self, path: Path) -> bool:
        """Whether a file that is there is this run's own to go on with: it resumes, or began in this folder before.

        Args:
            path: The file or folder.
        """
        if self._resumed is not None:
            return True
        return self._resume_from is not None and self.run_dir is not None and self.run_dir in path.parents

    @property
    def epochs_done(self) -> int:
        """Epochs that are complete, with their evaluation and all callbacks, before a resume too."""
        return 0 if self._progress is None else self._progress.epoch

    @property
    def batches_done(self) -> int:
        """Micro-batches of the present epoch that this process has trained on, before a resume too."""
        return 0 if self._progress is None else self._progress.batch

    @property
    def epoch_learning_rate(self) -> float:
        """The rate of the first parameter group at the start of the present epoch."""
        return self.learning_rate if self._progress is None else self._progress.learning_rate

    def restore_scheduler(self, state: dict[str, Any], same_length: bool) -> bool:
        """Bring a new scheduler to where the run stands, while the optimizer's rates are still those of its start.

        Args:
            state: What `scheduler_state` returned.
            same_length: Whether the run is as long as when it was saved.

        Returns:
            Whether the rates in the optimizer are those of the schedule now; else the saved ones hold.
        """
        if same_length or isinstance(self.scheduler, ReduceLROnPlateau):
            self.scheduler.load_state_dict(state)
            return False
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step")
            for _ in range(self.num_updates):
                self.scheduler.step()
        return True

    def train(
        self,
        train_dataset: Any,
        num_epochs: int,
        eval_dataset: Any = None,
        *args: Any,
        resume_from: str | Path | None = None,
        **kwargs: Any,
    ) -> None:
        self._check_arguments(train_dataset, num_epochs, kwargs)
        with self._run_folder(train_dataset, resume_from, num_epochs):
            super().train(train_dataset, num_epochs, eval_dataset, *args, **kwargs)

    @contextmanager
    def _run_folder(self, train_dataset: Any, resume_from: str | Path | None, num_epochs: int) -> Iterator[None]:
        """Hold the run folder, and look for the state to go on from, before any work."""
        if not (resume_from is None or isinstance(resume_from, str | Path)):
            raise TypeError(
                f"Expected resume_from to be 'auto' or the path of a state, but got {resume_from!r}. Pass 'auto'."
            )
        self._resume_from, self._resumed, self._last_state = resume_from, None, None
        if resume_from == "auto" and self.run_dir is None:
            raise ValueError(
                "Expected run_dir to be given beside resume_from='auto', since states are looked for there, but got "
                "None. Pass run_dir, or the path of a state."
            )
        try:
            if resume_from not in (None, "auto"):
                self._resumed = on_main_process(self._accelerator, self._open_state)
            if self.run_dir is not None:
                on_main_process(self._accelerator, self._claim)
            if resume_from == "auto":
                self._resumed = on_main_process(self._accelerator, self._newest_state)
            self._identity = describe_run(
                self.unwrapped_model, self.unwrapped_optimizer, train_dataset, self.seed, self.recipe
            )
            if self._resumed is not None:
                self._check_resumed(self._resumed, num_epochs)
                for group in self.unwrapped_optimizer.param_groups:  # of a former run of this trainer
                    group["lr"] = group.get("initial_lr", group["lr"])
            yield
        except Exception as error:
            if self._last_state is not None:
                error.add_note(f"The last state is {str(self._last_state)!r}. Go on from it by resume_from='auto'.")
            raise
        finally:
            self._resume_from = self._resumed = self._resumed_loss = self._progress = None
            if self._lock is not None:
                unlock_run_dir(self._lock)
                self._lock = None

    def _claim(self) -> None:
        assert self.run_dir is not None
        states = self.run_dir / STATES
        within = self._resume_from == "auto" or states.resolve() in Path(self._resume_from or "").resolve().parents
        contents = () if self._resume_from is not None and within and states.is_dir() else RUN_CONTENTS
        self._lock = lock_run_dir(check_run_dir(self.run_dir, contents))

    def _newest_state(self) -> SavedState | None:
        assert self.run_dir is not None
        state = newest_state(self.run_dir / STATES, self.print)
        if state is not None:
            tidy_states(self.run_dir / STATES, state)
        return state

    def _open_state(self) -> SavedState:
        assert self._resume_from is not None
        state = open_state(self._resume_from)
        state.check()
        return state

    def _check_resumed(self, state: SavedState, num_epochs: int) -> None:
        saved, present = dict(state.manifest["run"]), dict(self._identity)
        for part in ("optimizer", "recipe"):  # other versions of torch and of ours know other options
            both = saved[part].keys() & present[part].keys()
            saved[part], present[part] = ({name: run[part][name] for name in sorted(both)} for run in (saved, present))
        if others := differences(saved, present):
            raise ValueError(
                f"Expected the state {str(state.folder)!r} to be of this run, but got another: {'; '.join(others)}. "
                "Choose the same again, or start a new run in another folder."
            )
        progress = Progress(**state.manifest["progress"])
        begun = progress.epoch + (progress.batch > 0 or progress.stage != "train")
        if num_epochs < begun:
            raise ValueError(
                f"Expected num_epochs to be at least {begun}, since the state {str(state.folder)!r} has got that far, "
                f"but got {num_epochs}. num_epochs counts the whole run."
            )

    def _restore(self, state: SavedState) -> None:
        """Take up everything that was saved; called after the callbacks' start, which resets upstream's."""
        common, saved = state.load(COMMON), state.manifest
        self._check_parts(common["components"])
        if saved["scheduler"] != (present := type(self.scheduler).__name__):
            raise ValueError(
                f"Expected the schedule of the state {str(state.folder)!r}, {saved['scheduler']}, but got {present}. "
                "Choose the same again, or start a new run in another folder."
            )
        self._progress, self._num_updates = self._position(saved)
        shape = self._shape()
        same_length = all(saved[name] == shape[name] for name in _LENGTH)
        self.unwrapped_model.load_state_dict(common["model"])
        self._restore_optimizer(common, same_length)
        if self._accelerator.scaler is not None and common["scaler"] is not None:
            self._accelerator.scaler.load_state_dict(common["scaler"])
        for name, component in self.components().items():
            component.load_state_dict(common["components"][name])
        self._restore_rank(state)
        self._restore_history(common["history"])
        for name, callback in self._stateful_callbacks().items():
            if name in common["callbacks"]:
                callback.load_state_dict(common["callbacks"][name])
        self._last_state = state.folder
        self._report(state, same_length)

    def _check_parts(self, saved: Mapping[str, Any]) -> None:
        present = self.components()
        if missing := [name for name in present if name not in saved]:
            raise ValueError(
                f"Expected the state to hold {missing}, but got {sorted(saved)}. Use the same trainer and options."
            )
        if unknown := [name for name in saved if name not in present]:
            raise ValueError(
                f"Expected a trainer with {unknown}, since the state holds them, but got {sorted(present)}. "
                "Use the same trainer and options."
            )

    def _position(self, saved: Mapping[str, Any]) -> tuple[Progress, int]:
        """Return where to go on; with other global batches, after the same images, rounded down to whole updates."""
        progress, num_updates, present = Progress(**saved["progress"]), saved["num_updates"], self._shape()
        before, now = (
            (shape["batch_size"] * shape["num_processes"], shape["accumulation"]) for shape in (saved, present)
        )
        if before != now:
            progress = replace(progress, batch=progress.batch * before[0] // (now[0] * now[1]) * now[1])
        if saved["updates_per_epoch"] != self.updates_per_epoch:  # the same place in an epoch of another length
            within = self.updates_per_epoch if progress.stage != "train" else ceil(progress.batch / now[1])
            num_updates = progress.epoch * self.updates_per_epoch + within
        return progress, num_updates

    def _restore_optimizer(self, common: Mapping[str, Any], same_length: bool) -> None:
        scheduled = False
        if self.scheduler is not None and common["scheduler"] is not None:
            scheduled = self.restore_scheduler(common["scheduler"], same_length)
        rates = [{name: group[name] for name in _SCHEDULED if name in group} for group in self.optimizer.param_groups]
        self.unwrapped_optimizer.load_state_dict(common["optimizer"])
        _put_back_types(self.unwrapped_optimizer, common["optimizer"]["state"])
        if scheduled:
            for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
                group.update(rate)

    def _restore_rank(self, state: SavedState) -> None:
        """Take up what differs between processes; on another number of them the first takes all sums."""
        loss = RunningMean(self.device)
        saved = state.manifest["num_processes"]
        alike = saved == self._accelerator.num_processes
        for rank in [self.rank] if alike else range(saved) if self.rank == 0 else []:
            part = state.load(rank_file(rank))
            loss.merge(part["running_loss"])
            for name, buffers in part["buffers"].items() if alike else ():
                self._modules()[name].load_state_dict(buffers, strict=False)
        self._resumed_loss = loss if self._progress.batch else None

    def _restore_history(self, saved: Mapping[str, Any]) -> None:
        history = self.run_history
        history.reset()
        for name, values in saved["metrics"].items():
            for value in values:
                history.update_metric(name, value)
        history._set_epoch(saved["epoch"])

    def _report(self, state: SavedState, same_length: bool) -> None:
        """Say where the run goes on, and what will not be as in an uninterrupted one."""
        assert self._progress is not None
        saved, present, epochs = state.manifest, self._shape(), self.run_config.num_epochs
        within = f", and {self._progress.batch} batches of the next" if self._progress.batch else ""
        self.print(f"Resumed from {str(state.folder)!r}: {self._progress.epoch} of {epochs} epochs are done{within}.")
        if not same_length:
            self.print(f"The schedule has the length of this run: {_changes(_LENGTH, saved, present)}.")
        if changes := _changes(_CONDITIONS, saved, present):
            warnings.warn(_inexact(changes, saved, present), stacklevel=2)
        versions = {package: version(package) for package in PACKAGES}
        if changes := _changes(PACKAGES, saved["versions"], versions):
            self.print(f"Other versions may round otherwise: {changes}.")


def _put_back_types(optimizer: Any, saved: Mapping[int, Mapping[str, Any]]) -> None:
    """Give each state its saved type: torch's ``load_state_dict`` (2.14) turns it into that of its parameter."""
    states = getattr(optimizer, "_base_optimizer", optimizer).state  # timm's Lookahead keeps its own elsewhere
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for number, kept in saved.items():
        for name, value in kept.items():
            present = states[parameters[number]].get(name)
            if isinstance(value, torch.Tensor) and isinstance(present, torch.Tensor) and present.dtype != value.dtype:
                states[parameters[number]][name] = value.to(present.device)


def _changes(names: tuple[str, ...], saved: Mapping[str, Any], present: Mapping[str, Any]) -> str:
    pairs = {name: (saved.get(name), present.get(name)) for name in names}
    return "; ".join(f"{name} {before} before, {now} now" for name, (before, now) in pairs.items() if before != now)


def _inexact(changes: str, saved: Mapping[str, Any], present: Mapping[str, Any]) -> str:
    batches = [shape["num_processes"] * shape["batch_size"] * shape["accumulation"] for shape in (saved, present)]
    if batches[0] == batches[1]:
        kept = f"Updates and schedule stay those of the global batch of {batches[0]}"
    else:
        kept = f"An update has {batches[1]} images instead of {batches[0]}, at the same place in epoch and schedule"
    order = "" if saved["images"] == present["images"] else ", and so does the order of the images"
    return (
        f"The run goes on under other conditions ({changes}). {kept}; dropout, Mixup and BatchNorm's statistics differ "
        f"from those of an uninterrupted run{order}."
    )
