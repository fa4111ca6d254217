"""Each kind of source gives the right images with the right labels, and trains."""

import csv
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import write_images
from PIL import Image
from refusal import contents, refused
from timm.loss import SoftTargetCrossEntropy
from tiny_runs import fit, make_trainer
from torch import nn
from torch.utils.data import DataLoader, Dataset

from timm_accel import TimmMixupTrainer, create_datasets
from timm_accel.data import ImageFolderDataset, Source
from timm_accel.data.readers.reader_views import ReaderPart
from timm_accel.data.readers.tar_reader import TarReader

COUNTS = {"cat": 8, "dog": 8, "owl": 8}
HALF = (0.5,) * 3


def read(data: Any, **options: Any) -> Any:
    return create_datasets(8, HALF, HALF, data=data, auto_augment=None, **options)


def colors_fit(dataset: Any) -> bool:
    """Whether each image's strongest color is that of its label, as `write_images` paints them."""
    dataset.transform = None
    return all(
        int(np.asarray(image).mean((0, 1)).argmax()) == label
        for image, label in map(dataset.__getitem__, range(len(dataset)))
    )


def trains(train_set: Any, val_set: Any) -> Any:
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 3))
    trainer = make_trainer(
        TimmMixupTrainer,
        model,
        loss_func=SoftTargetCrossEntropy(),
        eval_loss_fn=nn.CrossEntropyLoss(),
        mixup_args={},
        num_class=3,
        ema_decay=0.1,
    )
    return fit(trainer, train_set, val_set, num_epochs=2)


def add_tar(path: Path, folder: Path, prefix: str = "") -> Path:
    with tarfile.open(path, "a") as tar:
        for file in sorted(folder.rglob("*.png")):
            tar.add(file, arcname=Path(prefix, file.relative_to(folder)))
    return path


def folder(root: Path) -> Any:
    write_images(root / "set" / "train", COUNTS)
    write_images(root / "set" / "validation", {"cat": 2, "dog": 2, "owl": 2})
    return root / "set"


def synonyms(root: Path) -> Any:
    write_images(root / "set" / "training", COUNTS)
    write_images(root / "set" / "eval", {"cat": 2, "dog": 2, "owl": 2})
    return root / "set"


def undivided(root: Path) -> Any:
    return Source(write_images(root / "set", {"cat": 10, "dog": 10, "owl": 10}), val_fraction=0.2)


def one_tar(root: Path) -> Any:
    path = root / "set.tar"
    add_tar(path, write_images(root / "a", COUNTS), "train")
    return add_tar(path, write_images(root / "b", {"cat": 2, "dog": 2, "owl": 2}), "val")


def undivided_tar(root: Path) -> Any:
    return add_tar(root / "set.tar", write_images(root / "a", {"cat": 10, "dog": 10, "owl": 10}), "all")


def tar_of_each_split(root: Path) -> Any:
    (root / "set").mkdir()
    add_tar(root / "set" / "train.tar", write_images(root / "a", COUNTS))
    add_tar(root / "set" / "val.tar", write_images(root / "b", {"cat": 2, "dog": 2, "owl": 2}))
    return root / "set"


def folders_of_tars(root: Path) -> Any:
    """One tar a class, as ImageNet-21k comes."""
    for split, count in (("train", 8), ("val", 2)):
        images = write_images(root / split, dict.fromkeys(COUNTS, count))
        (root / "set" / split).mkdir(parents=True)
        for name in COUNTS:
            add_tar(root / "set" / split / f"{name}.tar", images / name)
    return root / "set"


