"""Images that cannot be read: batches stay full in training, counts exact in evaluation, and everybody is told."""

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import write_images
from refusal import refused
from tiny_runs import fit, make_trainer
from torch import nn
from trained_runs import brightness

from timm_accel import TimmTrainer, create_datasets
from timm_accel.audit import audit
from timm_accel.callbacks import Callback, PrintMetricsCallback, SaveStateCallback, UnreadableImagesCallback
from timm_accel.data import ImageFolderDataset

COUNTS = {"cat": 40, "dog": 40, "owl": 40}


def break_images(root: Path, numbers: dict[str, range]) -> set[str]:
    """Truncate some images, and return their paths."""
    paths = {str(root / name / f"{number:03d}.png") for name, some in numbers.items() for number in some}
    for path in map(Path, paths):
        path.write_bytes(path.read_bytes()[:60])
    return paths


@pytest.fixture
def folder(tmp_path: Path) -> tuple[Path, set[str], set[str]]:
    """120 and 30 images: 5 % of the first cannot be read, a batch of 4 in a row among them, and 5 of the second."""
    root = tmp_path / "data"
    write_images(root / "train", COUNTS)
    write_images(root / "val", {"cat": 10, "dog": 10, "owl": 10})
    bad_train = break_images(root / "train", {"cat": range(4, 8), "dog": range(9, 10), "owl": range(39, 40)})
    bad_val = break_images(root / "val", {"cat": range(4, 9)})
    return root, bad_train, bad_val


def read(root: Path, **options: Any) -> tuple[ImageFolderDataset, ImageFolderDataset]:
    options = {"auto_augment": None, "max_bad_fraction": 0.1, "on_error": "skip"} | options
    return create_datasets(8, (0.5,) * 3, (0.5,) * 3, root / "train", root / "val", **options)


class Noting(TimmTrainer):
    """Notes the size of every batch."""

    def training_run_start(self) -> None:
        self.sizes: dict[str, list[int]] = {"train": [], "eval": []}
        super().training_run_start()

    def calculate_train_batch_loss(self, batch: Any) -> dict[str, Any]:
        self.sizes["train"].append(len(batch[0]))
        return super().calculate_train_batch_loss(batch)

    def calculate_eval_batch_loss(self, batch: Any) -> dict[str, Any]:
        self.sizes["eval"].append(len(batch[0]))
        return super().calculate_eval_batch_loss(batch)


def train(folder: Path, run_dir: Path | None = None, workers: int = 0, **options: Any) -> Any:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 3))
    callbacks = options.pop("callbacks", [UnreadableImagesCallback])
    trainer = make_trainer(Noting, model, num_classes=3, callbacks=callbacks, run_dir=run_dir)
    loader = {"num_workers": workers}
    data = read(folder, **options)
    return fit(trainer, *data, train_dataloader_kwargs=loader, eval_dataloader_kwargs=loader)


@pytest.mark.parametrize("workers", [0, 2])
def test_training_batches_stay_full_and_evaluation_counts_what_it_saw(folder, workers: int, tmp_path: Path) -> None:
    root, bad_train, bad_val = folder
    trainer = train(root, tmp_path / "run", workers)
    assert trainer.sizes["train"] == [4] * 60  # 120 images, 2 epochs
    assert sorted(trainer.sizes["eval"]) == sorted([4, 3, 4, 4, 4, 4, 2] * 2)  # one of the 8 batches is empty
    assert sum(trainer.sizes["eval"]) == 2 * 25
    with open(tmp_path / "run" / "bad_images.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["path"] for row in rows} == bad_train | bad_val
    assert all("truncated" in row["error"] or "file" in row["error"] for row in rows)


def test_what_is_left_out_is_left_out_of_loss_and_metrics(folder, tmp_path: Path) -> None:
    root, _, bad_val = folder
    trainer = train(root)
    names = ("eval_loss_epoch", "accuracy", "f1_macro")
    history = {name: trainer.run_history.get_metric_values(name) for name in names}
    for path in bad_val:
        Path(path).unlink()
    clean = train(root)
    for name, values in history.items():
        assert clean.run_history.get_metric_values(name) == pytest.approx(values, abs=1e-6)


def test_the_next_readable_image_comes_with_its_own_label(folder) -> None:
    train_set, _ = read(folder[0])
    broken = [index for index in range(120) if train_set.filename(index, absolute=True) in folder[1]]
    assert broken == [4, 5, 6, 7, 49, 119]
    for index, replacement in ((4, 8), (7, 8), (49, 50), (119, 0)):
        assert train_set[index][1] == train_set.labels[replacement]
    assert train_set.unreadable == [4, 5, 6, 7, 49, 119]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_replacement_is_the_same_whoever_loads_it_and_after_a_resume(folder, workers: int, tmp_path: Path) -> None:
    def run(run_dir: Path, num_workers: int, **options: Any) -> Any:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(192, 3))
        saving = SaveStateCallback(every_n_updates=7, keep=99, keep_when_done=99)
        trainer = make_trainer(model=model, run_dir=run_dir, callbacks=[saving])
        data, _ = read(folder[0], auto_augment="rand-m7-mstd0.5-inc1")
        return fit(trainer, data, train_dataloader_kwargs={"num_workers": num_workers}, **options)

    reference = run(tmp_path / "whole", 0)
    resumed = run(tmp_path / "new", workers, resume_from=tmp_path / "whole/state/000002_epoch_0_batch_14")
    for name, value in reference.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name])


