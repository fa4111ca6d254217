"""The hosts of a run, compared at its start: one that would train something else, or hang, is named instead.

Each process tells a digest of what must be the same everywhere. Only where the digests differ, the values follow.
"""

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from socket import gethostname
from typing import Any, NamedTuple

from accelerate import Accelerator

from timm_accel.distributed.consensus import gather_numbers, gather_on_all
from timm_accel.messages import shortened

MAX_CLOCK_SECONDS = 5.0
"""The difference of two clocks from which on it is reported."""
_MAX_ITEMS = 5
_MAX_HOSTS = 3


class Place(NamedTuple):
    """A process, for a message."""

    host: str
    rank: int
    is_first_of_host: bool

    @property
    def is_first_of_other_host(self) -> bool:
        """Whether it is the lowest rank of a host that has not rank 0."""
        return self.is_first_of_host and self.rank > 0

    def __str__(self) -> str:
        return f"{self.host} (rank {self.rank})"


class Hosts:
    """The hosts of a run. On one process nothing is compared.

    Args:
        accelerator: accelerate's `Accelerator`.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self.num_processes = accelerator.num_processes
        self.place = Place(gethostname(), accelerator.process_index, accelerator.is_local_main_process)
        self.count = 1
        self._clock: float  # at the end of `compare`

    def compare(self, values: Mapping[str, Any]) -> None:
        """Raise on all processes unless they have the same values, and count the hosts. Collective.

        Args:
            values: Plain values, in mappings of any depth.

        Raises:
            ValueError: A host has others; it is named, with the values.
        """
        if self.num_processes == 1:
            return
        leaves = _leaves(values)
        told = gather_numbers([_digest(leaves), self.place.is_first_of_host])
        self._clock = time.time()  # all leave the exchange at the same moment
        self.count = sum(is_first for _, is_first in told)
        if len({digest for digest, _ in told}) > 1:
            raise ValueError(_others(gather_on_all((self.place, leaves), self.num_processes)))

    def check(
        self, paths: Sequence[Path], differs: bool, describe: Callable[[], str], report: Callable[[str], None]
    ) -> None:
        """Raise on all processes unless each finds the paths and has the same data; report other clocks. Collective.

        Args:
            paths: What rank 0 wrote or reads, each as this process names it.
            differs: Whether the data of this process are not those of rank 0.
            describe: Returns how they differ; called on all processes if those of any do.
            report: Called with a sentence.

        Raises:
            FileNotFoundError: A host does not share a folder; it is named.
            ValueError: A host has other data.
        """
        if self.count == 1:
            return
        missing = next((number for number, path in enumerate(paths, 1) if not path.exists()), 0)
        told = gather_numbers([missing, differs, round(self._clock * 1000)])
        if any(number for number, *_ in told):
            folder = str(paths[missing - 1].parent.absolute()) if missing else ""
            raise FileNotFoundError(_without_folder(gather_on_all((self.place, folder), self.num_processes)))
        if any(other for _, other, _ in told):
            raise ValueError(_with_other_data(gather_on_all((self.place, describe()), self.num_processes)))
        clocks = [(clock - told[0][2]) / 1000 for *_, clock in told]
        if any(abs(clock) > MAX_CLOCK_SECONDS for clock in clocks):
            report(_other_clocks(dict(zip(gather_on_all(self.place, self.num_processes), clocks, strict=True))))


def _leaves(values: Any, name: str = "") -> dict[str, str]:
    """Return the values by the names that lead to them, as code."""
    if not isinstance(values, Mapping):
        return {name: shortened(values) if len(repr(values)) <= 200 else _short_digest(values)}
    found: dict[str, str] = {}
    for key, value in values.items():
        found |= _leaves(value, f"{name}.{key}" if name else str(key))
    return found


def _short_digest(value: Any) -> str:
    return f"{shortened(value, 60)} {hashlib.sha256(repr(value).encode()).hexdigest()[:8]}"


def _digest(leaves: Mapping[str, str]) -> int:
    digest = hashlib.sha256(json.dumps(leaves, sort_keys=True).encode()).digest()
    return int.from_bytes(digest[:8], "little", signed=True)


def _others(everyone: Sequence[tuple[Place, Mapping[str, str]]]) -> str:
    """Return the sentence on the processes whose values are not those of rank 0."""
    (first, expected), *_ = everyone
    found: dict[str, list[Place]] = {}
    for place, leaves in everyone:
        names = [name for name in {**expected, **leaves} if expected.get(name) != leaves.get(name)]
        items = [f"{each} ({leaves.get(each)} instead of {expected.get(each)})" for each in names]
        if len(items) > _MAX_ITEMS:
            items = [*items[: _MAX_ITEMS - 1], f"{len(items) - _MAX_ITEMS + 1} more"]
        if items:
            found.setdefault("; ".join(items), []).append(place)
    parts = [f"{_in_words(places)}: {differences}" for differences, places in found.items()]
    return (
        f"Expected all hosts to have the options, the model and the packages of {first}, but got others on "
        f"{' / '.join(parts)}. Start the same command, with the same packages, on every host."
    )


def _without_folder(everyone: Sequence[tuple[Place, str]]) -> str:
    found = {place: folder for place, folder in everyone if folder}
    return (
        f"Expected one run folder that all hosts share, since each reads the states in it, but {_in_words([*found])} "
        f"does not find in {next(iter(found.values()))!r} what {everyone[0][0]} wrote there. Mount the same folder on "
        "every host, and name it in run_dir."
    )


def _with_other_data(everyone: Sequence[tuple[Place, str]]) -> str:
    found = {place: sentence for place, sentence in everyone if sentence}
    return (
        f"Expected the same data on all hosts, but got others on {_in_words([*found])}. {next(iter(found.values()))} "
        f"Copy the data of {everyone[0][0]} to every host."
    )


def _other_clocks(clocks: Mapping[Place, float]) -> str:
    far = {place: seconds for place, seconds in clocks.items() if abs(seconds) > MAX_CLOCK_SECONDS}
    seconds = max(far.values(), key=abs)
    return (
        f"The clock of {_in_words([*far])} is {abs(seconds):,.0f} seconds {'ahead of' if seconds > 0 else 'behind'} "
        f"that of {next(iter(clocks))}, so times in logs and of files do not fit together. The run does not use them."
    )


def _in_words(places: Sequence[Place]) -> str:
    """Return the lowest rank of each host, since host names may repeat, and how many hosts more there are."""
    firsts = [place for place in places if place.is_first_of_host] or [*places]
    shown = ", ".join(map(str, firsts[:_MAX_HOSTS]))
    return shown if len(firsts) <= _MAX_HOSTS else f"{shown} and {len(firsts) - _MAX_HOSTS} more"
