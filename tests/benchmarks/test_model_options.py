"""The benchmark of the model's speed options, in a small form."""

import argparse

import pytest
import torch
from torch import nn

from benchmarks import model_options
from benchmarks.model_options import Step


def test_what_the_forward_pass_keeps_is_counted_once_and_without_the_weights() -> None:
    step = Step.__new__(Step)
    step.model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    step.images, step.labels, step.half = torch.randn(3, 4), torch.tensor([0, 1, 0]), False
    images, activations, log_probabilities, labels, total_weight = 3 * 4 * 4, 3 * 8 * 4, 3 * 2 * 4, 3 * 8, 4
    kept = (images + activations + log_probabilities + labels + total_weight) / 1e6
    assert step.kept_megabytes() == pytest.approx(kept)


def test_each_option_has_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    threads = torch.get_num_threads()
    monkeypatch.setattr(model_options, "MODELS", {"test_vit": (32, 2)})
    parser = argparse.ArgumentParser()
    model_options.add_options(parser)
    arguments = parser.parse_args(["--rounds", "1", "--parts", "steps", "updates"])
    steps, updates = model_options.main(arguments)
    torch.set_num_threads(threads)
    ways = ["float32", "channels_last", "bf16", "bf16, channels_last", "grad_checkpointing"]
    assert [row[1] for row in steps.rows] == ways
    kept = {row[1]: float(row[4]) for row in steps.rows}
    assert kept["grad_checkpointing"] <= kept["float32"]
    assert [row[1:3] for row in updates.rows] == [
        [kind, way] for kind in ("AdamW", "SGD with momentum") for way in ("for-loop", "foreach", "fused")
    ]
