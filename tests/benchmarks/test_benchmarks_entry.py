"""`python -m benchmarks` runs a benchmark by its name, writes its tables, and RESULTS.md shows them."""

import json
import sys
import time
from argparse import ArgumentParser
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import write_images

from benchmarks import __main__ as entry
from benchmarks import data
from benchmarks.__main__ import benchmarks, main, run
from benchmarks.pairs import in_turn, spread, together
from benchmarks.tables import MARKED, PAGES, RESULTS, Table, refreshed

RUN = {"command": "x", "date": None, "seconds": None, "machine": None, "cores": None, "versions": {}}


def test_the_page_of_results_shows_what_the_files_have() -> None:
    pages = [page.read_text() for page in PAGES]
    assert refreshed(pages) == pages
    assert [line for page in pages for line in MARKED.sub("", page).splitlines() if line.startswith("|")] == []
    commands = [json.loads(path.read_text())["command"] or "" for path in RESULTS.glob("*.json")]
    assert [command for command in commands if " /" in command] == []


def test_a_marked_table_is_replaced_and_the_prose_stays(tmp_path: Path) -> None:
    known = RUN | {"seconds": 61.2, "cores": 2, "date": "2026-01-02", "machine": "Z80", "versions": {"timm": "1.0"}}
    table = {"name": "of two", "columns": ["a", "b"], "rows": [["", 1], ["x | y", "2"]]}
    (tmp_path / "one.json").write_text(json.dumps(known | {"tables": [table]}))
    (tmp_path / "two.json").write_text(json.dumps(RUN | {"command": None, "tables": [table | {"rows": []}]}))
    mark = "<!-- {}: of two -->\n{}\n<!-- end -->"
    before = f"Before.\n\n{mark.format('one', 'old')}\nBetween.\n{mark.format('two', '')}\nAfter.\n"
    header = "| a | b |\n|---|---|"
    first = f"{header}\n| | 1 |\n| x \\| y | 2 |\n\n`x`, 2026-01-02, 61 s, Z80, 2 cores, timm 1.0"
    after = f"Before.\n\n{mark.format('one', first)}\nBetween.\n{mark.format('two', f'{header}{chr(10)}{chr(10)}')}"
    assert refreshed([before, "b"], tmp_path) == [f"{after}\nAfter.\n", "b"]
    for page, mark in ((before.replace("one: of two", "one: of 3"), "one: of 2|one: of 3"), ("", "one: of two")):
        with pytest.raises(ValueError, match=rf"Expected the pages to have a mark for each table .* got '({mark})'"):
            refreshed([page], tmp_path)


def test_ways_take_turns_and_are_compared_within_a_round() -> None:
    order: list[str] = []
    times = {"bare": iter([9.0, 2.0, 4.0, 8.0]), "ours": iter([9.0, 3.0, 2.0, 8.0])}

    def call(name: str) -> float:
        order.append(name)
        return next(times[name])

    pairs = in_turn({name: lambda name=name: call(name) for name in times}, rounds=3, count=2)
    assert order == ["ours", "bare", "bare", "ours", "ours", "bare", "bare", "ours"]
    assert pairs.seconds == {"bare": [1, 2, 4], "ours": [1.5, 1, 4]}
    assert pairs.ratios("ours", "bare") == [1.5, 0.5, 1]
    assert pairs.table("a").rows == [
        ["bare", "2000.00 (1000.00 to 4000.00)", ""],
        ["ours", "1500.00 (1000.00 to 4000.00)", "1.000 (0.500 to 1.500)"],
    ]
    assert pairs.table("a").columns[2:] == ["time over bare, pair by pair, median (min to max)"]
    both = together("b", {"x": pairs, "y": pairs}, "s")
    assert both.columns[:3] == ["", "way", "s, median (min to max)"]
    assert both.rows[2] == ["y", "bare", "2.00 (1.00 to 4.00)", ""]
    assert spread([1, 5, 2], 0) == "2 (1 to 5)"


