"""Run without the bars and lines of a training."""

from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import StringIO


@contextmanager
def quiet() -> Iterator[None]:
    """Swallow what is printed within the block."""
    with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        yield
