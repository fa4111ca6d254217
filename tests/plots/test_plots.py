"""Figures of batches, augmentations and mixed images: what they show, and what they refuse."""

import random
import sys
from importlib import import_module
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from refusal import refused
from timm.data import FastCollateMixup, ImageDataset, IterableImageDataset, Mixup, create_transform
from tiny_runs import fit, make_trainer, tiny_model
from torch import nn
from torch.utils.data import Subset, TensorDataset
from torchvision.datasets import FakeData
from torchvision.transforms import ColorJitter, Compose, ToTensor, v2

from timm_accel.data import create_datasets
from timm_accel.data.seeding import SampleKey, SeededDataset
from timm_accel.mixins import MixupMixin
from timm_accel.plots import plot_augmentations, plot_batch, plot_mixup

figures = pytest.importorskip("matplotlib.figure")

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
NAMES = ["cat", "dog", "owl"]


def shown(figure: Any) -> list[Any]:
    """The axes that hold an image, in order; the rest of the grid is empty."""
    return [axes for axes in figure.axes if axes.get_images()]


def titles(figure: Any) -> list[str]:
    return [axes.get_title() for axes in shown(figure)]


def pixels(figure: Any) -> list[torch.Tensor]:
    """The images of a figure as ``(H, W, C)`` or ``(H, W)``."""
    return [torch.as_tensor(np.asarray(axes.get_images()[0].get_array())) for axes in shown(figure)]


def columns(figure: Any) -> int:
    return figure.axes[0].get_subplotspec().get_gridspec().ncols


def same_pixels(one: Any, other: Any) -> bool:
    return all(torch.equal(a, b) for a, b in zip(pixels(one), pixels(other), strict=True))


def raw_images(count: int = 5, channels: int = 3, height: int = 12, width: int = 16) -> torch.Tensor:
    return torch.randint(0, 256, (count, channels, height, width), dtype=torch.uint8)


def normalize(images: torch.Tensor, mean: Any = MEAN, std: Any = STD) -> torch.Tensor:
    return (images / 255 - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]


# A batch


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", ["bytes", "unit", "normalized", "bfloat16"])
def test_a_batch_is_put_back_to_its_pixels(channels: int, kind: str) -> None:
    raw = raw_images(channels=channels)
    mean, std = MEAN[:channels], STD[:channels]
    images = {
        "bytes": raw,
        "unit": raw / 255,
        "normalized": normalize(raw, mean, std),
        "bfloat16": (raw / 255).bfloat16(),
    }[kind]
    given = {"mean": mean, "std": std} if kind == "normalized" else {}
    before = images.clone()
    figure = plot_batch(images, torch.arange(5), **given)
    assert len(pixels(figure)) == 5
    for picture, original in zip(pixels(figure), raw, strict=True):
        expected = original.permute(1, 2, 0).squeeze(2) / 255
        assert picture.shape == expected.shape
        assert (picture - expected).abs().max() <= 1 / 255
    assert torch.equal(images, before)


def test_gray_is_shown_from_black_to_white_whatever_its_range() -> None:
    image = shown(plot_batch(torch.full((1, 1, 4, 4), 0.5), torch.tensor([0])))[0].get_images()[0]
    assert image.get_clim() == (0, 1)
    assert image.get_cmap().name == "gray"


@pytest.mark.parametrize("channels", [1, 3])
def test_noise_beyond_black_and_white_is_cut_off(channels: int) -> None:
    mean, std = MEAN[:channels], STD[:channels]
    noise = normalize(raw_images(1, channels), mean, std) + 10
    assert pixels(plot_batch(noise, torch.tensor([0]), mean=mean, std=std))[0].eq(1).all()


def test_labels_are_numbers_until_they_have_names() -> None:
    images, labels = raw_images(3), torch.tensor([2, 0, 1])
    assert titles(plot_batch(images, labels)) == ["2", "0", "1"]
    assert titles(plot_batch(images, labels, NAMES)) == ["owl", "cat", "dog"]
    assert titles(plot_batch(images, labels, [*NAMES, "unseen"])) == ["owl", "cat", "dog"]


