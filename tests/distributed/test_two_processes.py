"""Two processes against one: the same numbers, the same decisions, and nothing exchanged that need not be."""

from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import launch

WORKER = Path(__file__).parent / "distributed_worker.py"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return launch(WORKER, [2, 0], tmp_path_factory.mktemp("ranks"))


@pytest.fixture(scope="module")
def one(folder: Path) -> dict[str, Any]:
    return torch.load(folder / "1_0.pt", weights_only=True)


@pytest.fixture(scope="module")
def two(folder: Path) -> list[dict[str, Any]]:
    return [torch.load(folder / f"2_{rank}.pt", weights_only=True) for rank in range(2)]


def equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_the_same_global_batch_gives_the_same_weights(one: Any, two: Any, accumulation: int) -> None:
    alone, ranks = one[f"same/{accumulation}"], [rank[f"same/{accumulation}"] for rank in two]
    for name in ("model", "ema_model"):
        assert equal(ranks[0][name], ranks[1][name])  # to the bit, on both ranks
        for key, tensor in alone[name].items():
            assert torch.allclose(tensor, ranks[0][name][key], atol=1e-5), key
    assert alone["updates"] == ranks[0]["updates"] == ranks[1]["updates"]
    assert alone["rates"] == ranks[0]["rates"] == ranks[1]["rates"]
    assert len(set(alone["rates"])) > 5


@pytest.mark.parametrize("accumulation", [1, 2])
def test_metrics_and_losses_are_those_of_one_process(one: Any, two: Any, accumulation: int) -> None:
    alone, ranks = one[f"same/{accumulation}"]["history"], [rank[f"same/{accumulation}"]["history"] for rank in two]
    assert ranks[0] == ranks[1]
    assert alone["accuracy"] == ranks[0]["accuracy"]
    assert alone["ema_model_accuracy"] == ranks[0]["ema_model_accuracy"]
    for name in ("eval_loss_epoch", "train_loss_epoch"):
        assert alone[name] == pytest.approx(ranks[0][name], rel=1e-5)


def test_the_ranks_see_different_images_that_make_up_the_global_batch(one: Any, two: Any) -> None:
    alone, ranks = one["same/1"]["images"], [rank["same/1"]["images"] for rank in two]
    for step, images in enumerate(alone):
        halves = [rank[step] for rank in ranks]
        assert not torch.equal(*halves)
        assert torch.equal(torch.cat(halves), images)


@pytest.mark.parametrize("count", [1, 7, 31])
def test_evaluation_counts_every_image_once(one: Any, two: Any, count: int) -> None:
    alone = one[f"evaluate/{count}"]
    for rank in two:
        assert rank[f"evaluate/{count}"]["accuracy"] == alone["accuracy"]
        assert rank[f"evaluate/{count}"] == pytest.approx(alone, abs=1e-6)


def test_the_ranks_mix_differently(two: Any) -> None:
    first, second = (torch.cat(rank["mixup"]) for rank in two)
    assert first.shape == second.shape
    shares = [targets.max(1).values for targets in (first, second)]
    assert not torch.allclose(*shares)


@pytest.mark.parametrize("module", [0, 1], ids=["model", "ema"])
def test_batch_norm_statistics_are_reduced_or_broadcast(two: Any, module: int) -> None:
    statistics = ("1.running_mean", "1.running_var")
    for name in statistics:
        before = [rank["batch_norm/reduce"]["before"][module][name] for rank in two]
        after = [rank["batch_norm/reduce"]["after"][module][name] for rank in two]
        assert not torch.equal(*before)  # DDP did not overwrite them at each forward pass
        assert torch.equal(*after)
        assert torch.allclose(after[0], (before[0] + before[1]) / 2)
        before = [rank["batch_norm/broadcast"]["before"][module][name] for rank in two]
        after = [rank["batch_norm/broadcast"]["after"][module][name] for rank in two]
        assert not torch.equal(*before)
        assert torch.equal(after[0], before[0])
        assert torch.equal(after[1], before[0])
        before, after = ([rank["batch_norm/None"][when][module][name] for rank in two] for when in ("before", "after"))
        assert torch.equal(before[1], after[1])


def test_a_loss_that_is_not_finite_on_one_rank_stops_both(two: Any) -> None:
    for rank in two:
        sentence, updates = rank["not_finite"]
        assert sentence.startswith("Expected the training loss to be finite, but it is not in epoch 1")
        assert updates == 5  # met at update 4, the next sync point is at 5


def test_a_stop_that_one_rank_asks_for_stops_both(two: Any) -> None:
    assert [rank["stop"] for rank in two] == [4, 4]


def test_a_compiled_model_stays_under_ddp(one: Any, two: Any) -> None:
    for name in ("model", "ema_model"):
        assert equal(two[0]["compiled"][name], two[1]["compiled"][name])
        assert equal(two[0]["compiled"][name], two[0]["compiled/plain"][name])
        assert not any("_orig_mod" in key or "module" in key for key in two[0]["compiled"][name])
    assert not equal(two[0]["compiled"]["model"], two[0]["compiled"]["ema_model"])
    assert "DistributedDataParallel" in two[0]["compiled"]["kinds"]
    assert equal(one["compiled"]["model"], one["compiled/plain"]["model"])


