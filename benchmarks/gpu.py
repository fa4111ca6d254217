"""What the trainer costs on a GPU, beside a loop written by hand from the same parts and pytorch-accelerated's trainer.

    python benchmarks/gpu.py --out gpu.json      # under 9 minutes on an H100
    python benchmarks/gpu.py --small             # the same in small, on any machine

Random images and weights, bfloat16 autocast, AdamW; convolutional networks in channels_last. Parts:

1. Images a second of a training step, with batches that lie on the device already. The ways take turns within a run;
   throughput is relative to the loop by hand with the same techniques, pair by pair. A small batch shows the cost of
   the host.
2. The same under ``torch.compile``: each way compiles once and is measured several times in a row.
3. Host waits a step, as ``torch.cuda.set_sync_debug_mode`` counts them.
4. What single parts cost the host, and where our step spends its time there.
5. One state, saved in the middle of training.
6. Bytes in memory, carried by loader workers and finished on the device: with a separate stream, and without.
"""

import argparse
import contextlib
import cProfile
import io
import json
import os
import platform
import pstats
import random
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import accelerate
import timm
import torch
from gpu_ways import (
    CLIP,
    COMPILED,
    DEVICE,
    FULL,
    MIXUP,
    SMALL,
    WAYS,
    Clock,
    Sizes,
    Task,
    Ticking,
    adamw,
    ours,
)
from timm.loss import SoftTargetCrossEntropy
from torch.utils.data import Dataset

from timm_accel import TimmMixupTrainer
from timm_accel.callbacks import DEFAULT_CALLBACKS, Callback, SaveStateCallback
from timm_accel.data.seeding import seed_step
from timm_accel.data.transforms.device_transform import DeviceTransform


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Swallow the progress bars and lines."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


def timed(way: str, task: Task, clock: Clock) -> list[float]:
    """Return the images a second of each window."""
    with quiet():
        WAYS[way][1](task, clock)
    rates = [task.batch / seconds for seconds in clock.seconds()]
    if DEVICE.type == "cuda":
        torch.cuda.empty_cache()
    return rates


def spread(values: list[float], digits: int = 2) -> str:
    """Return the median, the least and the most."""
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def show(title: str, found: dict[str, list[float]], batch: int) -> None:
    """Print a row for each way."""
    for way, rates in found.items():
        reference = found[WAYS[way][0]]
        ratios = [rate / other for rate, other in zip(rates, reference, strict=True)]
        milliseconds = 1000 * batch / statistics.median(rates)
        print(f"| {title} | {way} | {statistics.median(rates):.0f} | {milliseconds:.2f} | {spread(ratios, 3)} |")


def step_rates(sizes: Sizes) -> dict[str, Any]:
    """Measure every way, taking turns."""
    results: dict[str, Any] = {}
    print("| model, batch | way | images a second | ms a step | throughput over by hand, median (minimum to maximum) |")
    print("|---|---|---|---|---|")
    for name in sizes.models:
        for batch in sizes.batches:
            task, found = Task(name, batch, sizes), {way: [] for way in WAYS}
            timed("by hand, plain", task, Clock(sizes.warmup, sizes.count(batch)))  # fills caches of the libraries
            for _ in range(sizes.runs):
                for way in random.sample(list(WAYS), len(WAYS)):
                    found[way] += timed(way, task, Clock(sizes.warmup, sizes.count(batch)))
            show(f"{name}, {batch}", found, batch)
            results[f"{name}, {batch}"] = found
    return results


def compiled_rates(sizes: Sizes) -> dict[str, Any]:
    """Measure the compiled models, each way several times in a row."""
    results: dict[str, Any] = {}
    batch = sizes.batches[0]
    for name in sizes.models:
        found = {}
        for way in COMPILED:
            torch._dynamo.reset()
            clock = Clock(2 * sizes.warmup, sizes.count(batch), sizes.runs)
            found[way] = timed(way, Task(name, batch, sizes, compiled=True), clock)
        show(f"{name}, {batch}, compiled", found, batch)
        results[f"{name}, {batch}"] = found
    return results


