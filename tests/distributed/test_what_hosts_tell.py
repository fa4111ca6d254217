"""What is told of hosts that differ, of lost connections and of time-outs, without a network."""

import re
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from threading import Barrier, local
from typing import Any

import pytest
import torch
from refusal import refused, sentence
from tiny_runs import make_trainer
from torch import distributed

from timm_accel.distributed import hosts
from timm_accel.distributed.connections import TIMEOUT, lost_connection_explained, restart_explained, timeout
from timm_accel.distributed.hosts import MAX_CLOCK_SECONDS, Hosts, Place
from timm_accel.states.run_dir import leave_token


def places(*names: str, ranks: int = 2) -> list[Place]:
    """Ranks of hosts, two on each."""
    return [Place(name, ranks * host + rank, rank == 0) for host, name in enumerate(names) for rank in range(ranks)]


def test_hosts_of_one_name_are_told_apart_by_their_ranks() -> None:
    told = [({"lr": "0.1"}, place) for place in places("box", "box")[:2]]
    told += [({"lr": "0.2"}, place) for place in places("box", "box")[2:]]
    sentence = hosts._others([(place, leaves) for leaves, place in told])
    assert "packages of box (rank 0), but got others on box (rank 2): lr (0.2 instead of 0.1). " in sentence


def test_one_rank_of_a_host_can_differ_alone() -> None:
    everyone = [(place, {"seed": "3" if place.rank == 3 else "0"}) for place in places("a", "b")]
    assert "others on b (rank 3): seed (3 instead of 0)." in hosts._others(everyone)


def test_a_long_list_of_hosts_and_of_values_is_cut() -> None:
    others = {f"option {number}": "1" for number in range(7)}
    everyone = [(place, others if place.rank > 1 else {}) for place in places(*"abcdef")]
    sentence = hosts._others(everyone)
    assert "others on b (rank 2), c (rank 4), d (rank 6) and 2 more: option 0 (1 instead of None);" in sentence
    assert "option 3 (1 instead of None); 3 more." in sentence


def test_what_fits_into_a_sentence_is_not_cut() -> None:
    others = {f"option {number}": "1" for number in range(5)}
    everyone = [(place, others if place.rank > 1 else {}) for place in places(*"abcd")]
    sentence = hosts._others(everyone)
    assert "others on b (rank 2), c (rank 4), d (rank 6): option 0 (1 instead of None);" in sentence
    assert "option 4 (1 instead of None). Start" in sentence


def test_a_value_that_a_host_lacks_is_told() -> None:
    everyone = [(place, {} if place.rank else {"peft": "'0.15'"}) for place in places("a", "b", ranks=1)]
    assert "others on b (rank 1): peft (None instead of '0.15'). Start" in hosts._others(everyone)


def test_two_hosts_that_differ_in_their_own_ways_are_both_told() -> None:
    everyone = [(place, {"torch": str(place.rank)}) for place in places("a", "b", "c", ranks=1)]
    assert "b (rank 1): torch (1 instead of 0) / c (rank 2): torch (2 instead of 0)." in hosts._others(everyone)


def test_values_are_told_by_the_names_that_lead_to_them_and_long_ones_in_short() -> None:
    leaves = hosts._leaves({"recipe": {"lr": 0.1, "none": {}}, "shapes": list(range(200)), "lists": [1, 2]})
    assert leaves.keys() == {"recipe.lr", "shapes", "lists"}
    assert (leaves["recipe.lr"], leaves["lists"]) == ("0.1", "[1, 2]")
    assert len(leaves["shapes"]) < 80
    assert leaves["shapes"] != hosts._leaves({"shapes": [*range(199), 7]})["shapes"]
    assert hosts._digest({"a": "1", "b": "2"}) == hosts._digest({"b": "2", "a": "1"})
    digests = [hosts._digest({"a": str(number)}) for number in range(30)]
    assert len({*digests}) == 30
    assert torch.tensor(digests).tolist() == digests  # each fits into 8 bytes


@pytest.mark.parametrize(("seconds", "word"), [(7200.0, "7,200 seconds ahead of"), (-60.0, "60 seconds behind")])
def test_the_clock_that_is_furthest_off_is_told(seconds: float, word: str) -> None:
    a, b, c = places("a", "b", "c", ranks=1)
    sentence = hosts._other_clocks({a: 0.0, b: MAX_CLOCK_SECONDS, c: seconds})
    assert f"The clock of c (rank 2) is {word} that of a (rank 0)" in sentence
    sentence = hosts._other_clocks({a: 0.0, b: 6.0, c: seconds})
    assert f"The clock of b (rank 1), c (rank 2) is {word} that of a (rank 0)" in sentence


