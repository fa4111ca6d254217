"""Which files of a folder or an archive are images, which are left out, and what systems leave behind."""

import logging
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import NamedTuple

from PIL import Image, ImageFile
from timm.utils.misc import natural_key

from timm_accel.messages import counted

_logger = logging.getLogger(__name__)
_NO_RASTER = ("EPS", "MPEG")  # Pillow draws the first by a program, Ghostscript, and only knows the size of the second
_LEFTOVERS = {  # in lower case; names that begin with a dot are leftovers too
    "__macosx",  # macOS: zip files, network folders, icons of folders
    "network trash folder",
    "temporary items",
    "icon\r",
    "$recycle.bin",  # Windows
    "recycler",
    "found.000",
    "system volume information",
    "thumbs.db",
    "ehthumbs.db",
    "ehthumbs_vista.db",
    "desktop.ini",
    "lost+found",  # Linux and Android
    "lost.dir",
    "@eadir",  # Synology and QNAP
    "@tmp",
    "#recycle",
    "#snapshot",
    "@recycle",
    "@recently-snapshot",
    "@__thumb",
    "__pycache__",
}
_HEIF = (".heic", ".heif", ".hif")
_SHOWN = 5  # endings, or names of folders


def image_endings() -> frozenset[str]:
    """Return the endings of the raster formats that the installed Pillow opens, in lower case: ``.jpg``, ``.webp``, ….

    Formats that Pillow only saves (``.pdf``) or only identifies (``.h5``, ``.wmf``, ``.mpg``) are not among them. A
    plugin that registers itself in Pillow counts: after ``pillow_heif.register_heif_opener()``, ``.heic`` does.

    Source: ``PIL.Image.registered_extensions``.
    """
    formats = Image.registered_extensions()  # it loads the plugins
    opened = {name for name, (factory, _) in Image.OPEN.items() if name not in _NO_RASTER and not _is_stub(factory)}
    if "JPEG" in opened:
        opened.add("MPO")  # several JPEGs in a file, which the plugin for JPEG opens
    return frozenset(ending for ending, name in formats.items() if name in opened)


def _is_stub(factory: object) -> bool:
    return isinstance(factory, type) and issubclass(factory, ImageFile.StubImageFile)


def is_leftover(name: str) -> bool:
    """Return whether a file or a folder of this name is no data, but was left behind by a system.

    Args:
        name: The name, without the folder that it is in.
    """
    return name.startswith(".") or name.lower() in _LEFTOVERS


def ending_of(name: str) -> str:
    """Return the ending of a file's name in lower case, with its dot; "" where it has none."""
    return os.path.splitext(name)[1].lower()


_ON_SCREEN = ContextVar("_ON_SCREEN", default=False)


@contextmanager
def counts_on_screen() -> Iterator[None]:
    """Log no warning of files that are left out, since a screen tells them."""
    before = _ON_SCREEN.set(True)
    try:
        yield
    finally:
        _ON_SCREEN.reset(before)


@dataclass(frozen=True)
class FileCounts:
    """How many files of a folder or an archive are used, and how many are left out.

    Args:
        used: The number of images by ending, the most frequent first.
        left_out: The number of files by ending that are no images by their name.
        leftovers: The number of files and folders that a system left behind; a folder counts once.
        empty_folders: The topmost folders below which there is no image, where a class could be.
    """

    used: dict[str, int]
    left_out: dict[str, int]
    leftovers: int = 0
    empty_folders: tuple[str, ...] = ()

    @classmethod
    def of(
        cls, images: Iterable[str], others: Iterable[str], leftovers: int = 0, empty_folders: Iterable[str] = ()
    ) -> "FileCounts":
        """Count files by the endings of their names."""
        used, left_out = (
            dict(sorted(Counter(map(ending_of, names)).items(), key=lambda item: (-item[1], item[0])))
            for names in (images, others)
        )
        return cls(used, left_out, leftovers, tuple(empty_folders))

    def used_by_ending(self) -> str:
        """Return the numbers of the images in words: ``300 .jpg, 100 .png``."""
        return _by_ending(self.used)

    def rest(self) -> str:
        """Return what was left out in words, with the remedy for photos that Pillow cannot read alone; or ""."""
        files = f"{counted(sum(self.left_out.values()), 'file')} ({_by_ending(self.left_out)})"
        if heif := [ending for ending in _HEIF if ending in self.left_out]:
            files += f" of which {heif[0]} needs the package pillow-heif and its register_heif_opener()"
        leftovers = counted(self.leftovers, "system leftover")
        return ", ".join([files] * bool(self.left_out) + [leftovers] * bool(self.leftovers))

    def why_none(self) -> str:
        """Return the end of the sentence that refuses a folder without images, with the remedy."""
        if not (rest := self.rest()):
            return "which holds no images. Correct the path."
        return f"all of whose files are left out: {rest}. Correct the path, or convert images to PNG or JPEG."

    def log(self, name: str, note: str = "") -> None:
        """Log the counts on rank 0: as a warning where something is left out, for information otherwise.

        Within `counts_on_screen`, what is left out is no warning either.

        Args:
            name: The folder or split that was counted.
            note: A further clause, which makes it a warning too.
        """
        if int(os.environ.get("RANK", 0)) == 0:
            unusual = self.left_out or self.leftovers or self.empty_folders
            quiet = not note and (not unusual or _ON_SCREEN.get())
            _logger.log(logging.INFO if quiet else logging.WARNING, "%s: %s%s.", name, self, note)

    def __str__(self) -> str:
        count = sum(self.used.values())
        text = counted(count, "image") + (f" ({self.used_by_ending()})" if count else "")
        if rest := self.rest():
            text += f"; left out: {rest}"
        if self.empty_folders:
            shown = [repr(name) for name in self.empty_folders[:_SHOWN]] + ["…"] * (len(self.empty_folders) > _SHOWN)
            text += f"; no image in {', '.join(shown)}"
        return text


