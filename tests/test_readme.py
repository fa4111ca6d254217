"""The README's blocks run, and its commands are those that are tested."""

import inspect
import re
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from conftest import write_images

import timm_accel.mixins as mixins
from timm_accel import LoopTrainer, Recipe, load_classifier
from timm_accel.callbacks import SaveStateCallback

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_the_first_block_trains_and_keeps_both_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"class{number}" for number in range(10)]
    write_images(tmp_path / "imagenette2-320" / "train", dict.fromkeys(names, 2))
    write_images(tmp_path / "imagenette2-320" / "val", dict.fromkeys(names, 1))
    monkeypatch.chdir(tmp_path)
    assert 'load_classifier("runs/first").predict("photos")' in README
    small = (("resnet18", "test_resnet"), ("160", "32"), ("epochs=40", "epochs=1"), ("batch_size=32", "batch_size=4"),
             ("num_class=10,", "num_class=10, ema_decay=0.0,"))  # fmt: skip
    block = BLOCKS[0]
    for old, new in small:
        assert old in block
        block = block.replace(old, new)
    torch.manual_seed(1)  # another random state than that of the second run
    exec(block, {})
    weights = tmp_path / "runs" / "first" / "best" / "model.safetensors"
    torch.manual_seed(2)
    exec(block.replace("runs/first", "runs/second"), {})
    assert weights.read_bytes() == (tmp_path / "runs/second/best/model.safetensors").read_bytes()
    assert (tmp_path / "runs/first/best_ema/config.json").is_file()
    write_images(tmp_path / "photos", {"holiday": 2})
    predictions = load_classifier("runs/first").predict("photos", progress=False)
    assert [len(each.labels) for each in predictions] == [5, 5]


def test_the_second_block_composes_a_trainer() -> None:
    namespace: dict = {}
    exec(BLOCKS[1], namespace)
    assert issubclass(namespace["Lean"], mixins.ModelEmaMixin)
    assert len(BLOCKS) == 2


def test_the_table_lists_every_mixin_and_option() -> None:
    for name in mixins.__all__:
        (row,) = re.findall(rf"^\| `{name}` \|(.*)$", README, re.MULTILINE)
        for option in getattr(mixins, name).__init__.__kwdefaults__ or {}:
            if "__init__" in vars(getattr(mixins, name)):
                assert f"`{option}`" in row


def test_the_first_commands_are_there_and_the_readme_is_short() -> None:
    launch = "accelerate launch --config_file examples/accelerate/one_process.yaml examples/train.py --data_dir photos"
    train = "timm-accel train --data_dir photos --recipe fine_tune"
    for command in ("pip install . && timm-accel train", train, launch):
        assert f"\n{command}\n" in README
    assert '`pip install -e ".[test]" && pytest`' in README
    assert len(README.splitlines()) < 150
    (picture,) = re.findall(r"^!\[.+\]\((.+)\)$", README, re.MULTILINE)
    assert (ROOT / picture).stat().st_size < 300_000


def test_the_chinese_readme_has_the_blocks_tables_and_options_of_the_english_one() -> None:
    chinese = (ROOT / "README.zh.md").read_text()
    fence = re.compile(r"^```\w*\n.*?^```$", re.DOTALL | re.MULTILINE)
    assert fence.findall(chinese) == fence.findall(README)
    assert len(re.findall(r"^\|", chinese, re.MULTILINE)) == len(re.findall(r"^\|", README, re.MULTILINE))
    for name in re.findall(r"^\| `(\w+)` \|", README, re.MULTILINE):
        ours, theirs = (re.search(rf"^\| `{name}` \|.*$", text, re.MULTILINE) for text in (README, chinese))
        assert ours is not None
        assert theirs is not None
        code = re.compile(r"`([^`]+)`")
        assert code.findall(ours[0]) == code.findall(theirs[0])
    assert set(re.findall(r"`(--\w+)", chinese)) == set(re.findall(r"`(--\w+)", README))


def test_the_options_of_the_base_class_are_named() -> None:
    about = README[README.index("Their base class `LoopTrainer`") : README.index("## More")]
    assert set(re.findall(r"`(\w+)`", about)) - {"LoopTrainer", "Trainer"} == set(LoopTrainer.__init__.__kwdefaults__)


def test_the_page_on_recipes_lists_every_option_once() -> None:
    page = (ROOT / "docs" / "recipes.md").read_text()
    listed = [name for row in re.findall(r"^\| [a-z, ]+ \| (`.*`) \|", page, re.MULTILINE) for name in
              re.findall(r"`(\w+)`", row)]  # fmt: skip
    assert sorted(listed) == sorted(field.name for field in fields(Recipe))


def test_the_page_on_resuming_names_every_option() -> None:
    page = (Path(__file__).parent.parent / "docs" / "resuming.md").read_text()
    for option in inspect.signature(SaveStateCallback).parameters:
        assert f"| `{option}` |" in page
    recipe = {field.name for field in fields(Recipe)}
    for option in re.findall(r"`--(\w+)`", page + README):
        assert option in recipe | {"help", "print_config", "config", "recipe"}, option
