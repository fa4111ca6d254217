"""Lost connections between processes: how long they wait for each other, and one sentence where that is in vain."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from socket import gethostname

from torch import distributed

from timm_accel.messages import one_line

TIMEOUT = "TIMM_ACCEL_TIMEOUT"
"""The environment variable with the seconds that a process waits for the others."""
_LOST = re.compile(
    r"^\[\S*/gloo/\S+:\d+\] ((?:Connection|Timed out|Application timeout|Read error|Write error|No route).*)"
    r"|^.*\bNCCL\b.*(?:aborted|remote process exited).*",
    re.IGNORECASE,
)


def timeout(environment: Mapping[str, str]) -> timedelta | None:
    """Return how long a process waits for the others; None for torch's default.

    Args:
        environment: The environment variables.

    Raises:
        ValueError: `TIMEOUT` is no number of seconds from 1 on, or too many.
    """
    if TIMEOUT not in environment:
        return None
    try:
        seconds = float(environment[TIMEOUT])
        if not 1 <= seconds < 1e9:
            raise ValueError
    except ValueError:
        raise ValueError(
            f"Expected {TIMEOUT} to be seconds, from 1 to below a billion, but got {environment[TIMEOUT]!r}. "
            "Set it to more than the longest time for which one process works alone, or leave it out."
        ) from None
    return timedelta(seconds=seconds)


@contextmanager
def lost_connection_explained() -> Iterator[None]:
    """Raise what torch raises where another process is gone as a `ConnectionError` in one sentence."""
    try:
        yield
    except RuntimeError as error:
        found = _LOST.search(one_line(error, None))
        if found is None or not distributed.is_initialized():
            raise
        reason = (found[1] or found[0]).partition(". ")[0].rstrip(".")
        here = f"rank {distributed.get_rank()} of {distributed.get_world_size()} on {gethostname()}"
        raise ConnectionError(
            f"Expected all processes of the run to answer, but {here} lost one ({reason}). Look for the cause in the "
            "output of the others and in the network, then start the same command again on all hosts, with "
            "resume_from='auto' (--resume auto on the command line)."
        ) from None


@contextmanager
def restart_explained(environment: Mapping[str, str]) -> Iterator[None]:
    """Raise what a restarted rank gets that finds the addresses of ended ranks as a `ConnectionError` in one sentence.

    torchrun keeps one store for all its restarts (2.14, https://github.com/pytorch/pytorch/issues/135712).

    Args:
        environment: The environment variables.
    """
    try:
        yield
    except RuntimeError as error:
        if environment.get("TORCHELASTIC_RESTART_COUNT", "0") == "0" or "connectFullMesh" not in str(error):
            raise
        raise ConnectionError(
            f"Expected the restarted ranks to meet, but rank {environment.get('RANK')} found the address of one that "
            "has ended. Set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 before torchrun: each restart then has its own store."
        ) from None
