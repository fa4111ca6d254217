"""Lists that only get longer during a run, such as its history, so that a state costs the same in every epoch.

Every `EPOCHS_PER_PART` epochs, what has been added to all lists becomes a part. A part never changes, so it is written
once, and later states link its file. Only the rest is written again with each state.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from timm_accel.states.saved_state import COMMON, SavedState

Key = tuple[str, str, str]  # where a list is in the shared part of a state
EPOCHS_PER_PART = 500
_START, _END = "epochs_to_", ".pt"


class Growing(list):
    """A list in the ``state_dict()`` of a callback that only gets longer, and whose items never change."""


class GrowingParts:
    """How long each list of a run was at the end of each of its parts."""

    def __init__(self) -> None:
        self._ends: dict[str, dict[Key, int]] = {}

    def end_epoch(self, epochs_done: int, lists: Callable[[], Mapping[Key, list[Any]]]) -> None:
        """Make a part of what was added, if one is due."""
        if epochs_done % EPOCHS_PER_PART == 0:
            self._ends[f"{_START}{epochs_done}{_END}"] = {name: len(values) for name, values in lists().items()}

    def split(
        self, lists: Mapping[Key, list[Any]], plain: Callable[[Any], Any]
    ) -> tuple[dict[str, Callable[[], Any]], dict[Key, list[Any]]]:
        """Return what makes the content of each part's file, and the rest of each list.

        Args:
            lists: The lists by name.
            plain: Turns an item into what a state can hold.
        """
        if self._ends:
            last = next(reversed(self._ends.values()))
            if any(length > len(lists.get(name, ())) for name, length in last.items()):
                self._ends.clear()  # a metric was deleted, so that the parts are not those of the lists any more
        parts: dict[str, Callable[[], Any]] = {}
        starts: Mapping[Key, int] = {}
        for file, ends in self._ends.items():
            parts[file] = partial(_between, lists, starts, ends, plain)
            starts = ends
        return parts, _between(lists, starts, {name: len(values) for name, values in lists.items()}, plain)

    def join(self, parts: Mapping[str, Mapping[Key, list[Any]]]) -> dict[Key, list[Any]]:
        """Return each list as far as the parts of a state hold it, and continue after them.

        Args:
            parts: The content of each part's file.
        """
        joined: dict[Key, list[Any]] = {}
        self._ends.clear()
        for file in sorted(parts, key=_epochs_of):
            for name, values in parts[file].items():
                joined.setdefault(name, []).extend(values)
            self._ends[file] = {name: len(values) for name, values in joined.items()}
        return joined


def load_common(state: SavedState, parts: GrowingParts | None = None) -> dict[str, Any]:
    """Return the content of a state's ``common.pt`` with the complete lists.

    Args:
        state: The state.
        parts: What continues after the parts of the state; None where no run does.
    """
    common = state.load(COMMON)
    files = [name for name in state.manifest["files"] if name.startswith(_START)]
    begun = (parts or GrowingParts()).join({name: state.load(name) for name in files})
    for (kind, owner, name), values in begun.items():
        common[kind][owner][name] = [*values, *common[kind][owner].get(name, ())]
    return common


def _epochs_of(file: str) -> int:
    return int(file.removeprefix(_START).removesuffix(_END))


def _between(
    lists: Mapping[Key, list[Any]],
    starts: Mapping[Key, int],
    ends: Mapping[Key, int],
    plain: Callable[[Any], Any],
) -> dict[Key, list[Any]]:
    return {
        name: [plain(item) for item in lists.get(name, [])[starts.get(name, 0) : end]] for name, end in ends.items()
    }
