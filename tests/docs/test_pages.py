"""Every block of the pages runs as it stands, prints what the page shows, and plots what the figures show."""

import json
import re
import traceback
from pathlib import Path

import pages
import pytest
from conftest import spare_what_is_left
from figures import plotted_data, same_data
from matplotlib.figure import Figure
from pages import DOCS, PageError, blocks_of, run_page
from PIL import Image

from timm_accel import Recipe

FENCE = re.compile(r"^ *```(\w+)$", re.M)
GUIDE = sorted((DOCS / "guide").glob("*.md"))
HOW_TO = [page for page in sorted(DOCS.glob("*.md")) if blocks_of(page.read_text())]
CHINESE = sorted((DOCS / "zh").rglob("*.md"))


def write_page(folder: Path, text: str) -> Path:
    (page := folder / "page.md").write_text(text)
    return page


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("MPLBACKEND", "Agg")


@pytest.mark.parametrize("page", GUIDE + HOW_TO, ids=lambda page: f"{page.parent.name}-{page.stem}")
def test_every_block_runs(page: Path) -> None:
    spare_what_is_left()
    run_page(page)


def test_no_block_is_passed_over_and_transcripts_have_a_kind_of_their_own() -> None:
    kinds = {page.stem: set(FENCE.findall(page.read_text())) for page in DOCS.rglob("*.md")}
    assert set().union(*kinds.values()) == {"python", "sh", "text", "console"}
    assert {page for page, found in kinds.items() if "console" in found} == {"improve", "start"}


@pytest.mark.parametrize("page", CHINESE, ids=lambda page: page.stem)
def test_the_chinese_page_has_the_blocks_and_figures_of_the_english_one(page: Path) -> None:
    english = DOCS / page.relative_to(DOCS / "zh")
    assert fences(page) == fences(english)
    assert shown(page) == shown(english)


def test_every_chapter_is_there_in_chinese() -> None:
    assert [page.name for page in GUIDE] == sorted(page.name for page in (DOCS / "zh" / "guide").glob("*.md"))


def test_every_figure_is_shown_and_all_are_small() -> None:
    figures = [path for path in (DOCS / "guide" / "figures").glob("*") if path.name != "data.json"]
    assert {path.name for path in figures} <= {name for page in DOCS.rglob("*.md") for name in shown(page)}
    assert sum(path.stat().st_size for path in figures) < 3_000_000
    if figures:
        assert {path.name for path in figures} == json.loads((DOCS / "guide/figures/data.json").read_text()).keys()


def fences(page: Path) -> list[str]:
    return re.findall(r"^```\w*\n.*?^```$|^<!-- (?:raises|not run).*?-->$", page.read_text(), re.M | re.S)


def shown(page: Path) -> list[str]:
    return re.findall(r"\]\([\w./]*figures/([\w.-]+)\)", page.read_text())


def test_blocks_run_in_one_namespace_and_their_output_is_compared(tmp_path: Path) -> None:
    good = "```python\na = 1\n```\n\n```python\nprint(a + 1, 0.25)\n```\n\n```text\n2 0.2...\n```\n"
    run_page(write_page(tmp_path, good))
    with pytest.raises(PageError, match=r"page.md, line 6: the page shows\n3 0.2...\nbut the block prints\n2 0.25"):
        run_page(write_page(tmp_path, good.replace("\n2 0", "\n3 0")))


def test_a_block_prints_the_signs_of_a_terminal(tmp_path: Path) -> None:
    code = "import sys\nprint('32×32' if sys.stdout.encoding == 'utf-8' else '32x32', '▁▂█', '…')"
    run_page(write_page(tmp_path, f"```python\n{code}\n```\n\n```text\n32×32 ▁▂█ …\n```\n"))


def test_a_block_that_fails_is_named_by_its_line(tmp_path: Path) -> None:
    with pytest.raises(PageError, match="line 4: ZeroDivisionError: division by zero") as raised:
        run_page(write_page(tmp_path, "# Title\n\n```python\n1 / 0\n```\n"))
    assert raised.value.__cause__ is not None
    assert traceback.extract_tb(raised.value.__cause__.__traceback__)[-1].lineno == 4


@pytest.mark.parametrize(
    ("code", "fault"),
    [("int('x')", None), ("int('1')", "expected ValueError, but nothing was raised"), ("1 / 0", "ZeroDivisionError")],
)
def test_a_block_that_must_raise_raises_that(tmp_path: Path, code: str, fault: str | None) -> None:
    page = write_page(
        tmp_path, f"<!-- raises: ValueError -->\n```python\n{code}\n```\n\n```text\nValueError: ...\n```\n"
    )
    if fault is None:
        return run_page(page)
    with pytest.raises(PageError, match=fault):
        run_page(page)


SET_UP = """# Title

<!-- set up
from page_data import short_runs

short_runs()
three = 3
-->

```text
a text at the top is no output of the set-up
```

```python
from timm_accel import Recipe

print(three, Recipe(num_epochs=40).num_epochs)
```

```text
3 3
```
"""


