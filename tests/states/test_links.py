"""A link in the place of a file of a run is never followed; the run folder itself may be one."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from refusal import contents, refused
from resumed_runs import states
from tiny_runs import NO_WORKERS, fit, make_trainer, tiny_data

from timm_accel.atomic import open_own
from timm_accel.callbacks import CsvHistoryCallback, SaveBestCallback, SaveStateCallback
from timm_accel.states.folder import open_state
from timm_accel.states.saved_state import DamagedStateError

LINES: list[str] = []


def train(run_dir: Path, num_epochs: int = 4, **options: Any) -> Any:
    LINES.clear()
    best = SaveBestCallback("eval_loss_epoch", greater_is_better=False)
    callbacks = [best, CsvHistoryCallback, SaveStateCallback(keep_when_done=3)]
    trainer = make_trainer(callbacks=callbacks, run_dir=run_dir)
    trainer.print = lambda *text: LINES.append(" ".join(map(str, text)))
    options = {"num_epochs": num_epochs, "eval_dataset": tiny_data(8), "eval_dataloader_kwargs": NO_WORKERS} | options
    return fit(trainer, tiny_data(8), **options)


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three epochs, with the states of each."""
    run = tmp_path_factory.mktemp("begun") / "run"
    train(run, num_epochs=3)
    assert len(states(run)) == 3
    return run


@pytest.fixture
def run(begun: Path, tmp_path: Path) -> Path:
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "file").write_text("theirs")
    return shutil.copytree(begun, tmp_path / "run")


def replace(path: Path, kind: str) -> None:
    """Put a link to something of others, or a pipe, in the place of a file or folder."""
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    theirs = next(parent for parent in path.parents if (parent / "theirs").is_dir()) / "theirs"
    targets = {"a file": theirs / "file", "a folder": theirs, "nothing": theirs / "new", "itself": path}
    path.symlink_to(targets[kind]) if kind in targets else os.mkfifo(path)


LINKS = ("a file", "a folder", "nothing", "itself")
PLACES = ("lock", "state", "state/data", "best", "best/config.json", "best/model.safetensors", "history.csv")


@pytest.mark.parametrize("kind", LINKS)
@pytest.mark.parametrize("place", PLACES)
def test_a_link_in_the_place_of_a_file_or_folder_is_refused_before_training(place: str, kind: str, run: Path) -> None:
    replace(run / place, kind)
    theirs = contents(run.parent / "theirs")
    with refused(FileExistsError, str(run / place), "but got a link to", "only the run folder itself may be a link"):
        train(run, resume_from="auto")
    assert contents(run.parent / "theirs") == theirs == {"file": b"theirs"}
    assert (run / place).is_symlink()


@pytest.mark.parametrize("kind", LINKS)
@pytest.mark.parametrize("place", ["history.csv", "state", "best"])
def test_a_new_run_does_not_write_through_a_link_that_waits_for_it(place: str, kind: str, tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "file").write_text("theirs")
    (tmp_path / "run").mkdir()
    replace(tmp_path / "run" / place, kind)
    with refused(FileExistsError, "run"):
        train(tmp_path / "run")
    assert contents(tmp_path / "theirs") == {"file": b"theirs"}


@pytest.mark.parametrize("place", ["lock", "history.csv", "state"])
def test_neither_is_a_pipe_waited_for(place: str, run: Path) -> None:
    replace(run / place, "a pipe")
    with refused(FileExistsError, str(run / place), "but got something else", "Move it away"):
        train(run, resume_from="auto")


@pytest.mark.parametrize("kind", [*LINKS, "a pipe"])
@pytest.mark.parametrize("place", ["latest", ".latest.unfinished", "{next}.unfinished", "data/{list}"])
def test_one_in_the_place_of_a_hint_or_a_temporary_file_is_replaced(place: str, kind: str, run: Path) -> None:
    following = f"{int(states(run)[-1].name[:6]) + 1:06d}_epoch_4_batch_0"
    listing = sorted((run / "state" / "data").iterdir())[0].name
    path = run / "state" / place.format(next=following, list=listing)
    replace(path, kind)
    train(run, resume_from="auto")
    assert states(run)[-1].name == following
    assert (run / "state" / "latest").read_text() == f"{following}\n"
    assert contents(run.parent / "theirs") == {"file": b"theirs"}
    assert not [each for each in run.rglob("*") if each.is_symlink() or each.is_fifo()]
    assert "cannot be written" not in " ".join(LINES)


def as_link(path: Path) -> None:
    aside = path.parents[len(path.parts) - 1 - path.parts.index("run")] / "aside"
    path.rename(aside)
    path.symlink_to(aside)


DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "the state": (as_link, "to be a folder, but got a link to"),
    "common.pt": (lambda state: as_link(state / "common.pt"), "'common.pt' is a link"),
    "rank_0.pt": (lambda state: as_link(state / "rank_0.pt"), "'rank_0.pt' is a link"),
    "manifest.json": (lambda state: as_link(state / "manifest.json"), "'manifest.json' is a link"),
    "a loop": (lambda state: replace(state / "common.pt", "itself"), "'common.pt' is a link"),
    "a pipe": (lambda state: replace(state / "common.pt", "a pipe"), "'common.pt' is missing"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_state_with_a_link_is_named_and_the_one_before_it_used(kind: str, run: Path) -> None:
    damage, words = DAMAGE[kind]
    newest, before = states(run)[:-3:-1]
    damage(newest)
    train(run, resume_from="auto")
    assert words in LINES[0]
    assert "Trying the state before it." in LINES[0]
    assert any(line.startswith(f"Resumed from {str(before)!r}") for line in LINES)
    with refused(DamagedStateError, words):
        open_state(newest).check()


def test_latest_as_a_link_is_no_hint(run: Path) -> None:
    (run / "state" / "latest").unlink()
    (run / "state" / "latest").symlink_to(states(run)[0].name)
    assert open_state(run / "state" / "latest").folder == states(run)[-1]


@pytest.mark.parametrize("place", ["run", "parent"])
def test_the_run_folder_or_one_above_it_may_be_a_link(place: str, run: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(run if place == "run" else tmp_path)
    train(tmp_path / "link" if place == "run" else tmp_path / "link" / "run", resume_from="auto")
    assert states(run)[-1].name.endswith("epoch_4_batch_0")


def test_a_system_without_such_flags_opens_files_as_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("O_NOFOLLOW", "O_NONBLOCK"):  # Windows
        monkeypatch.delattr(os, name)
    with open(tmp_path / "file", "w", opener=open_own) as file:
        file.write("ours")
    assert (tmp_path / "file").read_text() == "ours"


@pytest.mark.parametrize("mode", ["r", "w", "a", "r+"])
def test_only_a_regular_file_is_opened(mode: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("ours")
    with open(tmp_path / "file", mode, opener=open_own):
        pass
    (tmp_path / "file").write_text("theirs")
    (tmp_path / "link").symlink_to("file")
    os.mkfifo(tmp_path / "pipe")
    for name in ("link", "pipe"):
        with pytest.raises(OSError, match=name), open(tmp_path / name, mode, opener=open_own):
            pass
    assert (tmp_path / "file").read_text() == "theirs"
