"""The states of one run: it locks the run folder, finds, checks and restores a state, and saves new ones."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from datetime import UTC, datetime
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from timm_accel.distributed.connections import lost_connection_explained
from timm_accel.distributed.consensus import on_main_process
from timm_accel.distributed.hosts import Hosts
from timm_accel.messages import counted, one_line
from timm_accel.states.background import BackgroundWork, HostMemory
from timm_accel.states.claim import Claim
from timm_accel.states.folder import STATES, write_state
from timm_accel.states.growing import GrowingParts, load_common
from timm_accel.states.saved_state import SavedState
from timm_accel.training import snapshot
from timm_accel.training.data_of_run import DataOfRun, list_on_host
from timm_accel.training.identity import (
    CONDITIONS,
    LENGTH,
    PACKAGES,
    changes,
    describe_inexact_resume,
    describe_run,
    describe_start,
    differences,
    geometry,
    versions,
)
from timm_accel.training.loaders import count_batches
from timm_accel.training.snapshot import Progress

if TYPE_CHECKING:
    from timm_accel.training.trainer import LoopTrainer
    from timm_accel.training.training_run import TrainingRun


class Checkpointer:
    """Claim the run folder while a run lasts, and know the state that it resumes from and the last one.

    Args:
        trainer: The trainer of the run.
        resume_from: ``"auto"``, the path of a state, or None.

    Raises:
        TypeError: `resume_from` is something else.
        ValueError: It is ``"auto"``, but the trainer has no ``run_dir``.
    """

    def __init__(self, trainer: LoopTrainer, resume_from: str | Path | None) -> None:
        if not (resume_from is None or isinstance(resume_from, str | Path)):
            raise TypeError(
                f"Expected resume_from to be 'auto' or the path of a state, but got {resume_from!r}. Pass 'auto'."
            )
        if resume_from == "auto" and trainer.run_dir is None:
            raise ValueError(
                "Expected run_dir to be given beside resume_from='auto', since that folder holds the states, but got "
                "None. Pass run_dir, or the path of a state."
            )
        self.trainer, self.resume_from, self.run_dir = trainer, resume_from, trainer.run_dir
        self.resumed: SavedState | None = None
        self.last_state: Path | None = None
        self.growing = GrowingParts()
        self._before: SavedState | None = None  # what a new state links files of
        self._writing, self._copies = BackgroundWork[SavedState](), HostMemory()  # on the main process
        self.identity: Mapping[str, Any] = {}
        self.data: DataOfRun | None = None

    @property
    def keeps_states(self) -> bool:
        """Whether a callback asked to keep states, so that signals save and a resume writes one."""
        return self.trainer.keep_states is not None

    def belongs_to_run(self, path: Path) -> bool:
        """Whether an existing file or folder belongs to this run, which resumes or began in this folder before."""
        if self.resumed is not None:
            return True
        return self.resume_from is not None and self.run_dir is not None and self.run_dir in path.parents

    @contextmanager
    def claimed(self, train_dataset: Any, eval_dataset: Any, counts: Mapping[str, Any]) -> Iterator[None]:
        """Compare the hosts, lock the run folder, and find the state to resume from, before any work."""
        trainer, hosts = self.trainer, Hosts(self.trainer._accelerator)
        claim, given = Claim(self.run_dir, self.resume_from, trainer.print), {"evaluates": eval_dataset is not None}
        try:
            with lost_connection_explained():
                model, optimizer = trainer.get_unwrapped_model(), trainer.current_run().unwrapped_optimizer
                self.identity = describe_run(model, optimizer, train_dataset, trainer.seed, trainer.recipe)
                hosts.compare(describe_start(trainer, self.identity, {**counts, **given}, self.resume_from))
                self.resumed = claim.find(trainer._accelerator, on_hosts=hosts.count > 1)
                if self.resumed is not None:
                    self._check_resumed(self.resumed, counts["num_epochs"])
                    for group in optimizer.param_groups:  # an earlier run of this trainer has changed them
                        group["lr"] = group.get("initial_lr", group["lr"])
                self._look_at_data(hosts, {"training": train_dataset, "evaluation": eval_dataset}, claim.shared_paths())
                claim.remove_token()
                yield
        except BaseException as error:
            self._end_writing()
            if self.last_state is not None and isinstance(error, Exception):
                error.add_note(f"The last state is {str(self.last_state)!r}. Resume from it with resume_from='auto'.")
            raise
        finally:
            claim.release()

    def _look_at_data(self, hosts: Hosts, datasets: Mapping[str, Any], paths: Sequence[Path]) -> None:
        on_hosts, check, accelerator = hosts.count > 1, self.trainer.data_identity, self.trainer._accelerator
        if not (self.keeps_states or self.resumed is not None or on_hosts):
            return
        own = list_on_host(datasets, check) if on_hosts and hosts.place.is_first_of_other_host else {}
        data = self.data = on_main_process(accelerator, lambda: DataOfRun(datasets, check, self.resumed, on_hosts))
        hosts.check(paths, data.differs_from(own), lambda: data.difference(own), self.trainer.print)

    def _check_resumed(self, state: SavedState, num_epochs: int) -> None:
        saved, current = dict(state.manifest["run"]), dict(self.identity)
        for part in ("optimizer", "recipe"):  # other versions of torch and timm_accel know other options
            both = saved[part].keys() & current[part].keys()
            saved[part], current[part] = ({name: run[part][name] for name in sorted(both)} for run in (saved, current))
        if others := differences(saved, current):
            raise ValueError(
                f"Expected the state {str(state.folder)!r} to be of this run, but got one of another run: "
                f"{'; '.join(others)}. Pass the same options again, or start a new run in another folder."
            )
        progress = Progress(**state.manifest["progress"])
        min_epochs = progress.epoch + (progress.batch > 0 or progress.stage != "train")
        if num_epochs < min_epochs:
            raise ValueError(
                f"Expected num_epochs to be at least {min_epochs}, since the state {str(state.folder)!r} has reached "
                f"that epoch, but got {num_epochs}. num_epochs counts the whole run."
            )

    def begin(self) -> None:
        """Mark the run folder as that of a resumable run, before anything else is written there."""
        if self.keeps_states:
            assert self.run_dir is not None
            states = self.run_dir / STATES
            on_main_process(self.trainer._accelerator, lambda: self._begin(states))

    def _begin(self, states: Path) -> None:
        states.mkdir(exist_ok=True)
        assert self.data is not None
        try:
            self.data.write(states)
        except OSError as error:  # the run goes without: a later resume cannot name the images that changed
            self.trainer.print(f"The lists of the images cannot be written beside the states ({one_line(error)}).")

    def save(self, run: TrainingRun, milestone: bool = False, stopped: str | None = None, waits: bool = False) -> bool:
        """Copy a state, write it in the background, and return False if it is known to fail. Collective.

        Args:
            run: The run.
            milestone: Whether to keep the state forever, whatever ``keep_states`` is.
            stopped: Why the run ended early; None if it did not.
            waits: Whether to return only when the state is complete, or has failed.
        """
        self.settle(run)
        ranks = run.gather(snapshot.take_rank(run))
        try:
            on_main_process(run.accelerator, lambda: self._begin_writing(run, ranks, milestone, stopped))
        except ArithmeticError as error:
            self._report_unwritten(error)
            return False
        return not waits or self.settle(run)

    def settle(self, run: TrainingRun) -> bool:
        """Wait until the last state is complete, or report that it failed and return False. Collective."""
        try:
            self.last_state = on_main_process(run.accelerator, self._written)
        except OSError as error:
            self._report_unwritten(error)
            return False
        return True

    def has_outcome(self) -> bool:
        """Whether the state that was written in the background is complete or has failed, so that `settle` is quick."""
        return self._writing.has_ended()

    def _written(self) -> Path | None:
        """Wait for the state that is being written, and return the last one."""
        if (state := self._writing.result()) is not None:
            self._before, self.last_state = state, state.folder
        return self.last_state

    def _end_writing(self) -> None:
        """Wait for the state that is being written, where an error ends the run on this process."""
        try:
            self._written()
        except Exception as error:
            self._report_unwritten(error)

    def _report_unwritten(self, error: Exception) -> None:
        last = "none was written yet" if self.last_state is None else f"the last one is {str(self.last_state)!r}"
        self.trainer.print(
            f"Expected a state to be written to {str(self.run_dir)!r}, but it was not ({error}); {last}. "
            "Free disk space, or fix the folder; the run tries again when the next state is due."
        )

    def _begin_writing(
        self, run: TrainingRun, ranks: list[dict[str, Any]], milestone: bool, stopped: str | None
    ) -> None:
        assert self.run_dir is not None
        if not all(part["finite"] for part in ranks):
            raise ArithmeticError("the loss is not finite, and this state would replace older ones")
        about = {
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "versions": versions(),
            "milestone": milestone,
            "scheduler": type(self.trainer.scheduler).__name__,
            "stopped": stopped,
            "progress": asdict(run.progress),
            "num_updates": run.num_updates,
            **geometry(run),
            "run": self.identity,
            "data": {} if self.data is None else self.data.about,
        }
        name = f"epoch_{run.progress.epoch}_batch_{run.progress.batch}"
        files, constant = snapshot.take(run, ranks, self.growing)
        root, copies = self.run_dir / STATES, self._copies.copy(files, "the state")
        before, keep = self._before, self.trainer.keep_states
        self._writing.begin(lambda: write_state(root, name, copies, about, constant, before, keep))

    def resumes_at(self, run: TrainingRun) -> str:
        """Return in words where the run resumes, before anything is restored."""
        assert self.resumed is not None
        progress, _ = _resume_position(self.resumed.manifest, geometry(run))
        epochs = self.trainer.run_config.num_epochs
        if progress.epoch >= epochs:
            return "already finished"
        if _is_trained(run, progress):
            return f"after the last batch of epoch {progress.epoch + 1} of {epochs}"
        return f"at epoch {progress.epoch + 1} of {epochs}, batch {progress.batch + 1}"

    def restore(self, run: TrainingRun) -> None:
        """Restore everything in the state; called after the event that resets upstream's callbacks."""
        assert self.resumed is not None
        state, saved, current = self.resumed, self.resumed.manifest, geometry(run)
        if saved["scheduler"] != (scheduler := type(self.trainer.scheduler).__name__):
            raise ValueError(
                f"Expected the schedule of the state {str(state.folder)!r}, {saved['scheduler']}, but got {scheduler}. "
                "Choose the same schedule again, or start a new run in another folder."
            )
        same_length = all(saved[name] == current[name] for name in LENGTH)
        run.progress, run.num_updates = _resume_position(saved, current)
        snapshot.restore_shared(self.trainer, load_common(state, self.growing), same_length)
        self._before = state
        loss = snapshot.restore_rank(run, state)
        run.resumed_loss = loss if run.progress.batch else None
        self.last_state = state.folder
        self._report(run, current, same_length)
        run.notify("on_resumed", state=state.folder)
        if self.keeps_states and self.resume_from != "auto":
            self.save(run, stopped=saved["stopped"])  # "auto" now resumes from here

    def _report(self, run: TrainingRun, current: Mapping[str, Any], same_length: bool) -> None:
        """Report where the run resumes, and what will differ from an uninterrupted run."""
        assert self.resumed is not None
        report, saved, progress = self.trainer.print, self.resumed.manifest, run.progress
        within = f", and {counted(progress.batch, 'batch')} of the next" if progress.batch else ""
        if _is_trained(run, progress):
            within = ", and all batches of the next"
        done = f"{progress.epoch} of {current['num_epochs']} epochs are done{within}"
        report(f"Resumed from {str(self.resumed.folder)!r}: {done}.")
        for changed in () if self.data is None else self.data.changes.values():
            report(f"{changed.sentence} The run continues with them.")
        if not same_length:
            report(f"The schedule has the length of this run: {changes(LENGTH, saved, current)}.")
        if others := changes(CONDITIONS, saved, current):
            warnings.warn(describe_inexact_resume(others, saved, current), stacklevel=2)
        if others := changes(PACKAGES, saved["versions"], versions()):
            report(f"Other versions may round differently: {others}.")


def _is_trained(run: TrainingRun, progress: Progress) -> bool:
    """Return whether no batch of the current epoch is left to train on: its evaluation, or its end, comes next."""
    return progress.stage != "train" or progress.batch >= max(1, count_batches(run.train_dataloader))


def _resume_position(saved: Mapping[str, Any], current: Mapping[str, Any]) -> tuple[Progress, int]:
    """Return where to resume: with another global batch size, after the same images, rounded down to full updates."""
    progress, num_updates = Progress(**saved["progress"]), saved["num_updates"]
    before, now = (
        (geometry["batch_size"] * geometry["num_processes"], geometry["accumulation"]) for geometry in (saved, current)
    )
    if before != now:
        progress = replace(progress, batch=progress.batch * before[0] // (now[0] * now[1]) * now[1])
    updates_per_epoch = current["updates_per_epoch"]
    if saved["updates_per_epoch"] != updates_per_epoch:  # the same place in an epoch of another length
        within = updates_per_epoch if progress.stage != "train" else ceil(progress.batch / now[1])
        num_updates = progress.epoch * updates_per_epoch + within
    return progress, num_updates
