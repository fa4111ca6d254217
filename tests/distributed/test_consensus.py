"""What one rank requests all learn at the same sync point, in log2 n messages, and one sentence where one is gone."""

import json
from pathlib import Path
from typing import Any

import pytest
from ranks import ON_CPU, launch

WORKER = Path(__file__).parent / "consensus_worker.py"
COUNTS = [2, 3, 6]  # of 6 ranks some learn the same twice
ROUNDS = {2: 1, 3: 2, 6: 3}
NOTHING = [None, "", False, False, False, False]  # stop, reason, save, milestone, outcome, and what is left over


def read(folder: Path, how: str, count: int) -> list[dict[str, Any]]:
    """What all ranks but the last, which is gone, have found."""
    return [json.loads((folder / f"{how}_{count}_{rank}.json").read_text()) for rank in range(count - 1)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return launch(WORKER, COUNTS, tmp_path_factory.mktemp("ranks"), "gone")


@pytest.fixture(params=COUNTS)
def ranks(request: pytest.FixtureRequest, folder: Path) -> list[dict[str, Any]]:
    return read(folder, "gone", request.param)


def test_all_ranks_learn_the_request_of_any_one_and_no_other(ranks: Any) -> None:
    count = len(ranks) + 1
    for rank in ranks:
        found = rank["requests"]
        assert found["none"] == NOTHING
        assert found["stop of one"] == [["FINISHED", f"by {each}", *NOTHING[2:]] for each in range(count)]
        assert found["save of one"] == [[None, "", True, True, False, False]] * count
        assert found["outcome of one"] == [[None, "", False, False, True, False]] * count


def test_of_requests_of_several_ranks_the_stop_of_highest_priority_wins(ranks: Any) -> None:
    for rank in ranks:
        found = rank["requests"]
        assert found["two kinds"] == ["FINISHED", "enough", *NOTHING[2:]]
        assert found["one kind"] == ["FAILED", "by 1", *NOTHING[2:]]  # of the lowest rank
        assert found["save and outcome"] == [None, "", True, False, True, False]
        assert found["stop and save"] == ["INTERRUPTED", "a signal", True, True, False, False]


def test_a_request_that_arrives_before_all_act_is_agreed_on_too(ranks: Any) -> None:
    for rank in ranks:
        assert rank["requests"]["failure before a save"] == ["FAILED", "late", True, False, False, False]
        assert rank["requests"]["signal before a stop"] == ["FINISHED", "enough", *NOTHING[2:]]


def test_a_sync_point_is_a_message_for_each_doubling_of_the_ranks(ranks: Any) -> None:
    rounds = ROUNDS[len(ranks) + 1]
    for rank in ranks:
        names = [name for _, name, num_bytes in rank["messages"] if num_bytes == 16]
        assert names == ["recv"] * rounds + ["send"] * rounds  # all receipts are announced first
        assert len(names) == len(rank["messages"])


def test_a_message_reaches_a_rank_that_is_late_whatever_its_sender_has_learned(ranks: Any) -> None:
    for rank in ranks:
        assert rank["late"] == [None, "", True, False, False, False]


def test_a_rank_that_is_gone_ends_the_others_at_once_in_one_sentence(ranks: Any) -> None:
    for number, rank in enumerate(ranks):
        assert rank["lost"].startswith(
            f"Expected all processes of the run to answer, but rank {number} of {len(ranks) + 1} on "
        )
        assert rank["seconds"] < 60


def test_a_rank_that_is_silent_ends_the_others_in_one_sentence_after_the_timeout(tmp_path: Path) -> None:
    launch(WORKER, [3], tmp_path, "silent", variables={**ON_CPU, "TIMM_ACCEL_TIMEOUT": "5"})
    ranks = read(tmp_path, "silent", 3)
    for number, rank in enumerate(ranks):
        assert rank["lost"].startswith(f"Expected all processes of the run to answer, but rank {number} of 3 on ")
        assert 4 < rank["seconds"] < 30
    assert any("Timed out waiting 5000ms" in rank["lost"] for rank in ranks)
