"""Streams: each kind trains, nothing is lost or doubled, and the same seed gives the same bits."""

import gc
import io
import json
import pickle
import sys
import tarfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from ranks import launch
from refusal import refused
from resumed_runs import Noting, cut, every_update, make_run, same_outcome, states, train
from stream_sources import (
    KINDS,
    NAMES,
    WITHOUT_TENSORFLOW,
    add,
    hfids_images,
    hfids_parquet,
    image_folders,
    samples_of,
    tfds,
    wds,
    write_shard,
)
from timm.loss import SoftTargetCrossEntropy
from tiny_runs import NO_WORKERS, fit, make_trainer, tiny_model
from torch import nn
from torch.utils.data import DataLoader

from timm_accel import TimmMixupTrainer, TimmTrainer, create_datasets
from timm_accel.callbacks import PrintMetricsCallback, UnreadableImagesCallback
from timm_accel.data import PrepareImage, Source, StreamedImages
from timm_accel.data.seeding import seed_streamed_image
from timm_accel.data.streams.unreadable_log import UnreadableLog

HALF = (0.5,) * 3
AUGMENTED = {"auto_augment": "rand-m7-mstd0.5-inc1"}
STILL = {"auto_augment": None, "color_jitter": None, "hflip": 0.0, "scale": (1, 1), "ratio": (1, 1)}
STILL["interpolation"] = "bilinear"  # each image comes out the same each time
WARNING = "shuffled within a buffer.*same number of workers and processes"
needs_tensorflow = pytest.mark.skipif(WITHOUT_TENSORFLOW, reason="needs the extra tfds")
KINDS_HERE = [pytest.param(kind, marks=needs_tensorflow) if kind is tfds else kind for kind in KINDS]
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*in an upcoming release of.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning"),  # on a machine of one core
]


def read(data: Any, **options: Any) -> Any:
    return create_datasets(8, HALF, HALF, data=data, **(STILL | options))


def batches(stream: Any, workers: int = 0, seed: int = 0, epochs: int = 1, **options: Any) -> list[list[Any]]:
    """The batches of each epoch, as a trainer with this seed would get them."""
    stream.share(4, workers, seed=seed, seed_image=partial(seed_streamed_image, seed))
    loader = DataLoader(stream, 4, num_workers=workers, **options)
    found = []
    for epoch in range(epochs):
        stream.set_epoch(epoch)
        found.append(list(loader))
        assert len(found[-1]) == len(loader)
    return found


def names_of(images: Any) -> list[bytes]:
    return [image.numpy().tobytes() for batch in images for image in batch]


# Each kind


@pytest.mark.parametrize("kind", KINDS_HERE)
def test_each_kind_trains(kind: Callable[[Path], Any], tmp_path: Path) -> None:
    train_set, val_set = read(kind(tmp_path))
    assert isinstance(train_set, StreamedImages)
    assert [train_set.num_samples, val_set.num_samples] == [16, 7]
    assert train_set.class_names == val_set.class_names == (list("012") if kind is wds else list(NAMES))
    trainer = make_trainer(
        TimmMixupTrainer,
        tiny_model(),
        loss_func=SoftTargetCrossEntropy(),
        eval_loss_fn=nn.CrossEntropyLoss(),
        mixup_args={},
        num_class=3,
        ema_decay=0.1,
    )
    with pytest.warns(UserWarning, match=WARNING) as caught:
        fit(trainer, train_set, val_set, num_epochs=1)
    assert sum("The training images are a stream" in str(each.message) for each in caught) == 1
    assert (trainer.num_updates, trainer.updates_per_epoch) == (4, 4)
    assert 0 <= trainer.run_history.get_latest_metric("accuracy") <= 1


@pytest.mark.parametrize("kind", KINDS_HERE)
def test_an_epoch_is_each_image_once_with_its_own_label(kind: Callable[[Path], Any], tmp_path: Path) -> None:
    train_set, val_set = read(kind(tmp_path))
    for workers in (0,) if kind is hfids_images else (0, 2):
        first, second = batches(train_set, workers, epochs=2)
        for epoch in (first, second):
            images = [images for images, _ in epoch]
            assert len(set(names_of(images))) == 16 == len(names_of(images))
            for pictures, labels in epoch:
                assert pictures.mean((2, 3)).argmax(1).tolist() == labels.tolist()  # `write_images` paints them so
        orders = [names_of(images for images, _ in epoch) for epoch in (first, second)]
        assert orders[0] != orders[1]
        assert {*orders[0]} == {*orders[1]}
        [evaluation] = batches(val_set, workers)
        assert sorted(label for _, labels in evaluation for label in labels.tolist()) == [0, 0, 0, 1, 1, 2, 2]
        assert len(set(names_of(images for images, _ in evaluation))) == 7


