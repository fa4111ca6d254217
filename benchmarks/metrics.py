"""Time and memory of the default metrics with many classes, against torchmetrics' accuracy alone and its macro F1.

Each runs in a separate process on two batches of four images, as an evaluation of a small set would be.

    python benchmarks/metrics.py [num_classes]
"""

import resource
import subprocess
import sys
import time

import torch
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score

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


def measure(name: str, num_classes: int) -> None:
    """Print the median time of an evaluation in ms, and the memory that it added to the process in MB."""
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
    print(f"{name}: {1000 * sorted(times)[len(times) // 2]:.2f} ms, {added / 1024:.0f} MB")


if __name__ == "__main__":
    if len(sys.argv) > 2:
        measure(sys.argv[2], int(sys.argv[1]))
    else:
        num_classes = sys.argv[1] if len(sys.argv) > 1 else "21841"
        for name in ("accuracy alone", "accuracy, top-5 and F1 by counts", "torchmetrics"):
            subprocess.run([sys.executable, __file__, num_classes, name], check=True)
