"""How the tests of the commands run one: its words on stdout, at a width of the terminal."""

from collections.abc import Callable
from typing import Any

import pytest

from timm_accel.terminal import text_width


class Screen:
    """A terminal of some columns.

    Args:
        monkeypatch: Sets its width.
        capsys: What is printed.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.monkeypatch, self.capsys = monkeypatch, capsys
        self.error = ""

    def run(self, command: Callable[..., int | None], *args: Any, columns: int = 80, **options: Any) -> list[str]:
        """Run a command that ends with code 0, and return its lines; each fits, apart from words that are longer."""
        code, lines = self.end(command, *args, columns=columns, **options)
        assert code in (None, 0)
        return lines

    def end(
        self, command: Callable[..., int | None], *args: Any, columns: int = 80, **options: Any
    ) -> tuple[int | None, list[str]]:
        """Run a command, and return its code and its lines."""
        self.monkeypatch.setenv("COLUMNS", str(columns))
        self.capsys.readouterr()
        code = command(*args, **options)
        out, self.error = self.capsys.readouterr()
        lines = out.splitlines()
        assert [line for line in lines if text_width(line) > columns and " " in line.strip()] == []
        return code, lines
