"""The journal of what trackers were given: a line of JSON in the run folder for each point, so that none comes twice.

A point is appended before any tracker gets it. A resumed run computes the same points again: it skips those in the
journal, and gives a tracker the ones that it lacks.
"""

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from timm_accel.atomic import atomic_write
from timm_accel.callbacks.optional_files import OptionalFile

JOURNAL = "trackers.jsonl"


@dataclass(frozen=True)
class Point:
    """What is logged at one moment of the run.

    Args:
        epoch: The epochs that are complete.
        step: The optimizer updates so far, the step of all trackers.
        order: What comes first at the same step: 0 for an update, 1 for an epoch, 2 for the run.
        values: Numbers by name.
    """

    epoch: int
    step: int
    order: int
    values: dict[str, float]

    @property
    def moment(self) -> tuple[int, int, int]:
        """What points are sorted by."""
        return self.epoch, self.step, self.order


class Journal:
    """The points of a run, and in its first line what the run is called in the trackers.

    A file that cannot be written is reported, and its lines are written later.

    Args:
        path: The file. Its complete lines are read; one that a killed process left incomplete is dropped.
        report: Called with one line about the first failed write.
    """

    def __init__(self, path: Path, report: Callable[[str], object]) -> None:
        self.path, self._report, self._file = path, report, OptionalFile()
        self.about: dict[str, Any] = {}
        self.points: list[Point] = []
        self.failed: dict[str, int] = {}  # the step from which a tracker lacks points
        self._unwritten, self._size = b"", 0
        self._read()

    def _read(self) -> None:
        try:
            lines = self.path.read_bytes().split(b"\n")[:-1]
        except FileNotFoundError:
            return
        for line in lines:
            try:
                found = json.loads(line)
                if "run" in found:
                    self.about = found["run"]
                elif "failed" in found:
                    self.failed.setdefault(found["failed"], found["step"])
                else:
                    self.points.append(Point(**found))
            except (ValueError, TypeError, KeyError):  # a power cut may leave anything
                break

    def begin(self, about: dict[str, Any]) -> None:
        """Begin another run in the trackers."""
        self.points, self.failed = [], {}
        self.rewrite(about)

    def rewrite(self, about: dict[str, Any]) -> None:
        """Write the complete file."""
        self.about, self._unwritten = about, b""
        content = _lines([{"run": about}, *self._failures(), *map(asdict, self.points)])
        with atomic_write(self.path) as unfinished:
            unfinished.write_bytes(content)
        self._size = len(content)

    def _failures(self) -> list[dict[str, Any]]:
        return [{"failed": name, "step": step} for name, step in self.failed.items()]

    def has(self, moment: tuple[int, int, int]) -> bool:
        """Whether the points of the run up to a moment are there."""
        return bool(self.points) and moment <= self.points[-1].moment

    def add(self, point: Point) -> None:
        """Append a point."""
        self.points.append(point)
        self._append(asdict(point))

    def note_failure(self, name: str, step: int) -> None:
        """Append that a tracker lacks all points from a step on."""
        self.failed[name] = step
        self._append({"failed": name, "step": step})

    def _append(self, entry: dict[str, Any]) -> None:
        self._unwritten += _lines([entry])
        with self._file.writing(self._report), open(self.path, "r+b", buffering=0) as file:
            file.truncate(self._size)  # a part of a line, from a full disk
            file.seek(self._size)
            size = self._size + len(self._unwritten)
            while self._unwritten:
                self._unwritten = self._unwritten[file.write(self._unwritten) :]
            self._size = size


def _lines(entries: Iterable[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(entry).encode() + b"\n" for entry in entries)
