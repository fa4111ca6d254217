"""A state is written beside the training: what it holds, what waits for it, and what a kill or a fork then leaves."""

import os
import runpy
import signal
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from resumed_runs import Interrupting, every_update, keeping_two, make_run, positions, run_script, same_outcome, states
from resumed_runs import train as train_whole
from tiny_runs import fit, make_trainer, tiny_data
from torch import nn
from torch.utils.data import Dataset

from timm_accel.callbacks import Callback, CsvHistoryCallback, SaveBestCallback, SaveStateCallback
from timm_accel.states import background
from timm_accel.states import folder as state_module
from timm_accel.states.background import BackgroundWork, HostMemory
from timm_accel.training import checkpointer as saving


class Asking(Callback):
    """Asks for a state at the tenth update, in the second epoch, and lets it be written when that epoch has ended."""

    def __init__(self, may_write: threading.Event) -> None:
        self.may_write = may_write

    def on_update_end(self, trainer: Any, **kwargs: Any) -> None:
        if trainer.num_updates == 10:
            trainer.request_save(everywhere=True)

    def on_training_run_epoch_end(self, trainer: Any, **kwargs: Any) -> None:
        if trainer.current_run().epoch == 1:
            assert states(trainer.run_dir) == []
            self.may_write.set()


def run_asking(run_dir: Path, may_write: threading.Event) -> dict[str, bytes]:
    """Run, and return the bytes of the state of the tenth update."""
    callbacks = [
        Asking(may_write),
        SaveStateCallback(every_n_epochs=None, keep_when_done=2),
        CsvHistoryCallback,
        SaveBestCallback("eval_loss_epoch", greater_is_better=False),
    ]
    train_whole(make_run(run_dir, callbacks=callbacks))
    return {path.name: path.read_bytes() for path in states(run_dir)[0].glob("*.pt")}


def test_a_state_is_that_of_its_update_to_the_byte_though_the_training_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_write, save = threading.Event(), state_module._save
    with monkeypatch.context() as patch:
        patch.setattr(state_module, "_save", lambda content, file: (may_write.wait(30), save(content, file)))
        written_late = run_asking(tmp_path / "late", may_write)
    monkeypatch.setattr(HostMemory, "copy", lambda memory, value, where: value)
    monkeypatch.setattr(BackgroundWork, "begin", BackgroundWork._do)  # at once, as a state was written before
    monkeypatch.setattr(Asking, "on_training_run_epoch_end", lambda *args, **kwargs: None)
    written_at_once = run_asking(tmp_path / "at_once", may_write)
    assert positions(tmp_path / "late") == positions(tmp_path / "at_once") == ["1.3", "3.0"]
    assert [name for name in written_at_once if written_late[name] != written_at_once[name]] == []
    assert same_outcome(tmp_path / "late", tmp_path / "at_once") is None


