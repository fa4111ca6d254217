"""Streams that stand in for a terminal, and what a person then sees."""

import io
import re
from typing import Any

import pytest


class Terminal(io.StringIO):
    """A terminal of some columns, which both stdout and stderr of a test write to."""

    def isatty(self) -> bool:
        return True

    def screen(self) -> list[str]:
        """The lines as a terminal shows them at the end, where each ``\\r`` writes over the line."""
        lines = []
        for line in self.getvalue().split("\n"):
            shown = ""
            for text in line.split("\r"):
                shown = text + shown[len(text) :]
            lines.append(shown.rstrip())
        return lines

    def drawn(self) -> list[str]:
        """Everything that was written between two returns or line ends, without the blanks at its end."""
        return [text.rstrip() for text in re.split("[\r\n]", self.getvalue()) if text.strip()]

    def widest(self) -> int:
        """The longest of what was written, with the blanks."""
        return max(map(len, re.split("[\r\n]", self.getvalue())))


def open_terminal(monkeypatch: pytest.MonkeyPatch, columns: int = 80) -> Terminal:
    """Let a test run in a terminal of some columns."""
    terminal = Terminal()
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(f"sys.{name}", terminal)
    resize(monkeypatch, columns)
    return terminal


def resize(monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    """Give the terminal another width."""
    monkeypatch.setenv("COLUMNS", str(columns))


class Clock:
    """Seconds that pass only when told."""

    now = 0.0

    def __call__(self) -> float:
        return self.now

    def replace(self, monkeypatch: pytest.MonkeyPatch, *modules: Any) -> None:
        """Take the place of ``perf_counter`` in modules."""
        for module in modules:
            monkeypatch.setattr(module, "perf_counter", self)