@pytest.fixture
def on_ranks(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return what a work is refused with for each place, in threads that exchange what processes would."""

    def run(everyone: Sequence[Place], work: Callable[[Hosts], Any], clocks: Sequence[float] = (0,)) -> list[str]:
        current, barrier, told = local(), Barrier(len(everyone), timeout=20), [None] * len(everyone)

        def exchanged(value: Any, *_: int) -> list[Any]:
            barrier.wait()
            told[current.rank] = value
            barrier.wait()
            return [*told]

        def work_as(place: Place) -> str:
            current.rank, of_rank = place.rank, Hosts(accelerator)
            of_rank.num_processes, of_rank.place = len(everyone), place
            return sentence(lambda: work(of_rank))

        monkeypatch.setattr(time, "time", lambda: 1e9 + clocks[current.rank % len(clocks)])
        monkeypatch.setattr(hosts, "gather_numbers", exchanged)
        monkeypatch.setattr(hosts, "gather_on_all", exchanged)
        with ThreadPoolExecutor(len(everyone)) as pool:
            return list(pool.map(work_as, everyone))

    accelerator = make_trainer()._accelerator
    return run


def test_hosts_that_agree_are_counted(on_ranks: Any) -> None:
    def count(each: Hosts) -> None:
        each.compare({"seed": 0})
        counts.append(each.count)

    counts: list[int] = []
    assert on_ranks(places("a", "b", "c"), count) == [""] * 6
    assert on_ranks(places("a"), count) == [""] * 2
    assert counts == [3] * 6 + [1] * 2


def test_one_process_of_each_other_host_looks_at_its_data() -> None:
    assert [place.rank for place in places("a", "b", "c") if place.is_first_of_other_host] == [2, 4]
    assert Place("b", 1, True).is_first_of_other_host


def test_one_process_alone_exchanges_nothing() -> None:
    alone = Hosts(make_trainer()._accelerator)
    alone.compare({"seed": 0})  # there is no process group
    alone.check([Path("/nowhere")], True, lambda: "other", print)
    assert (alone.num_processes, alone.count) == (1, 1)
    assert alone.place[1:] == (0, True)


def test_hosts_that_differ_raise_the_same_on_all(on_ranks: Any) -> None:
    sentence, *others = on_ranks(places("a", "b"), lambda each: each.compare({"seed": each.place.rank // 2}))
    assert others == [sentence] * 3
    assert sentence.startswith("ValueError: Expected all hosts to have the options")
    assert "of a (rank 0), but got others on b (rank 2): seed (1 instead of 0). Start" in sentence


def checked(found: Path, missing: Path, reports: list[str], **other: Any) -> Callable[[Hosts], None]:
    """Let the rank `lost` look for a missing file, and those of `data` have others."""

    def check(each: Hosts) -> None:
        each.compare({})
        differs = each.place.rank in other.get("data", ())
        paths = [found, missing if each.place.rank == other.get("lost") else found]
        each.check(paths, differs, lambda: "They differ." if differs else "", reports.append)

    return check


def test_what_hosts_share_is_checked_on_all(on_ranks: Any, tmp_path: Path) -> None:
    two, reports = places("a", "b"), []
    missing = tmp_path / "folder" / "token"
    assert on_ranks(two, checked(tmp_path, missing, reports)) == [""] * 4
    for rank, host in ((0, "a"), (2, "b"), (3, "b")):
        sentence, *others = on_ranks(two, checked(tmp_path, missing, reports, lost=rank, data=[2]))
        assert others == [sentence] * 3
        assert f"but {host} (rank {rank}) does not find in {str(missing.parent)!r} what a (rank 0) wrote" in sentence
    sentence, *others = on_ranks(two, checked(tmp_path, missing, reports, data=[2]))
    assert others == [sentence] * 3
    assert "got others on b (rank 2). They differ. Copy the data of a (rank 0) to every host." in sentence
    assert reports == []


def test_a_clock_is_told_from_the_limit_on(on_ranks: Any, tmp_path: Path) -> None:
    for seconds, count in ((MAX_CLOCK_SECONDS, 0), (MAX_CLOCK_SECONDS + 1, 2), (-MAX_CLOCK_SECONDS - 1, 2)):
        reports: list[str] = []
        check = checked(tmp_path, tmp_path, reports)
        assert on_ranks(places("a", "b", ranks=1), check, [0, seconds]) == [""] * 2
        assert len(reports) == count
        word = "ahead of" if seconds > 0 else "behind"
        assert all(f"The clock of b (rank 1) is 6 seconds {word} that of a (rank 0)" in each for each in reports)


@pytest.mark.parametrize("value", ["0", "0.9", "-3", "soon", "inf", "1e9", "nan", ""])
def test_a_time_out_that_is_no_time_is_refused(value: str) -> None:
    with refused(ValueError, TIMEOUT, "seconds", repr(value)):
        timeout({TIMEOUT: value})


MESH = "[/pytorch/gloo/transport/tcp/pair.cc:1] Gloo connectFullMesh failed with Connection refused"


def test_a_restarted_rank_that_finds_an_old_address_names_the_variable() -> None:
    restarted = {"TORCHELASTIC_RESTART_COUNT": "1", "RANK": "1"}
    sentence = "rank 1 found the address", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1"
    with refused(ConnectionError, *sentence), restart_explained(restarted):
        raise RuntimeError(MESH)
    for restarts, words in (("0", MESH), ("1", "something else")):
        again = restarted | {"TORCHELASTIC_RESTART_COUNT": restarts}
        with pytest.raises(RuntimeError, match=words.split()[-1]), restart_explained(again):
            raise RuntimeError(words)


def test_a_time_out_is_in_seconds_and_torchs_without_the_variable() -> None:
    assert timeout({TIMEOUT: "1.5"}) == timedelta(seconds=1.5)
    assert timeout({TIMEOUT: "1"}) == timedelta(seconds=1)
    assert timeout({}) is None


@pytest.fixture
def group() -> object:
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


NCCL = "[Rank 0] NCCL communicator was aborted on rank 0. "  # as torch words them
REMOTE = "NCCL error in: NCCLUtils.hpp:328, remote process exited or there was a network error, NCCL version 2.27"
GLOO = "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:547] "


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (GLOO + "Connection closed by peer [10.0.0.2]:17", r"lost one \(Connection closed by peer \[10.0.0.2\]:17\)"),
        (
            GLOO + "Read error [10.0.0.2]:17: Connection reset by peer. This is typically …",
            r"Connection reset by peer\)",
        ),
        (
            GLOO + "Timed out waiting 5000ms for recv operation to complete",
            r"\(Timed out waiting 5000ms for recv operation",
        ),
        (GLOO + "Read error [fd00::2]:17: Network is unreachable", r"fd00::2.*unreachable\)"),
        (GLOO + "Write error [10.0.0.2]:17: Broken pipe", r"Broken pipe\)"),
        (GLOO + "Application timeout caused pair closure", r"pair closure\)"),
        (GLOO + "No route to host", r"\(No route to host\)"),
        (NCCL, r"\(\[Rank 0\] NCCL communicator was aborted on rank 0\)"),
        (REMOTE, r"\(NCCL error in: .* remote process exited .*\)"),
    ],
)
def test_a_lost_connection_is_one_sentence(group: object, text: str, told: str) -> None:
    expected = f"rank 0 of 1 on .*{told}.*start the same command again"
    with pytest.raises(ConnectionError, match=expected), lost_connection_explained():
        raise RuntimeError(text)


@pytest.mark.parametrize(
    "text",
    [GLOO + "op.preamble.length <= op.nbytes. 8 vs 4", "Connection closed by peer", "NCCL: invalid usage", "size"],
)
def test_other_errors_stay_as_they_are(group: object, text: str) -> None:
    with pytest.raises(RuntimeError, match=re.escape(text)), lost_connection_explained():
        raise RuntimeError(text)


def test_outside_a_process_group_no_error_is_changed() -> None:
    with pytest.raises(RuntimeError, match="gloo"), lost_connection_explained():
        raise RuntimeError(f"{GLOO}Connection closed by peer")


def test_a_token_replaces_those_of_killed_runs(tmp_path: Path) -> None:
    first = leave_token(tmp_path)
    second = leave_token(tmp_path)
    assert first != second
    assert [path.name for path in tmp_path.iterdir()] == [second]
