"""The site builds without a warning; all its links lead somewhere, and nothing of it is outside the site."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import product
from os.path import normpath
from pathlib import Path
from threading import Thread
from urllib.parse import quote

import pytest
from browser import Browser, browser, needs_chromium
from builder.contents import ENGLISH, LANGUAGES, ROOT, pages, twin
from builder.reference import public_names

for needed in ("sphinx", "myst_parser", "furo", "sphinx_copybutton", "jupytext"):
    pytest.importorskip(needed, reason="the extra docs is not installed")

from builder.chinese_search import SearchChinese  # noqa: E402


class Page(HTMLParser):
    """The links of a page of the site, what it loads, and the places that a link may name."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: set[str] = set()
        self.loads: set[str] = set()
        self.places: set[str] = set()
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note a tag."""
        found = dict(attrs)
        self.places.update(filter(None, [found.get("id"), found.get("name") if tag == "a" else None]))
        if tag == "a" and found.get("href"):
            self.links.add(found["href"])
        elif tag in ("img", "script", "source") and found.get("src"):
            self.loads.add(found["src"])
        elif tag == "link" and found.get("rel") in ("stylesheet", "icon", "shortcut icon"):
            self.loads.add(found["href"])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("site") / "out"
    done = subprocess.run(
        [sys.executable, ROOT / "docs/build.py", out], capture_output=True, text=True, timeout=600, cwd=out.parent
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    return out


@pytest.fixture(scope="module")
def html(site: Path) -> dict[str, Page]:
    return {path.relative_to(site).as_posix(): Page(path) for path in site.rglob("*.html")}


def goal(page: str, link: str) -> str:
    path = link.partition("#")[0].partition("?")[0]
    return normpath(Path(page).parent / path) if path else page


def is_outside(link: str) -> bool:
    return re.match(r"https?:|mailto:|//", link) is not None


def test_every_link_of_the_site_leads_to_a_page_and_a_place_on_it(site: Path, html: dict[str, Page]) -> None:
    dead = []
    for name, page in html.items():
        for link in page.links:
            place = link.partition("#")[2]
            if is_outside(link):
                continue
            if not (site / goal(name, link)).is_file() or (
                place and goal(name, link) in html and place not in html[goal(name, link)].places
            ):
                dead.append((name, link))
    assert dead == []


def test_every_page_can_be_reached_from_the_first_one(html: dict[str, Page]) -> None:
    reached, waiting = set(), ["index.html"]
    while waiting:
        if (name := waiting.pop()) in html and name not in reached:
            reached.add(name)
            waiting += [goal(name, link) for link in html[name].links if not is_outside(link)]
    assert set(html) - reached == {"search.html", "zh/search.html"}  # their form is on every page


def test_a_page_loads_nothing_from_elsewhere(site: Path, html: dict[str, Page]) -> None:
    for name, page in html.items():
        assert [load for load in page.loads if is_outside(load) or not (site / goal(name, load)).is_file()] == []
    for sheet in site.rglob("*.css"):
        assert not re.search(r"url\([\"']?(?:https?:)?//", sheet.read_text()), sheet


def test_every_public_name_has_a_place_on_its_page(html: dict[str, Page]) -> None:
    for module, homes in public_names().items():
        page = html[f"reference/{module}.html"]
        for home in homes.values():
            own = home.rpartition(".")[0] in (module, f"{module}.{home.rpartition('.')[2]}")
            assert home in page.places if own else any(link.endswith(f"#{home}") for link in page.links)


def test_a_page_and_its_twin_link_each_other(html: dict[str, Page]) -> None:
    english, chinese = LANGUAGES
    twins = {page: found for page in pages(english) if (found := twin(page, chinese))}
    assert {"README.md", "docs/README.md"} <= set(twins)
    for page, other in twins.items():
        here, there = f"{pages(english)[page]}.html", f"zh/{pages(chinese)[other]}.html"
        assert there in [goal(here, link) for link in html[here].links]
        assert here in [goal(there, link) for link in html[there].links]


def test_every_chapter_links_its_notebook(site: Path, html: dict[str, Page]) -> None:
    for language in LANGUAGES:
        for page, name in pages(language).items():
            if f"{language.docs}/guide/" not in page:
                continue
            here = Path(language.folder, f"{name}.html").as_posix()
            (notebook,) = [goal(here, link) for link in html[here].links if link.endswith(".ipynb")]
            assert json.loads((site / notebook).read_text())["nbformat"] == 4


def test_a_set_up_is_neither_shown_nor_found(site: Path) -> None:
    assert "page_data" in (ROOT / "docs/predict.md").read_text()
    assert [path for path in site.rglob("*.*") if b"page_data" in path.read_bytes()] == []


def test_both_languages_have_a_search_in_their_language(site: Path) -> None:
    english, chinese = (json.loads(index_of(site / language.folder)) for language in LANGUAGES)
    assert "mixup" in english["terms"]
    assert {"模", "模型"} <= set(chinese["terms"])  # characters, and pairs of them
    script = (site / "zh/_static/language_data.js").read_text()
    assert "splitQuery" in script
    assert "window.Stemmer = EnglishStemmer;" in script  # there is none for Chinese
    assert 'lang="zh-CN"' in (site / "zh/index.html").read_text()
    assert "回到顶部" in (site / "zh/index.html").read_text()
    assert ENGLISH.name in (site / "zh/index.html").read_text()


def index_of(folder: Path) -> str:
    return (folder / "searchindex.js").read_text().removeprefix("Search.setIndex(").removesuffix(")")


def test_chinese_is_searched_by_pairs_of_characters_and_other_words_whole() -> None:
    assert SearchChinese({}).split("EMA 权重, ema_decay。学习率") == [
        "EMA", "权", "重", "权重", "ema_decay", "学", "习", "率", "学习", "习率"
    ]  # fmt: skip


class Quiet(SimpleHTTPRequestHandler):
    """Serves files, and writes no log."""

    def log_message(self, format: str, *args: object) -> None:
        """Write nothing."""


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=site)) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


FOUND = """new Promise((done) => {
  const look = () => /[0-9]/.test(document.querySelector(".search-summary")?.textContent ?? "")
    ? done([...document.querySelectorAll("#search-results li > a")].map((link) => link.textContent))
    : setTimeout(look, 50);
  look();
})"""


@needs_chromium
def test_a_browser_shows_the_site_without_errors_and_finds_pages(address: str, tmp_path: Path) -> None:
    shown_pages = ["index", "contents", "recipes", "from_lightning", "reference/timm_accel.recipes", "zh/index"]
    searches = {"search": ["mixup", "create_datasets"], "zh/search": ["模型", "EMA"]}
    with browser(tmp_path / "profile") as shown:
        for page, (width, dark) in product(shown_pages, [(360, False), (360, True), (1440, False), (1440, True)]):
            shown.open(f"{address}/{page}.html", width, dark=dark)
            assert shown.run("document.documentElement.scrollWidth") <= width, page
            assert shown.run("matchMedia('(prefers-color-scheme: dark)').matches") is dark
        for page, words in searches.items():
            for word in words:
                shown.open(f"{address}/{page}.html?q={quote(word)}")
                assert shown.run(FOUND), word
        assert "Recipes and their options" in found_titles(shown, f"{address}/search.html?q=recipe")
        assert shown.errors == []


def found_titles(shown: Browser, search: str) -> list[str]:
    shown.open(search)
    return shown.run(FOUND)


def test_a_folder_that_holds_other_files_is_refused_and_kept(tmp_path: Path) -> None:
    from build import build

    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(SystemExit, match=r"Expected the folder of the site .* holds other files\.$"):
        build(tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"
