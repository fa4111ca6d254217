"""Every page has a way to it, every link leads somewhere, and every public name and example has its place."""

import ast
import re
from importlib import import_module
from pathlib import Path, PurePosixPath
from textwrap import dedent

import pytest
from builder.contents import (
    CHINESE,
    ENGLISH,
    LANGUAGES,
    LINK,
    ROOT,
    Language,
    goal_of,
    is_path,
    outside_code,
    pages,
    sections,
)
from builder.reference import as_restructured, public_names

import timm_accel
from timm_accel.recipes import recipe_names

MARKDOWN = sorted(
    path.relative_to(ROOT).as_posix()
    for folder in (".", "docs", "examples", "benchmarks", "tests")
    for path in (ROOT / folder).glob("*.md" if folder == "." else "**/*.md")
)


def prose_of(page: str) -> str:
    """The text of a page without its blocks of code."""
    kept: list[str] = []
    outside_code((ROOT / page).read_text(), lambda prose: kept.append(prose) or prose)
    return "\n".join(kept)


def anchors_of(page: str) -> set[str]:
    """The places of a page that a link may name: its headings, as GitHub writes them."""
    found: list[str] = []
    for heading in re.findall(r"^#+ (.+)$", prose_of(page), re.MULTILINE):
        text = re.sub(r"\[(.*?)\]\(.*?\)", r"\1", heading)
        name = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
        found.append(f"{name}-{found.count(name)}" if name in found else name)
    return set(found)


def dead_links(page: str) -> list[str]:
    """The relative links of a page that lead to no file, or to no heading of it."""
    links = [target for target in LINK.findall(prose_of(page)) if not re.match(r"[a-z]+:", target)]
    return [target for target in links if is_dead(page, target)]


def is_dead(page: str, target: str) -> bool:
    path, _, anchor = target.partition("#")
    if not (ROOT / page).parent.joinpath(path).exists():
        return True
    return bool(anchor) and anchor not in anchors_of(goal_of(page, path) if path else page)


@pytest.mark.parametrize("page", MARKDOWN)
def test_every_relative_link_of_a_page_leads_to_a_file_and_a_heading(page: str) -> None:
    assert dead_links(page) == []


def test_a_dead_link_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = ["[a](no.md) [b](../README.md#no) [c](#no) [d](data.md#files) [e](https://x.y)", "```", "[f](no.md)", "```"]
    monkeypatch.setattr("test_navigation.prose_of", lambda page, read=prose_of: read(page) if page != "docs/x.md" else
                        outside_code("\n".join(lines), lambda text: text).replace("[f](no.md)", ""))  # fmt: skip
    assert dead_links("docs/x.md") == ["no.md", "../README.md#no", "#no"]


@pytest.mark.parametrize("language", LANGUAGES, ids=lambda language: language.name)
def test_the_contents_name_every_page_of_a_language_once(language: Language) -> None:
    written = {page for page in MARKDOWN if page.startswith("docs/") and language.owns(page)}
    listed = [page for section in sections(language).values() for page in section]
    assert written - {language.contents} == {page for page in listed if page.startswith("docs/")}
    assert len(listed) == len(set(listed))
    assert len(set(pages(language).values())) == len(pages(language))


def test_the_chapters_of_both_languages_have_one_order() -> None:
    chapters = [
        [PurePosixPath(page).name for page in pages(language) if f"{language.docs}/guide/" in page]
        for language in (ENGLISH, CHINESE)
    ]
    assert len(chapters[0]) == 22
    assert chapters[0] == chapters[1]


@pytest.mark.parametrize("language", LANGUAGES, ids=lambda language: language.name)
def test_the_start_of_the_repository_leads_to_the_contents(language: Language) -> None:
    linked = {goal_of(language.home, target) for target in LINK.findall(prose_of(language.home)) if is_path(target)}
    assert language.contents in linked


def test_every_public_name_has_one_place_in_the_reference() -> None:
    names = public_names()
    assert set(timm_accel.__all__) == set(names["timm_accel"])
    assert names["timm_accel"]["create_datasets"] == "timm_accel.data.create_datasets"
    assert names["timm_accel"]["TimmTrainer"] == "timm_accel.TimmTrainer"  # its module is no page
    assert len({home for module in names.values() for home in module.values()}) > 150
    for module, homes in names.items():
        for name, home in homes.items():
            place, _, last = home.rpartition(".")
            assert place in names or place.rpartition(".")[0] in names
            if module == place:
                continue
            assert getattr(import_module(place), last) is getattr(import_module(home.rpartition(".")[0]), name)


def test_every_name_that_a_page_imports_is_in_the_reference() -> None:
    text = "\n".join((ROOT / page).read_text() for page in MARKDOWN)
    imported = {
        (node.module, alias.name)
        for block in re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
        for node in ast.walk(ast.parse(dedent(block)))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("timm_accel")
        for alias in node.names
    }
    assert len(imported) > 30
    assert sorted(found for found in imported if found[1] not in public_names().get(found[0], {})) == []


def test_docstrings_become_restructured_text() -> None:
    lines = ["Add `MixupMixin` to `Other.name` as ``code`` or lookahead_ here.", "", "```python", "`x` = 1", "```"]
    assert as_restructured(lines) == [
        "Add :py:obj:`MixupMixin <timm_accel.mixins.MixupMixin>` to ``Other.name`` as ``code`` or lookahead\\_ here.",
        "", ".. code-block:: python", "", "   `x` = 1", "",
    ]  # fmt: skip


def test_every_example_is_in_the_list_of_examples() -> None:
    folder = ROOT / "examples"
    listed = re.findall(r"^\| \[`(.+?)`\]\((.+?)\) \| .+ \|$", (folder / "README.md").read_text(), re.MULTILINE)
    assert all(shown == target for shown, target in listed)
    files = {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*.*")
        if path.suffix in (".py", ".yaml", ".sbatch")
    }
    assert sorted(target for _, target in listed) == sorted(files)
    assert len(files) >= 15


def test_every_recipe_is_on_the_page_of_recipes() -> None:
    page = (ROOT / "docs/named_recipes.md").read_text()
    assert sorted(re.findall(r"^## (\w+):", page, re.MULTILINE)) == recipe_names()
    assert sorted(re.findall(r"figures/recipe_(\w+)\.svg", page)) == recipe_names()
