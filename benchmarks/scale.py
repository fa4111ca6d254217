"""Train on one process, on two, and on two hosts, and compare the updates with the model of their cost.

    python -m benchmarks scale --rounds 5

Each rank has one thread and the same number of images, whatever the number of ranks. The hosts are network namespaces
(`namespaces`), so it needs root. All ranks live through the benchmark and take turns, A B C C B A. The last table has
three bandwidths between the hosts and a delay, and the update that `cost_model` predicts for them.
"""

import argparse
import multiprocessing
import os
import socket
import statistics
import sys
import time
from collections import Counter
from functools import partial
from itertools import pairwise
from multiprocessing.connection import Connection
from typing import Any

import torch
from accelerate import Accelerator
from timm import create_model
from torch import distributed
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.data import TensorDataset

from benchmarks import cost_model
from benchmarks.collectives import RunParts, recorded
from benchmarks.contenders.job import CLIP, EMA_DECAY, MIXUP, SCHEDULE, Job
from benchmarks.namespaces import INTERFACE, Network, enter, sent_bytes
from benchmarks.pairs import spread
from benchmarks.quiet import quiet
from benchmarks.tables import Table
from timm_accel import TimmMixupTrainer
from timm_accel.callbacks import DEFAULT_CALLBACKS

SKIPPED = 4  # updates in which DDP makes its buckets and TCP its window
BANDWIDTHS = (100, 250, 1000)  # Mbit/s
FORK = multiprocessing.get_context("fork")


class Ranks:
    """The processes of a run, which wait for what to do.

    Args:
        hosts: The name of each rank's host; None for this host.
        address: That of rank 0.
        arguments: What is trained.
    """

    def __init__(self, hosts: list[str | None], address: str, arguments: argparse.Namespace) -> None:
        with socket.socket() as free:
            free.bind(("", 0))
            port = free.getsockname()[1]
        self.pipes = []
        for rank, host in enumerate(hosts):
            variables = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": len(hosts), "LOCAL_WORLD_SIZE": len(hosts)}
            variables |= {"MASTER_ADDR": address, "MASTER_PORT": port} | (
                {"GLOO_SOCKET_IFNAME": INTERFACE} if host else {}
            )
            ours, theirs = FORK.Pipe()
            job = (arguments.model, arguments.image_size, arguments.batch_size)
            together = variables if len(hosts) > 1 else {}
            FORK.Process(target=serve, args=(theirs, host, together, job), daemon=True).start()
            self.pipes.append(ours)

    def ask(self, what: str, count: int) -> list[Any]:
        """Return what the ranks find: `train` updates, `record` their collectives, or `reduce` bytes."""
        for pipe in self.pipes:
            pipe.send((what, count))
        return [pipe.recv() for pipe in self.pipes]


def serve(pipe: Connection, host: str | None, variables: dict[str, Any], job: tuple[str, int, int]) -> None:
    """Do as a rank what it is asked for."""
    if host is not None:
        enter(host)
    os.environ.update({name: str(value) for name, value in variables.items()})
    num_processes = Accelerator().num_processes
    noted: list[tuple[float, float, int]] = []
    register_optimizer_step_post_hook(lambda *_: noted.append((time.perf_counter(), time.process_time(), sent_bytes())))

    def run(updates: int) -> None:
        noted.clear()
        with quiet():
            train(*job, updates, num_processes)

    while True:
        what, count = pipe.recv()
        if what == "train":
            run(count)
            pipe.send([each[SKIPPED:] for each in zip(*noted, strict=True)])
        elif what == "record":
            pipe.send(recorded(partial(run, count)))
        else:
            pipe.send(reduce(count))


