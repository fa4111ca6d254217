"""Measure when the speed options of the model pay on a CPU.

Layout, precision and gradient checkpointing of a whole step; for-loop, foreach and fused updates of an optimizer;
and how two cores are shared by the model and the loader workers. Random weights and images. The first two are measured
in processor time with one thread, which other programs hardly change; the last one in wall time.

``--parts compilation`` measures torch.compile of the whole model and of its blocks. That takes minutes and a C++
compiler, so it is not measured by default.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.data import DataLoader

from benchmarks.pairs import in_turn, spread
from benchmarks.tables import Table
from timm_accel import create_classifier, create_datasets

MODELS = {"tf_efficientnet_lite0": (224, 16), "resnet10t": (56, 128), "vit_tiny_patch16_224": (224, 8)}
SHARED = "resnet10t"
OPTIMIZERS = {"AdamW": torch.optim.AdamW, "SGD with momentum": torch.optim.SGD}
SPLITS = [(2, 0), (2, 1), (2, 2), (1, 1), (1, 2)]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--images", type=int, default=128, help="JPEGs of an epoch, for threads and workers")
    parser.add_argument("--parts", nargs="+", default=[*PARTS][:3], choices=[*PARTS])


def processor_seconds(work: Callable[[], Any]) -> float:
    """Return the processor time of a call."""
    began = time.process_time()
    work()
    return time.process_time() - began


class Step:
    """One training step of AdamW on fixed images."""

    def __init__(self, name: str, *, layout: Any = torch.contiguous_format, half: bool = False, **options: Any) -> None:
        size, count = MODELS[name]
        model, _ = create_classifier(name, 10, image_size=size, **options)
        self.model: Any = model.to(memory_format=layout).train()
        self.optimizer = torch.optim.AdamW(model.parameters(), fused=True)
        self.images, self.labels, self.half = torch.randn(count, 3, size, size), torch.arange(count) % 10, half

    def loss(self) -> torch.Tensor:
        """Return the loss of the forward pass."""
        with torch.autocast("cpu", torch.bfloat16, enabled=self.half):
            return nn.functional.cross_entropy(self.model(self.images), self.labels)

    def run(self) -> None:
        """Do the whole step."""
        self.loss().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def seconds(self) -> float:
        """Return the processor time of a step."""
        return processor_seconds(self.run)

    def kept_megabytes(self) -> float:
        """Return the size of what the forward pass keeps for the backward pass, without the weights."""
        weights = {each.untyped_storage().data_ptr() for each in self.model.parameters()}
        kept: dict[int, int] = {}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        with saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = self.loss()
        assert loss.requires_grad  # alive until here, so that no address comes twice
        return sum(kept.values()) / 1e6


def steps(names: list[str], rounds: int) -> Table:
    """Compare layout, precision and gradient checkpointing."""
    rows = []
    for name in names:
        size, count = MODELS[name]
        ways = {
            "float32": Step(name),
            "channels_last": Step(name, layout=torch.channels_last),
            "bf16": Step(name, half=True),
            "bf16, channels_last": Step(name, half=True, layout=torch.channels_last),
            "grad_checkpointing": Step(name, grad_checkpointing=True),
        }
        pairs = in_turn({way: step.seconds for way, step in ways.items()}, rounds)
        for way, step in ways.items():
            ratio = "" if way == "float32" else spread(pairs.ratios(way, "float32"))
            milliseconds = spread([1000 * each for each in pairs.seconds[way]], 0)
            rows.append(
                [f"{name}, {size} px, {count} images", way, milliseconds, ratio, f"{step.kept_megabytes():.0f}"]
            )
    columns = ["model", "way", "ms of processor time a step", "time over float32", "MB kept for the backward pass"]
    return Table("steps", columns, rows)


def updates(names: list[str], rounds: int) -> Table:
    """Compare the ways of an optimizer's update."""
    rows = []
    for name in names:
        for kind, create in OPTIMIZERS.items():
            options = {"momentum": 0.9} if create is torch.optim.SGD else {}
            ways: dict[str, Callable[[], float]] = {}
            for way, chosen in {
                "for-loop": {"foreach": False},
                "foreach": {"foreach": True},
                "fused": {"fused": True},
            }.items():
                model, _ = create_classifier(name, 10)
                for parameter in model.parameters():
                    parameter.grad = torch.randn_like(parameter)
                optimizer = create(model.parameters(), lr=1e-3, **options, **chosen)
                ways[way] = lambda step=optimizer.step: processor_seconds(lambda: [step() for _ in range(10)])  # type: ignore[misc]
            pairs = in_turn(ways, rounds, count=10)
            for way, taken in pairs.seconds.items():
                ratio = "" if way == "for-loop" else spread(pairs.ratios(way, "for-loop"))
                rows.append([name, kind, way, spread([1000 * each for each in taken], 1), ratio])
    columns = ["model", "optimizer", "way", "ms of processor time an update", "time over for-loop"]
    return Table("updates of optimizers", columns, rows)


