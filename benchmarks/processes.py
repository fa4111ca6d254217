"""Run a piece of Python in a new process, and tell its times: of the first update, of the last one, and of its end.

Times of the wall and of the processor are from the start of the process; a child's time counts if it was waited for.
"""

import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.pairs import Pairs

ROOT = Path(__file__).parents[1]
WATCH = """
import os, time
def note(*_):
    with open({path!r}, "a") as file:
        file.write(f"{{time.time()}} {{sum(os.times()[:2])}}\\n")
    if {stops}:
        os._exit(0)
def watch():  # after the imports of the contender, so that torch is not imported for it
    from torch.optim.optimizer import register_optimizer_step_post_hook
    register_optimizer_step_post_hook(note)
"""


@dataclass(frozen=True)
class Spent:
    """Seconds from the start of a process: to its end, of its processor, and to the first and last update's end."""

    wall: float
    processor: float
    to_first: float = 0.0
    processor_to_first: float = 0.0
    to_last: float = 0.0

    @property
    def after_last(self) -> float:
        """Seconds from the last update to the end."""
        return self.wall - self.to_last


def spend(code: str, *, stops: bool = False, threads: int = 1) -> Spent:
    """Run code that calls ``watch()`` once torch may be imported, or never.

    Args:
        code: The code.
        stops: Whether the process ends at once after the first update.
        threads: Those of torch.
    """
    variables = os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(ROOT), "ACCELERATE_USE_CPU": "true"}
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile("w+") as printed:
        path = Path(folder) / "updates"
        command = [sys.executable, "-W", "ignore", "-c", WATCH.format(path=str(path), stops=stops) + code]
        began = time.time()
        process = subprocess.Popen(command, env=variables, cwd=folder, stdout=printed, stderr=printed)
        _, status, usage = os.wait4(process.pid, 0)
        wall, process.returncode = time.time() - began, os.waitstatus_to_exitcode(status)
        if process.returncode != 0:
            printed.seek(0)
            raise RuntimeError(printed.read())
        times = [[*map(float, line.split())] for line in path.read_text().splitlines()] if path.exists() else []
    spent = Spent(wall, usage.ru_utime + usage.ru_stime)
    if not times:
        return spent
    return Spent(spent.wall, spent.processor, times[0][0] - began, times[0][1], times[-1][0] - began)


def pairs_of(spent: dict[str, list[Spent]], what: str) -> Pairs:
    """Return one of the times of all ways, without the first round, which has warmed up."""
    return Pairs({way: [getattr(each, what) for each in runs[1:]] for way, runs in spent.items()})