def host_waits(sizes: Sizes) -> dict[str, float]:
    """Return the waits a step of every way."""
    results = {}
    for way in WAYS:
        clock = Clock(sizes.warmup, sizes.count(sizes.batches[-1]), watch=True)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            timed(way, Task(sizes.models[0], sizes.batches[-1], sizes), clock)
        results[way] = sum("synchronizing" in str(warning.message) for warning in caught) / clock.steps
        print(f"| {way} | {results[way]:.2f} waits a step |")
    return results


def microseconds(work: Callable[[], Any], times: int) -> float:
    """Return what a call takes the host."""
    work()
    began = time.perf_counter()
    for _ in range(times):
        work()
    return 1e6 * (time.perf_counter() - began) / times


def host_costs(sizes: Sizes) -> dict[str, Any]:
    """Time single parts, and profile our step on the host."""
    task, profile = Task(sizes.models[0], sizes.batches[-1], sizes), cProfile.Profile()

    class Profiled(Clock):
        def tick(self) -> None:
            super().tick()
            if self.done == self.warmup:
                profile.enable()
            elif self.done == self.total:
                profile.disable()

    clock = Profiled(sizes.warmup, sizes.count(task.batch))
    with quiet():
        trainer = ours(task, clock, True, True)
    average, model = trainer.ema_model, trainer.unwrapped_model
    costs = {
        "unwrapped_model": microseconds(lambda: trainer.unwrapped_model, 200),
        "evaluated_models()": microseconds(trainer.evaluated_models, 200),
        "ModelEmaV3.update": microseconds(lambda: average.update(model, step=1), 20),
        "two state_dict()s": microseconds(lambda: (average.module.state_dict(), model.state_dict()), 20),
        "seed_step": microseconds(lambda: seed_step(0, 0, 0, 0, trainer.device), 200),
        "an event of the callbacks": microseconds(
            lambda: trainer.callback_handler.call_event("on_train_step_start", trainer), 200
        ),
    }
    for name, cost in costs.items():
        print(f"| {name} | {cost:.0f} µs |")
    text = io.StringIO()
    pstats.Stats(profile, stream=text).sort_stats("cumulative").print_stats(60)
    pstats.Stats(profile, stream=text).sort_stats("tottime").print_stats(25)
    return {"microseconds": costs, "profiled steps": clock.steps, "profile": text.getvalue()}


class Saving(Callback):
    """Asks for a state after an update now and then, and times it up to the start of the next step."""

    def __init__(self, warmup: int) -> None:
        self.warmup, self.began, self.seconds = warmup, None, []

    def on_update_end(self, trainer: Any, **kwargs: Any) -> None:
        if trainer.num_updates > self.warmup and trainer.num_updates % 2 == 0:
            if DEVICE.type == "cuda":
                torch.cuda.synchronize()
            self.began = time.perf_counter()
            trainer.request_save(everywhere=True)

    def on_train_step_start(self, trainer: Any, **kwargs: Any) -> None:
        if self.began is not None:
            self.seconds.append(time.perf_counter() - self.began)
            self.began = None


def saves(sizes: Sizes) -> dict[str, Any]:
    """Time a state of the first model, with its EMA weights and the optimizer's state."""
    task, saving = Task(sizes.models[0], sizes.batches[-1], sizes), Saving(sizes.warmup)
    clock = Clock(sizes.warmup, 2 * sizes.saves + 2)
    with tempfile.TemporaryDirectory() as folder, quiet():
        run_dir = Path(folder) / "run"
        ours(task, clock, True, True, (SaveStateCallback(keep=2), saving), run_dir=run_dir)
        newest = max((run_dir / "state").glob("*_epoch_*"))
        mebibytes = sum(path.stat().st_size for path in newest.rglob("*") if path.is_file()) / 2**20
    milliseconds = [1000 * seconds for seconds in saving.seconds]
    print(f"| a state of {task.name}, {mebibytes:.0f} MiB | {spread(milliseconds, 0)} ms |")
    return {"mebibytes": mebibytes, "milliseconds": milliseconds}


