"""How files come into place, what is beside them, and where weights come from."""

import os
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from refusal import contents, refused
from small_exports import CONFIG, EXPORTERS, Small, logits_of, run_file
from torch import nn
from torch.utils.data import TensorDataset

from timm_accel.export import ExportError, Metadata, export, export_onnx, export_torchscript, read_metadata, to_onnx
from timm_accel.models import create_classifier, save_classifier


@pytest.mark.parametrize("kind", ["onnx", "pt2", "script"])
def test_a_file_that_does_not_pass_leaves_the_old_one_and_nothing_else(kind: str, tmp_path: Path) -> None:
    exporter, name = EXPORTERS[kind]
    exporter(Small(), tmp_path / name)
    before = contents(tmp_path)
    with pytest.raises(ExportError, match="by at most -1, but got"):
        exporter(Small(), tmp_path / name, tolerance=-1)
    assert contents(tmp_path) == before
    exporter(Small(), tmp_path / name)
    assert contents(tmp_path) != before  # other random weights


def test_what_a_killed_export_left_is_removed(tmp_path: Path) -> None:
    left = tmp_path / "new" / ".model.pt.unfinished"
    left.mkdir(parents=True)
    (left / "junk").write_text("half")
    export_torchscript(Small(), tmp_path / "new" / "model.pt")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["model.pt"]


def test_bytes_are_on_the_disk_before_the_file_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *args, name=name, real=real: events.append((name, args)) or real(*args))
    export_onnx(Small(), tmp_path / "model.onnx", external_data=True)
    assert [name for name, _ in events] == ["fsync", "replace"] * 2
    moved = [args[1].suffix for name, args in events if name == "replace"]
    assert moved == [".data", ".onnx"]  # weights are there before the file that names them


def test_weights_that_do_not_fit_into_the_file_go_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(to_onnx, "onnx_export", partial(to_onnx.onnx_export, external_data=True))  # timm's above 2 GB
    export_onnx(Small(), tmp_path / "model.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    monkeypatch.setattr(to_onnx, "_LIMIT", 1000)
    export_onnx(Small(), tmp_path / "model.onnx")
    assert len(list(tmp_path.glob("model.onnx.????????.data"))) == 1
    assert len(list(tmp_path.iterdir())) == 2


def test_a_file_that_runs_but_breaks_the_format_does_not_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = to_onnx.onnx_export

    def unsorted(model: nn.Module, path: str, **options: Any) -> None:
        """Write nodes before those that they need, which onnxruntime sorts for itself."""
        real(model, path, **options)
        program = onnx.load(path)
        nodes = list(program.graph.node)
        del program.graph.node[:]
        program.graph.node.extend(reversed(nodes))
        onnx.save(program, path)

    monkeypatch.setattr(to_onnx, "onnx_export", unsorted)
    with pytest.raises(ExportError, match=r"topologically sorted.* Before that, by dynamo: .*topologically sorted"):
        export_onnx(Small(), tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(onnx.checker, "check_model", lambda *_, **__: None)
    export_onnx(Small(), tmp_path / "model.onnx")  # nobody else minds


def test_external_weights_have_a_name_of_their_own_and_move_with_the_file(tmp_path: Path) -> None:
    model = Small()
    exported = export_onnx(model, tmp_path / "first" / "model.onnx", external_data=True)
    (data,) = exported.path.parent.glob("model.onnx.*.data")
    assert sorted(exported.path.parent.iterdir()) == [exported.path, data]
    assert exported.size == exported.path.stat().st_size + data.stat().st_size
    assert data.stat().st_size >= 4 * model.head.weight.numel()
    shutil.move(exported.path.parent, tmp_path / "second")
    images = torch.randn(3, 3, 8, 8)
    torch.testing.assert_close(run_file(tmp_path / "second" / "model.onnx", images), logits_of(model, images))

    torch.nn.init.normal_(model.head.weight)
    export_onnx(model, tmp_path / "second" / "model.onnx", external_data=True)
    (new,) = (tmp_path / "second").glob("*.data")
    assert new.name != data.name  # so that at no moment a file reads the weights of another
    export_onnx(model, tmp_path / "second" / "model.onnx")
    assert [path.name for path in (tmp_path / "second").iterdir()] == ["model.onnx"]


def test_external_weights_of_other_files_stay(tmp_path: Path) -> None:
    others = ["model.onnx.data", "other.onnx.12345678.data", "model.onnx.txt"]
    for name in others:
        (tmp_path / name).touch()
    export_onnx(Small(), tmp_path / "model.onnx")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*others, "model.onnx"])


def test_metadata_survives_its_json() -> None:
    metadata = Metadata(
        architecture="résnet",
        num_classes=2,
        class_names=("a", "b"),
        input_size=(3, 8, 8),
        mean=(0.1, 0.2, 0.3),
        std=(1.0, 1.0, 1.0),
        interpolation="bilinear",
        crop_pct=0.875,
        crop_mode="center",
        includes_normalization=False,
        includes_softmax=True,
    )
    assert Metadata.from_json(metadata.to_json()) == metadata
    nameless = Metadata.from_json(metadata.to_json().replace('["a", "b"]', "null"))
    assert nameless.class_names is None


