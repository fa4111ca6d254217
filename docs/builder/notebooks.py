"""Notebooks of the guide's chapters, made by jupytext from the same Markdown."""

import re
from os.path import relpath
from pathlib import Path, PurePosixPath

import jupytext
import nbformat
from builder.contents import LINK, ROOT, Language, address, goal_of, is_path, pages

KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}
BLOCK = re.compile(r"(?:^<!-- (not run|raises): .*? -->\n\n?)?^```(python|sh)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
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
    text = FIGURE.sub(_shown, BLOCK.sub(_cell, text))
    text = LINK.sub(lambda found: f"]({_address(found[1], page, language)})", text)
    made = jupytext.reads(text, fmt="md")
    made.metadata = {"kernelspec": KERNEL}
    for number, cell in enumerate(made.cells):
        cell["id"] = f"cell-{number}"  # not at random, so that a site that is built twice is the same
    return made


def _cell(block: re.Match[str]) -> str:
    kind, language, code = block.groups()
    if kind == "not run":
        return f"```{{.{language} .noeval}}\n{code}```"
    if language == "sh":
        code = "".join(f"!{line}\n" for line in re.sub(r"\\\n *", "", code).splitlines() if line)
    tags = ' tags=["raises-exception"]' if kind == "raises" else ""
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
