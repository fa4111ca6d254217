"""The data of a run: its states name them, and a run that resumes with other data says so."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from timm_accel.data.identity.changes import Changes, describe_changes
from timm_accel.data.identity.listing import Listing, list_images, read_listing
from timm_accel.states.saved_state import SavedState

LISTINGS = "data"
"""The folder beside the states that holds the lists of images."""


class DataOfRun:
    """The identity of the training and of the evaluation dataset of a run. Rank 0 makes it.

    Args:
        datasets: The datasets by what they are for: ``training`` and ``evaluation``; None where there is none.
        check: As for `SaveStateCallback`.
        resumed: The state that the run resumes from.
    """

    def __init__(self, datasets: Mapping[str, Any], check: str | None, resumed: SavedState | None) -> None:
        self._listings: dict[str, Listing] = {
            kind: list_images(dataset, check) for kind, dataset in datasets.items() if dataset is not None
        }
        self.about = {kind: listing.about() for kind, listing in self._listings.items()}
        self.changes = {} if resumed is None else self._changes(resumed)

    def _changes(self, resumed: SavedState) -> dict[str, Changes]:
        found = {}
        for kind, saved in resumed.manifest.get("data", {}).items():
            if (now := self._listings.get(kind)) is not None:
                before = read_listing(resumed.folder.parent / LISTINGS, saved)
                found[kind] = describe_changes(kind, saved, before, now)
        return {kind: changes for kind, changes in found.items() if changes is not None}

    @property
    def has_other_evaluation(self) -> bool:
        """Whether the images of the evaluation are others than those of the state; their order does not count."""
        return "evaluation" in self.changes and not self.changes["evaluation"].same_images

    def write(self, states: Path) -> None:
        """Write the lists beside the states, unless they are there.

        Raises:
            OSError: The disk is full, or the folder cannot be written to.
        """
        for listing in self._listings.values():
            listing.write(states / LISTINGS)

    def __getstate__(self) -> dict[str, Any]:  # the other ranks get the messages alone
        return {**self.__dict__, "_listings": {}}
