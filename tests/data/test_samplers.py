"""Samplers: right frequencies, nothing lost or doubled, and bit-equal after a resume."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from refusal import refused
from resumed_runs import Augmented, cut, every_update
from timm.data.distributed_sampler import RepeatAugSampler
from tiny_runs import Seen, fit, make_trainer, same_weights
from torch.utils.data import WeightedRandomSampler

from timm_accel.data.samplers import RepeatedSampler, class_balanced_sampler
from timm_accel.data.seeding import KeyedSampler

LABELS = np.repeat([0, 1, 2], [200, 40, 10])


def test_every_class_comes_equally_often() -> None:
    counts = np.bincount(LABELS[list(class_balanced_sampler(LABELS, 30_000))])
    assert np.all(np.abs(counts / 10_000 - 1) < 0.05)
    assert len(class_balanced_sampler(LABELS)) == 250


def test_an_image_with_several_labels_is_drawn_as_its_rarest() -> None:
    labels = [[0]] * 30 + [[0, 1]] * 5 + [[2, 0], [1, 2]] + [[]] * 4
    sampler = class_balanced_sampler(labels, 40_000)
    # class 0 is in 36 images, 1 in 6, 2 in 2, and 4 have no label
    expected = [1 / 36] * 30 + [1 / 6] * 5 + [1 / 2] * 2 + [1 / 4] * 4
    assert sampler.weights.tolist() == pytest.approx(expected)
    drawn = np.bincount(list(sampler), minlength=41) / 40_000
    share = 1 / sum(expected)
    for members in ([*range(36)], [*range(30, 35), 36], [35, 36], [37, 38, 39, 40]):
        assert drawn[members].sum() > 0.97 * share  # at least that of a class
    lists = np.empty(len(labels), dtype=object)
    lists[:] = labels
    assert torch.equal(class_balanced_sampler(lists).weights, sampler.weights)
    assert (
        class_balanced_sampler([[0], [0], [1]]).weights.tolist() == class_balanced_sampler([0, 0, 1]).weights.tolist()
    )
    assert len(class_balanced_sampler(labels)) == 41


def test_labels_that_are_none_are_not_balanced() -> None:
    with refused(ValueError, "integers of at least 0, but got -1 for 'image 1'"):
        class_balanced_sampler([0, -1, 1])
    with refused(ValueError, "images with labels", "3 images such as 'image 0'"):
        class_balanced_sampler([-1, -1, -1])
    with refused(ValueError, "images with labels", "2 images"):
        class_balanced_sampler([[], []])


def test_every_image_is_repeated_equally_often_in_one_order() -> None:
    order = list(RepeatedSampler(50, 3))
    assert Counter(order) == dict.fromkeys(range(50), 3)
    assert order[:50] != order[50:100]
    assert len(set(order[:50])) < 50


def test_an_epoch_may_be_as_long_as_the_set_with_copies_in_one_batch() -> None:
    sampler = RepeatedSampler(50, 3, num_samples=50)
    order = list(sampler)
    assert len(order) == len(sampler) == 50
    assert (
        [order[n] for n in range(0, 48, 3)]
        == [order[n] for n in range(1, 49, 3)]
        == [order[n] for n in range(2, 50, 3)]
    )
    assert Counter(Counter(order).values()) == {3: 16, 2: 1}
    assert set(sampler) != set(order)


def test_timms_repeated_augmentation_leaves_images_out() -> None:
    order = list(RepeatAugSampler(range(1000), num_replicas=1, rank=0))
    assert len(order) < 1000 or len(set(order)) < 1000
    assert len(set(RepeatedSampler(1000, 3))) == 1000


@pytest.mark.parametrize("make", [lambda: RepeatedSampler(20, 2), lambda: class_balanced_sampler(LABELS[:220])])
def test_the_order_depends_on_seed_and_epoch_alone(make: Any) -> None:
    def order(seed: int, epoch: int) -> list[int]:
        sampler = KeyedSampler(make(), seed)
        sampler.set_epoch(epoch)
        return [key.sample for key in sampler]

    torch.manual_seed(1)
    first = order(0, 0)
    torch.manual_seed(2)
    assert order(0, 0) == first
    assert order(0, 1) != first
    assert order(1, 0) != first


SAMPLERS = {
    "repeated": lambda: RepeatedSampler(20, 2),
    "balanced": lambda: class_balanced_sampler(np.arange(20) % 3, 40),
    "weighted": lambda: WeightedRandomSampler([1.0] * 10 + [3.0] * 10, 40),
}


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_continues_with_the_same_draws(name: str, workers: int, tmp_path: Path) -> None:
    def run(run_dir: Path, num_workers: int = 0, **options: Any) -> Any:
        loader = {"num_workers": num_workers, "sampler": SAMPLERS[name]()}
        trainer = make_trainer(Seen, run_dir=run_dir, callbacks=[every_update()])
        return fit(trainer, Augmented(20), train_dataloader_kwargs=loader, **options)

    whole = run(tmp_path / "whole")
    assert len(whole.images) == 20
    resumed = run(cut(tmp_path / "whole", 3, tmp_path / "cut"), workers, resume_from="auto")
    assert all(torch.equal(a, b) for a, b in zip(resumed.images, whole.images[4:], strict=True))
    assert same_weights(resumed.model, whole.model)
    if name == "repeated":  # the second draw of an image is augmented otherwise
        means = torch.cat(whole.images[:10]).mean((1, 2, 3))
        assert len(set(means.tolist())) == 40


def test_bad_numbers_are_refused() -> None:
    with refused(ValueError, "num_repeats", "at least 1", "got 0"):
        RepeatedSampler(5, 0)
    with refused(ValueError, "num_samples", "at least 1", "got 0"):
        RepeatedSampler(5, 2, 0)
    with refused(ValueError, "num_images", "at least 1", "got 0"):
        RepeatedSampler(0, 5)
    with refused(ValueError, "labels", "got none", "dataset.labels"):
        class_balanced_sampler([])
    with refused(ValueError, "num_samples", "at least 1", "got 0"):
        class_balanced_sampler([0, 1], 0)
