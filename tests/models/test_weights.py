"""Weights from elsewhere: a file, a folder, a run, a state; what was loaded is reported."""

import logging
from copy import deepcopy
from email.message import Message
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError

import pytest
import timm
import torch
from refusal import refused
from safetensors.torch import save_file
from tiny_runs import fit, make_trainer
from torch import nn
from torch.utils.data import TensorDataset

from timm_accel.callbacks import SaveBestCallback, SaveStateCallback
from timm_accel.mixins import ClassificationMetricsMixin, ModelEmaMixin
from timm_accel.mixins.distillation.teachers import open_teacher
from timm_accel.models import LoadReport, create_classifier, save_classifier
from timm_accel.models.weights import LoadRecord


def trained(name: str = "test_resnet", num_classes: int = 3, **options: Any) -> nn.Module:
    """A model whose weights and running statistics are all unlike those of a new one."""
    model, _ = create_classifier(name, num_classes, image_size=64, **options)
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point():
                tensor.add_(torch.rand_like(tensor) * 0.1)
    return model


def equal(first: nn.Module, second: nn.Module, but: tuple[str, ...] = ("none",)) -> bool:
    a, b = first.state_dict(), second.state_dict()
    return all(torch.equal(a[name], b[name]) for name in a if not name.startswith(but))


def report_of(name: str, num_classes: int, weights: Any, **options: Any) -> tuple[nn.Module, LoadReport]:
    model, _ = create_classifier(name, num_classes, image_size=64, weights=weights, **options)
    return model, model.weights_report


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".bin"])
@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_a_file_is_loaded_exactly(name: str, suffix: str, tmp_path: Path) -> None:
    first = trained(name)
    file = tmp_path / f"weights{suffix}"
    save_file(first.state_dict(), file) if suffix == ".safetensors" else torch.save(first.state_dict(), file)
    model, report = report_of(name, 3, file)
    assert equal(model, first)
    assert report == LoadReport(str(file), len(first.state_dict()), (), (), (), "exact")
    assert report.exact
    assert "tensors loaded exactly with their head" in str(report)


