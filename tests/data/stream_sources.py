"""Streams made on the spot: webdataset shards, Hugging Face folders of images and of parquet, a TensorFlow set."""

import importlib.util
import io
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import datasets.config
from conftest import write_images

from timm_accel.data import Source

NAMES = ("cat", "dog", "owl")
TRAIN, VAL = {"cat": 6, "dog": 5, "owl": 5}, {"cat": 3, "dog": 2, "owl": 2}
datasets.config.SLEEP_TIME_ON_THREADS_SHUTDOWN = 0.1  # 5 s, twice, after each pass over shuffled parquet (datasets 5.2)
WITHOUT_TENSORFLOW = importlib.util.find_spec("tensorflow_datasets") is None


def image_folders(root: Path, train: dict[str, int] | None = None) -> Path:
    write_images(root / "images" / "train", TRAIN if train is None else train)
    write_images(root / "images" / "val", VAL)
    return root / "images"


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def write_shard(path: Path, samples: Iterable[tuple[bytes, int]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for number, (content, label) in enumerate(samples):
            add(tar, f"{path.stem}_{number:03d}.png", content)
            add(tar, f"{path.stem}_{number:03d}.cls", str(label).encode())
    return path


def samples_of(folder: Path) -> list[tuple[bytes, int]]:
    return [(file.read_bytes(), NAMES.index(file.parent.name)) for file in sorted(folder.rglob("*.png"))]


def wds(root: Path, shards: int = 4, train: dict[str, int] | None = None) -> Any:
    images = image_folders(root, train)
    for split, count in (("train", shards), ("val", 2)):
        for number in range(count):
            write_shard(root / "wds" / f"{split}-{number:04d}.tar", samples_of(images / split)[number::count])
    return f"wds/{root / 'wds'}"


def wds_with_gaps(root: Path) -> Any:
    """Shards that do not divide evenly among readers, with images that cannot be read."""
    [*images] = samples_of(image_folders(root))
    for split, lengths in (("train", (5, 9, 7, 8, 11)), ("val", (2,))):
        for shard, count in enumerate(lengths):
            samples = [images[(5 * shard + number) % len(images)] for number in range(count)]
            samples[1] = (samples[1][0][:40], samples[1][1])
            write_shard(root / "gaps" / f"{split}-{shard}.tar", samples)
    return f"wds/{root / 'gaps'}"


def hfids_images(root: Path) -> Any:
    return f"hfids/{image_folders(root)}"


def write_parquet(folder: Path, split: str, shards: list[list[tuple[bytes, int]]]) -> None:
    from datasets import ClassLabel, Dataset, Features, Image

    folder.mkdir(exist_ok=True)
    features = Features({"image": Image(), "label": ClassLabel(names=NAMES)})
    for number, samples in enumerate(shards):
        rows = {"image": [{"bytes": each, "path": None} for each, _ in samples], "label": [n for _, n in samples]}
        path = folder / f"{split}-{number:05d}-of-{len(shards):05d}.parquet"
        Dataset.from_dict(rows, features=features).to_parquet(path)


def hfids_parquet(root: Path) -> Any:
    images = image_folders(root)
    for split, count in (("train", 4), ("validation", 2)):
        samples = samples_of(images / split[:5].replace("valid", "val"))
        write_parquet(root / "parquet", split, [samples[number::count] for number in range(count)])
    return f"hfids/{root / 'parquet'}"


def tfds(root: Path) -> Any:
    import tensorflow_datasets

    images = image_folders(root)

    class Tiny(tensorflow_datasets.core.GeneratorBasedBuilder, skip_registration=True):
        """A set of three classes."""

        VERSION = tensorflow_datasets.core.Version("1.0.0")

        def _info(self) -> Any:
            features = tensorflow_datasets.features
            described = {"image": features.Image(encoding_format="png"), "label": features.ClassLabel(names=NAMES)}
            return tensorflow_datasets.core.DatasetInfo(builder=self, features=features.FeaturesDict(described))

        def _split_generators(self, downloads: Any) -> Any:
            return {"train": self._generate_examples("train"), "validation": self._generate_examples("val")}

        def _generate_examples(self, split: str) -> Any:
            for file in sorted((images / split).rglob("*.png")):
                yield f"{file.parent.name}{file.stem}", {"image": str(file), "label": file.parent.name}

    Tiny(data_dir=str(root / "tfds")).download_and_prepare()
    return Source("tfds/tiny", root=root / "tfds")


KINDS = [wds, hfids_images, hfids_parquet, tfds]
