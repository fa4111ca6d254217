"""No loader worker is left when `train` or `evaluate` returns, whatever ends it."""

import gc
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from tiny_runs import fit, make_trainer, tiny_data, tiny_model
from torch.utils.data import DataLoader, Dataset, IterableDataset

from timm_accel.callbacks import Callback
from timm_accel.training import LoopTrainer
from timm_accel.training.loaders import LoaderWorkers, remaining
from timm_accel.upstream import DataLoaderSlice, StopTrainingError

WORKERS = {"num_workers": 2}
PERSISTENT = {"num_workers": 2, "persistent_workers": True}


def workers() -> int:
    """The child processes that are alive, without multiprocessing's trackers and the server of `forked.py`."""
    children = psutil.Process().children(recursive=True)
    words = [" ".join(child.cmdline()) for child in children if child.status() != "zombie"]
    return sum("tracker" not in line and "forked.py" not in line for line in words)


@pytest.fixture(autouse=True)
def none_before_and_none_after() -> Iterator[None]:
    assert workers() == 0
    yield
    assert workers() == 0


class Ending(Callback):
    """Counts the workers in a step, and ends the run by an exception in the third one."""

    def __init__(self, error: BaseException | None = None, event: str = "train") -> None:
        self.error, self.event, self.steps, self.most = error, event, 0, 0

    def on_train_step_end(self, trainer: Any, **kwargs: Any) -> None:
        self._step("train")

    def on_eval_step_end(self, trainer: Any, **kwargs: Any) -> None:
        self._step("eval")

    def _step(self, event: str) -> None:
        self.most = max(self.most, workers())
        self.steps += event == self.event
        if self.steps == 3 and self.error is not None:
            raise self.error


def run(ending: Ending, **options: Any) -> Any:
    trainer = make_trainer(callbacks=[ending])
    loading = {"train_dataloader_kwargs": WORKERS, "eval_dataloader_kwargs": WORKERS}
    return fit(trainer, eval_dataset=tiny_data(), **(loading | options))


@pytest.mark.parametrize("kwargs", [WORKERS, PERSISTENT], ids=["plain", "persistent"])
def test_three_trainers_in_a_list_leave_no_worker(kwargs: dict[str, Any]) -> None:
    trainers = []
    for _ in range(3):
        ending = Ending()
        trainers.append(run(ending, train_dataloader_kwargs=kwargs, eval_dataloader_kwargs=kwargs))
        assert workers() == 0
        assert ending.most == (4 if kwargs is PERSISTENT else 2)  # training and evaluation; there were some to end
    trainers[0].evaluate(tiny_data(), per_device_batch_size=4, dataloader_kwargs=kwargs)
    assert workers() == 0
    fit(trainers[0], train_dataloader_kwargs=kwargs)


@pytest.mark.parametrize("event", ["train", "eval"])
@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("kwargs", [WORKERS, PERSISTENT], ids=["plain", "persistent"])
def test_an_exception_that_is_kept_keeps_no_worker(kwargs: dict[str, Any], kind: Any, event: str) -> None:
    ending = Ending(kind("This ends the run."), event)
    with pytest.raises(kind) as kept:
        run(ending, train_dataloader_kwargs=kwargs, eval_dataloader_kwargs=kwargs)
    assert workers() == 0
    assert ending.most >= 2
    assert kept.value.__traceback__ is not None  # and so its frames, with the iterators in them


@pytest.mark.parametrize("kwargs", [WORKERS, PERSISTENT], ids=["plain", "persistent"])
def test_an_evaluation_that_fails_leaves_no_worker(kwargs: dict[str, Any]) -> None:
    ending = Ending(ValueError("This ends the evaluation."), "eval")
    trainer = make_trainer(callbacks=[ending])
    with pytest.raises(ValueError, match="ends the evaluation") as kept:
        trainer.evaluate(tiny_data(), per_device_batch_size=4, dataloader_kwargs=kwargs)
    assert (workers(), ending.most) == (0, 2)
    assert kept.value.__traceback__ is not None


