"""What ranks exchange: an update what DDP does and nothing else, and a listed number of calls at the end of an epoch.

Nothing grows with images, updates, classes, layers or ranks but the bytes of what is counted for each class or channel,
and the messages of a sync point: one for each doubling of the ranks.
"""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from collectives_worker import SYNC_EVERY
from ranks import launch

WORKER = Path(__file__).parent / "collectives_worker.py"
PAGE = Path(__file__).parents[2] / "docs" / "scale.md"
CLASSES = {"plain": 3, "grown": 12}
LAYERS = {"plain": 1, "grown": 4}
UPDATES = {"plain": 8, "grown": 14}
EPOCHS = {"plain": 2, "grown": 3}
OBJECT, ERRORS = ["broadcast", "broadcast"], ["all_gather", "all_gather"]  # the size of an object, and the object
AT_THE_END = {
    "training epoch": ["all_reduce", "all_reduce", *ERRORS, "sync"],
    "evaluation": ["all_reduce", "all_reduce", "all_reduce", "all_reduce", *ERRORS, "sync"],
    "epoch": ["sync"],
}

Found = dict[str, list[tuple[str, str, int]]]


def read(path: Path) -> Found:
    """All collectives of a rank, by run; the messages of a sync point, which are checked here, are one of them."""
    rounds = (int(path.stem.split("_")[0]) - 1).bit_length()
    messages, found = ["recv"] * rounds + ["send"] * rounds, {}
    for name, run in json.loads(path.read_text()).items():
        found[name] = others = []
        while run:
            if run[0][1] == "recv":
                (part, *_), *_ = syncing = [run.pop(0) for _ in messages]
                assert syncing == [[part, kind, 16] for kind in messages]
                others.append((part, "sync", 16))
            else:
                others.append(tuple(run.pop(0)))
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return launch(WORKER, [2, 3], tmp_path_factory.mktemp("ranks"))


@pytest.fixture(scope="module", params=[2, 3])
def ranks(request: pytest.FixtureRequest, folder: Path) -> list[Found]:
    return [read(folder / f"{request.param}_{rank}.json") for rank in range(request.param)]


@pytest.fixture(scope="module")
def found(folder: Path) -> Found:
    return read(folder / "2_0.json")


def of(found: list[tuple[str, str, int]], part: str) -> list[tuple[str, int]]:
    """The collectives of a part of the run, in all epochs."""
    return [(name, num_bytes) for where, name, num_bytes in found if where == part]


def names(found: list[tuple[str, str, int]], part: str) -> list[str]:
    return [name for name, _ in of(found, part)]


def test_an_update_issues_the_collectives_of_ddp_and_no_other(found: Found) -> None:
    updates = of(found["plain"], "update")
    assert Counter(updates) == Counter(of(found["bare"], "start")[3:])  # 16 updates of each, ours with all parts
    buckets = Counter(updates[-2:])
    assert len(buckets) == 2
    assert sum(num_bytes for _, num_bytes in buckets) == max(num_bytes for _, num_bytes in updates)  # all gradients


@pytest.mark.parametrize("name", ["plain", "grown"])
def test_each_update_issues_the_same(ranks: list[Found], name: str) -> None:
    for rank in ranks:
        first, *rebuilt = of(rank[name], "update")
        assert [each for each, _ in rebuilt[:2]] == OBJECT  # once, DDP tells its buckets after the first backward pass
        buckets = Counter(rebuilt[2:])
        assert set(buckets.values()) == {UPDATES[name] * EPOCHS[name] - 1}
        assert sum(num_bytes for _, num_bytes in buckets) == first[1]


def test_micro_batches_issue_nothing(found: Found) -> None:
    updates = of(found["accumulation"], "update")
    assert Counter(updates)[updates[-1]] == 2 * 8 // 4 - 1  # two epochs of 8 micro-batches, but for the first update


