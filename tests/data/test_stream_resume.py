"""Streams resume within an epoch without reading what was seen, to the same bits."""

import gzip
import json
from collections.abc import Callable
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from PIL import Image
from refusal import refused
from resumed_runs import cut, every_update, make_run, same_outcome, states, train
from stream_sources import hfids_images, hfids_parquet, tfds, write_parquet, write_shard
from test_streams import AUGMENTED, BAD, GOOD, STILL, encoded, needs_tensorflow
from torch.utils.data import DataLoader

from timm_accel import create_datasets
from timm_accel.data import Source
from timm_accel.data.seeding import seed_streamed_image
from timm_accel.data.streams.shard_members import unread_members
from timm_accel.training.loaders import remaining
from timm_accel.upstream import DataLoaderSlice

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")  # on few cores

HALF, BATCH = (0.5,) * 3, 4
CLASSES = {"class_map": {"a": 0, "b": 1, "c": 2}}


def read(source: Any, **options: Any) -> Any:
    """The training stream, shuffled within a small buffer."""
    stream, _ = create_datasets(8, HALF, HALF, data=source, **(STILL | AUGMENTED | options))
    stream.reader.sample_shuffle_size, stream.reader.sample_initial_size, stream.reader.shuffle_size = 5, 3, 5
    return stream


def prepared(stream: Any, workers: int, epoch: int, **options: Any) -> Any:
    stream.share(BATCH, workers, seed=3, seed_image=partial(seed_streamed_image, 3))
    stream.set_epoch(epoch)
    return DataLoader(stream, BATCH, num_workers=workers, **options)


def check_resume(open_it: Callable[[], Any], workers: int, epoch: int, at: list[int] | None = None) -> int:
    """Compare what is left of an epoch after each batch with the epoch, and return its number of batches."""
    stream = open_it()
    whole = list(prepared(stream, workers, epoch))
    for start in range(len(whole) + 1) if at is None else at:
        resumed = open_it()
        loader = prepared(resumed, workers, epoch)
        resumed.restore_epoch(stream.epoch_state())
        rest = list(remaining(loader, start))
        assert len(rest) == len(whole) - start
        for (images, labels), (expected, expected_labels) in zip(rest, whole[start:], strict=True):
            assert torch.equal(images, expected)
            assert torch.equal(labels, expected_labels)
        if start < len(whole):
            assert resumed.unreadable == stream.unreadable
    return len(whole)


def counted_images(root: Path, lengths: list[int], bad: tuple[int, ...] = (), name: str = "train-{}.tar") -> str:
    """Shards of images that all differ; those of some numbers are broken."""
    numbers = iter(range(sum(lengths)))
    for shard, length in enumerate(lengths):
        contents = []
        for number in islice(numbers, length):
            image = Image.fromarray(np.full((16, 16, 3), 3 * number, dtype="uint8"))
            contents.append((BAD if number in bad else encoded(image), number % 3))
        write_shard(root / name.format(shard), contents)
    write_shard(root / "val-0.tar", [(GOOD, 0)])
    return f"wds/{root}"


# Each kind


def test_webdataset_resumes_at_each_batch_of_an_epoch(tmp_path: Path) -> None:
    source = counted_images(tmp_path, [7, 12, 5, 9])
    open_it = partial(read, source)
    assert check_resume(open_it, 0, 1) == 9
    assert check_resume(open_it, 2, 1, at=[1, 4, 7, 10]) == 10
    assert check_resume(open_it, 3, 0, at=[2, 5]) == 9
    stream = open_it()
    whole = list(prepared(stream, 2, 0))
    limited = list(remaining(DataLoaderSlice(prepared(stream, 2, 0), 6), 3))
    assert [labels.tolist() for _, labels in limited] == [labels.tolist() for _, labels in whole[3:6]]


