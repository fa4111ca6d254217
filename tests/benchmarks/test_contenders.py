"""All contenders of the benchmarks do the same training, and their times are those of a new process."""

import copy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.utils.data import TensorDataset

from benchmarks import processes
from benchmarks.contenders import NOTES, contender, names
from benchmarks.contenders.job import Job
from benchmarks.processes import Spent, pairs_of
from benchmarks.update_cost import Allocations, counts_of
from benchmarks.update_time import Clock, seconds_of
from benchmarks.whole_run import job_of, write_images

pytestmark = [
    pytest.mark.filterwarnings("ignore:ema_decay=0.5 averages over"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of Lightning and fastai
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


@pytest.mark.usefixtures("capsys")
def test_every_contender_ends_with_the_weights_of_the_bare_loop(tmp_path: Path) -> None:
    """Same start, optimizer, schedule over three epochs, loss and data, which is one batch in any order."""
    torch.manual_seed(0)
    images, first, weights = TensorDataset(torch.randn(4, 3, 32, 32), torch.arange(4)), {}, {}
    for name in names(all_parts=False):
        folder = tmp_path / name
        folder.mkdir()
        job = Job("test_resnet", 1, False, images, images, folder, num_epochs=3)
        first = first or copy.deepcopy(job.network.state_dict())
        job.network.load_state_dict(first)
        contender(name)(job)
        changes = [value.detach() - first[name] for name, value in job.network.named_parameters()]
        weights[name] = torch.cat([change.flatten() for change in changes])
        assert any(folder.rglob("*")), name  # its states
    assert weights["bare"].abs().mean() > 1e-4
    for name, found in weights.items():
        assert (found - weights["bare"]).abs().quantile(0.95) < 1e-4, name


def test_lightning_and_fastai_are_there_if_they_are_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.contenders.find_spec", lambda name: None if name == "lightning" else name)
    assert names() == ["bare", "article", "pytorch-accelerated", "fastai", "timm_accel"]
    assert "article" not in names(all_parts=False)
    assert {*NOTES} <= {"article", "pytorch-accelerated", "lightning", "fastai"}


@pytest.mark.usefixtures("capsys")
def test_an_allocation_of_a_loop_counts() -> None:
    def run(job: Job) -> None:
        kept = [torch.empty(64) for _ in range(3 * job.num_updates)]
        assert len(kept) == 3 * job.num_updates

    assert counts_of(run, "", False, 1, 2, counters=[Allocations])["allocations"] == 3


def test_the_time_of_an_update_is_that_between_two_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([*range(0, 80, 10), *range(100, 108)])
    monkeypatch.setattr("benchmarks.update_time.time", SimpleNamespace(perf_counter=lambda: next(clock)))

    def run(job: Job) -> None:
        assert isinstance(job.train_data, Clock)
        for number in range(len(job.train_data)):
            job.train_data[number]

    assert seconds_of(run, Job(num_updates=8, batch_size=2, image_size=2)) == 2.0  # two images of 1 s, after 4 updates


def test_a_process_tells_its_first_and_last_update() -> None:
    code = "import time\nfor _ in range(2):\n    note()\n    time.sleep(0.1)\n"
    spent = processes.spend(code)
    assert spent.wall > spent.to_last >= spent.to_first + 0.1 > 0.1
    assert spent.after_last >= 0.1
    assert processes.spend(code, stops=True).after_last < 0.1 < spent.wall
    with pytest.raises(RuntimeError, match="division by zero"):
        processes.spend("1/0")
    runs = {"a": [Spent(9, 9), Spent(1, 0.5), Spent(2, 1.5)]}
    assert pairs_of(runs, "processor").seconds == {"a": [0.5, 1.5]}


def test_the_images_of_a_whole_run_are_the_same_for_both_readers(tmp_path: Path) -> None:
    write_images(tmp_path, 40, 10, pixels=8)
    ours, theirs = (job_of(name, tmp_path, tmp_path, 3) for name in ("timm_accel", "bare"))
    assert (len(ours.train_data), len(ours.eval_data), ours.num_updates) == (40, 10, 1)
    assert (len(theirs.train_data), len(theirs.eval_data), theirs.num_updates) == (40, 10, 1)
    assert ours.eval_data[3][1] == theirs.eval_data[3][1]