def manifest(root: Path) -> Any:
    images = write_images(root / "images", {"cat": 10, "dog": 10, "owl": 10})
    with open(root / "set.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "split"])
        for path in sorted(images.rglob("*.png")):
            split = "val" if path.stem in ("000", "001") else "train"
            writer.writerow([path.relative_to(root), path.parent.name, split])
    return root / "set.csv"


def undivided_manifest(root: Path) -> Any:
    text = manifest(root).read_text().replace(",split", "").replace(",train", "").replace(",val", "")
    (root / "set.csv").write_text(text)
    return root / "set.csv"


class Pictures(Dataset):
    """A custom dataset of PIL images."""

    def __init__(self, count: int) -> None:
        draws = np.random.default_rng(0)
        self.targets = [number % 3 for number in range(count)]
        self.images = []
        for label in self.targets:
            pixels = draws.integers(0, 100, (16, 16, 3))
            pixels[..., label] += 150
            self.images.append(Image.fromarray(pixels.astype("uint8")))

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return self.images[index], self.targets[index]

    def __len__(self) -> int:
        return len(self.images)


def custom_datasets(root: Path) -> Any:
    return {"train": Pictures(24), "validation": Pictures(6)}


def custom_dataset_without_splits(root: Path) -> Any:
    return Pictures(30)


def own_readers(root: Path) -> Any:
    write_images(root / "a", COUNTS)
    write_images(root / "b", {"cat": 2, "dog": 2, "owl": 2})
    return {"train": ImageFolderDataset(root / "a").reader, "val": root / "b"}


KINDS = [
    folder,
    synonyms,
    undivided,
    one_tar,
    undivided_tar,
    tar_of_each_split,
    folders_of_tars,
    manifest,
    undivided_manifest,
    custom_datasets,
    custom_dataset_without_splits,
    own_readers,
]


@pytest.mark.parametrize("make", KINDS, ids=lambda make: make.__name__)
def test_every_source_trains_with_the_right_labels(make: Any, tmp_path: Path) -> None:
    train_set, val_set = read(make(tmp_path))
    assert (len(train_set), len(val_set)) == (24, 6)
    names = ["0", "1", "2"] if make in (custom_datasets, custom_dataset_without_splits) else list(COUNTS)
    assert train_set.class_names == val_set.class_names == names
    assert train_set.class_sizes == dict.fromkeys(names, 8)
    trainer = trains(train_set, val_set)
    assert trainer.num_updates == 12
    assert colors_fit(train_set)
    assert colors_fit(val_set)


def idx(path: Path, array: np.ndarray) -> None:
    kind = {1: 0x801, 3: 0x803}[array.ndim]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(kind.to_bytes(4, "big") + b"".join(n.to_bytes(4, "big") for n in array.shape) + array.tobytes())


def mnist(root: Path, train: int) -> Any:
    """Files of torchvision's MNIST with so many training images and 10 others."""
    draws = np.random.default_rng(0)
    for part, count in (("train", train), ("t10k", 10)):
        raw = root / "MNIST" / "raw"
        idx(raw / f"{part}-images-idx3-ubyte", draws.integers(0, 255, (count, 28, 28), dtype=np.uint8))
        idx(raw / f"{part}-labels-idx1-ubyte", (np.arange(count) % 10).astype(np.uint8))
    return Source("torch/mnist", root=root)


def test_torchvisions_sets_are_read_from_their_files(tmp_path: Path) -> None:
    train_set, val_set = read(mnist(tmp_path, 20))
    assert (len(train_set), len(val_set)) == (20, 10)
    assert train_set.class_names[3] == "3 - three"
    assert train_set[3][0].shape == (3, 8, 8)  # gray images become what the model expects
    assert train_set[3][1] == 3


def test_a_torchvision_set_that_is_not_there_names_the_remedy(tmp_path: Path) -> None:
    with refused(FileNotFoundError, "'torch/mnist' to be in root", str(tmp_path), "download=True"):
        read(Source("torch/mnist", root=tmp_path))
    with refused(ValueError, "torch/NAME", "got 'torch/mnits'", "'torch/cifar10'"):
        read(Source("torch/mnits", root=tmp_path))


def test_a_test_split_is_kept_for_the_final_evaluation(tmp_path: Path) -> None:
    root = folder(tmp_path)
    write_images(root / "test", {"cat": 3, "dog": 3, "owl": 3})
    assert [len(part) for part in read(root)] == [24, 6]
    assert [len(part) for part in read(root, eval_split="test")] == [24, 9]


def test_a_test_split_may_lack_classes_and_a_validation_split_may_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = folder(tmp_path)
    write_images(root / "test", {"dog": 3, "owl": 2})
    _, test_set = read(root, eval_split="test")
    assert test_set.class_sizes == {"cat": 0, "dog": 3, "owl": 2}
    assert [test_set[index][1] for index in range(5)] == [1, 1, 1, 2, 2]
    assert [record.getMessage() for record in caplog.records] == [
        "The evaluation images are of 2 of 3 classes, without ['cat']."
    ]
    write_images(root / "test", {"elk": 1})
    with refused(ValueError, "the same classes in both splits", "lacks ['cat'] and has ['elk'] besides"):
        read(root, eval_split="test")
    for path in (root / "validation" / "cat").iterdir():
        path.unlink()
    with refused(ValueError, "the same classes in both splits", "lacks ['cat']"):
        read(root)


def test_a_split_that_is_missing_is_an_error_not_everything(tmp_path: Path) -> None:
    root = folder(tmp_path)
    with refused(ValueError, "a split 'test'", str(root), "['train', 'val'] alone"):
        read(root, eval_split="test")
    write_images(tmp_path / "half" / "train", COUNTS)
    with refused(ValueError, "a split 'val'", "['train'] alone"):
        read(tmp_path / "half")
    with refused(ValueError, "a split 'val'", "the mapping", "['train'] alone"):
        read({"train": root / "train"})
    with refused(ValueError, "a split 'test'", "['train', 'val'] alone"):
        read(undivided(tmp_path / "other"), eval_split="test")


def test_hugging_face_sets_are_read_from_folders_and_from_parquet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    images = folder(tmp_path)
    cache = tmp_path / "cache"
    loaded = datasets.load_dataset("imagefolder", data_dir=str(images), cache_dir=str(cache))
    (tmp_path / "parquet" / "data").mkdir(parents=True)
    for split, part in loaded.items():
        part.to_parquet(str(tmp_path / "parquet" / "data" / f"{split}-00000-of-00001.parquet"))
    for path in (images, tmp_path / "parquet"):
        train_set, val_set = read(Source(f"hfds/{path}", root=cache))
        assert (len(train_set), len(val_set)) == (24, 6)
        assert train_set.class_names == list(COUNTS)
        assert train_set.class_sizes == dict.fromkeys(COUNTS, 8)
        trains(train_set, val_set)
        assert colors_fit(train_set)
    with refused(ValueError, "a split 'test'", "['train', 'validation'] alone"):
        read(Source(f"hfds/{images}", root=cache), eval_split="test")


# Division


def test_a_split_is_written_and_reused(tmp_path: Path) -> None:
    images = write_images(tmp_path / "set", {"cat": 20, "dog": 10, "owl": 10})
    file = tmp_path / "run" / "split.csv"
    first = read(Source(images, val_fraction=0.25, split_seed=1, split_file=file))
    assert [part.class_sizes for part in first] == [{"cat": 15, "dog": 8, "owl": 8}, {"cat": 5, "dog": 2, "owl": 2}]
    written = file.read_text()
    again = read(Source(images, val_fraction=0.5, split_seed=2, split_file=file))
    assert [part.filenames() for part in again] == [part.filenames() for part in first]
    assert file.read_text() == written
    by_manifest = read(Source(file, root=images))  # it is a manifest too
    assert [sorted(part.filenames()) for part in by_manifest] == [sorted(part.filenames()) for part in first]
    write_images(tmp_path / "set", {"cat": 21, "dog": 10, "owl": 10})
    with refused(ValueError, "split_file to list every image", str(file), "lacks 1 of 41", "020.png"):
        read(Source(images, split_file=file))


def test_a_group_is_on_one_side(tmp_path: Path) -> None:
    images = write_images(tmp_path / "set", {"cat": 40, "dog": 40})
    train_set, val_set = read(Source(images, val_fraction=0.3, group=r"(\d)\d\.png"))
    sides = [{name[-6] for name in part.filenames()} for part in (train_set, val_set)]
    assert sides[0] | sides[1] == set("0123")
    assert not sides[0] & sides[1]


def test_a_class_with_one_image_cannot_be_divided(tmp_path: Path) -> None:
    images = write_images(tmp_path / "set", {"cat": 4, "dog": 1})
    with refused(ValueError, "at least two images", "class 'dog' with one"):
        read(images)


# Tars


def test_a_tar_read_before_workers_start_is_read_rightly(tmp_path: Path) -> None:
    """timm's reader shares its open file with forked workers (1.0.31)."""
    images = write_images(tmp_path / "a", {"cat": 60, "dog": 60, "owl": 60}, size=32)
    reader = TarReader(str(add_tar(tmp_path / "set.tar", images)))
    part = ReaderPart(reader, np.arange(180))
    part[0][0].read()  # opens the tar here

    class Bytes(Dataset):
        def __getitem__(self, index: int) -> tuple[int, int]:
            file, label = part[index]
            return sum(file.read()), label

        def __len__(self) -> int:
            return 180

    def sums(workers: int) -> list[int]:
        loader = DataLoader(Bytes(), 4, num_workers=workers, shuffle=False)
        return torch.cat([batch[0] for batch in loader]).tolist()

    assert sums(0) == sums(2)


def test_a_compressed_or_broken_tar_is_refused(tmp_path: Path) -> None:
    for name in ("set.tar.gz", "set.tgz", "set.tar.zst"):
        with refused(ValueError, "a plain tar", name, "gunzip"):
            read(tmp_path / name)
    path = undivided_tar(tmp_path)
    path.write_bytes(path.read_bytes()[:2000])
    with refused((ValueError, FileNotFoundError), "tar", str(path)):
        read(path)


# What is not there


@pytest.mark.parametrize("name", ["nothing", "nothing.tar", "nothing.csv"])
def test_a_source_that_does_not_exist_is_refused(name: str, tmp_path: Path) -> None:
    before = contents(tmp_path)
    with refused(FileNotFoundError, str(tmp_path / name), "Correct the path"):
        read(tmp_path / name)
    assert contents(tmp_path) == before


def test_either_data_or_paths_are_given(tmp_path: Path) -> None:
    with refused(ValueError, "data, or train_path and val_path", "got neither"):
        create_datasets(8, HALF, HALF)
    with refused(ValueError, "data, or train_path and val_path", "got both"):
        create_datasets(8, HALF, HALF, tmp_path, tmp_path, data=tmp_path)


def test_an_unlabelled_test_row_does_not_stop_training(tmp_path: Path) -> None:
    path = manifest(tmp_path)
    with open(path, "a", newline="") as file:
        csv.writer(file).writerow(["images/unknown.png", "", "test"])
    assert [len(part) for part in read(path)] == [24, 6]


def test_an_image_beside_the_folders_of_classes_is_refused(tmp_path: Path) -> None:
    root = folder(tmp_path)
    write_images(root / "train", {".": 1})
    with refused(ValueError, "one folder of images for each class", "train/000.png", "Move it"):
        read(root)


def test_a_whole_without_splits_is_opened_once(tmp_path: Path) -> None:
    for data in (Pictures(30), undivided_tar(tmp_path), undivided_manifest(tmp_path / "table")):
        source = Source(data)
        assert source.open("train").reader is source.open("val").reader