def test_soft_labels_name_the_two_largest() -> None:
    soft = torch.tensor([[0.7, 0.3, 0.0], [0.1, 0.25, 0.65], [0.0, 1.0, 0.0], [0.001, 0.001, 0.998]])
    assert titles(plot_batch(raw_images(4), soft, NAMES)) == [
        "cat 0.7, dog 0.3",
        "owl 0.65, dog 0.25",
        "dog 1",
        "owl 1",
    ]
    assert titles(plot_batch(raw_images(4), soft)) == ["0: 0.7, 1: 0.3", "2: 0.65, 1: 0.25", "1: 1", "2: 1"]
    assert titles(plot_batch(raw_images(1), torch.tensor([[1.0]]), ["cat"])) == ["cat 1"]


def test_titles_stay_inside_the_figure_and_apart() -> None:
    names = [
        "West Highland white terrier of the north",
        r"no $\formula$",
        "Staffordshire bullterrier, Staffordshire bull",
    ]
    for targets in (torch.tensor([0, 1, 2, 0, 2, 0, 2, 0, 2]), torch.rand(9, 3).softmax(1)):
        figure = plot_batch(raw_images(9, height=8, width=8), targets, names)
        figure.draw_without_rendering()
        boxes = [axes.title.get_window_extent() for axes in shown(figure)]
        assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))
        assert all(figure.bbox.x0 <= box.x0 < box.x1 <= figure.bbox.x1 for box in boxes)
        assert all(figure.bbox.y0 <= box.y0 < box.y1 <= figure.bbox.y1 for box in boxes)
        assert not any(box.overlaps(axes.bbox) for box in boxes for axes in shown(figure))
        assert all(axes.bbox.width > 0.94 * figure.bbox.width / columns(figure) for axes in shown(figure))


@pytest.mark.parametrize(("height", "width"), [(8, 32), (32, 8)])
def test_images_are_not_distorted(height: int, width: int) -> None:
    figure = plot_batch(raw_images(4, height=height, width=width), torch.arange(4))
    figure.draw_without_rendering()
    for axes in shown(figure):
        box = axes.get_position().transformed(figure.transSubfigure)
        assert box.height / box.width == pytest.approx(height / width, rel=0.01)


@pytest.mark.parametrize(("count", "expected"), [(1, 1), (8, 8), (9, 5), (16, 8), (20, 7)])
def test_rows_are_of_equal_length_unless_the_columns_are_given(count: int, expected: int) -> None:
    images, labels = raw_images(count, height=2, width=2), torch.arange(count)
    assert columns(plot_batch(images, labels)) == expected
    assert columns(plot_batch(images, labels, columns=6)) == 6


def test_figures_stay_out_of_pyplot_and_can_be_saved(tmp_path: Path) -> None:
    pyplot = import_module("matplotlib.pyplot")
    before = pyplot.get_fignums()
    figure = plot_batch(raw_images(2), torch.arange(2))
    assert isinstance(figure, figures.Figure)
    figure.savefig(tmp_path / "batch.png")
    assert Image.open(tmp_path / "batch.png").width == round(figure.get_figwidth() * figure.dpi)
    assert pyplot.get_fignums() == before


def test_a_figure_is_drawn_into_and_a_part_of_one_too() -> None:
    figure = figures.Figure(layout="constrained")
    left, right = figure.subfigures(1, 2)
    assert plot_batch(raw_images(2), torch.arange(2), figure=left) is figure
    assert plot_batch(raw_images(3), torch.arange(3), figure=right) is figure
    assert (len(shown(left)), len(shown(right)), len(shown(figure))) == (2, 3, 5)


