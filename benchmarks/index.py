"""Measure the cost of finding a million images with our index, timm's reader and torchvision, each in a new process.

    python -m benchmarks index --files 1000000 --classes 1000 --workers 4

Creates empty files in a temporary folder. The table has the seconds of the search, the CPU seconds (which other
programs disturb less), and the memory without the imports. Memory is that of the process (RSS), and of the process with
forked workers that each read every path and label (the sum of PSS, which counts a shared page once). The line "nothing"
forks without samples, which is the base cost of workers. Needs Linux.
"""

import argparse
import gc
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from timm.data.readers.reader_image_folder import ReaderImageFolder
from torchvision.datasets import ImageFolder

from benchmarks.tables import Table
from timm_accel.data.readers.folder_index import FolderReader

SETTLE_SECONDS = 2.5  # an index of folders that changed a moment ago is not saved


def write_files(root: Path, num_files: int, num_classes: int) -> None:
    """Create empty files with names like ImageNet's."""
    for label in range(num_classes):
        folder = root / f"n{label:08d}"
        folder.mkdir(parents=True)
        for number in range(label, num_files, num_classes):
            os.close(os.open(folder / f"n{label:08d}_{number}.JPEG", os.O_CREAT | os.O_WRONLY))


def ours(root: Path) -> Callable[[], Iterator[tuple[str, int]]]:
    """Find with the index."""
    reader = FolderReader(root, root.parent / "cache")
    return lambda: ((reader.path(index), int(reader.labels[index])) for index in range(len(reader)))


def timms(root: Path) -> Callable[[], Iterator[tuple[str, int]]]:
    """Find with timm."""
    reader = ReaderImageFolder(str(root))
    return lambda: iter(reader.samples)


def torchvisions(root: Path) -> Callable[[], Iterator[tuple[str, int]]]:
    """Find with torchvision."""
    dataset = ImageFolder(str(root))
    return lambda: iter(dataset.samples)


def nothing(root: Path) -> Callable[[], Iterator[tuple[str, int]]]:
    """Find nothing."""
    return lambda: iter(())


def memory(kind: str) -> float:
    """Return the RSS or PSS of this process in MB."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{kind}:")) * 1024 / 1e6


def touch(samples: Callable[[], Iterator[Any]], all_touched: Any, all_measured: Any, results: Any) -> None:
    """Read every path and label in each worker, then measure while all workers are alive."""
    number = sum(1 for path, label in samples() if path and label >= 0)
    all_touched.wait()
    results.put((number, memory("Pss")))
    all_measured.wait()


def measure(find: Callable[[Path], Any], root: Path, num_workers: int) -> dict[str, float]:
    """Search and fork in this process, which has only imported modules before."""
    gc.collect()
    before = memory("Rss"), memory("Pss")
    began = time.perf_counter(), time.process_time()
    samples = find(root)
    row = {"seconds": time.perf_counter() - began[0], "CPU": time.process_time() - began[1]}
    gc.collect()
    gc.freeze()  # so that no garbage collection in a worker copies imported pages
    row["RSS"] = memory("Rss") - before[0]
    fork = multiprocessing.get_context("fork")
    all_touched, all_measured, results = fork.Barrier(num_workers + 1), fork.Barrier(num_workers + 1), fork.Queue()
    arguments = (samples, all_touched, all_measured, results)
    workers = [fork.Process(target=touch, args=arguments) for _ in range(num_workers)]
    for worker in workers:
        worker.start()
    all_touched.wait()
    row["sum of PSS"] = memory("Pss") - before[1]
    for number, amount in [results.get() for _ in workers]:
        row["samples"] = number
        row["sum of PSS"] += amount
    all_measured.wait()
    for worker in workers:
        worker.join()
    return row


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    parser.add_argument("--files", type=int, default=1_000_000)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--workers", type=int, default=4)


def main(arguments: argparse.Namespace) -> list[Table]:
    """Measure all variants one after the other."""
    ways = [
        ("nothing", nothing),
        ("torchvision", torchvisions),
        ("timm", timms),
        ("ours, first start", ours),
        ("ours, second start", ours),
        ("ours, third start", ours),
        ("timm again", timms),
        ("torchvision again", torchvisions),
    ]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder, "images")
        write_files(root, arguments.files, arguments.classes)
        time.sleep(SETTLE_SECONDS)
        for name, find in ways:
            spawn = multiprocessing.get_context("spawn")
            with ProcessPoolExecutor(1, mp_context=spawn) as pool:
                row = pool.submit(measure, find, root, arguments.workers).result()
            expected = 0 if find is nothing else arguments.files
            if row["samples"] != expected:
                raise RuntimeError(f"Expected {expected} samples, but {name} found {row['samples']}.")
            memories = [f"{row['RSS']:.0f}", f"{row['sum of PSS']:.0f}"]
            rows.append([name, f"{row['seconds']:.2f}", f"{row['CPU']:.2f}", *memories])
        size = sum(file.stat().st_size for file in (root.parent / "cache").iterdir())
    rows.append(["the index on the disk", "", "", f"{size / 1e6:.0f}", ""])
    columns = ["", "seconds", "CPU seconds", "resident, MB", f"PSS of {1 + arguments.workers} processes, MB"]
    return [Table("search", columns, rows)]