@pytest.mark.parametrize("kind", [wds, hfids_parquet])
def test_metrics_are_those_of_a_folder(kind: Callable[[Path], Any], tmp_path: Path) -> None:
    stream, folder = read(kind(tmp_path))[1], read(tmp_path / "images")[1]
    histories = []
    for dataset, workers in ((stream, 0), (folder, 0), (stream, 2)):
        trainer = make_trainer(Noting, tiny_model(), num_class=3, ema_decay=0.1)
        trainer.evaluate(dataset, per_device_batch_size=3, dataloader_kwargs={"num_workers": workers})
        history = trainer.run_history
        histories.append([history.get_latest_metric(name) for name in ("accuracy", "evaluation_loss")])
    assert histories[0] == pytest.approx(histories[1], rel=1e-6)
    assert histories[2] == pytest.approx(histories[1], rel=1e-6)


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_an_epoch_has_as_many_batches_as_were_promised(workers: int, tmp_path: Path) -> None:
    train_set, _ = read(wds(tmp_path, train={"cat": 7, "dog": 6, "owl": 6}))
    [epoch] = batches(train_set, workers)  # compares with the length
    assert len(epoch) == (6 if workers == 2 else 5)  # each worker fills its 10 of 19 up to 12
    assert {len(labels) for _, labels in epoch} == {4}


# The same bits


@pytest.mark.parametrize("kind", [wds, hfids_parquet, pytest.param(tfds, marks=needs_tensorflow)])
def test_images_depend_on_seed_epoch_and_worker_alone(kind: Callable[[Path], Any], tmp_path: Path) -> None:
    train_set, _ = read(kind(tmp_path), **AUGMENTED, hflip=0.5, scale=(0.3, 1))
    draw = partial(batches, train_set, epochs=2)
    kept = draw(2, persistent_workers=True)  # workers that know the epoch before
    torch.manual_seed(5)
    train_set.set_epoch(1)
    train_set.share(4, 2, seed_image=partial(seed_streamed_image, 0))
    fresh = list(DataLoader(train_set, 4, num_workers=2))
    for (first, a), (second, b) in zip(kept[1], fresh, strict=True):
        assert torch.equal(first, second)
        assert torch.equal(a, b)
    other = draw(2, seed=1)
    assert {*names_of(images for images, _ in kept[0])}.isdisjoint(names_of(images for images, _ in other[0]))
    labels = [[label.tolist() for _, label in epoch] for epoch in (kept[0], other[0])]
    assert labels[0] != labels[1]  # the order, too


def test_the_order_within_a_shard_is_drawn_from_seed_and_epoch(tmp_path: Path) -> None:
    train_set, _ = read(wds(tmp_path, shards=1))
    draws = [epoch for seed in (0, 1) for epoch in batches(train_set, seed=seed, epochs=2)]
    orders = [tuple(names_of(images for images, _ in epoch)) for epoch in draws]
    assert len(set(orders)) == 4
    assert len({frozenset(order) for order in orders}) == 1


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.filterwarnings("ignore:The training images are a stream:UserWarning")
def test_a_run_cut_anywhere_ends_in_the_same_bits(workers: int, tmp_path: Path) -> None:
    train_set, val_set = read(wds(tmp_path), **AUGMENTED, hflip=0.5)
    loader = {"num_workers": workers} | ({"persistent_workers": True} if workers else {})
    settings = {"train_dataset": train_set, "eval_dataset": val_set, "num_epochs": 2}
    settings |= {"train_dataloader_kwargs": loader}
    make = partial(make_run, callbacks=[every_update()])
    whole = train(make(tmp_path / "whole"), **settings)
    positions = [folder.name.partition("_")[2] for folder in states(tmp_path / "whole")]
    for position in ("epoch_0_batch_3", "epoch_1_batch_0", "epoch_1_batch_2")[:: 1 if workers else 2]:
        target = cut(tmp_path / "whole", positions.index(position), tmp_path / position)
        resumed = train(make(target), resume_from="auto", **settings)
        assert same_outcome(tmp_path / "whole", target) is None
        rest = whole.images[len(whole.images) - len(resumed.images) :]
        assert 0 < len(rest) < 8
        assert all(map(torch.equal, resumed.images, rest))


