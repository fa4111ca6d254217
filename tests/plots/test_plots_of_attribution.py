"""Grad-CAM: the map lies on the place that decides, for CNNs and transformers, and the model stays as it was."""

import random
import sys
from functools import cache
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.data import resolve_data_config
from torch import Tensor, nn
from trained_runs import brightness, trained_run

from timm_accel.plots import plot_attribution
from timm_accel.plots.grad_cam import _last_map, grad_cam
from timm_accel.predict import Classifier, load_classifier
from timm_accel.predict.opening import classifier_of

pytest.importorskip("matplotlib.figure")
pytest.importorskip("captum")

SIZE, PATCH = 64, 24
CONFIG = {"input_size": (3, 16, 16), "mean": (0.0,) * 3, "std": (1.0,) * 3, "crop_pct": 1.0}


class Corner(nn.Module):
    """Logits: mean red of the upper left quarter less mean blue, and mean blue of the lower right quarter."""

    feature_info: Any = ({"module": "cells", "num_chs": 3, "reduction": 4},)

    def __init__(self) -> None:
        super().__init__()
        self.pretrained_cfg = CONFIG
        self.cells = nn.AvgPool2d(4)
        self.unused = nn.Linear(2, 2)

    def forward(self, images: Tensor) -> Tensor:
        cells = self.cells(images)
        return torch.stack(
            [cells[:, 0, :2, :2].mean((1, 2)) - cells[:, 2].mean((1, 2)), cells[:, 2, 2:, 2:].mean((1, 2))], dim=1
        )


def corner_image() -> Image.Image:
    """Red in the first cell, half as red in the second, blue in the last."""
    image = Image.new("RGB", (16, 16))
    image.paste((240, 0, 0), (0, 0, 4, 4))
    image.paste((120, 0, 0), (4, 0, 8, 4))
    image.paste((0, 0, 255), (12, 12, 16, 16))
    return image


def heat_of(figure: Any, index: int = 0) -> np.ndarray:
    return np.asarray(figure.axes[index].get_images()[1].get_array())


# A worked-out model


@pytest.mark.parametrize(
    ("class_name", "weighted"),
    [("0", [[240.0, 120, 0, 0], [0] * 4, [0] * 4, [0] * 4]), ("1", [[0] * 4, [0] * 4, [0] * 4, [0, 0, 0, 255.0]])],
)
def test_the_map_is_the_channel_of_the_class(class_name: str, weighted: Any) -> None:
    """One channel has a positive gradient, 1/16 on average; blue lowers logit 0."""
    maps = torch.nn.functional.interpolate(torch.tensor(weighted)[None, None], (16, 16), mode="bilinear")[0, 0]
    heat = heat_of(plot_attribution(Corner(), corner_image(), class_name))
    assert np.allclose(heat, maps / maps.max(), atol=1e-5)


def test_the_class_is_the_prediction_by_default() -> None:
    image = corner_image()  # mean red of the first quarter is 90, mean blue of the last is 64
    figure = plot_attribution(Corner(), image)
    assert figure.axes[0].get_title().startswith("0: 0.5")
    assert np.array_equal(heat_of(figure), heat_of(plot_attribution(Corner(), image, "0")))
    assert not np.array_equal(heat_of(figure), heat_of(plot_attribution(Corner(), image, "1")))


def test_an_image_where_nothing_raises_the_logit_is_0_everywhere() -> None:
    assert (heat_of(plot_attribution(Corner(), Image.new("RGB", (16, 16), (0, 200, 0)), "0")) == 0).all()


def test_the_heat_lies_over_the_image_that_the_model_sees() -> None:
    classifier = classifier_of(Corner(), "cpu")
    image = corner_image().resize((32, 16))
    figure = plot_attribution(classifier, [image, image])
    below = np.asarray(figure.axes[1].get_images()[0].get_array())
    assert np.allclose(below, classifier.transform(image).permute(1, 2, 0).numpy() / 255)


def test_a_map_does_not_depend_on_the_other_images_or_on_the_batches() -> None:
    images = [corner_image()] + [Image.new("RGB", (16, 16), (number, 0, 40)) for number in range(0, 170, 10)]
    classifier = classifier_of(Corner(), "cpu")
    figure = plot_attribution(classifier, images, "0", count=18)
    assert len(figure.axes) == 18
    for index in (0, 7, 17):
        assert np.allclose(heat_of(figure, index), heat_of(plot_attribution(classifier, images[index], "0")), atol=1e-6)


