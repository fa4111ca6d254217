"""Kill one process of a run on two hosts, and time the restart by torchrun until the next update.

    python -m benchmarks restart --runs 5

Two network namespaces, one process each, ``torchrun --nnodes 2 --max_restarts 1`` over c10d and gloo, AdamW with EMA
weights, ``resume_from="auto"``, a state after every fifth update. SIGKILL meets the process of host 1 in update 8.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from benchmarks.namespaces import INTERFACE, Network
from benchmarks.tables import Table

ROOT = Path(__file__).parents[1]
BEGAN, RESUMED, UPDATES = "began", "resumed", "updates"
SIZE, BATCH = 64, 8


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--model", default="resnet18")


def main(arguments: argparse.Namespace) -> list[Table]:
    """Return a table of the seconds from the kill to what follows."""
    runs = [measure(arguments.model) for _ in range(arguments.runs)]
    names = {
        BEGAN: "both processes run Python again",
        "imported": "they have imported torch and timm_accel",
        RESUMED: "the state is loaded",
        UPDATES: "the next update is done",
    }
    rows = []
    for name, text in names.items():
        seconds = [run[name] for run in runs]
        rows.append((text, f"{statistics.median(seconds):.1f} s", f"{min(seconds):.1f} to {max(seconds):.1f} s"))
    size = statistics.median(run["size"] for run in runs)
    columns = (f"from SIGKILL until ({arguments.model}, a state of {size:.0f} MB)", "median", "range")
    return [Table("from a kill to the next update", columns, rows)]


def measure(model: str) -> dict[str, float]:
    """Return the seconds from the kill to each event of the restarted processes, and the MB of a state."""
    variables = {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "GLOO_SOCKET_IFNAME": INTERFACE}
    variables["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"  # else ranks may read addresses of before (torch 2.14)
    with tempfile.TemporaryDirectory() as name, Network(2) as network, open(Path(name) / "log", "w") as log:
        folder = Path(name)
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc_per_node", "1"]
        meeting = ["--rdzv_backend", "c10d", "--rdzv_endpoint", f"{network.addresses[0]}:29400", "--rdzv_id", "1"]
        words = [*torchrun, "--max_restarts", "1", *meeting, __file__, model, folder]
        env = os.environ | variables | {"PYTHONPATH": str(ROOT)}
        agents = [network.start(host, words, env=env, stdout=log, stderr=log) for host in range(2)]
        wait_for(lambda: len(times(folder, UPDATES)) >= 8, agents, folder)
        (victim,) = [each for each in psutil.Process(agents[1].pid).children() if str(folder) in each.cmdline()[-1:]]
        killed = time.time()
        victim.kill()
        wait_for(lambda: first_update(folder) is not None, agents, folder)
        state = max((folder / "run" / "state").glob("0*"))
        size = sum(path.stat().st_size for path in state.iterdir()) / 1e6
        updated = first_update(folder) or 0.0
        found = {event: max(filter(updated.__gt__, times(folder, event))) for event in (BEGAN, "imported", RESUMED)}
        found[UPDATES] = updated
        return {event: moment - killed for event, moment in found.items()} | {"size": size}


def wait_for(condition: Callable[[], bool], agents: list[subprocess.Popen[str]], folder: Path) -> None:
    """Wait until something is so, while the agents of torchrun run."""
    end = time.monotonic() + 300
    while not condition():
        if time.monotonic() > end or any(agent.poll() is not None for agent in agents):
            raise RuntimeError((folder / "log").read_text()[-4000:])
        time.sleep(0.05)


def first_update(folder: Path) -> float | None:
    """Return when the first update after both hosts have loaded the state was done; None before."""
    resumed = times(folder, RESUMED)
    later = [moment for moment in times(folder, UPDATES) if moment > max(resumed, default=0.0)]
    return min(later) if len(resumed) >= 2 and later else None


def times(folder: Path, event: str) -> list[float]:
    """Return when something happened: on each host, or each update on rank 0."""
    lines = [line for path in folder.glob(f"{event}_*") for line in path.read_text().splitlines()]
    return [float(line) for line in lines if line]


def work(model_name: str, folder: Path) -> None:
    """Train, or resume, and note the time of each event."""
    rank = os.environ["RANK"]

    def note(event: str) -> None:
        with open(folder / f"{event}_{rank}", "a") as file:
            file.write(f"{time.time()}\n")

    note(BEGAN)
    import torch
    from timm.optim import create_optimizer_v2
    from torch import nn
    from torch.utils.data import TensorDataset

    from timm_accel import TimmTrainer, create_classifier
    from timm_accel.callbacks import Callback, SaveStateCallback

    class Noting(Callback):
        def on_resumed(self, trainer: object, **kwargs: object) -> None:
            note(RESUMED)

        def on_update_end(self, trainer: object, **kwargs: object) -> None:
            if rank == "0":
                note(UPDATES)

    note("imported")
    model, _ = create_classifier(model_name, 10, image_size=SIZE)
    trainer = TimmTrainer(
        model=model,
        optimizer=create_optimizer_v2(model, "adamw", lr=1e-3),
        loss_func=nn.CrossEntropyLoss(),
        num_classes=10,
        callbacks=[SaveStateCallback(every_n_updates=5), Noting],
        run_dir=folder / "run",
    )
    images = torch.randn(800, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    data = TensorDataset(images, torch.arange(800) % 10)
    workers = {"num_workers": 0}
    trainer.train(data, 10, per_device_batch_size=BATCH, train_dataloader_kwargs=workers, resume_from="auto")


if __name__ == "__main__":
    work(sys.argv[1], Path(sys.argv[2]))
