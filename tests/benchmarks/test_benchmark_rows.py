"""The rows of benchmarks that take long, from results that are given."""

from argparse import ArgumentParser, Namespace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from benchmarks import article_script, families_export, kill_test


def options_of(benchmark: ModuleType, *words: str) -> Namespace:
    parser = ArgumentParser()
    benchmark.add_options(parser)
    return parser.parse_args(words)


def test_the_articles_trainer_and_ours_take_turns_and_are_compared_seed_by_seed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    order: list[tuple[str, int]] = []

    def run(kind: type, seed: int, epochs: int) -> tuple[float, float, float]:
        ours = kind.__name__ == "TimmMixupTrainer"
        order.append((kind.__name__, seed))
        return 0.5 + seed / 10, 0.25, (seed + 1) * (1.0 if ours else 2.0 + seed)

    monkeypatch.setattr(article_script, "run", run)
    (table,) = article_script.main(options_of(article_script, "--seeds", "2"))
    article, ours = ("ArticleTrainer", "TimmMixupTrainer")
    assert order == [(article, 0), (ours, 0), (ours, 1), (article, 1)]
    accuracies = ["0.5500 (0.5000 to 0.6000)", "0.2500 (0.2500 to 0.2500)"]
    assert table.rows == [
        ["article", *accuracies, "4.0 (2.0 to 6.0)", ""],
        ["timm_accel", *accuracies, "1.5 (1.0 to 2.0)", "0.42 (0.33 to 0.50)"],
    ]


def test_a_killed_run_with_other_bits_fails_and_names_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    kills, places = [SimpleNamespace(inside_a_write=True), SimpleNamespace(inside_a_write=False)], list[str]()
    monkeypatch.setattr(kill_test, "kill_and_compare", lambda *_: (kills, places))
    monkeypatch.setattr(kill_test, "write_data", lambda folder: folder)
    options = options_of(kill_test, "--kills", "2", "--folder", str(tmp_path))
    assert kill_test.main(options)[0].rows == [["none, processes 1, seed 0", "2", "1", "2", "yes", "0"]]
    places.append("the EMA weights")
    with pytest.raises(SystemExit, match=r"none: 2 kills of 2; these differ: the EMA weights"):
        kill_test.main(options)
    places.clear()
    with pytest.raises(SystemExit, match=r"2 kills of 3; these differ: none"):
        kill_test.main(options_of(kill_test, "--kills", "3", "--folder", str(tmp_path)))


def test_exports_that_are_in_the_log_are_not_repeated(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[str] = []
    monkeypatch.setattr(
        families_export,
        "check_in_a_process",
        lambda name: asked.append(name) or dict.fromkeys(families_export.FORMATS, f"ok ({name})"),
    )
    for names in (["b"], ["b", "a"]):
        (table,) = families_export.main(options_of(families_export, *names, "--log", str(tmp_path / "log.json")))
    assert asked == ["b", "a"]
    assert [row[:2] for row in table.rows] == [["a", "ok (a)"], ["b", "ok (b)"], ["passed, of 2", "2"]]