def test_copies_keep_what_tensors_share_their_strides_and_their_classes() -> None:
    base = torch.arange(6.0).reshape(2, 3)
    value = {
        "base": base,
        "column": base[:, 1],
        "parameter": nn.Parameter(torch.ones(2), requires_grad=False),
        "sparse": torch.eye(2).to_sparse(),
        "conjugate": torch.tensor([1 + 2j]).conj(),
        "nested": [(torch.zeros(()), {"n": 1})],
        "counter": Counter(a=1),
    }
    copy = HostMemory().copy(value, "it")
    expected = [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
    base += 1
    value["counter"]["a"] = 7
    value["nested"][0][1]["n"] = 7
    value["sparse"].values().zero_()
    assert copy["base"].flatten().tolist() == expected
    assert copy["column"].stride() == (3,)
    assert copy["column"].untyped_storage().data_ptr() == copy["base"].untyped_storage().data_ptr()
    assert type(copy["parameter"]) is nn.Parameter
    assert copy["sparse"].to_dense().tolist() == [[1, 0], [0, 1]]
    assert copy["conjugate"].tolist() == [1 - 2j]
    assert (copy["nested"][0][1], copy["counter"]) == ({"n": 1}, Counter(a=1))


def slow_writes(monkeypatch: pytest.MonkeyPatch, events: list[str]) -> None:
    """Let each write take a while, and note where it begins and ends."""
    write = saving.write_state

    def slowly(root: Path, name: str, *args: Any) -> Any:
        events.append(f"begin {name}")
        time.sleep(0.05)
        state = write(root, name, *args)
        events.append(f"end {name}")
        return state

    monkeypatch.setattr(saving, "write_state", slowly)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_state_waits_for_the_one_before_and_an_error_for_the_last(
    error: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Raising(Callback):
        def on_train_step_start(self, trainer: Any, **kwargs: Any) -> None:
            if trainer.num_updates == 3:  # just after a state was begun
                raise error

    events: list[str] = []
    slow_writes(monkeypatch, events)
    with pytest.raises(error) as caught:
        fit(make_trainer(run_dir=tmp_path, callbacks=[every_update(), Raising()]), tiny_data(20))
    names = [f"epoch_0_batch_{batch}" for batch in (1, 2, 3)]
    assert events == [f"{what} {name}" for name in names for what in ("begin", "end")]
    assert error is KeyboardInterrupt or f"000003_{names[2]}" in caught.value.__notes__[0]
    assert not (tmp_path / "lock").exists()


def test_training_goes_on_while_a_state_is_written_and_the_end_waits_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    slow_writes(monkeypatch, events)

    class Noting(Callback):
        def on_update_end(self, trainer: Any, **kwargs: Any) -> None:
            events.append(f"update {trainer.num_updates}")

        def on_training_run_end(self, trainer: Any, **kwargs: Any) -> None:
            events.append("run ends")

    trainer = make_trainer(run_dir=tmp_path, callbacks=[Noting(), SaveStateCallback(every_n_updates=4)])
    fit(trainer, tiny_data(20), num_epochs=1)
    begun, ended = events.index("begin epoch_0_batch_4"), events.index("end epoch_0_batch_4")
    assert begun < events.index("update 5") < ended
    assert events[-2:] == ["end epoch_1_batch_0", "run ends"]


def test_a_signal_leaves_with_code_75_when_the_state_is_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    slow_writes(monkeypatch, events)
    run = make_run(tmp_path, Interrupting, callbacks=[every_update()])
    run.at = 3
    with pytest.raises(SystemExit) as left:
        train_whole(run)
    assert left.value.code == 75
    assert (events[-1], positions(tmp_path)[-1]) == ("end epoch_0_batch_4", "0.4")


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), MemoryError("none left")])
def test_a_write_that_failed_is_told_once_at_the_next_sync_point(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    told: dict[int, int] = {}

    class Looking(Callback):
        def on_update_end(self, trainer: Any, **kwargs: Any) -> None:
            if trainer.num_updates in (2, 4):
                monkeypatch.setattr(state_module, "_save", fail if trainer.num_updates == 2 else save)
            if trainer.num_updates == 3:
                trainer.current_run().checkpointer._writing._thread.join()
            told[trainer.num_updates] = capsys.readouterr().out.count("No space left on device")

    def fail(*args: Any) -> None:
        raise error

    save = state_module._save
    trainer = make_trainer(
        run_dir=tmp_path, callbacks=[SaveStateCallback(every_n_updates=2), Looking()], sync_every_n_updates=1
    )
    if isinstance(error, OSError):
        fit(trainer, tiny_data(20), num_epochs=1)
        assert told == {1: 0, 2: 0, 3: 0, 4: 1, 5: 0}  # at the sync point of the third update
        assert positions(tmp_path) == ["1.0"]
    else:
        with pytest.raises(MemoryError, match="none left"):
            fit(trainer, tiny_data(20), num_epochs=1)
        assert max(told) == 3


# Kills and forks

MOMENTS = {
    "after the copy": ("checkpointer", "write_state", 3),
    "during a write": ("folder", "_flush", 7),  # three files a state
    "between the files": ("folder", "_flush", 8),
    "before the rename": ("folder", "flush_folder", 5),  # two a state
    "after the rename": ("folder", "_write_latest", 3),
    "during the pruning": ("shutil", "rmtree", 1),
}
KILLED = f"""
import os, shutil, signal, sys, threading
from pathlib import Path
from resumed_runs import keeping_two, make_run, train
from timm_accel.states import folder
from timm_accel.training import checkpointer

def train_and_die(run_dir, module, name, count):
    calls, inner = [], getattr(module, name)

    def kill(*args, **kwargs):
        in_thread = threading.current_thread() is not threading.main_thread()
        if in_thread and (name != "rmtree" or "_epoch_" in args[0].name):
            calls.append(name)
        if len(calls) == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return inner(*args, **kwargs)

    setattr(module, name, kill)
    train(make_run(run_dir, callbacks=keeping_two()), num_epochs=1)

train(make_run(Path(sys.argv[1]) / "whole", callbacks=keeping_two()), num_epochs=1)
modules = dict(folder=folder, checkpointer=checkpointer, shutil=shutil)
for moment, (module, name, count) in {MOMENTS!r}.items():
    if (child := os.fork()) == 0:
        train_and_die(Path(sys.argv[1]) / moment, modules[module], name, count)
        os._exit(0)
    print(moment, os.WTERMSIG(os.waitpid(child, 0)[1]), flush=True)
"""


def test_a_kill_in_the_background_leaves_what_an_atomic_write_leaves(tmp_path: Path) -> None:
    done = run_script(tmp_path, KILLED)
    assert done.stdout.splitlines()[1:] == [f"{moment} {signal.SIGKILL:d}" for moment in MOMENTS], done.stderr
    left = {}
    for moment in MOMENTS:
        killed = tmp_path / "run" / moment
        left[moment] = ".".join(positions(killed)), len(list(killed.glob("state/*.unfinished")))
        train_whole(make_run(killed, callbacks=keeping_two()), num_epochs=1, resume_from="auto")
        assert same_outcome(tmp_path / "run" / "whole", killed) is None, moment
        assert list(killed.glob("state/*.unfinished")) == []
    assert left == {
        "after the copy": ("0.1.0.2", 0),
        "during a write": ("0.1.0.2", 1),
        "between the files": ("0.1.0.2", 1),
        "before the rename": ("0.1.0.2", 1),
        "after the rename": ("0.1.0.2.0.3", 0),
        "during the pruning": ("0.2.0.3", 1),
    }


class Watching(Dataset):
    """Two images, whose class tells whether the worker has an open file of a state (1) or the memory of copies (2)."""

    memory: HostMemory

    def __getitem__(self, index: int) -> Any:
        files = [os.readlink(file) for file in Path("/proc/self/fd").iterdir() if file.is_symlink()]
        held = int(any(file.endswith(".pt") for file in files))
        if self.memory._buffer:
            address = torch.frombuffer(self.memory._buffer, dtype=torch.uint8).data_ptr()
            maps = [line.split()[0].split("-") for line in Path("/proc/self/maps").read_text().splitlines()]
            held += 2 * any(int(start, 16) <= address < int(end, 16) for start, end in maps)
        return torch.zeros(3, 8, 8), held

    def __len__(self) -> int:
        return 2


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="the names of open files are read from /proc")
def test_workers_that_are_forked_during_a_write_run_and_hold_nothing_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stepped, within, held, flush = threading.Event(), [], [], state_module._flush
    monkeypatch.setattr(state_module, "_flush", lambda file: (stepped.wait(), flush(file)))

    class Counting(Callback):
        def on_train_epoch_start(self, trainer: Any, **kwargs: Any) -> None:
            trainer.train_dataset.memory = trainer.current_run().checkpointer._copies
            while trainer.run_history.current_epoch > 1 and not background._files:
                time.sleep(0.001)

        def on_train_step_start(self, trainer: Any, **kwargs: Any) -> None:
            within.append(bool(background._files))
            stepped.set()

        def on_train_step_end(self, trainer: Any, batch: Any, **kwargs: Any) -> None:
            held.append(batch[1].tolist())

        def on_training_run_epoch_end(self, trainer: Any, **kwargs: Any) -> None:
            if trainer.run_history.current_epoch < 3:
                stepped.clear()

    trainer = make_trainer(run_dir=tmp_path, callbacks=[SaveStateCallback(), Counting()])
    workers = {"num_workers": 2, "persistent_workers": False, "multiprocessing_context": "fork"}
    fit(trainer, Watching(), num_epochs=3, per_device_batch_size=1, train_dataloader_kwargs=workers)
    assert [within[0], *within[2::2]] == [False, True, True]  # at the first of the two batches of an epoch
    assert held == [[0]] * 6
    assert positions(tmp_path) == ["3.0"]


def test_a_write_imports_nothing_as_a_worker_that_is_forked_meanwhile_could_never_import_it(tmp_path: Path) -> None:
    done = run_script(
        tmp_path,
        """
import sys
from pathlib import Path
import torch
from timm_accel.states.background import HostMemory
from timm_accel.states.folder import prune_states, write_state
loaded = set(sys.modules)
for _ in range(2):
    write_state(Path(sys.argv[1]), "epoch_0_batch_1", HostMemory().copy({"a.pt": {"a": torch.zeros(3)}}, ""), {})
prune_states(Path(sys.argv[1]), 1)
print(sorted(set(sys.modules) - loaded))
""",
    )
    assert done.stdout == "[]\n", done.stderr


def test_a_torch_without_that_module_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.serialization.config", None)  # as torch 2.6
    monkeypatch.setitem(sys.modules, "torch.utils.serialization", None)
    assert runpy.run_path(background.__file__)["HostMemory"]
