"""Copy the pages of a language into one folder for Sphinx, with their links as the site needs them.

A link to a page of the same language stays relative. All other links of the repository become ``site:`` and an address,
which `conf.py` ends. Figures are copied to the pages, other files to the site.
"""

import re
import shutil
from os.path import relpath
from pathlib import Path, PurePosixPath

from pages import SET_UP

from builder.contents import FILES, LINK, ROOT, Language, address, goal_of, is_path, outside_code, pages, sections

IMAGE = re.compile(r"!\[[^\]]*\]\(([^)\s]+)\)|<img [^>]*src=\"([^\"]+)\"")
LOCALE = ROOT / "docs/builder/locale"
REFERENCE = "Reference"  # the section of the contents page for the generated pages


def stage(language: Language, folder: Path, out: Path, reference: dict[str, str]) -> None:
    """Write all pages of a language into a folder.

    Args:
        language: The language.
        folder: The folder, which does not exist yet.
        out: The top of the site, for files that are no pages.
        reference: The generated pages by their names, as reStructuredText.
    """
    shutil.copytree(LOCALE, folder / "locale")  # here, since Sphinx writes compiled catalogs beside them
    for page, name in pages(language).items():
        text = _with_site_links(page, language, folder, out)
        if page == language.home:
            text += _navigation(language, reference)
        _write(folder / f"{name}.md", text)
    for name, text in reference.items():
        _write(folder / f"{name}.rst", text)


def _navigation(language: Language, reference: dict[str, str]) -> str:
    trees = []
    for title, listed in sections(language).items():
        names = [pages(language)[page] for page in listed]
        if title == REFERENCE:
            names += [name for name in reference if name.endswith("/index")]
        if names:
            trees += ["", "```{toctree}", ":hidden:", f":caption: {title}", "", *names, "```", ""]
    return "\n".join([*trees, "```{toctree}", ":hidden:", "", pages(language)[language.contents], "```", ""])


def _with_site_links(page: str, language: Language, folder: Path, out: Path) -> str:
    """Return the text of a page with the links of the site and without a set-up; code stays as it is."""

    def image(found: re.Match[str]) -> str:
        target = found[1] or found[2]
        if not is_path(target):
            return found[0]
        goal = goal_of(page, target)
        _copy(goal, folder)
        return found[0].replace(target, f"/{FILES}/{goal}")

    def link(found: re.Match[str]) -> str:
        target = found[1]
        if not is_path(target) or target.startswith(f"/{FILES}/"):
            return found[0]
        path, _, anchor = target.partition("#")
        goal = goal_of(page, path)
        there = relpath(address(goal), PurePosixPath(address(page)).parent) + (f"#{anchor}" if anchor else "")
        if goal in pages(language):
            return f"]({there.replace('.html', '.md', 1)})"
        if address(goal).startswith(f"{FILES}/"):
            _copy(goal, out)
        return f"](site:{there})"

    text = SET_UP.sub("", (ROOT / page).read_text(encoding="utf-8"))
    return outside_code(text, lambda prose: LINK.sub(link, IMAGE.sub(image, prose)))


def _copy(goal: str, folder: Path) -> None:
    copy = folder / FILES / goal
    copy.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(ROOT / goal, copy)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
