"""Flip some labels of a dataset, find them by predictions, and compare the accuracy before and after cleaning.

    python -m benchmarks label_errors --data_dir fashion_mnist_part --share 0.05 --folds 5 --seeds 0 1 2
    python -m benchmarks label_errors --data_dir elpv --weights tf_efficientnet_lite0.pth --image_size 96

Labels of training images change at random to another class. Predictions for each image come from a model that was not
trained on it: the recipe fast_cpu is cross-validated, with AdamW and the other options of `accuracy.BEFORE`, which suit
few images better. With `--weights`, it is a logistic regression on the features of a pretrained model instead, which
are computed once. Then the same learner is trained on the flipped labels; without all images that are named, or the
first half of them; with the suggested labels of the first half; with the true labels of the named ones, as if somebody
had looked at them; and on the true labels. Each accuracy is on the evaluation images, whose labels stay. Needs the
extras labels and parquet.
"""

import argparse
import random
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from cleanlab.filter import find_label_issues
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_predict

from benchmarks.accuracy import BEFORE
from benchmarks.pairs import spread
from benchmarks.tables import Table
from timm_accel import create_classifier, create_datasets
from timm_accel.audit import find_suspects, write_corrected
from timm_accel.data import Source
from timm_accel.features import extract_embeddings
from timm_accel.predict import Scores
from timm_accel.recipes import Recipe, build_run, cross_validate, named_recipe
from timm_accel.text_files import read_csv, write_csv

SPLITS = ("train", "val")
FILTERS = ("prune_by_noise_rate", "prune_by_class", "both", "confident_learning", "predicted_neq_given",
           "low_normalized_margin", "low_self_confidence")  # fmt: skip
Labels = dict[str, str]


class Learner(Protocol):
    """What learns from labels, by the path of each image."""

    def out_of_fold(self, labels: Labels, seed: int) -> Scores: ...

    def accuracy(self, labels: Labels, seed: int) -> float: ...


class Training:
    """Train a recipe."""

    def __init__(self, recipe: Recipe, val: Labels, folder: Path) -> None:
        self.recipe, self.val, self.folder, self._runs = recipe, val, folder, iter(range(1000))

    def _next(self, labels: Labels, seed: int, **changes: Any) -> Recipe:
        """Return the recipe with a new folder and a manifest of both splits."""
        name = str(self.folder / str(next(self._runs)))
        rows = [(image, label, split) for split, each in zip(SPLITS, (labels, self.val), strict=True)
                for image, label in each.items()]  # fmt: skip
        write_csv(f"{name}.csv", [("path", "label", "split"), *rows])
        return replace(self.recipe, data_dir=f"{name}.csv", run_dir=name, seed=seed, **changes)

    def out_of_fold(self, labels: Labels, seed: int) -> Scores:
        return cross_validate(self._next(labels, seed)).scores

    def accuracy(self, labels: Labels, seed: int) -> float:
        recipe = self._next(labels, seed, folds=None, evaluate_every_n_epochs=self.recipe.num_epochs)
        return float(build_run(recipe).train().run_history.get_latest_metric("ema_model_accuracy"))


class Probe:
    """Fit a logistic regression to the features of a pretrained model."""

    def __init__(self, data: str, weights: str, model: str, image_size: int, folds: int, val: Labels) -> None:
        classifier, config = create_classifier(model, 2, pretrained=True, pretrained_cfg_overlay={"file": weights})
        self.folds, self.val, vectors = folds, val, dict[str, np.ndarray]()
        for split in SPLITS:
            _, images = create_datasets(image_size, config["mean"], config["std"], data=data, eval_split=split)
            found = extract_embeddings(classifier, images, progress=True).features
            vectors |= {images.reader.filename(number, absolute=True): row for number, row in enumerate(found)}
        training = np.stack([row for path, row in vectors.items() if path not in val])
        scale = PCA(min(128, *training.shape), random_state=0).fit(training)
        self.vectors = dict(zip(vectors, scale.transform(np.stack(list(vectors.values()))), strict=True))
        self.unit = scale.transform(training).std()

    def _table(self, labels: Labels) -> tuple[np.ndarray, np.ndarray]:
        return np.stack([self.vectors[path] for path in labels]) / self.unit, np.array(list(labels.values()))

    def out_of_fold(self, labels: Labels, seed: int) -> Scores:
        names = sorted(set(labels.values()))
        table, own = self._table(labels)
        parts = StratifiedKFold(self.folds, shuffle=True, random_state=seed)
        found = cross_val_predict(regression(), table, own, cv=parts, method="predict_proba")
        targets = torch.from_numpy(np.searchsorted(names, own))
        return Scores(list(labels), targets, torch.from_numpy(found).double(), names, [], [])

    def accuracy(self, labels: Labels, seed: int) -> float:
        table, own = self._table(self.val)
        return float((regression().fit(*self._table(labels)).predict(table) == own).mean())


def regression() -> LogisticRegression:
    """Return a strongly regularized regression."""
    return LogisticRegression(C=0.02, max_iter=200)


