"""Changes to each file of a run folder, of every kind that a disk, a tool or a person may make."""

import json
import os
import random
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

WRONG: dict[str, Any] = {
    "number": 7,
    "half": 0.5,
    "text": "done",
    "null": None,
    "list": [],
    "object": {},
    "NaN": float("nan"),
    "huge": 10**30,
    "negative": -1,
    "false": False,
}


class Change(NamedTuple):
    """One change.

    Args:
        kind: What is done, and to what kind of file.
        name: The file, and the field of a JSON file.
        apply: Makes the change in a run folder.
    """

    kind: str
    name: str
    apply: Callable[[Path], Any]


def flip(path: Path, where: float) -> None:
    """Change one bit of a file, at this share of its length."""
    data = bytearray(path.read_bytes())
    if data:
        data[min(int(len(data) * where), len(data) - 1)] ^= 4
        path.write_bytes(data)


def replace_by_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def replace_by_a_file(path: Path) -> None:
    shutil.rmtree(path)
    path.write_text("nothing")


def replace_by_a_link(path: Path, target: Path) -> None:
    path.unlink()
    path.symlink_to(target)


BYTES: dict[str, Callable[[Path], Any]] = {
    "truncate": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "truncate by one": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "empty": lambda path: path.write_bytes(b""),
    "remove": Path.unlink,
    "flip the first byte": lambda path: flip(path, 0),
    "flip a byte": lambda path: flip(path, 0.5),
    "flip the last byte": lambda path: flip(path, 1),
    "add a byte": lambda path: path.write_bytes(path.read_bytes() + b"x"),
    "no text": lambda path: path.write_bytes(b"\xff\xfe\x00\x81" * 20),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "a folder": replace_by_a_folder,
    "a pipe": lambda path: path.unlink() or os.mkfifo(path),
    "a broken link": lambda path: path.unlink() or path.symlink_to("nowhere"),
}


def byte_changes(run: Path, other: Path) -> Iterator[Change]:
    """Each kind of damage to each file, and a link to its original, and the file of the same place in another run."""
    for path in files(run):
        name = path.relative_to(run).as_posix()
        for kind, damage in BYTES.items():
            yield Change(f"{kind}: {path.name}", name, lambda root, name=name, damage=damage: damage(root / name))
        yield Change(f"a link: {path.name}", name, lambda root, name=name: replace_by_a_link(root / name, run / name))
        if (theirs := other / name).is_file():
            yield Change(
                f"swap: {path.name}",
                name,
                lambda root, name=name, theirs=theirs: (root / name).write_bytes(theirs.read_bytes()),
            )


def field_changes(run: Path) -> Iterator[Change]:
    """Each field of each JSON file set to each wrong kind, and removed; and the whole file."""
    for path in files(run):
        if path.suffix != ".json":
            continue
        name, content = path.relative_to(run).as_posix(), json.loads(path.read_text())
        for place in ((), *places(content)):
            for kind, value in WRONG.items():
                if kind in ("NaN", "huge", "negative", "number", "half") or value != at(content, place):
                    yield Change(f"{kind}: {path.name}", f"{name} {place}", edit(name, place, value))
            if place:
                yield Change(f"remove a field: {path.name}", f"{name} {place}", edit(name, place, None, remove=True))


def folder_changes(run: Path, other: Path) -> Iterator[Change]:
    """What happens to whole folders: removed, renamed, copied, swapped, with one file too many."""
    newest, before = (path.relative_to(run) for path in sorted((run / "state").glob("*_epoch_*"))[:-3:-1])
    for folder in (newest, before, Path("best"), Path("best_ema"), Path("state")):
        yield Change("remove a folder", folder.as_posix(), lambda root, folder=folder: shutil.rmtree(root / folder))
        yield Change("a file", folder.as_posix(), lambda root, folder=folder: replace_by_a_file(root / folder))
        for extra in ("rank_1.pt", "notes.txt", ".hidden"):
            yield Change(
                "a file too many",
                f"{folder.as_posix()}/{extra}",
                lambda root, folder=folder, extra=extra: (root / folder / extra).write_bytes(b"x"),
            )
        if (other / folder).is_dir():
            yield Change("swap a folder", folder.as_posix(), lambda root, folder=folder: swap(root, other, folder))
    yield Change("rename a state", before.as_posix(), lambda root: rename(root / before, "000999_epoch_1_batch_1"))
    yield Change("rename a state", newest.as_posix(), lambda root: rename(root / newest, "000001_epoch_0_batch_1"))
    yield Change("rename a state", f"{newest} to no state", lambda root: rename(root / newest, "aside"))
    yield Change("empty the states", "state", lambda root: [shutil.rmtree(root / each) for each in (newest, before)])
    for file in ("manifest.json", "common.pt", "rank_0.pt"):
        yield Change(
            "swap between states",
            file,
            lambda root, file=file: (root / newest / file).write_bytes((root / before / file).read_bytes()),
        )
    for text in ("", "../../outside", "/etc/passwd", "000999_epoch_9_batch_9", before.name, "x" * 5000, "a\nb"):
        yield Change("latest", text[:30], lambda root, text=text: (root / "state" / "latest").write_text(text))
    for text in ("", "12", "-1\nhost", "\x00\x01", "1\nanother-host\n"):
        yield Change("lock", repr(text), lambda root, text=text: (root / "lock").write_text(text))


def files(run: Path) -> list[Path]:
    return sorted(path for path in run.rglob("*") if path.is_file())


def places(content: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Return the place of each field, however deep."""
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in items:
        yield (*place, key)
        yield from places(value, (*place, key))


def at(content: Any, place: tuple[Any, ...]) -> Any:
    for key in place:
        content = content[key]
    return content


def edit(name: str, place: tuple[Any, ...], value: Any, remove: bool = False) -> Callable[[Path], None]:
    """Return what sets or removes one field of a JSON file."""

    def apply(root: Path) -> None:
        content = json.loads((root / name).read_text())
        if not place:
            content = value
        elif remove:
            del at(content, place[:-1])[place[-1]]
        else:
            at(content, place[:-1])[place[-1]] = value
        (root / name).write_text(json.dumps(content, indent=2))

    return apply


def swap(root: Path, other: Path, folder: Path) -> None:
    shutil.rmtree(root / folder)
    shutil.copytree(other / folder, root / folder)


def rename(path: Path, name: str) -> None:
    path.rename(path.with_name(name))


def all_changes(run: Path, other: Path) -> list[Change]:
    return [*byte_changes(run, other), *folder_changes(run, other), *field_changes(run)]


def choose(changes: list[Change], count: int) -> list[Change]:
    """Return so many of the changes, always the same ones: first one of each kind, then of each kind and file."""
    drawn = random.Random(0).sample(changes, len(changes))
    first = {change.kind.partition(":")[0]: change for change in drawn}
    rounds: dict[str, list[Change]] = defaultdict(list)
    for change in drawn:
        if change is not first[change.kind.partition(":")[0]]:
            rounds[change.kind].append(change)
    rest = [change for same in zip_longest(*rounds.values()) for change in same if change is not None]
    return [*first.values(), *rest][:count]
