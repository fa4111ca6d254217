"""An evaluation of a stream with fewer images than ranks, one of which cannot be read."""

import sys
import warnings
from pathlib import Path

import stream_sources
import torch
from accelerate import Accelerator, PartialState
from resumed_runs import Noting
from tiny_runs import make_trainer, tiny_model
from torch import distributed

from timm_accel import create_datasets

ROOT = Path(sys.argv[1])


def main() -> None:
    warnings.simplefilter("error")
    Accelerator()
    rank = PartialState().process_index
    if rank == 0:
        stream_sources.wds_with_gaps(ROOT)
    distributed.barrier()
    _, val_set = create_datasets(8, (0.5,) * 3, (0.5,) * 3, data=f"wds/{ROOT / 'gaps'}", on_error="skip")
    judge = make_trainer(Noting, tiny_model(), num_class=3, ema_decay=0.1)
    judge.evaluate(val_set, per_device_batch_size=2, dataloader_kwargs={"num_workers": 0})
    accuracy = judge.run_history.get_latest_metric("accuracy")
    torch.save((judge.evaluated, accuracy, len(val_set.unreadable)), ROOT / f"few_{rank}.pt")
    Accelerator().end_training()