@pytest.mark.parametrize(
    ("images", "kind", "words"),
    [
        (np.zeros((2, 3, 4, 4)), TypeError, ("images to be a tensor", "ndarray")),
        (torch.zeros(3, 4, 4), ValueError, ("images to be a batch", "(3, 4, 4)", "image[None]")),
        (torch.zeros(2, 4, 4, 3), ValueError, ("1 or 3 channels", "(2, 4, 4, 3)")),
        (torch.zeros(0, 3, 4, 4), ValueError, ("images to be a batch", "(0, 3, 4, 4)")),
        (torch.full((2, 3, 4, 4), -0.5), ValueError, ("images to be from 0 to 1", "-0.5", "Pass the mean")),
        (torch.full((2, 3, 4, 4), 1.5), ValueError, ("images to be from 0 to 1", "1.5", "Pass the mean")),
        (torch.full((2, 3, 4, 4), torch.nan), ValueError, ("images to be finite",)),
        (torch.full((2, 3, 4, 4), torch.inf), ValueError, ("images to be finite",)),
        (torch.tensor([0.5, -torch.inf]).expand(2, 3, 4, 2), ValueError, ("images to be finite",)),
    ],
)
def test_what_is_no_batch_is_refused(images: Any, kind: type[Exception], words: tuple[str, ...]) -> None:
    with refused(kind, "Expected", *words):
        plot_batch(images, torch.tensor([0, 1]))


@pytest.mark.parametrize(
    ("targets", "kind", "words"),
    [
        ([0, 1], TypeError, ("targets to be a tensor", "list")),
        (torch.tensor(0), ValueError, ("targets to be integers (2,)", "()")),
        (torch.arange(3), ValueError, ("targets to be integers (2,)", "since there are 2 images", "(3,)")),
        (torch.rand(3, 2), ValueError, ("soft labels (2, num_classes)", "(3, 2)")),
        (torch.tensor([0.0, 1.0]), ValueError, ("targets to be integers", "float32")),
        (torch.rand(2, 0), ValueError, ("soft labels (2, num_classes)", "(2, 0)")),
        (torch.tensor([0, -1]), ValueError, ("labels from 0", "-1")),
    ],
)
def test_targets_of_another_shape_are_refused(targets: Any, kind: type[Exception], words: tuple[str, ...]) -> None:
    with refused(kind, "Expected", *words):
        plot_batch(raw_images(2), targets)


@pytest.mark.parametrize("targets", [torch.tensor([0, 2]), torch.rand(2, 3)])
def test_too_few_class_names_are_refused(targets: torch.Tensor) -> None:
    with refused(ValueError, "Expected class_names to name each of 3 classes", "got 2 names"):
        plot_batch(raw_images(2), targets, NAMES[:2])


def test_too_many_class_names_for_soft_labels_are_refused() -> None:
    with refused(ValueError, "Expected class_names to name each of 2 classes", "got 3 names"):
        plot_batch(raw_images(2), torch.rand(2, 2), NAMES)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"mean": MEAN}, "std"),
        ({"std": STD}, "mean"),
        ({"mean": MEAN[:1], "std": STD}, "mean"),
        ({"mean": MEAN, "std": 0.5}, "std"),
    ],
)
def test_mean_and_std_come_together_and_for_every_channel(options: dict[str, Any], word: str) -> None:
    with refused(ValueError, f"Expected {word} to be one number for each channel, 3 in all", "Pass mean and std"):
        plot_batch(normalize(raw_images(2)), torch.arange(2), **options)


def test_no_columns_are_refused() -> None:
    with refused(ValueError, "Expected columns to be at least 1", "0"):
        plot_batch(raw_images(2), torch.arange(2), columns=0)


def test_matplotlib_is_needed_by_the_call_alone_and_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "timm_accel.plots")
    plots = import_module("timm_accel.plots")
    monkeypatch.setattr("timm_accel.plots", plots)  # restored at the end
    with refused(ModuleNotFoundError, "Expected the extra 'plots'", 'pip install "timm_accel[plots]"'):
        plots.plot_batch(raw_images(1), torch.tensor([0]))


