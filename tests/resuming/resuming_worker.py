"""What each process does in `test_processes.py`: run, be cut, and resume, one scenario after another."""

import os
import shutil
import signal
import sys
import warnings
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import timm
import torch
from accelerate import Accelerator, PartialState
from resumed_runs import Augmented, Noting, cut, every_update, make_run, same_outcome, states, train
from torch import distributed, nn

from timm_accel.callbacks import SaveStateCallback
from timm_accel.states import folder as state_module

ROOT = Path(sys.argv[2])
RESULTS: dict[str, Any] = {}


def alone(work: Any) -> None:
    """Run something on rank 0 while the others wait."""
    if PartialState().is_main_process:
        work()
    if distributed.is_initialized():
        distributed.barrier()


def check_any_cut() -> None:
    """Cut after some updates, with statistics of BatchNorm averaged and not, and with workers."""
    for name, options, loader in (
        ("reduce", {}, {"num_workers": 0}),
        ("none", {"dist_bn": None}, {"num_workers": 0}),
        ("workers", {}, {"num_workers": 1}),
    ):
        whole = ROOT / name
        settings = {"train_dataset": Augmented(62), "gradient_accumulation_steps": 2, "train_dataloader_kwargs": loader}
        reference = train(make_run(whole, **options), num_epochs=2, **settings)
        differences, images = [], []
        for number in (0, 2, 4, 6):
            target = ROOT / f"{name}_{number}"
            alone(lambda whole=whole, number=number, target=target: cut(whole, number, target))
            resumed = train(make_run(target, **options), num_epochs=2, resume_from="auto", **settings)
            differences.append(same_outcome(whole, target))
            rest = reference.images[len(reference.images) - len(resumed.images) :]
            images.append(all(torch.equal(a, b) for a, b in zip(resumed.images, rest, strict=True)))
        RESULTS[f"cut/{name}"] = (differences, images, len(states(whole)))


class Interrupted(Noting):
    """Gets a signal on the last process alone."""

    def calculate_train_batch_loss(self, batch: Any) -> dict[str, Any]:
        if len(self.images) == 2 and self.rank == self.accelerator.num_processes - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return super().calculate_train_batch_loss(batch)


def check_request_of_one() -> None:
    """A state that one rank requests is written by all, at the next sync point."""

    class Asking(Noting):
        def after_update(self) -> None:
            super().after_update()
            if self.num_updates == 2 and self.rank == self.accelerator.num_processes - 1:
                self.request_save()

    train(
        make_run(ROOT / "request", Asking, callbacks=(), sync_every_n_updates=5),
        train_dataset=Augmented(62),
        num_epochs=1,
    )
    RESULTS["request"] = [folder.name for folder in states(ROOT / "request")]


def check_lock() -> None:
    """What rank 0 finds is raised on all."""
    alone(lambda: (ROOT / "taken").mkdir())
    alone(lambda: (ROOT / "taken/history.csv").write_text("mine"))
    try:
        train(make_run(ROOT / "taken"))
    except FileExistsError as error:
        RESULTS["taken"] = str(error)


def check_full_disk() -> None:
    """A write that fails on rank 0 does not end the run; what it does not expect there is raised on all."""

    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    save, state_module._save = state_module._save, full
    trainer = train(make_run(ROOT / "full"), train_dataset=Augmented(62), num_epochs=1)
    RESULTS["full"] = (trainer.num_updates, len(states(ROOT / "full")))

    def broken(*args: Any) -> None:
        raise MemoryError("none left")

    state_module._save = broken
    try:
        train(make_run(ROOT / "broken"), train_dataset=Augmented(62), num_epochs=1)
    except MemoryError as error:
        RESULTS["broken"] = str(error)
    state_module._save = save


def check_dummy_step() -> None:
    """A model with more than one gradient bucket: the rounding of sums over three ranks depends on the buckets."""
    if PartialState().num_processes < 3:
        return

    def run(run_dir: Path, **options: Any) -> Any:
        torch.manual_seed(0)
        model = nn.Sequential(
            timm.create_model("test_resnet", num_classes=64), nn.Linear(64, 20_000), nn.Linear(20_000, 3)
        )
        trainer = make_run(run_dir, model=model, callbacks=[every_update()])
        data = torch.utils.data.TensorDataset(torch.randn(48, 3, 16, 16), torch.arange(48) % 3)
        return train(trainer, train_dataset=data, eval_dataset=None, num_epochs=1, **options)

    whole = run(ROOT / "grouped")
    alone(lambda: cut(ROOT / "grouped", 1, ROOT / "grouped_cut"))
    resumed = run(ROOT / "grouped_cut", resume_from="auto")
    RESULTS["dummy step"] = same_outcome(ROOT / "grouped", ROOT / "grouped_cut")
    RESULTS["images with a dummy step"] = (len(whole.images), len(resumed.images))


def check_kept_for_others() -> None:
    """States for runs on another number of processes."""
    train(make_run(ROOT / "other"), train_dataset=Augmented(64), num_epochs=2, per_device_batch_size=share())


def check_of_others() -> None:
    """Resume from the states of another number of processes, saved by an earlier launch."""
    for folder in sorted(Path(sys.argv[3]).iterdir()) if len(sys.argv) > 3 else ():
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            target = ROOT / f"of_others_{folder.name}"
            alone(lambda target=target, folder=folder: shutil.copytree(folder, target))
            trainer = train(
                make_run(target),
                train_dataset=Augmented(64),
                num_epochs=2,
                per_device_batch_size=share(),
                resume_from="auto",
            )
        RESULTS[f"of others/{folder.name}"] = {
            "images": trainer.images,
            "rates": trainer.rates,
            "updates": trainer.num_updates,
            "loss": trainer.run_history.get_metric_values("train_loss_epoch"),
            "warnings": [str(each.message) for each in caught if "other conditions" in str(each.message)],
            "model": {name: value.clone() for name, value in trainer.unwrapped_model.state_dict().items()},
        }


def share() -> int:
    """This process's part of a global batch of 8."""
    return 8 // PartialState().num_processes


def check_exception_on_one() -> None:
    """The last process fails while the first waits for its gradients: the group ends, and nothing more is written."""

    class Failing(Noting):
        def calculate_train_batch_loss(self, batch: Any) -> dict[str, Any]:
            if len(self.images) == 2 and self.rank == self.accelerator.num_processes - 1:
                raise KeyError("a bug of the user's")
            return super().calculate_train_batch_loss(batch)

    train(make_run(ROOT / "exception", Failing), train_dataset=Augmented(62))


def check_signal_to_one() -> None:
    """The last scenario: all processes leave."""
    trainer = make_run(ROOT / "signal", Interrupted, callbacks=[SaveStateCallback()], sync_every_n_updates=4)
    train(trainer, train_dataset=Augmented(62))


def main() -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated")
    state = Accelerator().state
    for name in sys.argv[1].split(","):
        globals()[f"check_{name}"]()
        torch.save(RESULTS, ROOT / f"results_{state.num_processes}_{state.process_index}.pt")
    if distributed.is_initialized():
        distributed.destroy_process_group()
