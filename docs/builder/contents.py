"""Which pages the site has, in which order: those that the two contents pages link, `docs/README.md` and its twin.

A page is named by its path in the repository. Its name on the site is that below ``docs/``, or one of `HOMES`.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).parent.parent.parent
HOMES = {
    "README.md": "index",
    "README.zh.md": "index",
    "docs/README.md": "contents",
    "docs/zh/README.md": "contents",
    "CHANGELOG.md": "changelog",
    "CONTRIBUTING.md": "contributing",
    "benchmarks/RESULTS.md": "benchmarks",
    "examples/README.md": "examples",
}
FILES = "files"  # the folder of the site for files that are no pages
FENCED = re.compile(r"(^ *(`{3,}).*?^ *\2 *$)", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")


@dataclass(frozen=True)
class Language:
    """A language of the site.

    Args:
        code: Its code for Sphinx.
        name: Its name, as the link to it shows.
        folder: The folder of the site, and of ``docs/``, that its pages are in.
        home: Its first page.
    """

    code: str
    name: str
    folder: str
    home: str

    @property
    def docs(self) -> str:
        """The folder of its pages in the repository."""
        return f"docs/{self.folder}".rstrip("/")

    @property
    def contents(self) -> str:
        """The page that links all its pages."""
        return f"{self.docs}/README.md"

    def owns(self, page: str) -> bool:
        """Whether a page below ``docs/`` is in this language."""
        return page.startswith("docs/zh/") == (self.folder == "zh")


ENGLISH = Language("en", "English", "", "README.md")
CHINESE = Language("zh_CN", "中文", "zh", "README.zh.md")
LANGUAGES = (ENGLISH, CHINESE)


@cache
def sections(language: Language) -> dict[str, list[str]]:
    """Return the pages of each section of the contents page, in its order."""
    found: dict[str, list[str]] = {}
    folder = PurePosixPath(language.contents).parent
    for part in re.split(r"^## ", (ROOT / language.contents).read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]:
        title, _, text = part.partition("\n")
        items = re.findall(r"^- \[.*?\]\(([^)\s]+)\)", text, re.MULTILINE)
        pages = [resolved(folder, item) for item in items]
        found[title] = [page for page in pages if language.owns(page) and (ROOT / page).is_file()]
    return found


@cache
def pages(language: Language) -> dict[str, str]:
    """Return all pages of a language, with their names on its site."""
    listed = [page for section in sections(language).values() for page in section]
    return {page: site_name(page) for page in [language.home, language.contents, *listed]}


def site_name(page: str) -> str:
    """Return the name of a page on the site of its language, without an ending."""
    below = page.removeprefix("docs/").removeprefix("zh/")
    return HOMES.get(page, below.removesuffix(".md"))


def twin(page: str, other: Language) -> str | None:
    """Return the page of another language that has the same name, if there is one."""
    return next((found for found, name in pages(other).items() if name == site_name(page)), None)


def address(goal: str) -> str:
    """Return where a page or another file of the repository is on the site, from the top of the site."""
    for language in LANGUAGES:
        if goal in pages(language):
            return str(PurePosixPath(language.folder, f"{pages(language)[goal]}.html"))
    return f"{FILES}/{goal}"


def goal_of(page: str, path: str) -> str:
    """Return the file of the repository that a link on a page shows: for a folder, the closest ``README.md``."""
    goal = resolved(PurePosixPath(page).parent, path)
    while (ROOT / goal).is_dir():
        folder = PurePosixPath(goal)
        goal = f"{folder}/README.md" if (ROOT / folder / "README.md").is_file() else str(folder.parent)
    return goal.removeprefix("./")


def outside_code(text: str, change: Callable[[str], str]) -> str:
    """Return a page with its prose changed, and its code blocks as they are."""
    parts = FENCED.split(text)
    del parts[2::3]  # the backticks alone
    return "".join(part if number % 2 else change(part) for number, part in enumerate(parts))


def is_path(target: str) -> bool:
    """Whether the target of a link is a path, and no address or place on the same page."""
    return re.match(r"#|[a-z]+:", target) is None


def resolved(folder: PurePosixPath, target: str) -> str:
    """Return the path of the repository that a relative link from a folder leads to."""
    parts: list[str] = []
    for part in (folder / target).parts:
        if part == ".." and parts and parts[-1] != "..":
            parts.pop()
        elif part != ".":
            parts.append(part)
    return "/".join(parts)
