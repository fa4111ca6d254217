"""Chapters open as notebooks: a block that runs is a cell, and the cells run as they are."""

from pathlib import Path

import pytest

for needed in ("jupytext", "nbclient", "ipykernel"):
    pytest.importorskip(needed, reason="the extras docs and test are not installed")

import nbclient  # noqa: E402
from builder import notebooks  # noqa: E402
from builder.contents import CHINESE, ENGLISH, Language, pages  # noqa: E402
from builder.notebooks import notebook  # noqa: E402

PAGE = """# A page

[Data](../data.md#files), [models](models.md)

<!-- not run: needs the network -->
```python
import nothing
```

```python
names = {"a": print}
names["a"](1)
```

```text
1
```

<!-- raises: ValueError -->
```python
raise ValueError("no")
```

```sh
timm-accel recipes \\
    demo
timm-accel models
```

![A figure](figures/curve.svg)
"""


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "docs/guide").mkdir(parents=True)
    (tmp_path / "docs/guide/ema.md").write_text(PAGE)
    monkeypatch.setattr(notebooks, "ROOT", tmp_path)
    monkeypatch.setattr(notebooks, "chapters", lambda language: {"docs/guide/models.md": "models.ipynb"})
    return "docs/guide/ema.md"


def test_blocks_that_run_are_cells_and_the_others_are_text(page: str) -> None:
    links = "[Data](../data.html#files), [models](models.ipynb)"
    cells = [(cell.cell_type, cell.source) for cell in notebook(page, ENGLISH).cells]
    assert cells == [
        ("markdown", f"# A page\n\n{links}\n\n```python\nimport nothing\n```"),
        ("code", 'names = {"a": print}\nnames["a"](1)'),
        ("markdown", "```text\n1\n```"),
        ("code", 'raise ValueError("no")'),
        ("code", "!timm-accel recipes demo\n!timm-accel models"),
        ("code", 'from IPython.display import SVG\n\nSVG("curve.svg")'),
    ]


def test_only_a_block_that_raises_has_the_tag_that_lets_a_run_continue(page: str) -> None:
    tags = [cell.metadata.get("tags") for cell in notebook(page, ENGLISH).cells]
    assert tags == [None, None, None, ["raises-exception"], None, None]


def test_a_notebook_is_the_same_each_time(page: str) -> None:
    assert notebook(page, ENGLISH) == notebook(page, ENGLISH)


@pytest.mark.parametrize(("chapter", "language"), [("lookahead", ENGLISH), ("schedulers", CHINESE)])
def test_a_chapter_runs_as_a_notebook(
    chapter: str, language: Language, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = f"{language.docs}/guide/{chapter}.md"
    assert page in pages(language)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    made = notebook(page, language)
    nbclient.NotebookClient(made, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert sum(cell.cell_type == "code" for cell in made.cells) >= 2
