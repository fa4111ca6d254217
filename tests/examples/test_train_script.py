"""The article's script, as a person reads and starts it, beside the recipe that says the same."""

import csv
import inspect
import re
import runpy
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from conftest import write_images
from forked import run
from safetensors.torch import load_file
from tiny_runs import differences, load_example

from timm_accel import Recipe
from timm_accel.callbacks import SaveStateCallback
from timm_accel.recipes import build_run, named_recipe

ROOT = Path(__file__).parents[2]
TRAIN = ROOT / "examples" / "train.py"
SMALL: dict[str, Any] = {"model": "test_resnet", "image_size": 32, "num_epochs": 2, "batch_size": 4, "num_workers": 0}
OTHER: dict[str, Any] = {
    "model": "test_efficientnet",
    "lr": 2e-3,
    "warmup_epochs": 0,
    "mixup": 0.3,
    "cutmix": 0.0,
    "smoothing": 0.7,
    "ema_decay": 0.5,
    "seed": 7,
    "save_every_n_updates": 2,
}
TIMES = ("seconds", "images_per_second", "data_wait", "peak_memory_gb")


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_example(TRAIN)


def outcome(trainer: Any) -> dict[str, Any]:
    """Weights, EMA weights and history of a run, and what it wrote of them, but for times."""
    folder = trainer.run_dir
    with open(folder / "history.csv", newline="") as file:
        rows = [{name: value for name, value in row.items() if name not in TIMES} for row in csv.DictReader(file)]
    names = trainer.run_history.get_metric_names()
    return {
        "weights": trainer.model.state_dict(),
        "ema": trainer.ema_model.module.state_dict(),
        "history": {name: trainer.run_history.get_metric_values(name) for name in names},
        "rows": rows,
        "saved": {each: load_file(folder / each / "model.safetensors") for each in ("best", "best_ema")},
        "split": (folder / "split.csv").read_text() if (folder / "split.csv").exists() else None,
    }


def without_splits(folder: Path) -> Path:
    return write_images(folder / "images", {"cat": 8, "dog": 7, "owl": 7})


def with_splits(folder: Path) -> Path:
    write_images(folder / "images" / "train", {"cat": 7, "dog": 6, "owl": 6})
    return write_images(folder / "images" / "val", {"cat": 3, "dog": 3, "owl": 3}).parent


@pytest.mark.parametrize(
    ("data", "options"),
    [
        pytest.param(with_splits, SMALL, id="folders"),
        pytest.param(without_splits, SMALL | OTHER, id="others"),
        pytest.param(
            with_splits, SMALL | {"mixup": 0.0, "cutmix": 0.0, "num_epochs": 1, "smoothing": 0.7}, id="unmixed"
        ),
    ],
)
def test_the_recipe_with_the_scripts_options_ends_in_the_same_bits(
    script: ModuleType, tmp_path: Path, data: Callable[[Path], Path], options: dict[str, Any]
) -> None:
    folder = str(data(tmp_path))
    read = script.main(folder, str(tmp_path / "script"), **options)
    built = build_run(Recipe(data_dir=folder, run_dir=str(tmp_path / "recipe"), **options)).train()
    assert len(outcome(read)["rows"]) == options["num_epochs"]
    assert differences(outcome(read), outcome(built)) == []


def test_without_data_they_train_on_the_digits_to_the_same_bits(script: ModuleType, tmp_path: Path) -> None:
    options = script.DIGITS | {"model": "test_resnet", "num_epochs": 1, "num_workers": 0}
    read = script.main(**options | {"run_dir": str(tmp_path / "script")})
    built = build_run(named_recipe("demo").recipe(**options | {"run_dir": str(tmp_path / "recipe")})).train()
    assert differences(outcome(read), outcome(built)) == []


