"""Show features of a model: a table of its levels, feature maps of an image, embeddings of a whole dataset.

    python examples/models/features.py

A small model learns scikit-learn's digits first. The left side shows a digit and its feature maps at three depths. The
right side shows the embeddings of all held-out digits, projected on two principal components. Needs the extra
plots.
"""

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from matplotlib.figure import Figure
from timm.optim import create_optimizer_v2
from torch import nn

from timm_accel import TimmTrainer, create_classifier, create_datasets
from timm_accel.data import write_digits
from timm_accel.features import describe_features, extract_embeddings, intermediate_features
from timm_accel.plots import plot_feature_maps, save_figure


def main(out: str | Path = "features.png", num_epochs: int = 3, model_name: str = "test_resnet") -> Path:
    """Write the figure, and return its path."""
    torch.manual_seed(0)
    model, config = create_classifier(model_name, num_classes=10, image_size=32)
    print(describe_features(model))
    figure = Figure(figsize=(11, 4.6), dpi=120, layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=[6, 5])
    with TemporaryDirectory() as folder:
        digits = write_digits(Path(folder) / "digits")
        train_set, val_set = create_datasets(
            32, config["mean"], config["std"], data=digits, auto_augment=None, hflip=0.0, scale=(0.6, 1.0)
        )
        TimmTrainer(
            model=model,
            optimizer=create_optimizer_v2(model, opt="adamw", lr=3e-3),
            loss_func=nn.CrossEntropyLoss(),
            num_classes=10,
        ).train(
            train_set,
            num_epochs,
            val_set,
            per_device_batch_size=64,
            train_dataloader_kwargs={"num_workers": 0},
            eval_dataloader_kwargs={"num_workers": 0},
        )
        model.cpu()
        embeddings = extract_embeddings(model, val_set)
        image = val_set[130][0][None]

    maps = intermediate_features(model, [0, 1, 2])(image)
    named = {f"level {number}": each for number, each in enumerate(maps)}
    plot_feature_maps(named, image, channels=4, mean=config["mean"], std=config["std"], figure=left)
    left.suptitle("feature maps of one digit", fontsize=11, fontweight="bold")
    scatter(right, embeddings.features, embeddings.labels)
    save_figure(figure, out)
    return Path(out)


def scatter(figure: Figure, features: np.ndarray, labels: np.ndarray) -> None:
    """Draw embeddings on their first two principal components."""
    centred = features - features.mean(0)
    components = np.linalg.svd(centred, full_matrices=False)[2][:2]
    axes = figure.subplots()
    for label in range(10):
        points = centred[labels == label] @ components.T
        axes.scatter(*points.T, s=12, label=str(label), color=f"C{label}")
    axes.legend(title="digit", fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    axes.set_xlabel("first principal component")
    axes.set_ylabel("second")
    figure.suptitle(f"embeddings of {len(labels)} digits", fontsize=11, fontweight="bold")


if __name__ == "__main__":
    print(main())
