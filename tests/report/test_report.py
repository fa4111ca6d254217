"""The page shows what the run recorded and gets wrong, runs no text of the data, and says what is missing."""

import re
import shutil
from html.parser import HTMLParser
from itertools import product
from pathlib import Path

import pytest
import yaml
from browser import browser, needs_chromium
from conftest import write_images
from refusal import refused

from timm_accel import Recipe, evaluate_classifier
from timm_accel.recipes import build_run
from timm_accel.report import report
from timm_accel.text_files import read_csv

EVIL = "<script>alert(1)</script>"
SMALL = {"model": "test_resnet", "image_size": 32, "num_epochs": 2, "batch_size": 6, "num_workers": 0,
         "warmup_epochs": 0, "opt": "adamw", "lr": 1e-3}  # fmt: skip


class Page(HTMLParser):
    """The texts of a page by the tags that they are in, and the attributes of all tags."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[list[str]] = []
        self._cell = False
        self.text = path.read_text(encoding="utf-8")
        self.feed(self.text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self._cell = True
            self.rows[-1].append("")

    def handle_data(self, data: str) -> None:
        if self._cell and self.rows and self.rows[-1]:
            self.rows[-1][-1] += data

    def handle_endtag(self, tag: str) -> None:
        self._cell = self._cell and tag not in ("td", "th")

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.tags)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on classes and files with names that a page must not run."""
    folder = tmp_path_factory.mktemp("report")
    write_images(folder / "data" / "train", {"plain": 6, EVIL.replace("/", "⁄"): 6, 'it\'s "b"': 6})
    write_images(folder / "data" / "val", {"plain": 3, EVIL.replace("/", "⁄"): 4, 'it\'s "b"': 2})
    (folder / "data" / "val" / "plain" / "000.png").rename(folder / "data" / "val" / "plain" / "\"><img src=x>'.png")
    (folder / "data" / "val" / "plain" / "broken.png").write_bytes(b"no image")
    build_run(Recipe(data_dir=str(folder / "data"), run_dir=str(folder / "run"), **SMALL)).train()
    return folder / "run"


@pytest.fixture(scope="module")
def page(run: Path) -> Page:
    return Page(report(run))


def test_the_page_shows_the_metrics_the_classes_and_the_matrix_of_the_evaluation(run: Path, page: Page) -> None:
    found = evaluate_classifier(run, run.parent / "data")
    for name, value in found.metrics.items():
        assert [name, f"{value:.4f}"] in page.rows
    for each in found.classes:
        figures = [f"{each.precision:.3f}", f"{each.recall:.3f}", f"{each.f1:.3f}", str(each.support)]
        assert [each.name, *figures] in page.rows
    for each, counts in zip(found.classes, found.confusion_matrix or [], strict=True):
        shown = [row for row in page.rows if row and row[0] == each.name]
        assert [each.name, *(str(count) if count else "" for count in counts)] in shown
    assert "broken.png" in page.text


def test_the_curves_are_those_of_the_history(run: Path, page: Page) -> None:
    rows = read_csv(run / "history.csv")
    titles = re.findall(r"<figcaption>(.*?)</figcaption>", page.text)
    assert titles == ["Loss", "accuracy", "f1_macro", "Learning rate", "Calibration"]
    figure = page.text[page.text.index("<figcaption>accuracy<") :].partition("</figure>")[0]
    lines = [[float(pair.split(",")[1]) for pair in points.split()] for points in re.findall(r'points="(.*?)"', figure)]
    ticks = {float(text): float(y) - 4 for y, text in re.findall(r'y="([\d.]+)" text-anchor="end">([\d.]+)<', figure)}
    (low, bottom), (high, top) = min(ticks.items()), max(ticks.items())
    for line, metric in zip(lines, ("accuracy", "ema_model_accuracy"), strict=True):
        shown = [low + (y - bottom) / (top - bottom) * (high - low) for y in line]
        assert shown == pytest.approx([float(row[metric]) for row in rows], abs=0.01)