def test_another_number_of_classes_makes_a_new_head(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first = trained()
    save_classifier(first, tmp_path)
    with caplog.at_level(logging.INFO, "timm_accel"):
        model, report = report_of("test_resnet", 4, f"local-dir:{tmp_path}")
    assert equal(model, first, but=("fc.",))
    assert (report.head, report.missing, report.unexpected, report.exact) == ("new", (), (), False)
    assert report.matched == len(first.state_dict()) - 2
    assert [
        (record.levelname, record.getMessage()) for record in caplog.records if record.name.startswith("timm_ac")
    ] == [("INFO", f"{tmp_path}: {report.matched} tensors loaded with a new head")]


@pytest.mark.parametrize(("num_classes", "head"), [(3, "exact"), (4, "new")])
def test_an_mlp_head_is_loaded_when_it_fits(num_classes: int, head: str, tmp_path: Path) -> None:
    first = trained(head="mlp")
    save_classifier(first, tmp_path)
    model, report = report_of("test_resnet", num_classes, tmp_path, head="mlp")
    assert equal(model, first, but=("none",) if head == "exact" else ("fc.",))
    assert torch.equal(model.fc[5].weight, first.fc[5].weight) == (head == "exact")
    assert report.head == head


def test_weights_of_a_classifier_serve_for_features(tmp_path: Path) -> None:
    first = trained()
    save_classifier(first, tmp_path)
    model, report = report_of("test_resnet", 0, tmp_path)
    assert equal(model, first)
    assert (report.head, report.exact) == ("none", True)
    assert "without a head" in str(report)


def test_the_data_config_comes_with_a_folder(tmp_path: Path) -> None:
    first = trained("test_vit", in_chans=1)
    first.pretrained_cfg |= {"mean": (0.25,), "crop_pct": 0.5}
    save_classifier(first, tmp_path)
    model, config = create_classifier("test_vit", 3, weights=tmp_path)
    assert (config["input_size"], tuple(config["mean"]), config["crop_pct"]) == ((1, 64, 64), (0.25,), 0.5)
    assert equal(model, first)
    assert "state_dict" not in model.pretrained_cfg
    assert model.default_cfg is model.pretrained_cfg


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
@pytest.mark.parametrize(("before", "after"), [(3, 1), (1, 3), (3, 6)])
def test_the_first_convolution_is_fitted_as_timm_does(name: str, before: int, after: int, tmp_path: Path) -> None:
    first = trained(name, in_chans=before)
    torch.save(first.state_dict(), tmp_path / "weights.pth")
    model, report = report_of(name, 3, tmp_path / "weights.pth", in_chans=after)
    (conv,) = report.resized
    weight = timm.models.adapt_input_conv(after, first.state_dict()[conv], base_chans=before)
    assert torch.equal(model.state_dict()[conv], weight)
    assert equal(model, first, but=(conv,))
    assert not report.exact


def test_positions_are_fitted_to_another_size(tmp_path: Path) -> None:
    first = trained("test_vit")
    save_classifier(first, tmp_path)
    model, config = create_classifier("test_vit", 3, weights=tmp_path, image_size=96)
    assert model.weights_report.resized == ("pos_embed",)
    assert equal(model, first, but=("pos_embed",))
    assert config["input_size"] == (3, 96, 96)


def test_a_foreign_form_goes_through_the_familys_own_filter(tmp_path: Path) -> None:
    first = trained("test_convnext")
    torch.save({"model": {f"module.{name}": each for name, each in first.state_dict().items()}}, tmp_path / "w.pth")
    model, report = report_of("test_convnext", 3, tmp_path / "w.pth")
    assert equal(model, first)
    assert report.exact


def test_what_is_missing_and_left_over_is_named_in_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tensors = trained().state_dict()
    tensors["extra.weight"] = tensors.pop("layer1.0.conv1.weight")
    torch.save(tensors, tmp_path / "w.pth")
    _, report = report_of("test_resnet", 3, tmp_path / "w.pth")
    assert (report.missing, report.unexpected) == (("layer1.0.conv1.weight",), ("extra.weight",))
    assert "1 missing (layer1.0.conv1.weight); 1 unexpected (extra.weight)" in caplog.text
    assert caplog.records[-1].levelname == "WARNING"


def run_folder(tmp_path: Path, **options: Any) -> Any:
    class Ema(ModelEmaMixin, ClassificationMetricsMixin):
        pass

    model, _ = create_classifier("test_resnet", 3, image_size=32)
    data = TensorDataset(torch.randn(8, 3, 32, 32), torch.arange(8) % 3)
    callbacks = [SaveBestCallback("eval_loss_epoch", greater_is_better=False), SaveStateCallback()]
    trainer = make_trainer(
        Ema, model, run_dir=tmp_path / "run", callbacks=callbacks, num_classes=3, ema_decay=0.5, **options
    )
    return fit(trainer, data, data, num_epochs=1)


@pytest.mark.filterwarnings("ignore:ema_decay")
def test_a_run_gives_its_best_ema_weights_and_a_state_its_ema_weights(tmp_path: Path) -> None:
    trainer = run_folder(tmp_path)
    average = trainer.ema_model.module
    assert not equal(average, trainer.unwrapped_model)
    run = tmp_path / "run"
    (state,) = (run / "state").glob("0*")
    for weights in (run, run / "best_ema", state, run / "state" / "latest"):
        model, report = report_of("test_resnet", 3, weights)
        assert equal(model, average), weights
        assert report.exact
    assert str(report.source) == f"{state} (its EMA weights)"
    assert equal(report_of("test_resnet", 3, run / "best")[0], trainer.unwrapped_model)
    for file in (run / "best_ema").iterdir():
        file.unlink()
    assert equal(report_of("test_resnet", 3, run)[0], trainer.unwrapped_model)


@pytest.mark.filterwarnings("ignore:ema_decay")
def test_a_state_without_updated_ema_weights_gives_its_model(tmp_path: Path) -> None:
    trainer = run_folder(tmp_path, ema_update_every=1000)
    model, report = report_of("test_resnet", 3, tmp_path / "run" / "state" / "latest")
    assert equal(model, trainer.unwrapped_model)
    assert report.source.endswith("(its model)")


def test_weights_on_the_hub_go_through_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    first = trained(num_classes=1000)
    asked = []

    def from_hub(name: str, **_: Any) -> dict[str, torch.Tensor]:
        asked.append(name)
        return deepcopy(first.state_dict())

    monkeypatch.setattr(timm.models._builder, "load_state_dict_from_hf", from_hub)
    for options in ({"weights": "test_resnet.r160_in1k"}, {"pretrained": True}):
        model, _ = create_classifier("test_resnet", 3, **options)
        assert equal(model, first, but=("fc.",))
        assert (model.weights_report.head, model.weights_report.missing) == ("new", ())
        same, _ = create_classifier("test_resnet", 1000, **options)
        assert equal(same, first)
        assert same.weights_report.exact
    assert set(asked) == {"timm/test_resnet.r160_in1k"}


def put_on_hub(monkeypatch: pytest.MonkeyPatch, tensors: dict[str, Any], architecture: str | None = None) -> None:
    """Let timm fetch these, whatever is asked for; as ``hf-hub:…`` they say that they are of an architecture."""
    monkeypatch.setattr(timm.models._builder, "load_state_dict_from_hf", lambda *_, **__: deepcopy(tensors))
    if architecture is not None:
        about = timm.get_pretrained_cfg(architecture).to_dict() | {"source": "hf-hub", "hf_hub_id": "me/x"}
        for module in ("timm_accel.models.sources", "timm.models._factory"):
            monkeypatch.setattr(f"{module}.load_model_config_from_hf", lambda *_, **__: (about, architecture, {}))


@pytest.mark.parametrize("num_classes", [3, 1000])  # timm loads strictly when they are as many as the weights'
def test_fetched_weights_of_other_shapes_or_names_are_refused(
    num_classes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_on_hub(monkeypatch, trained(num_classes=1000).state_dict())
    words = ("weights to fit test_resnet", "tensors have another shape", "layer1.0", "arguments that change its layers")
    with refused(ValueError, *words):
        create_classifier("test_resnet", num_classes, pretrained=True, channels=[16, 48, 48, 96])
    put_on_hub(monkeypatch, trained("test_vit", num_classes=1000).state_dict(), "test_resnet")
    with refused(ValueError, "weights to fit test_resnet", "'hf-hub:me/x'", "no tensor has a name", "cls_token"):
        create_classifier("test_resnet", num_classes, weights="hf-hub:me/x")


def test_a_fitted_first_convolution_of_fetched_weights_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    first = trained(num_classes=1000)
    put_on_hub(monkeypatch, first.state_dict())
    grey, _ = create_classifier("test_resnet", 1000, pretrained=True, in_chans=1)
    (conv,) = grey.weights_report.resized
    assert torch.equal(grey.state_dict()[conv], timm.models.adapt_input_conv(1, first.state_dict()[conv]))
    assert not grey.weights_report.exact
    assert equal(grey, first, but=(conv,))


@pytest.mark.parametrize(("size", "resized"), [(64, ()), (96, ("pos_embed",))])
def test_fetched_weights_of_foreign_names_are_reported_as_they_fit(
    size: int, resized: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = trained("test_vit", num_classes=1000)
    tensors = {f"visual.trunk.{name}": tensor for name, tensor in first.state_dict().items()}
    put_on_hub(monkeypatch, {"state_dict": tensors}, "test_vit")
    model, _ = create_classifier("test_vit", 1000, image_size=size, weights="hf-hub:me/x")
    assert model.weights_report == LoadReport("hf-hub:me/x", len(tensors), (), (), resized, "exact")
    assert model.weights_report.exact == (not resized)
    assert equal(model, first, but=resized or ("none",))


def test_what_a_filter_joins_or_cuts_was_not_offered_so() -> None:
    record = LoadRecord()
    hear = record.filtering(lambda it: {"both": torch.cat([it["a"], it["b"]]), "b": it["b"][:2], "c": it["a"]})
    assert hear({"a": torch.zeros(2), "b": torch.zeros(3)}).keys() == {"both", "b", "c"}
    assert record.offered == {"a": (2,), "b": (3,), "c": (2,)}


def test_pretrained_weights_are_timms_whatever_lies_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save_classifier(trained(num_classes=1000), "test_resnet")
    first = trained(num_classes=1000)
    put_on_hub(monkeypatch, first.state_dict())
    model, _ = create_classifier("test_resnet", 1000, pretrained=True)
    assert equal(model, first)
    assert model.weights_report.source == "test_resnet"
    assert not equal(create_classifier("test_resnet", 1000, weights="test_resnet")[0], first)


def test_a_model_of_the_hub_must_be_the_named_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("timm_accel.models.sources.load_model_config_from_hf", lambda name: ({}, f"of_{name}", {}))
    with refused(ValueError, "weights to be of test_resnet", "'hf-hub:me/x'", "of_me/x"):
        create_classifier("test_resnet", 3, weights="hf-hub:me/x")


def test_weights_that_fit_nothing_are_refused(tmp_path: Path) -> None:
    torch.save(trained("test_vit").state_dict(), tmp_path / "w.pth")
    for num_classes in (3, 4):
        with refused(ValueError, "weights to fit test_resnet", "w.pth", "no tensor has a name", "cls_token", "conv1.0"):
            create_classifier("test_resnet", num_classes, weights=tmp_path / "w.pth")


def test_weights_of_other_shapes_are_refused(tmp_path: Path) -> None:
    tensors = trained().state_dict()
    tensors["layer1.0.conv1.weight"] = torch.zeros(1, 2, 3, 4)
    torch.save(tensors, tmp_path / "w.pth")
    words = ("weights to fit test_resnet", "1 tensors have another shape", "layer1.0.conv1.weight with (1, 2, 3, 4)")
    with refused(ValueError, *words):
        create_classifier("test_resnet", 3, weights=tmp_path / "w.pth")


def test_a_filter_that_fails_says_that_the_weights_do_not_fit(tmp_path: Path) -> None:
    tensors = trained("test_vit").state_dict()
    tensors["pos_embed"] = torch.zeros(3)
    torch.save(tensors, tmp_path / "w.pth")
    with refused(ValueError, "weights to fit test_vit", "w.pth", "Create the model that they are of"):
        create_classifier("test_vit", 3, image_size=64, weights=tmp_path / "w.pth")
    with refused(ValueError, "arguments that test_vit can be built with"):  # the true reason comes first
        create_classifier("test_vit", 3, patch_size=0, weights=tmp_path / "w.pth")


def test_a_folder_of_another_model_is_refused(tmp_path: Path) -> None:
    save_classifier(trained("test_vit"), tmp_path)
    with refused(ValueError, "weights to be of test_resnet", "which are of test_vit"):
        create_classifier("test_resnet", 3, weights=tmp_path)
    with refused(ValueError, "weights to be of test_resnet", "which are of resnet18"):
        create_classifier("test_resnet", 3, weights="resnet18.a1_in1k")


@pytest.mark.parametrize(
    ("make", "kind", "words"),
    [
        (lambda path: None, FileNotFoundError, ["which does not exist"]),
        (lambda path: path.mkdir(), FileNotFoundError, ["without these", "model.safetensors"]),
        (lambda path: torch.save({"a": 1}, path), ValueError, ["to hold tensors by name", "without any"]),
        (lambda path: path.write_bytes(b"no archive"), ValueError, ["load without running code", "Save a state dict"]),
        (lambda path: torch.save(nn.Linear(2, 2), path), ValueError, ["load without running code"]),
    ],
)
def test_what_holds_no_weights_is_refused(make: Any, kind: type[Exception], words: list[str], tmp_path: Path) -> None:
    make(tmp_path / "w.pth")
    with refused(kind, "Expected weights", *words[:1]):
        create_classifier("test_resnet", 3, weights=tmp_path / "w.pth")


def test_files_and_folders_here_need_no_slash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    first = trained()
    torch.save(first.state_dict(), "w.pth")
    save_classifier(first, "best")
    for weights in ("w.pth", "best", "local-dir:best"):
        assert equal(report_of("test_resnet", 3, weights)[0], first)
    with refused(FileNotFoundError, "'v.pth', which does not exist"):
        create_classifier("test_resnet", 3, weights="v.pth")
    with refused(FileNotFoundError, "'local-dir:bset', which does not exist"):
        create_classifier("test_resnet", 3, weights="local-dir:bset")


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "w.onnx").touch()
    with refused(ValueError, "weights to be a file of .safetensors, .pth", "w.onnx"):
        create_classifier("test_resnet", 3, weights=str(tmp_path / "w.onnx"))


def test_an_unknown_tag_is_refused() -> None:
    with refused(
        ValueError, "model to be a name of timm", "'test_resnet.r160'", "Did you mean 'test_resnet.r160_in1k'"
    ):
        create_classifier("test_resnet", 3, weights="test_resnet.r160")


def test_timms_loader_is_its_own_again(tmp_path: Path) -> None:
    before = timm.models._builder.load_pretrained
    torch.save({"a": torch.zeros(1)}, tmp_path / "w.pth")
    with pytest.raises(ValueError, match="weights to fit"):
        create_classifier("test_resnet", 3, weights=tmp_path / "w.pth")
    assert timm.models._builder.load_pretrained is before
    save_classifier(trained(), tmp_path)
    model, _ = create_classifier("test_resnet", 3, weights=tmp_path)
    assert not model._load_state_dict_pre_hooks
    assert not model._load_state_dict_post_hooks


def test_a_new_head_beside_weights_starts_near_equal_chances(tmp_path: Path) -> None:
    name = "test_efficientnet"
    torch.save(timm.create_model(name, num_classes=7).state_dict(), tmp_path / "weights.pth")
    model, _ = create_classifier(name, 2, image_size=32, weights=tmp_path / "weights.pth")
    assert model.weights_report.head == "new"
    assert timm.create_model(name, num_classes=2).get_classifier().weight.std() > 0.3
    assert 0.01 < model.get_classifier().weight.std() < 0.03
    assert not model.get_classifier().bias.any()
    same, _ = create_classifier(name, 7, image_size=32, weights=tmp_path / "weights.pth")
    assert same.get_classifier().weight.std() > 0.1  # loaded, not drawn


@pytest.mark.parametrize(
    ("name", "options"),
    [("resnet10t", {"pretrained": True}), ("resnet18", {"weights": "resnet18.a1_in1k"}),
     ("resnet18", {"weights": "hf-hub:me/x"}), ("resnet18", {"weights": "hf-hub:me//x"})],
)  # fmt: skip
def test_weights_that_cannot_be_downloaded_are_refused_with_name_and_cause(
    name: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with refused(OSError, "to download the weights of", repr(options.get("weights", name)), "Check the name"):
        create_classifier(name, 3, **options)


@pytest.mark.parametrize("error", [URLError("no route"), HTTPError("http://x/y", 404, "Not Found", Message(), None)])
def test_an_error_of_urllib_is_a_sentence_too(error: OSError, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(timm.models._builder, "load_state_dict_from_hf", fail)
    with refused(OSError, "to download the weights of 'resnet10t'", str(error)):
        create_classifier("resnet10t", 3, pretrained=True)
    with refused(OSError, "to download the weights of 'resnet10t'", str(error)):
        open_teacher("resnet10t", nn.Identity())


@pytest.mark.parametrize(
    "cause",
    ["no route", "Unknown host. Try again", f"{'The Hub cannot be asked. ' * 7}Make sure that your connection is on"],
)
@pytest.mark.parametrize("end", ["", "."])
def test_the_cause_of_a_failed_download_ends_before_the_remedy(
    cause: str, end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError(cause + end)

    monkeypatch.setattr(timm.models._builder, "load_state_dict_from_hf", fail)
    with refused(OSError, f"but got OSError: {cause}. Check the name and the network"):
        create_classifier("resnet10t", 3, pretrained=True)
