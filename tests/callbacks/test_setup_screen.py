"""The screen before training tells what is trained, fits its terminal, and costs neither bits nor errors."""

import io
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from conftest import write_images
from timm.data import ImageDataset
from timm.utils import ModelEmaV3
from tiny_runs import fit, make_trainer, same_weights, tiny_data, tiny_model
from torch import nn
from torch.utils.data import IterableDataset

from benchmarks.update_cost import PythonCalls
from timm_accel import Recipe, TimmTrainer, create_datasets
from timm_accel.callbacks import DEFAULT_CALLBACKS, Callback, PrintSetupCallback, SaveBestCallback, SaveStateCallback
from timm_accel.callbacks.setup import estimate
from timm_accel.callbacks.setup.about_data import _in_both
from timm_accel.callbacks.setup.about_run import about_device, about_ema, about_results
from timm_accel.callbacks.setup.sizes import bytes_of_state, bytes_of_weights
from timm_accel.recipes import build_run
from timm_accel.terminal import text_width


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_images(tmp_path / "data" / "train", {"cat": 22, "dog": 6, "owl": 2})
    write_images(tmp_path / "data" / "val", {"cat": 2, "dog": 2, "owl": 2}, size=18)
    (tmp_path / "data" / "train" / "cat" / "notes.txt").write_text("no image")
    return tmp_path


def recipe(folder: Path, **options: Any) -> Recipe:
    small = {"model": "test_resnet", "image_size": 32, "batch_size": 6, "num_epochs": 2, "num_workers": 0}
    return Recipe(**(small | {"data_dir": str(folder / "data"), "run_dir": str(folder / "run")} | options))


def screen(text: str) -> dict[str, str]:
    """The text beside each label; the lines that follow a label are joined to it."""
    lines: dict[str, str] = {}
    label = ""
    for line in text.splitlines():
        if found := re.match(r"(\w+) {2,}(\S.*)", line):
            label = found[1]
            lines[label] = f"{lines[label]}; {found[2]}" if label in lines else found[2]
        elif line.startswith("  ") and label:
            lines[label] += f" {line.strip()}"
        else:
            label = ""
    return lines


def test_the_screen_says_that_the_first_batch_compiles_the_model(folder: Path) -> None:
    def told(torch_compile: bool) -> str:
        trainer = build_run(recipe(folder, torch_compile=torch_compile)).trainer
        return " ".join(text for _, text in about_device(trainer))

    assert "compiled at the first batch, which may take minutes" in told(True)
    assert "compiled" not in told(False)


