"""What error messages are made of."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import make_trainer
from torch import nn
from torch.utils.data import DataLoader, Dataset

from timm_accel import LoopTrainer
from timm_accel.commands.parsing import split_words
from timm_accel.messages import (
    counted,
    missing_extra,
    nearest,
    one_line,
    one_sentence,
    own_sentence,
    printable,
    quoted_sentence,
    root_cause,
)
from timm_accel.training.batches import unpack


def test_another_librarys_error_is_one_line_of_at_most_200_characters() -> None:
    assert one_line(ValueError("sizes differ:\n\t3 and  4")) == "sizes differ: 3 and 4"
    assert one_line(KeyError()) == "KeyError"
    assert one_line(ValueError("a" * 300)) == "a" * 200
    assert one_line(ValueError("a" * 300), limit=None) == "a" * 300


@pytest.mark.parametrize(
    ("text", "limit", "told"),
    [
        ("no network", 200, "no network."),
        ("No network.", 200, "No network."),
        ("Is it on?", 200, "Is it on?"),
        ("no\n network", None, "no network."),
        ("", 200, "OSError."),
        ("Not found. Check your Internet connection.", 30, "Not found. Check your Internet…"),
        ("Not found. Check it.", 10, "Not found…"),
    ],
)
def test_a_quote_before_another_sentence_has_an_end(text: str, limit: int | None, told: str) -> None:
    assert quoted_sentence(OSError(text), limit) == told


def test_one_of_something_is_singular() -> None:
    nouns = ("image", "class", "batch", "epoch")
    assert [counted(1, noun) for noun in nouns] == ["1 image", "1 class", "1 batch", "1 epoch"]
    assert [counted(2, noun) for noun in nouns] == ["2 images", "2 classes", "2 batches", "2 epochs"]
    assert counted(0, "image") == "0 images"


@pytest.mark.parametrize(
    "text", ["a\x1b[2Jb", "a\rb", "a\x07b", "a\u202eb", "a\x9bb", "a\u2066b", "a\x7fb", "a\udce9b"]
)
def test_a_control_character_reaches_no_terminal(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    code = f"a\\u{ord(text[1]):04x}{text[2:]}"
    assert printable(f"{text}\n") == f"{code}\n"
    if text[1] != "\r":  # a space, as all of them in one line
        assert one_line(ValueError(text)) == code
        assert root_cause(ValueError(text)) == f"ValueError: {code}"
        error = raised(lambda: unpack(f"{text}"))
        error.args = (text,)
        assert own_sentence(error) == code
    make_trainer().print(text, 3)
    assert capsys.readouterr().out == f"{code} 3\n"


def test_names_of_every_script_are_printed_as_they_are() -> None:
    text = "Wörter 猫 😀 می\u200cخواهم क्\u200dष\xa0\u3000!"
    assert printable(text) == text


class Code:
    """What a file must not hold."""


@pytest.mark.parametrize("form", ["pickle", "script"])
def test_a_quote_of_torch_advises_nobody_to_run_code(form: str, tmp_path: Path) -> None:
    torch.save(Code(), tmp_path / "a.bin")
    error = raised(lambda: torch.load(tmp_path / "a.bin", weights_only=True))
    if form == "script":  # torch 2.14 warns of such a file too
        error = RuntimeError("Cannot use ``weights_only=True`` with TorchScript archives. Pass ``weights_only=False``.")
    assert "False" in str(error)
    for quote in (one_line(error), one_line(error, None), root_cause(error)):
        assert "False" not in quote
        assert ("Unsupported global: GLOBAL test_messages.Code" if form == "pickle" else "TorchScript") in quote


def test_a_root_cause_is_the_first_cause_by_class_and_first_line() -> None:
    error = RuntimeError("export failed")
    error.__cause__ = KeyError("weight")
    assert root_cause(error) == "KeyError: 'weight'"
    assert root_cause(ValueError("\nfirst.\nsecond")) == "ValueError: first"
    assert root_cause(ValueError()) == "ValueError: nothing said"


def test_a_missing_extra_is_named_with_what_it_is_for_and_what_else_helps() -> None:
    error = missing_extra("plots", "the figure", "matplotlib", ", or save a table")
    assert error.name == "matplotlib"
    assert str(error) == (
        "Expected the extra 'plots' to be installed for the figure, but 'matplotlib' is missing. "
        'Run pip install "timm_accel[plots]", or save a table.'
    )


@pytest.mark.parametrize(
    ("name", "text"), [("acuracy", "Did you mean 'accuracy'?"), ("xyz", "Known names: 'accuracy', 'loss'.")]
)
def test_near_names_are_suggested_and_else_the_known_ones(name: str, text: str) -> None:
    assert nearest(name, ["loss", "accuracy"]) == text


class Broken(Dataset):
    """Its samples raise in a loader worker: an error of this package, or another."""

    def __init__(self, ours: bool) -> None:
        self.ours = ours

    def __getitem__(self, index: int) -> Any:
        if self.ours:
            unpack("no batch")
        raise ValueError("Expected more than 1 value per channel")

    def __len__(self) -> int:
        return 4


def raised(call: Any) -> Exception:
    with pytest.raises(Exception) as caught:  # noqa: PT011
        call()
    return caught.value


def test_a_sentence_that_this_package_raises_is_known_by_its_origin() -> None:
    assert own_sentence(raised(lambda: unpack("no batch"))).startswith("Expected a batch to be (inputs, targets, …)")
    error = raised(lambda: LoopTrainer(nn.Linear, None, None))
    error.add_note("The last state is 'x'.")
    assert own_sentence(error).endswith("Pass a model that was created. The last state is 'x'.")


@pytest.mark.parametrize(
    "call",
    [
        lambda: nn.BatchNorm1d(3)(torch.zeros(1, 3)),  # torch's sentence begins with "Expected" too
        lambda: nearest("name", 3),  # a mistake within this package
        lambda: {}["key"],
        lambda: int("Expected"),
    ],
)
def test_a_sentence_of_anybody_else_is_not(call: Any) -> None:
    assert own_sentence(raised(call)) is None


@pytest.mark.parametrize(("call", "code"), [(lambda: unpack("no batch"), 1), (lambda: split_words(["--no"], []), 2)])
def test_a_program_ends_with_such_a_sentence(call: Any, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended, one_sentence("mine.py"):
        call()
    assert ended.value.code == code
    assert re.fullmatch(r"mine\.py: Expected [^\n]+\n", capsys.readouterr().err)


def test_a_program_raises_any_other_error() -> None:
    with pytest.raises(ZeroDivisionError), one_sentence("mine.py"):
        1 / 0  # noqa: B018


@pytest.mark.parametrize("ours", [True, False])
def test_an_error_of_a_loader_worker_is_known_by_its_origin_too(ours: bool) -> None:
    error = raised(lambda: list(DataLoader(Broken(ours), num_workers=1)))
    sentence = own_sentence(error)
    assert (sentence is not None) == ours
    if sentence is not None:
        assert sentence.startswith("Expected a batch to be (inputs, targets, …)")
        assert sentence.endswith("Override unpack_batch() and repack_batch().")
