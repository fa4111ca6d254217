"""Show how the modes of Mixup differ.

    python examples/data/mixup.py

The figure shows one batch of four images, mixed by each mode. The first image mixes with the last, and the second with
the third. Only timm's collate function has the mode half: timm's `Mixup` treats it as batch. Needs the extra
plots.
"""

from pathlib import Path

import torch
from matplotlib.figure import Figure
from sklearn.datasets import load_sample_images
from timm.data import FastCollateMixup, Mixup

from timm_accel.plots import plot_batch, plot_mixup, save_figure

NAMES = ("china", "flower")
MODES = {
    "batch": "one draw for all",
    "pair": "one draw for two images that mix",
    "elem": "a draw for each image",
    "half": "as elem, but of two images that mix one is kept",
}


def main(out: str | Path = "mixup.png", seed: int = 198) -> Path:
    """Write the figure, and return its path."""
    china, flower = (torch.tensor(pixels).permute(2, 0, 1) for pixels in load_sample_images().images)
    images, labels = torch.stack([china, china.flip(2), flower, flower.flip(2)]), torch.tensor([0, 0, 1, 1])
    figure = Figure(figsize=(9, 10), dpi=120, layout="constrained")
    first, *rows = figure.subfigures(1 + len(MODES), 1)
    plot_batch(images, labels, NAMES, figure=first)
    first.suptitle("the batch", fontsize=11, fontweight="bold")
    for row, (mode, meaning) in zip(rows, MODES.items(), strict=True):
        kind = FastCollateMixup if mode == "half" else Mixup
        mixup = kind(mixup_alpha=1.0, cutmix_alpha=1.0, label_smoothing=0.0, mode=mode, num_classes=len(NAMES))
        plot_mixup(images, labels, mixup, NAMES, seed=seed, columns=4, figure=row)
        row.suptitle(f"{mode}: {meaning}", fontsize=11, fontweight="bold")
    save_figure(figure, out)
    return Path(out)


if __name__ == "__main__":
    print(main())
