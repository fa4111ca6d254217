"""The tables of a benchmark: as Markdown, in the JSON file of its run, and between their marks on the pages."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / name for name in ("benchmarks/RESULTS.md", "docs/families.md", "docs/families_export.md")]
RESULTS = ROOT / "benchmarks" / "results"
MARKED = re.compile(r"<!-- (\w+: [^\n]+) -->\n.*?<!-- end -->", re.DOTALL)


@dataclass(frozen=True)
class Table:
    """Cells as a page shows them between ``<!-- FILE: name -->`` and ``<!-- end -->``."""

    name: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str | int]]

    def markdown(self) -> str:
        """Return its lines."""
        cells = [[str(cell).replace("|", r"\|") for cell in row] for row in (self.columns, *self.rows)]
        header, *rows = ("|" + "|".join(f" {cell} " if cell else " " for cell in row) + "|" for row in cells)
        return "\n".join([header, "|" + "---|" * len(self.columns), *rows])


def describe(run: dict[str, Any]) -> str:
    """Return the line beneath a table: command, date, machine and versions, as far as the file has them."""
    shown = {"command": "`{}`", "date": "{}", "seconds": "{:.0f} s", "machine": "{}", "cores": "{} cores"}
    parts = [text.format(run[key]) for key, text in shown.items() if run[key] is not None]
    return ", ".join([*parts, *(f"{name} {number}" for name, number in run["versions"].items())])


def refreshed(pages: Sequence[str], results: Path = RESULTS) -> list[str]:
    """Return the pages with each marked table as its file has it.

    Raises:
        ValueError: A mark has no table in the files, or a table has no mark on the pages.
    """
    shown = {}
    for path in sorted(results.glob("*.json")):
        run = json.loads(path.read_text())
        for table in run["tables"]:
            shown[f"{path.stem}: {table['name']}"] = f"{Table(**table).markdown()}\n\n{describe(run)}"
    for mark in sorted({*MARKED.findall("".join(pages))} ^ {*shown}):
        raise ValueError(
            f"Expected the pages to have a mark for each table in {results.name}/ and no other, but got {mark!r} in "
            f"one of them only. Run the benchmark, or add the lines '<!-- {mark} -->' and '<!-- end -->' to a page."
        )
    return [MARKED.sub(lambda found: f"<!-- {found[1]} -->\n{shown[found[1]]}\n<!-- end -->", page) for page in pages]