def test_a_way_that_returns_no_seconds_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 100, 7))
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    assert in_turn({"a": lambda: None}, rounds=2).seconds == {"a": [7, 7]}


def test_a_run_prints_its_tables_and_writes_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def add_options(parser: ArgumentParser) -> None:
        parser.add_argument("--sizes", nargs="+", type=int)
        parser.add_argument("--data")

    tiny = SimpleNamespace(
        __doc__="Count.",
        add_options=add_options,
        main=lambda arguments: [Table("sizes", ["size"], [[size] for size in arguments.sizes])],
    )
    monkeypatch.setitem(sys.modules, "benchmarks.tiny", tiny)
    run("tiny", ["--sizes", "3", "5", "--data=/home/me/cats", "--out", str(tmp_path / "tiny.json")])
    assert capsys.readouterr().out == "sizes\n\n| size |\n|---|\n| 3 |\n| 5 |\n"
    written = json.loads((tmp_path / "tiny.json").read_text())
    assert written["command"] == "python -m benchmarks tiny --sizes 3 5 --data=cats --out tiny.json"
    assert written["sizes"] == {"sizes": [3, 5]}
    assert written["machine"]
    assert {"Python", "torch", "timm"} < {*written["versions"]}
    mark = "<!-- tiny: sizes -->\n\n<!-- end -->"
    assert refreshed([mark], tmp_path)[0].startswith(
        "<!-- tiny: sizes -->\n| size |\n|---|\n| 3 |\n| 5 |\n\n`python -m"
    )


def test_without_a_name_the_benchmarks_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    main([])
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("update_cost      Count what one training update costs") for line in lines)
    assert any(line.startswith("report           Write the tables") for line in lines)
    assert all(sentence.endswith(".") and "\n" not in sentence for sentence in benchmarks().values())
    assert not {"__main__", "tables", "pairs"} & {*benchmarks()}


def test_an_unknown_name_ends_in_one_sentence() -> None:
    with pytest.raises(
        SystemExit, match=r"Expected NAME to be a benchmark, but got 'upd_cost'\. Did you mean 'update_co"
    ):
        main(["upd_cost"])


@pytest.mark.filterwarnings("ignore:The image decoding and encoding capabilities of TorchVision are deprecated")
@pytest.mark.parametrize(
    ("words", "lengths"),
    [
        (["data_identity", "--images", "200"], [7]),
        (["seeding", "--rounds", "1", "--sizes", "28", "32"], [4, 2]),
        (["data", "--data_dir", "data", "--rounds", "1"], None),
    ],
)
def test_a_small_run_of_a_benchmark_fills_its_tables(
    words: list[str],
    lengths: list[int] | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(torch, "set_num_threads", lambda number: None)  # of this process of tests
    monkeypatch.setattr(data, "BATCH", 4)
    monkeypatch.chdir(tmp_path)
    write_images(tmp_path / "data", {"cat": 4, "dog": 4}, size=16)
    main([*words, "--out", str(tmp_path / "out.json")])
    tables = [Table(**table) for table in json.loads((tmp_path / "out.json").read_text())["tables"]]
    assert lengths is None or [len(table.rows) for table in tables] == lengths
    assert {len(row) == len(table.columns) for table in tables for row in table.rows} == {True}
    assert all(table.markdown() in capsys.readouterr().out for table in tables[:1])


def test_the_report_writes_the_pages_and_names_a_mark_without_a_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "page.md"
    monkeypatch.setattr(entry, "PAGES", [page])
    page.write_text(
        PAGES[0].read_text() + "\n\n".join(path.read_text() for path in PAGES[1:]).replace("| yes |", "| no |")
    )
    main(["report"])
    assert "| yes |" in page.read_text().partition("families: models")[2]
    page.write_text("<!-- no_such: table -->\n<!-- end -->")
    with pytest.raises(SystemExit, match="Expected the pages to have a mark for each table in results/ and no other"):
        main(["report"])
