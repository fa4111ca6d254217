"""Streams of webdataset shards: tars whose members ``KEY.jpg`` and ``KEY.cls`` are one sample."""

import json
import logging
import os
import random
import re
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from timm.data.readers.reader_wds import ReaderWds, SplitInfo, _load_info, detshuffle2, log_and_continue
from webdataset.handlers import reraise_exception
from webdataset.tariterators import group_by_keys, tar_file_expander, url_opener

from timm_accel.data.classes import numbered_names
from timm_accel.data.image_files import image_endings, is_leftover
from timm_accel.data.readers.regular_files import check_regular
from timm_accel.data.splits.splitting import SPLITS, split_name
from timm_accel.data.streams.shard_members import ranges, read_sample, unread_members
from timm_accel.data.streams.stream_reader import ClassMap, StreamReader, missing_split, read_class_map
from timm_accel.messages import counted, one_line

_INFO = ("_info.json", "info.json")  # timm's names
_SPLIT_KEYS = ("name", "num_samples", "filenames", "shard_lengths")  # that timm's reader needs of each split
_FIRST_ENDINGS = ("jpg", "jpeg", "png", "webp", "bmp", "tif", "tiff")  # the image where a sample has several


class WdsStream(StreamReader, ReaderWds):
    """Extend timm's reader of webdataset shards: it returns bytes, not decoded images.

    Source: ``timm.data.readers.reader_wds.ReaderWds``.
    """

    _left_to_pass = 0

    def __init__(self, root: str, split: str, lengths: Mapping[str, int] | None = None) -> None:
        """Open the split of an ``_info.json``, or shards without one, given the number of samples in each."""
        if lengths is None:
            super().__init__(root=root, split=split)
        else:
            count = sum(lengths.values())
            super().__init__(root=root, split=".tar", num_samples=count)  # timm would expand braces in names
            self.split_info = SplitInfo(count, tuple(lengths), tuple(lengths.values()))
        self.num_shards = len(self.split_info.filenames)

    def _lazy_init(self) -> None:
        super()._lazy_init()  # sets the indices of rank and worker
        import webdataset as wds

        urls = [os.path.join(self.root, name) for name in self.split_info.filenames]
        stages = [wds.SimpleShardList(urls), self._split_by_node_and_worker, self._samples]
        if self.is_training:
            shuffled = detshuffle2(self.shard_shuffle_size, seed=self.common_seed, epoch=self.epoch_count)
            draws = random.Random(self.worker_seed)
            stages[1:2] = [shuffled, self._split_evenly]
            stages.append(wds.shuffle(self.sample_shuffle_size, initial=self.sample_initial_size, rng=draws))
        self._left_to_pass = self._passed
        self._endings = [*_FIRST_ENDINGS, *sorted(ending[1:] for ending in image_endings())]
        self.ds = wds.DataPipeline(*stages, wds.map(self._to_image))

    def _split_evenly(self, shards: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """Yield the shards of this worker of this rank, the first and the last maybe in part."""
        names, chosen = self.split_info.filenames, list(shards)
        known = {os.path.join(self.root, name): n for name, n in zip(names, self.split_info.shard_lengths, strict=True)}
        lengths = [known[shard["url"]] for shard in chosen]
        for number, begin, end in ranges(lengths, self.reader_number, self.num_readers):
            yield chosen[number] | {"part": (begin, end)}

    def _samples(self, shards: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """Yield the samples of shards; the contents of those that may be passed over are not read yet."""
        handler = log_and_continue if self.skips else reraise_exception
        for shard in shards:
            begin, end = shard.pop("part", (0, None))
            members: Any = unread_members(shard["url"], _is_data) if begin or self._left_to_pass else None
            if members is None:
                members = tar_file_expander(url_opener([shard], handler), handler, _is_data)
            for sample in islice(group_by_keys(members, handler=handler), begin, end):
                yield sample if self._left_to_pass else read_sample(sample)

    def _to_image(self, sample: dict[str, Any]) -> dict[str, Any]:
        if self._left_to_pass:
            self._left_to_pass -= 1
            return {"image": None, "target": None}
        sample = read_sample(sample)
        path, key = f"{sample['__url__']}/{sample['__key__']}", self.split_info.alt_label
        content = next((sample[end] for end in self._endings if end in sample), b"")
        if ("json" if key else "cls") not in sample:
            raise ValueError(
                f"Expected each sample to have a label, KEY.{'json' if key else 'cls'}, but got {path!r} with "
                f"{sorted(end for end in sample if not end.startswith('__'))}. Write the shards again."
            )
        label = json.loads(sample["json"])[key] if key else sample["cls"]
        return {"image": {"bytes": content, "path": path}, "target": int(label)}


def open_wds(root: str, split: str, class_map: ClassMap | None = None) -> WdsStream:
    """Open a split of a folder of webdataset shards.

    Args:
        root: The folder or its URL. Its ``_info.json`` lists the splits, as timm writes it. Without that file, the
            shards of a local folder have the split in their name or folder: ``train-0000.tar``, ``valid/3.tar``.
        split: ``train``, ``val``, ``test`` or a synonym.
        class_map: The names of the classes: a map from name to label, or a file with one name a line.

    Raises:
        FileNotFoundError: There is no such folder, or it holds no shards.
        ValueError: There is no such split, or a shard is broken.
    """
    if "://" not in root and not os.path.isdir(root):
        raise FileNotFoundError(f"Expected wds/FOLDER with webdataset shards, but got {root!r}. Correct the path.")
    described = "://" in root or any(os.path.exists(os.path.join(root, name)) for name in _INFO)
    splits = _described_splits(root) if described else _splits_by_name(Path(root))
    named = {split_name(name): name for name in splits}
    if split not in named:
        raise missing_split(split, sorted(named), repr(root))
    if described:
        reader = _of_description(root, named[split])
    else:
        lengths = {shard: len(_labels_of(Path(root, shard))) for shard in splits[split]["filenames"]}
        if not any(lengths.values()) and (
            unlabeled := next((shard for shard in lengths if _holds_data(Path(root, shard))), None)
        ):
            raise ValueError(
                f"Expected samples of an image and a number, KEY.jpg and KEY.cls, but got no KEY.cls in {unlabeled!r} "
                f"of {root!r}. Write the shards so, or write an _info.json that names the label in KEY.json."
            )
        timms = logging.getLogger(ReaderWds.__module__)  # it warns that there is no _info.json
        timms.disabled = True
        try:
            reader = WdsStream(root, split, lengths)
        finally:
            timms.disabled = False
    reader.class_to_idx = _numbered(reader, splits) if class_map is None else read_class_map(class_map)
    return reader


def _described_splits(root: str) -> Mapping[str, Any]:
    """Return the splits of an ``_info.json``, with what timm reads of each."""
    if "://" not in root:
        for name in _INFO:
            check_regular(os.path.join(root, name))
    info = _load_info(root)  # {} where it is no JSON
    splits = info.get("splits") if isinstance(info, Mapping) else None
    if not (isinstance(splits, Mapping) and splits):
        raise ValueError(
            f"Expected the _info.json of {root!r} to be JSON with 'splits' by name, but got {str(info)[:100]}. Write "
            "it so, or remove it and put the split into the names of the shards."
        )
    for name, split in splits.items():
        known = split if isinstance(split, Mapping) else {}
        if missing := [key for key in _SPLIT_KEYS if key not in known]:
            raise ValueError(
                f"Expected the split {name!r} in the _info.json of {root!r} to have {list(_SPLIT_KEYS)}, but got it "
                f"without {missing}. Add them, or remove the file and put the split into the names of the shards."
            )
    return splits


def _bad_description(root: str, found: str) -> ValueError:
    return ValueError(
        f"Expected {_INFO[0]} to list splits, each with the names of its shards below its folder and num_samples, but "
        f"got {found} in {root!r}. Write it again, as webdataset's tools do."
    )


def _of_description(root: str, split: str) -> WdsStream:
    try:
        reader = WdsStream(root, split)
        shards = list(reader.split_info.filenames)
        count = reader.num_samples
    except (LookupError, TypeError, AttributeError, AssertionError, RuntimeError, ValueError) as error:
        raise _bad_description(root, f"a split {split!r} that cannot be read ({one_line(error)})") from error
    if isinstance(count, bool) or not isinstance(count, int) or count < 0:
        raise _bad_description(root, f"num_samples {count!r} of {split!r}")
    if len(reader.split_info.shard_lengths) != len(shards):
        numbers = counted(len(reader.split_info.shard_lengths), "number")
        raise _bad_description(root, f"shard_lengths of {numbers} for {counted(len(shards), 'shard')} of {split!r}")
    for shard in shards:
        if not isinstance(shard, str) or os.path.isabs(shard) or ":" in shard or ".." in Path(shard).parts:
            raise _bad_description(root, f"the shard {shard!r} of {split!r}")
        if "://" not in root and not os.path.isfile(os.path.join(root, shard)):
            raise _bad_description(root, f"the shard {shard!r} of {split!r}, which is no file there")
    return reader


def _splits_by_name(root: Path) -> dict[str, dict[str, list[str]]]:
    """Return the shards of each split, as an ``_info.json`` would list them."""
    found: dict[str, dict[str, list[str]]] = {}
    found_tars = (str(path.relative_to(root)) for path in root.rglob("*.tar"))
    shards = sorted(filter(_is_data, found_tars))
    for shard in shards:
        words = [split_name(word) for word in re.split(r"[^a-z]+", shard.lower())]
        for name in [word for word in words if word in SPLITS][:1]:
            found.setdefault(name, {"filenames": []})["filenames"].append(shard)
    if not found:
        raise FileNotFoundError(
            f"Expected shards with a split in their name, such as train-0000.tar, but got {len(shards)} tars in "
            f"{str(root)!r}. Rename them, or write an _info.json beside them."
        )
    return found


def _numbered(reader: WdsStream, splits: Mapping[str, Any]) -> dict[str, int]:
    """Return the class names '0', '1', … up to the largest label in the shards of all splits."""
    if "://" in reader.root or reader.split_info.alt_label:
        raise ValueError(
            f"Expected class_map to name the classes, since the shards of {reader.root!r} do not, but got None. Pass "
            "Source(…, class_map=…), a file with one name a line or a dict of names and labels."
        )
    shards = [Path(reader.root, shard) for split in splits.values() for shard in split["filenames"]]
    largest = max((label for shard in shards for label in _labels_of(shard)), default=-1)
    return {name: label for label, name in enumerate(numbered_names(largest))}


def _is_data(name: str) -> bool:
    """Return whether a member of a shard is none that a system left behind."""
    return not any(is_leftover(part) for part in name.split("/") if part != ".")


def _holds_data(shard: Path) -> bool:
    with tarfile.open(shard, "r:") as tar:
        return any(_is_data(member.name) for member in tar)


def _labels_of(shard: Path) -> list[int]:
    """Return the label of each sample of a local shard, from the members ``KEY.cls``."""
    try:
        check_regular(shard)
        with tarfile.open(shard, "r:") as tar:
            files = [
                tar.extractfile(member) for member in tar if member.name.endswith(".cls") and _is_data(member.name)
            ]
            return [int(file.read()) for file in files if file is not None]
    except (tarfile.TarError, OSError, ValueError) as error:
        raise ValueError(
            f"Expected a complete webdataset shard with a number in each KEY.cls, but got {str(shard)!r} ({error}). "
            "Write it again."
        ) from error
