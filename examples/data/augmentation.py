"""Show what augmentations do to an image.

    python examples/data/augmentation.py

The figure shows the random crop at its default scale and at a narrower one, and RandAugment at three magnitudes, on a
photo from scikit-learn. All rows share their seeds, so down a column RandAugment applies the same operations at rising
magnitude. Needs the extra plots.
"""

from pathlib import Path

from matplotlib.figure import Figure
from PIL import Image
from sklearn.datasets import load_sample_images
from timm.data.auto_augment import rand_augment_transform
from timm.data.transforms import RandomResizedCropAndInterpolation

from timm_accel.plots import plot_transform, save_figure


def main(out: str | Path = "augmentation.png", seed: int = 27) -> Path:
    """Write the figure, and return its path."""
    photo = Image.fromarray(load_sample_images().images[0])
    fill = {"img_mean": (124, 116, 104)}  # ImageNet's mean color fills the area outside the image
    transforms = {
        "random crop of 8 to 100 % of the area (the default)": RandomResizedCropAndInterpolation(
            224, interpolation="random"
        ),
        "random crop of 80 to 100 %": RandomResizedCropAndInterpolation(224, scale=(0.8, 1.0)),
    } | {f"RandAugment at magnitude {m} of 10": rand_augment_transform(f"rand-m{m}-inc1", fill) for m in (3, 6, 9)}
    figure = Figure(figsize=(12, 9.2), dpi=120, layout="constrained")
    rows = figure.subfigures(len(transforms), 1, height_ratios=[4, 4, 3, 3, 3])  # crops are square
    for row, (title, transform) in zip(rows, transforms.items(), strict=True):
        plot_transform(photo, transform, count=6, seed=seed, columns=7, figure=row)
        row.suptitle(title, fontsize=11, fontweight="bold")
    save_figure(figure, out)
    return Path(out)


if __name__ == "__main__":
    print(main())
