"""Names in figures: a font that has their characters, or their number and one line; long ones and many of them."""

import io
import logging
import os
import warnings
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from refusal import refused
from timm.data.auto_augment import AugmentOp
from torchvision.transforms import ColorJitter, RandomHorizontalFlip, ToTensor
from trained_runs import draw_image

from timm_accel.plots import (
    plot_augmentations,
    plot_batch,
    plot_confusion,
    plot_feature_maps,
    plot_schedule,
    plot_transform,
)
from timm_accel.plots import text as text_module
from timm_accel.predict import ClassMeasures, Evaluation
from timm_accel.schedules import simulate_schedule

figures = pytest.importorskip("matplotlib.figure")

CHINESE = ["猫", "狗", "猫头鹰"]
NOT_UTF_8 = os.fsdecode(b"caf\xe9")


@pytest.fixture(autouse=True)
def no_cjk_font(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Only matplotlib's own fonts are known, whatever this machine has."""
    from matplotlib.font_manager import fontManager

    own = [each for each in fontManager.ttflist if "mpl-data" in each.fname]
    monkeypatch.setattr(fontManager, "ttflist", own)
    text_module._find.cache_clear()
    yield
    text_module._find.cache_clear()


@pytest.fixture
def cjk_font(tmp_path: Path) -> str:
    """A font with boxes for the Chinese names, known to matplotlib."""
    pytest.importorskip("fontTools")
    from fontTools.fontBuilder import FontBuilder
    from fontTools.pens.ttGlyphPen import TTGlyphPen
    from matplotlib.font_manager import fontManager

    builder = FontBuilder(1000)
    letters = {ord(letter): f"u{ord(letter):x}" for letter in "".join(CHINESE)}
    pen = TTGlyphPen(None)
    pen.moveTo((0, 0))
    for point in ((0, 800), (800, 800), (800, 0)):
        pen.lineTo(point)
    pen.closePath()
    names = [".notdef", *letters.values()]
    builder.setupGlyphOrder(names)
    builder.setupCharacterMap(letters)
    builder.setupGlyf(dict.fromkeys(names, pen.glyph()))
    builder.setupHorizontalMetrics(dict.fromkeys(names, (900, 0)))
    builder.setupHorizontalHeader(ascent=900, descent=-100)
    builder.setupNameTable({"familyName": "Boxes", "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(tmp_path / "boxes.ttf")
    fontManager.addfont(tmp_path / "boxes.ttf")
    text_module._find.cache_clear()
    return "Boxes"


def evaluation(names: list[str]) -> Evaluation:
    matrix = np.eye(len(names), dtype=int).tolist()
    return Evaluation({}, [ClassMeasures(name, 1, 1, 1, 1) for name in names], matrix, [], 0, [], 1.0, ())


def drawn(figure: Any) -> Any:
    """Draw a figure; a missing glyph is a warning, so an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure.savefig(io.BytesIO(), dpi=40)
    return figure


def labels(figure: Any) -> list[str]:
    return [label.get_text() for label in drawn(figure).axes[0].get_yticklabels()]


def test_names_that_no_font_has_become_numbers_and_one_line(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert labels(plot_confusion(evaluation(["cat", *CHINESE]))) == ["cat", "1", "2", "3"]
    (line,) = caplog.messages
    assert "3 names" in line
    assert "1 '猫', 2 '狗', 3 '猫头鹰'" in line
    assert "\n" not in line


def test_a_font_that_has_them_draws_them(cjk_font: str, caplog: pytest.LogCaptureFixture) -> None:
    figure = plot_confusion(evaluation([*CHINESE, "café"]))
    assert labels(figure) == [*CHINESE, "café"]
    assert cjk_font in figure.axes[0].get_yticklabels()[0].get_fontfamily()
    assert not caplog.messages


def test_a_font_that_has_only_some_leaves_the_others_to_numbers(cjk_font: str) -> None:
    assert labels(plot_confusion(evaluation(["猫", "龘", "猫龘", "cat"]))) == ["猫", "1", "2", "cat"]


def all_figures(names: list[str]) -> dict[str, Any]:
    images, targets = torch.rand(3, 3, 8, 8), torch.tensor([0, 1, 2])
    schedule = simulate_schedule({"sched": "cosine"}, lr=0.1, num_epochs=3, updates_per_epoch=2)
    return {
        "confusion": plot_confusion(evaluation(names)),
        "batch": plot_batch(images, targets, names),
        "soft labels": plot_batch(images, torch.full((3, 3), 1 / 3), names),
        "feature maps": plot_feature_maps({name: torch.rand(1, 2, 4, 4) for name in names}),
        "schedules": plot_schedule(dict.fromkeys(names, schedule)),
    }


@pytest.mark.parametrize(
    "names",
    [
        CHINESE,
        ["ねこ", "고양이", "cat"],
        [NOT_UTF_8, "two\nlines", "tab\there"],
        ["$x_1$", "50 %", "a_b^c"],
        ["\x00", "\u200b", "\ue000"],
        ["", " ", "𝔘𝔫𝔦"],
        ["مرحبا", "😀", "👩‍👩‍👧"],
    ],
)
def test_every_figure_draws_every_name_without_a_warning(names: list[str]) -> None:
    for figure in all_figures(names).values():
        drawn(figure)


def test_every_figure_has_the_chinese_names(cjk_font: str) -> None:
    for kind, figure in all_figures(CHINESE).items():
        texts = " ".join(text.get_text() for text in drawn(figure).findobj(text_of))
        assert all(name in texts for name in (CHINESE[:2] if kind == "soft labels" else CHINESE)), kind


def text_of(artist: Any) -> bool:
    from matplotlib.text import Text

    return isinstance(artist, Text)


def test_a_name_that_is_not_utf_8_is_shown_escaped() -> None:
    assert labels(plot_confusion(evaluation([NOT_UTF_8, "b"]))) == [r"caf\udce9", "b"]


def test_long_names_are_cut_and_stay_apart() -> None:
    long = "a name that is much longer than its place"
    assert labels(plot_confusion(evaluation([long, "b"]))) == ["a name that is much lon…", "b"]
    assert labels(plot_confusion(evaluation([f"{long} 0", f"{long} 1"]))) == [
        "0 a name that is much l…",
        "1 a name that is much l…",
    ]


def test_a_wide_letter_counts_as_two(cjk_font: str) -> None:
    assert labels(plot_confusion(evaluation(["猫" * 12, "狗" * 13]))) == ["猫" * 12, "狗" * 11 + "…"]


@pytest.mark.parametrize(("count", "step"), [(1, 1), (40, 1), (41, 2), (200, 5), (1000, 25)])
def test_many_classes_have_at_most_40_names(count: int, step: int) -> None:
    figure = plot_confusion(evaluation([f"class {number}" for number in range(count)]))
    names = [f"class {number}" for number in range(0, count, step)]
    assert labels(figure) == names
    assert len(names) <= 40
    boxes = [label.get_window_extent() for label in figure.axes[0].get_yticklabels()]
    assert not any(one.overlaps(other) for one, other in pairwise(boxes))


def shown(figure: Any) -> list[tuple[str, np.ndarray]]:
    return [
        (axes.get_title(), np.asarray(axes.get_images()[0].get_array()))
        for axes in drawn(figure).axes
        if axes.get_images()
    ]


def test_one_transform_is_drawn_on_one_image(tmp_path: Path) -> None:
    image = draw_image(0, 0)
    image.save(tmp_path / "a.png")
    for given in (image, tmp_path / "a.png", str(tmp_path / "a.png")):
        (first, original), *draws = shown(plot_transform(given, RandomHorizontalFlip(), count=8, seed=3))
        assert (first, [title for title, _ in draws]) == ("original", [f"draw {number}" for number in range(8)])
        pixels = np.asarray(image) / np.float32(255)
        assert np.array_equal(original, pixels)
        flipped = [np.array_equal(draw, pixels[:, ::-1]) for _, draw in draws]
        assert 0 < sum(flipped) < 8
        assert all(np.array_equal(draw, pixels) for (_, draw), turned in zip(draws, flipped, strict=True) if not turned)


@pytest.mark.parametrize("policy", ["rand-m9-mstd0.5-inc1", "augmix-m5", "original", "3a"])
def test_a_policy_of_timm_is_drawn_by_its_name(policy: str) -> None:
    (_, original), *draws = shown(plot_transform(draw_image(0, 0), policy, count=4))
    assert len(draws) == 4
    assert any(not np.array_equal(original, draw) for _, draw in draws)
    assert all(draw.shape == original.shape for _, draw in draws)


@pytest.mark.parametrize("transform", [AugmentOp("Rotate", prob=1.0, magnitude=9), ColorJitter(0.5), ToTensor()])
def test_any_transform_of_an_image_is_drawn_and_the_seed_decides(transform: Any) -> None:
    image = draw_image(0, 0)
    before = np.asarray(image).copy()
    first, second = (shown(plot_transform(image, transform, count=3, seed=5)) for _ in range(2))
    assert all(np.array_equal(one, other) for (_, one), (_, other) in zip(first, second, strict=True))
    assert np.array_equal(np.asarray(image), before)


def test_the_image_is_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    draw_image(0, 0).save(tmp_path / "a.jpg", exif=exif)
    assert shown(plot_transform(tmp_path / "a.jpg", ColorJitter(), count=1))[0][1].shape == (40, 56, 3)


def test_what_is_no_transform_or_image_is_refused(tmp_path: Path) -> None:
    with refused(ValueError, "Expected auto_augment to begin with", "'rnd-m9'", "Did you mean 'rand'"):
        plot_transform(draw_image(0, 0), "rnd-m9")
    with refused(TypeError, "Expected transform to be a function of an image", "got None"):
        plot_transform(draw_image(0, 0), None)  # type: ignore[arg-type]
    with refused(ValueError, "Expected count to be at least 1"):
        plot_transform(draw_image(0, 0), ColorJitter(), count=0)
    (tmp_path / "a.png").write_bytes(b"broken")
    with pytest.raises(OSError, match="no image of a kind that Pillow knows"):
        plot_transform(tmp_path / "a.png", ColorJitter())
    with pytest.raises(FileNotFoundError):
        plot_transform(tmp_path / "nope.png", ColorJitter())


class Samples(torch.utils.data.Dataset):
    """Three images with a transform and Chinese classes."""

    classes = CHINESE

    def __init__(self) -> None:
        self.transform = lambda image: image

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.transform(torch.rand(3, 8, 8)), index


def test_a_chinese_name_stands_above_the_original(cjk_font: str) -> None:
    assert shown(plot_augmentations(Samples(), 1, 1))[0][0] == "original: 狗"


def test_a_name_that_no_font_has_is_a_number_above_the_original() -> None:
    assert shown(plot_augmentations(Samples(), 1, 1))[0][0] == "original: 1"
