"""The example, and the check of many families."""

from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tiny_runs import load_example

from benchmarks import families_export as families

ROOT = Path(__file__).parent.parent.parent


def test_the_example_draws_what_the_model_and_its_files_say(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    pytest.importorskip("sklearn")
    example = load_example(ROOT / "examples" / "models" / "export.py")
    exported = example.main(tmp_path / "figure.png", num_epochs=1)
    assert [(each.path.name, each.format) for each in exported] == [
        ("digits.onnx", "onnx"),
        ("digits.pt2", "pt2"),
        ("digits.pt", "torchscript"),
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["figure.png"]
    picture = Image.open(tmp_path / "figure.png")
    assert picture.size == (1320, 624)
    colours = {colour for _, colour in picture.convert("RGB").getcolors(1 << 24)}
    assert {tuple(bytes.fromhex(colour[1:])) for colour in example.COLOURS} <= colours  # a bar of each


SMALL_IMAGES = {"pretrained_cfg_overlay": {"input_size": (3, 64, 64)}}


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("test_convnext", {}),
        ("test_coatnet", {}),
        ("test_mambaout", {}),
        ("test_nfnet", {}),
        ("test_vit_relpos", {"depth": 2}),
        ("resnet10t", SMALL_IMAGES),
        ("mobilenetv3_small_050", SMALL_IMAGES),
        ("regnetx_002", SMALL_IMAGES),
        ("mixer_s32_224", {}),
        ("darknet17", SMALL_IMAGES),
    ],
)
def test_a_model_of_another_family_exports_in_every_way(name: str, options: dict[str, Any]) -> None:
    found = families.check_exports(name, **options)
    assert list(found) == ["onnx", "pt2", "script", "trace"]
    assert all(each.startswith("ok (") for each in found.values()), found


def test_the_table_says_what_fails_and_counts_what_passes() -> None:
    good, bad = dict.fromkeys(families.FORMATS, "ok (1e-07)"), dict.fromkeys(families.FORMATS, "no such operator")
    table = families.table({"a": good, "b": bad | {"pt2": "ok (0e+00)"}})
    assert table.columns == ["model", "onnx", "pt2", "script", "trace"]
    assert table.rows == [
        ["a", "ok (1e-07)", "ok (1e-07)", "ok (1e-07)", "ok (1e-07)"],
        ["b", "no such operator", "ok (0e+00)", "no such operator", "no such operator"],
        ["passed, of 2", "1", "2", "1", "1"],
    ]