def test_the_screen_tells_what_is_trained(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build_run(recipe(folder, gradient_accumulation_steps=2, ema_decay=0.5, mixup=0.2, cutmix=0.0)).train()
    shown = screen(capsys.readouterr().out)
    assert shown["data"] == (
        "train 30 images of 3 classes; val 6 images of 3 classes left out: 1 file (1 .txt) "
        "largest class cat (22), smallest owl (2)"
    )
    assert shown["warning"] == "the largest class has 11 times as many images as the smallest"
    assert shown["model"] == "test_resnet, 372,979 parameters, all trained, images of 32×32"
    assert shown["device"] == "cpu, 1 process, float32"
    assert shown["batch"] == "6 images × 2 steps = 12 an update"
    assert shown["updates"] == "3 in each of 2 epochs, 6 in all"  # 5 batches, two of them in an update
    assert shown["EMA"].endswith("averages over 2 updates, 0.7 epochs")
    assert shown["loss"] == "BinaryCrossEntropy, Mixup 0.2, smoothing 0.1"
    assert re.fullmatch(
        r"[\d.]+ s an epoch, [\d.]+ s to the end without evaluations; peak of memory [\d.]+ [GM]B", shown["estimate"]
    )


@pytest.mark.parametrize(
    ("batch_size", "num_epochs", "batch", "updates"),
    [
        (1, 1, "1 image an update", "16 in 1 epoch, 16 in all"),
        (1, 2, "1 image an update", "16 in each of 2 epochs, 32 in all"),
        (4, 1, "4 images an update", "4 in 1 epoch, 4 in all"),
    ],
)
def test_one_image_and_one_epoch_are_told_in_the_singular(
    batch_size: int, num_epochs: int, batch: str, updates: str, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = make_trainer(callbacks=[PrintSetupCallback])
    fit(trainer, tiny_data(16), num_epochs=num_epochs, per_device_batch_size=batch_size)
    shown = screen(capsys.readouterr().out)
    assert (shown["batch"], shown["updates"]) == (batch, updates)


def test_classes_of_one_size_have_one_number(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(2, 22):
        (folder / "data" / "train" / "cat" / f"{number:03}.png").unlink()
    for number in range(2, 6):
        (folder / "data" / "train" / "dog" / f"{number:03}.png").unlink()
    build_run(recipe(folder)).dry_run()
    shown = screen(capsys.readouterr().out)["data"]
    assert shown.endswith(" 2 training images of each class")
    assert "largest" not in shown


def test_warnings_name_equal_files_and_classes_without_images(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train = folder / "data" / "train"
    (folder / "data" / "val" / "dog" / "again.png").write_bytes((train / "dog" / "000.png").read_bytes())
    (train / "dog" / "empty.png").write_bytes(b"")
    (folder / "data" / "val" / "dog" / "empty.png").write_bytes(b"")  # broken, and not equal
    build_run(recipe(folder)).dry_run()
    assert "1 evaluation image also in training, such as" in screen(capsys.readouterr().out)["warning"]


def test_files_of_one_size_are_read_once_each_to_find_equal_ones(tmp_path: Path) -> None:
    for split, count in (("train", 30), ("val", 20)):
        (tmp_path / split / "cat").mkdir(parents=True)
        for number in range(count):
            (tmp_path / split / "cat" / f"{number}.png").write_bytes(f"{split} {number:09}".encode()[:16].zfill(16))
    (tmp_path / "val" / "cat" / "7.png").write_bytes((tmp_path / "train" / "cat" / "3.png").read_bytes())
    train, val = (ImageDataset(str(tmp_path / split)) for split in ("train", "val"))
    with PythonCalls() as calls:
        assert _in_both(train, val) == [str(tmp_path / "val" / "cat" / "7.png")]
    assert calls.counts["file-system calls"] < 4 * 50  # 600 pairs


@pytest.mark.parametrize("columns", [80, 40, 200])
def test_every_line_fits_the_terminal(
    columns: int, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    long = "a_class_of_a_very_long_name" * 3
    for split in ("train", "val"):
        (folder / "data" / split / "cat").rename(folder / "data" / split / long)
    model = "test_resnet"
    trainer = build_run(recipe(folder, model=model, run_dir=str(folder / ("run" * 20)))).trainer
    trainer.callback_handler = type(trainer.callback_handler)([PrintSetupCallback])
    fit(trainer, build_run(recipe(folder)).train_arguments["train_dataset"], num_epochs=1)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) > 10
    told = [line for line in lines if not line.startswith(("ema_decay", "The "))]
    assert max(map(text_width, told)) <= min(80, columns)


def test_a_terminal_without_the_bars_gets_ascii(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii", write_through=True))
    fit(make_trainer(TimmTrainer, callbacks=[PrintSetupCallback], scheduler_args={"sched": "cosine"}))
    schedule = re.search(rb"schedule +(\S+)", raw.getvalue())
    assert schedule is not None
    assert schedule[1].decode() == "####____"  # the 2 epochs of 4 updates have two learning rates


class _Stream(IterableDataset):
    def __iter__(self) -> Any:
        return iter(tiny_data())


@pytest.mark.parametrize(
    ("data", "size"), [(tiny_data(), "train 16 images"), (_Stream(), "train a stream")], ids=["torch", "stream"]
)
def test_data_that_lack_facts_make_the_line_shorter(data: Any, size: str, capsys: pytest.CaptureFixture[str]) -> None:
    def loader(self: Any, batch_size: int, train_dl_kwargs: Any = None) -> Any:
        return torch.utils.data.DataLoader(tiny_data() if size.endswith("stream") else data, batch_size=batch_size)

    kind = type("Trainer", (TimmTrainer,), {"create_train_dataloader": loader})
    fit(make_trainer(kind, callbacks=[PrintSetupCallback]), data, num_epochs=1)
    shown = screen(capsys.readouterr().out)
    assert shown["data"] == size
    assert shown["model"].startswith("Sequential, ")
    assert shown["results"] == "no run_dir"
    assert "estimate" in shown


@pytest.mark.parametrize(
    ("create", "words"),
    [
        (None, "constant learning rate 0.1"),
        (lambda optimizer: torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.5, 8), "LinearLR, learning rate 0.0563"),
        (lambda optimizer: torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer), "ReduceLROnPlateau, learning rate"),
    ],
)
def test_any_schedule_is_told(create: Any, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    fit(make_trainer(TimmTrainer, callbacks=[PrintSetupCallback]), create_scheduler_fn=create)
    assert words in screen(capsys.readouterr().out)["schedule"]


def test_the_weights_have_the_same_bits_with_and_without_the_screen() -> None:
    trainers = [
        fit(make_trainer(TimmTrainer, callbacks=[*DEFAULT_CALLBACKS, *extra], scheduler_args={"sched": "cosine"}))
        for extra in ((), (PrintSetupCallback,))
    ]
    assert same_weights(*(trainer.model for trainer in trainers))


@pytest.mark.parametrize("opt", ["lookahead_AdamW", "sgd", "adafactor", "lamb"])
def test_the_sizes_are_those_of_the_files(opt: str, folder: Path) -> None:
    run = build_run(recipe(folder, opt=opt, lr=1e-3, num_epochs=3, model_args={"channels": [32, 48, 64, 96]}))
    told: dict[str, int] = {}

    class Tells(PrintSetupCallback):
        def on_training_run_start(self, trainer: Any, **kwargs: Any) -> None:
            told.update(state=bytes_of_state(trainer), weights=bytes_of_weights(trainer))

    run.trainer.callback_handler.add_callback(Tells)
    run.train()
    (state,) = (folder / "run" / "state").glob("0*")
    assert told["state"] == pytest.approx(sum(file.stat().st_size for file in state.iterdir()), rel=0.04)
    weights = folder / "run" / "best" / "model.safetensors"
    assert told["weights"] == pytest.approx(weights.stat().st_size, rel=0.04)


def test_an_optimizer_that_reads_values_has_no_size(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    class Reads(torch.optim.SGD):
        def step(self, closure: Any = None) -> None:
            assert self.param_groups[0]["params"][0].sum().item() != 7.0
            super().step()

    model = tiny_model()
    trainer = make_trainer(
        TimmTrainer, model, optimizer=Reads(model.parameters(), lr=0.1), run_dir="run",
        callbacks=[PrintSetupCallback, SaveStateCallback],
    )  # fmt: skip
    fit(trainer, num_epochs=1)
    assert screen(capsys.readouterr().out)["results"] == "run"


def test_a_resumed_run_tells_from_where(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build_run(recipe(folder, num_epochs=3)).train()
    capsys.readouterr()
    build_run(recipe(folder, num_epochs=4, resume="auto")).train()
    assert screen(capsys.readouterr().out)["resumes"].endswith("at epoch 4 of 4, batch 1")
    build_run(recipe(folder, num_epochs=4, resume="auto")).train()
    assert screen(capsys.readouterr().out)["resumes"].endswith("epoch_4_batch_0: already finished")


@pytest.mark.parametrize(
    ("batch", "stage", "size", "words"),
    [
        (2, "train", 6, "at epoch 2 of 3, batch 3"),
        (5, "train", 6, "after the last batch of epoch 2 of 3"),
        (0, "evaluate", 6, "after the last batch of epoch 2 of 3"),
        (0, "end", 6, "after the last batch of epoch 2 of 3"),
        (2, "train", 12, "at epoch 2 of 3, batch 2"),  # as many images
        (5, "train", 10, "after the last batch of epoch 2 of 3"),
    ],
)
def test_a_resumed_run_tells_the_batch_that_comes_next(
    batch: int, stage: str, size: int, words: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Stopping(Callback):
        def on_training_run_start(self, trainer: Any, **kwargs: Any) -> None:
            run = trainer.current_run()
            run.checkpointer.resumed.manifest["progress"] |= {"epoch": 1, "batch": batch, "stage": stage}
            facts = dict(about_results(trainer))
            assert facts["resumes"].endswith(f": {words}")
            raise RuntimeError("That is all.")

    build_run(recipe(folder, num_epochs=1)).train()
    run = build_run(recipe(folder, num_epochs=3, batch_size=size, resume="auto"))
    run.trainer.callback_handler.add_callback(Stopping)
    with pytest.raises(RuntimeError, match=r"That is all\."):
        run.train()


def test_a_run_that_was_ended_after_a_last_batch_tells_that_all_are_done(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Ending(Callback):
        def on_update_end(self, trainer: Any, **kwargs: Any) -> None:
            if trainer.num_updates == 10:
                trainer.request_stop("End.", interrupted=True)

    run = build_run(recipe(folder, ema_decay=None))
    run.trainer.callback_handler.add_callback(Ending)
    with pytest.raises(SystemExit):
        run.train()
    capsys.readouterr()
    build_run(recipe(folder, ema_decay=None, resume="auto")).train()
    out = capsys.readouterr().out
    assert screen(out)["EMA"].startswith("decay ")
    assert "ema_decay is" not in out  # the same
    assert screen(out)["resumes"].endswith("after the last batch of epoch 2 of 2")
    assert "1 of 2 epochs are done, and all batches of the next.\n" in out


def test_what_is_left_out_is_told_once(
    folder: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    build_run(recipe(folder)).dry_run()
    assert capsys.readouterr().out.count("left out: 1 file (1 .txt)") == 1
    assert caplog.messages == []
    create_datasets(32, (0.5,), (0.5,), data=folder / "data")  # without the screen
    assert "left out: 1 file (1 .txt)" in caplog.messages[0]


def test_the_screen_has_the_decay_that_was_chosen_and_it_is_told_once(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    build_run(recipe(folder, num_epochs=8, ema_decay=None)).train()
    out = capsys.readouterr().out
    assert screen(out)["EMA"].startswith("decay 0.875: averages over 8 updates, ")
    assert "ema_decay is" not in out
    build_run(recipe(folder, num_epochs=9, ema_decay=None, resume="auto")).train()
    assert capsys.readouterr().out.count("ema_decay is 0.875: ") == 1  # that of the state


def test_the_screen_has_the_decay_itself_beside_the_window_of_its_warm_up() -> None:
    run = SimpleNamespace(updates_per_epoch=11)
    trainer: Any = SimpleNamespace(
        ema_model=ModelEmaV3(tiny_model(), decay=0.9848, use_warmup=True), current_run=lambda: run,
        run_config=SimpleNamespace(max_num_train_steps=330),
    )  # fmt: skip
    assert list(about_ema(trainer)) == [("EMA", "decay 0.9848: averages over 48 updates, 4.3 epochs")]


def test_the_estimate_is_that_of_the_updates_between_two_sync_points(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 100.0, 102.0, 104.0])  # the first updates take 100 s
    monkeypatch.setattr(estimate, "perf_counter", lambda: next(clock))
    pace = estimate.Pace(0)
    known = []
    for num_updates in (10, 20, 30):
        pace.mark(num_updates)
        known.append(pace.is_known)
    assert known == [False, False, True]
    assert pace.seconds_per_update() == pytest.approx(4 / 20)


@pytest.mark.parametrize(
    ("num_updates", "evaluation", "words"),
    [
        (30, None, "20 s an epoch, 1 min 10 s to the end; peak"),
        (30, tiny_data(), "20 s an epoch, 1 min 10 s to the end without evaluations; peak"),
        (100, tiny_data(), "20 s an epoch without evaluations; peak"),
    ],
)
def test_the_estimate_counts_the_updates_that_are_left_and_nothing_that_was_not_measured(
    num_updates: int, evaluation: Any, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([0.0, 10.0, 20.0])
    monkeypatch.setattr(estimate, "perf_counter", lambda: next(clock))
    pace = estimate.Pace(num_updates - 20)
    pace.mark(num_updates - 10)
    pace.mark(num_updates)
    run = SimpleNamespace(num_updates=num_updates, updates_per_epoch=20, accelerator=Accelerator(cpu=True))
    trainer: Any = SimpleNamespace(
        current_run=lambda: run, run_config=SimpleNamespace(max_num_train_steps=100), eval_dataset=evaluation
    )
    told = pace.estimate(trainer)
    assert told is not None
    assert told.startswith(words)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.04, "0.0 s"), (9.9, "9.9 s"), (59.6, "1 min"), (3600, "1 h"), (3661, "1 h 1 min"), (90_000, "1 d 1 h")],
)
def test_a_duration_has_two_units(seconds: float, words: str) -> None:
    assert estimate.duration(seconds) == words


def test_a_trainer_with_any_model_and_best_weights_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Frozen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = tiny_model()
            self.body[0].requires_grad_(False)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.body(images)

    trainer = make_trainer(TimmTrainer, Frozen(), callbacks=[PrintSetupCallback, SaveBestCallback("eval_loss_epoch",
                                                             False)], run_dir=tmp_path)  # fmt: skip
    fit(trainer, eval_dataset=tiny_data(), num_epochs=1)
    shown = screen(capsys.readouterr().out)
    assert shown["model"] == "Frozen, 555 parameters, 443 trained"
    assert "best weights 1 × 0.0 MB" in shown["results"]
