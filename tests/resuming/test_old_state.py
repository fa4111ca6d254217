"""A state that an earlier version wrote resumes: the format is a promise."""

import shutil
from pathlib import Path

import torch
from resumed_runs import make_run, train
from tiny_runs import same_weights, tiny_model

OLD = Path(__file__).parents[1] / "states" / "written_by_0_1_0"  # of `make_run`, after 4 of 7 batches of epoch 1


def test_a_state_of_the_first_format_resumes_and_ends_as_a_run_that_was_never_cut(tmp_path: Path) -> None:
    shutil.copytree(OLD, tmp_path / "run")
    whole, resumed = make_run(tmp_path / "whole"), make_run(tmp_path / "run")
    train(whole)
    train(resumed, resume_from="auto")
    assert resumed.rates == whole.rates[7 + 4 :]  # the same updates were left
    assert all(map(torch.equal, resumed.images, whole.images[7 + 4 :]))
    assert resumed.num_updates == whole.num_updates == 21
    # the state's bits are those of another processor
    for name, weights in whole.evaluated_models().items():
        for key, tensor in weights.state_dict().items():
            torch.testing.assert_close(resumed.evaluated_models()[name].state_dict()[key], tensor, rtol=1e-4, atol=1e-5)
    assert not same_weights(resumed.model, tiny_model())
