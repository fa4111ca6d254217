"""Check every timm family: which heads, poolings and features it has, and whether it trains, saves and loads.

    python -m benchmarks families
    python -m benchmarks families vgg11 levit_128s --out two.json

Uses one small model of each family with random weights, its default image size and two images. ``families_export``
checks the exports. `docs/families.md` shows the table.
"""

import argparse
import logging
import tempfile
from collections.abc import Callable
from typing import Any

import timm
import torch
from torch import nn

from benchmarks.tables import Table
from timm_accel.features import (
    feature_pyramid,
    intermediate_features,
    node_features,
    node_names,
    pooled_features,
    unpooled_features,
)
from timm_accel.models import create_classifier, freeze_stages, save_classifier, stage_names
from timm_accel.models.building import pooling_kinds

FAMILIES = [
    *("test_vit", "test_vit_relpos", "test_byobnet", "test_coatnet", "test_convnext", "test_nfnet", "test_resnet"),
    *("test_efficientnet", "test_mambaout", "beit_base_patch16_224", "cait_xxs24_224", "coat_tiny", "convit_tiny"),
    *("convmixer_768_32", "cpubone_nano", "crossvit_tiny_240", "cs3darknet_focus_s", "cspnext_tiny", "csatv2"),
    *("davit_tiny", "deit_tiny_patch16_224", "densenet121", "dla46x_c", "dpn48b", "edgenext_xx_small"),
    *("efficientformer_l1", "efficientformerv2_s0", "efficientvim_m1", "efficientvit_b0", "efficientvit_m0"),
    *("ese_vovnet19b_slim_dw", "fasternet_t0", "fastvit_t8", "focalnet_tiny_srf", "gcvit_xxtiny", "ghostnet_050"),
    *("gmlp_ti16_224", "halonet_h1", "hardcorenas_b", "hgnetv2_b0", "hiera_tiny_224", "hrnet_w18_small", "iformer_t"),
    *("inception_next_atto", "inception_v3", "inception_v4", "lcnetv2_small", "legacy_seresnet18", "legacy_xception"),
    *("levit_128s", "lowformer_b0", "mobilenetv3_small_050", "mobilevit_xxs", "mvitv2_tiny", "nest_tiny"),
    *("nextvit_small", "pit_ti_224", "poolformerv2_s12", "pvt_v2_b0", "rdnet_tiny", "regnetx_002", "repghostnet_050"),
    *("repvit_m1", "res2next50", "resnest14d", "resnetv2_18", "rexnet_100", "selecsls42", "sequencer2d_s", "shvit_s1"),
    *("skresnet18", "starnet_s050", "swiftformer_xs", "swin_tiny_patch4_window7_224", "swinv2_cr_tiny_224"),
    *("swinv2_tiny_window8_256", "tiny_vit_5m_224", "tnt_s_legacy_patch16_224", "tresnet_m", "twins_svt_small"),
    *("vgg11", "visformer_tiny", "vit_tiny_patch16_dinov3_qkvb", "vit_tiny_r_s16_p8_224", "vitamin_small_224"),
    *("volo_d1_224", "xception41p", "xcit_nano_12_p8_224"),
]


def check_models(name: str) -> dict[str, str]:
    """Return what a model supports, by column: ``yes``, a value, or the reason why not."""
    logging.disable(logging.WARNING)
    heads = {head: _tried(lambda head=head: _head(name, head)) for head in ("linear", "mlp", "function")}
    kinds = pooling_kinds(name)
    return {
        "heads": ", ".join(head for head, said in heads.items() if said == "yes"),
        "poolings": _tried(lambda: _poolings(name, kinds)),
        "stages": _tried(lambda: str(len(stage_names(_create(name)[0])))),
        "a step": _tried(lambda: _step(name, "mlp" if heads["mlp"] == "yes" else "linear")),
        "weights": _tried(lambda: _weights(name)),
        "vectors": _tried(lambda: _vectors(name, heads["mlp"] == "yes")),
        "maps": _tried(lambda: _maps(name)),
        "nodes": _tried(lambda: _nodes(name)),
        "why not": _reason(heads["mlp"]),
    }


def _tried(check: Callable[[], str | None]) -> str:
    try:
        return check() or "yes"
    except Exception as error:
        return f"no: {type(error).__name__}: {' '.join(str(error).split())[:300]}"


