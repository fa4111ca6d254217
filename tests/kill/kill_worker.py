"""One small run with everything that has a state; `kill_harness.py` starts it, kills it and starts it again.

python kill_worker.py RUN_DIR DATA UPDATES [--resume] [--epochs 6] [--every_n_updates 2] [--batch_size 4] [--seed 0]
    [--part none]
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from timm.loss import SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2
from torch import distributed, nn

from timm_accel import TimmMixupTrainer, create_classifier, create_datasets
from timm_accel.callbacks import (
    DEFAULT_CALLBACKS,
    Callback,
    CsvHistoryCallback,
    EarlyStoppingCallback,
    SaveBestCallback,
    SaveStateCallback,
)
from timm_accel.data import class_balanced_sampler

SIZE = 32
PARTS = ("none", "freezing", "distillation", "resolution", "cache", "balanced")
WORKERS = {"num_workers": 2, "persistent_workers": True}


class CountUpdates(Callback):
    """Add a byte to a file for each update of this process, so that the file's size tells others how far it is."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_update_end(self, trainer: Any, **kwargs: Any) -> None:
        if trainer.accelerator.is_main_process:
            with open(self.path, "ab", buffering=0) as file:
                file.write(b".")


def train(options: argparse.Namespace) -> None:
    """Train, or resume what was begun."""
    torch.manual_seed(0)
    model, config = create_classifier("test_resnet", 3, image_size=SIZE, drop_rate=0.1, drop_path_rate=0.1)
    train_set, val_set = create_datasets(
        SIZE,
        config["mean"],
        config["std"],
        options.data / "train",
        options.data / "val",
        scale=(0.3, 1.0),
        cache="memory" if options.part == "cache" else None,
    )
    sampler = {"sampler": class_balanced_sampler(train_set.labels)} if options.part == "balanced" else {}
    trainer = TimmMixupTrainer(
        model=model,
        optimizer=create_optimizer_v2(model, "lookahead_adamw", lr=1e-2, weight_decay=0.05),
        loss_func=SoftTargetCrossEntropy(),
        eval_loss_fn=nn.CrossEntropyLoss(),
        mixup_args={"mixup_alpha": 0.4, "cutmix_alpha": 1.0, "label_smoothing": 0.1},
        num_class=3,
        scheduler_args={"sched": "cosine", "warmup_epochs": 1, "step_on_epochs": False},
        ema_decay=0.8,
        clip_grad=1.0,
        callbacks=[
            *DEFAULT_CALLBACKS,
            SaveBestCallback("eval_loss_epoch", greater_is_better=False),
            CsvHistoryCallback,
            EarlyStoppingCallback(patience=10_000),
            SaveStateCallback(every_n_updates=options.every_n_updates, keep=3),
            CountUpdates(options.updates),
        ],
        run_dir=options.run_dir,
        seed=options.seed,
        **_options_of_part(options),
    )
    trainer.train(
        train_set,
        options.epochs,
        val_set,
        per_device_batch_size=options.batch_size,
        gradient_accumulation_steps=1 if options.part == "resolution" else 2,
        train_dataloader_kwargs=WORKERS | sampler,
        eval_dataloader_kwargs=WORKERS,
        resume_from="auto" if options.resume else None,
    )


def _options_of_part(options: argparse.Namespace) -> dict[str, Any]:
    if options.part == "freezing":  # thawed stage by stage over the run
        half = max(1, options.epochs // 2)
        return {"freeze_schedule": {0: -1, half: 1, half + 1: 0}}
    if options.part == "distillation":
        teacher, _ = create_classifier("test_efficientnet", 3, image_size=SIZE)
        return {"distill_teacher": teacher, "distill_kind": "feature"}
    return {"resolutions": [24, SIZE]} if options.part == "resolution" else {}


def main() -> None:
    parser = argparse.ArgumentParser()
    for folder in ("run_dir", "data", "updates"):
        parser.add_argument(folder, type=Path)
    parser.add_argument("--resume", action="store_true")
    for name, default in {"epochs": 6, "every_n_updates": 2, "batch_size": 4, "seed": 0}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--part", choices=PARTS, default="none")
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(Accelerator().device.type == "cuda")  # it joins the group of processes
    train(parser.parse_args())
    if distributed.is_initialized():
        distributed.destroy_process_group()


if __name__ == "__main__":
    main()
