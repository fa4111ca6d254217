"""Kill a run by SIGKILL at random moments, and start it again until it ends.

Used by `test_kill.py` and by `benchmarks/kill_test.py`.
"""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NamedTuple

import psutil
from conftest import write_images
from forked import Program
from ranks import on_ranks

from timm_accel.models import CONFIG_FILE, WEIGHTS_FILE
from timm_accel.states.folder import STATES, UNFINISHED, state_folders
from timm_accel.states.run_dir import LOCK

WORKER = Path(__file__).parent / "kill_worker.py"
BATCH_SIZE = 4  # of all processes together
UPDATES_PER_EPOCH = 6
PATIENCE = (180.0, 5.0)  # seconds for any one thing to happen: of all runs, and for each epoch
MISSES = 10  # of what was aimed at: it may be over before the signal arrives


@dataclass(frozen=True)
class Run:
    """How one run is started, each time alike.

    Args:
        folder: Holds the run folder, what its processes print, and the number of their updates.
        data: The images.
        num_processes: 1, or 2 as torchrun starts them, on the CPU.
        epochs: The epochs, of `UPDATES_PER_EPOCH` each.
        every_n_updates: Updates between two states.
        seed: The trainer's.
        on_cpu: Whether it trains on the CPU where there is a GPU too.
        part: A further part with its own draws or state, one of ``kill_worker.PARTS``.
    """

    folder: Path
    data: Path
    num_processes: int = 1
    epochs: int = 6
    every_n_updates: int = 2
    seed: int = 0
    on_cpu: bool = True
    part: str = "none"

    @property
    def run_dir(self) -> Path:
        return self.folder / "run"

    @property
    def states(self) -> Path:
        return self.run_dir / STATES

    @property
    def patience(self) -> float:
        return PATIENCE[0] + PATIENCE[1] * self.epochs

    def command(self, resume: bool) -> list[str]:
        """Return what follows ``python``."""
        options = {
            "epochs": self.epochs,
            "every_n_updates": self.every_n_updates,
            "batch_size": BATCH_SIZE // self.num_processes,
            "seed": self.seed,
            "part": self.part,
        }
        return [
            *map(str, (WORKER, self.run_dir, self.data, self.folder / "updates")),
            *(["--resume"] if resume else []),
            *(f"--{name}={value}" for name, value in options.items()),
        ]

    def start(self, resume: bool, log: IO[bytes]) -> Program | subprocess.Popen[bytes]:
        """Start it in a new session; on a GPU in a process that is not forked."""
        env = os.environ | {"ACCELERATE_USE_CPU": str(self.on_cpu), "OMP_NUM_THREADS": "1"}
        if self.on_cpu:
            # two processes beside one GPU fail otherwise (torch 2.11's barrier, as accelerate 1.15 calls it)
            env["CUDA_VISIBLE_DEVICES"] = ""
            arguments = self.command(resume)
            if self.num_processes > 1:
                arguments = on_ranks([self.num_processes], *arguments)
            return Program(arguments, env=env, stdout=log, stderr=log)
        command = [sys.executable, *self.command(resume)]
        return subprocess.Popen(command, env=env, stdout=log, stderr=log, start_new_session=True)

    def finish(self, resume: bool = True) -> None:
        """Start it and wait for its end."""
        with Launch(self, resume) as launch:
            launch.until(lambda: False)

    def half_written(self) -> list[Path]:
        """Return the states that are neither whole nor gone, and what lies beside the files of the best weights."""
        best = [path for path in self.run_dir.glob("best*/*") if path.name not in (WEIGHTS_FILE, CONFIG_FILE)]
        return [*self.states.glob(f"*{UNFINISHED}"), *best]

    @property
    def history(self) -> Path:
        return self.run_dir / "history.csv"

    def history_size(self) -> int:
        """Return its bytes, 0 without one."""
        return self.history.stat().st_size if self.history.exists() else 0

    def rows(self) -> list[str]:
        """Return the first column of the history."""
        return [line.split(",")[0] for line in self.history.read_text().splitlines()]


