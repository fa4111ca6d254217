"""The examples that write figures of data."""

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from PIL import Image
from tiny_runs import load_example

figures = pytest.importorskip("matplotlib.figure")
pytest.importorskip("sklearn")

EXAMPLES = Path(__file__).parent.parent.parent / "examples" / "data"


def load(name: str) -> ModuleType:
    return load_example(EXAMPLES / f"{name}.py")


def rows_of(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, list[Any]]:
    """Run an example, look at what it wrote, and return the axes of each part of its figure by the part's title."""
    kept: list[Any] = []

    class Kept(figures.Figure):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            kept.append(self)

    example = load(name)
    monkeypatch.setattr(example, "Figure", Kept)
    path = example.main(tmp_path / "figure.png")
    assert path == tmp_path / "figure.png"
    assert [file.name for file in tmp_path.iterdir()] == ["figure.png"]
    (figure,) = kept
    assert Image.open(path).size == tuple(round(inches * figure.dpi) for inches in figure.get_size_inches())
    _assert_titles_are_readable(figure)
    return {row.get_suptitle(): [axes for axes in row.axes if axes.get_images()] for row in figure.subfigs}


def _assert_titles_are_readable(figure: Any) -> None:
    boxes = [axes.title.get_window_extent() for axes in figure.axes if axes.get_images()]
    boxes += [row._suptitle.get_window_extent() for row in figure.subfigs]
    pictures = [axes.get_window_extent() for axes in figure.axes if axes.get_images()]
    for number, box in enumerate(boxes):
        assert figure.bbox.x0 <= box.x0 < box.x1 <= figure.bbox.x1
        assert figure.bbox.y0 <= box.y0 < box.y1 <= figure.bbox.y1
        assert not any(box.overlaps(other) for other in boxes[number + 1 :] + pictures)


def pixels(axes: Any) -> Any:
    return axes.get_images()[0].get_array()


def test_augmentation_shows_crops_and_magnitudes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    rows = rows_of("augmentation", monkeypatch, tmp_path)
    assert len(rows) == 5
    assert [title for title in rows if "80" in title] == ["random crop of 80 to 100 %"]
    for title, row in rows.items():
        assert [axes.get_title() for axes in row] == ["original", *(f"draw {number}" for number in range(6))]
        assert all(pixels(axes).shape == ((224, 224, 3) if "crop" in title else (427, 640, 3)) for axes in row[1:])
        assert pixels(row[0]).shape == (427, 640, 3)
    changed = [  # the same operation at each magnitude, so the same draws change
        [abs(pixels(axes) - pixels(row[0])).max() > 0 for axes in row]
        for title, row in rows.items()
        if "RandAugment" in title
    ]
    assert changed[0] == changed[1] == changed[2]
    assert sum(changed[0]) >= 4


def test_mixup_shows_each_mode(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    batch, *modes = rows_of("mixup", monkeypatch, tmp_path).items()
    assert [axes.get_title() for axes in batch[1]] == ["china", "china", "flower", "flower"]
    shares = {title.split(":")[0]: [_share_of_china(axes.get_title()) for axes in row] for title, row in modes}
    assert list(shares) == ["batch", "pair", "elem", "half"]
    one, pair, each = shares["batch"], shares["pair"], shares["elem"]
    assert one == [one[0]] * 2 + [round(1 - one[0], 2)] * 2  # one draw for all
    assert pair == [*pair[:2], round(1 - pair[1], 2), round(1 - pair[0], 2)]  # one for two
    assert pair[0] != pair[1]
    assert len({*each, *(round(1 - share, 2) for share in each)}) == 8  # one for each
    assert len(shares["half"]) == 2


def _share_of_china(title: str) -> float:
    (share,) = (part.split(" ")[1] for part in title.split(", ") if part.startswith("china "))
    return float(share)


@pytest.mark.parametrize("name", ["augmentation", "mixup"])
def test_the_scripts_are_short(name: str) -> None:
    assert len((EXAMPLES / f"{name}.py").read_text().splitlines()) < 60
