"""What is refused, and with which sentence."""

import sys
from pathlib import Path

import onnx
import pytest
import torch
from refusal import refused
from small_exports import EXPORTERS, Small, classifier
from torch import Tensor, nn

from timm_accel.export import (
    ExportError,
    export,
    export_onnx,
    export_program,
    export_torchscript,
    open_exported,
    read_metadata,
)


@pytest.mark.parametrize("kind", EXPORTERS)
def test_a_place_that_cannot_be_written(kind: str, tmp_path: Path) -> None:
    exporter, name = EXPORTERS[kind]
    (tmp_path / "file").touch()
    with refused(OSError, "where files can be written", tmp_path / "file" / name, "Not a directory", "another folder"):
        exporter(Small(), tmp_path / "file" / name)
    (tmp_path / name).mkdir()
    with refused(IsADirectoryError, "to be a file, but got the folder", name, "Add a file name"):
        exporter(Small(), tmp_path / name)


@pytest.mark.parametrize("module", ["onnx", "onnxscript", "onnxruntime"])
def test_onnx_without_the_extra(module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with refused(ModuleNotFoundError, "'export'", repr(module), 'pip install "timm_accel[export]"'):
        export_onnx(Small(), tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())
    export_torchscript(Small(), tmp_path / "model.pt")  # needs none of them


def test_opening_onnx_without_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = export_onnx(Small(), tmp_path / "model.onnx").path
    for module in ("onnxruntime", "onnx"):
        monkeypatch.setitem(sys.modules, module, None)
        with refused(ModuleNotFoundError, "'export'", repr(module)):
            open_exported(path)


def test_a_suffix_that_is_unknown_or_of_another_format(tmp_path: Path) -> None:
    for call in (export, read_metadata, open_exported):
        arguments = [tmp_path, "model.onx"] if call is export else ["model.onx"]
        with refused(ValueError, "path to end in .onnx, .pt2, .pt, .torchscript", "'model.onx'", "'.onnx'?"):
            call(*arguments)
    for exporter, name in ((export_onnx, "a.pt"), (export_program, "a.onnx"), (export_torchscript, "a.pt2")):
        with refused(ValueError, "path to end in", " for ", name, "The suffix tells the format"):
            exporter(Small(), tmp_path / name)


def test_an_unknown_method(tmp_path: Path) -> None:
    with refused(ValueError, "method to be one of", "'scripted'", "'script'?"):
        export_torchscript(Small(), tmp_path / "model.pt", method="scripted")


class _Broken(nn.Module):
    """Runs in Python, but not where values are abstract."""

    def forward(self, logits: Tensor) -> Tensor:
        return logits * (1 + 0 * len({str(value) for value in logits.tolist()}))


@pytest.mark.parametrize(
    ("exporter", "name", "method"),
    [(export_program, "model.pt2", "export"), (export_torchscript, "model.pt", "script")],
)
def test_a_model_that_does_not_export(exporter: object, name: str, method: str, tmp_path: Path) -> None:
    with refused(ExportError, "Expected small to export to", f"by {method}, but got", "Try another") as caught:
        exporter(Small(_Broken()), tmp_path / name)
    del caught
    assert not list(tmp_path.iterdir())


def test_the_cause_of_a_failed_export_is_chained_and_onnx_names_both_exporters(tmp_path: Path) -> None:
    class Raises(nn.Module):
        """Fails at a second call of the copy."""

        def forward(self, logits: Tensor) -> Tensor:
            if (isinstance(logits, torch.Tensor) and torch.jit.is_tracing()) or torch.compiler.is_compiling():
                raise ArithmeticError("first line\nsecond line")
            return logits

    with pytest.raises(
        ExportError, match=r"by torchscript, but got ArithmeticError: first line\. .*by dynamo: Arith"
    ) as caught:
        export_onnx(Small(Raises()), tmp_path / "model.onnx")
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value.__cause__, ExportError)
    assert isinstance(caught.value.__cause__.__cause__, ArithmeticError)
    assert not list(tmp_path.iterdir())


