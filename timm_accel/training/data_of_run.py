"""The data of a run: its states name them, and a run that resumes with other data says so."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from timm_accel.data.identity.changes import Changes, describe_changes
from timm_accel.data.identity.listing import UNKNOWN, Listing, list_images, read_listing
from timm_accel.distributed.consensus import from_main_process
from timm_accel.states.claim import LISTINGS
from timm_accel.states.saved_state import SavedState


class DataOfRun:
    """The identity of the training and of the evaluation dataset of a run. Rank 0 makes it.

    Args:
        datasets: The datasets by what they are for: ``training`` and ``evaluation``; None where there is none.
        check: As for `SaveStateCallback`.
        resumed: The state that the run resumes from.
        on_hosts: Whether other hosts compare their data with these.
    """

    def __init__(
        self, datasets: Mapping[str, Any], check: str | None, resumed: SavedState | None, on_hosts: bool = False
    ) -> None:
        self._listings = _list_all(datasets, check)
        self.about = {kind: listing.about() for kind, listing in self._listings.items()}
        self._of_hosts = {kind: _without_times(each).about() for kind, each in self._listings.items() if on_hosts}
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

    def differs_from(self, host: Mapping[str, Listing]) -> bool:
        """Return whether the data of another host are others; `host` is what `list_on_host` returned there."""
        return any(listing.digest() != self._of_hosts[kind]["digest"] for kind, listing in host.items())

    def difference(self, host: Mapping[str, Listing]) -> str:
        """Return how the data of another host differ, in a sentence; "" where they do not. Collective."""
        listings = from_main_process({kind: _without_times(listing) for kind, listing in self._listings.items()})
        for kind, listing in host.items():
            about = self._of_hosts[kind]
            if about["digest"] != listing.digest():
                found = describe_changes(kind, about, listings[kind], listing, "those of rank 0")
                return f"The {kind} data differ from those of rank 0." if found is None else found.sentence
        return ""

    def __getstate__(self) -> dict[str, Any]:  # the other ranks get the messages alone
        return {**self.__dict__, "_listings": {}}


def list_on_host(datasets: Mapping[str, Any], check: str | None) -> dict[str, Listing]:
    """Return the data of this host, to be compared with those of rank 0. A copy of a file may have another time.

    Args:
        datasets: As for `DataOfRun`.
        check: As for `DataOfRun`.
    """
    return {kind: _without_times(listing) for kind, listing in _list_all(datasets, check).items()}


def _list_all(datasets: Mapping[str, Any], check: str | None) -> dict[str, Listing]:
    return {kind: list_images(dataset, check) for kind, dataset in datasets.items() if dataset is not None}


def _without_times(listing: Listing) -> Listing:
    return replace(listing, times=np.full_like(listing.times, UNKNOWN))
