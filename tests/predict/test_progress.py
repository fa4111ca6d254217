"""Bars are shown where they were asked for, and nowhere else."""

from io import StringIO
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from terminals import open_terminal
from torch.utils.data import Dataset, TensorDataset
from trained_runs import brightness

from timm_accel import evaluate_classifier
from timm_accel.features import extract_embeddings
from timm_accel.models import create_classifier
from timm_accel.predict import fit_temperature

COLORS = ((255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 0, 0))
IMAGES = [Image.fromarray(np.full((8, 8, 3), color, np.uint8)) for color in COLORS]


class Labelled(Dataset):
    """Four images, the last with a wrong label, so that there is a temperature to find."""

    classes = ("red", "green", "blue")
    targets = (0, 1, 2, 2)

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return IMAGES[index], self.targets[index]


def embed(**options: Any) -> Any:
    model, _ = create_classifier("test_resnet", 3, image_size=32)
    return extract_embeddings(model, TensorDataset(torch.rand(4, 3, 32, 32), torch.arange(4)), **options)


@pytest.mark.parametrize(
    "call",
    [
        lambda **options: brightness().predict(IMAGES, **options),
        lambda **options: evaluate_classifier(brightness(), Labelled(), **options),
        lambda **options: fit_temperature(brightness(), Labelled(), **options),
        embed,
    ],
    ids=["predict", "evaluate", "temperature", "embeddings"],
)
def test_a_bar_of_batches_is_shown_where_it_was_asked_for_but_in_no_log(
    call: Any, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for progress in (False, True):
        call(batch_size=2, progress=progress)
        assert capsys.readouterr() == ("", "")
    terminal = open_terminal(monkeypatch)
    call(batch_size=2, progress=False)
    assert terminal.getvalue() == ""
    monkeypatch.setattr("sys.stdout", out := StringIO())
    call(batch_size=2, progress=True)
    assert "2/2" in terminal.getvalue()
    assert "batch" in terminal.getvalue()
    assert out.getvalue() == ""


def test_a_notebook_has_bars_too(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr("timm_accel.terminal.in_notebook", lambda: True)
    brightness().predict(IMAGES, batch_size=2)
    assert "2/2" in capsys.readouterr().err


def test_without_a_word_predictions_alone_show_a_bar_and_for_one_batch_none(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = open_terminal(monkeypatch)
    brightness().predict(IMAGES)
    evaluate_classifier(brightness(), Labelled(), batch_size=2)
    fit_temperature(brightness(), Labelled(), batch_size=2)
    embed(batch_size=2)
    assert terminal.getvalue() == ""
    brightness().predict(IMAGES, batch_size=2)
    assert "2/2" in terminal.getvalue()