@pytest.mark.parametrize("name", ["plain", "grown"])
def test_a_sync_point_is_a_few_small_messages(ranks: list[Found], name: str) -> None:
    updates = UPDATES[name] * EPOCHS[name]
    at_the_end_of_an_epoch = [
        update for update in range(1, updates + 1) if update % UPDATES[name] == update % SYNC_EVERY == 0
    ]
    for rank in ranks:
        assert of(rank[name], "sync point") == [("sync", 16)] * (updates // SYNC_EVERY - len(at_the_end_of_an_epoch))


@pytest.mark.parametrize("part", AT_THE_END)
@pytest.mark.parametrize("name", ["plain", "grown"])
def test_the_end_of_an_epoch_and_an_evaluation_issue_a_listed_number(ranks: list[Found], name: str, part: str) -> None:
    for rank in ranks:
        issued = names(rank[name], part)
        more = {"training epoch": UPDATES[name] * EPOCHS[name] % SYNC_EVERY == 0, "epoch": 2}.get(part, 0)
        assert len(issued) == len(AT_THE_END[part]) * EPOCHS[name] + more  # a sync point; what ends the run
        assert issued[-len(AT_THE_END[part]) - 2 * (part == "epoch") :][: len(AT_THE_END[part])] == AT_THE_END[part]


@pytest.mark.parametrize("name", ["plain", "grown"])
def test_bytes_follow_classes_and_channels_alone(ranks: list[Found], name: str) -> None:
    counts = 2 + 3 * CLASSES[name] + 2 * (CLASSES[name] > 5)  # accuracy, macro F1, and accuracy of the first five
    for rank in ranks:
        statistics, losses, *others = of(rank[name], "training epoch")[-5:]
        assert statistics == ("all_reduce", 2 * 2 * 3 * 4 * LAYERS[name])  # mean and variance, of model and EMA model
        assert losses == ("all_reduce", 64)
        assert others[-1] == ("sync", 16)
        evaluated, *metrics, losses = of(rank[name], "evaluation")[-7:-3]
        assert evaluated == ("all_reduce", 2 * 8)
        assert metrics == [("all_reduce", 8 * counts)] * 2
        assert losses == ("all_reduce", 64)


def test_a_rank_sends_as_much_whatever_the_number_of_ranks(folder: Path) -> None:
    two, three = (read(folder / f"{count}_0.json")["plain"] for count in (2, 3))
    for part in ("update", "sync point", *AT_THE_END):
        assert Counter(of(two, part)) == Counter(of(three, part))


def test_a_state_adds_a_listed_number(ranks: list[Found]) -> None:
    runs = [(rank[name], 2, "plain") for rank in ranks for name in ["states"]]
    runs += [(rank["grown states"], 3, "grown") for rank in ranks if "grown states" in rank]
    for run, epochs, name in runs:
        assert names(run, "start")[1:5] == [*OBJECT, *OBJECT]  # the claim of the folder, and the identity of the data
        assert names(run, "start")[-4:] == [*OBJECT, *OBJECT]  # the beginning of the states, and what hosts compare
        everything = Counter(part for part, _, _ in run)
        syncs = UPDATES[name] * epochs // SYNC_EVERY
        rest = 5 * epochs + 7 * epochs + epochs + syncs
        of_states = sum(everything[part] for part in (*AT_THE_END, "sync point")) - rest
        assert 7 * epochs + 4 <= of_states <= 9 * epochs + 4  # 2 more where another sync point met its end
        assert max(num_bytes for _, num_bytes in of(run, "epoch")) < 4000  # of each rank, its random numbers


def test_the_start_issues_those_of_ddp_and_three_small_ones(found: Found) -> None:
    bare = of(found["bare"], "start")[:3]
    assert of(found["plain"], "start")[3:] == bare  # the shapes, and all weights of rank 0
    assert of(found["plain"], "start")[0] == ("all_gather", 16)  # the comparison of what the ranks were given
    assert names(found["plain"], "start")[1:3] == OBJECT
    assert of(found["evaluate"], "start") == bare


def test_a_last_batch_that_ranks_share_is_counted_once_an_epoch(found: Found) -> None:
    assert Counter(of(found["last image"], "update"))["all_reduce", 8] == 2  # of two epochs


def test_an_evaluation_alone_issues_those_of_an_epoch(found: Found) -> None:
    sizes = [8, 8 * (2 + 3 * 3), 32]
    assert of(found["evaluate"], "evaluation") == [*(("all_reduce", size) for size in sizes), ("sync", 16)]


def test_the_page_lists_what_was_recorded(found: Found) -> None:
    listed = {
        row.split("|")[1].strip(): row.split("|")[2].strip() for row in PAGE.read_text().splitlines() if "|" in row
    }
    assert int(listed["the start"]) == len(of(found["plain"], "start"))
    assert int(listed["a sync point, every `sync_every_n_updates`"]) == 1
    for row, part in (("the end of the training epoch", "training epoch"), ("the evaluation", "evaluation")):
        assert int(listed[row]) == len(AT_THE_END[part]) == len(of(found["plain"], part)) / 2
    assert int(listed["the end of the epoch"]) == 1
    assert listed["a state"] == "7 to 9"


def test_what_ranks_find_they_all_find(ranks: list[Any]) -> None:
    for name in ("plain", "grown"):
        first, *others = [Counter((part, kind) for part, kind, _ in rank[name]) for rank in ranks]
        assert all(each == first for each in others)
