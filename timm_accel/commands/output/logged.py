"""What the package logs while a command runs, at the width of the terminal."""

import logging
import sys

from timm_accel.messages import printable
from timm_accel.terminal import fitted, is_terminal, padded, width_of

_PACKAGE = __name__.split(".")[0]


class _Sentences(logging.Handler):
    """Writes each record to stderr, as logging does without a handler, but fitted to a terminal.

    A progress bar may stand in the line, also that of another process: blanks hide its end.
    """

    def emit(self, record: logging.LogRecord) -> None:
        text = fitted(printable(self.format(record)), sys.stderr)
        if is_terminal(sys.stderr):
            first, *others = text.split("\n")
            text = "\n".join([padded(first, width_of(sys.stderr) - 1), *others])
        print(text, file=sys.stderr, flush=True)


def show_log() -> None:
    """Show the warnings that the package logs, unless the program has handlers."""
    logger = logging.getLogger(_PACKAGE)
    if not logger.hasHandlers():
        logger.addHandler(_Sentences(logging.WARNING))
