"""What ``fast`` chooses by the device, what it leaves as it is, and that a resumed run keeps it."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import write_images
from refusal import refused

from timm_accel import Recipe
from timm_accel.recipes import build_run, fast
from timm_accel.recipes.fast import choose_fast
from timm_accel.training import precision

ON_CPU = {"mixed_precision": "bf16", "channels_last": True, "opt_args": {"fused": True}}
ON_GPU = {"mixed_precision": "bf16", "channels_last": True, "torch_compile": True}


@pytest.fixture(autouse=True)
def _not_launched(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ACCELERATE_MIXED_PRECISION", "ACCELERATE_DYNAMO_BACKEND"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that makes this machine one with or without bf16 instructions, as far as `fast` knows."""

    def set_device(in_bf16: bool | None) -> None:
        for module in (fast, precision):
            monkeypatch.setattr(module, "has_bf16", lambda device: in_bf16)

    monkeypatch.setattr(fast, "find_spec", lambda name: name == "triton")
    return set_device


def chosen(name: str, saved: Any = None, **options: Any) -> dict[str, Any]:
    recipe = Recipe(fast=True, **options)
    found, _ = choose_fast(recipe, torch.device(name), saved)
    return {option: value for option, (value, _) in found.diff(recipe).items()}


def test_it_chooses_by_the_device_what_was_measured_there(device: Any) -> None:
    device(True)
    assert (chosen("cpu"), chosen("cuda"), chosen("mps")) == (ON_CPU, ON_GPU, {})
    for in_bf16 in (False, None):
        device(in_bf16)
        assert chosen("cpu") == {"channels_last": True, "opt_args": {"fused": True}}
        assert chosen("cuda") == {}


def test_it_says_what_it_chose_and_why(device: Any) -> None:
    device(True)
    line = "fast chooses {}, for a CPU with bf16 instructions."
    for options, names in (
        ({}, "mixed_precision bf16, channels_last true, opt_args.fused true"),
        ({"mixed_precision": "no", "channels_last": False, "opt": "lamb"}, "nothing"),
    ):
        assert choose_fast(Recipe(fast=True, **options), torch.device("cpu"), None)[1] == line.format(names)
    assert choose_fast(Recipe(), torch.device("mps"), None)[1] == (
        "fast chooses nothing, since nothing was measured on such a device (mps)."
    )


@pytest.mark.parametrize(
    ("name", "options", "left"),
    [
        ("cpu", {"channels_last": False}, "channels_last"),
        ("cpu", {"mixed_precision": "no"}, "mixed_precision"),
        ("cpu", {"opt_args": {"fused": False}}, "opt_args"),
        ("cpu", {"opt_args": {"foreach": True}}, "opt_args"),
        ("cpu", {"opt": "lookahead_lamb"}, "opt_args"),
        ("cuda", {"torch_compile": False}, "torch_compile"),
        ("cuda", {"resolutions": (160, 224)}, "torch_compile"),  # each size would be compiled
    ],
)
def test_what_is_set_stays(name: str, options: dict[str, Any], left: str, device: Any) -> None:
    device(True)
    expected = {"cpu": ON_CPU, "cuda": ON_GPU}[name]
    assert chosen(name, **options) == {option: value for option, value in expected.items() if option != left}


def test_what_the_launcher_was_given_stays_and_other_options_of_the_optimizer_do(
    device: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    device(True)
    assert chosen("cpu", opt="lookahead_sgd") == ON_CPU
    assert chosen("cpu", opt_args={"amsgrad": True})["opt_args"] == {"amsgrad": True, "fused": True}
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "NO")
    assert chosen("cuda") == {"channels_last": True}


def test_a_resumed_run_keeps_the_choices_of_its_state_unless_others_are_set(
    tmp_path: Path, device: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    for split in ("train", "val"):
        write_images(tmp_path / "data" / split, {"cat": 2, "dog": 2})
    options: dict[str, Any] = {
        "data_dir": str(tmp_path / "data"), "model": "test_resnet", "image_size": 16, "batch_size": 4,
        "num_workers": 0, "warmup_epochs": 0, "run_dir": str(tmp_path / "run"), "fast": True,
    }  # fmt: skip
    device(True)
    build_run(Recipe(**options, num_epochs=1)).train()
    assert "opt_args.fused true, for a CPU with bf16 instructions." in " ".join(capsys.readouterr().out.split())
    written = yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())
    assert {name: written[name] for name in ON_CPU} == ON_CPU

    def resume() -> Any:
        run = build_run(Recipe(**options, num_epochs=2, resume="auto"))
        assert run.train().num_updates == 2
        return run

    device(False)
    with pytest.warns(UserWarning, match=r"has no bf16 instructions.*Pass mixed_precision='no'"):
        run = resume()
    assert "as in the run that is resumed." in " ".join(capsys.readouterr().out.split())
    assert {name: getattr(run.recipe, name) for name in ON_CPU} == ON_CPU
    written = yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())
    assert (written["num_epochs"], written["fast"]) == (2, True)  # of the run that resumed, not of the first

    device(True)
    not_typed = build_run(Recipe(**options | {"fast": False}, num_epochs=3, resume="auto"))
    assert not_typed.train().num_updates == 3
    assert {name: getattr(not_typed.recipe, name) for name in ON_CPU} == ON_CPU
    with refused(ValueError, "recipe.channels_last (True in the state, False now)"):
        build_run(Recipe(**options, num_epochs=4, resume="auto", mixed_precision="no", channels_last=False)).train()
    written = yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())
    assert (written["num_epochs"], written["channels_last"]) == (3, True)  # what was refused wrote nothing


def test_a_state_of_a_run_without_it_gives_its_own_options(device: Any) -> None:
    device(True)
    saved = {"mixed_precision": "no", "run": {"recipe": {"channels_last": False, "opt_args": None}}}
    assert chosen("cpu", saved) == {"mixed_precision": "no", "channels_last": False}
    assert chosen("cuda", saved)["torch_compile"] is True  # which no state is tied to
