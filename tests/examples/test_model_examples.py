"""The examples of models: each runs, and writes a figure of what it shows."""

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from PIL import Image
from tiny_runs import load_example

figures = pytest.importorskip("matplotlib.figure")
pytest.importorskip("sklearn")

EXAMPLES = Path(__file__).parent.parent.parent / "examples" / "models"


def figure_of(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, **options: Any) -> Any:
    """Run an example, and return the figure that it wrote."""
    written: list[Any] = []
    save = figures.Figure.savefig

    def savefig(self: Any, *args: Any, **kwargs: Any) -> None:
        written.append(self)
        save(self, *args, **kwargs)

    monkeypatch.setattr(figures.Figure, "savefig", savefig)
    example: ModuleType = load_example(EXAMPLES / f"{name}.py")
    path = example.main(tmp_path / "figure.png", **options)
    (figure,) = written
    assert Image.open(path).size == tuple(round(inches * figure.dpi) for inches in figure.get_size_inches())
    return figure


def test_customize_shows_what_learns(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (axes,) = figure_of("customize", monkeypatch, tmp_path).axes
    grey = (0.8274509803921568,) * 3 + (1.0,)
    frozen = [
        [bar.get_facecolor() == grey for bar in axes.patches if round(bar.get_y() + 0.4) == row] for row in range(5)
    ]
    assert frozen[:3] == [[False] * 6] * 3
    assert frozen[3:] == [[True] * 4 + [False] * 2, [False] * 3 + [True, True, False]]
    heads = [bar.get_width() for bar in axes.patches][5::6]
    linear, mlp, doubled = 96 * 10 + 10, 256 * 10 + 2 * 256, 192
    assert heads == [
        pytest.approx(count / 1000) for count in (linear, mlp + 96 * 258, mlp + doubled * 258, linear + 2 * 96, linear)
    ]
    assert "layer1      18.6 thousand parameters, frozen" in capsys.readouterr().out


def test_features_shows_maps_and_vectors(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    figure = figure_of("features", monkeypatch, tmp_path, num_epochs=1)
    maps, vectors = figure.subfigs
    assert [axes.get_title() for axes in maps.axes][1::6] == [
        f"level {level}\n{size}, mean" for level, size in enumerate(["32×16×16", "32×8×8", "48×4×4"])
    ]
    assert sum(len(points.get_offsets()) for points in vectors.axes[0].collections) == 450
    assert "layer4         32        96" in capsys.readouterr().out


def test_fx_shows_nodes_within_a_block(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    figure = figure_of("fx", monkeypatch, tmp_path)
    rows = [axes.get_images()[0].get_array() for axes in figure.axes][1::6]
    assert [row.shape for row in rows] == [(80, 80), (40, 40), (40, 40), (40, 40)]
    assert all(row.std() > 0 for row in rows)
    channels = [
        [axes.get_images()[0].get_array().min() for axes in figure.axes[row * 6 + 2 : row * 6 + 6]] for row in (1, 3)
    ]
    assert max(channels[0]) < 0 <= min(channels[1])  # the branch, and what the activation lets through


@pytest.mark.parametrize("name", ["customize", "features", "fx"])
def test_the_scripts_are_short(name: str) -> None:
    assert len((EXAMPLES / f"{name}.py").read_text().splitlines()) < 80
