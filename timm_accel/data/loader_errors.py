"""Errors of loader workers in one sentence, with the cause and what helps.

torch raises an error of a worker with the worker's traceback as its message, and one of a killed worker at any moment.
"""

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager

from timm_accel.messages import one_line, own_sentence

_RAISED = re.compile(r"Caught \w+ in DataLoader worker process (\d+)\.")
_KILLED = re.compile(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\) (is killed by signal: [^.]*|exited unexpectedly)")
_REMEDIES = {
    r"Too many open files|received 0 items of ancdata": "Raise the limit of open files (ulimit -n), or pass "
    "num_workers=0.",
    r"shared memory|Bus error|/torch_\d|multiprocessing": "Enlarge /dev/shm (docker run --shm-size), or pass "
    "num_workers=0.",
    r"signal: Killed|exited unexpectedly|Cannot allocate memory": "Free memory, or pass fewer "
    "workers (num_workers), or 0.",
}
_OF_THE_MACHINE = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)


def is_of_the_machine(error: OSError) -> bool:
    """Whether a file could not be read for a limit of the machine, so that the file may be a good one."""
    return error.errno in _OF_THE_MACHINE


@contextmanager
def loader_errors_explained() -> Iterator[None]:
    """Raise what a loader or its workers raise as an error of the same class in one sentence; let others through."""
    try:
        yield
    except Exception as error:
        if (sentence := _explain(error)) is None:
            raise
        raise _like(error, sentence) from error


def _explain(error: Exception) -> str | None:
    """Return the sentence for an error that has to do with workers or a limit of the machine; None for others."""
    text = str(error)
    if killed := _KILLED.search(text):
        return _sentence(f"a worker (process {killed[1]}) that {killed[2]}", text)
    if raised := _RAISED.search(text):
        cause = _last_error(text)
        if not _remedy(cause) and (sentence := own_sentence(error)) is not None:
            return sentence
        return _sentence(f"{cause} in worker {raised[1]}", cause)
    if _is_semaphore(error):
        return _sentence(f"no room for them in multiprocessing ({one_line(error)})", "multiprocessing")
    if isinstance(error, OSError | RuntimeError) and re.search(next(iter(_REMEDIES)) + r"|/torch_\d", text):
        return _sentence(one_line(error, None), text)
    return None


def _sentence(got: str, why: str) -> str:
    remedy = _remedy(why) or "Pass num_workers=0 to see where it comes from."
    return f"Expected the loader to give every batch, but got {got}. {remedy}"


def _remedy(text: str) -> str | None:
    return next((remedy for pattern, remedy in _REMEDIES.items() if re.search(pattern, text)), None)


def _last_error(text: str) -> str:
    """Return the class and message, in one line, of the error at the end of a traceback."""
    after = text.rpartition("Traceback (most recent call last):\n")[2]
    lines = [line for line in after.split("\n") if line[:1].strip()]
    return one_line(RuntimeError(lines[0] if lines else text)).rstrip(".")


def _is_semaphore(error: Exception) -> bool:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    where = "" if trace is None else trace.tb_frame.f_globals.get("__name__", "")
    return isinstance(error, OSError) and error.errno == errno.ENOSPC and where.startswith("multiprocessing.")


def _like(error: Exception, sentence: str) -> Exception:
    try:
        return type(error)(sentence)
    except Exception:  # a class with other arguments
        return RuntimeError(sentence)