def reduce(num_bytes: int) -> float:
    """Return the seconds of an all-reduce, the shortest of four."""
    tensor, seconds = torch.zeros(num_bytes // 4), []
    for _ in range(4):
        distributed.barrier()
        began = time.perf_counter()
        distributed.all_reduce(tensor)
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def train(model: str, image_size: int, batch_size: int, updates: int, num_processes: int) -> None:
    """Train with Mixup, clipping, EMA weights and a schedule, without an evaluation."""
    count = updates * batch_size * num_processes
    data = TensorDataset(torch.randn(count, 3, image_size, image_size), torch.arange(count) % 10)
    job = Job(model, updates, all_parts=True, data=data, batch_size=batch_size, image_size=image_size)
    trainer = TimmMixupTrainer(
        model=job.network,
        optimizer=job.optimizer(),
        loss_func=job.loss,
        mixup_args={**MIXUP, "num_classes": job.num_classes},
        ema_decay=EMA_DECAY,
        clip_grad=CLIP,
        scheduler_args=SCHEDULE,
        callbacks=[*DEFAULT_CALLBACKS, RunParts],
    )
    trainer.train(job.train_data, **job.of_trainer())


def per_update(found: list[Any]) -> tuple[float, float, float]:
    """Return the median seconds of an update, its processor seconds on one rank, and the bytes that a rank sends."""
    (times, processor, sent), *_ = found
    seconds = statistics.median(after - before for before, after in pairwise(times))
    count = len(times) - 1
    return seconds, (processor[-1] - processor[0]) / count, (sent[-1] - sent[0]) / count


def efficiency(ways: dict[str, Ranks], arguments: argparse.Namespace) -> list[Table]:
    """Return the updates of each way beside those of one process, and what they exchange."""
    rows, exchanged = [], []
    found: dict[str, list[tuple[float, float, float]]] = {way: [] for way in ways}
    for number in range(arguments.rounds):
        for way in list(ways)[:: -1 if number % 2 else 1]:
            found[way].append(per_update(ways[way].ask("train", arguments.updates)))
    alone = found["one process"]
    for way, ranks in ways.items():
        rates = spread([1 / seconds for seconds, _, _ in found[way]])
        ratios = [[one[part] / own[part] for one, own in zip(alone, found[way], strict=True)] for part in (0, 1)]
        rows.append([way, rates, *(["", ""] if way == "one process" else [spread(each) for each in ratios])])
        recorded = Counter(map(tuple, ranks.ask("record", 12)[0]))
        calls = [key for key, count in recorded.items() if key[0] == "update" and count >= 10]
        sent = statistics.median(sent for _, _, sent in found[way])
        shown = ", ".join(f"{name} of {size:,}" for _, name, size in sorted(calls, key=lambda call: call[2]))
        exchanged.append([way, str(len(calls)), shown, f"{sent:,.0f}" if way == "two hosts" else ""])
    columns = ["way", "updates a second", "efficiency by time", "efficiency by processor time of a rank"]
    of_calls = ["way", "calls of an update", "bytes that a rank puts in", "bytes that it sends over the link"]
    return [Table("efficiency", columns, rows), Table("an update", of_calls, exchanged)]


def predictions(one: Ranks, two: Ranks, network: Network, num_bytes: int, arguments: argparse.Namespace) -> Table:
    """Return the predicted and the measured update of two hosts, for three bandwidths."""
    rows = []
    for rate in BANDWIDTHS:
        model = cost_model.Network(rate * 1e6 / 8, arguments.delay / 1000)
        network.limit_rate(rate)
        reduced = {size: max(two.ask("reduce", size)) for size in (16, num_bytes)}
        predicted, measured, alone = [], [], []
        for _ in range(arguments.rounds):
            alone.append(per_update(one.ask("train", arguments.updates))[0])
            sizes, backward = cost_model.buckets(num_bytes), cost_model.BACKWARD * alone[-1]
            waits = cost_model.exposed(sizes, backward, lambda size, of=model: of.all_reduce(size, 2))
            predicted.append(alone[-1] + waits)
            measured.append(per_update(two.ask("train", arguments.updates))[0])
        reductions = (f"{1000 * model.all_reduce(size, 2):.0f} / {1000 * took:.0f}" for size, took in reduced.items())
        times = (f"{1000 * statistics.median(each):.0f}" for each in (alone, predicted, measured))
        ratios = [own / guess for own, guess in zip(measured, predicted, strict=True)]
        rows.append([f"{rate} Mbit/s", *reductions, *times, spread(ratios)])
        print(*rows[-1], file=sys.stderr)
    columns = ["link", "16 bytes, ms, predicted / measured", "all gradients, ms, predicted / measured"]
    columns += ["one process, ms", "predicted update, ms", "measured, ms", "measured over predicted"]
    return Table("predicted and measured", columns, rows)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    parser.add_argument("--model", default="resnet10t", help="the name of timm's model")
    parser.add_argument("--image_size", type=int, default=64)
    parser.add_argument("--batch_size", type=int, default=16, help="images of a rank")
    parser.add_argument("--updates", type=int, default=16, help=f"of a round, of which {SKIPPED} warm up")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--delay", type=float, default=2.0, help="milliseconds that a packet takes from host to host")


def main(arguments: argparse.Namespace) -> list[Table]:
    """Return the tables."""
    torch.set_num_threads(1)
    os.environ["ACCELERATE_USE_CPU"] = "true"
    num_bytes = 4 * sum(parameter.numel() for parameter in create_model(arguments.model, num_classes=10).parameters())
    with Network() as near, Network(delay=arguments.delay / 1000) as distant:
        ways = {
            "one process": Ranks([None], "localhost", arguments),
            "two processes": Ranks([None, None], "localhost", arguments),
            "two hosts": Ranks([*near.names], near.addresses[0], arguments),
        }
        far = Ranks([*distant.names], distant.addresses[0], arguments)
        for ranks in (*ways.values(), far):
            ranks.ask("train", SKIPPED + 1)  # warms up
        tables = efficiency(ways, arguments)
        return [*tables, predictions(ways["one process"], far, distant, num_bytes, arguments)]
