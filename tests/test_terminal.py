"""Text fits the columns of a terminal."""

import doctest
import fcntl
import io
import pty
import struct
import termios

import pytest
from terminals import Terminal

from timm_accel import terminal
from timm_accel.terminal import (
    duration,
    fitted,
    is_terminal,
    padded,
    print_fitted,
    screen_width,
    shortened,
    sparkline,
    text_width,
    width_of,
    wrapped,
)


def test_the_examples_of_the_docstrings_are_right() -> None:
    found = doctest.testmod(terminal)
    assert found.attempted == 7
    assert found.failed == 0


def test_the_width_is_that_of_the_terminal_and_80_without_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    assert screen_width() == 40
    monkeypatch.delenv("COLUMNS")
    assert screen_width() == 80


@pytest.mark.parametrize(
    ("text", "width"),
    [
        ("", 0),
        ("猫.png", 6),
        ("ＡＢ", 4),
        ("cafe\u0301", 4),
        ("\u1112\u1161\u11ab", 2),  # a Korean syllable, as macOS writes it in names of files
        ("a\u200db", 2),
    ],
)
def test_letters_count_by_their_columns(text: str, width: int) -> None:
    assert text_width(text) == width
    assert padded(text, 8) == text + " " * (8 - width)
    assert padded(text, 8, right=True) == " " * (8 - width) + text


@pytest.mark.parametrize(
    "text", ["photos/2026/summer/beach/cat.jpg", "a" * 50, "写真/" * 9 + "猫.png", "x/" + "y" * 50]
)
@pytest.mark.parametrize("width", [1, 2, 7, 12, 20, 31])
def test_short_text_fits_and_loses_only_its_middle(text: str, width: int) -> None:
    short = shortened(text, width)
    assert width - 1 <= text_width(short) <= width  # a wide letter may leave one column
    start, end = short.split("…")
    assert text.startswith(start)
    assert text.endswith(end)


def test_text_that_fits_stays_and_the_name_of_a_file_too() -> None:
    assert shortened("e\u0301/cat.jpg", 9) == "e\u0301/cat.jpg"
    assert shortened("a/b/c/d/e/long_name.jpg", 16) == "a…/long_name.jpg"
    assert shortened(r"C:\photos\summer\cat.jpg", 12) == r"C:\…\cat.jpg"


def test_lines_break_between_words() -> None:
    assert wrapped("one two three", 7) == ["one two", "three"]
    assert wrapped("one two three", 8, "  ") == ["one two", "  three"]
    assert wrapped("a/long/path/of/a/file is here", 8) == ["a/long/path/of/a/file", "is here"]
    assert wrapped("猫 犬", 4) == ["猫", "犬"]
    assert wrapped("", 8) == []


@pytest.mark.parametrize(
    "piece",
    [
        "timm-accel train --config 'my runs/recipe.yaml' --resume auto",
        "'/photos/of last summer/cat.jpg'",
        '"/photos/of mum\'s birthday/cat.jpg";',
        "('a folder/of words')",
        "pip install trackio.",
    ],
)
def test_what_one_copies_is_not_divided(piece: str) -> None:
    text = f"Some words of the sentence's begin that come before {piece}"
    lines = wrapped(text, 20, "  ")
    assert lines[-1].strip() == piece
    assert " ".join(line.strip() for line in lines) == text
    assert max(map(len, lines[:-1])) <= 20


def test_the_name_of_a_program_before_a_sentence_is_a_word() -> None:
    lines = wrapped("timm-accel find-lr: Expected a folder's name, but got none. It's an error", 24)
    assert lines == ["timm-accel find-lr:", "Expected a folder's", "name, but got none. It's", "an error"]


def test_only_a_terminal_gets_lines_that_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    text = "Twenty columns fit.\nA sentence that is longer\n  timm-accel export a model.onnx\n"
    assert fitted(text, io.StringIO()) == text
    assert fitted(text, None) == text
    terminal = Terminal()
    print_fitted(text, terminal)
    assert terminal.getvalue().split("\n") == [
        "Twenty columns fit.", "A sentence that is", "  longer", "  timm-accel export a model.onnx", "", ""
    ]  # fmt: skip


def test_a_line_of_the_width_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "8")
    assert fitted("one  two", Terminal()) == "one  two"
    assert fitted("one  twos", Terminal()) == "one twos"


def test_a_duration_of_almost_a_minute_is_a_minute() -> None:
    assert [duration(seconds) for seconds in (59.94, 59.95, 60.0)] == ["59.9 s", "01:00", "01:00"]


def test_a_closed_stream_is_no_terminal() -> None:
    terminal = Terminal()
    assert is_terminal(terminal)
    terminal.close()
    assert not is_terminal(terminal)


@pytest.mark.parametrize(("columns", "width"), [(33, 33), (0, 50)])
def test_a_terminal_that_does_not_know_its_width_has_that_of_columns(
    columns: int, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "50")
    screen, side = pty.openpty()
    fcntl.ioctl(side, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    with open(screen, "rb"), open(side, "w") as stream:
        assert width_of(stream) == width


def test_bars_reach_from_the_smallest_to_the_largest_value() -> None:
    assert sparkline([5.0, 5.0], 9) == "▁▁"
    assert sparkline([0.1, 0.2], 9) == "▁█"
    assert sparkline(range(100), 8) == "▁▂▃▄▅▆▇█"
    assert len(sparkline(range(7), 5)) == 5
