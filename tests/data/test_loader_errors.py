"""What loader workers and the limits of a machine bring about is one sentence with its cause and what helps."""

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from forked import run
from refusal import refused
from tiny_runs import fit, make_trainer, same_weights, tiny_data
from torch.utils.data import Dataset

from timm_accel.callbacks import SaveStateCallback
from timm_accel.data.labeled_images import LabeledImages
from timm_accel.data.loader_errors import loader_errors_explained
from timm_accel.features import extract_embeddings
from timm_accel.messages import own_sentence
from timm_accel.models import create_classifier

TESTS = Path(__file__).parent.parent


class Failing(Dataset):
    """Images of which number 9 fails."""

    def __init__(self, fail: Callable[[], Any] | None, data: Any = None) -> None:
        self.fail, self.data = fail, tiny_data() if data is None else data

    def __len__(self) -> int:
        return 16

    def __getitem__(self, index: int) -> Any:
        if index == 9 and self.fail is not None:
            self.fail()
        return self.data[index]


class OddError(Exception):
    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} {two}")


def throw(error: Exception) -> Callable[[], None]:
    def fail() -> None:
        raise error

    return fail


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


MANY = OSError(errno.EMFILE, "Too many open files", "9.png")
FAULTS: list[tuple[Callable[[], Any], type[Exception], list[str]]] = [
    (throw(OSError("boom\x1b[2J")), OSError, [r"OSError: boom\u001b[2J in worker", "num_workers=0 to see"]),
    (throw(KeyError("boom")), KeyError, ["KeyError: 'boom' in worker", "num_workers=0 to see"]),
    (throw(ValueError("one\ntwo")), ValueError, ["ValueError: one in worker", "num_workers=0 to see"]),
    (throw(OddError(1, 2)), RuntimeError, ["OddError: 1 2 in worker", "num_workers=0 to see"]),
    (throw(MANY), OSError, ["Too many open files", "9.png", "in worker", "ulimit -n", "num_workers=0"]),
    (throw(MemoryError("Cannot allocate memory")), MemoryError, ["Cannot allocate memory in worker", "fewer workers"]),
    (kill, RuntimeError, ["a worker (process", "exited unexpectedly", "Free memory", "fewer workers"]),
]


@pytest.mark.parametrize(("fail", "kind", "words"), FAULTS)
def test_a_worker_that_fails_is_one_sentence_and_the_run_resumes_bit_equal(
    fail: Callable[[], Any], kind: type[Exception], words: list[str], tmp_path: Path
) -> None:
    def train(name: str, fail: Callable[[], Any] | None, **options: Any) -> Any:
        trainer = make_trainer(run_dir=tmp_path / name, callbacks=[SaveStateCallback(every_n_updates=1)])
        return fit(trainer, Failing(fail), train_dataloader_kwargs={"num_workers": 1}, **options)

    with refused(kind, "Expected the loader to give every batch, but got", *words) as caught:
        train("run", fail)
    assert own_sentence(caught.value) is not None  # so the command line prints it alone
    assert caught.value.__cause__ is not None
    resumed = train("run", None, resume_from="auto")
    assert same_weights(resumed.model, train("whole", None).model)


LIMITED = """
import resource, subprocess, sys
from pathlib import Path
import torch
from tiny_runs import fit, make_trainer, tiny_data
from timm_accel.callbacks import SaveStateCallback

class Wide(torch.utils.data.Dataset):
    def __len__(self):
        return 16

    def __getitem__(self, index):
        return [torch.ones(30_000 if sys.argv[1] == "shm" else 3), *torch.ones(30, 3)], index % 3

class Model(torch.nn.Linear):
    def forward(self, inputs):
        return super().forward(inputs[1])

trainer = make_trainer(model=Model(3, 3), run_dir=sys.argv[2], callbacks=[SaveStateCallback()])
fit(trainer, Wide(), num_epochs=1)
if sys.argv[1] == "shm":
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", "/dev/shm"])
    if mounted.returncode:
        sys.exit(77)
else:
    resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))
try:
    fit(trainer, Wide(), train_dataloader_kwargs={"num_workers": 2}, resume_from="auto")
except Exception as error:
    print(error)
fit(trainer, Wide(), resume_from="auto")
print(trainer.run_history.current_epoch)
"""


@pytest.mark.parametrize(
    ("limit", "words"),
    [("shm", ["shared memory", "/dev/shm", "--shm-size"]), ("files", ["Too many open files", "ulimit -n"])],
)
def test_a_small_shared_memory_and_few_open_files_are_one_sentence(
    limit: str, words: list[str], tmp_path: Path
) -> None:
    paths = os.pathsep.join([str(TESTS), str(TESTS.parent)])
    environment = os.environ | {"PYTHONPATH": paths, "ACCELERATE_USE_CPU": "true"}
    command = ["-c", LIMITED, limit, str(tmp_path)]
    if limit == "shm":
        if subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode:
            pytest.skip("needs the right to mount a small file system")
        command = ["unshare", "-m", sys.executable, "-W", "ignore", *command]
        result = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    else:
        result = run(command, env=environment)
    if result.returncode == 77:
        pytest.skip("needs the right to mount a small file system")
    sentence, epoch = [line for line in result.stdout.splitlines() if line.startswith(("Expected", "2", "3"))]
    assert sentence.startswith("Expected the loader to give every batch, but got ")
    assert [word for word in [*words, "num_workers=0"] if word not in sentence] == []
    assert epoch in ("2", "3")  # the state was intact


def test_embeddings_explain_their_workers_too() -> None:
    model = create_classifier("test_resnet", 3, image_size=32)[0]
    images = [(torch.zeros(3, 32, 32), 0)] * 16
    with refused(RuntimeError, "Expected the loader to give every batch", "exited unexpectedly", "Free memory"):
        extract_embeddings(model, Failing(kill, images), num_workers=1)


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOMEM])
def test_a_limit_of_the_machine_makes_no_image_unreadable(number: int, image_folder: Path) -> None:
    from timm_accel.data import FolderReader

    class Limited(FolderReader):
        def __getitem__(self, index: int) -> Any:
            raise OSError(number, os.strerror(number))

    data = LabeledImages(Limited(image_folder / "train"), on_error="skip")
    for read in (data.__getitem__, data.why_unreadable):
        with pytest.raises(OSError, match=os.strerror(number)):
            read(0)
    assert data.unreadable == []


@pytest.mark.parametrize("error", [ValueError("no"), RuntimeError("sizes differ"), OSError(errno.ENOSPC, "full", "a")])
def test_another_error_stays_what_it_is(error: Exception) -> None:
    with pytest.raises(type(error)) as caught, loader_errors_explained():
        raise error
    assert caught.value is error