def write_jpegs(folder: Path, count: int, size: int = 400) -> None:
    """Write smooth random JPEGs of two classes."""
    random = np.random.default_rng(0)
    for number in range(count):
        path = folder / "train" / str(number % 2) / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(random.integers(0, 256, (25, 25, 3), dtype=np.uint8))
        coarse.resize((size, size), Image.Resampling.BICUBIC).save(path, quality=90)


class Epoch:
    """A training epoch with so many threads for the model, and so many loader workers."""

    def __init__(self, train_set: Any, threads: int, workers: int, size: int) -> None:
        self.threads, self.size = threads, size
        self.step = Step(SHARED, layout=torch.channels_last)
        self.loader = DataLoader(train_set, 32, num_workers=workers, persistent_workers=workers > 0, drop_last=True)

    def run(self) -> None:
        """Train for the epoch."""
        before = torch.get_num_threads()
        torch.set_num_threads(self.threads)
        for images, labels in self.loader:
            self.step.images, self.step.labels = images.float() / 255, labels
            self.step.run()
        torch.set_num_threads(before)


def splits(rounds: int, count: int) -> Table:
    """Compare how two cores are shared, where the loader is the limit and where the model is."""
    rows = []
    for size in (64, 128):
        with tempfile.TemporaryDirectory() as folder:
            write_jpegs(Path(folder), count)
            (Path(folder) / "val").symlink_to(Path(folder) / "train")
            train_set, _ = create_datasets(size, (0.5,) * 3, (0.5,) * 3, data=folder)
            ways = {split: Epoch(train_set, *split, size) for split in SPLITS}
            pairs = in_turn({str(split): epoch.run for split, epoch in ways.items()}, rounds, count)
            for split in SPLITS:
                rate = spread([1 / each for each in pairs.seconds[str(split)]], 0)
                ratio = "" if split == SPLITS[2] else spread(pairs.ratios(str(split), str(SPLITS[2])))
                rows.append([f"{SHARED}, {size} px", *split, rate, ratio])
    columns = ["model", "threads of the model", "loader workers", "images a second", "time over 2 threads, 2 workers"]
    return Table("threads and workers", columns, rows)


def compilations(names: list[str], rounds: int) -> Table:
    """Compare the whole model compiled, and its blocks one by one, with the plain model in channels_last."""
    import torch._inductor.config as inductor

    inductor.force_disable_caches, inductor.compile_threads = True, 1
    rows = []
    for name in names:
        ways = {"plain": Step(name, layout=torch.channels_last), "compiled": Step(name, layout=torch.channels_last)}
        ways["compiled"].model = torch.compile(ways["compiled"].model)
        if hasattr(ways["plain"].model, "blocks") and isinstance(ways["plain"].model.blocks, nn.Sequential):
            ways["blocks compiled"] = Step(name, layout=torch.channels_last)
            for block in ways["blocks compiled"].model.blocks:
                block.compile()
        first = {}
        for way, step in ways.items():
            began = sum(os.times()[:4])  # with the C++ compiler
            step.run()
            first[way] = sum(os.times()[:4]) - began
        pairs = in_turn({way: step.seconds for way, step in ways.items()}, rounds)
        for way in [*ways][1:]:
            saved = statistics.median(pairs.seconds["plain"]) - statistics.median(pairs.seconds[way])
            steps = f"{(first[way] - first['plain']) / saved:,.0f}" if saved > 0 else "never"
            seconds = f"{first[way] - first['plain']:.0f}"
            rows.append([name, way, seconds, spread(pairs.ratios(way, "plain")), steps])
    columns = ["model", "way", "s of processor time to compile", "time of a step over plain", "steps until it has paid"]
    return Table("compilation", columns, rows)


PARTS: dict[str, Callable[[argparse.Namespace], Table]] = {
    "steps": lambda arguments: steps(arguments.models, arguments.rounds),
    "updates": lambda arguments: updates(arguments.models, arguments.rounds),
    "splits": lambda arguments: splits(arguments.rounds, arguments.images),
    "compilation": lambda arguments: compilations(arguments.models, arguments.rounds),
}


def main(arguments: argparse.Namespace) -> list[Table]:
    """Measure, and return the tables."""
    torch.set_num_threads(1)
    return [PARTS[part](arguments) for part in arguments.parts]
