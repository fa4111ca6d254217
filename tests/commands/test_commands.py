"""The command line: spellings, exit codes, sentences, and the commands that need no data."""

import io
import logging
import os
import re
import runpy
import subprocess
import sys
from collections.abc import Callable
from configparser import ConfigParser
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml
from terminals import open_terminal
from tiny_runs import parse_recipe

from timm_accel import Recipe, TimmMixupTrainer, messages
from timm_accel.commands.main import COMMANDS, main
from timm_accel.commands.parsing import CommandOptions, Option, help_of, options_of_command
from timm_accel.commands.parsing.options import RECORD
from timm_accel.commands.parsing.record import record
from timm_accel.commands.parsing.script import read_options
from timm_accel.commands.parsing.signatures import recorded, typed_arguments
from timm_accel.commands.parsing.words import split_words
from timm_accel.recipes import named_recipe, recipe_names

ROOT = Path(__file__).parents[2]
PROBE = """
import contextlib, io, sys
from timm_accel.commands.main import main
for words in {words!r}:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        assert main(words) in (0, 2), words
print([name for name in ("torch", "timm", "torchvision", "jsonargparse") if name in sys.modules])
"""


def command(model: str, images: list[str], *, tags: list[str] | None = None, quick: bool = False, top: int = 1) -> None:
    """Do nothing.

    Args:
        model: A model.
        images: Files.
        tags: Words.
        quick: Whether it is quick.
        top: A number.
    """


def needs(folder: Path = Path("here"), *, out: str) -> None:
    """Do nothing.

    Args:
        folder: A folder.
        out: A file.
    """


def arguments(function: Callable[..., None], *words: str) -> dict[str, Any]:
    return typed_arguments(function, split_words(words, recorded(function).options))


# What is recorded, and help without torch


def test_the_recorded_options_are_those_of_the_signatures() -> None:
    assert Path(str(RECORD)).read_text() == record(), "Run python -m timm_accel.commands.parsing.record"


def test_help_completion_and_misspelled_options_import_neither_torch_nor_timm() -> None:
    words = [["--help"], [], ["--version"], *([name, "--help"] for name in COMMANDS), ["train", "--ema_decy", "1"]]
    script = PROBE.format(words=[*words, ["trian"]])
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    probe = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, check=True)
    assert probe.stdout == "[]\n"


