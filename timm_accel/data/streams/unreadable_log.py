"""The unreadable images of a stream: a file of them that the loader workers of a process share, and a search."""

import json
import os
from collections.abc import Iterator
from tempfile import mkstemp
from typing import Any
from weakref import finalize

from torch.utils.data import IterableDataset

from timm_accel.data.loader_errors import is_of_the_machine


class UnreadableLog:
    """Collect (path, error) from all loader workers, in a temporary file that this process removes at its end."""

    def __init__(self) -> None:
        handle, self._path = mkstemp(prefix="timm_accel_unreadable_")
        os.close(handle)
        finalize(self, _remove, self._path, os.getpid())

    def add(self, path: str, error: str, *place: int) -> None:
        """Add an image and where it was met; one write, so that workers do not mix their lines."""
        line = f"{json.dumps([path, error, place])}\n".encode()
        handle = os.open(self._path, os.O_WRONLY | os.O_APPEND)
        try:
            os.write(handle, line)
        finally:
            os.close(handle)

    def read(self) -> list[tuple[str, str]]:
        """Return the images so far, each path once, sorted."""
        return sorted({path: error for path, error, _ in self._lines()}.items())

    def met(self, *place: int) -> list[tuple[str, str, int, int]]:
        """Return (path, error, worker, number) of the images that were met at (*place, worker, number)."""
        found = ((path, error, *met[-2:]) for path, error, met in self._lines() if tuple(met[:-2]) == place and met)
        return sorted(set(found), key=lambda each: each[2:])

    def _lines(self) -> list[list[Any]]:
        with open(self._path, encoding="ascii") as file:
            return [json.loads(line) for line in file]


def _remove(path: str, process: int) -> None:
    if os.getpid() == process:  # a worker's copy must not remove the file
        os.unlink(path)


class UnreadableImages(IterableDataset):
    """The (path, error) of each image of a stream that this rank cannot decode, for loader workers.

    Args:
        dataset: The `StreamedImages`.
    """

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __iter__(self) -> Iterator[tuple[str, str]]:
        for number, (file, _) in enumerate(self.dataset.reader):
            if self.dataset.decodes(number):
                try:
                    self.dataset.decode(file)
                except OSError as error:
                    if is_of_the_machine(error):
                        raise
                    yield file["path"], str(error)
