"""The result of an audit: numbers and names, a table, and the findings as sentences."""

from dataclasses import asdict, dataclass
from itertools import zip_longest
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING

from timm_accel.audit.findings import findings
from timm_accel.audit.suspects import Suspect
from timm_accel.audit.wide_pixels import WidePixels
from timm_accel.messages import html_block, html_lines, html_table, printable
from timm_accel.text_files import escaped, json_text, write_json

if TYPE_CHECKING:
    from timm_accel.data.image_files import FileCounts

Group = tuple["ReadableImage", ...]


@dataclass(frozen=True)
class ReadableImage:
    """One readable image.

    Args:
        split: The split that it is in.
        label: The name of its class; the names of a multi-label image are joined by ``;``.
        path: The file, or its name in an archive.
    """

    split: str
    label: str
    path: str


@dataclass(frozen=True)
class Unreadable:
    """One file that cannot be decoded.

    Args:
        split: The split that it is in.
        path: The file, or its name in an archive.
        error: The error of the decoder.
    """

    split: str
    path: str
    error: str


@dataclass(frozen=True)
class Split:
    """The contents of one split.

    Args:
        num_files: The number of files, including the unreadable ones.
        class_sizes: The number of readable images of each class, in the order of the labels.
        width: The minimum, median and maximum width of the upright images in pixels; None if there are no images.
        height: The minimum, median and maximum height, likewise.
        modes: The number of images in each mode of Pillow: ``RGB``, ``L``, ``P``, ``CMYK``, ``I;16``, ….
        num_turned: The number of images that EXIF marks as rotated or mirrored.
        mean: The mean of the red, green and blue pixels, on a scale from 0 to 1; every image has the same weight.
        std: The standard deviation of the pixels, likewise.
        is_prepared: Whether the dataset turns images upright and scales 16-bit images, as timm_accel's datasets do.
        empty_folders: The folders in which the dataset finds no image.
        unread_files: The number of files by ending that are left out although they are images.
        files: The number of files by ending that the dataset uses and leaves out, and of what systems left behind; None
            if it is unknown.
        wide_pixels: The pixel values of the images of more than 8 bits; None if there are none.
    """

    num_files: int
    class_sizes: dict[str, int]
    width: tuple[int, int, int] | None
    height: tuple[int, int, int] | None
    modes: dict[str, int]
    num_turned: int
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    is_prepared: bool
    empty_folders: tuple[str, ...]
    unread_files: dict[str, int]
    files: "FileCounts | None" = None
    wide_pixels: WidePixels | None = None


@dataclass(frozen=True)
class Audit:
    """The faults of a dataset; ``print`` shows them.

    Args:
        splits: The contents of each split.
        unreadable: The files that cannot be decoded.
        duplicates: Groups of images that are equal to the pixel.
        near_duplicates: Groups of images that look the same but are not all equal.
        model_mean: The mean that the model expects; None if it is unknown.
        model_std: The standard deviation that the model expects; None if it is unknown.
        suspects: The images whose labels are likely wrong, that fit no class, or that lie between two classes.
    """

    splits: dict[str, Split]
    unreadable: tuple[Unreadable, ...]
    duplicates: tuple[Group, ...]
    near_duplicates: tuple[Group, ...]
    model_mean: tuple[float, ...] | None = None
    model_std: tuple[float, ...] | None = None
    suspects: tuple[Suspect, ...] = ()

    def problems(self) -> list[str]:
        """Return a sentence for each finding, the worst first; the list is empty if there are none."""
        return findings(self)

    def table(self, width: int = 80) -> str:
        """Return the numbers of each split as a table, with the findings below.

        Args:
            width: The columns of the screen; the splits of a wider table are below each other.
        """
        titles, *columns = self._columns()
        lines = _aligned([[[cell] for cell in column] for column in (titles, *columns)])
        if max(map(len, lines)) > width:
            lines = _aligned([[_wrapped(cell, 30) for cell in column] for column in (titles, *columns)])
        if max(map(len, lines)) > width:
            room = max(width - max(map(len, titles)) - 2, 10)
            parts = [
                _aligned([[[cell] for cell in titles], [_wrapped(cell, room) for cell in each]]) for each in columns
            ]
            lines = [line for part in parts for line in part]
        problems = self.problems()
        lines += ["", *(f"{number}. {text}" for number, text in enumerate(problems, start=1))]
        return "\n".join(lines if problems else [*lines, "No problems found."])

    def _columns(self) -> list[list[str]]:
        """Return the cells of each column of the table."""
        return [["", *_ROWS], *([*map(escaped, (name, *_cells(split)))] for name, split in self.splits.items())]

    def _repr_html_(self) -> str:
        """Return the same for a notebook."""
        problems = html_lines("li", self.problems())
        below = f"<ol>{problems}</ol>" if problems else "<p>No problems found.</p>"
        return html_block(html_table(zip(*self._columns(), strict=True)), below)

    def to_json(self, path: str | Path | None = None) -> str:
        """Return the audit as JSON, with every group of duplicates.

        Args:
            path: A file to write the JSON to; None writes none.
        """
        found = {"problems": self.problems()} | asdict(self)
        if path is not None:
            write_json(path, found)
        return json_text(found)

    def __str__(self) -> str:
        return printable(self.table())


def _aligned(columns: list[list[list[str]]]) -> list[str]:
    """Return the lines of a table, from the lines of each cell of each column."""
    widths = [max(len(line) for cell in column for line in cell) for column in columns]
    return [
        "  ".join(part.ljust(width) for part, width in zip(parts, widths, strict=True)).rstrip()
        for row in zip(*columns, strict=True)
        for parts in zip_longest(*row, fillvalue="")
    ]


def _wrapped(cell: str, width: int) -> list[str]:
    """Return the lines of a cell; words are not divided."""
    return wrap(cell, width, break_long_words=False, break_on_hyphens=False) or [""]


_ROWS = [
    "files",
    "by ending",
    "left out",
    "classes",
    "largest class",
    "smallest class",
    "width",
    "height",
    "modes",
    "turned by EXIF",
    "mean",
    "std",
]


def _cells(split: Split) -> list[str]:
    sizes = sorted(split.class_sizes.items(), key=lambda item: item[1])
    modes = ", ".join(f"{mode} {count}" for mode, count in split.modes.items())
    return [
        str(split.num_files),
        *(("", "") if split.files is None else (split.files.used_by_ending(), split.files.rest() or "nothing")),
        str(len(sizes)),
        *(f"{name} {count}" for name, count in (sizes[-1], sizes[0])),
        *(f"{side[0]} … {side[1]} … {side[2]}" if side else "" for side in (split.width, split.height)),
        modes,
        str(split.num_turned),
        *(" ".join(f"{number:.3f}" for number in numbers or ()) for numbers in (split.mean, split.std)),
    ]
