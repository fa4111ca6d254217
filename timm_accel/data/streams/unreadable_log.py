"""The unreadable images of a stream, in a file that the loader workers of a process share."""

import json
import os
from tempfile import mkstemp
from weakref import finalize


class UnreadableLog:
    """Collect (path, error) from all loader workers, in a temporary file that this process removes at its end."""

    def __init__(self) -> None:
        handle, self._path = mkstemp(prefix="timm_accel_unreadable_")
        os.close(handle)
        finalize(self, _remove, self._path, os.getpid())

    def add(self, path: str, error: str) -> None:
        """Add an image; one write, so that workers do not mix their lines."""
        line = f"{json.dumps([path, error])}\n".encode()
        handle = os.open(self._path, os.O_WRONLY | os.O_APPEND)
        try:
            os.write(handle, line)
        finally:
            os.close(handle)

    def read(self) -> list[tuple[str, str]]:
        """Return the images so far, each path once, sorted."""
        with open(self._path, encoding="ascii") as file:
            return sorted(dict(json.loads(line) for line in file).items())


def _remove(path: str, process: int) -> None:
    if os.getpid() == process:  # a worker's copy must not remove the file
        os.unlink(path)
