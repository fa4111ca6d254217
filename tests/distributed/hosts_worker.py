"""What the process of each host does in `test_hosts.py`: one scenario after another, and the same on one machine.

python hosts_worker.py FOLDER SCENARIOS [NAMESPACE], with the variables of a rank.
"""

import faulthandler
import os
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[2]))

import torch
from resumed_runs import Augmented, every_update, make_run, train
from torch import distributed

from benchmarks.namespaces import enter
from timm_accel.callbacks import Callback

RESULTS: dict[str, Any] = {}


class Slow(Callback):
    """Take some time for each update, and tell how many there were."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_update_end(self, trainer: Any, **kwargs: Any) -> None:
        time.sleep(0.05)
        if trainer.rank == 0:
            self.path.write_text(str(trainer.num_updates))


def run_of(folder: Path, *callbacks: Any, **options: Any) -> Any:
    return make_run(folder, callbacks=[every_update(keep=2, keep_when_done=2), *callbacks], **options)


def check_bits(folder: Path) -> None:
    """A whole run."""
    trainer = train(run_of(folder / "bits"), train_dataset=Augmented(62), num_epochs=2, resume_from="auto")
    RESULTS["bits"] = trainer.get_unwrapped_model().state_dict()


def check_cut(folder: Path) -> None:
    """A run that is cut from outside, or resumes."""
    trainer = run_of(folder / "cut", Slow(folder / "updates"))
    train(trainer, train_dataset=Augmented(62), num_epochs=2, resume_from="auto")
    RESULTS["cut"] = trainer.get_unwrapped_model().state_dict()


def main() -> None:
    faulthandler.dump_traceback_later(float(os.environ.get("PATIENCE", 170)), exit=True)  # a rank that hangs says where
    folder, names, *namespace = sys.argv[1:]
    if namespace:
        enter(namespace[0])
    for name in names.split(","):
        globals()[f"check_{name}"](Path(folder))
    rank = distributed.get_rank()
    torch.save(RESULTS, Path(folder) / f"{'host' if namespace else 'rank'}_{rank}.pt")
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