@pytest.mark.parametrize(("write", "workers"), [(hfids_parquet, 0), (hfids_parquet, 2), (hfids_images, 0)])
def test_hugging_face_streams_resume_within_an_epoch(
    write: Callable[[Path], Any], workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasets.config.SLEEP_TIME_ON_THREADS_SHUTDOWN", 0)
    assert check_resume(partial(read, write(tmp_path)), workers, 1, at=[1, 3, 4]) == 4


@needs_tensorflow
@pytest.mark.parametrize("workers", [1, 2])
def test_streams_of_tensorflow_datasets_resume_within_an_epoch(workers: int, tmp_path: Path) -> None:
    assert check_resume(partial(read, tfds(tmp_path)), workers, 1, at=[1, 3]) >= 4


def test_images_of_hugging_face_that_were_seen_are_not_decoded(tmp_path: Path) -> None:
    stream = read(hfids_images(tmp_path))
    decoded: list[Any] = []
    prepare = stream._prepare
    stream._prepare = lambda image: [decoded.append(image), prepare(image)][1]
    loader = prepared(stream, 0, 0)
    list(remaining(loader, 3))
    assert len(decoded) == 4
    assert len(list(stream.reader)) == 16  # another iteration passes over nothing


# What is read


def bytes_read(stream: Any, start: int) -> int:
    """Return the bytes that an epoch from a batch on reads."""
    loader, before = prepared(stream, 0, 0), psutil.Process().io_counters().read_chars
    list(remaining(loader, start))
    return psutil.Process().io_counters().read_chars - before


@pytest.mark.parametrize("start", [4, 15])
def test_the_images_that_were_seen_are_not_read_from_shards(start: int, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 80, 80, 3), dtype="uint8")
    for shard in range(4):
        images = [encoded(Image.fromarray(each)) for each in noise[shard::4]]
        write_shard(tmp_path / f"train-{shard}.tar", [(each, shard % 2) for each in images])
    write_shard(tmp_path / "val-0.tar", [(GOOD, 0)])
    stream = read(f"wds/{tmp_path}")
    total = sum(path.stat().st_size for path in tmp_path.glob("train-*.tar"))

    assert bytes_read(stream, 0) >= total
    assert bytes_read(stream, start) < total * (1 - start / 16) * 1.2 + 64 * 2 * 513 + 20_000  # and the headers


def test_shards_of_parquet_that_were_seen_are_not_read(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (72, 80, 80, 3), dtype="uint8")
    images = [encoded(Image.fromarray(each)) for each in noise]
    write_parquet(tmp_path, "train", [[(each, 0) for each in images[start : start + 3]] for start in range(0, 72, 3)])
    write_parquet(tmp_path, "validation", [[(GOOD, 0)]])
    stream = read(f"hfids/{tmp_path}")
    stream.reader.shuffle_size = 2
    total = sum(path.stat().st_size for path in tmp_path.glob("train-*"))

    assert bytes_read(stream, 0) >= total
    assert bytes_read(stream, 15) < 0.6 * total  # of 18 batches; ten shards take turns


# Unreadable samples


def test_unreadable_images_that_were_passed_over_stay_listed_and_are_counted(tmp_path: Path) -> None:
    source = counted_images(tmp_path, [9, 8, 10], bad=(0, 3, 4, 11, 20, 26))
    assert check_resume(partial(read, source), 0, 0) == 7  # the last two batches repeat images: a second pass
    assert check_resume(partial(read, source), 2, 1, at=[1, 4, 6]) == 8


def unshuffled(source: Any, **options: Any) -> Any:
    stream = read(source, **options)
    stream.reader.sample_shuffle_size = stream.reader.sample_initial_size = 1
    return stream


def test_a_part_that_ends_in_unreadable_images_is_read_again(tmp_path: Path) -> None:
    source = counted_images(tmp_path, [8], bad=(4, 5, 6, 7))
    assert check_resume(partial(unshuffled, source), 0, 0) == 2


def test_a_limit_of_unreadable_images_counts_those_that_were_passed_over(tmp_path: Path) -> None:
    source = counted_images(tmp_path, [60], bad=(*range(0, 16, 2), 50, 52, 54))  # more than 10
    stream, resumed = unshuffled(source, max_bad_fraction=0.5), unshuffled(source)
    list(prepared(stream, 0, 0))
    loader = prepared(resumed, 0, 0)
    resumed.restore_epoch(stream.epoch_state())
    with refused(OSError, "at most 10 unreadable images", "but got 11", "train-0_054"):
        list(islice(remaining(loader, 5), 7))


