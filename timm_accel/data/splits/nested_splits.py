"""Find the folder in which the splits of a dataset lie, at any depth, without mistaking a class for a split."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from timm_accel.data.splits.splitting import SPLITS, split_name


@dataclass
class _Folder:
    """A folder with images in it or below it."""

    path: str = ""
    folders: dict[str, "_Folder"] = field(default_factory=dict)


def find_splits(folders: Iterable[str], root: str) -> str | None:
    """Return the path of the folder that holds the splits, "" for the root; None where there are no splits.

    A folder holds splits if

    - it has folders for training and for evaluation,
    - or it has one of them beside no folders but other splits, such as ``train`` and ``test``,
    - or the folders below it have names that are also below its neighbors: ``train/cat``, ``unused/cat``.

    So ``train`` beside ``bus`` and ``car`` is a class, and so is ``train`` alone when it has no folders in it.

    Args:
        folders: The folders that hold images themselves, by their path below the root, with ``/``.
        root: The folder or tar, for the messages.

    Raises:
        ValueError: Several folders hold splits, or other folders hold images beside the one that does.
    """
    folders = sorted(set(folders))
    places = [folder.path for folder in _holders(_tree(folders))]
    if not places:
        return None
    if len(places) > 1:
        raise ValueError(
            f"Expected the splits of one dataset, but got {root!r} with splits in {_named(places)}. Name one of these "
            "folders."
        )
    (place,) = places
    outside = [folder for folder in folders if not f"{folder}/".startswith(f"{place}/" * bool(place))]
    if beside := [folder for folder in outside if folder and not f"{place}/".startswith(f"{folder}/")]:
        raise ValueError(
            f"Expected the splits of one dataset, but got {root!r} with splits in {place!r} and further images in "
            f"{_named(beside)}. Name the folder of the splits, or move the others out."
        )
    return place


def _tree(folders: Iterable[str]) -> _Folder:
    root = _Folder()
    for path in folders:
        folder = root
        for name in filter(None, path.split("/")):
            folder = folder.folders.setdefault(name, _Folder(f"{folder.path}/{name}".lstrip("/")))
    return root


def _holders(folder: _Folder) -> Iterator[_Folder]:
    """Yield the topmost folders that hold splits."""
    if _holds_splits(folder):
        yield folder
    else:
        for below in folder.folders.values():
            yield from _holders(below)


def _holds_splits(folder: _Folder) -> bool:
    splits = {name: split for name in folder.folders if (split := split_name(name)) in SPLITS}
    found = set(splits.values())
    if not {"train", "val"} & found:
        return False
    if {"train", "val"} <= found:
        return True
    if len(splits) == len(folder.folders):
        return len(found) > 1 or any(below.folders for below in folder.folders.values())
    return any(
        below.folders.keys() & other.folders.keys()
        for name, below in folder.folders.items()
        for other in folder.folders.values()
        if splits.get(name) in ("train", "val") and other is not below
    )


def _named(folders: list[str]) -> str:
    return ", ".join(map(repr, folders[:3])) + ", …" * (len(folders) > 3)
