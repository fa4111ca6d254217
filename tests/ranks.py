"""Ranks of one launch, forked from a process that has imported the libraries once for all of them.

A worker is a file with a function `main`, which finds its arguments in ``sys.argv``. This file is run in a separate
process, since one that runs tests should not be forked.
"""

import gc
import os
import subprocess
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

ON_CPU = {"ACCELERATE_USE_CPU": "true"}


def launch(worker: Path, counts: Sequence[int], folder: Path, *more: str, variables: dict[str, str] = ON_CPU) -> Path:
    """Run a worker on each number of ranks in turn, as torchrun does; return the folder it was given.

    Of 0 ranks it is a plain process, which must be the last.
    """
    command = [sys.executable, __file__, ",".join(map(str, counts)), str(worker), str(folder), *more]
    env = {name: value for name, value in os.environ.items() if name not in ON_CPU}
    env |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"} | variables
    result = subprocess.run(command, env=env, capture_output=True, text=True, timeout=180 * len(counts), check=False)
    assert result.returncode == 0, result.stderr[-4000:]
    return folder


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
            elastic_launch(LaunchConfig(1, 1, count, start_method="fork", **settings), main)()
        else:
            main()
