"""Flip some labels of a dataset, find them by cross-validation, and compare the accuracy before and after cleaning.

    python benchmarks/label_errors.py --data_dir fashion_mnist_small [--share 0.05] [--folds 5] [--seeds 0 1 2]

Labels of training images change at random to another class. The recipe fast_cpu is cross-validated on them, and its
predictions name the images whose label is likely wrong. Then it trains on the flipped labels, without the images that
were named, with their suggested labels, and on the true labels. Each accuracy is that of the last epoch on the
evaluation images, whose labels stay. Needs the extras labels and parquet.
"""

import argparse
import random
import statistics
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from timm_accel.audit import find_suspects, write_corrected, write_suspects
from timm_accel.data import Source
from timm_accel.recipes import Recipe, build_run, cross_validate, named_recipe
from timm_accel.text_files import read_csv, write_csv

SPLITS = ("train", "val")


def labels_of(data: str) -> dict[str, dict[str, str]]:
    """Return the class of each image of both splits, by its path."""
    found = {}
    for split in SPLITS:
        reader = Source(data).open(split)
        names = {number: name for name, number in reader.class_to_idx.items()}
        paths = [reader.filename(number, absolute=True) for number in range(len(reader))]
        found[split] = {path: names[int(label)] for path, label in zip(paths, reader.labels, strict=True)}
    return found


def flip(labels: Mapping[str, str], share: float, seed: int) -> dict[str, str]:
    """Return labels of which a share is another class."""
    draw, names = random.Random(seed), sorted(set(labels.values()))
    chosen = draw.sample(sorted(labels), round(share * len(labels)))
    return {**labels, **{path: draw.choice([name for name in names if name != labels[path]]) for path in chosen}}


def write_manifest(path: Path, train: Mapping[str, str], val: Mapping[str, str]) -> str:
    """Write a manifest of both splits, and return its path."""
    rows = [(image, label, split) for split, labels in zip(SPLITS, (train, val), strict=True)
            for image, label in labels.items()]  # fmt: skip
    write_csv(path, [("path", "label", "split"), *rows])
    return str(path)


def accuracy(recipe: Recipe) -> float:
    """Train, and return the accuracy of the EMA model after the last epoch."""
    history = build_run(recipe).train().run_history
    return float(history.get_latest_metric("ema_model_accuracy"))


def measure(recipe: Recipe, labels: dict[str, dict[str, str]], share: float, folder: Path) -> dict[str, float]:
    """Return the precision and the recall of the images that are named, and the four accuracies."""
    train, val = labels["train"], labels["val"]
    flipped = flip(train, share, recipe.seed)
    noisy = write_manifest(folder / "flipped.csv", flipped, val)
    found = cross_validate(replace(recipe, data_dir=noisy, run_dir=str(folder / "folds"))).scores
    suspects = tuple(each for each in find_suspects(found) if each.kind == "label")
    write_suspects(suspects, folder / "suspects.csv")
    write_corrected(found, suspects, folder / "corrected.csv")
    corrected = {row["path"]: row["label"] for row in read_csv(folder / "corrected.csv")}
    wrong = {path for path in train if flipped[path] != train[path]}
    named = {each.path for each in suspects}
    single = replace(recipe, folds=None)
    runs = {
        "flipped": replace(single, data_dir=noisy),
        "left out": replace(single, data_dir=noisy, exclude=str(folder / "suspects.csv")),
        "corrected": replace(single, data_dir=write_manifest(folder / "c.csv", corrected, val)),
        "true": replace(single, data_dir=write_manifest(folder / "true.csv", train, val)),
    }
    accuracies = {name: accuracy(replace(run, run_dir=str(folder / name))) for name, run in runs.items()}
    return {
        "precision": len(named & wrong) / max(1, len(named)),
        "recall": len(named & wrong) / len(wrong),
        "named": len(named),
        "labels right after correction": sum(corrected[path] == train[path] for path in train) / len(train),
        **{f"accuracy, {name}": value for name, value in accuracies.items()},
    }


def main(arguments: list[str] | None = None) -> dict[str, list[float]]:
    """Print the figures of each seed and their medians, and return them."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data_dir", required=True)
    parser.add_argument("--share", type=float, default=0.05)
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--image_size", type=int, default=32)
    parser.add_argument("--model")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args(arguments)
    labels, results = labels_of(options.data_dir), dict[str, list[float]]()
    changes = {"model": options.model} if options.model else {}
    for seed in options.seeds:
        recipe = named_recipe("fast_cpu").recipe(
            folds=options.folds, seed=seed, num_epochs=options.epochs, image_size=options.image_size, num_workers=0,
            **changes,
        )  # fmt: skip
        with tempfile.TemporaryDirectory() as folder:
            found = measure(recipe, labels, options.share, Path(folder))
        print(f"seed {seed}: " + ", ".join(f"{name} {value:.4g}" for name, value in found.items()), flush=True)
        for name, value in found.items():
            results.setdefault(name, []).append(value)
    print("median: " + ", ".join(f"{name} {statistics.median(each):.4g}" for name, each in results.items()))
    return results


if __name__ == "__main__":
    main()
