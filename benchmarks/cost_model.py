"""Predict what an epoch costs on more GPUs than there are here: its parts in seconds, and which of them is the limit.

    python -m benchmarks cost_model

Pure arithmetic. The constants are measured by the other benchmarks, or are published figures, each with its source.
`python -m benchmarks scale` compares a prediction with the time of real updates.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import ceil, log2

from benchmarks.tables import Table

MIB = 2**20
FIRST_BUCKET, BUCKET = 1 * MIB, 25 * MIB  # DDP's
BACKWARD = 2 / 3  # of a step
EVALUATED = 50_000  # ImageNet's validation images

# Measured by us (RESULTS.md, "Steps on a GPU"): images a second of an H100 with Mixup, clipping and EMA, 3,241 of
# resnet50d and 5,035 of vit_small; with 32 images a step takes 36 ms, since the host is the limit. Not measured by us:
# resnet50 over resnet50d, 826 to 745, and vit_base over vit_small, 391 to 1,053, are timm's figures for an RTX 3090
# (results/benchmark-train-amp-nchw-pt112-cu113-rtx3090.csv of its repository, 2022).
RATES = {"resnet50": 3241 * 826 / 745, "vit_base": 5035 * 391 / 1053}
FLOOR = 0.036
PARAMETERS = {
    ("resnet50", 1_000): 25_557_032,
    ("resnet50", 21_841): 68_260_241,
    ("vit_base", 1_000): 86_567_656,
    ("vit_base", 21_841): 102_594_385,
}
IMAGES = {1_000: 1_281_167, 21_841: 14_197_122}  # ImageNet-1k and 22k
INPUT = 252.0  # images a second of one core, JPEG of 500 by 375 px with RandAugment (RESULTS.md, "Scale")
CORES = 16  # of each GPU
STATE_BYTES = 16  # of a parameter: weight, two moments of AdamW, EMA weight
COPY, WRITE = 391 * MIB / 0.100, 391 * MIB / 0.808  # bytes a second (RESULTS.md, "Our state and accelerate's")


@dataclass(frozen=True)
class Network:
    """What joins the ranks.

    Args:
        bandwidth: Bytes a second that a rank sends, while it receives as many.
        latency: Seconds that a packet takes.
        is_tree: Whether an all-reduce goes along trees, as NCCL's between hosts, or around a ring, as gloo's, which
            announces each message, so that it takes two latencies.
    """

    bandwidth: float
    latency: float
    is_tree: bool = False

    def all_reduce(self, num_bytes: float, ranks: int) -> float:
        """Return the seconds of an all-reduce."""
        if ranks == 1:
            return 0.0
        packets = 2 * ceil(log2(ranks)) if self.is_tree else 4 * (ranks - 1)
        return 2 * (ranks - 1) / ranks * num_bytes / self.bandwidth + packets * self.latency

    def sync_point(self, ranks: int) -> float:
        """Return the seconds of our sync point: a small message for each doubling of the ranks, and an announcement."""
        return self.latency * (ceil(log2(ranks)) + 1) if ranks > 1 else 0.0

    def gather(self, ranks: int) -> float:
        """Return the seconds in which gloo gathers small objects: their sizes go around a ring, announced messages."""
        return self.latency * 2 * ranks if ranks > 1 else 0.0


@dataclass(frozen=True)
class Machines:
    """The ranks, one for each GPU, and what they have.

    Args:
        ranks: Their number.
        network: It reduces gradients.
        host_network: It carries the requests of sync points and the objects of states, over gloo.
        input_rate: Images a second that the loader workers of a rank prepare.
    """

    ranks: int
    network: Network
    host_network: Network
    input_rate: float


@dataclass(frozen=True)
class Training:
    """What is trained.

    Args:
        images: The training images.
        parameters: Those that have a gradient.
        batch_size: Images of a rank and micro-batch.
        rate: Images a second of a rank where the device is the limit.
        floor: Seconds of a step where the host is the limit.
        accumulation: Micro-batches of an update.
        sync_every: Updates from one sync point to the next.
        states: The states of an epoch.
        evaluations: The evaluations of an epoch, each of the model and of the EMA weights.
    """

    images: int
    parameters: int
    batch_size: int
    rate: float
    floor: float = 0.0
    accumulation: int = 1
    sync_every: int = 10
    states: int = 1
    evaluations: int = 1


def buckets(num_bytes: float) -> list[float]:
    """Return the bytes of DDP's gradient buckets, in the order in which the backward pass fills them."""
    sizes = [min(num_bytes, FIRST_BUCKET)]
    while (rest := num_bytes - sum(sizes)) > 0:
        sizes.append(min(rest, BUCKET))
    return sizes