def test_class_names_come_from_the_config_from_a_dataset_or_from_nowhere(tmp_path: Path) -> None:
    data = TensorDataset(torch.zeros(1))
    data.classes = ["x", "y", "z"]
    named = Small(label_names=["a", "b", "c"])
    for model, given, expected in (
        (named, None, ("a", "b", "c")),
        (named, data, ("x", "y", "z")),
        (named, ("u", "v", "w"), ("u", "v", "w")),
        (Small(), None, None),
    ):
        path = export_torchscript(model, tmp_path / "model.pt", class_names=given).path
        assert read_metadata(path).class_names == expected


@pytest.mark.parametrize("name", ["model.onnx", "model.pt2", "model.pt", "model.torchscript"])
def test_a_run_folder_or_its_best_becomes_the_format_of_the_suffix(name: str, tmp_path: Path) -> None:
    head = "mlp" if name == "model.pt" else "linear"  # timm alone could not rebuild the first
    model, _ = create_classifier("test_resnet", num_classes=3, image_size=64, head=head)
    best = tmp_path / "run" / "best"
    save_classifier(model, best, ["a", "b", "c"])
    exported = export(best if name == "model.pt" else best.parent, tmp_path / name)
    images = torch.randn(3, 3, 64, 64)
    torch.testing.assert_close(run_file(exported.path, images), logits_of(model, images), atol=1e-5, rtol=1e-4)
    metadata = read_metadata(exported.path)
    assert metadata.class_names == ("a", "b", "c")
    assert metadata.input_size == (3, 64, 64)
    assert (metadata.includes_normalization, metadata.includes_softmax) == (False, False)


@pytest.mark.parametrize(
    ("average", "greater_is_better", "chosen"),
    [(0.9, True, "best_ema"), (0.7, True, "best"), (0.7, False, "best_ema")],
)
def test_of_a_run_the_weights_with_the_better_metric_are_exported(
    average: float, greater_is_better: bool, chosen: str, tmp_path: Path
) -> None:
    models = {}
    for name, value in (("best", 0.8), ("best_ema", average)):
        models[name], _ = create_classifier("test_resnet", num_classes=2, image_size=32)
        about = {"best": {"metric": "m", "value": value}, "greater_is_better": greater_is_better}
        save_classifier(models[name], tmp_path / "run" / name, [f"{name} a", f"{name} b"], **about)
    path = export(tmp_path / "run", tmp_path / "model.pt").path
    assert read_metadata(path).class_names == (f"{chosen} a", f"{chosen} b")
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(run_file(path, images), logits_of(models[chosen], images), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", EXPORTERS)
def test_a_temperature_is_inside_a_file_of_probabilities_and_beside_logits(kind: str, tmp_path: Path) -> None:
    exporter, name = EXPORTERS[kind]
    model, images = nn.Sequential(nn.Flatten(), nn.Linear(192, 3)), torch.randn(3, 3, 8, 8)
    model.pretrained_cfg = {**CONFIG, "input_size": (3, 8, 8)}
    exporter(model, tmp_path / name, temperature=2.5)
    torch.testing.assert_close(run_file(tmp_path / name, images), logits_of(model, images), atol=1e-4, rtol=1e-4)
    assert read_metadata(tmp_path / name).temperature == 2.5
    exporter(model, tmp_path / name, temperature=2.5, softmax=True)
    expected = (logits_of(model, images) / 2.5).softmax(dim=1)
    torch.testing.assert_close(run_file(tmp_path / name, images), expected, atol=1e-5, rtol=1e-4)
    assert read_metadata(tmp_path / name).temperature == 1.0  # nothing is left to do


def test_a_folder_with_a_head_of_ones_own_and_what_it_says_of_its_outputs(tmp_path: Path) -> None:
    def head(in_features: int, num_classes: int) -> nn.Module:
        return nn.Sequential(nn.ReLU(), nn.Linear(in_features, num_classes))

    model, _ = create_classifier("test_resnet", num_classes=3, image_size=32, head=head)
    save_classifier(model, tmp_path / "best", ["a", "b", "c"], temperature=0.5, multi_label=True)
    with refused(ValueError, "Expected head to be the function or module"):
        export(tmp_path / "best", tmp_path / "model.pt")
    path = export(tmp_path, tmp_path / "model.pt", head=head).path
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(run_file(path, images), logits_of(model, images), atol=1e-5, rtol=1e-4)
    metadata = read_metadata(path)
    assert (metadata.temperature, metadata.multi_label) == (0.5, True)
    assert not read_metadata(export(tmp_path, path, head=head, multi_label=False).path).multi_label
