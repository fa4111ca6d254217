"""Streams at scale: how ranks and loader workers share the shards of a stream, by a table of their numbers."""

import json
import math
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from refusal import refused
from stream_sources import write_shard
from torch.utils.data import _utils
from torch.utils.data._utils.worker import WorkerInfo

from timm_accel import create_datasets
from timm_accel.data import Source
from timm_accel.data.streams.hfids import _shard_lengths
from timm_accel.data.streams.shard_members import ranges

HALF, BATCH = (0.5,) * 3, 4
READERS = [(ranks, workers) for ranks in (1, 2, 3) for workers in (0, 1, 2, 3)]
LENGTHS = {"one": [13], "two": [9, 4], "odd": [5, 7, 3], "even": [4] * 6, "many": [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5]}


def open_stream(source: Any) -> Any:
    return create_datasets(8, HALF, HALF, data=source)


def wds(root: Path, lengths: list[int]) -> Any:
    for split in ("train", "val"):
        for shard, count in enumerate(lengths):
            write_shard(root / f"{split}-{shard:02d}.tar", [(b"%d" % n, n % 2) for n in range(count)])
    return f"wds/{root}"


def parquet(root: Path, lengths: list[int]) -> Any:
    from datasets import ClassLabel, Dataset, Features, Image

    root.mkdir(parents=True)
    features = Features({"image": Image(), "label": ClassLabel(names=["a", "b"])})
    for split in ("train", "validation"):
        for shard, count in enumerate(lengths):
            images = [{"bytes": b"?", "path": f"{shard}-{n}.png"} for n in range(count)]
            rows = {"image": images, "label": [n % 2 for n in range(count)]}
            file = f"{split}-{shard:05d}-of-{len(lengths):05d}.parquet"
            Dataset.from_dict(rows, features=features).to_parquet(root / file)
    return f"hfids/{root}"


def arrow(root: Path, lengths: list[int]) -> Any:
    return Source(parquet(root, lengths), download=True, root=root.with_suffix(".kept"))


@contextmanager
def as_worker(stream: Any, number: int, workers: int) -> Iterator[None]:
    """Be a loader worker, without its process."""
    stream.reader.worker_id = 0  # a process is one worker alone otherwise
    if workers:
        _utils.worker._worker_info = WorkerInfo(id=number, num_workers=workers, seed=0, dataset=None)
    try:
        yield
    finally:
        _utils.worker._worker_info = None


def read(stream: Any, ranks: int, workers: int, epoch: int = 0) -> list[list[str]]:
    """Return what each worker of each rank reads in an epoch."""
    found = []
    for rank in range(ranks):
        stream.share(BATCH, workers, rank, ranks)
        stream.set_epoch(epoch)
        for worker in range(max(1, workers)):
            with as_worker(stream, worker, workers):
                found.append([file["path"] for file, _ in stream.reader] if len(stream) else [])
    return found


def allows(stream: Any, ranks: int, workers: int) -> bool:
    return stream.max_workers(ranks) >= max(1, workers)


@pytest.fixture(scope="module")
def streams(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[tuple[str, str], Any]]:
    root = tmp_path_factory.mktemp("sharing")
    made = {
        (write.__name__, name): open_stream(write(root / write.__name__ / name, LENGTHS[name]))
        for write, names in ((wds, LENGTHS), (parquet, LENGTHS), (arrow, ("one", "many")))
        for name in names
    }
    for train_set, _ in made.values():
        train_set.reader.sample_shuffle_size, train_set.reader.sample_initial_size = 5, 3
        train_set.reader.shuffle_size = 5
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("datasets.config.SLEEP_TIME_ON_THREADS_SHUTDOWN", 0)  # after each pass
        yield made


