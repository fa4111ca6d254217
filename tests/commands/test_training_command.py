"""The command ``train`` as a person starts it: plainly, by accelerate and by torchrun."""

import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from contextlib import suppress
from pathlib import Path

import pytest
import timm
import torch
import yaml
from forked import Program, run

ROOT = Path(__file__).parents[2]
TRAIN = ["-m", "timm_accel", "train"]
SMALL = ["--model", "test_resnet", "--image_size", "32", "--num_epochs", "2", "--batch_size", "4", "--num_workers", "0",
         "--warmup_epochs", "1"]  # fmt: skip


TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory):
    """The README's command, without options: the digits, in a separate cache."""
    folder = tmp_path_factory.mktemp("launched")
    command = ["accelerate", "launch", "--config_file", str(ROOT / "examples/accelerate/one_process.yaml"), *TRAIN]
    accelerate = Path(sys.executable).with_name("accelerate")
    result = subprocess.run(
        [str(accelerate), *command[1:]],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=400,
        env={
            "PATH": "/usr/bin:/bin",
            "HOME": str(folder),
            "XDG_CACHE_HOME": str(folder / "cache"),
            "PYTHONPATH": str(ROOT),
            "OMP_WAIT_POLICY": "PASSIVE",  # its two threads spin otherwise, while the other tests need the cores
        },
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return folder, result


def test_the_first_command_learns_the_digits(launched) -> None:
    folder, _ = launched
    config = json.loads((folder / "runs/digits/best/config.json").read_text())
    assert config["best"]["value"] >= 0.95
    assert config["label_names"] == list("0123456789")
    digits = folder / "cache/timm_accel/digits"
    assert (len(list(digits.glob("train/*/*.png"))), len(list(digits.glob("val/*/*.png")))) == (1347, 450)


def test_the_first_command_shows_metrics_bars_and_where_the_weights_lie(launched) -> None:
    _, result = launched
    assert result.stdout.count("epoch ") >= 8
    last = next(line for line in result.stdout.splitlines() if line.startswith("epoch 8/8"))
    assert all(word in last for word in ("lr ", "train_loss ", "eval_loss ", "accuracy ", "(ema ", "f1_macro "))
    assert "weights in runs/digits/best_ema" in result.stdout
    assert result.stderr == ""  # no bar where there is no terminal


def test_a_run_imports_neither_torchmetrics_nor_scipy(image_folder: Path) -> None:
    """They take longer than timm; training, evaluating and saving needs none of these."""
    heavy = ("datasets", "matplotlib", "onnx", "pandas", "pyarrow", "scipy", "sklearn", "tensorboard", "torchmetrics")
    words = ["train", *SMALL, "--report", "false", "--run_dir", "run", "--data_dir", str(image_folder)]
    code = (
        f"import sys; from timm_accel.commands.main import main; assert main({words!r}) == 0; "
        f"print([name for name in {heavy!r} if name in sys.modules])"
    )
    result = run(["-c", code], cwd=image_folder.parent)
    assert result.stdout.splitlines()[-1:] == ["[]"], result.stderr


def test_timm_alone_loads_what_the_first_command_saved(launched) -> None:
    folder, _ = launched
    model = timm.create_model(f"local-dir:{folder}/runs/digits/best_ema", pretrained=True).eval()
    config = timm.data.resolve_model_data_config(model)
    assert config["input_size"] == (3, 32, 32)
    dataset = timm.data.ImageDataset(
        str(folder / "cache/timm_accel/digits/val"), transform=timm.data.create_transform(**config)
    )
    images, labels = zip(*(dataset[index] for index in range(0, 450, 9)), strict=True)
    with torch.no_grad():
        correct = model(torch.stack(images)).argmax(1) == torch.tensor(labels)
    assert correct.float().mean() >= 0.9


def test_it_runs_plainly_on_a_folder_and_writes_the_whole_run(image_folder: Path, tmp_path: Path) -> None:
    command = [*TRAIN, "--data_dir", str(image_folder), *SMALL]
    result = run(command, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    written = {path.relative_to(tmp_path / "runs/train").as_posix() for path in (tmp_path / "runs/train").rglob("*")}
    assert {"recipe.yaml", "history.csv", "best/model.safetensors", "best_ema/config.json"} <= written
    recipe = yaml.safe_load((tmp_path / "runs/train/recipe.yaml").read_text())
    assert (recipe["lr"], recipe["opt"], recipe["model"]) == (5e-3, "lookahead_AdamW", "test_resnet")

    again = run(command, cwd=tmp_path)
    assert again.returncode == 1
    assert "runs are never overwritten" in again.stderr
    assert "Traceback" not in again.stderr


def in_terminal(*command: str, cwd: Path, columns: int = 80) -> str:
    """Run a program of python in a terminal of some columns, and return all that was written to it."""
    screen, side = pty.openpty()
    fcntl.ioctl(side, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    unset = {"COLUMNS", "LINES"}
    env = {name: value for name, value in os.environ.items() if name not in unset} | {
        "ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)
    }  # fmt: skip
    with open(side, "wb", buffering=0) as terminal:
        program = Program(command, cwd=cwd, env=env, stdout=terminal, stderr=terminal)
    written = b""
    with suppress(OSError), open(screen, "rb", buffering=0) as file:  # Linux raises at the end
        while piece := file.read(65536):
            written += piece
    assert program.wait(60) == 0, written.decode()
    return written.decode().replace("\r\n", "\n")


def test_two_processes_divide_a_folder_have_one_voice_in_a_terminal_and_track_each_point_once(
    image_folder: Path, tmp_path: Path
) -> None:
    trackers = ["--trackers", "tensorboard", "--save_every_n_updates", "1"]
    data = ["--data_dir", str(image_folder / "train")]  # without splits
    text = in_terminal(*TORCHRUN, *TRAIN, *data, *SMALL, *trackers, cwd=tmp_path)
    for words in (r"^data +train", r"^model ", r"^updates ", r"^results ", r"^estimate ", r"^epoch +train_loss",
                  r"^ *1/2 ", r"^ *2/2 ", r"^Best accuracy ", r"^Best ema_model_accuracy ", r"^Next:",
                  r"^  timm-accel predict ", r"^  timm-accel evaluate ", r"^  timm-accel export ",
                  r"^Report: "):  # fmt: skip
        assert len(re.findall(words, text.replace("\r", "\n"), re.MULTILINE)) == 1, (words, text)
    bars = re.findall(r"(train|evaluate) (\d)/2 +(\d+)%", text)
    opened = [(title, epoch) for title, epoch, percent in bars if percent == "0"]
    assert opened == [("train", "1"), ("evaluate", "1"), ("train", "2"), ("evaluate", "2")]
    assert "destroy_process_group" not in text
    run_dir = tmp_path / "runs/train"
    split = (run_dir / "split.csv").read_text().splitlines()
    assert sorted(line.rpartition(",")[2] for line in split) == ["split", *["train"] * 16, *["val"] * 3]
    assert [path.name for path in run_dir.glob("*.unfinished")] == []
    page = (run_dir / "report.html").read_text()
    assert "evaluated on 3 images of 3 classes" in page  # rank 0 evaluates all of them, not its share
    points = [json.loads(line) for line in (run_dir / "trackers.jsonl").read_text().splitlines()[1:]]
    moments = [(point["step"], point["order"]) for point in points]
    assert len(moments) >= 3
    assert len({*moments}) == len(moments)
    assert len([*(run_dir / "tensorboard").glob("events.*")]) == 1
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    found = accumulator.EventAccumulator(str(run_dir / "tensorboard")).Reload()
    for tag in found.Tags()["scalars"]:
        steps = [event.step for event in found.Scalars(tag)]
        assert steps == [point["step"] for point in points if tag in point["values"]], tag


def test_a_recipe_comes_from_yaml_flags_and_defaults_in_that_order(tmp_path: Path) -> None:
    config = tmp_path / "mine.yaml"
    config.write_text("data_dir: somewhere\nlr: 0.1\nmodel: resnet18\n")
    result = run([*TRAIN, "--config", config, "--lr", "0.2", "--print_config"], cwd=tmp_path)
    printed = yaml.safe_load(result.stdout)
    assert (printed["lr"], printed["model"], printed["num_epochs"]) == (0.2, "resnet18", 40)


def test_two_processes_refuse_with_one_sentence(tmp_path: Path) -> None:
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    result = run([*TORCHRUN, *TRAIN, "--ema_decy", "1"], cwd=tmp_path, env=env)
    assert result.returncode != 0
    assert result.stderr.count("Expected an option, but got 'ema_decy'.") == 1
