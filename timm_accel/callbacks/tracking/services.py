"""The trackers that accelerate knows: their names, their packages, and how a run continues in each."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker, get_available_trackers
from accelerate.utils import LoggerType

from timm_accel.callbacks.tracking.journal import Journal, Point
from timm_accel.messages import nearest, one_line

PROJECT = "timm_accel"
_OPTIONS_ONCE = ("mlflow", "tensorboard")  # others forget or replace them when a run is resumed
_KEEP_THE_FIRST = ("swanlab", "wandb")  # they ignore a step that they have


def check_trackers(trackers: str | Sequence[str]) -> tuple[str, ...]:
    """Return the names of trackers, each once.

    Raises:
        ValueError: There is none, or one of them is unknown.
    """
    names = tuple(dict.fromkeys([trackers] if isinstance(trackers, str) else trackers))
    if not names:
        raise ValueError(f"Expected trackers to hold a name, but got none. {nearest('', LOGGER_TYPE_TO_CLASS)}")
    for name in names:
        if name not in LOGGER_TYPE_TO_CLASS:
            raise ValueError(
                f"Expected trackers to be names that accelerate knows, but got {name!r}. "
                f"{nearest(name, LOGGER_TYPE_TO_CLASS)}"
            )
    return names


def require_packages(names: Iterable[str]) -> None:
    """Raise if the package of a tracker is missing.

    Raises:
        ModuleNotFoundError: It is; the message names the command that installs it.
    """
    available = {str(each) for each in get_available_trackers()}
    for name in names:
        if name in LoggerType.list() and name not in available:
            package = name.replace("_", "-")
            raise ModuleNotFoundError(
                f"Expected the package of the tracker {name!r} to be installed, but it is missing. "
                f"Run pip install {package}.",
                name=name,
            )


class Service:
    """One tracker of a run.

    Args:
        name: Its name.
        journal: The journal of the run.
        report: Called with one line when it fails.
    """

    def __init__(self, name: str, journal: Journal, report: Callable[[str], object]) -> None:
        self.name, self._journal, self._report = name, journal, report
        self._tracker: GeneralTracker | None = None

    def start(self, run_dir: Path, project: str | None, given: Mapping[str, Any], config: Mapping[str, Any]) -> None:
        """Start the tracker, in the run that the journal names, and give it what it lacks.

        Args:
            run_dir: The run folder.
            project: The project.
            given: The user's arguments of the tracker.
            config: The options of the run.

        Raises:
            RuntimeError: It does not start.
        """
        kind, failed_at = LOGGER_TYPE_TO_CLASS[self.name], self._journal.failed.get(self.name)
        folder = run_dir / f"tensorboard{self._journal.about['suffix']}"
        since = self._since(folder, failed_at)
        place = [run_dir] if kind.requires_logging_directory else []
        where = folder.name if self.name == "tensorboard" else project or PROJECT
        try:
            tracker = kind(where, *place, **{**self._arguments(run_dir, since), **given})
            tracker.start()
            self._tracker = tracker
            if not (self._journal.points and self.name in _OPTIONS_ONCE):
                self._store(config)
            held = self._held(where)
        except Exception as error:  # each library raises its own
            raise RuntimeError(
                f"Expected the tracker {self.name!r} to start, but got {type(error).__name__} "
                f"({one_line(error).rstrip('.')}). Fix its settings, or leave it out of trackers."
            ) from error
        self._journal.failed.pop(self.name, None)
        for point in self._journal.points:
            if point.step >= since and not any((point.step, name) in held for name in point.values):
                self.log(point)

    def _since(self, folder: Path, failed_at: int | None) -> float:
        """Return the step from which the tracker may lack points."""
        last = self._journal.points[-1].step if self._journal.points else 0
        if self.name == "tensorboard" and not any(folder.glob("events.*")):
            return 0
        if self.name in ("tensorboard", *_KEEP_THE_FIRST):
            return last if failed_at is None else failed_at
        if self.name == "trackio":
            return 0  # `_held` tells
        return float("inf") if failed_at is None else failed_at

    def _arguments(self, run_dir: Path, since: float) -> dict[str, Any]:
        about = self._journal.about
        match self.name:
            case "tensorboard":
                return {"purge_step": int(since)}
            case "wandb":
                return {"id": about["name"], "name": about["name"], "resume": "allow", "dir": str(run_dir)}
            case "trackio":
                return {"name": about["name"], "resume": "allow"}
            case "mlflow":
                return {"run_name": about["name"], "run_id": about["ids"].get("mlflow")}
        return {}

    @property
    def run_id(self) -> str | None:
        """The name that the tracker chose for the run, if a resume needs it."""
        return self._tracker.tracker.info.run_id if self.name == "mlflow" and self._tracker is not None else None

    def _store(self, config: Mapping[str, Any]) -> None:
        assert self._tracker is not None
        if self.name == "tensorboard":  # accelerate 1.15 stores them as two further runs
            rows = [f"| {name} | {json.dumps(value)} |" for name, value in config.items()]
            self._tracker.log({"options": "\n".join(["| option | value |", "|---|---|", *rows])}, step=0)
        else:
            self._tracker.store_init_configuration({name: _scalar(value) for name, value in config.items()})

    def _held(self, project: str) -> set[tuple[int, str]]:
        """Return the steps and names that trackio has: it writes half a second late, so a killed run loses some."""
        if self.name != "trackio" or self._tracker is None or self._tracker.tracker.url is not None:
            return set()
        from trackio.sqlite_storage import SQLiteStorage

        rows = SQLiteStorage.get_logs(project, self._tracker.tracker.name)
        return {(row["step"], name) for row in rows for name in row}

    def log(self, point: Point) -> None:
        """Log a point. After a failure, which is reported, nothing is logged any more."""
        if self.name in self._journal.failed or self._tracker is None:
            return
        try:
            self._tracker.log(point.values, step=point.step)
        except Exception as error:  # each library raises its own
            self._journal.note_failure(self.name, point.step)
            self._report(
                f"The tracker {self.name!r} failed ({one_line(error)}). The run continues without it; if the run is "
                "resumed, the tracker gets what it lacks."
            )

    def close(self) -> None:
        """End the tracker's run."""
        if self._tracker is None:
            return
        try:
            self._tracker.finish()
        except Exception as error:
            if self.name not in self._journal.failed:
                self._report(f"The tracker {self.name!r} could not be closed ({one_line(error)}).")


def _scalar(value: Any) -> Any:
    return value if value is None or isinstance(value, bool | int | float | str) else json.dumps(value, default=str)
