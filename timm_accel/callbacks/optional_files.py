"""Files that a run can do without."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from timm_accel.messages import quoted_sentence


class OptionalFile:
    """A file that the run continues without where it cannot be written, such as on a full disk.

    The first failed write is reported, and the next one after a write that worked.
    """

    def __init__(self) -> None:
        self.failed = False

    @contextmanager
    def writing(self, report: Callable[[str], object]) -> Iterator[None]:
        """Let a write fail.

        Args:
            report: Called with one line about the first failed write.
        """
        try:
            yield
        except OSError as error:
            if not self.failed:
                report(f"{quoted_sentence(error, None)} The run continues without this file.")
            self.failed = True
        else:
            self.failed = False