@pytest.mark.parametrize(
    ("kind", "name"),
    [(kind, name) for kind in ("wds", "parquet") for name in LENGTHS] + [("arrow", "one"), ("arrow", "many")],
)
def test_an_epoch_has_each_image_at_one_reader_and_repeats_only_to_fill_batches(
    streams: Any, kind: str, name: str
) -> None:
    train_set, total, tried = streams[kind, name][0], sum(LENGTHS[name]), 0
    for ranks, workers in READERS:
        readers = ranks * max(1, workers)
        if not allows(train_set, ranks, workers):
            continue
        tried += 1
        full = math.ceil(math.ceil(total / readers) / BATCH) * BATCH
        epochs = [read(train_set, ranks, workers, epoch) for epoch in (0, 1)]
        for parts in epochs:
            assert [len(part) for part in parts] == [full] * readers
            parts_of = Counter(path for part in parts for path in set(part))
            assert len(parts_of) == total
            assert set(parts_of.values()) == {1}
            for part in parts:  # nothing again before all has come once
                assert len(set(part[: len(set(part))])) == len(set(part)) in (total // readers, -(-total // readers))
        assert epochs[0] != epochs[1]
    divided_by_images = kind != "wds"
    assert tried == (12 if divided_by_images else {"one": 2, "two": 5, "odd": 8, "even": 11, "many": 12}[name])


def test_an_info_with_wrong_lengths_lets_no_two_readers_read_the_same(tmp_path: Path) -> None:
    source = wds(tmp_path, [6, 6, 6])
    splits = {}
    for split, lengths in (("train", [9, 3, 6]), ("val", [6, 6, 6])):
        shards = [f"{split}-{shard:02d}.tar" for shard in range(3)]
        splits[split] = {"name": split, "filenames": shards, "shard_lengths": lengths, "num_samples": 18}
    (tmp_path / "_info.json").write_text(json.dumps({"splits": splits}))
    train_set, _ = open_stream(source)
    for workers in (2, 3):
        counts = Counter(path for part in read(train_set, 1, workers) for path in set(part))
        assert set(counts.values()) == {1}


def test_the_shards_of_parquet_come_in_another_order_in_each_epoch(streams: Any, monkeypatch: Any) -> None:
    train_set = streams["parquet", "many"][0]
    monkeypatch.setattr(train_set.reader, "shuffle_size", 1)
    orders = [list(dict.fromkeys(path.split("-")[0] for path in read(train_set, 1, 0, n)[0])) for n in (0, 1, 0)]
    assert orders[0] == orders[2] != orders[1]
    assert sorted(orders[0]) == sorted(orders[1])


def test_shards_of_the_hub_have_unknown_lengths_but_one_shard_has_all_images() -> None:
    builder: Any = SimpleNamespace(config=SimpleNamespace(data_files=None))
    lengths = [_shard_lengths(builder, SimpleNamespace(n_shards=n), "of/hub", "train", "label", 7) for n in (1, 2)]
    assert lengths == [[7], None]
    with refused(ValueError, "hfids/of/hub to tell its number of images", "download=True"):
        _shard_lengths(builder, SimpleNamespace(n_shards=1), "of/hub", "train", "label", None)


@pytest.fixture
def of_unknown_lengths(streams: Any) -> Iterator[dict[str, Any]]:
    """Streams whose shards have unknown lengths, as those of the hub."""
    readers = {name: streams["parquet", name][0] for name in LENGTHS}
    with pytest.MonkeyPatch.context() as patch:
        for train_set in readers.values():
            patch.setattr(train_set.reader, "shard_lengths", None)
            patch.setattr(train_set.reader, "needs_shards", True)
        yield readers


@pytest.mark.parametrize("name", LENGTHS)
def test_shards_of_unknown_lengths_go_to_one_reader_each_and_are_whole_where_they_divide(
    of_unknown_lengths: Any, name: str
) -> None:
    train_set, total = of_unknown_lengths[name], sum(LENGTHS[name])
    for ranks, workers in READERS:
        readers = ranks * max(1, workers)
        if not allows(train_set, ranks, workers):
            continue
        parts = read(train_set, ranks, workers)
        full = math.ceil(math.ceil(total / readers) / BATCH) * BATCH
        assert [len(part) for part in parts] == [full] * readers
        counts = Counter(path for part in parts for path in set(part))
        assert set(counts.values()) == {1}
        if name == "even" and len(LENGTHS[name]) % readers == 0:
            assert len(counts) == total


def decoded(stream: Any, ranks: int, workers: int, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Return what each rank decodes in an evaluation, and check that it knows how many these are."""
    monkeypatch.setattr(stream, "read", lambda file, *_: (file["path"], 0))
    monkeypatch.setattr(stream, "transformed", lambda *sample: sample)
    found: list[list[str]] = []
    for rank in range(ranks):
        stream.share(BATCH, workers, rank, ranks)
        paths: list[str] = []
        for worker in range(max(1, workers)):
            with as_worker(stream, worker, workers):
                paths += [path for path, _ in stream]
        assert len(stream) - max(0, workers - 1) <= len(paths) <= len(stream)
        found.append(paths)
    return found


def test_an_evaluation_has_each_image_on_one_rank_with_any_workers(streams: Any, monkeypatch: Any) -> None:
    for (_, name), (_, val_set) in streams.items():
        total = sum(LENGTHS[name])
        for ranks, workers in ((1, 0), (2, 0), (3, 1), (2, 2), (3, 3), (20, 0)):
            parts = decoded(val_set, ranks, workers, monkeypatch)
            counts = Counter(path for part in parts for path in part)
            assert set(counts.values()) == {1}
            assert len(counts) == total
            if workers <= 1:
                assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_the_seeds_of_an_evaluation_are_those_of_one_rank(streams: Any, monkeypatch: Any) -> None:
    stream = streams["wds", "odd"][1]
    monkeypatch.setattr(stream, "read", lambda file, *_: (file["path"], 0))
    monkeypatch.setattr(stream, "transformed", lambda *sample: sample)

    def seeds(ranks: int) -> list[tuple[int, ...]]:
        found: list[tuple[int, ...]] = []
        for rank in range(ranks):
            stream.share(BATCH, 0, rank, ranks, seed_image=lambda *place: found.append(place))
            list(stream)
        return sorted(found)

    assert seeds(1) == seeds(2) == seeds(3) == [(0, 0, 0, number) for number in range(sum(LENGTHS["odd"]))]


def test_ranks_share_the_search_for_unreadable_images_of_an_evaluation(streams: Any) -> None:
    stream, found = streams["wds", "odd"][1], []
    for rank in range(3):
        stream.share(BATCH, 0, rank, 3)
        found.append([path for path, _ in stream.find_unreadable()])  # none is an image
    assert [len(paths) for paths in found] == [5, 5, 5]
    assert len({*found[0], *found[1], *found[2]}) == 15


def test_more_readers_than_shards_are_refused_for_each_number_of_them(streams: Any, of_unknown_lengths: Any) -> None:
    for name, lengths in LENGTHS.items():
        for train_set in (streams["wds", name][0], of_unknown_lengths[name]):
            for ranks, workers in READERS:
                if not allows(train_set, ranks, workers):
                    with refused(ValueError, f"got {len(lengths)} for", "or write the data in more shards"):
                        train_set.share(BATCH, workers, 0, ranks)


def test_readers_share_shards_as_webdataset_does_where_they_divide_and_cut_some_where_not() -> None:
    assert [list(ranges([4] * 4, reader, 2)) for reader in range(2)] == [
        [(0, 0, None), (2, 0, None)],
        [(1, 0, None), (3, 0, None)],
    ]
    # 0, 2 and 1 in a row are 15 samples, of which each reads 5
    assert [list(ranges([5, 7, 3], reader, 3)) for reader in range(3)] == [
        [(0, 0, None)],
        [(1, 0, 5)],
        [(1, 5, None), (2, 0, None)],
    ]
    assert [list(ranges([0, 3], reader, 4)) for reader in range(4)] == [[], [(1, 0, 1)], [(1, 1, 2)], [(1, 2, None)]]
