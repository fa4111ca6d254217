"""The tests lie as the package does, and the pages that name them name files that exist."""

import re
import sys
from collections import Counter
from importlib.metadata import packages_distributions
from pathlib import Path

from conftest import LONG

TESTS = Path(__file__).parent
ROOT = TESTS.parent


def named_paths(text: str) -> list[str]:
    """What stands in backticks and is a path of this repository: it has a slash, or is a python file of tests."""
    return re.findall(r"`((?:[\w.]+/)+(?:\w+\.\w+)?|(?:test_\w+|conftest|\w+_runs|refusal)\.py)`", text)


def missing(page: str) -> list[str]:
    """The paths on a page that exist nowhere."""
    paths = named_paths((ROOT / page).read_text())
    assert len(paths) > 20  # the pages are tables of them
    return [path for path in paths if not any((top / path).exists() for top in (TESTS, ROOT, ROOT / "timm_accel"))]


def test_every_folder_of_the_package_has_one_of_its_name_here() -> None:
    rooms = {path.parent.name for path in (ROOT / "timm_accel").glob("*/*.py")}
    assert len(rooms) > 10
    assert sorted(room for room in rooms if not list((TESTS / room).glob("**/test_*.py"))) == []


def test_every_path_that_a_page_names_exists() -> None:
    assert missing("docs/traps.md") == []
    assert missing("tests/README.md") == []


def test_every_file_of_the_tests_has_a_name_of_its_own() -> None:
    """They are imported by their base name, so that one of two would be taken for the other."""
    names = [path.stem for path in TESTS.rglob("*.py")]
    others = {*sys.stdlib_module_names, *packages_distributions()}
    assert [name for name, count in Counter(names).items() if count > 1 or name in others] == []


def test_the_files_that_begin_first_exist() -> None:
    assert [name for name in LONG if not list(TESTS.rglob(f"{name}.py"))] == []
