"""Ranks of one launch, forked from a process that has imported the worker once for all of them.

A worker is a file with a function `main`, which finds its arguments in ``sys.argv``.
"""

import faulthandler
import gc
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from forked import run

ON_CPU = {"ACCELERATE_USE_CPU": "true"}
SECONDS = 180  # for a launch


def on_ranks(counts: Sequence[int], worker: Path | str, *words: Any) -> list[str]:
    """Return the arguments of a program that runs a worker on each number of ranks in turn, as torchrun does.

    Of 0 ranks it is a plain process, which must be the last.
    """
    return [__file__, ",".join(map(str, counts)), str(worker), *map(str, words)]


def launch(worker: Path, counts: Sequence[int], folder: Path, *more: str, variables: dict[str, str] = ON_CPU) -> Path:
    """Run a worker on each number of ranks in turn; return the folder it was given."""
    env = {name: value for name, value in os.environ.items() if name not in ON_CPU}
    env |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"} | variables
    result = run(on_ranks(counts, worker, folder, *more), env=env, timeout=SECONDS * len(counts))
    assert result.returncode == 0, result.stderr[-4000:]
    return folder


def _rank(main: Callable[[], None]) -> None:
    os.setsid()  # as torchrun starts its processes
    faulthandler.dump_traceback_later(SECONDS - 30, exit=True)  # a rank that hangs says where
    try:
        main()
    except Exception:
        traceback.print_exc()  # as a process of torchrun does; the report has only that of the rank that ended first
        raise


if __name__ == "__main__":
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    counts, *sys.argv = sys.argv[1:]
    worker = Path(sys.argv[0])
    sys.path.insert(0, str(worker.parent))
    main = import_module(worker.stem).main
    gc.freeze()  # what the imports made is spared from the `gc.collect()` of each `Accelerator.prepare` (0.2 s)
    for count in map(int, counts.split(",")):
        if count:
            settings = {"rdzv_backend": "c10d", "rdzv_endpoint": "localhost:0", "max_restarts": 0}
            elastic_launch(LaunchConfig(1, 1, count, start_method="fork", **settings), _rank)(main)
        else:
            main()