# One image, many draws


@pytest.fixture
def train_set(image_folder: Path) -> Any:
    return create_datasets(12, MEAN, STD, image_folder / "train", image_folder / "val", re_prob=0.5)[0]


def test_the_original_is_first_and_the_draws_are_those_of_a_run(train_set: Any, image_folder: Path) -> None:
    figure = plot_augmentations(train_set, 8, count=5, seed=3)
    original, *draws = pixels(figure)
    file = np.asarray(Image.open(image_folder / "train" / "dog" / "001.png"))
    assert (original - torch.tensor(file) / 255).abs().max() <= 1 / 255
    samples = SeededDataset(train_set, 3)
    for epoch, draw in enumerate(draws):
        image = train_set.device_transform(samples[SampleKey(epoch, 8, 8)][0])
        back = image * torch.tensor(STD)[:, None, None] + torch.tensor(MEAN)[:, None, None]
        assert (draw - back.clamp(0, 1).permute(1, 2, 0)).abs().max() <= 1 / 255
    assert titles(figure) == ["original: dog", "draw 0", "draw 1", "draw 2", "draw 3", "draw 4"]
    assert len({draw.numpy().tobytes() for draw in draws}) == 5


def test_augmentations_repeat_by_the_seed(train_set: Any) -> None:
    first = plot_augmentations(train_set, 0, seed=1)
    random.seed(7)
    assert same_pixels(first, plot_augmentations(train_set, 0, seed=1))
    assert same_pixels(first, plot_augmentations(SeededDataset(train_set, 5), 0, seed=1))
    assert not same_pixels(first, plot_augmentations(train_set, 0, seed=2))
    assert len(shown(first)) == 9


def test_figures_leave_the_random_state_and_the_dataset_as_they_were(train_set: Any) -> None:
    def state() -> tuple[Any, ...]:
        return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()

    images, transform, before = raw_images(4), train_set.transform, state()
    plot_augmentations(train_set, 0)
    plot_mixup(images, torch.arange(4), Mixup(num_classes=4))
    assert state() == before
    assert train_set.transform is transform


def test_images_that_a_transform_leaves_as_pil_or_bytes_are_shown(image_folder: Path) -> None:
    for transform in (ColorJitter(0.0), lambda image: np.asarray(image).transpose(2, 0, 1)):
        original, *draws = pixels(plot_augmentations(ImageDataset(str(image_folder / "train"), transform=transform), 4))
        assert all(torch.equal(draw, original) for draw in draws)
    prefetched = create_transform(8, use_prefetcher=True)  # integers in an array
    figure = plot_augmentations(ImageDataset(str(image_folder / "train"), transform=prefetched), 4, count=1)
    assert [tuple(picture.shape) for picture in pixels(figure)] == [(16, 16, 3), (8, 8, 3)]


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA"])
def test_originals_of_any_mode_are_shown(mode: str) -> None:
    picture = Image.fromarray(raw_images(1)[0].permute(1, 2, 0).numpy()).convert(mode)

    class Pictures:
        transform = ToTensor()

        def __len__(self) -> int:
            return 1

        def __getitem__(self, index: int) -> Any:
            return self.transform(picture.convert("RGB")) if type(self.transform) is ToTensor else picture

    original = pixels(plot_augmentations(Pictures(), 0, count=1))[0]
    expected = np.asarray(picture if mode == "L" else picture.convert("RGB"))
    assert torch.equal(original, torch.tensor(expected) / 255)


