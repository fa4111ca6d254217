"""Runs with trackers that are killed by SIGKILL and resumed; prints as JSON what the trackers hold at the end.

python tracker_worker.py FOLDER [KILL...] with the environment variable TRACKIO_DIR. A kill is
METHOD:NUMBER:WHERE: the process is killed before or after the call with that number of a method of the journal, of a
tracker or of the callback.
"""

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from traceback import print_exc
from typing import Any

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from timm.loss import SoftTargetCrossEntropy
from tiny_runs import fit, make_trainer, tiny_data, tiny_model
from torch import nn

from timm_accel import TimmMixupTrainer
from timm_accel.callbacks import SaveBestCallback, SaveStateCallback, TrackerCallback
from timm_accel.callbacks.tracking.journal import Journal
from timm_accel.callbacks.tracking.services import Service

try:
    from trackio.sqlite_storage import SQLiteStorage
except ModuleNotFoundError:
    SQLiteStorage = None

METHODS = {"add": Journal, "log": Service, "state": TrackerCallback}


def train(run_dir: Path) -> None:
    """Train, or resume what was begun: 4 epochs of 5 updates, a point at every second."""
    model = tiny_model()
    quiet = {"tensorboard": {}} | ({} if SQLiteStorage is None else {"trackio": {"auto_log_cpu": False}})
    trainer = make_trainer(
        TimmMixupTrainer,
        model,
        mixup_args={},
        num_class=3,
        loss_func=SoftTargetCrossEntropy(),
        eval_loss_fn=nn.CrossEntropyLoss(),
        optimizer=torch.optim.AdamW(model.parameters(), lr=1e-3),
        scheduler_args={"sched": "cosine", "step_on_epochs": False},
        callbacks=[
            SaveBestCallback("accuracy"),
            SaveStateCallback(every_n_updates=3),
            TrackerCallback([*quiet], init_kwargs=quiet),
        ],
        run_dir=run_dir,
        sync_every_n_updates=2,
        ema_decay=0.5,
    )
    trainer.print = lambda *args, **kwargs: None
    fit(trainer, tiny_data(20), tiny_data(8), num_epochs=4, resume_from="auto")


def killed_at(spec: str) -> None:
    """Let this process be killed there."""
    method, number, where = spec.split(":")
    name = {"state": "state_dict"}.get(method, method)
    kind: Any = METHODS[method]
    original, calls = getattr(kind, name), [0]

    def counting(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        due = calls[0] == int(number)
        if due and where == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        if due and where == "within":
            tear(args[0])
        result = original(*args, **kwargs)
        if due:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(kind, name, counting)


def tear(journal: Journal) -> None:
    """Write a part of a line, as a process that is killed within the write."""
    with open(journal.path, "ab") as file:
        file.write(b'{"epoch": 1, "st')
    os.kill(os.getpid(), signal.SIGKILL)


def in_a_child(work: Callable[[], None]) -> int:
    """Run in a new process, and return the signal that ended it, or 0."""
    sys.stdout.flush()
    if (child := os.fork()) == 0:
        code = 1
        try:
            os.dup2(2, 1)  # trackio prints
            work()
            code = 0
        except Exception:
            print_exc()
        finally:
            os._exit(code)
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0


def held(run_dir: Path) -> dict[str, Any]:
    """Return the points in the journal's runs: by tracker, name and step."""
    events = EventAccumulator(str(run_dir / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    board = [(tag, each.step, each.value) for tag in events.Tags()["scalars"] for each in events.Scalars(tag)]
    about = json.loads((run_dir / "trackers.jsonl").read_text().split("\n")[0])["run"]
    found = {"tensorboard": sorted(board), "texts": len(events.Tags()["tensors"]), "number": about["number"]}
    if SQLiteStorage is None:
        return found
    rows = SQLiteStorage.get_logs("timm_accel", about["name"])
    trackio = [
        (name, row["step"], value)
        for row in rows
        for name, value in row.items()
        if name not in ("step", "timestamp") and not name.startswith("_")
    ]
    options = SQLiteStorage.get_run_config("timm_accel", about["name"])
    return found | {"trackio": sorted(trackio), "num_epochs": options["num_epochs"]}


def runs_of_trackio() -> list[str]:
    """Return the names of all runs in trackio."""
    return [] if SQLiteStorage is None else SQLiteStorage.get_runs("timm_accel")


def main() -> None:
    """Train on all processes that were launched."""
    folder = Path(sys.argv[1])
    train(folder / "whole")
    if int(os.environ["RANK"]) == 0:
        print(json.dumps({"whole": held(folder / "whole"), "trackio_runs": runs_of_trackio()}))
    torch.distributed.destroy_process_group()


def killed_and_resumed(folder: Path, kills: list[str]) -> None:
    """Train a run without kills, and one with them."""
    assert in_a_child(lambda: train(folder / "whole")) == 0
    for spec in kills:

        def work(spec: str = spec) -> None:
            killed_at(spec)
            train(folder / "killed")

        assert in_a_child(work) == signal.SIGKILL, spec
    assert in_a_child(lambda: train(folder / "killed")) == 0
    runs = {name: held(folder / name) for name in ("whole", "killed")}
    print(json.dumps(runs | {"trackio_runs": runs_of_trackio()}))


if __name__ == "__main__":
    killed_and_resumed(Path(sys.argv[1]), sys.argv[2:])
