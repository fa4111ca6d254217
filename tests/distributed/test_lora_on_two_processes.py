"""Adapters on two ranks: every trained parameter takes part in each update, so that DDP ends in the values of one."""

from pathlib import Path

import pytest
import torch
from ranks import launch
from tiny_runs import differences

pytest.importorskip("peft")


def test_two_ranks_end_in_the_adapters_of_one(tmp_path: Path) -> None:
    launch(Path(__file__).parent / "lora_worker.py", [1, 2], tmp_path)
    alone, first, second = (torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in ("1_0", "2_0", "2_1"))
    assert not differences(first, second)
    for weights, tensors in first.items():
        for name, tensor in tensors.items():
            assert torch.allclose(tensor, alone[weights][name], atol=1e-5), name
    moved = [name for name, tensor in first["model"].items() if ".lora_B." in name and tensor.abs().max() > 1e-5]
    assert len(moved) == 24