def test_a_run_without_a_folder_says_so_on_the_screen(folder, capsys: pytest.CaptureFixture[str]) -> None:
    train(folder[0])
    said = [line for line in capsys.readouterr().out.splitlines() if "could not be read" in line]
    assert said[0].startswith("6 images could not be read and were skipped, such as '")
    assert said[1].startswith("5 images could not be read")
    assert len(said) == 2  # not again in the second epoch


def test_every_result_tells_how_many_images_it_counts(folder, capsys: pytest.CaptureFixture[str]) -> None:
    trainer = train(folder[0], callbacks=[UnreadableImagesCallback, PrintMetricsCallback])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch")]
    assert len(lines) == 2
    assert all("  on 25 of 30 images  " in line for line in lines)
    trainer.evaluate(trainer.eval_dataset, per_device_batch_size=4, dataloader_kwargs={"num_workers": 0})
    assert "  on 25 of 30 images  " in capsys.readouterr().out
    for path in folder[2]:
        Path(path).unlink()
    train(folder[0], callbacks=[UnreadableImagesCallback, PrintMetricsCallback])
    assert " images  " not in capsys.readouterr().out


@pytest.mark.parametrize("workers", [0, 2])
def test_raise_finds_an_unreadable_evaluation_image_before_the_first_epoch(
    folder, workers: int, tmp_path: Path
) -> None:
    for path in folder[1]:
        Path(path).unlink()
    updates = []

    class Counting(Callback):
        def on_update_end(self, trainer: Any, **kwargs: Any) -> None:
            updates.append(trainer.num_updates)

    first = folder[0] / "val" / "cat" / "004.png"
    words = ("Expected every file to be a readable image", str(first), "one of 5", "on_error='skip'")
    with refused(OSError, *words):
        train(folder[0], tmp_path / "run", workers, on_error="raise", callbacks=[UnreadableImagesCallback, Counting])
    assert updates == []
    for path in folder[2]:
        Path(path).unlink()
    train(folder[0], tmp_path / "new", workers, on_error="raise", callbacks=[UnreadableImagesCallback, Counting])
    assert len(updates) == 56  # of 114 images


@pytest.mark.parametrize("workers", [0, 2])
def test_the_search_before_the_first_epoch_draws_no_random_numbers(folder, workers: int) -> None:
    _, val_set = read(folder[0], on_error="raise")
    before = torch.get_rng_state()
    found = val_set.find_unreadable(workers)
    assert [val_set.filename(number, absolute=True) for number in found] == sorted(folder[2])
    assert torch.equal(before, torch.get_rng_state())
    assert val_set.unreadable == []
    halves = [val_set.find_unreadable(workers, rank, 2) for rank in (0, 1)]
    assert halves == [[4, 6, 8], [5, 7]]


@pytest.mark.parametrize("on_error", ["skip", "raise"])
def test_a_resumed_run_evaluates_the_same_images(folder, on_error: str, tmp_path: Path) -> None:
    if on_error == "raise":
        for path in folder[1] | folder[2]:
            Path(path).unlink()

    def run(run_dir: Path, **options: Any) -> Any:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(192, 3))
        callbacks = [UnreadableImagesCallback, SaveStateCallback(every_n_updates=7, keep=99, keep_when_done=99)]
        trainer = make_trainer(TimmTrainer, model, num_classes=3, run_dir=run_dir, callbacks=callbacks)
        data = read(folder[0], auto_augment="rand-m7-mstd0.5-inc1", on_error=on_error)
        return fit(trainer, *data, **options)

    reference = run(tmp_path / "whole")
    resumed = run(tmp_path / "new", resume_from=tmp_path / "whole/state/000002_epoch_0_batch_14")
    for name in ("eval_loss_epoch", "accuracy"):
        values = reference.run_history.get_metric_values(name)
        assert resumed.run_history.get_metric_values(name) == values
        assert len(values) == 2


