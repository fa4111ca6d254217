"""The example of sources opens each, and prints what it found."""

import runpy
from pathlib import Path

import pytest

SOURCES = Path(__file__).parents[2] / "examples" / "data" / "sources.py"


def test_every_source_has_the_digits(capsys: pytest.CaptureFixture[str]) -> None:
    sizes = runpy.run_path(str(SOURCES))["main"]()
    assert sizes == {
        "folder with train and val": (1347, 450),
        "one tar": (1347, 450),
        "manifest": (1347, 450),
        "folder without splits": (1078, 269),
    }
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == "one tar: 1347 + 450 images, the first (3, 32, 32) of class 0"
    assert lines[4].startswith("timm's ImageDataset alone: 1347 images, the first (8, 8) of class 0")
