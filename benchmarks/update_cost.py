"""Count what one training update costs each contender, in numbers that no other program disturbs.

    python -m benchmarks update_cost --models test_resnet resnet50

All train with AdamW and a cosine schedule that steps per update; with all parts also with timm's Mixup, gradient
clipping and EMA weights (`contenders`). A count is of one update: two lengths of run are compared, so that the start
and the end of a run drop out. An allocation is one of torch's allocator, whether of a tensor or within an operator.
"""

import argparse
import random
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.contenders import Loop, contender, names
from benchmarks.contenders.job import Job
from benchmarks.quiet import quiet
from benchmarks.tables import Table

DISK = frozenset({"stat", "lstat", "open", "listdir", "scandir", "access", "readlink", "mkdir", "rename", "unlink"})


class PythonCalls:
    """Counts calls of Python functions, and calls that reach the disk, within its block."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def __enter__(self) -> "PythonCalls":
        sys.setprofile(self._note)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)

    def _note(self, frame: Any, event: str, function: Any) -> None:
        if event == "call":
            self.counts["Python calls"] += 1
        elif event == "c_call" and function.__name__ in DISK and function.__module__ in ("posix", "nt", "io", "_io"):
            self.counts["file-system calls"] += 1


class Operators(TorchDispatchMode):
    """Counts torch's operators, and those that read a tensor back to the host."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counts["operators"] += 1
        self.counts["host reads"] += function is torch.ops.aten._local_scalar_dense.default
        return function(*args, **(kwargs or {}))


class Allocations:
    """Counts allocations of memory on the CPU by torch."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._profile = profile(activities=[ProfilerActivity.CPU], profile_memory=True)

    def __enter__(self) -> "Allocations":
        self._profile.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._profile.__exit__(None, None, None)
        events = self._profile.profiler.kineto_results.events()
        self.counts["allocations"] += sum(each.name() == "[memory]" and each.nbytes() > 0 for each in events)


class _Counter(AbstractContextManager, Protocol):
    counts: Counter[str]


def counts_of(
    run: Loop,
    name: str,
    all_parts: bool,
    short: int = 4,
    long: int = 12,
    counters: Sequence[Callable[[], _Counter]] = (PythonCalls, Operators),
) -> Counter[str]:
    """Return the counts of one update, the same in every call: the random numbers are seeded."""
    found = []
    for num_updates in (short, short, long):  # the first fills caches
        counts: Counter[str] = Counter()
        for make in counters:
            random.seed(0)
            np.random.seed(0)
            torch.manual_seed(0)
            with quiet(), make() as counter:
                run(Job(name, num_updates, all_parts))
            counts.update(counter.counts)
        found.append(counts)
    return Counter({kind: (found[-1][kind] - found[-2][kind]) / (long - short) for kind in found[-1]})


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    parser.add_argument("--models", nargs="+", default=["test_resnet", "resnet50"], help="names of timm's models")


def main(arguments: argparse.Namespace) -> list[Table]:
    """Return a row for each model, contender and set of parts."""
    torch.set_num_threads(1)
    rows, kinds = [], ["Python calls", "operators", "allocations", "host reads", "file-system calls"]
    for name in arguments.models:
        for all_parts in (False, True):
            for title in names(all_parts):
                counts = counts_of(contender(title), name, all_parts, counters=(PythonCalls, Operators, Allocations))
                rows.append([name, "all" if all_parts else "few", title, *(f"{counts[kind]:.1f}" for kind in kinds)])
    return [Table("counts of an update", ["model", "parts", "loop", *kinds], rows)]