@pytest.mark.parametrize("name", ["repeated", "balanced"])
def test_the_processes_share_one_order_of_draws(one: Any, two: Any, name: str) -> None:
    alone, ranks = one[f"sampler/{name}"], [rank[f"sampler/{name}"] for rank in two]
    assert len(alone) == 32
    for step in range(4):  # the global batches are those of one process: nothing is lost or doubled
        assert [image for rank in ranks for image in rank[4 * step : 4 * step + 4]] == alone[8 * step : 8 * step + 8]
    if name == "repeated":
        assert sorted(alone) == sorted([*range(16)] * 2)
    else:
        assert 8 <= sum(image >= 12 for image in alone) <= 24  # a quarter of the images, half of the draws


def test_unreadable_images_leave_batches_full_and_counts_exact(one: Any, two: Any) -> None:
    for processes, ranks in ((1, [one]), (2, two)):
        for rank in ranks:
            found = rank["unreadable"]
            assert found["sizes"] == [8 // processes] * 5
            assert found["accuracy"][0] == found["accuracy"][1]
            assert found["loss"][0] == pytest.approx(found["loss"][1], rel=1e-6)
            assert found["listed"] == 8
            assert found["counted"] == "12 of 16 images"  # on every rank
            assert "val/cat/000.png'" in found["refused"]
            assert "one of 4." in found["refused"]


def test_scheduled_sizes_are_equal_on_both_ranks_and_no_image_is_lost_or_doubled(one: Any, two: Any) -> None:
    alone, ranks = one["scheduled"], [rank["scheduled"] for rank in two]
    assert ranks[0]["sizes"] == ranks[1]["sizes"] == alone["sizes"]
    assert len(alone["sizes"]) == 12
    assert set(alone["sizes"]) == {8, 16}
    assert alone["indices"][:24] != alone["indices"][24:]
    assert not torch.equal(ranks[0]["erased"], ranks[1]["erased"])
    for epoch in range(2):
        shares = [rank["indices"][epoch * 12 : (epoch + 1) * 12] for rank in ranks]
        assert not set(shares[0]) & set(shares[1])
        assert sorted(shares[0] + shares[1]) == sorted(alone["indices"][epoch * 24 : (epoch + 1) * 24])


def test_frozen_stages_keep_their_bits_on_both_ranks_and_thawed_ones_move_alike(two: Any) -> None:
    first, second = (rank["freezing"] for rank in two)
    body = ("0.weight", "1.weight", "1.running_mean", "1.running_var")
    for epoch, frozen in enumerate((True, False, True)):
        for before, after in ((ranks[epoch], ranks[epoch + 1]) for ranks in (first, second)):
            assert all(torch.equal(before[name], after[name]) is frozen for name in body), epoch
            assert not torch.equal(before["5.weight"], after["5.weight"])
    assert all(equal(*pair) for pair in zip(first, second, strict=True))


@pytest.mark.parametrize("updates", [2, 6, 9])
def test_a_resumed_run_freezes_and_thaws_as_the_uncut_one(one: Any, two: Any, updates: int) -> None:
    for ranks in ([one], two):
        for rank in ranks:
            whole, resumed = rank["freezing"], rank[f"freezing/{updates}"]
            rest = 3 - updates // 5  # epochs, the one that was cut among them
            assert len(resumed) == rest + 1
            for uncut, cut in zip(whole[-rest:], resumed[1:], strict=True):  # the first is within its epoch
                assert equal(uncut, cut)


def test_what_cannot_be_right_is_refused_on_both_ranks(two: Any) -> None:
    for rank in two:
        assert "sync_bn to be False on CPU processes" in rank["refused/sync_bn"]
        assert "DDP does not synchronize gradients of gradients, but got Adahessian" in rank["refused/second_order"]
        assert "train_dataset to fill a batch on each of 2 processes, but got 5 images" in rank["refused/share"]
        assert "create_train_dataloader() to return a torch DataLoader" in rank["refused/loader"]


def test_every_scheduler_gives_one_curve_on_one_and_two_processes(one: Any, two: Any) -> None:
    curves = {name: rates for name, rates in one.items() if name.startswith("every schedule/")}
    assert len(curves) == 38  # 20 settings, by epochs and by updates, but for the 2 of plateau
    for name, rates in curves.items():
        assert len(rates) == 3 * 6 + 1
        assert two[0][name] == two[1][name] == rates, name


@pytest.mark.parametrize("name", ["timm", "torch"])
def test_a_users_scheduler_gives_one_curve_on_one_and_two_processes(one: Any, two: Any, name: str) -> None:
    assert one[f"schedule/{name}"] == two[0][f"schedule/{name}"] == two[1][f"schedule/{name}"]
    rates, last = one[f"schedule/{name}"]
    assert len(set(rates)) == 10
    assert last < rates[-1]
