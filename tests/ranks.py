"""Ranks of one launch, forked from a process that has imported the worker once for all of them.

A worker is a file with a function `main`, which finds its arguments in ``sys.argv``.
"""

import faulthandler
import gc
import os
import signal
import socket
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


def _start(main: Callable[[], None], variables: dict[str, Any]) -> int:
    """Fork a rank, and return the number of its process."""
    if pid := os.fork():
        return pid
    os.setsid()  # as torchrun starts its processes
    os.environ.update({name: str(value) for name, value in variables.items()})
    faulthandler.dump_traceback_later(SECONDS - 30, exit=True)  # a rank that hangs says where
    code = 1
    try:
        main()
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _run_ranks(main: Callable[[], None], count: int) -> None:
    """Run ranks until all have ended; where one fails, end the others as torchrun does, and exit with 1.

    No threads run where the ranks are forked: torchrun's agent has some, and a launch through it once hung for minutes.
    """
    shared = {"WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": _free_port()}
    ranks = {_start(main, {"RANK": rank, "LOCAL_RANK": rank} | shared): rank for rank in range(count)}
    failed = False
    while ranks:
        pid, status = os.wait()
        if (code := os.waitstatus_to_exitcode(status)) != 0:
            print(f"rank {ranks[pid]} ended with exit code {code}", file=sys.stderr, flush=True)
        del ranks[pid]
        if code != 0 and not failed:
            failed = True
            for other in ranks:
                os.kill(other, signal.SIGTERM)
            signal.signal(signal.SIGALRM, lambda *_: [os.kill(other, signal.SIGKILL) for other in ranks])
            signal.alarm(30)
    if failed:
        sys.exit(1)


if __name__ == "__main__":
    counts, *sys.argv = sys.argv[1:]
    worker = Path(sys.argv[0])
    sys.path.insert(0, str(worker.parent))
    main = import_module(worker.stem).main
    gc.freeze()  # what the imports made is spared from the `gc.collect()` of each `Accelerator.prepare` (0.2 s)
    for count in map(int, counts.split(",")):
        if count:
            _run_ranks(main, count)
        else:
            main()