def exposed(sizes: Sequence[float], backward: float, all_reduce: Callable[[float], float]) -> float:
    """Return the seconds for which an update waits for gradients once its backward pass has ended.

    A bucket is sent when it is full and the one before has arrived, while the backward pass continues.

    Args:
        sizes: The bytes of the buckets.
        backward: The seconds of the backward pass, which fills them at an even pace.
        all_reduce: Returns the seconds of a bucket.
    """
    full = arrived = 0.0
    for size in sizes:
        full += backward * size / sum(sizes)
        arrived = max(full, arrived) + all_reduce(size)
    return arrived - backward


def cost(training: Training, machines: Machines) -> dict[str, float]:
    """Return the seconds of an epoch by part; they add up to its time."""
    images = training.batch_size * training.accumulation
    updates = ceil(training.images / (images * machines.ranks))
    step = max(training.batch_size / training.rate, training.floor)
    compute = training.accumulation * step
    sizes = buckets(4 * training.parameters)
    waits = exposed(sizes, BACKWARD * step, lambda size: machines.network.all_reduce(size, machines.ranks))
    waits = waits if machines.ranks > 1 else 0.0
    sync, gathered = machines.host_network.sync_point(machines.ranks), machines.host_network.gather(machines.ranks)
    reduced = machines.network.all_reduce(16, machines.ranks)
    starved = max(0.0, images / machines.input_rate - compute - waits)
    state = STATE_BYTES * training.parameters
    before_states = updates * (compute + waits + starved) / max(training.states, 1)  # the write before must have ended
    evaluated = ceil(EVALUATED / machines.ranks)
    return {
        "compute": updates * compute,
        "all-reduce": updates * waits,
        "input": updates * starved,
        "sync points": (updates / training.sync_every + 3 + training.states) * sync,  # as docs/scale.md lists them
        "states": training.states * (state / COPY + max(0.0, state / WRITE - before_states) + gathered),
        "evaluation": training.evaluations
        * (max(evaluated * 2 / 3 / training.rate, evaluated / machines.input_rate) + 6 * reduced),
    }


# Not measured by us. NCCL's bus bandwidth on hosts of 8 H100 with a network card of 400 Gb/s each: 400 to 450 GB/s
# (saturncloud.io/blog/crusoe-nccl-cluster-validation), on one host 460 to 480 (docs.alayanew.com/en/docs/tech-blog/
# 2026-05-06-nccl-tests). The other network is one card of 100 Gb/s for the 8 GPUs of a host. Latencies are assumed.
NETWORKS = {
    "8 × 400 Gb/s": Network(400e9, 20e-6, is_tree=True),
    "100 Gb/s": Network(12.5e9, 50e-6, is_tree=True),
}
ONE_HOST = Network(460e9, 10e-6, is_tree=True)
TCP = 25e-6  # assumed, half of a round trip
MOVES = {
    "compute": "`torch_compile`, `fast`",
    "all-reduce": "`gradient_accumulation_steps`, `batch_size`",
    "input": "`draft`, `cache`, more cores",
    "sync points": "`sync_every_n_updates`",
    "states": "`save_every_n_epochs`",
    "evaluation": "`evaluate_every_n_epochs`",
}


def limit(parts: dict[str, float]) -> str:
    """Return the part to shorten first: the longest that keeps the model from training, where it is 5 % of the time."""
    longest = max(parts.keys() - {"compute"}, key=lambda part: parts[part])
    return longest if parts[longest] > 0.05 * sum(parts.values()) else "compute"


def predicted(model: str, num_classes: int, gpus: int, network: str, **changes: float) -> dict[str, float]:
    """Return the parts of an epoch on ImageNet with 256 images a GPU, and at most 32,768 images an update."""
    joined = ONE_HOST if gpus <= 8 else NETWORKS[network]
    batch_size = min(256, 32_768 // gpus)
    training = Training(IMAGES[num_classes], PARAMETERS[model, num_classes], batch_size, RATES[model], FLOOR)
    machines = Machines(gpus, joined, Network(1e9, TCP), CORES * INPUT)
    of_machines = {name: value for name, value in changes.items() if hasattr(machines, name)}
    of_training = {name: value for name, value in changes.items() if name not in of_machines}
    return cost(replace(training, **of_training), replace(machines, **of_machines))


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add no option."""


def main(arguments: argparse.Namespace) -> list[Table]:
    """Return the predictions, a row for each model, dataset, number of GPUs and network."""
    rows = []
    for model, num_classes in PARAMETERS:
        for gpus, network in ((8, ""), *((gpus, network) for gpus in (64, 1024) for network in NETWORKS)):
            parts = predicted(model, num_classes, gpus, network)
            total = sum(parts.values())
            shares = [f"{100 * seconds / total:.0f}" for seconds in parts.values()]
            where = f"{gpus:,}" + (f", {network}" if network else "")
            rows.append([model, f"{num_classes:,}", where, f"{total:.3g}", *shares, limit(parts), MOVES[limit(parts)]])
    columns = ["model", "classes", "GPUs, network", "s", *(f"{part}, %" for part in parts), "limit", "what moves it"]
    return [Table("an epoch", columns, rows)]
