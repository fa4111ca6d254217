"""The benchmark of label errors flips as many labels as it says, and trains on what it names."""

from argparse import ArgumentParser
from collections import Counter
from pathlib import Path

import pytest
import torch

from benchmarks import label_errors as benchmark
from timm_accel.predict import Scores

TRUE = {f"{number:03d}.png": "cow" if number % 3 else "ant" for number in range(120)}


class Knowing:
    """A learner that is sure of the true labels, but for two images, of which one is named.

    It remembers what it was trained on.
    """

    def __init__(self) -> None:
        self.seen: list[dict[str, str]] = []

    def out_of_fold(self, labels: dict[str, str], seed: int) -> Scores:
        names, paths = ["ant", "cow"], list(labels)
        best = [names.index(TRUE[path]) for path in paths]
        sure = torch.nn.functional.one_hot(torch.tensor(best), 2).double() * 0.9 + 0.05
        for path in sorted(path for path in labels if labels[path] == TRUE[path])[:2]:
            sure[paths.index(path)] = sure[paths.index(path)].flip(0) * 0.8 + 0.1  # less sure than of the flipped ones
        return Scores(paths, torch.tensor([names.index(label) for label in labels.values()]), sure, names, [], [])

    def accuracy(self, labels: dict[str, str], seed: int) -> float:
        self.seen.append(labels)
        return sum(TRUE[path] == label for path, label in labels.items()) / len(labels)


def test_flipped_labels_are_as_many_as_said_and_the_same_for_a_seed() -> None:
    flipped = benchmark.flip(TRUE, 0.05, 0)
    assert sum(flipped[path] != TRUE[path] for path in TRUE) == 6
    assert flipped == benchmark.flip(TRUE, 0.05, 0)
    assert flipped != benchmark.flip(TRUE, 0.05, 1)


def test_each_way_of_cleaning_trains_on_its_labels(tmp_path: Path) -> None:
    learner = Knowing()
    found = benchmark.measure(learner, TRUE, 0.05, 0, tmp_path)
    assert (found["flipped"], found["named"], found["recall"]) == (6, 7, 1)
    assert found["precision"] == 6 / 7
    assert found["precision at N by the probability of the label"] == 1
    assert (found["first half, precision"], found["first half, recall"]) == (1, 3 / 6)
    flipped, left_out, half_left_out, half_corrected, looked_at, true = learner.seen
    wrong = {path for path in TRUE if flipped[path] != TRUE[path]}
    assert len(wrong) == 6
    assert [len(labels) for labels in learner.seen] == [120, 113, 117, 120, 120, 120]
    assert not wrong & set(left_out)
    assert len(wrong & set(half_left_out)) == 3
    assert Counter(half_corrected[path] == TRUE[path] for path in TRUE) == {True: 117, False: 3}
    assert found["accuracy, first half corrected"] == 117 / 120
    assert looked_at == true == TRUE


def test_the_tables_have_the_medians_over_the_seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "labels_of", lambda data: {"train": TRUE, "val": {}})
    monkeypatch.setattr(benchmark, "measure", lambda *parts: {"recall": parts[3] / 4, "accuracy, true": 0.5})
    parser = ArgumentParser()
    benchmark.add_options(parser)
    found, after = benchmark.main(parser.parse_args(["--data_dir", "cows", "--seeds", "0", "3", "4"]))
    assert (found.columns[1], found.rows) == (
        "cows, median of the seeds (min to max)",
        [["recall", "0.750 (0.000 to 1.000)"]],
    )
    assert after.rows == [["accuracy, true", "0.500 (0.500 to 0.500)"]]
