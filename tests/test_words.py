"""The prose uses the words of the table in CONTRIBUTING.md, and no phrase of its column "do not write"."""

import ast
import re
import tokenize
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parent.parent
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()
FILES = (
    "*.md",
    "docs/**/*.md",
    "docs/**/*.py",
    "examples/README.md",
    "benchmarks/*.md",
    "tests/README.md",
    "timm_accel/**/*.py",
    "timm_accel/**/*.yaml",
    "tests/**/*.py",
    "benchmarks/*.py",
    "examples/**/*.py",
    "*.yaml",
    "examples/**/*.yaml",
)


class Rule(NamedTuple):
    """A phrase that is ruled out, its pattern, and the words to use instead."""

    phrase: str
    pattern: re.Pattern[str]
    instead: str


def rule(phrase: str, instead: str) -> Rule:
    """Compile a phrase: whole words in any case and on any lines; ``…`` stands for any ending."""
    words = re.escape(phrase.removesuffix("…")).replace(r"\ ", r"\s+")
    ending = "[a-z]*" if phrase.endswith("…") else ""
    return Rule(phrase, re.compile(rf"(?<![\w-]){words}{ending}(?!\w)", re.IGNORECASE), instead)


def rules() -> list[Rule]:
    """Read the rules from the last column of the table."""
    table = CONTRIBUTING.partition("\n## Words\n")[2].partition("\n## ")[0]
    rows = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("|")]
    assert rows[0] == ["write", "for", "do not write"]
    return [rule(phrase, row[0]) for row in rows[2:] for phrase in re.findall("`(.+?)`", row[2])]


RULES = rules()


def blanked(text: str) -> str:
    """Replace code, links' targets, paths and file names by spaces, and keep every line break."""
    for code in (
        r"```.*?```",
        r"``[^`]+``",
        r"`[^`]+`",
        r"(?<=\])\([^)\s]*\)",
        r"\S*\w/\S+",
        r"\w+\.(?:py|md|csv|png)\b",
    ):
        text = re.sub(code, lambda found: re.sub(r"\S", "\0", found[0]), text, flags=re.DOTALL)
    return text


def strings(node: ast.AST) -> Iterator[tuple[int, str]]:
    """Give the strings of a tree with their lines; the values in an f-string become ``0``."""
    if isinstance(node, ast.JoinedStr):
        parts = [part.value if isinstance(part, ast.Constant) else "0" for part in node.values]
        yield node.lineno, "".join(map(str, parts))
    elif isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.lineno, node.value
    for child in ast.iter_child_nodes(node):
        if not isinstance(node, ast.JoinedStr) or isinstance(child, ast.FormattedValue):
            yield from strings(child)


def comments(path: Path) -> Iterator[tuple[int, str]]:
    """Give the comments of a Python file with their lines; those on consecutive lines are one."""
    block: list[str] = []
    last = 0
    with tokenize.open(path) as file:
        for token in tokenize.generate_tokens(file.readline):
            if token.type == tokenize.COMMENT:
                if block and token.start[0] != last + 1:
                    yield last - len(block) + 1, "\n".join(block)
                    block = []
                block.append(token.string.lstrip("#"))
                last = token.start[0]
    if block:
        yield last - len(block) + 1, "\n".join(block)


def prose(path: Path) -> Iterator[tuple[int, str]]:
    """Give the prose of a file as (line, text): pages, comments, docstrings and other strings."""
    if path.suffix == ".py":
        yield from comments(path)
        yield from strings(ast.parse(path.read_text()))
    elif path.suffix == ".yaml":
        lines = path.read_text().splitlines()
        yield 1, "\n".join(line.partition("#")[2] for line in lines)
    else:
        yield 1, path.read_text()


def hits(path: Path) -> Iterator[tuple[int, Rule]]:
    """Give each phrase in a file that is ruled out, with its line."""
    for line, text in prose(path):
        text = blanked(text)
        for each in RULES:
            for found in each.pattern.finditer(text):
                yield line + text.count("\n", 0, found.start()), each


def files(patterns: tuple[str, ...]) -> list[Path]:
    """Return the files of some globs."""
    return sorted({path for pattern in patterns for path in ROOT.glob(pattern)})


def names(paths: list[Path]) -> list[str]:
    """Return the files relative to the root."""
    return [path.relative_to(ROOT).as_posix() for path in paths]


@pytest.mark.parametrize("name", names(files(FILES)))
def test_the_prose_of_a_file_has_no_word_that_is_ruled_out(name: str) -> None:
    path = ROOT / name
    found = [f"line {line}: {each.phrase!r}; write: {each.instead}" for line, each in hits(path)]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("pattern", FILES)
def test_every_glob_finds_a_file(pattern: str) -> None:
    assert files((pattern,))


def test_the_table_rules_out_what_it_lists_and_nothing_that_it_recommends() -> None:
    assert len(RULES) > 100
    assert len({each.phrase for each in RULES}) == len(RULES)
    for each in RULES:
        written = each.phrase.replace("…", "s").replace(" ", "\n")
        assert each.pattern.search(f"All {written.upper()}, then."), each.phrase
        assert not each.pattern.search(each.instead), each.phrase


PICTURE, COLOUR, ON = "pic" + "ture", "col" + "our", "o" + "n"  # parts, or this file would not pass


@pytest.mark.parametrize(
    ("source", "lines"),
    [
        (f'"""One.\n\nA {PICTURE}\nthat goes\n    {ON}.\n"""\n', [3, 4]),
        (f"x = 1  # {PICTURE}\n\n# go\n# {ON}\n", [1, 3]),
        (f'x = f"the {{x}} {COLOUR} of {{x}}"\n', [1]),
        (f'x = {{"{PICTURE}": 1}}\n{PICTURE}s = 2  # `{PICTURE}`, of_{PICTURE}, docs/{PICTURE}.py\n', [1]),
    ],
)
def test_docstrings_comments_and_strings_are_prose_and_names_are_not(
    source: str, lines: list[int], tmp_path: Path
) -> None:
    path = tmp_path / "module.py"
    path.write_text(source)
    assert sorted(line for line, _ in hits(path)) == lines


def test_code_in_a_page_is_not_prose(tmp_path: Path) -> None:
    path = tmp_path / "page.md"
    word = "gr" + "ey"
    path.write_text(f"`{word}`\n```python\n{word}\n```\n[gray](a/{word}.md) {word}\n")
    assert [(line, each.phrase) for line, each in hits(path)] == [(5, word + "…")]


def test_the_layers_of_the_page_are_those_of_import_linter() -> None:
    contract = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"][0]
    block = re.search(r"## Layers\n.*?```text\n(.*?)```", CONTRIBUTING, re.DOTALL)[1]
    shown = [
        re.findall(r"^(\w+)(?:/|\.py) ", part, re.MULTILINE) for part in re.split(r"^─+\n", block, flags=re.MULTILINE)
    ]
    assert [sorted(layer) for layer in shown] == [sorted(layer.split(" | ")) for layer in contract["layers"]]