@pytest.mark.parametrize("first", ["script", "recipe"])
def test_one_resumes_from_a_state_of_the_other_to_the_same_bits(
    script: ModuleType, image_folder: Path, tmp_path: Path, first: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(script, "SaveStateCallback", partial(SaveStateCallback, keep=9, keep_when_done=9))
    options = SMALL | {"data_dir": str(image_folder), "save_every_n_updates": 3, "mixup": 0.3}

    def train(kind: str, run_dir: str, **resume: Any) -> Any:
        if kind == "script":
            return script.main(**options | {"run_dir": str(tmp_path / run_dir)} | resume)
        keep = {"keep_states": 9, "keep_states_when_done": 9}
        return build_run(Recipe(**options | keep | {"run_dir": str(tmp_path / run_dir)} | resume)).train()

    whole = train(first, "whole")
    state = next((tmp_path / "whole" / "state").glob("*_epoch_1_batch_2"))
    resumed = train("recipe" if first == "script" else "script", "resumed", resume=str(state))
    found = differences(outcome(whole), outcome(resumed))
    assert [place for place in found if not place.startswith("/saved/")] == []  # the best epoch's lie where it began


def test_neither_resumes_with_other_options(script: ModuleType, image_folder: Path, tmp_path: Path) -> None:
    shared = SMALL | {"data_dir": str(image_folder), "num_epochs": 1, "run_dir": str(tmp_path / "run")}
    script.main(**shared)
    for name, value in {"mixup": 0.5, "cutmix": 0.5, "smoothing": 0.2, "image_size": 64}.items():
        with pytest.raises(ValueError, match=rf"recipe\.{name} \({SMALL.get(name, '')}.* in the state, {value} now\)"):
            script.main(**shared | {name: value}, resume="auto")
        with pytest.raises(ValueError, match=rf"recipe\.{name} \(.* in the state, {value} now\)"):
            build_run(Recipe(**shared | {name: value}, resume="auto")).train()
    with pytest.raises(ValueError, match=r"optimizer\.lr \(0\.005 in the state, 0\.1 now\)"):
        script.main(**shared, lr=0.1, resume="auto")


def test_its_options_and_defaults_are_those_of_the_recipe(script: ModuleType) -> None:
    signature = inspect.signature(script.main)
    assert {name: parameter.default for name, parameter in signature.parameters.items()} == {
        name: getattr(Recipe(), name) for name in signature.parameters
    }
    demo = dict(named_recipe("demo").options)
    assert script.DIGITS.items() <= demo.items()
    assert demo.keys() - script.DIGITS == {"auto_augment", "scale", "hflip"}


def test_the_page_on_recipes_tells_what_each_option_of_the_script_is(script: ModuleType) -> None:
    page = (ROOT / "docs" / "recipes.md").read_text().partition("## From the script")[2]
    named = set(re.findall(r"`(\w+)`", page))
    assert set(inspect.signature(script.main).parameters) <= named


def test_its_signature_is_its_command_line(tmp_path: Path) -> None:
    small = [f"--{name}={value}" for name, value in SMALL.items() if name != "image_size"]
    result = run([TRAIN, *small, "--num_epochs=1", "--batch_size=128"], cwd=tmp_path)  # the digits, at 32 pixels
    assert result.returncode == 0, result.stderr
    assert {"best", "best_ema", "history.csv", "state"} <= {path.name for path in (tmp_path / "runs/digits").iterdir()}


@pytest.mark.parametrize(
    ("options", "code", "sentence"),
    [
        (["--data_dir", "nowhere"], 1, "Expected a folder with one folder of images for each class, but got 'nowhere'"),
        (["--data-dir", "wds/shards"], 1, "Expected no split_file beside 'wds/shards', since a stream"),
        (["--data_dir", "images", "--run_dir", "old"], 1, "Expected run_dir to hold no run yet, since"),
        (["--data_dir", "images", "--model", "resnet81"], 1, "but got 'resnet81'. Did you mean 'resnet18'"),
        (["--lr", "abc"], 2, "Expected lr to be float, but got 'abc'. --help lists all options."),
        (["--modl", "resnet18"], 2, "Expected an option, but got 'modl'. Did you mean 'model'?"),
        (["--lr"], 2, "--lr without its one argument. Add it."),
        (["photos"], 2, "Expected an option, but got 'photos'."),
    ],
)
def test_a_wrong_option_is_one_sentence(
    tmp_path: Path,
    options: list[str],
    code: int,
    sentence: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with_splits(tmp_path)
    (tmp_path / "old" / "best").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    small = [f"--{name}={value}" for name, value in SMALL.items()]
    monkeypatch.setattr(sys, "argv", [str(TRAIN), *small, *options])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(TRAIN), run_name="__main__")
    said = capsys.readouterr()
    assert ended.value.code == code
    assert re.fullmatch(r"train\.py: Expected [^\n]+\n", said.err)
    assert sentence in said.err
    assert "epoch" not in said.out


def test_its_help_lists_every_argument(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py", "--help"])
    with pytest.raises(SystemExit, match=r"^$"):
        runpy.run_path(str(TRAIN), run_name="__main__")
    said = capsys.readouterr().out
    assert said.startswith("usage: train.py [OPTIONS]\n")
    assert set(re.findall(r"^  --(\w+) [A-Z]", said, re.MULTILINE)) == set(inspect.signature(script.main).parameters)


def test_it_is_a_page() -> None:
    body = inspect.getsource(load_example(TRAIN).main).partition('"""\n    set_seed')[2]
    assert len(body.splitlines()) <= 75
    assert len(TRAIN.read_text().splitlines()) <= 145