@pytest.mark.parametrize("columns", ["40", "80"])
@pytest.mark.parametrize("words", [["--help"], *([name, "--help"] for name in COMMANDS)], ids=lambda words: words[0])
def test_help_fits_the_terminal_and_has_a_sentence_for_each_option(
    words: list[str], columns: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    assert main(words) == 0
    text = capsys.readouterr().out
    shown = "".join(text.split())
    assert max(map(len, text.splitlines())) <= int(columns)
    for option in [] if words == ["--help"] else options_of_command(words[0]).options:
        assert option.help.endswith("."), option.name
        assert "".join(option.help.split()) in shown
        assert "".join(f"(type: {option.kind}".split()) in shown
        words_of_18 = [word for word in option.help.split() if len(word) <= 18 and "-" not in word]
        assert not {*words_of_18} - {*text.split()}  # none is broken


def test_help_tells_what_takes_several_words_what_must_be_given_and_a_share_in_percent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    text = help_of("average", options_of_command("average"))
    assert re.search(r"^usage: timm-accel average FOLDERS \[FOLDERS \.\.\.\] \[OPTIONS\]$", text, re.MULTILINE)
    assert re.search(r"^ +--out STR .*\(type: str, required\)$", text, re.MULTILINE)
    train = help_of("train", options_of_command("train"))
    assert re.search(r"^ +--scale FLOAT \[FLOAT \.\.\.\]", train, re.MULTILINE)
    assert re.search(r"^ +--pretrained \[BOOL\]", train, re.MULTILINE)
    share = Option("share", "float", "0.5", "At most 90 % of it.")
    assert "At most 90 % of it." in help_of("train", CommandOptions("Do it.", (share,)))


def test_every_command_stands_on_its_page_and_in_the_overview(capsys: pytest.CaptureFixture[str]) -> None:
    page = (ROOT / "docs" / "commands.md").read_text()
    assert re.findall(r"^\| `timm-accel ([\w-]+)", page, re.MULTILINE) == list(COMMANDS)
    assert re.findall(r"^\| (\d+) \|", page, re.MULTILINE) == ["0", "1", "2", "75"]
    main(["--help"])
    assert re.findall(r"^  ([\w-]+)  ", capsys.readouterr().out, re.MULTILINE) == list(COMMANDS)


def test_the_console_script_is_the_main_function() -> None:
    config = ConfigParser()
    config.read(ROOT / "setup.cfg")
    name, _, place = config["options.entry_points"]["console_scripts"].strip().partition(" = ")
    module, _, function = place.partition(":")
    assert (name, getattr(import_module(module), function)) == ("timm-accel", main)


# Spellings


@pytest.mark.parametrize(
    "words",
    [
        ["--data-dir", "x", "--pretrained", "--scale", "0.6", "1"],
        ["--data_dir=x", "--pretrained", "true", "--scale=[0.6, 1.0]"],
        ["--data-dir=x", "--scale", "[0.6, 1.0]", "--pretrained=yes"],
        ["--pretrained", "--data_dir", "x", "--scale", "0.5", "1", "--scale", "0.6", "1.0"],
    ],
)
def test_one_recipe_has_many_spellings(words: list[str]) -> None:
    assert parse_recipe(words) == Recipe(data_dir="x", pretrained=True, scale=(0.6, 1.0))


def test_entries_of_dictionaries_and_numbers_below_0_are_values() -> None:
    recipe = parse_recipe(["--data-dir", "x", "--opt-args.momentum", "0.5", "--opt_args.eps=-1e-3"])
    assert recipe.opt_args == {"momentum": 0.5, "eps": -1e-3}
    assert parse_recipe(["--data_dir", "x", "--class_weights", "1", "2.5"]).class_weights == [1.0, 2.5]
    assert parse_recipe(["--data_dir", "x", "--class_weights", "auto"]).class_weights == "auto"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["m", "a", "b"], {"model": "m", "images": ["a", "b"]}),
        (["m", "[1].png"], {"model": "m", "images": ["[1].png"]}),
        (["--quick", "m", "a"], {"model": "m", "images": ["a"], "quick": True}),
        (["--quick", "false", "m", "a"], {"model": "m", "images": ["a"], "quick": False}),
        (["m", "--top=2", "a"], {"model": "m", "images": ["a"], "top": 2}),
        (["m", "--", "--top"], {"model": "m", "images": ["--top"]}),
        (["m", "a", "--tags", "1", "b"], {"model": "m", "images": ["a"], "tags": ["1", "b"]}),
        (["m", "a", "--tags", "b"], {"model": "m", "images": ["a"], "tags": ["b"]}),
        (["m", "a", "--tags", "null"], {"model": "m", "images": ["a"], "tags": None}),
    ],
)
def test_a_function_gets_what_was_given_of_its_types(words: list[str], expected: dict[str, Any]) -> None:
    assert arguments(command, *words) == expected


def test_an_argument_with_a_default_may_be_left_out_and_a_required_option_may_not() -> None:
    assert arguments(needs, "--out", "x") == {"out": "x"}
    assert arguments(needs, "there", "--out", "x") == {"folder": Path("there"), "out": "x"}


def test_the_arguments_of_a_script_are_options_and_its_help_is_the_docstring(
    capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["here/train.py", "--model", "m"])
    assert read_options(command, ["--images", "a", "b", "--model=m"]) == {"images": ["a", "b"], "model": "m"}
    with pytest.raises(ValueError, match="Expected the option --images, but got none"):
        read_options(command)
    with pytest.raises(SystemExit) as ended:
        read_options(command, ["--model", "m", "--help"])
    assert not ended.value.code
    text = capsys.readouterr().out
    assert text.startswith("usage: train.py [OPTIONS]\n\nDo nothing.\n")
    assert "--images" in text