def labels_of(data: str) -> dict[str, Labels]:
    """Return the class of each image of both splits, by its path."""
    found = {}
    for split in SPLITS:
        reader = Source(data).open(split)
        names = {number: name for name, number in reader.class_to_idx.items()}
        paths = [reader.filename(number, absolute=True) for number in range(len(reader))]
        found[split] = {path: names[int(label)] for path, label in zip(paths, reader.labels, strict=True)}
    return found


def flip(labels: Mapping[str, str], share: float, seed: int) -> Labels:
    """Return labels of which a share is another class."""
    draw, names = random.Random(seed), sorted(set(labels.values()))
    chosen = draw.sample(sorted(labels), round(share * len(labels)))
    return {**labels, **{path: draw.choice([name for name in names if name != labels[path]]) for path in chosen}}


def compare_filters(scores: Scores, wrong: set[str]) -> Iterator[tuple[str, float]]:
    """Yield precision and recall of each filter of cleanlab, and precision at N of its scores for a label."""
    probabilities, numbers = scores.probabilities.numpy(), scores.targets.numpy()
    is_wrong = np.array([path in wrong for path in scores.paths])
    for name in FILTERS:
        named = find_label_issues(numbers, probabilities, filter_by=name, n_jobs=1)
        yield f"{name}, named", float(named.sum())
        yield f"{name}, precision", float(is_wrong[named].mean())
        yield f"{name}, recall", float(is_wrong[named].sum() / len(wrong))
    own = probabilities[np.arange(len(numbers)), numbers]
    others = np.where(np.eye(probabilities.shape[1], dtype=bool)[numbers], -1, probabilities).max(axis=1)
    for name, score in {"the probability of the label": own, "its margin": own - others}.items():
        yield f"precision at N by {name}", float(is_wrong[np.argsort(score, kind="stable")[: len(wrong)]].mean())


def measure(learner: Learner, train: Labels, share: float, seed: int, folder: Path) -> dict[str, float]:
    """Return how well the flipped labels were found, and the accuracies."""
    flipped = flip(train, share, seed)
    wrong = {path for path in train if flipped[path] != train[path]}
    scores = learner.out_of_fold(flipped, seed)
    suspects = [each for each in find_suspects(scores) if each.kind == "label"]
    first = suspects[: len(suspects) // 2]
    write_corrected(scores, first, folder / "corrected.csv")
    corrected = {row["path"]: row["label"] for row in read_csv(folder / "corrected.csv")}
    named = {each.path for each in suspects}
    found: dict[str, float] = {
        "flipped": len(wrong),
        "accuracy of the predictions": sum(
            scores.class_names[int(best)] == train[path]
            for path, best in zip(scores.paths, scores.probabilities.argmax(dim=1), strict=True)
        ) / len(train),
        "named": len(named),
        "precision": len(named & wrong) / max(1, len(named)),
        "recall": len(named & wrong) / len(wrong),
        "first half, precision": len(wrong & {each.path for each in first}) / max(1, len(first)),
        "first half, recall": len(wrong & {each.path for each in first}) / len(wrong),
        "labels right after correcting the first half": sum(corrected[path] == train[path] for path in train)
        / len(train),
        **dict(compare_filters(scores, wrong)),
    }  # fmt: skip
    halves = {each.path for each in first}
    arms = {
        "flipped": flipped,
        "named left out": {path: label for path, label in flipped.items() if path not in named},
        "first half left out": {path: label for path, label in flipped.items() if path not in halves},
        "first half corrected": corrected,
        "named looked at": {path: train[path] if path in named else label for path, label in flipped.items()},
        "true": train,
    }
    return found | {f"accuracy, {name}": learner.accuracy(labels, seed) for name, labels in arms.items()}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    parser.add_argument("--data_dir", required=True)
    parser.add_argument("--share", type=float, default=0.05)
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--image_size", type=int, default=28)
    parser.add_argument("--model")
    parser.add_argument("--weights", help="a file with the weights of tf_efficientnet_lite0, or of --model")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])


def main(arguments: argparse.Namespace) -> list[Table]:
    """Return the figures over the seeds: what was found, and the accuracies after cleaning."""
    data = str(Path(arguments.data_dir).resolve())
    labels, results = labels_of(data), dict[str, list[float]]()
    with tempfile.TemporaryDirectory() as folder:
        learner: Learner
        if arguments.weights:
            model = arguments.model or "tf_efficientnet_lite0"
            learner = Probe(data, arguments.weights, model, arguments.image_size, arguments.folds, labels["val"])
        else:
            changes = BEFORE | ({"model": arguments.model} if arguments.model else {})
            changes |= {"folds": arguments.folds, "num_epochs": arguments.epochs, "image_size": arguments.image_size}
            recipe = named_recipe("fast_cpu").recipe(num_workers=0, **changes)
            learner = Training(recipe, labels["val"], Path(folder))
        for seed in arguments.seeds:
            for name, value in measure(learner, labels["train"], arguments.share, seed, Path(folder)).items():
                results.setdefault(name, []).append(value)
    rows = [[name, spread(each, 3)] for name, each in results.items()]
    after = [row for row in rows if row[0].startswith("accuracy, ")]
    columns = ["", f"{Path(data).name}, median of the seeds (min to max)"]
    found = Table("labels found", columns, [row for row in rows if row not in after])
    return [found, Table("accuracy after training", columns, after)]
