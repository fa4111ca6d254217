"""Run the code blocks of a page as a reader would, and compare what they print and plot with what the page shows.

    python docs/pages.py guide/models.md            # run the blocks
    python docs/pages.py --record guide/models.md   # and write the figures and their plotted data

The blocks of a page run in the page's order, in one namespace, in an empty folder:

- ``python`` runs. With ``<!-- raises: ValueError -->`` on the line above, it must raise that error.
- ``sh`` runs its lines ``timm-accel ...``; a page has no other lines that run.
- ``text`` right after a block is its output, where ``...`` stands for what differs from run to run.
- ``<!-- not run: REASON -->`` on the line above a block lets it be shown only.
- ``<!-- set up``, lines of Python, and ``-->`` run before the blocks: what a how-to page takes as given, such as a
  trained run. No reader sees it; `page_data` has what several pages need.

Figures are what the blocks save by ``figure.savefig("NAME.svg")`` and the page shows.
"""

import argparse
import json
import os
import re
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from doctest import ELLIPSIS, NORMALIZE_WHITESPACE, OutputChecker
from io import StringIO
from pathlib import Path
from unittest.mock import patch

from figures import noted_figures, same_data
from PIL import Image

DOCS = Path(__file__).resolve().parent
FIGURES = DOCS / "guide" / "figures"
FENCE = re.compile(
    r"^(?:<!-- (?P<mark>not run|raises): (?P<why>[^\n]*?) -->\n)?```(?P<kind>\w+)\n(?P<code>.*?)^```$", re.M | re.S
)
SET_UP = re.compile(r"^<!-- set up\n(?P<code>.*?)^-->\n", re.M | re.S)


@dataclass
class Block:
    """A code block of a page, and what the page says that it prints."""

    kind: str
    code: str
    line: int
    not_run: str | None = None
    raises: str | None = None
    output: str | None = None


class _Printed(StringIO):
    """What a block prints; it can hold the signs that a terminal shows, such as × and bars."""

    encoding = "utf-8"


class PageError(Exception):
    """A block does not do what its page says."""


def blocks_of(text: str) -> list[Block]:
    """Return the set-up and the blocks of a page; a ``text`` block directly after one belongs to it as its output."""
    blocks = [Block("python", found["code"], _line(text, found.start("code"))) for found in SET_UP.finditer(text)]
    end = 0
    for fence in FENCE.finditer(text):
        kind, code, mark = fence["kind"], fence["code"], fence["mark"]
        if kind == "text" and blocks and blocks[-1].output is None and text[end : fence.start()].strip() == "":
            blocks[-1].output = code
        elif kind in ("python", "sh"):
            why = {mark.replace(" ", "_"): fence["why"]} if mark else {}
            blocks.append(Block(kind, code, _line(text, fence.start("code")), **why))
        end = fence.end()
    return blocks


def _line(text: str, position: int) -> int:
    return text.count("\n", 0, position) + 1


def run_page(page: Path, record: bool = False) -> None:
    """Run the blocks of a page in an empty folder.

    Args:
        page: The Markdown file.
        record: Write the figures of the page and their plotted data instead of comparing the data.

    Raises:
        PageError: A block fails, prints something else, or plots other data than recorded.
    """
    shown = set(re.findall(r"\]\((?:[\w./]*/)?figures/([\w.-]+)\)", page.read_text()))
    here = Path.cwd()
    with tempfile.TemporaryDirectory() as folder, noted_figures() as data:
        os.chdir(folder)
        try:
            names: dict = {"__name__": "__main__"}
            for block in blocks_of(page.read_text()):
                if block.not_run is None:
                    _run(block, names, page)
        finally:
            os.chdir(here)
            patch.stopall()
        drawn = {name: data[name] for name in sorted(shown & set(data))}
        if missing := sorted(shown - set(data)):
            raise PageError(f"{page.name}: no block of the page saves {', '.join(missing)}.")
        if record:
            _record(drawn, Path(folder))
    recorded = json.loads((FIGURES / "data.json").read_text()) if (FIGURES / "data.json").is_file() else {}
    for name, values in drawn.items():
        if name not in recorded or not same_data(values, recorded[name]):
            raise PageError(f"{page.name}: {name} shows other data than the code plots. Record it again.")


def _run(block: Block, names: dict, page: Path) -> None:
    where = f"{page.name}, line {block.line}"
    printed = _Printed()
    try:
        with redirect_stdout(printed):
            if block.kind == "sh":
                _run_commands(block.code)
            else:
                exec(compile("\n" * (block.line - 1) + block.code, str(page), "exec"), names)
    except BaseException as error:
        if block.raises != type(error).__name__:
            raise PageError(f"{where}: {type(error).__name__}: {error}") from error
        print(f"{block.raises}: {error}", file=printed)
    else:
        if block.raises is not None:
            raise PageError(f"{where}: expected {block.raises}, but nothing was raised.")
    checked = OutputChecker().check_output
    if block.output is not None and not checked(block.output, printed.getvalue(), ELLIPSIS | NORMALIZE_WHITESPACE):
        raise PageError(f"{where}: the page shows\n{block.output}but the block prints\n{printed.getvalue()}")


def _run_commands(code: str) -> None:
    from timm_accel.commands.main import main

    for line in code.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if not words:
            continue
        if words[0] != "timm-accel":
            raise PageError(f"expected a line that begins with timm-accel, but got {line!r}.")
        if (exit_code := main(words[1:])) != 0:
            raise PageError(f"{line!r} ended with exit code {exit_code}.")


def _record(drawn: dict, folder: Path) -> None:
    FIGURES.mkdir(parents=True, exist_ok=True)
    path = FIGURES / "data.json"
    recorded = json.loads(path.read_text()) if path.is_file() else {}
    for name in drawn:
        if name.endswith(".png"):  # a palette makes photos a quarter as large
            Image.open(folder / name).convert("RGB").quantize(64).save(FIGURES / name, optimize=True)
        else:
            shutil.copyfile(folder / name, FIGURES / name)
    rows = [f"{json.dumps(name)}: {json.dumps(data)}" for name, data in sorted({**recorded, **drawn}.items())]
    path.write_text("{\n" + ",\n".join(rows) + "\n}\n")


@contextmanager
def _offline() -> Iterator[None]:
    """Let the pages run as they do in the tests: without network, on the CPU, in one thread, without a screen."""
    with tempfile.TemporaryDirectory() as cache:
        os.environ.update(
            {"HF_HUB_OFFLINE": "1", "ACCELERATE_USE_CPU": "true", "MPLBACKEND": "Agg", "XDG_CACHE_HOME": cache}
        )
        import torch

        torch.set_num_threads(1)
        yield


def main() -> int:
    """Run the pages that the command line names."""
    parser = argparse.ArgumentParser(description="Run the code blocks of pages.")
    parser.add_argument("pages", nargs="+", help="paths below docs/, such as guide/models.md")
    parser.add_argument("--record", action="store_true", help="write the figures and their plotted data")
    arguments = parser.parse_args()
    failed = 0
    with _offline():
        for name in arguments.pages:
            began = time.process_time()
            try:
                run_page(DOCS / name, record=arguments.record)
                print(f"{name}: runs, {time.process_time() - began:.1f} s of processor time")
            except PageError as error:
                failed += 1
                print(error, file=sys.stderr)
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main())