# Two processes


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    root, kinds = (
        tmp_path_factory.mktemp("two"),
        "wds,hfids_images,hfids_parquet" + ("" if WITHOUT_TENSORFLOW else ",tfds"),
    )
    launch(Path(__file__).with_name("stream_worker.py"), [2], root, kinds)
    return [torch.load(root / f"results_{rank}.pt", weights_only=True) for rank in range(2)]


SHARED: list[Any] = ["wds/0", "wds/2", "hfids_images/2", "hfids_parquet/0", "hfids_parquet/2"]
SHARED.append(pytest.param("tfds/1", marks=needs_tensorflow))


@pytest.mark.parametrize("name", SHARED)
def test_two_processes_share_a_stream_without_loss_or_doubling(two: list[dict[str, Any]], name: str) -> None:
    epochs = []
    for epoch in range(2):
        seen = [[image.numpy().tobytes() for image in rank[name]["images"].split(8)[epoch]] for rank in two]
        assert [len(each) for each in seen] == [8, 8]
        epochs.append({*seen[0], *seen[1]})
        assert len(epochs[-1]) == 16
    assert epochs[0] == epochs[1]
    assert [rank[name]["updates"] for rank in two] == [(4, 2, 2)] * 2


@pytest.mark.parametrize("name", SHARED)
def test_two_processes_share_an_evaluation_and_both_know_its_metrics(two: Any, name: str, tmp_path: Path) -> None:
    trainer = make_trainer(Noting, tiny_model(), num_class=3, ema_decay=0.1)
    trainer.evaluate(read(image_folders(tmp_path))[1], per_device_batch_size=2, dataloader_kwargs=NO_WORKERS)
    alone = {key: trainer.run_history.get_latest_metric(key) for key in ("evaluation_loss", "accuracy")}
    assert two[0][name]["metrics"] == two[1][name]["metrics"] == pytest.approx(alone, rel=1e-6)
    counts = [rank[name]["evaluated"] for rank in two]
    assert sum(counts) == 7
    assert min(counts) >= 2


def test_three_processes_evaluate_a_stream_of_two_images_of_which_one_is_unreadable(tmp_path: Path) -> None:
    launch(Path(__file__).with_name("few_images_worker.py"), [3], tmp_path)
    ranks = [torch.load(tmp_path / f"few_{rank}.pt", weights_only=True) for rank in range(3)]
    assert [evaluated for evaluated, *_ in ranks] == [1, 0, 0]
    assert len({accuracy for _, accuracy, _ in ranks}) == 1
    assert ranks[0][1] in (0, 1)
    assert [unreadable for *_, unreadable in ranks] == [0, 1, 0]


def test_two_processes_resume_a_stream_to_the_same_bits(two: list[dict[str, Any]]) -> None:
    assert [rank["resumed/wds"] for rank in two] == [("000001_epoch_0_batch_1", None, 0)] * 2
    assert [rank["resumed/gaps"][:2] for rank in two] == [("000005_epoch_0_batch_5", None)] * 2
    assert all(rank["resumed/gaps"][2] > 0 for rank in two)


def test_more_workers_than_shards_are_refused_on_two_processes(two: list[dict[str, Any]]) -> None:
    for rank in two:
        assert "got 1 for 2 workers on each of 2 processes" in rank["refused/one"]
        assert WITHOUT_TENSORFLOW or "num_workers to be at least 1" in rank["refused/tfds"]


# Images


