"""In a notebook an evaluation and an audit are tables, with the text of the printed ones."""

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from conftest import write_images

from timm_accel.audit import audit
from timm_accel.predict.evaluation import ClassMeasures, Confusion, Evaluation

NAMES = ["<script>alert(1)</script>", "a & b", 'x" onload="y', "café", "caf\udce9", "red\x1b[2J"]


class Text(HTMLParser):
    """The tags of a page, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def words(text: str) -> list[str]:
    return sorted(re.findall(r"\S+", text))


@pytest.mark.parametrize("confused", [[], [Confusion(NAMES[0], NAMES[1], 7)]])
def test_an_evaluation_is_a_table_with_the_words_of_the_printed_one(confused: list[Confusion]) -> None:
    classes = [ClassMeasures(name, 0.25, 0.5, 0.125, number) for number, name in enumerate(NAMES)]
    found = Evaluation({"accuracy": 0.75}, classes, None, confused, 10, ["<img src=x>.png"], 1.0, (), ["<b>"])
    page = Text(found._repr_html_())
    assert set(page.tags) == {"div", "p", "table", "tr", "th", "td"}
    assert page.tags.count("tr") == 1 + 1 + len(NAMES)
    assert words(" ".join(page.text)) == words(str(found))
    assert '<td style="text-align: left">café</td><td style="text-align: right">0.250</td>' in found._repr_html_()
    assert '<th style="text-align: left">class</th><th style="text-align: right">precision</th>' in found._repr_html_()
    assert found._repr_html_().encode()
    assert "overflow-x: auto" in found._repr_html_()  # a narrow page scrolls


def test_an_audit_is_a_table_with_the_words_of_the_printed_one(tmp_path: Path) -> None:
    write_images(tmp_path / "train", {"<script>": 3, "a & b": 2})
    write_images(tmp_path / "val", {"<script>": 2, "a & b": 2})
    found = audit(tmp_path)
    page = Text(found._repr_html_())
    assert set(page.tags) <= {"div", "p", "table", "tr", "th", "td", "ol", "li"}
    numbered = re.sub(r"(?m)^\d+\. ", "", str(found))
    assert words(" ".join(page.text)) == words(numbered)
    assert "&lt;script&gt; 3" in found._repr_html_()
