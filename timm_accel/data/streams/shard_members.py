"""The members of a shard by their places in the file: what a stream passes over is not read, and the rest on demand."""

import os
import re
import tarfile
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

_META = re.compile(r"__[^/]*__($|/)")  # what webdataset passes over


class Unread(NamedTuple):
    """The content of a member that has not been read yet."""

    path: str
    offset: int
    size: int

    def read(self) -> bytes:
        """Return the content."""
        with open(self.path, "rb") as file:
            file.seek(self.offset)
            return file.read(self.size)


def unread_members(url: str, select_files: Callable[[str], bool]) -> list[dict[str, Any]] | None:
    """Return what webdataset's ``tar_file_expander`` yields for a shard, with `Unread` instead of the contents.

    Only the headers are read.

    Args:
        url: A shard as webdataset opens it.
        select_files: Whether to use the member of a name.

    Returns:
        None where the places are not those of the contents: the shard is compressed, broken, or no local file.

    Source: ``webdataset.tariterators.tar_file_iterator``.
    """
    if "GOPEN_REWRITE" in os.environ or not os.path.isfile(url):
        return None
    found: list[dict[str, Any]] = []
    try:
        with open(url, "rb", buffering=0) as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                tar.members = []  # type: ignore[attr-defined]  # it keeps all otherwise
                if member.issparse():
                    return None
                if member.isreg() and not _META.match(member.name) and select_files(member.name):
                    content = Unread(url, member.offset_data, member.size)
                    found.append({"fname": member.name, "data": content, "__url__": url})
    except (OSError, tarfile.TarError):
        return None
    return [*found, {}]  # webdataset's mark of the end of a shard


def read_sample(sample: dict[str, Any]) -> dict[str, Any]:
    """Return a sample with its contents read."""
    return {name: value.read() if isinstance(value, Unread) else value for name, value in sample.items()}


def ranges(lengths: list[int], number: int, count: int) -> Iterator[tuple[int, int, int | None]]:
    """Yield the shards of one of several readers that share all samples evenly: (shard, first sample, end).

    Reader `number` has every `count`-th shard, as in webdataset, where shards divide evenly. Otherwise some shards are
    cut where one reader's part ends and the next one's begins, so that no sample is read twice or left out.

    Args:
        lengths: The samples in each shard.
        number: This reader.
        count: All readers.
    """
    total, passed = sum(lengths), 0
    begin, end = total * number // count, total * (number + 1) // count
    for shard in (each for first in range(count) for each in range(first, len(lengths), count)):
        start, stop = max(begin - passed, 0), min(end - passed, lengths[shard])
        if start < stop:
            yield shard, start, stop if stop < lengths[shard] else None
        passed += lengths[shard]
