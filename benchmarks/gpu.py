"""Measure what the trainer costs on a GPU, beside a loop by hand of the same parts and pytorch-accelerated's trainer.

    python -m benchmarks gpu                            # under 9 minutes on an H100
    python -m benchmarks gpu --small --out small.json   # the same in small, on any machine

Random images and weights, bfloat16 autocast, AdamW; convolutional networks in channels_last. Steps are timed in turn,
the compiled ones several times in a row after they compile once. "Mixup etc." is Mixup and CutMix, clipping by norm,
and a cosine schedule by updates. A part that fails, or for which no time is left, loses no other: its row says so.
"""

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from accelerate.state import AcceleratorState

from benchmarks.gpu_data import ON_GPU, SMALL, Clock, Sizes, write_jpegs
from benchmarks.gpu_ways import EMA, PLAIN, WAYS, Task, Way, ours
from benchmarks.pairs import Pairs, in_turn, spread, together
from benchmarks.quiet import quiet
from benchmarks.tables import ROOT, Table
from timm_accel.callbacks import Callback, SaveStateCallback
from timm_accel.messages import one_line

PRECISION = "ACCELERATE_MIXED_PRECISION"
Steps = dict[str, Pairs]


def seconds_a_step(way: Way, task: Task, clock: Clock) -> list[float]:
    """Train, and return the seconds of a step in each window."""
    with quiet():
        way(task, clock)
    seconds = clock.seconds()
    if ON_GPU:
        torch.cuda.empty_cache()
    return seconds


def compare(ways: dict[str, Way], task: Task, clock: Callable[[], Clock], rounds: int) -> Pairs:
    """Return the seconds of a step of each way, measured in turn."""
    calls = {name: partial(lambda way: seconds_a_step(way, task, clock())[0], way) for name, way in ways.items()}
    return in_turn(calls, rounds)


def resident(sizes: Sizes, steps: Steps) -> str:
    """Measure steps on batches that lie on the device; a small batch shows the cost of the host."""
    for name in sizes.models:
        for batch in sizes.batches:
            for group, ways in WAYS.items():
                if batch == sizes.batches[0] or group in (PLAIN, EMA):
                    task, clock = Task(name, batch, sizes), partial(sizes.clock, batch)
                    steps[f"{name}, {batch}, {group}"] = compare(ways, task, clock, sizes.rounds)
    return "measured"


def compiled(sizes: Sizes, steps: Steps) -> str:
    """Measure the same under ``torch.compile``."""
    batch = sizes.batches[0]
    for name in sizes.models:
        for group in (PLAIN, EMA):
            pairs, task = Pairs({}), Task(name, batch, sizes, compiled=True)
            for way in ("by hand", "timm_accel"):
                torch._dynamo.reset()
                pairs.seconds[way] = seconds_a_step(WAYS[group][way], task, sizes.clock(batch, sizes.rounds))
            steps[f"{name}, {batch}, {group}, compiled"] = pairs
    return "measured"


@contextlib.contextmanager
def one_stream() -> Iterator[None]:
    """Let all that asks for another stream have the current one."""
    current = torch.cuda.current_stream() if ON_GPU else None
    with patch("torch.cuda.Stream", lambda *args, **kwargs: current):
        yield


def without_stream(task: Task, clock: Clock) -> None:
    """Train by our trainer, without the stream that copies the next batch."""
    with one_stream():
        ours(task, clock, mixes=True, averages=True)


def from_memory(sizes: Sizes, steps: Steps) -> str:
    """Measure on bytes in memory, which loader workers carry, with the stream of the next batch and without."""
    batch = sizes.batches[0]
    for name in sizes.models:
        ways, task = WAYS[EMA] | {"timm_accel, one stream": without_stream}, Task(name, batch, sizes, "memory")
        steps[f"{name}, {batch}, {EMA}, from memory"] = compare(ways, task, sizes.input_clock, sizes.input_rounds)
    return "measured"


def from_jpeg(sizes: Sizes, steps: Steps) -> str:
    """Measure on files, decoded and cropped at random by loader workers: timm's loader and ours."""
    batch = sizes.batches[0]
    with tempfile.TemporaryDirectory() as folder:
        write_jpegs(Path(folder), sizes)
        for name in sizes.models:
            task, rounds = Task(name, batch, sizes, Path(folder)), sizes.input_rounds
            steps[f"{name}, {batch}, {EMA}, from JPEG"] = compare(WAYS[EMA], task, sizes.input_clock, rounds)
    return "measured"


def host_waits(sizes: Sizes, steps: Steps) -> str:
    """Train between two sync points, where torch raises an error if the host waits, and count all waits of a step."""
    batch, never = sizes.batches[-1], {"sync_every_n_updates": 1_000_000}
    for source in ("device", "memory"):
        for averages in (False, True):
            way = partial(ours, mixes=True, averages=averages, **never)
            seconds_a_step(way, Task(sizes.models[0], batch, sizes, source), sizes.clock(batch, watch="error"))
    task, counts = Task(sizes.models[0], batch, sizes), []
    for name, way in (WAYS[PLAIN] | WAYS[EMA]).items():  # with all parts where a way has them
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            seconds_a_step(way, task, sizes.clock(batch, watch="warn"))
        waits = sum("called a synchronizing" in str(warning.message) for warning in caught)
        counts.append(f"{name} {waits / sizes.steps[-1]:.2f}")
    return f"none between two sync points; a step, with them: {', '.join(counts)}"