def _by_ending(counts: dict[str, int]) -> str:
    shown = [f"{count:,} {_printable(ending)}" for ending, count in list(counts.items())[:_SHOWN]]
    return ", ".join([*shown, *["…"] * (len(counts) > _SHOWN)])


def _printable(ending: str) -> str:
    ending = ending or "without an ending"
    return ending if ending.isprintable() else ascii(ending)[1:-1]


class ImageFolder(NamedTuple):
    """One folder of a tree: its path below the root, and the names in it; leftovers are only counted."""

    path: str
    subfolders: list[str]
    images: list[str]
    others: list[str]
    leftovers: int


def walk_images(
    root: str,
    on_error: Callable[[OSError], object] | None = None,
    on_loop: Callable[[str, str], object] | None = None,
) -> Iterator[ImageFolder]:
    """Yield every folder of a tree before the folders in it, and pass over what systems left behind.

    Links to folders are followed, but not those that lead back to a folder that they lie in.

    Args:
        root: The folder; its name is no matter.
        on_error: Called with the error of a folder that cannot be listed.
        on_loop: Called with a link that leads back, and with the folder that it leads to, both below `root`.
    """
    endings, real = image_endings(), {"": os.path.realpath(root)}
    for path, subfolders, files in os.walk(root, followlinks=True, onerror=on_error):
        folder = path[len(os.path.join(root, "")) :]
        kept, names = ([name for name in some if not is_leftover(name)] for some in (subfolders, files))
        leftovers = len(subfolders) + len(files) - len(kept) - len(names)
        subfolders[:] = []  # os.walk lists what is in this list
        for name in kept:
            below, link = os.path.join(folder, name), os.path.join(path, name)
            real[below] = os.path.realpath(link) if os.path.islink(link) else os.path.join(real[folder], name)
            above = _above(below, real)
            if above is None:
                subfolders.append(name)
            elif on_loop is not None:
                on_loop(below, above)
        images = [name for name in names if ending_of(name) in endings]
        others = [name for name in names if ending_of(name) not in endings]
        yield ImageFolder(folder, list(subfolders), images, others, leftovers)


def _above(folder: str, real: dict[str, str]) -> str | None:
    """Return the folder above that is the same on disk; None where there is none."""
    above = folder
    while above:
        above = os.path.dirname(above)
        if real[above] == real[folder]:
            return above
    return None


def list_images(root: str | os.PathLike[str]) -> tuple[list[str], FileCounts]:
    """Return the paths of all images of a tree below its root, in natural order, and the count of its files.

    Args:
        root: The folder.
    """
    folders = list(walk_images(os.fspath(root)))
    paths = [os.path.join(folder.path, name) for folder in folders for name in folder.images]
    others = (name for folder in folders for name in folder.others)
    counts = FileCounts.of(paths, others, sum(folder.leftovers for folder in folders))
    return sorted(paths, key=lambda path: (natural_key(path), path)), counts


def empty_folders(folders: Iterable[str], with_images: Iterable[str]) -> list[str]:
    """Return the topmost folders below which there is no image, except those in a folder of images.

    Args:
        folders: All folders, by their path below the root; "" is the root.
        with_images: Those that hold images themselves.
    """
    above, with_images = {""}, set(with_images)
    for folder in with_images:
        while (folder := os.path.dirname(folder)) not in above:
            above.add(folder)
    parents = above - with_images
    return [
        each for each in folders if each not in with_images and each not in above and os.path.dirname(each) in parents
    ]
