"""Measure how memory format and precision change a training step on a CPU, in random order within each run.

    python benchmarks/cpu.py --runs 7

Uses two models with random weights, random images and AdamW. Speedups are over float32 in torch's default memory
format, per pair within a run. To compare allocators, start it again with another one
(`LD_PRELOAD=libtcmalloc_minimal.so.4`) and compare the seconds.
"""

import argparse
import random
import statistics
import time

import torch
from torch import nn

from timm_accel import create_classifier

MODELS = {"tf_efficientnet_lite0": (224, 32), "resnet10t": (56, 128)}
WAYS = {
    "float32": (torch.contiguous_format, False),
    "float32, channels_last": (torch.channels_last, False),
    "bfloat16": (torch.contiguous_format, True),
    "bfloat16, channels_last": (torch.channels_last, True),
}


def seconds(model: nn.Module, size: int, count: int, half: bool, steps: int = 3) -> float:
    """Return the median duration of a step."""
    images, labels = torch.randn(count, 3, size, size), torch.randint(10, (count,))
    optimizer = torch.optim.AdamW(model.parameters())
    taken = []
    for _ in range(1 + steps):  # the first step is a warm-up
        began = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            loss = nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken[1:])


def main(runs: int) -> None:
    """Measure each model, and print a row of a Markdown table for each variant."""
    print("| model | variant | ms per step, median | speedup, median (min to max) |\n|---|---|---|---|")
    for name, (size, count) in MODELS.items():
        found: dict[str, list[float]] = {way: [] for way in WAYS}
        for _ in range(runs):
            for way in random.sample(list(WAYS), len(WAYS)):
                layout, half = WAYS[way]
                model, _ = create_classifier(name, 10, image_size=size)
                found[way].append(seconds(model.to(memory_format=layout).train(), size, count, half))
        for way, taken in found.items():
            ratios = [first / own for first, own in zip(found["float32"], taken, strict=True)]
            spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
            print(f"| {name}, {size} px, {count} images | {way} | {1000 * statistics.median(taken):.0f} | {spread} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=7)
    main(parser.parse_args().runs)