def test_names_of_classes_and_files_are_text_and_nothing_else(page: Page) -> None:
    assert page.count("script") == 1  # ours
    assert all(not name.startswith("on") for _, attributes in page.tags for name in attributes)
    images = [attributes["src"] or "" for tag, attributes in page.tags if tag == "img"]
    assert images
    assert all(source.startswith("data:image/jpeg;base64,") for source in images)
    assert not re.search(r"https?://", page.text.replace("http://www.w3.org", ""))
    assert any(row[0] == EVIL.replace("/", "⁄") for row in page.rows if row)
    policy = next(attributes for tag, attributes in page.tags if attributes.get("http-equiv"))
    assert (policy["content"] or "").startswith("default-src 'none'")


def test_the_page_shows_training_images_options_and_how_to_load_the_model(run: Path, page: Page) -> None:
    alternatives = [attributes.get("alt") or "" for tag, attributes in page.tags if tag == "img"]
    assert sum(alt.startswith("augmented") for alt in alternatives) == 8
    assert sum(alt.startswith("mixed") for alt in alternatives) == 8
    stored = yaml.safe_load((run / "recipe.yaml").read_text())
    assert ["lr", str(stored["lr"])] in page.rows
    assert "load_classifier(" in page.text


def test_a_second_page_has_the_same_content(run: Path, page: Page, tmp_path: Path) -> None:
    assert report(run, tmp_path / "again.html").read_text(encoding="utf-8") == page.text