def _reason(said: str) -> str:
    """Return why a head was refused, without the general part of the message."""
    return "" if said == "yes" else said.partition("since ")[2].partition(", but got")[0] or said


def _create(name: str, num_classes: int = 3, **options: Any) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    model, config = create_classifier(name, num_classes, **options)
    return model, torch.randn(2, *config["input_size"])


def _head(name: str, head: str) -> None:
    model, images = _create(name, head=nn.Linear if head == "function" else head)
    with torch.no_grad():
        _expect(model.eval()(images).shape == (2, 3), "wrong shape")


def _poolings(name: str, kinds: list[str]) -> str:
    shown = [kind for kind in kinds if not kind.startswith("fast")]
    outputs: dict[str, torch.Tensor] = {}
    for kind in shown:
        model, images = _create(name, 0, global_pool=kind)
        with torch.no_grad():
            outputs[kind] = model.eval()(images)
    _expect(len({tuple(each.flatten().tolist()) for each in outputs.values()}) == len(shown), "one is ignored")
    unpooled = _tried(lambda: str(_create(name, 0, global_pool="")[0].num_features))
    return ", ".join(shown + ([] if unpooled.startswith("no") else ["''"])) or "no choice"


def _step(name: str, head: str) -> None:
    model, images = _create(name, head=head)
    freeze_stages(model, 1)
    before = {key: value.detach().clone() for key, value in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loss = nn.functional.cross_entropy(model.train()(images), torch.tensor([0, 2]))
    loss.backward()
    optimizer.step()
    _expect(bool(loss.isfinite()), "the loss is not finite")
    moved = {key for key, value in model.named_parameters() if not torch.equal(value, before[key])}
    still = {key for key, value in model.named_parameters() if not value.requires_grad}
    _expect(bool(moved) and not moved & still, "frozen weights moved, or none did")


def _weights(name: str) -> None:
    first, _ = _create(name)
    with tempfile.TemporaryDirectory() as folder:
        save_classifier(first, folder)
        same, _ = create_classifier(name, 3, weights=folder)
        _expect(same.weights_report.exact, str(same.weights_report))
        other, _ = create_classifier(name, 5, weights=folder)
        report = other.weights_report
        _expect(report.head == "new" and not (report.missing or report.unexpected), str(report))


def _vectors(name: str, mlp: bool) -> str:
    model, images = _create(name, head="mlp" if mlp else "linear")
    vectors = pooled_features(model)
    with torch.no_grad():
        pooled, unpooled = vectors(images), unpooled_features(model)(images)
        _expect(pooled.ndim == 2, f"pooled features have the shape {tuple(pooled.shape)}")
        with tempfile.TemporaryDirectory() as folder:
            save_classifier(model, folder)
            alone = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=0).eval()
            _expect(torch.equal(alone(images), pooled), "timm alone gives others with num_classes=0")
    shape = "×".join(map(str, unpooled.shape[1:])) if isinstance(unpooled, torch.Tensor) else f"{len(unpooled)} of them"
    return f"{pooled.shape[1]} from {shape}"


def _maps(name: str) -> str:
    ways = []
    model, images = _create(name)
    for way, make in (("pyramid", lambda: feature_pyramid(name)), ("blocks", lambda: intermediate_features(model))):
        try:
            with torch.no_grad():
                maps = make()(images)
        except (TypeError, ValueError):
            continue
        ways.append(f"{way} {len(maps)}")
    _expect(bool(ways), "neither features_only nor forward_intermediates")
    return ", ".join(ways)


def _nodes(name: str) -> str:
    model, images = _create(name)
    names = node_names(model)
    with torch.no_grad():
        outputs = node_features(model, [names[-1]])(images)
        _expect(torch.equal(next(iter(outputs.values())), model.eval()(images)), "the last node is not the output")
    return str(len(names))


def _expect(holds: bool, otherwise: str) -> None:
    if not holds:
        raise ValueError(otherwise)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    parser.add_argument("names", nargs="*", help="models; none for one of each family")


def main(arguments: argparse.Namespace) -> list[Table]:
    """Check the families, and print each row when it is ready."""
    rows = {}
    for name in arguments.names or FAMILIES:
        rows[name] = check_models(name)
        print(name, rows[name], flush=True)
    columns = ["model", *next(iter(rows.values()))]
    return [Table("models", columns, [[name, *row.values()] for name, row in rows.items()])]
