"""Feature extractors, their description and figure, and the embeddings of a dataset."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from ranks import launch
from refusal import refused
from torch import nn
from torch.utils.data import IterableDataset, Subset, TensorDataset

from timm_accel.data import create_datasets
from timm_accel.features import (
    FeatureLevel,
    describe_features,
    extract_embeddings,
    feature_pyramid,
    intermediate_features,
    node_features,
    node_names,
    pooled_features,
    unpooled_features,
)
from timm_accel.models import create_classifier, save_classifier
from timm_accel.plots import plot_feature_maps

IMAGES = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(4))


@pytest.fixture(params=["test_resnet", "test_vit"])
def model(request: pytest.FixtureRequest) -> nn.Module:
    return create_classifier(request.param, 3, image_size=64)[0]


def seen(module: nn.Module, model: nn.Module) -> torch.Tensor:
    """What a module of a model puts out, by a hook."""
    outputs: list[torch.Tensor] = []
    handle = module.register_forward_hook(lambda *args: outputs.append(args[2]))
    with torch.no_grad():
        model.eval()(IMAGES)
    handle.remove()
    return outputs[0]


def test_vectors_are_what_the_classifier_gets(model: nn.Module) -> None:
    with torch.no_grad():
        vectors = pooled_features(model)(IMAGES)
        assert torch.equal(model.get_classifier()(vectors), model.eval()(IMAGES))
        assert torch.equal(pooled_features(unpooled_features(model).model)(IMAGES), vectors)
        assert torch.equal(unpooled_features(model)(IMAGES), model.forward_features(IMAGES))


@pytest.mark.parametrize(
    "extract",
    [pooled_features, unpooled_features, intermediate_features, lambda model: node_features(model, ["conv1"])],
)
def test_an_extractor_is_a_copy_in_evaluation(extract: Callable[[nn.Module], nn.Module]) -> None:
    model, _ = create_classifier("test_resnet", 3, image_size=64)
    before = [tensor.clone() for tensor in model.state_dict().values()]
    extractor = extract(model)
    assert all(module.training for module in model.modules())
    assert not any(module.training for module in extractor.modules())
    extractor(IMAGES)
    with torch.no_grad():
        for tensor in extractor.parameters():
            tensor.zero_()
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), before, strict=True))


def test_maps_of_a_transformer_are_its_tokens() -> None:
    model, _ = create_classifier("test_vit", 3, image_size=64)
    first, last = intermediate_features(model, [0, -1])(IMAGES)
    for features, block in ((first, 0), (last, 5)):
        tokens = seen(model.blocks[block], model)[:, 1:]  # without the class token
        assert torch.allclose(features, tokens.transpose(1, 2).unflatten(2, (4, 4)))
    (normed,) = intermediate_features(model, 1, norm=True)(IMAGES)
    assert torch.allclose(normed, model.norm(last.movedim(1, -1)).movedim(-1, 1), atol=1e-6)


@pytest.mark.parametrize(("indices", "count"), [(None, 5), (2, 2), ([0, 3], 2), (5, 5), ([-1], 1)])
def test_as_many_maps_come_as_were_asked_for(indices: Any, count: int) -> None:
    model, _ = create_classifier("test_resnet", 3, image_size=64)
    maps = intermediate_features(model, indices)(IMAGES)
    assert len(maps) == count
    if indices != [0, 3]:
        assert torch.equal(maps[-1], seen(model.layer4, model))


def test_a_pyramid_has_the_maps_of_the_model(tmp_path: Path) -> None:
    model, _ = create_classifier("test_resnet", 3, image_size=64)
    save_classifier(model, tmp_path)
    pyramid = feature_pyramid(f"local-dir:{tmp_path}", out_indices=(1, 4), pretrained=True)
    for features, layer in zip(pyramid(IMAGES), (model.layer1, model.layer4), strict=True):
        assert torch.equal(features, seen(layer, model))
    assert not pyramid.training


def test_a_stride_limits_the_reduction() -> None:
    strided = feature_pyramid("test_resnet", output_stride=8)
    assert [tuple(each.shape[2:]) for each in strided(IMAGES)] == [(32, 32), (16, 16), (8, 8), (8, 8), (8, 8)]
    assert describe_features(strided)[-1].reduction == 8


def test_a_description_says_what_comes_out() -> None:
    model, _ = create_classifier("test_resnet", 3, image_size=64)
    levels = describe_features(model)
    assert levels[1] == FeatureLevel(1, "layer1", 4, 32)
    for level, features in zip(levels, intermediate_features(model)(IMAGES), strict=True):
        assert features.shape[1:] == (level.channels, 64 // level.reduction, 64 // level.reduction)
        assert torch.equal(features, seen(model.get_submodule(level.name), model))
    assert [level.index for level in describe_features(feature_pyramid("test_resnet", out_indices=(1, 3)))] == [1, 3]
    assert str(levels).splitlines()[:2] == [
        "index  name    reduction  channels",
        "    0  act1            2        32",
    ]
    assert (
        str(describe_features(timm.create_model("test_vit"))).splitlines()[1] == "    0  blocks.0         16        64"
    )


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_efficientnet"])
def test_the_last_node_is_the_output(name: str) -> None:
    model, _ = create_classifier(name, 3, image_size=64)
    names = node_names(model)
    values = node_features(model, [names[3], names[-1]])(IMAGES)
    assert list(values) == [names[3], names[-1]]
    assert torch.equal(values[names[-1]], model.eval()(IMAGES))


def test_the_name_of_a_module_stands_for_its_last_node() -> None:
    model, _ = create_classifier("test_resnet", 3, image_size=64)
    assert torch.equal(node_features(model, ["layer2"])(IMAGES)["layer2"], seen(model.layer2, model))


class Branching(nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images if images.sum() > 0 else -images


@pytest.mark.parametrize(
    ("call", "kind", "words"),
    [
        (lambda m: pooled_features(nn.Linear(2, 2)), TypeError, ["one of timm with forward_features", "got Linear"]),
        (lambda m: unpooled_features(nn.Linear(2, 2)), TypeError, ["one of timm with forward_features"]),
        (lambda m: intermediate_features(nn.Linear(2, 2)), TypeError, ["one of timm with forward_intermediates"]),
        (lambda m: intermediate_features(m, [5]), ValueError, ["indices to be among the 5", "but got 5"]),
        (lambda m: intermediate_features(m, [-6]), ValueError, ["indices to be among the 5", "but got -6"]),
        (lambda m: intermediate_features(m, 6), ValueError, ["indices to be among the 5", "but got 6"]),
        (lambda m: intermediate_features(m, 0), ValueError, ["indices to be among the 5", "but got 0"]),
        (lambda m: feature_pyramid("test_rsnet"), ValueError, ["to be a name of timm", "'test_resnet'"]),
        (lambda m: feature_pyramid("test_resnet", out_indices=[9]), ValueError, ["'out_indices': (9,)", "Try fewer"]),
        (lambda m: feature_pyramid("test_vit", output_stride=8), ValueError, ["'output_stride': 8"]),
        (lambda m: node_features(m, ["layr2"]), ValueError, ["in the model's graph", "'layr2'", "'layer2'"]),
        (
            lambda m: node_names(Branching()),
            ValueError,
            ["torch.fx can trace", "got Branching", "intermediate_features"],
        ),
        (lambda m: describe_features(nn.Linear(2, 2)), TypeError, ["describes its levels", "got Linear"]),
    ],
)
def test_what_a_model_cannot_give_is_refused(call: Any, kind: type[Exception], words: list[str]) -> None:
    with refused(kind, *words):
        call(create_classifier("test_resnet", 3)[0])


def test_a_figure_shows_the_image_the_mean_and_the_channels_that_vary_most() -> None:
    pytest.importorskip("matplotlib")
    flat, lively = torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 2, 2)
    flat[1, 2, 0, 0], lively[1, 1] = 5, torch.tensor([[0.0, 9.0], [9.0, 0.0]])
    figure = plot_feature_maps({"flat": flat, "lively": lively}, IMAGES[:, :, :8, :8], index=1, channels=1)
    titles = [axes.get_title() for axes in figure.axes]
    assert titles == ["image", "flat\n3×4×4, mean", "channel 2", "image", "lively\n3×2×2, mean", "channel 1"]
    shown = [np.asarray(axes.images[0].get_array()) for axes in figure.axes]
    assert np.allclose(shown[0], IMAGES[1, :, :8, :8].permute(1, 2, 0))
    assert np.allclose(shown[1], flat[1].mean(0))
    assert np.allclose(shown[5], lively[1, 1])
    assert len(plot_feature_maps([flat], channels=0).axes) == 1
    assert plot_feature_maps([flat], channels=0).axes[0].get_title() == "map 0\n3×4×4, mean"


@pytest.mark.parametrize(
    ("maps", "options", "kind", "words"),
    [
        ([], {}, ValueError, ["maps to hold at least one"]),
        ([[1]], {}, TypeError, ["map 0 to be a tensor", "list"]),
        ({"tokens": torch.zeros(1, 2, 3)}, {}, ValueError, ["tokens to be maps (B, C, H, W)", "(1, 2, 3)"]),
        ([torch.zeros(1, 2, 3, 3)], {"index": 1}, IndexError, ["index to be from 0 to 0", "got 1"]),
        ([torch.zeros(1, 2, 3, 3)], {"channels": -1}, ValueError, ["channels to be at least 0", "-1"]),
    ],
)
def test_what_is_no_map_is_refused(maps: Any, options: Any, kind: type[Exception], words: list[str]) -> None:
    with refused(kind, *words):
        plot_feature_maps(maps, **options)


def data(count: int = 7) -> TensorDataset:
    generator = torch.Generator().manual_seed(6)
    return TensorDataset(torch.rand(count, 3, 32, 32, generator=generator), torch.arange(count) * 10)


def expected(model: nn.Module, dataset: TensorDataset) -> np.ndarray:
    with torch.no_grad():
        return model.forward_head(model.eval().forward_features(dataset.tensors[0]), pre_logits=True).numpy()


@pytest.mark.parametrize("suffix", [".npz", ".parquet"])
def test_embeddings_are_in_the_order_of_the_data(suffix: str, tmp_path: Path) -> None:
    model, _ = create_classifier("test_resnet", 3, image_size=32)
    path = tmp_path / "new" / f"embeddings{suffix}"
    made = extract_embeddings(model.train(), data(), path, batch_size=3)
    assert model.training
    assert np.allclose(made.features, expected(model, data()), atol=1e-5)
    assert made.labels.tolist() == [0, 10, 20, 30, 40, 50, 60]
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    if suffix == ".npz":
        read = np.load(path)
        assert np.array_equal(read["features"], made.features)
    else:
        read = pytest.importorskip("pyarrow.parquet").read_table(path).to_pydict()
        assert np.array_equal(np.array(read["features"], dtype="float32"), made.features)
    assert list(read["index"]) == list(range(7))
    assert list(read["label"]) == made.labels.tolist()


def test_soft_labels_are_kept(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    model, _ = create_classifier("test_resnet", 3, image_size=32)
    labels = torch.rand(4, 3)
    made = extract_embeddings(model, TensorDataset(torch.rand(4, 3, 32, 32), labels), tmp_path / "e.parquet")
    assert np.array_equal(made.labels, labels.numpy())


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = create_classifier("test_resnet", 3, image_size=32)
    path = tmp_path / "e.npz"
    path.write_bytes(b"old")

    def full(file: Path, **_: Any) -> None:
        file.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr("numpy.savez", full)
    with pytest.raises(OSError, match="disk full"):
        extract_embeddings(model, data(2), path)
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("e.npz", b"old")]


class Stream(IterableDataset):
    def __iter__(self) -> Any:
        return iter(())


@pytest.mark.parametrize(
    ("dataset", "path", "kind", "words"),
    [
        (Stream(), None, TypeError, ["data to be a map-style dataset", "Stream"]),
        ([], None, ValueError, ["data to have at least one image"]),
        (data(1), "a.csv", ValueError, ["path to end in .parquet or .npz", "'a.csv'"]),
    ],
)
def test_what_cannot_be_embedded_is_refused(dataset: Any, path: Any, kind: type[Exception], words: list[str]) -> None:
    with refused(kind, *words):
        extract_embeddings(nn.Identity(), dataset, path)


@pytest.mark.parametrize("split", ["train", "val"])
def test_an_image_that_cannot_be_read_is_neither_replaced_nor_left_out(split: str, image_folder: Path) -> None:
    model, _ = create_classifier("test_resnet", 3, image_size=32)
    options = {"auto_augment": None, "on_error": None if split == "train" else "skip"}
    sets = create_datasets(32, (0.5,) * 3, (0.5,) * 3, data=image_folder, **options)
    dataset = dict(zip(("train", "val"), sets, strict=True))[split]
    bad = image_folder / split / "dog" / "001.png"
    bad.write_bytes(bad.read_bytes()[:60])
    number = [dataset.filename(each, absolute=True) for each in range(len(dataset))].index(str(bad))
    for data in (dataset, Subset(dataset, [0, number]), Subset(Subset(dataset, [0, number]), [1])):
        with refused(OSError, "Expected every file to be a readable image", str(bad), "Repair or remove it."):
            extract_embeddings(model, data)
    assert (dataset.on_error, dataset.unreadable) == ("skip", [])
    assert len(extract_embeddings(model, Subset(dataset, [0, number - 1])).features) == 2


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with refused(ModuleNotFoundError, "extra 'parquet'", 'pip install "timm_accel[parquet]"'):
        extract_embeddings(nn.Identity(), data(1), "e.parquet")


WORKER = """
import sys
from pathlib import Path
import numpy as np, torch
from accelerate import PartialState
sys.path.insert(0, {folder!r})
from test_features import data
from timm_accel.features import extract_embeddings
from timm_accel.models import create_classifier

def main():
    out = Path(sys.argv[1])
    state = PartialState(cpu=True)
    torch.manual_seed(0)
    model, _ = create_classifier("test_resnet", 3, image_size=32)
    made = extract_embeddings(model, data(), out / "e.npz", batch_size=2)
    np.savez(out / f"rank{{state.process_index}}.npz", features=made.features, labels=made.labels)
    assert state.num_processes == 2
    state.destroy_process_group()
"""


def test_two_processes_give_each_image_once_in_order(tmp_path: Path) -> None:
    script = tmp_path / "worker.py"
    script.write_text(WORKER.format(folder=str(Path(__file__).parent)))
    launch(script, [2], tmp_path)
    torch.manual_seed(0)
    model, _ = create_classifier("test_resnet", 3, image_size=32)
    for name in ("e", "rank0", "rank1"):
        assert np.allclose(np.load(tmp_path / f"{name}.npz")["features"], expected(model, data()), atol=1e-5)
    assert np.load(tmp_path / "e.npz")["label"].tolist() == [0, 10, 20, 30, 40, 50, 60]