def test_one_image_size_alone(tmp_path: Path) -> None:
    model = classifier("test_vit", img_size=64, dynamic_img_size=False)
    with refused(ValueError, "dynamic_size", "test_vit", "64 by 64 and not 96 by 128", "dynamic_img_size=True"):
        export_onnx(model, tmp_path / "model.onnx", dynamic_size=True)


def test_a_model_that_is_none_or_has_no_config_or_gives_no_tensor(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    with refused(TypeError, "model to be a torch module, but got str", "timm_accel.export.export"):
        export_torchscript("run/best", path)
    with refused(ValueError, "data config in pretrained_cfg", "Linear", "create_classifier"):
        export_torchscript(nn.Linear(3, 3), path)

    class Pair(nn.Module):
        """Gives two outputs."""

        def forward(self, logits: Tensor) -> tuple[Tensor, Tensor]:
            return logits, logits

    with refused(TypeError, "return a tensor in evaluation, but got a tuple"):
        export_torchscript(Small(Pair()), path)


def test_an_input_size_that_the_model_does_not_take(tmp_path: Path) -> None:
    with refused(ValueError, "its data config's input_size (3, 9, 9), but got RuntimeError", "pretrained_cfg['input_"):
        export_torchscript(Small(input_size=(3, 9, 9), first_conv="head"), tmp_path / "model.pt")


def test_class_names_or_means_that_do_not_fit(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    with refused(ValueError, "class_names to be as many as the model's 3 outputs, but got 2"):
        export_torchscript(Small(), path, class_names=["a", "b"])
    with refused(ValueError, "mean to have one value for each of the model's 1 channels", "(0.5, 0.4, 0.3)"):
        export_torchscript(classifier("test_resnet", in_chans=1), path)


def test_a_folder_without_weights(tmp_path: Path) -> None:
    with refused(FileNotFoundError, "config.json", tmp_path / "run", "spelling"):
        export(tmp_path / "run", tmp_path / "model.onnx")


def test_files_that_are_missing_or_of_others(tmp_path: Path) -> None:
    with refused(FileNotFoundError, "an exported file", tmp_path / "no.onnx", "spelling"):
        open_exported(tmp_path / "no.onnx")
    graph = onnx.helper.make_graph([], "empty", [], [])
    foreign = onnx.helper.make_model(graph)
    onnx.helper.set_model_props(foreign, {"author": "{}"})
    onnx.save(foreign, tmp_path / "foreign.onnx")
    torch.save({}, tmp_path / "foreign.pt")
    for name in ("junk.onnx", "junk.pt2"):
        (tmp_path / name).write_bytes(b"\x00\xffjunk")
    for name in ("foreign.onnx", "foreign.pt", "junk.onnx", "junk.pt2"):
        with refused(ValueError, "that timm_accel exported, but got", name, "Export the model again"):
            read_metadata(tmp_path / name)


def test_images_that_a_file_does_not_take(tmp_path: Path) -> None:
    plain = open_exported(export_torchscript(Small(), tmp_path / "plain.pt").path)
    pixels = open_exported(export_torchscript(Small(), tmp_path / "pixels.pt", normalize=True).path)
    with refused(TypeError, "images to be torch.float32, since the file takes normalized", "torch.uint8"):
        plain(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))
    with refused(TypeError, "images to be torch.uint8, since the file normalizes itself", "torch.float32"):
        pixels(torch.zeros(1, 3, 8, 8))
    for shape in ((3, 8, 8), (1, 1, 8, 8)):
        with refused(ValueError, "of shape (B, 3, H, W), but got", shape):
            plain(torch.zeros(shape))


@pytest.mark.parametrize("temperature", [0, -1.0, float("inf"), float("nan")])
def test_a_temperature_that_is_none(temperature: float, tmp_path: Path) -> None:
    with refused(ValueError, "Expected temperature to be positive", repr(temperature), "fit_temperature"):
        export_program(Small(), tmp_path / "model.pt2", temperature=temperature)
    assert not list(tmp_path.iterdir())


def test_a_softmax_over_multi_label_outputs(tmp_path: Path) -> None:
    with refused(ValueError, "Expected softmax to be False", "multi-label", "Leave it out"):
        export_torchscript(Small(), tmp_path / "model.pt", softmax=True, multi_label=True)
    assert not list(tmp_path.iterdir())
