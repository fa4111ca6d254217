"""Time one training update of each contender on one thread, with images from memory, in turn in one process.

    python -m benchmarks update_time --models test_resnet resnet18 --rounds 7

The time is that between two fetches of a batch, as a mean over a run after its first updates, so that the start and
the end drop out. All parts are AdamW, a cosine schedule per update, Mixup, clipping and EMA weights (`contenders`).
"""

import argparse
import gc
import time
from functools import partial
from typing import Any

import torch
from torch.utils.data import Dataset

from benchmarks.contenders import NOTES, Loop, contender, names
from benchmarks.contenders.job import Job
from benchmarks.pairs import in_turn, together
from benchmarks.quiet import quiet
from benchmarks.tables import Table

FIRST = 4  # updates that fill caches


class Clock(Dataset):
    """A dataset that notes when each image is fetched."""

    def __init__(self, data: Any) -> None:
        self.data, self.times = data, []

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Any:
        self.times.append(time.perf_counter())
        return self.data[index]


def seconds_of(run: Loop, job: Job) -> float:
    """Return the mean time of an update, which is that from one batch's first image to the next batch's."""
    images = Clock(job.train_data)
    gc.collect()  # what the run before has left
    with quiet():
        run(Job(job.model, job.num_updates, job.all_parts, images, batch_size=job.batch_size))
    starts = images.times[:: job.batch_size][FIRST:]
    return (starts[-1] - starts[0]) / (len(starts) - 1)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    parser.add_argument("--models", nargs="+", default=["test_resnet", "resnet18"], help="names of timm's models")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--updates", type=int, default=40, help="updates of a run of the first model; half for others")


def main(arguments: argparse.Namespace) -> list[Table]:
    """Return a table for each set of parts."""
    torch.set_num_threads(1)
    tables = []
    for all_parts in (False, True):
        measured = {}
        for number, model in enumerate(arguments.models):
            job = Job(model, arguments.updates if number == 0 else arguments.updates // 2, all_parts)
            ways = {each: partial(seconds_of, contender(each), job) for each in names(all_parts)}
            measured[model] = in_turn(ways, arguments.rounds)
        tables.append(together(f"time of an update, {'all' if all_parts else 'few'} parts", measured))
    notes = [[name, note] for name, note in NOTES.items() if name in names()]
    return [*tables, Table("what differs", ["contender", "what differs"], notes)]