def encoded(image: Image.Image, kind: str = "png", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def shards_of(root: Path, train: list[bytes], val: list[bytes]) -> str:
    for split, contents in (("train", train), ("val", val)):
        write_shard(root / f"{split}-0.tar", [(content, number % 2) for number, content in enumerate(contents)])
    return f"wds/{root}"


def test_images_are_prepared_as_those_of_folders(tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, 256).reshape(16, 16)
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    gradient = Image.fromarray(np.tile(np.arange(16, dtype="uint8") * 16, (16, 1)))
    pictures = [
        encoded(Image.fromarray(ramp.astype("uint16"))),
        encoded(gradient, "jpeg", exif=exif),
        encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "jpeg"),
        encoded(Image.new("L", (16, 16), 7)),
    ]
    stream = read(shards_of(tmp_path, pictures, pictures))[1]
    stream._transforms = []
    for content, (picture, _) in zip(pictures, stream, strict=True):
        assert picture.mode == "RGB"
        assert np.array_equal(picture, PrepareImage()(Image.open(io.BytesIO(content))))
    wide, turned, red, _ = (np.asarray(picture, dtype=float) for picture, _ in stream)
    assert wide.mean() == pytest.approx(127.5, abs=1)
    assert turned[15, 0, 0] - turned[0, 0, 0] > 200
    assert red.mean((0, 1)).argmax() == 0


GOOD = encoded(Image.new("RGB", (16, 16), "red"))
BAD = GOOD[:40]


def test_an_unreadable_image_stops_or_is_skipped(tmp_path: Path) -> None:
    source = shards_of(tmp_path, [GOOD, BAD, *[GOOD] * 6], [GOOD, BAD, GOOD])
    train_set, val_set = read(source)
    [epoch] = batches(train_set)
    assert [len(labels) for _, labels in epoch] == [4, 4]  # the first again in place of the broken one
    assert [label for _, label in val_set] == [0, 0]
    [(path, error)] = val_set.unreadable
    assert path.endswith("val-0.tar/val-0_001")
    assert error
    train_set, val_set = read(source, on_error="raise")
    with refused(OSError, "readable image", "val-0.tar/val-0_001", "Repair or remove it"):
        list(val_set)
    with refused(OSError, "readable image", "train-0.tar/train-0_001"):
        list(train_set)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.filterwarnings("ignore:The training images are a stream")
