"""Count what a large ViT takes in memory and in its states, plain, with checkpointing, with LoRA and with both.

Weights, gradients, optimizer and EMA weights are counted from their tensors. The rest of the peak of the resident
memory in an update is activations as far as they are there beside the gradients. Each way runs in a new process.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import nn
from torch.utils.data import TensorDataset

from benchmarks.pairs import spread
from benchmarks.quiet import quiet
from benchmarks.state import seconds, size, step
from benchmarks.tables import Table
from timm_accel import TimmMixupTrainer, create_classifier
from timm_accel.callbacks import Callback, SaveStateCallback
from timm_accel.optim import create_optimizer
from timm_accel.states.folder import newest_state

WAYS: dict[str, dict[str, Any]] = {
    "plain": {},
    "`grad_checkpointing`": {"grad_checkpointing": True},
    "`lora=8`": {"lora": 8},
    "both": {"grad_checkpointing": True, "lora": 8},
}
MIB = 2**20


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    parser.add_argument("--model", default="vit_base_patch16_224")
    parser.add_argument("--batch_size", type=int, default=4)
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument("--saves", type=int, default=3)


def main(arguments: argparse.Namespace) -> list[Table]:
    """Measure each way in a new process."""
    os.environ["MALLOC_MMAP_THRESHOLD_"] = str(2**16)  # so that memory that is freed goes back to the system
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), max_tasks_per_child=1) as processes:
        found = {way: processes.submit(measure, options, vars(arguments)).result() for way, options in WAYS.items()}
    plain, memory, states = found["plain"], [], []
    for way, each in found.items():
        parts = [each[part] for part in ("weights", "gradients", "optimizer", "ema", "rest")]
        on_host = sum(parts) - each["ema"]
        ratio = each["seconds"] / plain["seconds"]
        memory.append([way, f"{each['trained']:,}", *(f"{part:,.0f}" for part in (*parts, sum(parts), on_host))])
        memory[-1].append(f"{ratio:.2f}")
        waits, whole = (spread(each[kind], 3) for kind in ("waits", "saves"))
        states.append([way, f"{each['state']:,.0f}", f"{each['best']:,.0f}", waits, whole])
    kinds = ["weights", "gradients", "AdamW", "EMA", "rest of the peak", "all", 'all, with `ema_device="cpu"`']
    return [
        Table("memory, MiB", ["", "trained parameters", *kinds, "processor time over plain"], memory),
        Table(
            "states",
            ["", "state, MiB", "best weights, MiB", "training waits, s, median (min to max)", "whole save, s"],
            states,
        ),
    ]


def measure(options: dict[str, Any], sizes: dict[str, Any]) -> dict[str, Any]:
    """Train two updates, and return MiB and seconds."""
    model, _ = create_classifier(sizes["model"], num_classes=1000, image_size=sizes["image_size"], **options)
    measuring = Measuring(sizes["saves"])
    with tempfile.TemporaryDirectory() as folder, quiet():
        trainer = TimmMixupTrainer(
            model=model,
            optimizer=create_optimizer(model, "adamw", lr=1e-4),
            loss_func=nn.CrossEntropyLoss(),
            num_class=1000,
            ema_decay=0.9,
            callbacks=[measuring, SaveStateCallback(every_n_epochs=None)],
            run_dir=Path(folder, "run"),
        )
        images = torch.randn(sizes["batch_size"], 3, sizes["image_size"], sizes["image_size"])
        data = TensorDataset(images, torch.arange(len(images)))
        loader = {"num_workers": 0, "drop_last": False}
        trainer.train(data, 1, per_device_batch_size=len(images), train_dataloader_kwargs=loader)
    return measuring.found


class Measuring(Callback):
    """Measures a second update after the first, when every part has a state, and then saves.

    Args:
        saves: How many states to save.
    """

    def __init__(self, saves: int) -> None:
        self.saves, self.found = saves, dict[str, Any]()

    def on_train_step_end(self, trainer: Any, batch: Any, **kwargs: Any) -> None:
        self.batch = batch

    def on_update_end(self, trainer: Any, **kwargs: Any) -> None:
        model, run = trainer.model, trainer.current_run()
        trained = [each for each in model.parameters() if each.requires_grad]
        weights, gradients = mebibytes(model.state_dict().values()), mebibytes(trained)
        peak, processor = peak_of(lambda: step(trainer, self.batch))
        moments = (each for state in run.unwrapped_optimizer.state.values() for each in state.values())
        self.found = {
            "trained": sum(each.numel() for each in trained),
            "weights": weights,
            "gradients": gradients,
            "optimizer": mebibytes(moments),
            "ema": mebibytes([*model.state_dict().values(), *trainer.ema_model.state_dict().values()]) - weights,
            "rest": peak - gradients,
            "seconds": processor,
        }
        waits, saves = [], []
        for _ in range(self.saves):
            began = time.perf_counter()
            waits.append(seconds(lambda: run.checkpointer.save(run)))
            run.checkpointer.settle(run)
            saves.append(time.perf_counter() - began)
        state = newest_state(trainer.run_dir / "state", print)
        plain = sum(each.numel() for name, each in model.state_dict().items() if ".lora_" not in name) * 4 / MIB
        self.found |= {"waits": waits, "saves": saves, "state": size(state.folder), "best": plain}


def mebibytes(tensors: Iterable[torch.Tensor]) -> float:
    """Return the MiB of tensors; memory that several use counts once."""
    storages = (each.untyped_storage() for each in tensors)
    return sum({each.data_ptr(): each.nbytes() for each in storages}.values()) / MIB


def peak_of(work: Callable[[], Any]) -> tuple[float, float]:
    """Return by how many MiB the resident memory rises at most, and the processor seconds."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins again
    before, began = psutil.Process().memory_info().rss, time.process_time()
    work()
    taken = time.process_time() - began
    status = Path("/proc/self/status").read_text()
    peak = next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))
    return (peak - before) / MIB, taken
