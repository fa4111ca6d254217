"""Tables and facts fit any terminal, and lose nothing but the middle of a name."""

import pytest
from screens import Screen

from timm_accel.commands.output.columns import Row, print_facts, print_rows, print_text


def test_cells_are_below_their_title_whatever_the_letters(screen: Screen) -> None:
    rows = [Row("name", ["a", "b"]), Row("猫", ["1.5", "10"]), Row("owl", ["20", "3"])]
    assert screen.run(print_rows, rows) == ["name  a    b", "猫    1.5  10", "owl   20   3"]
    assert screen.run(print_rows, rows, right=True) == ["name    a   b", "猫    1.5  10", "owl    20   3"]


def test_a_name_is_shortened_as_far_as_the_screen_asks(screen: Screen) -> None:
    rows = [Row("a/very/long/path/cat.jpg", ["owl 0.500"]), Row("b.jpg", ["cat 0.250"])]
    assert screen.run(print_rows, rows, columns=40)[0] == "a/very/long/path/cat.jpg  owl 0.500"
    assert screen.run(print_rows, rows, columns=30) == ["a/very/lon…/cat.jpg  owl 0.500", f"{'b.jpg':19}  cat 0.250"]


def test_cells_go_below_a_name_that_has_no_room(screen: Screen) -> None:
    rows = [Row("a/very/long/path/cat.jpg", ["owl 0.500", "cat 0.250", "dog 0.125"])]
    assert screen.run(print_rows, rows, columns=24) == [
        "a/very/long/path/cat.jpg",
        "  owl 0.500  cat 0.250",
        "  dog 0.125",
    ]


def test_a_note_continues_below_its_start(screen: Screen) -> None:
    assert screen.run(print_rows, [Row("a", ["b"], "one two three four")], columns=22) == [
        "a  b  one two three",
        "      four",
    ]
    assert screen.run(print_rows, [Row("a" * 12, ["b"], "one two three four")], columns=20) == [
        "a" * 12 + "  b",
        "  one two three four",
    ]


def test_a_cell_that_is_wider_than_the_screen_has_a_line_and_no_empty_one(screen: Screen) -> None:
    row = Row("a name of some length", ["cat_" * 5, "0.5"], "a note of longer words")
    assert screen.run(lambda: print_rows([row]), columns=16) == [
        "a name o… length", "  " + "cat_" * 5, "  0.5", "  a note of", "  longer words"
    ]  # fmt: skip


def test_facts_have_one_column_of_values_and_leave_out_what_is_none(screen: Screen) -> None:
    facts = {"size": "1.2 MB", "difference": "one two three four", "opset": None, "zero": 0}
    assert screen.run(print_facts, facts, columns=24) == [
        "size        1.2 MB",
        "difference  one two",
        "            three four",
        "zero        0",
    ]
    assert screen.run(print_facts, {}) == []


@pytest.mark.parametrize("text", ["a\x1b[2Jb", "a\udce9b"])
def test_what_would_harm_a_terminal_is_escaped(screen: Screen, text: str) -> None:
    for printed in (screen.run(print_rows, [Row(text, [text], text)]), screen.run(print_facts, {"name": text})):
        assert printed[0].isprintable()
        assert "\\u" in printed[0]


def test_long_lines_of_text_continue_indented(screen: Screen) -> None:
    assert screen.run(print_text, "1. one two three\n\nfour  five", columns=12) == [
        "1. one two",
        "  three",
        "",
        "four  five",
    ]
