"""How the tests of bad input look at an error."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest


@contextmanager
def refused(kind: type[BaseException], *words: object) -> Iterator[pytest.ExceptionInfo[BaseException]]:
    """Expect an error of `kind` in one line, with these words in this order."""
    with pytest.raises(kind, match=".*".join(re.escape(str(word)) for word in words)) as caught:
        yield caught
    assert "\n" not in str(caught.value)


def sentence(work: Callable[[], Any]) -> str:
    """Return what the work is refused with, as ``ValueError: Expected …``; nothing where it is not."""
    try:
        work()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def contents(folder: Path) -> dict[str, bytes | None]:
    """Every path below a folder, with the bytes of the files."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")
    }