def test_a_run_lists_and_counts_unreadable_images_or_refuses_them_before_the_first_epoch(
    workers: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = shards_of(tmp_path / "data", [GOOD, BAD, *[GOOD] * 6], [GOOD, BAD, GOOD, GOOD, BAD])

    def run(run_dir: Path, **options: Any) -> Any:
        model = nn.Sequential(nn.Flatten(), nn.Linear(192, 2))
        callbacks = [UnreadableImagesCallback, PrintMetricsCallback]
        trainer = make_trainer(TimmTrainer, model, num_classes=2, callbacks=callbacks, run_dir=run_dir)
        loader = {"num_workers": workers}
        return fit(trainer, *read(source, **options), train_dataloader_kwargs=loader, eval_dataloader_kwargs=loader)

    trainer = run(tmp_path / "run")
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch")]
    assert len(lines) == 2
    assert all("  on 3 of 5 images  " in line for line in lines)
    rows = (tmp_path / "run" / "bad_images.csv").read_text().splitlines()[1:]
    names = [row.partition(",")[0].rpartition("/")[2] for row in rows]
    assert names == ["train-0_001", "val-0_001", "val-0_004"]
    assert trainer.num_updates == 4
    with refused(OSError, "a readable image", "val-0.tar/val-0_001", "one of 2", "on_error='skip'"):
        run(tmp_path / "other", on_error="raise")


def test_the_list_of_a_stream_ends_with_it() -> None:
    log = UnreadableLog()
    log.add("b/\udcff.png", "cut\nshort")
    log.add("a.png", "first")
    log.add("a.png", "first")
    assert log.read() == [("a.png", "first"), ("b/\udcff.png", "cut\nshort")]
    copied = pickle.loads(pickle.dumps(log))  # as a spawned worker gets it
    copied.add("c.png", "third")
    assert [path for path, _ in log.read()] == ["a.png", "b/\udcff.png", "c.png"]
    del copied
    path = Path(log._path)
    assert path.exists()
    del log
    gc.collect()
    assert not path.exists()


def test_too_many_unreadable_images_stop_the_run(tmp_path: Path) -> None:
    source = shards_of(tmp_path / "many", [GOOD] + [BAD] * 11, [GOOD] * 2)
    with refused(OSError, "at most 10 unreadable images", "max_bad_fraction=0.01", "but got 11"):
        batches(read(source)[0])
    source = shards_of(tmp_path / "all", [BAD] * 5, [GOOD] * 2)
    with refused(OSError, "a readable image", "got none in this worker's shards"):
        batches(read(source)[0])


def test_a_shard_that_is_cut_short_is_named(tmp_path: Path) -> None:
    source = shards_of(tmp_path, [GOOD] * 8, [GOOD] * 2)
    shard = tmp_path / "train-0.tar"
    shard.write_bytes(shard.read_bytes()[:5000])
    with refused(ValueError, "a complete webdataset shard", str(shard), "Write it again"):
        read(source)


# Names and splits


def write_info(root: Path) -> str:
    """Describe shards as timm does."""
    source = wds(root)
    splits = {}
    for split in ("train", "val"):
        shards = sorted(path.name for path in (root / "wds").glob(f"{split}-*.tar"))
        lengths = [len(samples_of(root / "images" / split)[number :: len(shards)]) for number in range(len(shards))]
        name = {"val": "validation"}.get(split, split)
        splits[name] = {
            "name": name,
            "num_samples": sum(lengths),
            "filenames": shards,
            "shard_lengths": lengths,
        }
    (root / "wds" / "_info.json").write_text(json.dumps({"splits": splits}))
    return source


@pytest.mark.parametrize("write", [wds, write_info])
def test_a_class_map_names_the_classes(write: Callable[[Path], str], tmp_path: Path) -> None:
    source = write(tmp_path)
    (tmp_path / "names.txt").write_text("cat\ndog\nowl\n")
    for class_map in (tmp_path / "names.txt", {"owl": 2, "cat": 0, "dog": 1}):
        train_set, val_set = read(Source(source, class_map=class_map))
        assert train_set.class_names == list(NAMES)
        assert [train_set.num_samples, val_set.num_samples] == [16, 7]
    assert read(source)[0].class_names == ["0", "1", "2"]


def test_labels_without_names_are_numbered_and_words_sorted(tmp_path: Path) -> None:
    from datasets import Dataset, Features, Image, Value

    for kind, labels in (("int64", [0, 3, 0, 1]), ("string", ["owl", "cat", "owl", "dog"])):
        features = Features({"image": Image(), "label": Value(kind)})
        (tmp_path / kind).mkdir()
        for split, some in (("train", labels), ("validation", labels[:1])):
            rows = {"image": [{"bytes": GOOD, "path": None}] * len(some), "label": some}
            Dataset.from_dict(rows, features=features).to_parquet(tmp_path / kind / f"{split}.parquet")
    train_set, val_set = read(f"hfids/{tmp_path / 'int64'}")
    assert train_set.class_names == val_set.class_names == ["0", "1", "2", "3"]
    train_set, val_set = read(f"hfids/{tmp_path / 'string'}")
    assert train_set.class_names == ["cat", "dog", "owl"]
    assert [label for _, label in val_set] == [2]
    assert [
        label for _, label in read(Source(f"hfids/{tmp_path / 'string'}", download=True, root=tmp_path / "kept"))[1]
    ] == [2]


def test_a_label_that_is_no_class_is_named_at_its_sample(tmp_path: Path) -> None:
    from datasets import ClassLabel, Dataset, Features, Image

    (tmp_path / "p").mkdir()
    features = Features({"image": Image(), "label": ClassLabel(names=["cat", "dog"])})
    for split, labels in (("train", [0, 1, 0]), ("validation", [1, -1, 0]), ("test", [-1])):
        rows = {"image": [{"bytes": GOOD, "path": f"{n}.png"} for n in range(len(labels))], "label": labels}
        Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "p" / f"{split}.parquet")
    with refused(ValueError, "from 0 to 1, for 2 classes, but got -1 for", "1.png"):
        list(read(f"hfids/{tmp_path / 'p'}")[1])
    shards = tmp_path / "w"
    for split, labels in (("train", [0, 1]), ("val", [1, 2, 0])):
        write_shard(shards / f"{split}-0.tar", [(GOOD, label) for label in labels])
    with refused(ValueError, "from 0 to 1, for 2 classes, but got 2 for", "val-0.tar/val-0_001"):
        list(read(Source(f"wds/{shards}", class_map={"cat": 0, "dog": 1}))[1])
    with refused(ValueError, "number the classes 0, 1, 2", "'dog': 2"):
        read(Source(f"wds/{shards}", class_map={"cat": 0, "dog": 2}))