def test_other_workers_get_the_names_of_unreadable_images_alone(tmp_path: Path) -> None:
    source = counted_images(tmp_path, [8, 8], bad=(1, 9))
    stream, other = read(source), read(source)
    list(prepared(stream, 2, 0))
    prepared(other, 1, 0)
    other.restore_epoch(stream.epoch_state())
    assert other.unreadable == stream.unreadable
    assert other.epoch_state()["unreadable"] == []


# Odd shards


def describe(root: Path, shards: list[str], lengths: list[int]) -> None:
    split = {"filenames": shards, "shard_lengths": lengths, "num_samples": sum(lengths)}
    known = {"name": "validation", "filenames": ["val-0.tar"], "shard_lengths": [1], "num_samples": 1}
    (root / "_info.json").write_text(json.dumps({"splits": {"train": split | {"name": "train"}, "validation": known}}))


def test_shards_without_places_resume_by_reading(tmp_path: Path) -> None:
    lengths = [7, 9, 8]
    counted_images(tmp_path, lengths)
    zipped = tmp_path / "train-0.tar.gz"
    zipped.write_bytes(gzip.compress((tmp_path / "train-0.tar").read_bytes()))
    cut_short = tmp_path / "train-1.tar"
    cut_short.write_bytes(cut_short.read_bytes()[: 4 * 2048 + 512 + 20])  # within the fifth of nine images
    describe(tmp_path, [zipped.name, cut_short.name, "train-2.tar"], lengths)
    assert unread_members(str(zipped), bool) is unread_members(str(cut_short), bool) is None
    for root in (str(tmp_path), f"file://{tmp_path}"):
        assert unread_members(f"{root}/train-2.tar", bool) is None or "://" not in root
        assert check_resume(partial(read, Source(f"wds/{root}", **CLASSES)), 0, 1, at=[1, 3, 5]) == 6


def test_names_of_shards_with_spaces_and_braces_are_names(tmp_path: Path) -> None:
    source = counted_images(tmp_path / "a b", [7, 9], name="my {{a,b}} train|2::x-{}.tar")
    assert check_resume(partial(read, source), 0, 0, at=[1, 3]) == 4


def test_lengths_that_do_not_fit_the_shards_are_refused(tmp_path: Path) -> None:
    counted_images(tmp_path, [7, 9])
    describe(tmp_path, ["train-0.tar", "train-1.tar"], [16])
    with refused(ValueError, "shard_lengths of 1 number for 2 shards of 'train'", "Write it again"):
        read(Source(f"wds/{tmp_path}", **CLASSES))


# Runs


@pytest.mark.filterwarnings("ignore:The training images are a stream:UserWarning")
def test_a_run_with_unreadable_images_ends_in_the_same_bits_and_other_workers_are_told(tmp_path: Path) -> None:
    source = counted_images(tmp_path / "data", [9, 10, 11], bad=(2, 13, 14, 25))
    settings = {"eval_dataset": None, "num_epochs": 2}
    make = partial(make_run, callbacks=[every_update()])

    def fit(run_dir: Path, workers: int = 2, **options: Any) -> Any:
        train_set = read(source)
        loader = {"num_workers": workers, "persistent_workers": True}  # which keep what they were told in an epoch
        options |= settings | {"train_dataset": train_set, "train_dataloader_kwargs": loader}
        train(make(run_dir), **options)
        return train_set

    whole = fit(tmp_path / "whole")
    positions = [folder.name.partition("_")[2] for folder in states(tmp_path / "whole")]
    for position in ("epoch_0_batch_5", "epoch_1_batch_6"):
        target = cut(tmp_path / "whole", positions.index(position), tmp_path / position)
        resumed = fit(target, resume_from="auto")
        assert same_outcome(tmp_path / "whole", target) is None
        assert {*resumed.unreadable} == {*whole.unreadable}
    target = cut(tmp_path / "whole", positions.index("epoch_0_batch_5"), tmp_path / "other")
    with pytest.warns(UserWarning, match="stream_workers 2 before, 1 now.*some images may come twice and others not"):
        fit(target, workers=1, resume_from="auto")