def test_torchvisions_datasets_and_its_second_transforms_work() -> None:
    steps = v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)])
    original, draw = pixels(plot_augmentations(FakeData(3, (3, 8, 8), transform=steps), 1, count=1))
    assert (original - draw).abs().max() <= 1 / 255

    class Joint(FakeData):  # as those for segmentation do
        def __getitem__(self, index: int) -> Any:
            image, label = super().__getitem__(index)
            return self.transforms(image, label) if self.transforms is not None else (image, label)

    joint = Joint(3, (3, 8, 8), transform=lambda image: image.rotate(90))
    original, draw = pixels(plot_augmentations(joint, 1, count=1))
    assert torch.equal(draw, original.rot90(2))


def test_mean_and_std_of_a_transform_of_ones_own_can_be_given() -> None:
    plain = ToTensor()
    dataset = FakeData(2, (3, 8, 8), transform=lambda image: normalize(plain(image) * 255))
    original, draw = pixels(plot_augmentations(dataset, 0, count=1, mean=MEAN, std=STD))
    assert (original - draw).abs().max() <= 1 / 255
    with refused(ValueError, "Expected images to be from 0 to 1 without mean and std"):
        plot_augmentations(dataset, 0, count=1)


@pytest.mark.parametrize("index", [-1, 19])
def test_an_index_out_of_range_is_refused(train_set: Any, index: int) -> None:
    with refused(IndexError, "Expected index to be from 0 to 18", f"got {index}."):
        plot_augmentations(train_set, index)


def test_no_draw_is_refused(train_set: Any) -> None:
    with refused(ValueError, "Expected count to be at least 1", "got 0"):
        plot_augmentations(train_set, 0, count=0)


def test_a_dataset_without_draws_is_refused(train_set: Any, image_folder: Path) -> None:
    for dataset in (FakeData(2), Subset(train_set, [0]), TensorDataset(torch.zeros(2, 3, 4, 4))):
        with refused(
            TypeError, "Expected dataset to have a transform", type(dataset).__name__, "Subset this is its .dataset"
        ):
            plot_augmentations(dataset, 0)
    iterable = IterableImageDataset(str(image_folder / "train"), reader=train_set.reader, transform=ToTensor())
    with refused(TypeError, "Expected dataset to be map-style", "IterableImageDataset", "plot_batch"):
        plot_augmentations(iterable, 0)
    with refused(TypeError, "Expected the dataset to yield images", "str", "PIL image"):
        plot_augmentations(FakeData(2, transform=Compose([str])), 0)


# Mixed images


@pytest.mark.parametrize("mode", ["batch", "pair", "elem"])
@pytest.mark.parametrize("which", [{"mixup_alpha": 1.0}, {"mixup_alpha": 0.0, "cutmix_alpha": 1.0}])
def test_mixed_images_and_labels_are_timms(mode: str, which: dict[str, float]) -> None:
    raw, labels = raw_images(6), torch.tensor([0, 1, 2, 1, 0, 0])
    images = normalize(raw)
    before = images.clone()
    mixup = Mixup(**which, mode=mode, num_classes=3, label_smoothing=0.0)
    figure = plot_mixup(images, labels, mixup, NAMES, mean=MEAN, std=STD, seed=4)
    assert torch.equal(images, before)
    own = raw / 255
    for number, (picture, title) in enumerate(zip(pixels(figure), titles(figure), strict=True)):
        first, second = (own[i].permute(1, 2, 0) for i in (number, 5 - number))
        if "cutmix_alpha" in which:  # the share is that of the area
            near = (picture - first).abs().amax(2) <= 1 / 255
            assert (near | ((picture - second).abs().amax(2) <= 1 / 255)).all()
            share = near.float().mean()
        else:  # the share is that of the brightness
            share = ((picture - second) * (first - second)).sum() / (first - second).pow(2).sum()
            assert (picture - share * first - (1 - share) * second).abs().max() <= 1 / 255
        name, partner = NAMES[labels[number]], NAMES[labels[5 - number]]
        shares = {part.split(" ")[0]: float(part.split(" ")[1]) for part in title.split(", ")}
        assert shares.keys() <= {name, partner}
        assert shares.get(name, 0.0) == pytest.approx(1.0 if name == partner else float(share), abs=0.02)