def half_precision(sizes: Sizes, steps: Steps) -> str:
    """Train in float16, and count the updates that the scaler skips."""
    task, clock = Task(sizes.models[0], sizes.batches[-1], sizes), sizes.clock(sizes.batches[-1])
    with patch.dict(os.environ, {PRECISION: "fp16"}), quiet():
        trainer = ours(task, clock, mixes=True, averages=True)
    return f"{clock.total - trainer.num_updates} of {clock.total} updates skipped"


class Saving(Callback):
    """Asks for a state after an update now and then, and times it up to the start of the next step."""

    def __init__(self, warmup: int) -> None:
        self.warmup, self.began, self.seconds = warmup, None, list[float]()

    def on_update_end(self, trainer: Any, **kwargs: Any) -> None:
        if trainer.num_updates > self.warmup and trainer.num_updates % 2 == 0:
            if ON_GPU:
                torch.cuda.synchronize()
            self.began = time.perf_counter()
            trainer.request_save(everywhere=True)

    def on_train_step_start(self, trainer: Any, **kwargs: Any) -> None:
        if self.began is not None:
            self.seconds.append(time.perf_counter() - self.began)
            self.began = None


def saves(sizes: Sizes, steps: Steps) -> str:
    """Time a state of the first model in training, with its EMA weights and the optimizer's state."""
    task, saving = Task(sizes.models[0], sizes.batches[-1], sizes), Saving(sizes.warmup)
    with tempfile.TemporaryDirectory() as folder:
        run_dir, callbacks = Path(folder) / "run", (SaveStateCallback(keep=2), saving)
        way = partial(ours, mixes=True, averages=True, callbacks=callbacks, run_dir=run_dir)
        seconds_a_step(way, task, Clock(sizes.warmup, 2 * sizes.saves + 2))
        newest = max((run_dir / "state").glob("*_epoch_*"))
        mebibytes = sum(path.stat().st_size for path in newest.rglob("*") if path.is_file()) / 2**20
    return f"{mebibytes:.0f} MiB, {spread([1000 * seconds for seconds in saving.seconds], 0)} ms"


def tests(sizes: Sizes, steps: Steps) -> str:
    """Run the tests that need a GPU."""
    environment = {name: value for name, value in os.environ.items() if name != PRECISION}
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "-n", "4"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    lines = done.stdout.strip().splitlines() or [done.stderr.strip()]
    if done.returncode:
        failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
        raise RuntimeError("; ".join([lines[-1].strip("= "), *failed]))
    return lines[-1].strip("= ")


PARTS: dict[str, Callable[[Sizes, Steps], str]] = {
    "steps on the device": resident,
    "host waits": host_waits,
    "float16": half_precision,
    "a state in training": saves,
    "steps from JPEG": from_jpeg,
    "steps from memory": from_memory,
    "steps of compiled models": compiled,
    "tests marked gpu": tests,
}
NEED_GPU = ("host waits", "float16", "steps of compiled models", "tests marked gpu")


class OutOfTimeError(Exception):
    """The time is over."""


def interrupt(*_: object) -> None:
    """End the current part."""
    raise OutOfTimeError("no time was left")


def measure(parts: dict[str, Callable[[Sizes, Steps], str]], sizes: Sizes, seconds: float) -> list[Table]:
    """Return the steps and a row for each part, whatever becomes of it, within some seconds."""
    steps, rows, end = Steps(), [], time.monotonic() + seconds
    signal.signal(signal.SIGALRM, interrupt)
    for name, part in parts.items():
        began = time.monotonic()
        if name in NEED_GPU and not ON_GPU:
            result = "not run: no GPU"
        elif began >= end:
            result = f"not run: the {seconds:.0f} s were over"
        else:
            signal.setitimer(signal.ITIMER_REAL, end - began)
            try:
                result = part(sizes, steps)
            except Exception as error:
                result = f"failed: {type(error).__name__}: {one_line(error, 500)}"
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
                AcceleratorState._reset_state(reset_partial_state=True)
                if ON_GPU:
                    torch.cuda.set_sync_debug_mode("default")
                    torch.cuda.empty_cache()
        rows.append([name, result, f"{time.monotonic() - began:.0f}"])
        print(*rows[-1], sep=" | ", flush=True)
    outcome = Table("parts", ["part", "result", "seconds"], rows)
    return [together("steps", steps), outcome] if steps else [outcome]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    parser.add_argument("--small", action="store_true", help="small models and images")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--seconds", type=float, default=520.0, help="the time for all parts; what remains is not run")


def main(arguments: argparse.Namespace) -> list[Table]:
    """Measure each part."""
    warnings.filterwarnings("ignore", message="Synchronization debug mode is a prototype")
    with patch.dict(os.environ, {PRECISION: "bf16"}):
        parts = {name: PARTS[name] for name in arguments.parts}
        return measure(parts, SMALL if arguments.small else Sizes(), arguments.seconds)