@pytest.mark.parametrize(
    ("content", "words", "expected"),
    [
        ("data_dir: x\n", [], lambda: Recipe(data_dir="x")),
        ("recipe: a3\ndata_dir: x\n", [], lambda: named_recipe("a3").recipe(data_dir="x")),
        ("recipe: a3\ndata_dir: x\n", ["--recipe", "a2"], lambda: named_recipe("a2").recipe(data_dir="x")),
        ("recipe: a3\ndata_dir: x\n", ["--num_epochs", "4"],
         lambda: named_recipe("a3").recipe(data_dir="x", num_epochs=4)),
        ("recipe: a3\nwarmup_epochs: 5\ndata_dir: x\n", [],
         lambda: named_recipe("a3").recipe(data_dir="x", warmup_epochs=5)),
    ],
)  # fmt: skip
def test_a_file_of_options_may_name_its_recipe(content: str, words: list[str], expected: Any, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(content)
    found = parse_recipe(["--config", str(tmp_path / "mine.yaml"), *words])
    assert found == expected()
    assert found.resolved() == expected().resolved()
    assert found.default_warmup == expected().default_warmup


@pytest.mark.parametrize(
    ("function", "words", "sentence"),
    [
        (command, [], "Expected the argument model, but got none"),
        (command, ["m"], "Expected the argument images, but got none"),
        (command, ["m", "a", "--tosp", "3"], "Expected an option, but got 'tosp'. Did you mean 'top'"),
        (command, ["m", "a", "--to-p=3"], "Expected an option, but got 'to-p'. Did you mean 'top'"),
        (command, ["m", "a", "--top", "x"], "Expected top to be int, but got 'x'"),
        (command, ["m", "a", "--top"], "but got --top without its one argument. Add it."),
        (needs, ["a", "b", "--out", "x"], "Expected 1 argument without a name, but got 'b' too"),
        (needs, ["a"], "Expected the option --out, but got none"),
    ],
)
def test_words_that_do_not_fit_are_refused(function: Any, words: list[str], sentence: str) -> None:
    with pytest.raises(ValueError, match=re.escape(sentence)):
        arguments(function, *words)


# Exit codes


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (["trian"], 2, "timm-accel trian: Expected a command, but got 'trian'. Did you mean 'train'?"),
        (["--data_dir", "x"], 2, "timm-accel: Expected a command, but got '--data_dir'."),
        (["train", "-lr", "1"], 2, "timm-accel train: Expected an option, but got 'lr'. Did you mean 'lr'"),
        (["train", "--lr", "fast"], 2, "timm-accel train: Expected lr to be float, but got 'fast'."),
        (["train", "--pretrained", "maybe"], 2, "timm-accel train: Expected pretrained to be bool, but got 'maybe'."),
        (["train", "--lr", "0.1", "0.2"], 2, "timm-accel train: Expected an option, but got '0.2'."),
        (["train", "--config", "none.yaml"], 2, "timm-accel train: Expected --config to be a YAML file"),
        (["train", "--opt", "adamv"], 1, "timm-accel train: Expected opt to be a name that timm knows"),
        (["train", "--data_dir", "no/such"], 1, "timm-accel train: Expected a folder with"),
        (["train", "--recipe", "a33"], 1, "timm-accel train: Expected the name of a recipe, but got 'a33'."),
        (["recipes", "a33"], 1, "timm-accel recipes: Expected the name of a recipe"),
        (["recipes", "a3", "a2"], 2, "timm-accel recipes: Expected 1 argument without a name, but got 'a2' too."),
        (["completion"], 2, "timm-accel completion: Expected the argument shell, but got none."),
        (["completion", "fish"], 2, "timm-accel completion: Expected shell to be one of bash, zsh, tcsh"),
    ],
)
def test_a_refusal_is_one_sentence_and_its_code(
    words: list[str], code: int, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(words) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith(sentence)


def test_a_fault_of_the_package_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("yaml.safe_dump", lambda *args, **options: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(["recipes", "a3"])


@pytest.mark.parametrize(("error", "code"), [(KeyboardInterrupt, 130), (SystemExit(75), None)])
def test_a_command_that_is_interrupted_ends_without_a_traceback(
    error: Any, code: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr("yaml.safe_dump", interrupted)
    if code is None:
        with pytest.raises(SystemExit, match="75"):
            main(["recipes", "a3"])
    else:
        assert main(["recipes", "a3"]) == code


def test_a_later_rank_waits_for_the_first_before_it_reports(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    waited: list[float] = []
    monkeypatch.setattr(messages.time, "sleep", waited.append)
    for rank in ("0", "1"):
        monkeypatch.setenv("LOCAL_RANK", rank)
        assert main(["trian"]) == 2
        assert capsys.readouterr().err.count("Did you mean 'train'") == 1  # it is never hidden
    assert waited == [messages.GRACE_SECONDS]


# In a terminal


@pytest.mark.parametrize("columns", [80, 40])
@pytest.mark.parametrize("words", [["trian"], ["train", "--ema-decy", "1"], ["train", "--opt", "adamv"],
                                   ["recipes", "a33"]], ids=lambda words: words[-1])  # fmt: skip
def test_a_refusal_fits_a_terminal_and_no_word_is_broken(
    words: list[str], columns: int, monkeypatch: pytest.MonkeyPatch, capsys: Any, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    code = main(words)
    sentence = capsys.readouterr().err
    assert sentence.count("\n") == 1  # without a terminal
    terminal = open_terminal(monkeypatch, columns)
    assert main(words) == code
    assert terminal.widest() <= columns
    assert terminal.getvalue().split() == sentence.split()


def test_what_is_logged_fits_a_terminal_and_hides_the_bar_in_its_line(monkeypatch: pytest.MonkeyPatch) -> None:
    logger = logging.getLogger("timm_accel")
    monkeypatch.setattr(logger, "propagate", False)  # pytest has handlers
    monkeypatch.setattr(logger, "handlers", [])
    for _ in range(2):
        main(["--version"])
    assert len(logger.handlers) == 1
    terminal = open_terminal(monkeypatch, 40)
    for text in ("'a b/c.png' cannot be read (an empty\x1b file) and is skipped.", "It is short."):
        terminal.write("#" * 39 + "\r")
        logging.getLogger("timm_accel.data.labeled_images").warning("%s", text)
    logging.getLogger("timm_accel.data").info("It is no warning.")
    assert terminal.screen() == [
        "'a b/c.png' cannot be read (an", "  empty\\u001b file) and is skipped.", "It is short.", ""
    ]  # fmt: skip
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    logging.getLogger("timm_accel.data").warning("a " * 50)
    assert sys.stderr.getvalue() == "a " * 50 + "\n"  # type: ignore[attr-defined]


def test_a_program_with_handlers_gets_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    logger = logging.getLogger("timm_accel")
    handlers = [logging.NullHandler()]
    monkeypatch.setattr(logger, "handlers", handlers)
    main(["--version"])
    assert logger.handlers == handlers
    assert len(handlers) == 1


# Commands


def test_recipes_are_listed_with_source_and_result_and_printed_as_yaml(
    capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["recipes"]) == 0
    text = capsys.readouterr().out
    assert re.findall(r"^(\w+): .*\n  source: .+\n  result: .+$", text, re.MULTILINE) == recipe_names()
    monkeypatch.setenv("COLUMNS", "40")
    assert main(["recipes"]) == 0
    narrow = capsys.readouterr().out
    assert narrow.split() == text.split()
    assert all(len(line) <= 40 for line in narrow.splitlines() if "http" not in line)
    assert main(["recipes", "a3"]) == 0
    options = yaml.safe_load(capsys.readouterr().out)
    assert (options["lr"], options["opt"]) == (0.008, "lamb")
    assert "about" not in options


def test_init_writes_a_recipe_and_a_script_that_train(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    folder = tmp_path / "new"
    assert main(["init", str(folder)]) == 0
    assert f"timm-accel train --config {folder / 'recipe.yaml'}" in capsys.readouterr().out
    monkeypatch.chdir(folder)
    small = ["--batch_size", "4", "--num_epochs", "1", "--num_workers", "0", "--model", "test_resnet"]
    assert main(["train", "--config", "recipe.yaml", "--data_dir", str(image_folder), *small]) == 0
    assert yaml.safe_load((folder / "runs/recipe/recipe.yaml").read_text())["scale"] == [0.6, 1.0]
    script = runpy.run_path("train.py")
    trainer = script["main"](str(image_folder), num_epochs=1, batch_size=4)
    assert isinstance(trainer, TimmMixupTrainer)
    assert (folder / "runs/script/best/model.safetensors").is_file()
    assert len((folder / "train.py").read_text().splitlines()) <= 45


def test_init_overwrites_nothing(tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "train.py").write_text("mine")
    assert main(["init", str(tmp_path)]) == 1
    assert "files are never overwritten" in capsys.readouterr().err
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("train.py", "mine")]


@pytest.mark.parametrize("shell", ["bash", "zsh", "tcsh"])
def test_completion_knows_commands_options_and_choices(shell: str, capsys: Any) -> None:
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    for word in ("train", "recipes", "ema_decay", "linear", "fast_cpu"):
        assert word in script
