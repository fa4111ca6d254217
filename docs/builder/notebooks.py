"""Notebooks of the guide's chapters, made by jupytext from the same Markdown."""

import re
from os.path import relpath
from pathlib import Path, PurePosixPath

import jupytext
import nbformat
from pages import FENCE

from builder.contents import LINK, ROOT, Language, address, goal_of, is_path, outside_code, pages

KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}
FIGURE = re.compile(r"^!\[.*?\]\((?:[^)\s]*/)?(\w+)\.(svg|png)\)$", re.MULTILINE)


def chapters(language: Language) -> dict[str, str]:
    """Return the pages of the guide, with the file names of their notebooks."""
    return {page: f"{PurePosixPath(page).stem}.ipynb" for page in pages(language) if f"{language.docs}/guide/" in page}


def write_notebooks(language: Language, folder: Path) -> None:
    """Write the notebook of each chapter of the guide into a folder of the site."""
    for page, file in chapters(language).items():
        folder.mkdir(parents=True, exist_ok=True)
        nbformat.write(notebook(page, language), folder / file)


def notebook(page: str, language: Language) -> nbformat.NotebookNode:
    """Return the notebook of a chapter.

    Blocks that run become cells, and a cell shows each figure that the cell before it wrote. Blocks that are not run,
    and what blocks print, stay text. A block that raises an error has the tag that lets a run continue.
    """
    text = (ROOT / page).read_text(encoding="utf-8")
    text = outside_code(text, lambda prose: LINK.sub(lambda link: f"]({_address(link[1], page, language)})", prose))
    made = jupytext.reads(FIGURE.sub(_shown, FENCE.sub(_cell, text)), fmt="md")
    made.metadata = {"kernelspec": KERNEL}
    for number, cell in enumerate(made.cells):
        cell.source = re.sub(r"^```\{\.(\w+) \.noeval\}$", r"```\1", cell.source, flags=re.MULTILINE)
        cell["id"] = f"cell-{number}"  # not at random, so that a site that is built twice is the same
    return made


def _cell(block: re.Match[str]) -> str:
    kind, code = block["kind"], block["code"]
    if kind not in ("python", "sh"):
        return block[0]
    if block["mark"] == "not run":
        return f"```{{.{kind} .noeval}}\n{code}```"
    if kind == "sh":
        code = "".join(f"!{line}\n" for line in re.sub(r"\\\n *", "", code).splitlines() if line)
    tags = ' tags=["raises-exception"]' if block["mark"] == "raises" else ""
    return f"```python{tags}\n{code}```"


def _shown(figure: re.Match[str]) -> str:
    name, ending = figure.groups()
    kind = "SVG" if ending == "svg" else "Image"
    return f'```python\nfrom IPython.display import {kind}\n\n{kind}("{name}.{ending}")\n```'


def _address(target: str, page: str, language: Language) -> str:
    """Return where a link leads from the folder of the notebooks: to a notebook, or to a page of the site."""
    if not is_path(target):
        return target
    path, _, anchor = target.partition("#")
    goal = goal_of(page, path)
    if goal in chapters(language):
        return chapters(language)[goal]
    return relpath(address(goal), PurePosixPath(language.folder, "notebooks")) + (f"#{anchor}" if anchor else "")