class Failing(Dataset):
    """A dataset whose worker fails: by an exception, or by a signal that kills it."""

    def __init__(self, fail: Callable[[], None]) -> None:
        self.data, self.fail = tiny_data(), fail

    def __len__(self) -> int:
        return 16

    def __getitem__(self, index: int) -> Any:
        if index == 9:
            self.fail()
        return self.data[index]


def fail_by_exception() -> None:
    raise OSError("The image cannot be read.")


def fail_by_signal() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("kwargs", [WORKERS, PERSISTENT], ids=["plain", "persistent"])
@pytest.mark.parametrize(("fail", "kind"), [(fail_by_exception, OSError), (fail_by_signal, RuntimeError)])
def test_a_worker_that_fails_leaves_no_other(fail: Callable[[], None], kind: Any, kwargs: dict[str, Any]) -> None:
    with pytest.raises(kind) as kept:
        run(Ending(), train_dataset=Failing(fail), train_dataloader_kwargs=kwargs)
    assert workers() == 0
    assert kept.value.__traceback__ is not None


@pytest.mark.parametrize("kwargs", [WORKERS, PERSISTENT], ids=["plain", "persistent"])
def test_a_run_that_stops_early_leaves_no_worker(kwargs: dict[str, Any]) -> None:
    trainer = run(Ending(StopTrainingError("enough")), train_dataloader_kwargs=kwargs)
    assert (workers(), trainer.num_updates) == (0, 2)
    trainer = run(Ending(), train_dataloader_kwargs=kwargs, max_num_train_steps=2)
    assert (workers(), trainer.num_updates) == (0, 2)
    trainer = run(Ending(), train_dataloader_kwargs=kwargs, max_num_train_steps=6)
    assert (workers(), trainer.num_updates) == (0, 6)


def test_ctrl_c_leaves_no_worker() -> None:
    def interrupt() -> None:
        time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGINT)

    class Waiting(Ending):
        def on_train_step_end(self, trainer: Any, **kwargs: Any) -> None:
            self.most = workers()
            threading.Thread(target=interrupt).start()
            time.sleep(10)

    waiting = Waiting()
    with pytest.raises(KeyboardInterrupt) as kept:
        run(waiting)
    assert (workers(), waiting.most) == (0, 2)
    assert kept.value.__traceback__ is not None


class Stuck(Dataset):
    """A dataset whose third batch takes very long."""

    def __len__(self) -> int:
        return 16

    def __getitem__(self, index: int) -> Any:
        if index >= 8:
            time.sleep(30)
        return tiny_data()[index]


def test_a_worker_that_is_busy_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 0.2)
    loading, begun = WORKERS | {"shuffle": False}, time.monotonic()
    with pytest.raises(ValueError, match="ends the run") as kept:
        fit(make_trainer(callbacks=[Second()]), Stuck(), train_dataloader_kwargs=loading)
    assert workers() == 0
    assert time.monotonic() - begun < 60  # each of them has two minutes to go
    assert kept.value.__traceback__ is not None


class Second(Callback):
    def on_train_step_end(self, trainer: Any, step: int = 0, **kwargs: Any) -> None:
        raise ValueError("This ends the run.")


class Wrapped:
    """A user's loader that is none of torch's, around some that are."""

    def __init__(self, loaders: list[DataLoader]) -> None:
        self.loaders = loaders
        self.own = self  # a cycle

    def __len__(self) -> int:
        return sum(map(len, self.loaders))

    def __iter__(self) -> Iterator[Any]:
        for loader in self.loaders:
            yield from loader


class Stream(IterableDataset):
    def __iter__(self) -> Iterator[Any]:
        yield from (tiny_data()[index] for index in range(16))

    def __len__(self) -> int:
        return 16