class Launch:
    """The processes of one start of a run, in separate sessions; at the end those that still run are killed."""

    def __init__(self, run: Run, resume: bool = True) -> None:
        self.run = run
        self.log, self._updates = run.folder / "log.txt", run.folder / "updates"
        run.folder.mkdir(parents=True, exist_ok=True)
        self._updates.unlink(missing_ok=True)
        self._lock = self._read_lock()
        # kept open, so that nothing new gets the number of what an earlier kill has left
        self._old = {os.open(path, os.O_RDONLY): path.stat().st_ino for path in run.half_written()}
        with open(self.log, "ab") as log:
            self.process = run.start(resume, log)

    def __enter__(self) -> "Launch":
        return self

    def __exit__(self, *error: object) -> None:
        if self.process.poll() is None:
            self.kill()
        for descriptor in self._old:
            os.close(descriptor)

    def updates(self) -> int:
        """Return the updates since the start."""
        return self._updates.stat().st_size if self._updates.exists() else 0

    def locked(self) -> bool:
        """Whether it has begun to train: to create its loaders, and to load a state."""
        return self._read_lock() not in ("", self._lock)

    def writing(self) -> list[Path]:
        """Return what is half written by it, not by an earlier start."""
        found = []
        for path in self.run.half_written():
            with suppress(FileNotFoundError):
                if path.stat().st_ino not in self._old.values():
                    found.append(path)
        return found

    def writing_state(self) -> bool:
        """Whether it is writing, or deleting, a state."""
        return any(path.parent == self.run.states for path in self.writing())

    def until(self, condition: Callable[[], bool]) -> bool:
        """Wait until it holds, looking each millisecond; return False when the run ended first, as it should.

        Raises:
            RuntimeError: The run failed.
            TimeoutError: Neither happened.
        """
        last = time.monotonic() + self.run.patience
        while not condition():
            if self.process.poll() is not None:
                if self.process.returncode == 0:
                    return False
                raise RuntimeError(f"exit code {self.process.returncode}\n{self._tail()}")
            if time.monotonic() > last:
                raise TimeoutError(f"{self.run.patience} s without an end\n{self._tail()}")
            time.sleep(0.001)
        return True

    def kill(self) -> None:
        """End all processes by SIGKILL, each group at once: the launcher's, and those of torchrun's processes."""
        for group in [self.process.pid, *(process.pid for process in self._launched())]:
            with suppress(ProcessLookupError):
                os.killpg(group, signal.SIGKILL)
        self.process.wait(self.run.patience)

    def kill_one(self, draw: random.Random) -> None:
        """End one process that trains by SIGKILL, and wait for its launcher; its loader workers live on for seconds."""
        draw.choice(self._launched() or [psutil.Process(self.process.pid)]).kill()
        with suppress(RuntimeError):
            self.until(lambda: False)

    def _launched(self) -> list[psutil.Process]:
        """Return the processes that torchrun has started, each the head of a group."""
        with suppress(psutil.NoSuchProcess, ProcessLookupError):
            children = psutil.Process(self.process.pid).children() if self.run.num_processes > 1 else []
            return [child for child in children if os.getpgid(child.pid) == child.pid]
        return []

    def _read_lock(self) -> str:
        with suppress(FileNotFoundError):
            return (self.run.run_dir / LOCK).read_text()
        return ""

    def _tail(self) -> str:
        return self.log.read_text(errors="replace")[-6000:]


class Kill(NamedTuple):
    """Where a run was killed.

    Args:
        kind: What was meant, one of `MOMENTS`.
        updates: Updates since its start.
        newest: The newest complete state that it left.
        left: What it was about: ``inside a write`` or ``inside a deletion`` of a state, ``inside the best weights``,
            or nothing.
    """

    kind: str
    updates: int
    newest: str
    left: str

    @property
    def inside_a_write(self) -> bool:
        return self.left == "inside a write"


def after_an_update(launch: Launch, draw: random.Random) -> bool:
    """Wait for one to three updates and a random time more."""
    updates = draw.randint(1, 3)
    reached = launch.until(lambda: launch.updates() >= updates)
    time.sleep(draw.uniform(0, 0.1))
    return reached


def inside_a_write(launch: Launch, draw: random.Random) -> bool:
    """Wait for a state to be begun, after one to three updates."""
    updates = draw.randint(1, 3)
    return launch.until(lambda: launch.updates() >= updates and launch.writing_state())


def inside_the_best_weights(launch: Launch, draw: random.Random) -> bool:
    """Wait for the best weights of model or average to be begun."""
    return launch.until(lambda: bool(launch.writing()) and not launch.writing_state())


def after_a_row(launch: Launch, draw: random.Random) -> bool:
    """Wait for a row of the history, not the first: it is there before the state that counts its epoch as done."""
    reached = launch.until(lambda: launch.updates() >= 1 and launch.run.history_size() > 0)
    before = launch.run.history_size()
    return reached and launch.until(lambda: launch.run.history_size() > before)


def inside_a_start(launch: Launch, draw: random.Random) -> bool:
    """Wait for the run folder to be taken, and a random time more."""
    reached = launch.until(launch.locked)
    time.sleep(draw.uniform(0, 0.5))
    return reached


MOMENTS = {
    "update": after_an_update,
    "alone": after_an_update,
    "write": inside_a_write,
    "best": inside_the_best_weights,
    "row": after_a_row,
    "start": inside_a_start,
}
AIMS = {"write": "inside a write", "best": "inside the best weights"}


def kill_once(run: Run, kind: str, draw: random.Random) -> Kill | None:
    """Start the run and kill it at a moment of that kind; ``alone``: one process only. None when it ended before."""
    with Launch(run) as launch:
        if not MOMENTS[kind](launch, draw):
            return None
        if kind == "alone":
            launch.kill_one(draw)
        else:
            launch.kill()
        if launch.process.returncode == 0:
            return None
        newest = next((path.name for path in state_folders(run.states)), "")
        return Kill(kind, launch.updates(), newest, ", ".join(_where(run, path, newest) for path in launch.writing()))


def _where(run: Run, path: Path, newest: str) -> str:
    if path.parent != run.states:
        return "inside the best weights"
    return "inside a write" if path.name > newest else "inside a deletion"


def kill_and_resume(
    run: Run, kinds: Iterable[str], draw: random.Random, report: Callable[[Kill], None] = lambda kill: None
) -> list[Kill]:
    """Kill the run once for each kind, then let it end. A kill that missed what it aimed at is tried again.

    When the run ends early there are fewer kills.
    """
    kills: list[Kill] = []
    misses = 0
    for kind in kinds:
        while kill := kill_once(run, kind, draw):
            kills.append(kill)
            report(kill)
            if kill.left == AIMS.get(kind, kill.left) or misses == MISSES:
                break
            misses += 1
        else:
            return kills
    run.finish()
    return kills


def write_data(root: Path) -> Path:
    """Write 44 images to train on, 11 batches of 4, so that the last update of an epoch has one batch alone; and 10."""
    write_images(root / "train", {"cat": 15, "dog": 15, "owl": 14}, size=40)
    write_images(root / "val", {"cat": 4, "dog": 3, "owl": 3}, size=40)
    return root
