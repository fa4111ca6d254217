"""Text of the figures: short, and in fonts that have its characters.

matplotlib draws a box for a character that its font lacks, such as those of Chinese class names, and warns. Here
another installed font is added for such characters. A name that no font has is shown as its number, and one line of the
log tells which number is which name.
"""

import logging
from collections.abc import Iterable, Sequence
from functools import cache

from timm_accel.messages import missing_extra
from timm_accel.terminal import text_width
from timm_accel.text_files import escaped

TITLE_LETTERS = 24  # the letters that fit above an image
_NOT_FOR_TEXT = ("Last Resort", "STIXNonUnicode", "STIXSize", "cm")  # matplotlib's fonts of boxes and of formulas
_logger = logging.getLogger(__name__)


def _shorten(name: str, end: str = "", letters: int = TITLE_LETTERS) -> str:
    """Return a name in one line of so many letters at most; a Chinese, Japanese or Korean one counts as two."""
    name = " ".join(escaped(name).split()) if not name.isprintable() else name
    room = letters - len(end)
    if text_width(name) > room:
        room -= 1
        while text_width(name) > room:
            name = name[:-1]
        name += "…"
    return name + end


def _drawable(names: Sequence[str], letters: int = TITLE_LETTERS) -> list[str]:
    """Return short names that the installed fonts can draw, each one once; the others are numbers."""
    short = [_shorten(name, letters=letters) for name in names]
    lacking = [number for number, name in enumerate(short) if _families(name)[1]]
    if lacking:
        legend = ", ".join(f"{number} {escaped(names[number])!r}" for number in lacking[:20])
        _logger.warning(
            "No installed font has the characters of %d names, so figures show their numbers: %s%s. Install a font "
            "that has them, such as Noto Sans CJK.",
            len(lacking),
            legend,
            ", …" if len(lacking) > 20 else "",
        )
    shown = {number: str(number) for number in lacking}
    counts: dict[str, int] = {}
    for name in short:
        counts[name] = counts.get(name, 0) + 1
    return [
        shown.get(number) or (name if counts[name] == 1 else _shorten(f"{number} {names[number]}", letters=letters))
        for number, name in enumerate(short)
    ]


def _font_families(texts: Iterable[str]) -> list[str]:
    """Return the names of the fonts that draw these texts, matplotlib's configured ones first."""
    return _families("".join(texts))[0]


def _families(text: str) -> tuple[list[str], frozenset[str]]:
    try:
        from matplotlib import rcParams
    except ModuleNotFoundError as error:
        raise missing_extra("plots", "figures", error.name) from error
    return _find(tuple(rcParams["font.family"]), frozenset(letter for letter in text if not letter.isspace()))


@cache
def _find(families: tuple[str, ...], letters: frozenset[str]) -> tuple[list[str], frozenset[str]]:
    """Return the fonts for some letters, and the letters that none has."""
    from matplotlib.font_manager import FontProperties, findfont, fontManager

    found = list(families)
    missing = letters - _letters_of(findfont(FontProperties(family=found)))
    others = sorted({(each.name, each.fname) for each in fontManager.ttflist if each.style == "normal"})
    for name, path in others if missing else ():
        if not name.startswith(_NOT_FOR_TEXT) and missing & (has := _letters_of(path)):
            found.append(name)
            missing -= has
    return found, missing


@cache
def _letters_of(path: str) -> frozenset[str]:
    from matplotlib.ft2font import FT2Font

    try:
        return frozenset(map(chr, FT2Font(path).get_charmap()))
    except (OSError, RuntimeError):  # a font file that is broken or was removed
        return frozenset()