def test_several_runs_are_compared_by_curves_metrics_and_options(run: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(run, other)
    recipe = yaml.safe_load((other / "recipe.yaml").read_text()) | {"lr": 0.5}
    (other / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    shown = Page(report([run, other], tmp_path / "both.html"))
    assert ["lr", "0.001", "0.5"] in shown.rows
    assert not [row for row in shown.rows if row and row[0] == "model"]
    last = read_csv(run / "history.csv")[-1]
    row = next(row for row in shown.rows if row and row[0] == "other")
    assert f"{float(last['accuracy']):.4f}" in row
    assert shown.text.count("<polyline") % 2 == 0


def test_what_is_missing_is_said_on_the_page(run: Path, tmp_path: Path) -> None:
    unfinished = tmp_path / "unfinished"
    shutil.copytree(run, unfinished, ignore=shutil.ignore_patterns("best*", "state", "report.html"))
    recipe = yaml.safe_load((unfinished / "recipe.yaml").read_text()) | {"num_epochs": 9}
    (unfinished / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    text = report(unfinished).read_text(encoding="utf-8")
    assert "The run has 2 of 9 epochs so far: it is in progress, or it stopped." in text
    assert "The run has no weights yet, so that nothing can be evaluated." in text

    moved = tmp_path / "moved"
    shutil.copytree(run, moved)
    recipe = yaml.safe_load((moved / "recipe.yaml").read_text()) | {"data_dir": str(tmp_path / "gone")}
    (moved / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    text = report(moved).read_text(encoding="utf-8")
    assert "The images could not be evaluated" in text
    assert "<figcaption>accuracy</figcaption>" in text
    (moved / "recipe.yaml").unlink()
    assert "no recipe.yaml" in report(moved).read_text(encoding="utf-8")
    assert "<figcaption>Calibration</figcaption>" in report(moved, data=run.parent / "data").read_text(encoding="utf-8")


def test_bad_input_is_refused_in_a_sentence(run: Path, tmp_path: Path) -> None:
    with refused(FileNotFoundError, "Expected runs to be folders of runs", "absent"):
        report(tmp_path / "absent")
    with refused(FileNotFoundError, "Expected a run with a history or weights"):
        report(tmp_path)
    with refused(ValueError, "Expected runs to be at least one run"):
        report([])
    other = tmp_path / "other"
    other.mkdir()
    (other / "history.csv").write_text("epoch,lr,fitness\n1,0.1,0.5\n")
    with refused(ValueError, "Expected runs that recorded the same metrics", "share none"):
        report([run, other], tmp_path / "both.html")
    (other / "history.csv").write_text("a,b\n1,2\n")
    with refused(ValueError, "Expected a history with the column epoch"):
        report(other)
    with refused(OSError, "page.html"):
        report(run, run / "history.csv" / "page.html")
    assert not (tmp_path / "both.html").exists()


FOCUSED = "[document.activeElement.textContent.trim(), getComputedStyle(document.activeElement).outlineStyle]"
SORTS = "[...document.querySelectorAll('table.sortable th')].map(each => each.getAttribute('aria-sort'))"
COUNTS = "[...document.querySelectorAll('table.sortable tbody tr')].map(row => row.cells[4].textContent)"
CONTRASTS = """(() => {
  const parse = color => color.match(/[\\d.]+/g).map(Number);
  const over = ([r, g, b, a = 1], below) => [r, g, b].map((each, i) => each * a + below[i] * (1 - a));
  const ground = element => element === null ? [255, 255, 255]
    : over(parse(getComputedStyle(element).backgroundColor), ground(element.parentElement));
  const light = color => color.slice(0, 3).map(each => each / 255)
    .map(each => each <= 0.04045 ? each / 12.92 : ((each + 0.055) / 1.055) ** 2.4)
    .reduce((sum, each, i) => sum + each * [0.2126, 0.7152, 0.0722][i], 0);
  const lowest = {};
  for (const element of document.querySelectorAll("body *")) {
    if (![...element.childNodes].some(each => each.nodeType === 3 && each.data.trim())) continue;
    if (["SCRIPT", "STYLE", "TITLE"].includes(element.tagName)) continue;
    const style = getComputedStyle(element), isSvg = element instanceof SVGElement;
    const [a, b] = [light(parse(isSvg ? style.fill : style.color)), light(ground(element))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), name = element.tagName + "." + element.className;
    lowest[name] = Math.min(ratio, lowest[name] ?? 21);
  }
  return lowest;
})()"""


@needs_chromium
def test_a_browser_shows_the_page_without_errors_and_its_table_sorts_by_keyboard(page: Page, tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text(page.text, encoding="utf-8")
    with browser(tmp_path / "profile") as shown:
        shown.open(f"file://{tmp_path}/page.html", 360, 800)
        stops = []
        for _ in range(13):
            shown.press("Tab")
            stops.append(shown.run(FOCUSED))
        links = ["Curves", "Metrics", "Classes", "Mistakes", "Training images", "Options", "Use the model"]
        assert [name for name, _ in stops[:12]] == [*links, "class", "precision", "recall", "F1", "images"]
        assert all(outline == "solid" for _, outline in stops)
        shown.run("document.querySelectorAll('table.sortable th button')[4].focus()")
        assert shown.run(SORTS) == ["none"] * 5
        shown.press("Enter")
        assert (shown.run(COUNTS), shown.run(SORTS)) == (["2", "3", "4"], [*["none"] * 4, "ascending"])
        shown.press(" ")
        assert (shown.run(COUNTS), shown.run(SORTS)) == (["4", "3", "2"], [*["none"] * 4, "descending"])
        assert shown.run(FOCUSED)[0] == "images"
        assert shown.run("document.title") == "run · timm_accel"
        assert shown.errors == []


@needs_chromium
def test_nothing_is_wider_than_the_screen_or_hard_to_read_in_light_and_dark(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "a-long-name-of-another-run-without-any-space-in-it", dirs_exist_ok=True)
    report([run, *tmp_path.glob("a-*")], tmp_path / "both.html")
    report(run, tmp_path / "one.html")
    with browser(tmp_path / "profile") as shown:
        for name, width, dark in product(("one", "both"), (360, 1440), (False, True)):
            shown.open(f"file://{tmp_path}/{name}.html", width, dark=dark)
            assert shown.run("document.documentElement.scrollWidth") <= width, name
            contrasts = shown.run(CONTRASTS)
            assert len(contrasts) > 10
            assert {each: ratio for each, ratio in contrasts.items() if ratio < 4.5} == {}, dark
        assert shown.errors == []
