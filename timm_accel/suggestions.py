"""The nearest known names to one that is unknown, for error messages."""

from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any


def nearest(name: Any, known: Iterable[str], count: int = 3) -> str:
    """Return ``"Did you mean 'a' or 'b'?"``, or the first few known names when none is near."""
    known = sorted(known)
    close = get_close_matches(str(name), known, n=count, cutoff=0.6)
    if close:
        return f"Did you mean {' or '.join(repr(match) for match in close)}?"
    shown = ", ".join(repr(option) for option in known[:10])
    return f"Known names: {shown}{', …' if len(known) > 10 else ''}."
