"""What changed in a dataset since a state was saved, in one sentence."""

import os
from collections import defaultdict
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from timm_accel.data.identity.listing import UNKNOWN, Listing

_WORDS = {"added": "added", "removed": "removed", "moved": "moved to another class", "changed": "changed"}


class Changes(NamedTuple):
    """What changed in a dataset.

    Args:
        sentence: The counts of the changes and up to three names.
        same_images: Whether these are the same images, in another order.
    """

    sentence: str
    same_images: bool = False


def describe_changes(
    kind: str, saved: dict[str, Any], before: Listing | None, now: Listing, compared: str = "the state's"
) -> Changes | None:
    """Return what changed; None if nothing did.

    Times count only where the data lie in the same folder, and not where every file has another one: a copy does.

    Args:
        kind: The word for the data, such as ``training``.
        saved: The values of the state, from `Listing.about`.
        before: The list that belongs to them; None if it is lost.
        now: The list of the dataset of this run.
        compared: The words for the data that these are compared with.
    """
    if saved["digest"] == now.digest():
        return None
    begins = f"The {kind} data differ from {compared}: "
    if before is None:
        lost = "the list of the earlier ones is lost"
        return Changes(f"{begins}{saved['images']} images before, {now.count} now; {lost}.")
    if len(before.names) == 0 or len(now.names) == 0:
        if before.count == now.count:
            return Changes(f"{begins}other labels of {now.count} images.")
        return Changes(f"{begins}{before.count} images before, {now.count} now.")
    found = _changes(before, now)
    counts = [f"{len(names)} {_WORDS[how]}" for how, names in found.items() if names]
    if counts:
        shown = [name for names in found.values() for name in names[:1]]
        further = [name for names in found.values() for name in names[1:3]]
        return Changes(f"{begins}{', '.join(counts)}, such as {', '.join(map(repr, [*shown, *further][:3]))}.")
    if not (np.array_equal(before.names, now.names) and np.array_equal(before.labels, now.labels)):
        return Changes(f"{begins}the same {now.count} images in another order.", same_images=True)
    return None


def _changes(before: Listing, now: Listing) -> dict[str, list[str]]:
    """Return the names of the images that were added, removed, moved to another class, and changed."""
    old, new = dict(_rows(before)), dict(_rows(now))
    found: dict[str, list[str]] = {how: [] for how in ("moved", "changed", "removed", "added")}
    common = [key for key in new if key in old]
    at, place = np.array([old[key] for key in common], dtype=int), np.array([new[key] for key in common], dtype=int)
    same_place = before.root == now.root
    moved = before.labels[at] != now.labels[place]
    changed = _other_files(before, now, at, place, same_place)
    for index in np.flatnonzero(moved | changed):
        found["moved" if moved[index] else "changed"].append(common[index][0])
    gone: dict[Any, list[Any]] = defaultdict(list)
    for key in (key for key in old if key not in new):
        gone[_file_of(before, old[key], key[0], same_place)].append(key)
    for key in (key for key in new if key not in old):
        twins = gone.get(_file_of(now, new[key], key[0], same_place), [])
        twin = next((each for each in twins if before.labels[old[each]] != now.labels[new[key]]), None)
        if twin is not None:
            twins.remove(twin)
        found["added" if twin is None else "moved"].append(key[0])
    found["removed"] = [key[0] for keys in gone.values() for key in keys]
    return found


def _rows(listing: Listing) -> Iterator[tuple[tuple[str, int], int]]:
    """Yield each path, with the number of times that it came before, and its position."""
    seen: dict[str, int] = defaultdict(int)
    for position, path in enumerate(listing.paths()):
        yield (path, seen[path]), position
        seen[path] += 1


def _file_of(listing: Listing, position: int, path: str, same_place: bool) -> tuple[Any, ...]:
    """Return what a file keeps when it is moved into another folder."""
    time = listing.times[position] if same_place else UNKNOWN
    return os.path.basename(path), listing.sizes[position], time, listing.contents[position]


def _other_files(before: Listing, now: Listing, at: np.ndarray, place: np.ndarray, same_place: bool) -> np.ndarray:
    """Return which files have another content, or, as far as was looked at, another size or time."""

    def differ(name: str) -> np.ndarray:
        old, new = getattr(before, name)[at], getattr(now, name)[place]
        return (old != new) & (old != UNKNOWN) & (new != UNKNOWN)

    known = (before.contents[at] != UNKNOWN) & (now.contents[place] != UNKNOWN)
    if len(at) and known.all():
        return differ("contents")
    times = differ("times")
    if not same_place or (times.all() and not differ("sizes").any()):
        times = np.zeros_like(times)
    return differ("sizes") | times
