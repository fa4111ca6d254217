"""Count and time what grows in our training with epochs, classes, files, parameters and processes.

    python -m benchmarks cost_growth --files 100000

Each line is a new process, or two under torchrun, of which rank 0 is measured: a training with all parts, 8 images to
evaluate on, and a state after each epoch. The end is from the last update to the end of training: an evaluation of the
model and of the EMA weights, and a state. Python calls are counted by a second run, since that slows it down. Memory is
the peak of the process.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.processes import ROOT
from benchmarks.tables import Table
from benchmarks.whole_run import write_images

UPDATES = 3  # of an epoch
FIGURES = [
    "processor s to the first update",
    "Python calls of an update",
    "processor s of the end",
    "Python calls of the end",
    "MB of the state",
    "MB of memory",
]


def cases(num_files: int, large_model: str) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield what grows, its size, and the changes of the run."""
    for epochs in (1, 20):
        yield "epochs", str(epochs), {"num_epochs": epochs}
    for classes in (10, 21_841):
        yield "classes", f"{classes:,}", {"num_classes": classes}
    for files in (1_000, num_files):
        yield "training files", f"{files:,}", {"files": files, "max_updates": UPDATES}
    yield "parameters", "resnet10t", {"model": "resnet10t"}
    yield "parameters", large_model, {"model": large_model, "model_args": {"img_size": 32}}
    for processes in (1, 2):
        yield "processes", str(processes), {"processes": processes}


def link_images(folder: Path, num_files: int) -> None:
    """Make a folder of links to a hundred images, in ten classes, and a folder to evaluate on."""
    write_images(folder, 100, 10)
    for number, path in enumerate(sorted((folder / "train").rglob("*.png"))):
        for copy in range(num_files // 100 - 1):
            os.link(path, path.with_name(f"{number}_{copy}.png"))


def train(changes: dict[str, Any], folder: Path, counted: bool) -> dict[str, float]:
    """Train in this process, and return its figures."""
    import torch
    from torch.optim.optimizer import register_optimizer_step_post_hook
    from torch.utils.data import TensorDataset

    from benchmarks.contenders.job import Job
    from benchmarks.contenders.ours import train as run
    from benchmarks.update_cost import PythonCalls
    from timm_accel import create_datasets

    processes, files = changes.pop("processes", 1), changes.pop("files", 0)
    count = UPDATES * 2 * processes
    data: Any = TensorDataset(torch.randn(count, 3, 32, 32), torch.arange(count) % 10)
    evaluation: Any = TensorDataset(torch.randn(8, 3, 32, 32), torch.arange(8))
    if files:
        paths = [folder / "images" / split for split in ("train", "val")]
        data, evaluation = create_datasets(32, (0.5,) * 3, (0.25,) * 3, *paths, auto_augment=None)
    job = Job("test_resnet", UPDATES, True, data, evaluation, folder / "run", batch_size=2)
    calls, noted = PythonCalls(), []

    def note(*_: object) -> None:
        usage = resource.getrusage(resource.RUSAGE_SELF)
        noted.append((calls.counts["Python calls"], usage.ru_utime + usage.ru_stime))

    register_optimizer_step_post_hook(note)
    if counted:
        with calls:
            run(replace(job, **changes))
    else:
        run(replace(job, **changes))
    note()
    (before, _), (last, at_last), (end, at_end) = noted[-3:]
    state = max((folder / "run" / "state").glob("0*"))
    found = [path.stat().st_size for path in state.rglob("*") if path.is_file()]
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    return dict(
        zip(FIGURES, [noted[0][1], last - before, at_end - at_last, end - last, sum(found) / 1e6, memory], strict=True)
    )


def figures(changes: dict[str, Any]) -> dict[str, float]:
    """Return the figures of a run in new processes; those that a counter disturbs are of a run without it."""
    command = [sys.executable, "-W", "ignore"]
    if changes.get("processes", 1) > 1:
        command += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(changes["processes"])]
    found = {}
    variables = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "ACCELERATE_USE_CPU": "true"}
    for counted in (False, True):
        with tempfile.TemporaryDirectory() as folder:
            if "files" in changes:
                link_images(Path(folder) / "images", changes["files"])
            words = ["-m", "benchmarks.cost_growth", json.dumps(changes), folder, str(int(counted))]
            done = subprocess.run([*command, *words], env=variables, cwd=folder, capture_output=True, text=True)
            if done.returncode != 0:
                raise RuntimeError(done.stderr)
            figures = json.loads((Path(folder) / "figures.json").read_text())
        found |= {name: value for name, value in figures.items() if ("calls" in name) == counted}
    return {name: found[name] for name in FIGURES}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    parser.add_argument("--files", type=int, default=100_000, help="the larger number of training files")
    parser.add_argument("--large", default="vit_large_patch16_224", help="the larger model, of 303 M parameters")
    parser.add_argument("--only", nargs="+", default=None, help="what grows, such as epochs")


def main(arguments: argparse.Namespace) -> list[Table]:
    """Return a row for each size of what grows."""
    rows = []
    for what, size, changes in cases(arguments.files, arguments.large):
        if arguments.only is None or what in arguments.only:
            found = figures(changes)
            rows.append([what, size, *(f"{found[name]:,.{2 * ('calls' not in name)}f}" for name in FIGURES)])
            print(*rows[-1], file=sys.stderr)
    return [Table("what grows", ["what", "size", *FIGURES], rows)]


if __name__ == "__main__":
    _found = train(json.loads(sys.argv[1]), Path(sys.argv[2]), sys.argv[3] == "1")
    if os.environ.get("RANK", "0") == "0":
        (Path(sys.argv[2]) / "figures.json").write_text(json.dumps(_found))