# Bad input


def test_a_stream_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with refused(FileNotFoundError, "wds/FOLDER", str(tmp_path / "nothing"), "Correct the path"):
        read(f"wds/{tmp_path / 'nothing'}")
    with refused(FileNotFoundError, "hfids/NAME", str(tmp_path / "nothing"), "Correct the name"):
        read(f"hfids/{tmp_path / 'nothing'}")
    (tmp_path / "empty").mkdir()
    with refused(FileNotFoundError, "a split in their name", "got 0 tars"):
        read(f"wds/{tmp_path / 'empty'}")
    with refused(FileNotFoundError, "hfids/NAME", str(tmp_path / "empty"), "Correct the name"):
        read(f"hfids/{tmp_path / 'empty'}")
    with refused(ValueError, "a stream to hold images, but got none"):
        read(Source(shards_of(tmp_path / "hollow", [], [GOOD]), class_map={"a": 0, "b": 1}))


@pytest.mark.parametrize("kind", [wds, write_info, hfids_parquet, pytest.param(tfds, marks=needs_tensorflow)])
def test_a_missing_split_is_refused_with_those_there_are(kind: Callable[[Path], Any], tmp_path: Path) -> None:
    with refused(ValueError, "a split 'test'", "['train', 'val'] alone", "eval_split"):
        read(kind(tmp_path), eval_split="test")


def test_more_workers_than_shards_are_refused_before_training(tmp_path: Path) -> None:
    train_set, _ = read(wds(tmp_path, shards=1))
    with refused(ValueError, "got 1 for 2 workers on each of 1 process", '{"num_workers": 1}'):
        fit(make_trainer(), train_set, train_dataloader_kwargs={"num_workers": 2})
    train_set, _ = read(hfids_images(tmp_path / "images"))
    with refused(ValueError, "got 16 for 17 workers on each of 1 process", '{"num_workers": 16}'):
        fit(make_trainer(), train_set, train_dataloader_kwargs={"num_workers": 17})


def test_what_a_stream_cannot_have_is_refused(tmp_path: Path) -> None:
    source = wds(tmp_path)
    for name, value in {"val_fraction": 0.3, "group": "(a)", "split_file": str(tmp_path / "split.csv")}.items():
        with refused(ValueError, f"Expected no {name} beside", source, f"got {value!r}"):
            read(Source(source, **{name: value}))
    with refused(ValueError, "no cache for a stream"):
        read(source, cache="memory")
    with refused(ValueError, "on_error", "'ignore'"):
        read(source, on_error="ignore")
    with refused(ValueError, "max_bad_fraction to be from 0 to 1", "got 2", "default"):
        read(source, max_bad_fraction=2)
    with refused(ValueError, "class_map beside a stream", "images"):
        read(Source(tmp_path / "images", class_map={"a": 0}))


def test_shards_hold_any_format_of_pillow_and_leftovers_are_passed_over(tmp_path: Path) -> None:
    endings = {"gif": "GIF", "webp": "WEBP", "TGA": "TGA", "jp2": "JPEG2000"}
    for split in ("train", "val"):
        with tarfile.open(tmp_path / f"{split}-0.tar", "w") as tar:
            for label, (ending, kind) in enumerate(endings.items()):
                file = io.BytesIO()
                Image.new("RGB", (8, 8), (60 * label, 0, 0)).save(file, kind)
                add(tar, f"./{label}.{ending}", file.getvalue())
                add(tar, f"./{label}.cls", str(label).encode())
            for name in ("./._0.cls", "__MACOSX/9.cls", "@eaDir/9.png", ".Trash/9.cls"):
                add(tar, name, b"no number")
    (tmp_path / "._train-0.tar").write_bytes(b"of macOS")
    train_set, val_set = read(f"wds/{tmp_path}")
    assert len(train_set) == len(val_set) == 4
    val_set._transforms = []
    found = [(int(np.asarray(image)[0, 0, 0]), label) for image, label in val_set]
    assert [label for _, label in found] == [0, 1, 2, 3]
    assert [color for color, _ in found] == pytest.approx([0, 60, 120, 180], abs=6)