def test_a_set_up_runs_before_the_blocks_and_ends_with_the_page(tmp_path: Path) -> None:
    run_page(write_page(tmp_path, SET_UP))
    assert Recipe(num_epochs=40).num_epochs == 40
    with pytest.raises(PageError, match="line 4: ModuleNotFoundError"):
        run_page(write_page(tmp_path, SET_UP.replace("page_data", "no_data")))
    with pytest.raises(PageError, match="line 15: ZeroDivisionError"):
        run_page(write_page(tmp_path, SET_UP.replace("print(three", "print(1 / 0")))
    assert Recipe(num_epochs=40).num_epochs == 40


def test_a_block_that_is_not_run_needs_a_reason(tmp_path: Path) -> None:
    run_page(write_page(tmp_path, "<!-- not run: needs the network -->\n```python\n1 / 0\n```\n"))
    with pytest.raises(PageError, match="ZeroDivisionError"):
        run_page(write_page(tmp_path, "<!-- not run -->\n```python\n1 / 0\n```\n"))


def test_commands_run_in_the_folder_of_the_page_and_their_exit_code_counts(tmp_path: Path) -> None:
    run_page(write_page(tmp_path, "```sh\ntimm-accel recipes  # all\n```\n\n```text\n...fine_tune...\n```\n"))
    with pytest.raises(PageError, match="exit code 2"):
        run_page(write_page(tmp_path, "```sh\ntimm-accel traim\n```\n"))
    with pytest.raises(PageError, match="begins with timm-accel, but got 'rm x'"):
        run_page(write_page(tmp_path, "```sh\nrm x\n```\n"))


FIGURE = """```python
import matplotlib.pyplot as plt

figure, axes = plt.subplots()
axes.plot([0, 1, {top}])
figure.savefig("curve.svg")
```

![a curve](figures/curve.svg)
"""


def test_a_figure_must_show_what_the_code_plots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "FIGURES", tmp_path / "figures")
    save = Figure.savefig
    run_page(write_page(tmp_path, FIGURE.format(top=2)), record=True)
    first = (tmp_path / "figures" / "curve.svg").read_bytes()
    run_page(write_page(tmp_path, FIGURE.format(top=2)))
    with pytest.raises(PageError, match=r"curve.svg shows other data than the code plots. Record it again"):
        run_page(write_page(tmp_path, FIGURE.format(top=2.1)))
    with pytest.raises(PageError, match=r"no block of the page saves curve.svg"):
        run_page(write_page(tmp_path, FIGURE.format(top=2).replace('"curve.svg"', '"other.svg"')))
    run_page(write_page(tmp_path, FIGURE.format(top=2)), record=True)
    assert (tmp_path / "figures" / "curve.svg").read_bytes() == first
    run_page(write_page(tmp_path, FIGURE.format(top=3).replace("curve.svg", "other.svg")), record=True)
    assert json.loads((tmp_path / "figures" / "data.json").read_text()).keys() == {"curve.svg", "other.svg"}
    assert Figure.savefig is save


def test_a_recorded_png_has_a_palette_since_photos_are_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "FIGURES", tmp_path / "figures")
    run_page(write_page(tmp_path, FIGURE.format(top=2).replace("curve.svg", "curve.png")), record=True)
    with Image.open(tmp_path / "figures" / "curve.png") as image:
        assert image.mode == "P"
        assert len(image.getcolors()) <= 64


def test_plotted_data_has_lines_bars_points_and_images() -> None:
    figure = Figure()
    one, two = figure.subplots(2)
    one.plot([0.0, 1.0], [2.0, float("nan")])
    one.bar(["a", "b"], [3.0, 4.0])
    two.scatter([1.0], [2.0])
    two.imshow([[1.0] * 4] * 4)
    two.set_title("image")
    data = plotted_data(figure)
    assert data[0] == {"lines": [[[0.0, 1.0], [2.0, "nan"]]], "bars": [3.0, 4.0]}
    assert data[1] == {"title": "image", "points": [[1.0, 2.0]], "images": [[[4, 4], [1.0] * 16]]}


def test_numbers_are_compared_with_a_tolerance_and_everything_else_exactly() -> None:
    assert same_data([{"lines": [1.0, 0.0]}], [{"lines": [1.01, 0.0]}])
    for other in ([{"lines": [1.1, 0.0]}], [{"bars": [1.0, 0.0]}], [{"lines": [1.0]}], [{"lines": ["nan", 0.0]}]):
        assert not same_data([{"lines": [1.0, 0.0]}], other)


def test_text_after_prose_is_not_the_output_of_a_block() -> None:
    (block,) = blocks_of("```sh\ntimm-accel recipes\n```\n\nAnother program writes:\n\n```text\nx\n```\n")
    assert block.output is None