class InMemory(Dataset):
    """Random bytes in memory, to be finished on the device."""

    def __init__(self, sizes: Sizes, count: int) -> None:
        shape = (min(512, sizes.images), 3, sizes.image_size, sizes.image_size)
        self.pixels = torch.randint(256, shape, dtype=torch.uint8)
        self.count, self.num_classes = count, sizes.num_classes
        self.device_transform = DeviceTransform((0.5,) * 3, (0.25,) * 3, re_prob=0.25, re_mode="pixel")

    def load(self, index: int) -> tuple[torch.Tensor, int]:
        return self.pixels[index % len(self.pixels)], index % self.num_classes

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        image, label = self.load(index)
        return self.device_transform(image), label

    def __len__(self) -> int:
        return self.count


@contextlib.contextmanager
def one_stream() -> Iterator[None]:
    """Let all that asks for another stream have the current one."""
    if DEVICE.type == "cpu":
        yield
        return
    present = torch.cuda.current_stream(DEVICE)
    with patch("torch.cuda.Stream", lambda *args, **kwargs: present):
        yield


def streamed(sizes: Sizes) -> dict[str, list[float]]:
    """Measure our trainer on bytes from memory, with the stream of the next batch and without, in turn."""
    found: dict[str, list[float]] = {"a separate stream": [], "none": []}
    batch = sizes.batches[0]
    for _ in range(sizes.runs):
        for kind in random.sample(list(found), 2):
            clock = Clock(sizes.warmup, max(1, sizes.images // batch - sizes.warmup))
            task = Task(sizes.models[0], batch, sizes)
            plain, model = task.model()
            trainer = TimmMixupTrainer(
                model=model,
                loss_func=SoftTargetCrossEntropy(),
                optimizer=adamw(plain),
                callbacks=[*DEFAULT_CALLBACKS, Ticking(clock)],
                mixup_args=MIXUP,
                num_class=sizes.num_classes,
                ema_decay=0.5,
                clip_grad=CLIP,
            )
            with one_stream() if kind == "none" else contextlib.nullcontext(), quiet():
                trainer.train(
                    InMemory(sizes, batch * clock.total),
                    1,
                    per_device_batch_size=batch,
                    train_dataloader_kwargs={"num_workers": sizes.workers, "persistent_workers": False},
                )
            found[kind] += [batch / seconds for seconds in clock.seconds()]
    ratios = [one / none for one, none in zip(*found.values(), strict=True)]
    for kind, rates in found.items():
        print(f"| bytes from memory, {kind} | {statistics.median(rates):.0f} images a second |")
    print(f"| with over without | {spread(ratios, 3)} |")
    return found


def about() -> dict[str, Any]:
    """Return what it ran on."""
    gpu = torch.cuda.get_device_name() if DEVICE.type == "cuda" else None
    return {
        "device": gpu or platform.processor() or "CPU",
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "timm": timm.__version__,
        "accelerate": accelerate.__version__,
    }


PARTS: dict[str, Callable[[Sizes], Any]] = {
    "step rates": step_rates,
    "host waits": host_waits,
    "host costs": host_costs,
    "saves": saves,
    "streams": streamed,
    "compiled": compiled_rates,
}


def main(sizes: Sizes, out: Path | None, parts: list[str]) -> None:
    """Measure each part, print its rows, and keep what was measured after each."""
    os.environ["ACCELERATE_MIXED_PRECISION"] = "bf16"
    warnings.filterwarnings("ignore", message="Synchronization debug mode is a prototype")
    results: dict[str, Any] = {"about": about(), "sizes": vars(sizes), "seconds": {}}
    print(results["about"])
    for part in parts:
        if part == "compiled" and not sizes.compiles:
            continue
        began = time.perf_counter()
        print(f"\n{part}", flush=True)
        results[part] = PARTS[part](sizes)
        results["seconds"][part] = time.perf_counter() - began
        if out is not None:
            out.write_text(json.dumps(results, indent=2))
    print(results["seconds"])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    given = parser.parse_args()
    main(SMALL if given.small else FULL, given.out, given.parts)
