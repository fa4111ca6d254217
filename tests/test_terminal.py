"""Text fits the columns of a terminal."""

import doctest

import pytest

from timm_accel import terminal
from timm_accel.terminal import padded, screen_width, shortened, sparkline, text_width, wrapped


def test_the_examples_of_the_docstrings_are_right() -> None:
    found = doctest.testmod(terminal)
    assert found.attempted == 6
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


def test_bars_reach_from_the_smallest_to_the_largest_value() -> None:
    assert sparkline([5.0, 5.0], 9) == "▁▁"
    assert sparkline([0.1, 0.2], 9) == "▁█"
    assert sparkline(range(100), 8) == "▁▂▃▄▅▆▇█"
    assert len(sparkline(range(7), 5)) == 5