# Models of timm


@cache
def trained(name: str, **options: Any) -> Classifier:
    """A model that tells a patch of red from one of green, which is left or right of the center."""
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=2, **options)
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
    model.train()
    for _ in range(40):
        images, labels, _ = draw(16)
        loss = nn.functional.cross_entropy(model(images / 127.5 - 1), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.pretrained_cfg = {
        **resolve_data_config({}, model=model),
        "input_size": (3, SIZE, SIZE),
        "mean": (0.5,) * 3,
        "std": (0.5,) * 3,
        "crop_pct": 1.0,
        "label_names": ["red", "green"],
    }
    return classifier_of(model, "cpu")


def draw(count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Noise with a patch in color ``label``, in the left (0) or the right (1) half: images, labels and sides."""
    images = torch.randint(90, 150, (count, 3, SIZE, SIZE)).float()
    labels, sides = torch.randint(0, 2, (count,)), torch.randint(0, 2, (count,))
    for image, label, side in zip(images, labels.tolist(), sides.tolist(), strict=True):
        top, left = int(torch.randint(0, SIZE - PATCH, ())), int(side) * SIZE // 2 + 4
        image[:, top : top + PATCH, left : left + PATCH] = 20
        image[label, top : top + PATCH, left : left + PATCH] = 250
    return images, labels, sides


MODELS: dict[str, dict[str, Any]] = {
    "test_resnet": {},
    "test_vit": {"img_size": SIZE, "patch_size": 8, "global_pool": "avg", "class_token": False},
    "test_convnext": {},
    "swin_tiny_patch4_window7_224": {
        "img_size": SIZE,
        "window_size": 4,
        "embed_dim": 24,
        "depths": (2, 2),
        "num_heads": (2, 2),
    },
}


@pytest.mark.parametrize("name", MODELS)
def test_the_map_lies_on_the_side_of_the_patch(name: str) -> None:
    classifier = trained(name, **MODELS[name])
    torch.manual_seed(1)
    images, labels, sides = draw(12)
    assert (classifier.probabilities(images.byte()).argmax(1) == labels).all()
    maps = grad_cam(classifier, images.byte(), labels)
    halves = torch.stack([maps[:, :, : SIZE // 2].sum((1, 2)), maps[:, :, SIZE // 2 :].sum((1, 2))], dim=1)
    shares = halves.gather(1, sides[:, None])[:, 0] / halves.sum(1).clamp(min=1e-6)
    assert shares.mean() > 0.62  # 0.5 for a map that does not know
    assert (shares > 0.5).sum() >= 11


class Tokens(nn.Module):
    """A class token and 16 patches of 4 pixels; the last block adds to the class token the mean of all patches."""

    feature_info: Any = tuple({"module": f"blocks.{number}", "num_chs": 3, "reduction": 4} for number in range(2))
    num_prefix_tokens = 1

    class Mean(nn.Module):
        def forward(self, tokens: Tensor) -> Tensor:
            return torch.cat([tokens[:, :1] + tokens[:, 1:].mean(1, keepdim=True), tokens[:, 1:]], dim=1)

    def __init__(self) -> None:
        super().__init__()
        self.pretrained_cfg = CONFIG
        self.blocks = nn.Sequential(nn.Identity(), self.Mean())

    def forward(self, images: Tensor) -> Tensor:
        patches = nn.functional.avg_pool2d(images, 4).flatten(2).transpose(1, 2)
        return self.blocks(torch.cat([torch.zeros_like(patches[:, :1]), patches], dim=1))[:, 0]


def test_the_map_of_a_class_token_is_that_of_the_patches_before_the_last_block() -> None:
    maps = torch.zeros(1, 1, 4, 4)
    maps[0, 0, 0, :2] = torch.tensor([1.0, 0.5])
    expected = nn.functional.interpolate(maps, (16, 16), mode="bilinear")[0, 0]
    heat = heat_of(plot_attribution(Tokens(), corner_image(), "0"))
    assert np.allclose(heat, expected / expected.max(), atol=1e-5)


LAYOUTS = ["test_resnet", "test_vit", "test_convnext", "test_mambaout", "test_efficientnet"]
OTHERS = ["hiera_tiny_224", "resmlp_12_224", "deit_tiny_distilled_patch16_224"]


@pytest.mark.parametrize("name", [*LAYOUTS, *OTHERS])
def test_the_map_of_a_model_is_that_of_forward_intermediates(name: str) -> None:
    model = timm.create_model(name).eval()
    size = model.pretrained_cfg["input_size"][1:]
    images = torch.rand(1, 3, *size)
    layer, to_map, back = _last_map(model, size)
    outputs: list[Tensor] = []
    layer.register_forward_hook(lambda module, args, output: outputs.append(output))
    with torch.no_grad():
        maps = model.forward_intermediates(images, norm=False, intermediates_only=True)
    found = to_map(outputs[0])
    assert any(found.shape == each.shape and torch.allclose(found, each, atol=1e-5) for each in maps[-2:])
    assert torch.equal(back(found, outputs[0]), outputs[0])


def test_the_model_and_the_random_states_stay_as_they_were() -> None:
    classifier = load_classifier(trained_run().run, device="cpu")
    classifier.data_config["input_size"] = (3, 64, 64)
    model: Any = classifier.model
    model.train()
    model.layer1.eval()
    next(model.parameters()).requires_grad_(False)
    kept = next(reversed(list(model.parameters())))
    kept.grad = torch.ones_like(kept)
    before = {name: each.clone() for name, each in model.state_dict().items()}
    modes = [each.training for each in model.modules()]
    wanted = [each.requires_grad for each in model.parameters()]
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    plot_attribution(classifier, [Image.new("RGB", (64, 64), (200, 30, 30))])
    assert all(torch.equal(each, before[name]) for name, each in model.state_dict().items())
    assert [each.training for each in model.modules()] == modes
    assert [each.requires_grad for each in model.parameters()] == wanted
    assert [each.grad is None for each in model.parameters()] == [True] * (len(wanted) - 1) + [False]
    assert (kept.grad == 1).all()
    assert not any(each._forward_hooks or each._forward_pre_hooks for each in model.modules())
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1] == random.getstate()
    assert np.array_equal(states[2], np.random.get_state()[1])


def test_a_frozen_model_has_a_map_under_no_grad() -> None:
    classifier = classifier_of(Corner().requires_grad_(False), "cpu")
    with torch.no_grad():
        assert heat_of(plot_attribution(classifier, corner_image(), "0")).max() == 1


# Refusals


@pytest.mark.parametrize("kind", ["model.onnx", "model.pt", "model.pt2"])
def test_an_exported_file_is_refused(kind: str) -> None:
    with pytest.raises(ValueError, match=rf"since Grad-CAM needs its gradients, but got '.*{kind}', an exported file"):
        plot_attribution(trained_run().path(kind), corner_image())


def test_a_classifier_of_a_function_is_refused() -> None:
    with pytest.raises(ValueError, match="but got 'the model', an exported file or a function"):
        plot_attribution(brightness(), corner_image())


@pytest.mark.parametrize("name", ["tnt_s_legacy_patch16_224", "pit_ti_224", "twins_svt_small", "coat_lite_tiny"])
def test_a_family_without_one_map_is_refused(name: str) -> None:
    classifier = classifier_of(timm.create_model(name), "cpu")
    with pytest.raises(ValueError, match=r"Expected the model to have a map of at least 4 × 4 cells"):
        plot_attribution(classifier, corner_image())


def test_a_map_that_is_too_coarse_is_refused_and_a_finer_level_is_taken() -> None:
    model = timm.create_model("test_resnet")
    assert _last_map(model, (160, 160))[0] is model.layer4
    assert _last_map(model, (64, 96))[0] is model.layer3
    with pytest.raises(ValueError, match="but got ResNet with none for 6 × 64 pixels"):
        _last_map(model, (6, 64))


def test_a_model_that_describes_no_levels_is_refused() -> None:
    with pytest.raises(ValueError, match="but got Sequential with none for"):
        _last_map(nn.Sequential(), (64, 64))


def test_an_unknown_class_is_refused() -> None:
    with pytest.raises(ValueError, match="Expected class_name to be one of the classifier's 2 classes, but got 'cat'"):
        plot_attribution(Corner(), corner_image(), "cat")


def test_without_captum_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    with pytest.raises(ModuleNotFoundError, match=r'pip install "timm_accel\[attribution\]"'):
        plot_attribution(Corner(), corner_image())
