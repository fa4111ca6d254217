"""What the files give, and that the model stays as it is."""

import copy
from collections.abc import Iterator
from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from small_exports import CONFIG, EXPORTERS, Small, classifier, logits_of, run_file
from timm.layers import convert_sync_batchnorm
from timm.models.byobnet import RepVggBlock
from tiny_runs import same_weights
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torchvision.transforms.functional import normalize

from timm_accel.export import Exported, ExportError, export_onnx, export_torchscript, open_exported
from timm_accel.models import freeze_stages

NAMES = ("test_resnet", "test_vit", "test_byobnet", "test_efficientnet")


@pytest.fixture(scope="module", params=EXPORTERS)
def probabilities(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """One file of each kind that takes pixels and gives probabilities."""
    exporter, name = EXPORTERS[request.param]
    path = tmp_path_factory.mktemp(request.param) / name
    return exporter(
        classifier("test_efficientnet").train(), path, class_names=["a", "b", "c"], normalize=True, softmax=True
    )


@pytest.mark.parametrize("kind", EXPORTERS)
@pytest.mark.parametrize("name", NAMES)
def test_the_file_gives_the_logits_of_the_model_at_any_batch_size(name: str, kind: str, tmp_path: Path) -> None:
    exporter, file_name = EXPORTERS[kind]
    smaller = {"img_size": 64, "depth": 2} if name == "test_vit" else {}
    model = classifier(name, **smaller).train()
    exported = exporter(model, tmp_path / file_name)
    for count in (1, 3, 8):
        images = torch.randn(count, 3, 64, 64)
        torch.testing.assert_close(run_file(exported.path, images), logits_of(model, images), atol=1e-5, rtol=1e-4)
    assert exported.path == tmp_path / file_name
    assert exported.size == exported.path.stat().st_size
    assert exported.format == {"script": "torchscript", "trace": "torchscript"}.get(kind, kind)
    assert exported.method == {"onnx": "dynamo", "pt2": "export"}.get(kind, kind)
    assert 0 <= exported.max_difference <= exported.tolerance == 1e-4


def test_normalization_and_softmax_inside_give_what_they_give_outside(probabilities: Exported) -> None:
    pixels = torch.randint(0, 256, (3, 3, 64, 64), dtype=torch.uint8)
    images = normalize(pixels / 255, CONFIG["mean"], CONFIG["std"])
    expected = logits_of(classifier("test_efficientnet"), images).softmax(dim=-1)
    torch.testing.assert_close(run_file(probabilities.path, pixels), expected, atol=1e-6, rtol=1e-4)
    assert 0.05 < expected.amax(dim=1).max() - 1 / 3 < 0.65  # neither equal nor certain


def test_the_opened_file_knows_its_classes_and_preprocessing(probabilities: Exported) -> None:
    opened = open_exported(probabilities.path)
    pixels = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    torch.testing.assert_close(opened(pixels), run_file(probabilities.path, pixels))
    metadata = opened.metadata
    assert metadata.architecture == "test_efficientnet"
    assert (metadata.num_classes, metadata.class_names) == (3, ("a", "b", "c"))
    assert {name: metadata.data_config[name] for name in CONFIG} == CONFIG
    assert metadata.data_config["interpolation"] == "bicubic"
    assert (metadata.includes_normalization, metadata.includes_softmax) == (True, True)


def test_onnx_names_its_ends_its_opset_and_a_free_batch(tmp_path: Path) -> None:
    plain = export_onnx(Small(), tmp_path / "plain.onnx", opset=19)
    assert plain.opset == 19
    assert [entry.version for entry in onnx.load(plain.path).opset_import if not entry.domain] == [19]
    soft = export_onnx(Small(), tmp_path / "soft.onnx", softmax=True)
    assert soft.opset == 18
    for path, output in ((plain.path, "logits"), (soft.path, "probabilities")):
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        (images,), (result,) = session.get_inputs(), session.get_outputs()
        assert (images.name, result.name) == ("images", output)
        assert images.shape == ["batch", 3, 8, 8]


def test_onnx_takes_other_image_sizes_where_asked(tmp_path: Path) -> None:
    model = classifier("test_efficientnet")
    exported = export_onnx(model, tmp_path / "model.onnx", dynamic_size=True)
    images = torch.randn(3, 3, 96, 160)
    torch.testing.assert_close(run_file(exported.path, images), logits_of(model, images), atol=1e-5, rtol=1e-4)


def test_a_file_that_holds_for_one_image_size_alone_does_not_pass_as_one_for_any(tmp_path: Path) -> None:
    class Sized(Small):
        """Takes any size, but gives something else at its own, which tracing does not see."""

        def forward(self, images: Tensor) -> Tensor:
            logits = self.head(images[:, :, :8, :8].flatten(1))
            return logits if images.shape[2] == 8 else logits + 1

    with pytest.raises(ExportError, match=r"by torchscript to differ .* Before that, by dynamo: \w+"):
        export_onnx(Sized(), tmp_path / "model.onnx", dynamic_size=True)
    assert not list(tmp_path.iterdir())


class _Branch(nn.Module):
    """Leaves logits as they are, by a way that depends on their values."""

    def forward(self, logits: Tensor) -> Tensor:
        return logits if logits.abs().sum() >= 0 else -logits


def test_onnx_falls_back_to_the_older_exporter(tmp_path: Path) -> None:
    model = Small(_Branch())
    exported = export_onnx(model, tmp_path / "model.onnx")
    assert exported.method == "torchscript"
    images = torch.randn(7, 3, 8, 8)
    torch.testing.assert_close(run_file(exported.path, images), logits_of(model, images))


class _Batch(nn.Module):
    """Gives something else where the batch is not of two images, which tracing does not see."""

    def forward(self, logits: Tensor) -> Tensor:
        return logits if logits.shape[0] == 2 else logits + 1


def test_a_trace_that_holds_for_one_batch_size_alone_is_found_out_and_a_script_is_not(tmp_path: Path) -> None:
    model = Small(_Batch())
    with pytest.raises(ExportError, match=r"torchscript of small by trace to differ .* at most 0\.0001, but got"):
        export_torchscript(model, tmp_path / "model.pt", method="trace")
    assert not list(tmp_path.iterdir())
    exported = export_torchscript(model, tmp_path / "model.pt", method="script")
    assert exported.max_difference == 0


def test_the_difference_is_a_share_of_the_largest_output(tmp_path: Path) -> None:
    class Half(nn.Module):
        """Adds a thousandth where the batch is not of two images."""

        def forward(self, logits: Tensor) -> Tensor:
            return logits if logits.shape[0] == 2 else logits + 0.001

    torch.manual_seed(0)
    model = Small(Half())
    model.head.weight.data.zero_()
    model.head.bias.data.copy_(torch.tensor([0.1, -0.2, 0.399]))  # a batch of 1 or 5 gives 0.4
    exported = export_torchscript(model, tmp_path / "model.pt", method="trace", tolerance=0.01)
    assert exported.max_difference == pytest.approx(0.001 / 0.4, rel=1e-3)
    assert exported.tolerance == 0.01


def test_outputs_that_are_not_finite_do_not_pass(tmp_path: Path) -> None:
    model = Small()
    model.head.bias.data[0] = float("nan")
    with pytest.raises(ValueError, match=r"Expected the outputs of the model, .* to be finite, but got NaN"):
        export_torchscript(model, tmp_path / "model.pt")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet"])  # torch's BatchNorm, and timm's with activation
def test_sync_batch_norm_becomes_plain_again(name: str, tmp_path: Path) -> None:
    model = classifier(name)
    expected = logits_of(model, images := torch.randn(3, 3, 64, 64))
    sync_bn_model = convert_sync_batchnorm(copy.deepcopy(model))
    exported = export_torchscript(sync_bn_model, tmp_path / "model.pt")
    torch.testing.assert_close(run_file(exported.path, images), expected)
    assert any(isinstance(module, nn.SyncBatchNorm) for module in sync_bn_model.modules())


def test_sync_batch_norm_of_a_head_becomes_plain_again(tmp_path: Path) -> None:
    plain = Small(nn.BatchNorm1d(3, affine=False))
    plain.after.running_mean.fill_(0.3)
    expected = logits_of(plain, images := torch.randn(3, 3, 8, 8))
    exported = export_torchscript(nn.SyncBatchNorm.convert_sync_batchnorm(plain), tmp_path / "model.pt")
    torch.testing.assert_close(run_file(exported.path, images), expected)


def test_the_model_of_the_user_stays_as_it_is(tmp_path: Path) -> None:
    model = classifier("test_vit", img_size=64).to(torch.float64).to(memory_format=torch.channels_last).train()
    model.set_grad_checkpointing()
    before = copy.deepcopy(model)
    exported = export_torchscript(model, tmp_path / "model.pt", method="trace")
    assert same_weights(model, before)
    assert all(module.training for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert model.grad_checkpointing
    assert model.patch_embed.proj.weight.is_contiguous(memory_format=torch.channels_last)
    images = torch.randn(2, 3, 64, 64)
    expected = logits_of(before, images.double()).float()
    torch.testing.assert_close(run_file(exported.path, images), expected, atol=1e-5, rtol=1e-4)


def test_gradient_checkpointing_does_not_get_into_a_script(tmp_path: Path) -> None:
    model = classifier("test_vit", img_size=64)
    model.set_grad_checkpointing()
    export_torchscript(model, tmp_path / "model.pt")
    from_file = torch.jit.load
    with pytest.warns(FutureWarning):
        assert not from_file(tmp_path / "model.pt").grad_checkpointing


def test_weights_in_the_file_are_contiguous(tmp_path: Path) -> None:
    model = classifier().to(memory_format=torch.channels_last)
    exported = export_torchscript(model, tmp_path / "model.pt")
    with pytest.warns(FutureWarning):
        weights = dict(torch.jit.load(exported.path).named_parameters())
    assert all(weight.is_contiguous() for weight in weights.values())
    assert not any(weight.requires_grad for weight in weights.values())


@pytest.fixture
def one_process() -> Iterator[None]:
    """A process group of this process alone."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("one_process")
def test_wrappers_around_the_model_do_not_matter(tmp_path: Path) -> None:
    model = Small()
    images = torch.randn(3, 3, 8, 8)
    for number, wrapped in enumerate(
        (
            torch.compile(DistributedDataParallel(model)),
            DistributedDataParallel(torch.compile(model)),
        )
    ):
        exported = export_torchscript(wrapped, tmp_path / f"{number}.pt")
        torch.testing.assert_close(run_file(exported.path, images), logits_of(model, images))


def test_autocast_of_accelerate_does_not_get_into_the_file(tmp_path: Path) -> None:
    model = Small()
    expected = logits_of(model, images := torch.randn(3, 3, 8, 8))
    AcceleratorState._reset_state(reset_partial_state=True)  # other tests have made it without bfloat16
    try:
        prepared = Accelerator(cpu=True, mixed_precision="bf16").prepare_model(model)
        assert not torch.equal(logits_of(prepared, images), expected)  # bfloat16
        exported = export_torchscript(prepared, tmp_path / "model.pt")
        torch.testing.assert_close(run_file(exported.path, images), expected)
        assert not torch.equal(logits_of(prepared, images), expected)
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)


class Branched(Small):
    """Has a block of several branches before it."""

    def __init__(self) -> None:
        super().__init__()
        self.block = RepVggBlock(3, 3)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.block(images).flatten(1))


def test_branches_are_fused_unless_told_otherwise(tmp_path: Path) -> None:
    model = Branched()
    kept, fused = (export_torchscript(model, tmp_path / f"{on}.pt", reparameterize=on) for on in (False, True))
    with pytest.warns(FutureWarning):
        counts = [len(list(torch.jit.load(each.path).parameters())) for each in (kept, fused)]
    assert counts[0] == len(list(model.parameters()))
    assert counts[1] < counts[0]
    images = torch.randn(3, 3, 8, 8)
    torch.testing.assert_close(run_file(fused.path, images), logits_of(model, images), atol=1e-5, rtol=1e-4)


def test_frozen_branches_are_fused_too(tmp_path: Path) -> None:
    model = Branched()
    freeze_stages(model, ["block"])
    images = torch.randint(0, 256, (3, 3, 8, 8), dtype=torch.uint8)
    expected = logits_of(model, normalize(images / 255, CONFIG["mean"], CONFIG["std"]))
    for frozen in (model, torch.compile(model)):
        fused = export_torchscript(frozen, tmp_path / "model.pt", normalize=True)
        torch.testing.assert_close(run_file(fused.path, images), expected, atol=1e-5, rtol=1e-4)
    norms = [module for module in model.train().modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms
    assert not any(norm.training for norm in norms)  # the model itself stays frozen


def test_a_first_convolution_behind_a_rearrangement_says_nothing_of_the_channels(tmp_path: Path) -> None:
    model = nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(12, 3, 4), nn.Flatten())
    model.pretrained_cfg = {**CONFIG, "input_size": (3, 8, 8), "first_conv": "1"}
    exported = export_torchscript(model, tmp_path / "model.pt")
    assert open_exported(exported.path).metadata.input_size == (3, 8, 8)


def test_one_mean_stands_for_all_channels(tmp_path: Path) -> None:
    exported = export_torchscript(Small(mean=(0.5,), std=(0.25,)), tmp_path / "model.pt", normalize=True)
    metadata = open_exported(exported.path).metadata
    assert (metadata.mean, metadata.std) == ((0.5,) * 3, (0.25,) * 3)


def test_gray_images_have_one_channel(tmp_path: Path) -> None:
    model = classifier("test_resnet", in_chans=1)
    model.pretrained_cfg.update(mean=(0.5,), std=(0.25,))
    exported = export_torchscript(model, tmp_path / "model.pt", normalize=True)
    opened = open_exported(exported.path)
    assert opened.metadata.input_size == (1, 64, 64)
    assert opened.metadata.mean == (0.5,)
    pixels = torch.randint(0, 256, (2, 1, 64, 64), dtype=torch.uint8)
    torch.testing.assert_close(opened(pixels), logits_of(model, (pixels / 255 - 0.5) / 0.25))
