"""Time and memory of the default metrics with many classes, against torchmetrics' accuracy alone and its macro F1.

Each runs in a separate process on two batches of four images, as an evaluation of a small set would be.

    python -m benchmarks metrics --num_classes 21841
"""

import argparse
import multiprocessing
import resource
import statistics
import time
from concurrent.futures import ProcessPoolExecutor

import torch
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score

from benchmarks.tables import Table
from timm_accel.predict.counts import MacroF1, TopKAccuracy

BATCH_SIZE, NUM_BATCHES, REPEATS = 4, 2, 20


def metrics_of(name: str, num_classes: int) -> MetricCollection:
    """Return the metrics of a row of the table."""
    options = {"validate_args": False}
    accuracy = MulticlassAccuracy(num_classes, average="micro", **options)
    if name == "accuracy alone":
        return MetricCollection({"accuracy": accuracy})
    if name == "torchmetrics":
        f1, top5 = MulticlassF1Score(num_classes, **options), MulticlassAccuracy(num_classes, top_k=5, average="micro")
        return MetricCollection({"accuracy": accuracy, "f1": f1, "top5": top5}, compute_groups=False)
    counts = {"accuracy": TopKAccuracy(), "f1": MacroF1(num_classes), "top5": TopKAccuracy(top_k=5)}
    return MetricCollection(counts, compute_groups=False)


def measure(name: str, num_classes: int) -> list[str]:
    """Return the row of the table: the median time of an evaluation, and the memory that it added to the process."""
    torch.set_num_threads(1)
    logits, labels = torch.randn(BATCH_SIZE, num_classes), torch.randint(num_classes, (BATCH_SIZE,))
    metrics = metrics_of(name, num_classes)
    before, times = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, []
    for _ in range(1 if name == "torchmetrics" else REPEATS):
        metrics.reset()
        start = time.perf_counter()
        for _ in range(NUM_BATCHES):
            metrics.update(logits, labels)
        metrics.compute()
        times.append(time.perf_counter() - start)
    added = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return [name, f"{1000 * statistics.median(times):.2f}", f"{added / 1024:.0f}"]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    parser.add_argument("--num_classes", type=int, default=21841)


def main(arguments: argparse.Namespace) -> list[Table]:
    """Measure each in a new process."""
    rows = []
    for name in ("accuracy alone", "accuracy, top-5 and F1 by counts", "torchmetrics"):
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            rows.append(pool.submit(measure, name, arguments.num_classes).result())
    return [Table("an evaluation", ["metrics", "ms", "MB"], rows)]
