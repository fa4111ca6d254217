"""What the process of each host does in `test_hosts.py`: one scenario after another, and the same on one machine.

python hosts_worker.py FOLDER SCENARIOS [NAMESPACE], with the variables of a rank.
"""

import faulthandler
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[2]))

import torch
from accelerate import PartialState
from conftest import write_images
from distributed_worker import RESULTS as OF_TWO_PROCESSES
from distributed_worker import check_same_weights
from refusal import sentence
from resumed_runs import Augmented, every_update, make_run, train
from torch import distributed

from benchmarks.namespaces import enter
from timm_accel import create_datasets
from timm_accel.callbacks import Callback
from timm_accel.distributed import hosts
from timm_accel.distributed.processes import process_state
from timm_accel.messages import one_sentence
from timm_accel.states.folder import STATES, state_folders
from timm_accel.training import identity

SIZE = 8
RESULTS: dict[str, Any] = {}


def rank() -> int:
    return int(os.environ["RANK"])


class Slow(Callback):
    """Take some time for each update, and tell how many there were."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_update_end(self, trainer: Any, **kwargs: Any) -> None:
        time.sleep(0.05)
        if trainer.rank == 0:
            self.path.write_text(str(trainer.num_updates))


def run_of(run_dir: Path, *callbacks: Any, **options: Any) -> Any:
    return make_run(run_dir, callbacks=[every_update(keep=2, keep_when_done=2), *callbacks], **options)


def begin(run_dir: Path, seed: int = 0, **settings: Any) -> str:
    """Start a run of one update, and return why it was refused; "" where it was not."""
    defaults = {"train_dataset": Augmented(12), "num_epochs": 1, "max_num_train_steps": 1}
    return sentence(lambda: train(run_of(run_dir, seed=seed), **(defaults | settings)))


def is_last() -> bool:
    return rank() == distributed.get_world_size() - 1


def by_main(work: Callable[[], Any]) -> None:
    """Do something on rank 0 while the others wait."""
    if PartialState().is_main_process:
        work()
    distributed.barrier()


def check_bits(folder: Path) -> None:
    """Some of what `test_two_processes.py` does, and a run with all that has state; the last knows it by a link."""
    check_same_weights()
    RESULTS["same"] = dict(OF_TWO_PROCESSES)
    by_main(lambda: (folder / "link").symlink_to(folder / "bits", target_is_directory=True))
    os.chdir(folder)
    run_dir = Path("link") if is_last() else folder / "bits"
    runs = [
        train(run_of(run_dir), train_dataset=Augmented(62), num_epochs=epochs, resume_from="auto") for epochs in (1, 2)
    ]
    RESULTS["bits"] = [each.get_unwrapped_model().state_dict() for each in runs]
    RESULTS["resumed"] = len(runs[1].images) < len(runs[0].images) + 2


def check_cut(folder: Path) -> None:
    """A run whose link is cut, or that resumes."""
    trainer = run_of(folder / "cut", Slow(folder / "updates"))
    with one_sentence("worker"):
        train(trainer, train_dataset=Augmented(62), num_epochs=2, resume_from="auto")
    RESULTS["cut"] = trainer.get_unwrapped_model().state_dict()


def check_options(folder: Path) -> None:
    """The last host has other options, another number of epochs, and another way to resume."""
    last = is_last()
    RESULTS["options"] = begin(folder / "options", num_epochs=2 if last else 1, seed=7 if last else 8)
    RESULTS["resume"] = begin(folder / "resume", resume_from="auto" if last else None)
    RESULTS["evaluates"] = begin(folder / "evaluates", eval_dataset=Augmented(12) if last else None)
    RESULTS["workers"] = begin(folder / "workers", train_dataloader_kwargs={"num_workers": int(last)})


def check_versions(folder: Path) -> None:
    """The last host has another version of timm."""
    own = identity.versions
    identity.versions = lambda: own() | ({"timm": "0.9"} if is_last() else {})
    RESULTS["versions"] = begin(folder / "versions")
    identity.versions = own


def check_folders(folder: Path) -> None:
    """The last host has a folder of the same relative name, then a state that others do not have, and reads only."""
    home = folder / f"home_{is_last()}"
    home.mkdir(exist_ok=True)
    os.chdir(home)
    RESULTS["unshared"] = begin(Path("run"))
    by_main(lambda: None)  # which has left the folder by then
    RESULTS["left"] = sorted(path.name for path in folder.glob("home_*/run/*"))
    shared = folder / "read_only"
    by_main(shared.mkdir)
    if is_last():
        subprocess.run(["mount", "--bind", shared, shared], check=True)
        subprocess.run(["mount", "-o", "remount,ro,bind", shared], check=True)
    RESULTS["read only"] = begin(shared)
    RESULTS["hidden"] = sorted(path.name for path in shared.glob(".*"))
    state = state_folders(shared / STATES)[0]
    RESULTS["missing state"] = begin(folder / "next", resume_from=home / state.name if is_last() else state)


def check_data(folder: Path) -> None:
    """Each host has a copy of the images, of another time; then the last lacks one."""
    copy = folder / f"images_{rank()}"
    write_images(copy, {"cat": 5, "dog": 5, "owl": 4}, SIZE)
    for path in copy.rglob("*.png"):
        os.utime(path, (rank(), rank()))
    RESULTS["copies"] = begin(folder / "copies", train_dataset=images_in(copy))
    if is_last():
        next(iter(sorted(copy.rglob("*.png")))).unlink()
    RESULTS["data"] = begin(folder / "data", train_dataset=images_in(copy))


def images_in(folder: Path) -> Any:
    return create_datasets(SIZE, (0.5,) * 3, (0.5,) * 3, folder, folder)[0]


def check_clock(folder: Path) -> None:
    """The last host comes late, then it has a clock an hour ahead."""
    time.sleep(1 + hosts.MAX_CLOCK_SECONDS if is_last() else 0)
    print("late", flush=True)
    RESULTS["late"] = begin(folder / "late")
    print("ahead", flush=True)
    own = time.time
    hosts.time.time = lambda: own() + (3600 if is_last() else 0)
    RESULTS["ahead"] = begin(folder / "ahead")
    hosts.time.time = own


def main() -> None:
    faulthandler.dump_traceback_later(float(os.environ.get("PATIENCE", 170)), exit=True)  # a rank that hangs says where
    folder, names, *namespace = sys.argv[1:]
    if namespace:
        enter(namespace[0])
    process_state()
    for name in names.split(","):
        globals()[f"check_{name}"](Path(folder))
    torch.save(RESULTS, Path(folder) / f"{'host' if namespace else 'rank'}_{rank()}.pt")
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
