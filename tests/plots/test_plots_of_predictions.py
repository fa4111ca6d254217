"""Figures of predictions and of the highest losses: what they show, and what they refuse."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from trained_runs import brightness, trained_run

from timm_accel.plots import plot_predictions, plot_top_losses
from timm_accel.plots.losses import _title
from timm_accel.predict import Classifier, Scores, score_images

figures = pytest.importorskip("matplotlib.figure")

RED, GREEN, BLUE = (250, 5, 5), (5, 250, 5), (5, 5, 250)


def shown(figure: Any) -> list[Any]:
    return [axes for axes in figure.axes if axes.get_images()]


def titles(figure: Any) -> list[str]:
    return [axes.get_title() for axes in shown(figure)]


def pixels(axes: Any) -> np.ndarray:
    return np.asarray(axes.get_images()[0].get_array())


def plain(color: Any, size: tuple[int, int] = (8, 8)) -> Image.Image:
    return Image.new("RGB", size, color)


def scale_50() -> Classifier:
    """The logits are 5 times the mean red, green and blue."""
    return brightness(temperature=0.2)


# Predictions


def test_predictions_name_the_two_most_probable_classes() -> None:
    figure = plot_predictions(scale_50(), [plain(RED), plain((250, 250, 5))])
    first = torch.tensor([250, 5, 5]).div(255 * 0.2).softmax(0)
    assert titles(figure) == [f"red {first[0]:.2f}\ngreen {first[1]:.2f}", "red 0.50\ngreen 0.50"]
    assert float(first[0]) > 0.97


def test_a_second_class_of_probability_0_is_left_out() -> None:
    assert titles(plot_predictions(brightness(temperature=0.01), plain(BLUE))) == ["blue 1.00"]


def test_an_image_is_shown_as_the_model_sees_it() -> None:
    image = Image.new("RGB", (20, 10), GREEN)
    image.paste(RED, (0, 0, 5, 10))  # outside of the center crop
    figure = plot_predictions(brightness(), image)
    seen = pixels(shown(figure)[0])
    assert seen.shape == (8, 8, 3)
    assert np.array_equal((seen * 255).round().astype("uint8"), brightness().transform(image).permute(1, 2, 0).numpy())
    assert (seen[..., 0] < 0.1).all()


def test_an_image_turned_by_exif_is_shown_upright(tmp_path: Path) -> None:
    image, exif = plain(RED), Image.Exif()
    image.paste(BLUE, (0, 0, 8, 4))
    exif[0x0112] = 3  # turned by 180 degrees
    image.save(tmp_path / "a.png", exif=exif)
    seen = pixels(shown(plot_predictions(brightness(), tmp_path / "a.png"))[0])
    assert seen[-1, 0, 2] > 0.9
    assert seen[0, 0, 0] > 0.9


def test_files_are_named_and_at_most_count_are_shown_in_natural_order(tmp_path: Path) -> None:
    for number in (10, 2, 1):
        plain(GREEN).save(tmp_path / f"{number}.png")
    assert [title.splitlines()[-1] for title in titles(plot_predictions(brightness(), tmp_path, count=2))] == [
        "1.png",
        "2.png",
    ]


def test_files_of_one_name_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        plain(RED).save(tmp_path / name / "1.png")
    assert [title.splitlines()[-1] for title in titles(plot_predictions(brightness(), tmp_path))] == [
        "cat/1.png",
        "dog/1.png",
    ]


def test_an_unreadable_image_is_an_empty_cell_at_its_place(tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"no image")
    figure = plot_predictions(brightness(), [plain(RED), tmp_path / "bad.png", plain(BLUE)])
    first, second, third = titles(figure)
    assert (first[:3], second, third[:4]) == ("red", "cannot be read\nbad.png", "blue")
    assert (pixels(shown(figure)[1]) == 1).all()


@pytest.mark.parametrize("names", [["<script>alert(1)</script>"] * 2 + ["b"], ["$x_1$", "0", "a\nb"]])
def test_odd_class_names_are_drawn_as_they_are(names: list[str], tmp_path: Path) -> None:
    classifier = brightness()
    classifier.class_names = names
    figure = plot_predictions(classifier, [plain(RED), plain(GREEN), plain(BLUE)])
    figure.savefig(tmp_path / "a.png")
    assert len(shown(figure)) == 3
    assert all("\n" not in line for title in titles(figure) for line in title.split("\n"))
    assert not any(axes.title.get_parse_math() for axes in shown(figure))


def test_more_images_than_a_batch_are_each_predicted() -> None:
    images = [plain(RED)] * 17 + [plain(BLUE)]
    firsts = [title.split()[0] for title in titles(plot_predictions(brightness(), images, count=30, columns=6))]
    assert firsts == ["red"] * 17 + ["blue"]


def test_predictions_are_drawn_into_a_part_of_a_figure() -> None:
    whole = figures.Figure(layout="constrained")
    part, _ = whole.subfigures(1, 2)
    assert plot_predictions(brightness(), plain(RED), figure=part) is whole
    assert len(part.axes) == 1


def test_a_run_is_opened_by_its_path() -> None:
    trained = trained_run()
    assert len(shown(plot_predictions(trained.run, trained.data / "val", count=3))) == 3


@pytest.mark.parametrize(
    ("images", "options", "sentence"),
    [
        ([], {}, "Expected images to hold one that can be read, but got none."),
        ([b"x"], {}, r"Expected images to hold one that can be read, but got none \(image 0: "),
        (plain(RED), {"count": 0}, "Expected count to be at least 1, but got 0"),
        (plain(RED), {"columns": 0}, "Expected columns to be at least 1, but got 0"),
    ],
)
def test_predictions_refuse_what_cannot_be_shown(images: Any, options: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        plot_predictions(brightness(), images, **options)


# The highest losses


def write_colors(folder: Path) -> None:
    """Two images of each class; one of green is red, and one of blue is half green."""
    for name, colors in {"red": [RED, RED], "green": [GREEN, RED], "blue": [BLUE, (5, 200, 130)]}.items():
        (folder / name).mkdir(parents=True)
        for number, color in enumerate(colors):
            plain(color, (30, 10)).save(folder / name / f"{name}{number}.png")


def scored(folder: Path) -> Scores:
    write_colors(folder)
    return score_images(scale_50(), folder, eval_split=None)


def test_the_highest_losses_come_first_with_label_and_loss(tmp_path: Path) -> None:
    scores = scored(tmp_path)
    figure = plot_top_losses(scores, tmp_path, 3, eval_split=None)
    logits = torch.tensor([[250, 5, 5], [5, 200, 130]]).double() / (255 * 0.2)
    chances = logits.softmax(1)
    assert titles(figure)[:2] == [
        f"red {chances[0, 0]:.2f}\nis green, loss {-chances[0, 1].log():.2f}\ngreen1.png",
        f"green {chances[1, 1]:.2f}\nis blue, loss {-chances[1, 2].log():.2f}\nblue1.png",
    ]
    assert [axes.title.get_color() for axes in shown(figure)] == ["#D55E00", "#D55E00", "black"]


def test_an_image_of_the_highest_losses_is_whole_with_white_margins(tmp_path: Path) -> None:
    seen = pixels(shown(plot_top_losses(scored(tmp_path), tmp_path, 1, eval_split=None))[0])
    assert seen.shape == (224, 224, 3)
    assert (seen[0] == 1).all()
    assert np.allclose(seen[112, [0, 223]], np.array(RED) / 255)


def test_images_are_found_by_path_in_any_order_of_the_scores(tmp_path: Path) -> None:
    scores = scored(tmp_path)
    mixed = scores.take([5, 0, 3, 1, 4, 2])
    assert titles(plot_top_losses(mixed, tmp_path, 2, eval_split=None)) == titles(
        plot_top_losses(scores, tmp_path, 2, eval_split=None)
    )


def test_a_file_that_was_damaged_since_is_an_empty_cell(tmp_path: Path) -> None:
    scores = scored(tmp_path)
    (tmp_path / "green" / "green1.png").write_bytes(b"damaged")
    figure = plot_top_losses(scores, tmp_path, 1, eval_split=None)
    assert titles(figure)[0].splitlines()[2] == "cannot be read"
    assert (pixels(shown(figure)[0]) == 1).all()


def test_labels_of_a_multi_label_image_are_all_named() -> None:
    scores = Scores(["a"], torch.tensor([[1, 0, 1]]), torch.tensor([[0.9, 0.2, 0.5]]).double(), list("xyz"), [], [])
    loss = -(np.log(0.9) + np.log(0.8) + np.log(0.5)) / 3
    assert _title(scores, 0, ["x", "y", "z"], unreadable=False) == f"x 0.90\nis x, z, loss {loss:.2f}"


def test_scores_of_other_data_are_refused(tmp_path: Path) -> None:
    scores = scored(tmp_path / "a")
    write_colors(tmp_path / "b")
    with pytest.raises(ValueError, match=re.escape("but got data without")):
        plot_top_losses(scores, tmp_path / "b", eval_split=None)


def test_scores_without_images_and_other_objects_are_refused(tmp_path: Path) -> None:
    scores = scored(tmp_path)
    with pytest.raises(ValueError, match="Expected scores to have images, but got none"):
        plot_top_losses(scores.take([]), tmp_path)
    with pytest.raises(TypeError, match="Expected scores to be Scores, but got dict"):
        plot_top_losses({}, tmp_path)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="Expected count to be at least 1, but got 0"):
        plot_top_losses(scores, tmp_path, 0)