def test_half_shows_one_image_of_each_pair_through_the_collate_function() -> None:
    raw, labels = raw_images(6), torch.tensor([0, 1, 2, 1, 0, 0])
    before = raw.clone()
    options = {"mixup_alpha": 0.0, "cutmix_alpha": 1.0, "label_smoothing": 0.0, "num_classes": 3}
    half = plot_mixup(raw, labels, FastCollateMixup(mode="half", **options), NAMES)
    pair = plot_mixup(raw, labels, Mixup(mode="pair", **options), NAMES)  # makes the same draws
    assert len(pixels(half)) == 3
    assert titles(half) == titles(pair)[:3]
    assert all((a - b).abs().max() <= 1 / 255 for a, b in zip(pixels(half), pixels(pair), strict=False))
    assert torch.equal(raw, before)


def test_mixed_images_repeat_by_the_seed() -> None:
    arguments = (raw_images(4), torch.arange(4), Mixup(num_classes=4, mode="elem"))
    first = plot_mixup(*arguments, seed=1)
    np.random.seed(7)
    assert same_pixels(first, plot_mixup(*arguments, seed=1))
    assert not same_pixels(first, plot_mixup(*arguments, seed=2))


def test_mixed_images_are_those_of_the_first_batch_of_a_run() -> None:
    seen: dict[str, torch.Tensor] = {}

    class Watched(MixupMixin):
        def calculate_train_batch_loss(self, batch: Any) -> dict[str, Any]:
            seen.setdefault("images", batch[0].clone())
            seen.setdefault("labels", batch[1].clone())
            return super().calculate_train_batch_loss(batch)

    class Watching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = tiny_model()

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            seen.setdefault("mixed", images.detach().clone())
            return self.model(images)

    mixup_args = {"mixup_alpha": 1.0, "cutmix_alpha": 1.0, "mode": "elem", "num_classes": 3}
    data = TensorDataset(torch.rand(8, 3, 8, 8), torch.arange(8) % 3)
    fit(make_trainer(Watched, Watching(), mixup_args=mixup_args, seed=11), data, num_epochs=1)
    figure = plot_mixup(seen["images"], seen["labels"], Mixup(**mixup_args), seed=11)
    assert not torch.equal(seen["images"], seen["mixed"])
    assert torch.equal(torch.stack(pixels(figure)).permute(0, 3, 1, 2), seen["mixed"])


def test_a_mixup_that_does_not_fit_the_batch_is_refused() -> None:
    images, labels, mixup = raw_images(4), torch.arange(4), Mixup(num_classes=4)
    with refused(ValueError, "Expected images to be an even number, since Mixup needs an even batch size", "got 3"):
        plot_mixup(images[:3], labels[:3], mixup)
    with refused(TypeError, "Expected mixup to be timm's Mixup", "MixUp", "timm.data.Mixup"):
        plot_mixup(images, labels, v2.MixUp(num_classes=4))
    with refused(ValueError, "Expected mixup to be a FastCollateMixup for mode 'half'", "got a Mixup"):
        plot_mixup(images, labels, Mixup(num_classes=4, mode="half"))
    with refused(ValueError, "Expected targets to be labels below 3", "the label 3"):
        plot_mixup(images, labels, Mixup(num_classes=3))
    with refused(ValueError, "Expected targets to be labels below 4", "the shape (4, 4)"):
        plot_mixup(images, torch.eye(4), mixup)
    with refused(ValueError, "Expected class_names to name each of 4 classes", "got 3 names"):
        plot_mixup(images, labels, mixup, NAMES)
    with refused(ValueError, "Expected targets to be integers (4,)", "(2,)"):
        plot_mixup(images, labels[:2], mixup)
    with refused(ValueError, "Expected images to be a batch", "(3, 12, 16)"):
        plot_mixup(images[0], labels, mixup)