@pytest.mark.parametrize("persistent", [False, True])
@pytest.mark.parametrize("form", ["loader", "wrapped", "stream"])
@pytest.mark.parametrize("ends", ["error", "end"])
def test_a_users_loader_leaves_no_worker(ends: str, form: str, persistent: bool) -> None:
    options: dict[str, Any] = dict(batch_size=4, num_workers=1, persistent_workers=persistent)

    class User(LoopTrainer):
        def create_train_dataloader(self, batch_size: int, train_dl_kwargs: Any = None) -> Any:
            if form == "stream":
                return DataLoader(Stream(), **options)
            loader = DataLoader(tiny_data(), **options)
            return Wrapped([loader, DataLoader(tiny_data(), **options)]) if form == "wrapped" else loader

    ending = Ending(ValueError("This ends the run.") if ends == "error" else None)
    trainer = make_trainer(User, tiny_model(), callbacks=[ending])
    if ends == "end":
        fit(trainer)
    else:
        with pytest.raises(ValueError, match="ends the run") as kept:
            fit(trainer)
        assert kept.value.__traceback__ is not None
    assert workers() == 0
    assert ending.most >= 1


@pytest.mark.parametrize("persistent", [False, True])
@pytest.mark.parametrize("start", [0, 1])
@pytest.mark.parametrize("form", ["loader", "slice", "wrapped"])
def test_the_rest_of_an_epoch_is_watched(
    form: str, start: int, persistent: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.utils.data._utils, "MP_STATUS_CHECK_INTERVAL", 0.5)  # 5 s for persistent workers to end
    loader: Any = DataLoader(tiny_data(), batch_size=4, num_workers=1, persistent_workers=persistent)
    loader = {"loader": loader, "slice": DataLoaderSlice(loader, 3), "wrapped": Wrapped([loader])}[form]
    watched, rest = LoaderWorkers(), remaining(loader, start)
    assert workers() == 0  # it has not begun
    watched.watch(rest)
    iterator = iter(rest)
    images, _ = next(iterator)
    assert torch.equal(images, torch.stack([tiny_data()[4 * start + index][0] for index in range(4)]))
    assert workers() == 1
    (worker,) = multiprocessing.active_children()
    watched.end()
    assert workers() == 0
    assert worker.exitcode == 0  # it ended by itself, since it was not busy
    assert form != "loader" or "_get_iterator" not in vars(loader)  # a user's loader is as before
    assert len(list(loader)) == (3 if form == "slice" else 4)  # it starts others
    del loader, rest, iterator
    gc.collect()


def test_a_resumed_epoch_leaves_no_worker(tmp_path: Path) -> None:
    class Stopping(Callback):
        def on_update_end(self, trainer: Any, **kwargs: Any) -> None:
            if trainer.num_updates == 2:
                trainer.request_save(everywhere=True)
                trainer.request_stop("a break", interrupted=True)

    def train(callbacks: list[Any], **options: Any) -> Any:
        trainer = make_trainer(callbacks=callbacks, run_dir=tmp_path)
        return fit(trainer, train_dataloader_kwargs=PERSISTENT, **options)

    with pytest.raises(SystemExit):
        train([Stopping])
    assert workers() == 0
    ending = Ending(ValueError("This ends the run."))
    ending.steps = 2  # it ends in the first step
    with pytest.raises(ValueError, match="ends the run") as kept:
        train([ending], resume_from="auto")
    assert (workers(), ending.most) == (0, 2)
    assert kept.value.__traceback__ is not None


def test_an_iterator_of_the_user_goes_on() -> None:
    own = iter(DataLoader(tiny_data(), batch_size=4, num_workers=1))
    next(own)

    class Own(Callback):
        def on_train_step_end(self, trainer: Any, **kwargs: Any) -> None:
            next(own, None)

    fit(make_trainer(callbacks=[Own]), num_epochs=1, max_num_train_steps=2, train_dataloader_kwargs=WORKERS)
    assert workers() == 1
    assert len(list(own)) == 1