def test_samples_without_label_or_columns_are_named(tmp_path: Path) -> None:
    from datasets import Dataset

    source = shards_of(tmp_path, [GOOD] * 2, [GOOD] * 2)
    with tarfile.open(tmp_path / "val-0.tar", "a") as tar:
        add(tar, "without.png", GOOD)
    with refused(ValueError, "a label, KEY.cls", "val-0.tar/without", "['png']"):
        list(read(source)[1])

    (tmp_path / "p").mkdir()
    for split in ("train", "validation"):
        Dataset.from_dict({"photo": [1]}).to_parquet(tmp_path / "p" / f"{split}.parquet")
    with refused(ValueError, "the columns 'image' and 'label'", "['photo']"):
        read(f"hfids/{tmp_path / 'p'}")


@pytest.mark.parametrize(
    ("kind", "package", "extra"),
    [("wds", "webdataset", "wds"), ("hfids", "datasets", "hf"), ("tfds", "tensorflow", "tfds")],
)
def test_a_missing_extra_is_named(kind: str, package: str, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with refused(ModuleNotFoundError, repr(extra), repr(package), f'pip install "timm_accel[{extra}]"'):
        read(f"{kind}/some")


@needs_tensorflow
def test_a_tensorflow_set_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with refused(FileNotFoundError, "tfds/NAME", "'nothing_of_this_name'", "Correct the name"):
        read(Source("tfds/nothing_of_this_name", root=tmp_path))
    with refused(FileNotFoundError, "tfds/mnist to be prepared", "download=True"):
        read(Source("tfds/mnist", root=tmp_path))


@pytest.mark.parametrize(
    ("info", "words"),
    [
        ("{bad", ("JSON with 'splits' by name", "got {}")),
        ("[]", ("JSON with 'splits' by name", "got []")),
        ('{"splits": {}}', ("JSON with 'splits' by name", "got {'splits': {}}")),
        ('{"splits": {"train": 3}}', ("'shard_lengths'], but got it without ['name', ")),
        (
            '{"splits": {"train": {"num_samples": 4, "filenames": [], "shard_lengths": []}}}',
            ("wds' to have ['name', 'num_samples'", "but got it without ['name']. Add them"),
        ),
    ],
)
def test_an_info_without_what_timm_reads_is_refused(info: str, words: tuple[str, ...], tmp_path: Path) -> None:
    shards = wds(tmp_path)
    (tmp_path / "wds" / "_info.json").write_text(info)
    with refused(ValueError, "the _info.json of", *words, "the names of the shards"):
        read(shards)


@pytest.mark.parametrize("ending", ["txt", "json", "label"])
def test_shards_without_numbers_of_classes_are_refused_by_what_they_lack(ending: str, tmp_path: Path) -> None:
    for split in ("train", "val"):
        with tarfile.open(tmp_path / f"{split}-0.tar", "w") as tar:
            add(tar, "0.png", GOOD)
            add(tar, f"0.{ending}", b"1")
    with refused(ValueError, "KEY.jpg and KEY.cls", f"no KEY.cls in 'train-0.tar' of {str(tmp_path)!r}", "Write the"):
        read(f"wds/{tmp_path}")


@pytest.mark.parametrize("cell", [None, {"bytes": b"", "path": None}, {"bytes": b"none", "path": None}])
def test_a_cell_without_an_image_is_an_unreadable_image_of_its_stream(cell: Any, tmp_path: Path) -> None:
    from datasets import ClassLabel, Dataset, Features, Image, Value

    rows = {"image": [{"bytes": GOOD, "path": None}] * 3, "label": [0, 1, 0]}
    stored = Features(
        {"image": {"bytes": Value("binary"), "path": Value("string")}, "label": ClassLabel(names=["a", "b"])}
    )
    for split, images in (("train", rows["image"]), ("validation", [*rows["image"][:2], cell])):
        data = Dataset.from_dict(rows | {"image": images}, features=stored).cast_column("image", Image())
        data.to_parquet(tmp_path / f"{split}-0.parquet")
    val_set = read(f"hfids/{tmp_path}")[1]
    assert [label for _, label in val_set] == [0, 1]
    reason = "no image of a kind that Pillow knows" if cell and cell["bytes"] else "an empty file"
    assert val_set.unreadable == [(f"hfids/{tmp_path} validation, shard 0, row 2", reason)]
