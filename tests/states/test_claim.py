"""A run's claim on its folder: what it locks, what it leaves for other hosts, and which state it finds."""

from pathlib import Path
from typing import Any

import pytest
from accelerate import Accelerator
from refusal import contents, refused
from resumed_runs import make_run, states, train
from tiny_runs import make_trainer

from timm_accel.states.claim import MANIFEST, Claim


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("claimed") / "run"
    train(make_run(folder), num_epochs=1)
    return folder


@pytest.fixture
def accelerator() -> Accelerator:
    return make_trainer()._accelerator


def test_other_hosts_find_a_file_that_goes_before_the_lock(tmp_path: Path, accelerator: Any) -> None:
    claim = Claim(tmp_path, None, print)
    assert claim.find(accelerator, on_hosts=True) is None
    (token,) = claim.shared_paths()
    assert contents(tmp_path).keys() == {token.name, "lock"}
    claim.remove_token()
    assert contents(tmp_path).keys() == {"lock"}
    claim.release()
    assert contents(tmp_path) == {}


def test_a_run_that_fails_leaves_nothing(tmp_path: Path, accelerator: Any) -> None:
    claim = Claim(tmp_path, None, print)
    claim.find(accelerator, on_hosts=True)
    claim.release()
    assert contents(tmp_path) == {}


def test_only_rank_0_removes_what_it_left(tmp_path: Path, accelerator: Any) -> None:
    claim, other = Claim(tmp_path, None, print), Claim(tmp_path, None, print)
    claim.find(accelerator, on_hosts=True)
    other._token = claim._token  # rank 0 has told it
    assert other.shared_paths() == claim.shared_paths()
    other.remove_token()
    other.release()
    assert contents(tmp_path).keys() == {claim._token, "lock"}
    claim.release()


def test_one_host_leaves_no_file_and_a_run_without_a_folder_nothing(tmp_path: Path, accelerator: Any) -> None:
    claim, none = Claim(tmp_path, None, print), Claim(None, None, print)
    assert claim.find(accelerator, on_hosts=False) is None
    assert none.find(accelerator, on_hosts=True) is None
    assert claim.shared_paths() == none.shared_paths() == []
    assert contents(tmp_path).keys() == {"lock"}
    for each in (claim, none):
        each.release()


def test_other_hosts_look_for_the_state(run: Path, tmp_path: Path, accelerator: Any) -> None:
    newest = states(run)[-1]
    for run_dir, resume_from in ((run, "auto"), (run, newest), (tmp_path, str(newest)), (None, newest)):
        claim = Claim(run_dir, resume_from, print)
        found = claim.find(accelerator, on_hosts=True)
        assert found is not None
        assert found.folder == newest
        *tokens, manifest = claim.shared_paths()
        assert manifest == newest / MANIFEST
        assert [token.parent for token in tokens] == ([] if run_dir is None else [run_dir])
        claim.release()


def test_a_run_from_scratch_within_the_states_of_another_is_refused(
    run: Path, accelerator: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(states(run)[-1])
    with refused(FileExistsError, "hold no run yet", str(run)):
        Claim(run, None, print).find(accelerator, on_hosts=False)


def test_a_state_of_another_folder_is_no_reason_to_write_over_a_run(
    run: Path, tmp_path: Path, accelerator: Any
) -> None:
    train(make_run(tmp_path), num_epochs=1)
    with refused(FileExistsError, "hold no run yet", "got", str(tmp_path)):
        Claim(tmp_path, states(run)[-1], print).find(accelerator, on_hosts=False)