def test_too_many_in_the_evaluation_stop_the_run(folder, tmp_path: Path) -> None:
    break_images(folder[0] / "val", {"dog": range(0, 10)})
    with refused(RuntimeError, "at most 10 unreadable images among 30", "but got 15", "such as"):
        train(folder[0], tmp_path / "run")
    assert (tmp_path / "run" / "bad_images.csv").exists()


def test_too_many_stop_the_run_with_their_number(folder, tmp_path: Path) -> None:
    break_images(folder[0] / "train", {"dog": range(0, 20)})
    with refused(RuntimeError, "at most 12 unreadable images among 120", "max_bad_fraction=0.1", "such as", "Repair"):
        train(folder[0], tmp_path / "run")
    assert not (tmp_path / "run" / "state").exists()


def test_too_many_stop_within_an_epoch(tmp_path: Path) -> None:
    write_images(tmp_path / "train", {"cat": 100, "dog": 90, "owl": 10})
    write_images(tmp_path / "val", {"cat": 2, "dog": 2, "owl": 2})
    break_images(tmp_path / "train", {"cat": range(0, 90)})
    updates = []

    class Counting(Callback):
        def on_update_end(self, trainer: Any, **kwargs: Any) -> None:
            updates.append(trainer.num_updates)

    with pytest.raises(RuntimeError, match="at most 10 unreadable images among 200"):
        train(tmp_path, max_bad_fraction=0.0, callbacks=[UnreadableImagesCallback, Counting])
    assert updates[-1] == 10  # the first sync point, not the end of the epoch


def test_none_readable_at_all_is_an_error(tmp_path: Path) -> None:
    write_images(tmp_path / "train", {"cat": 3, "dog": 3})
    write_images(tmp_path / "val", {"cat": 3, "dog": 3})
    break_images(tmp_path / "train", {"cat": range(3), "dog": range(3)})
    with refused(OSError, "a readable image", "none among 6"):
        read(tmp_path)[0][0]


def test_the_default_skips_in_training_and_evaluation(folder) -> None:
    train_set, val_set = read(folder[0], on_error=None)
    assert (train_set.on_error, val_set.on_error) == ("skip", "skip")
    assert val_set[4] is None
    _, val_set = read(folder[0], on_error="raise")
    with refused(OSError, "readable image", "val/cat/004.png"):
        val_set[4]


def test_the_first_is_logged_and_the_others_counted(folder, caplog: pytest.LogCaptureFixture) -> None:
    train_set, _ = read(folder[0])
    for index in range(120):
        train_set[index]
    assert len(caplog.records) == 1
    assert "004.png' cannot be read" in caplog.text
    assert train_set.why_unreadable(4)
    assert train_set.why_unreadable(3) == ""


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"on_error": "ignore"}, ("on_error", "'raise' or 'skip'", "got 'ignore'")),
        ({"max_bad_fraction": 1.5}, ("max_bad_fraction", "from 0 to 1", "got 1.5")),
        ({"max_bad_fraction": "5%"}, ("max_bad_fraction", "from 0 to 1", "got '5%'")),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], words: tuple[str, ...], folder) -> None:
    with refused(ValueError, *words):
        read(folder[0], **options)


def heif(brand: bytes) -> bytes:
    return b"\0\0\0\x18ftyp" + brand + b"\0" * 40


KINDS = {
    b"": "an empty file",
    b"<html>404</html>": "no image of a kind that Pillow knows",
    b"%PDF-1.7": "no image of a kind that Pillow knows",
    heif(b"isom"): "no image of a kind that Pillow knows",  # a video
    heif(b"heic"): "a HEIF photo, which needs the package pillow-heif and its register_heif_opener()",
    heif(b"mif1"): "a HEIF photo, which needs the package pillow-heif and its register_heif_opener()",
}


@pytest.mark.parametrize(("content", "reason"), KINDS.items())
def test_training_prediction_and_audit_tell_what_a_file_is_in_the_same_words(
    content: bytes, reason: str, tmp_path: Path
) -> None:
    write_images(tmp_path, {"cat": 2, "dog": 2})
    bad = tmp_path / "cat" / "000.jpg"
    bad.write_bytes(content)
    dataset = ImageFolderDataset(tmp_path, on_error="skip")
    (number,) = dataset.find_unreadable()
    assert (dataset.filename(number, absolute=True), dataset.why_unreadable(number)) == (str(bad), reason)
    assert [each.error for each in brightness().predict([bad, content])] == [reason, reason]
    (unreadable,) = audit(tmp_path, num_workers=0, progress=False).unreadable
    assert (unreadable.path, unreadable.error) == (str(bad), reason)
