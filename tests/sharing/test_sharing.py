"""A package stands alone, no name of a class harms it, the hub gets its files, and a page predicts as the model."""

import http.client
import json
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Iterator
from html import unescape
from itertools import product
from pathlib import Path
from threading import Thread
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import timm
import torch
import yaml
from PIL import Image
from refusal import contents, refused
from timm.data import create_transform
from trained_runs import brightness, write_odd

from timm_accel import Recipe, load_classifier
from timm_accel.commands.export import export as export_command
from timm_accel.data.image_files import list_images
from timm_accel.data.transforms.prepare_image import PrepareImage
from timm_accel.model_soup import average_weights
from timm_accel.models import read_config, save_classifier
from timm_accel.predict import Prediction
from timm_accel.recipes import build_run
from timm_accel.sharing import create_demo, export_package, push_to_hub
from timm_accel.sharing.card import Example, markdown_text, write_card
from timm_accel.sharing.demo import MAX_BYTES, DemoServer
from timm_accel.text_files import read_csv

EVIL = {"cat": "<script>alert(1)⁄script>", "dog": 'it\'s "b"\n---\nlicense: x', "owl": "a|b `c` [d](e) *f*"}
ALONE = """
import runpy, sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "torchvision", "timm", "timm_accel"):
            raise ImportError(f"{name} is blocked")
sys.meta_path.insert(0, Blocked())
runpy.run_path(sys.argv.pop(1), run_name="__main__")
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on images in several modes, whose classes have names that a card and a page must not run."""
    folder = tmp_path_factory.mktemp("sharing")
    for split, count in (("train", 8), ("val", 5)):
        write_odd(folder / "data" / split, count)
        for plain, name in EVIL.items():
            (folder / "data" / split / plain).rename(folder / "data" / split / name)
    recipe = Recipe(
        model="test_resnet", image_size=32, num_epochs=3, batch_size=6, num_workers=0, warmup_epochs=0,
        opt="adamw", lr=1e-2, data_dir=str(folder / "data"), run_dir=str(folder / "run"), ema_decay=None,
    )  # fmt: skip
    build_run(recipe).train()
    return folder / "run"


@pytest.fixture(scope="module")
def package(run: Path) -> Path:
    return export_package(run, run.parent / "my <model>")


def card_of(package: Path) -> tuple[dict[str, Any], str]:
    """The header and the text of a card."""
    empty, header, text = (package / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    assert empty == ""
    return yaml.safe_load(header), text


def test_the_predictor_gives_the_models_probabilities_where_only_onnxruntime_is_installed(
    run: Path, package: Path
) -> None:
    files = [str(run.parent / "data" / name) for name in list_images(run.parent / "data")[0]]
    assert len(files) == 39
    command = [sys.executable, "-c", ALONE, str(package / "predict.py"), *files]
    lines = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout.splitlines()
    expected = load_classifier(run, device="cpu").predict(files, top_k=3, progress=False)
    for line, prediction in zip(map(json.loads, lines), expected, strict=True):
        assert line["image"] == prediction.path
        assert dict(line["predictions"]) == pytest.approx(
            dict(zip(prediction.labels, prediction.scores, strict=True)), abs=1e-5
        )
        assert line["predictions"][0][0] == prediction.labels[0]
    assert len({prediction.labels[0] for prediction in expected}) > 1


def test_the_predictor_resizes_and_crops_bit_for_bit_as_timm_does(package: Path) -> None:
    program = runpy.run_path(str(package / "predict.py"))
    random, at = np.random.default_rng(0), program["resized_and_cropped"].__globals__
    sizes = [(40, 56), (57, 31), (32, 32), (9, 70), (64, 33)]
    targets = [((32, 32), 0.875), ((30, 41), 0.95), ((33, 33), 1.0), ((32, 48), 1.3), ((23, 23), 1.17)]
    for (width, height), ((crop_height, crop_width), crop_pct), crop_mode, interpolation in product(
        sizes, targets, ("center", "squash", "border"), ("bilinear", "bicubic", "nearest")
    ):
        image = Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8))
        options = {"crop_pct": crop_pct, "crop_mode": crop_mode, "interpolation": interpolation, "mean": (0.1, 0.5, 1)}
        wanted = create_transform((3, crop_height, crop_width), normalize=False, std=(1, 1, 1), **options)(image)
        at.update(height=crop_height, width=crop_width, about=options)
        found = np.asarray(program["resized_and_cropped"](image))
        assert np.array_equal(found, wanted.permute(1, 2, 0).numpy()), (width, height, crop_height, crop_width, options)


def test_the_predictor_decodes_wide_and_turned_images_as_evaluation_does(package: Path, tmp_path: Path) -> None:
    program = runpy.run_path(str(package / "predict.py"))
    at = program["load"].__globals__
    wide = np.random.default_rng(0).integers(0, 4096, (5, 7))
    kinds = {"16.png": "uint16", "32.tif": "int32", "float.tif": "float32"}
    images = {name: Image.fromarray(wide.astype(kind)) for name, kind in kinds.items()}
    images["palette.png"] = Image.new("P", (4, 3), 7)
    for channels, pixel_range, (name, image), turn in product(
        (1, 3), (None, [0, 4095], [0, 1]), images.items(), range(10)
    ):
        exif = Image.Exif()
        exif[274] = turn
        image.save(tmp_path / name, exif=exif, **({"transparency": 7} if name == "palette.png" else {}))
        at.update(channels=channels, about={"pixel_range": pixel_range})
        try:
            wanted = PrepareImage(channels, pixel_range and tuple(pixel_range))(Image.open(tmp_path / name))
        except OSError:
            with pytest.raises(OSError, match="no scale"):
                program["load"](tmp_path / name)
            continue
        found = program["load"](tmp_path / name)
        assert found.mode == wanted.mode
        assert np.array_equal(np.asarray(found), np.asarray(wanted)), (name, turn, pixel_range, channels)


def test_timm_alone_loads_the_folder(run: Path, package: Path) -> None:
    model = timm.create_model(f"local-dir:{package}", pretrained=True).eval()
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        expected = timm.create_model(f"local-dir:{run / 'best'}", pretrained=True).eval()(images)
        assert torch.equal(model(images), expected)
    for name in ("config.json", "model.safetensors"):
        assert (package / name).read_bytes() == (run / "best" / name).read_bytes()


def test_the_card_has_the_metrics_of_the_best_epoch_and_the_names_of_the_classes_as_text(
    run: Path, package: Path
) -> None:
    header, text = card_of(package)
    assert (header["license"], header["library_name"]) == ("unknown", "timm")
    assert header["tags"] == ["image-classification", "timm"]
    best = json.loads((run / "best" / "config.json").read_text())["best"]
    row = next(row for row in read_csv(run / "history.csv") if float(row["epoch"]) == best["epoch"])
    results = {each["type"]: each["value"] for each in header["model-index"][0]["results"][0]["metrics"]}
    assert results["accuracy"] == pytest.approx(float(row["accuracy"]), abs=1e-6)
    assert results["eval_loss_epoch"] == pytest.approx(float(row["eval_loss_epoch"]), abs=1e-6)
    assert f"| accuracy | {float(row['accuracy']):.4f} |" in text
    assert not {"lr", "epoch", "images_per_second"} & set(results)
    assert "<script" not in text
    assert text.startswith("\n# my &#60;model&#62;\n")
    assert "\n---\n" not in text
    rows = re.findall(r"^\| (\d) \| (.*) \|$", text, re.MULTILINE)
    names = load_classifier(run).class_names
    assert [unescape(name) for _, name in rows] == [name.replace("\n", "\\u000a") for name in names]
    assert not re.search(r"[`*\[|<]", "".join(name for _, name in rows))
    assert huggingface_hub.ModelCard.load(package / "README.md").data.license == "unknown"


def test_the_example_is_an_evaluation_image_without_exif_and_only_where_the_data_are_at_hand(
    run: Path, package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Image.open(package / "example.png") as image:
        assert not image.getexif()
        assert image.size in ((40, 56), (56, 40))
        [prediction] = load_classifier(run, device="cpu").predict(image, top_k=1)
    assert f"probability of\n{prediction.scores[0]:.3f}" in card_of(package)[1]
    exported_already(monkeypatch, package)
    moved = tmp_path / "moved"
    shutil.copytree(run, moved, ignore=shutil.ignore_patterns("state"))
    options = yaml.safe_load((moved / "recipe.yaml").read_text()) | {"data_dir": str(tmp_path / "gone")}
    (moved / "recipe.yaml").write_text(yaml.safe_dump(options))
    for out in (
        export_package(moved, tmp_path / "moved_package"),
        export_package(run, tmp_path / "without", example=False),
        export_package(run / "best", tmp_path / "best", example=False),
    ):
        assert sorted(contents(out)) == sorted(set(contents(package)) - {"example.png"})
        assert "example" not in card_of(out)[1]


def exported_already(monkeypatch: pytest.MonkeyPatch, package: Path) -> None:
    """Take the ONNX file of a package of the same weights, since an export takes seconds."""

    def export(source: Path, out: Path, **options: Any) -> None:
        assert options == {"head": None, "normalize": True, "softmax": True}
        shutil.copyfile(package / "model.onnx", out)

    monkeypatch.setattr("timm_accel.sharing.package.export", export)


def test_no_text_of_a_model_breaks_the_card(tmp_path: Path) -> None:
    odd = [
        *EVIL.values(),
        "---",
        "\n\n# a",
        "\u2028x",
        "\x1b[2J",
        "\udce9",
        "https://a.b",
        "&lt;",
        "",
        "- [ ] x",
        "@me",
        "__a__ b_c _d",
    ]
    labels = [*odd, *(f"class {number}" for number in range(1000))]
    model = brightness(multi_label=True)
    model.class_names = labels
    found = Prediction(None, (odd[0],), (0.75,))
    for title in odd:
        metrics = {"accuracy": 0.5, "a|b\n---\n<b>": 1.0}
        config = {"architecture": "test_resnet", "head": "mlp", "note": "timm <cannot>", "temperature": 1.5}
        write_card(tmp_path / "README.md", title, model, config, metrics, Example("example.png", found), "mit")
        header, text = card_of(tmp_path)
        assert set(header) == {"library_name", "license", "pipeline_tag", "tags", "model-index"}
        assert header["license"] == "mit"
        assert [line for line in text.splitlines() if line.startswith("# ")] == [f"# {markdown_text(title)}"]
        assert not re.search(r"<(?!/?details|/?summary)|[\x00-\x09\x0b-\x1f\u2028\ud800-\udfff]", text)
    assert re.findall(r"^\| (\d+) \| (.*) \|$", text, re.MULTILINE) == [
        (str(number), markdown_text(name)) for number, name in enumerate(labels)
    ]
    assert "timm &#60;cannot&#62;." in text
    assert "pretrained=True, num_classes=0)" in text
    assert "temperature 1.5" in text
    assert "An image may have several of these classes." in text


def test_the_predictor_of_a_multi_label_model_of_grayscale_images_applies_temperature_and_sigmoid(
    run: Path, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    config = {"input_size": (1, 32, 48), "mean": (0.4,), "std": (0.25,), "crop_pct": 0.9, "crop_mode": "border"}
    model = timm.create_model("test_resnet", num_classes=3, in_chans=1, pretrained_cfg_overlay=config)
    save_classifier(model, tmp_path / "best", ["a", "b", "c"], config, multi_label=True, temperature=0.25)
    package = export_package(tmp_path / "best", tmp_path / "package")
    program = runpy.run_path(str(package / "predict.py"))
    classifier = load_classifier(tmp_path / "best", device="cpu")
    for path in sorted((run.parent / "data" / "val").rglob("*.*"))[:6]:
        [expected] = classifier.predict(path, top_k=3, threshold=0.0)
        wanted = dict(zip(expected.labels, expected.scores, strict=True))
        assert dict(program["predict"](path)) == pytest.approx(wanted, abs=1e-5)
        assert abs(sum(wanted.values()) - 1) > 1e-3


def test_the_predictor_names_what_cannot_be_read_and_predicts_the_rest(
    run: Path, package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    image = next((run.parent / "data").rglob("*.png"))
    bad = {
        tmp_path / "text.png": b"no image",
        tmp_path / "half.png": image.read_bytes()[:200],
        tmp_path / "empty.jpg": b"",
        tmp_path / "header.png": image.read_bytes()[:8] + b"\xff" * 50,
    }
    for path, content in bad.items():
        path.write_bytes(content)
    (tmp_path / "a folder.png").mkdir()
    paths = [*bad, tmp_path / "a folder.png", tmp_path / "missing.png", image]
    monkeypatch.setattr(sys, "argv", ["predict.py", *map(str, paths)])
    with pytest.raises(SystemExit) as exit:
        runpy.run_path(str(package / "predict.py"), run_name="__main__")
    assert isinstance(exit.value.code, str)  # Python prints it, and exits with 1
    for path, line in zip(paths[:-1], exit.value.code.splitlines(), strict=True):
        assert re.fullmatch(re.escape(f"{str(path)!r} cannot be read as an image: ") + r"\S.*", line)
    [line] = capsys.readouterr().out.splitlines()
    assert json.loads(line)["image"] == str(image)


def test_the_predictor_says_how_it_is_called(package: Path) -> None:
    command = [sys.executable, "-c", ALONE, str(package / "predict.py")]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == "Name one image or more: python predict.py IMAGE …\n"


def test_no_path_of_this_machine_is_in_a_package(run: Path, package: Path, tmp_path: Path) -> None:
    for path in package.rglob("*"):
        assert not re.search(rb"site-packages|/home/|" + re.escape(str(run.parent).encode()), path.read_bytes()), path
    soup = average_weights([run / "best", run / "best"], out=tmp_path / "soup")
    assert str(run) in (soup / "config.json").read_text()
    packed = export_package(soup, tmp_path / "package", example=False)
    assert not [path for path in packed.rglob("*") if str(run.parent).encode() in path.read_bytes()]
    config = read_config(packed)
    assert config["averaged"] == {"method": "uniform", "num_folders": 2}
    assert load_classifier(packed, device="cpu").class_names == load_classifier(run).class_names
    with open(soup / "model.safetensors", "r+b") as file:
        file.seek(-1, 2)
        file.write(b"x")
    with refused(ValueError, "Expected model.safetensors to be as it was saved"):
        export_package(soup, tmp_path / "changed", example=False)


def test_a_package_that_cannot_be_written_leaves_nothing(
    run: Path, package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(package)
    with refused(FileExistsError, "Expected the package to be a new folder", "my <model>"):
        export_package(run, package)
    assert contents(package) == before
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with refused(FileExistsError, "new folder"):
        export_package(run, tmp_path / "link")
    with refused(FileNotFoundError, "source to be a folder with config.json", "absent"):
        export_package(tmp_path / "absent", tmp_path / "out")
    for license in ("", "MIT", "a b", "x\n---\ny", "<b>"):
        with refused(ValueError, "Expected license to be a name of the hub"):
            export_package(run, tmp_path / "out", license=license)
    exported_already(monkeypatch, package)
    monkeypatch.setattr("timm_accel.sharing.package.write_card", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        export_package(run, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["link"]


def test_the_command_writes_a_package_and_refuses_options_of_a_file(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    written = []
    monkeypatch.setattr("timm_accel.commands.export.export_package", lambda *args, **kw: written.append((args, kw)))
    export_command(str(run), package="out", license="mit", example=False)
    assert written == [((str(run), "out"), {"license": "mit", "example": False})]
    for options in ({"softmax": True}, {"opset": 17}, {"out": "model.onnx"}, {"tolerance": 1.0}):
        with refused(ValueError, f"Expected package without {next(iter(options))}"):
            export_command(str(run), package="out", **options)
    with refused(ValueError, "Expected out or package, but got none"):
        export_command(str(run))
    assert len(written) == 1


class Hub:
    """Stands in for the hub: takes the calls, and keeps the files that an upload would send."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.files: dict[str, bytes] = {}
        self.error: Exception | None = None
        monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", self._create)
        monkeypatch.setattr(huggingface_hub.HfApi, "upload_folder", self._upload)

    def _create(self, repo_id: str, **options: Any) -> Any:
        self.calls.append((repo_id, options))
        if self.error is not None:
            raise self.error
        return huggingface_hub.RepoUrl(f"https://huggingface.co/me/{repo_id.rpartition('/')[2]}")

    def _upload(self, *, repo_id: str, folder_path: Path, allow_patterns: list[str]) -> str:
        self.calls.append((repo_id, {}))
        names = [path.relative_to(folder_path).as_posix() for path in folder_path.rglob("*")]
        kept = huggingface_hub.utils.filter_repo_objects(names, allow_patterns=allow_patterns)
        self.files = {name: (folder_path / name).read_bytes() for name in kept}
        return "https://huggingface.co/me/model/commit/1"


def test_the_hub_gets_the_files_of_the_package_and_nothing_else(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = Hub(monkeypatch)
    copy = tmp_path / "copy"
    shutil.copytree(package, copy)
    (copy / ".env").write_text("secret")
    (copy / "notes.txt").write_text("mine")
    (copy / "model.onnx.0123abcd.data").write_bytes(b"weights")
    address = push_to_hub(copy, "model", private=True, token="t")
    assert address == "https://huggingface.co/me/model/commit/1"
    assert hub.calls == [("model", {"private": True, "exist_ok": True}), ("me/model", {})]
    assert hub.files == contents(package) | {"model.onnx.0123abcd.data": b"weights"}


def test_a_run_is_packaged_for_the_hub_with_our_card(run: Path, package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = Hub(monkeypatch)
    exported_already(monkeypatch, package)
    monkeypatch.setenv("HF_TOKEN", "t")
    push_to_hub(run, "me/birds", license="mit", example=False)
    assert sorted(hub.files) == ["README.md", "config.json", "model.onnx", "model.safetensors", "predict.py"]
    assert b"license: mit\n" in hub.files["README.md"]
    assert b"# birds\n" in hub.files["README.md"]


def test_an_upload_that_cannot_be_made_is_one_sentence(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = Hub(monkeypatch)
    with refused(ValueError, "Expected repo_id to be such as 'user/name'", "a/b/c"):
        push_to_hub(package, "a/b/c", token="t")
    monkeypatch.setattr("timm_accel.sharing.hub.get_token", lambda: None)
    with refused(PermissionError, "Expected a token of the Hugging Face hub", "HF_TOKEN"):
        push_to_hub(package, "me/model")
    assert hub.calls == []
    hub.error = OSError("Network is unreachable\nfor a while")
    with refused(ConnectionError, "Expected the Hugging Face hub to take 'me/model'", "Network is unreachable"):
        push_to_hub(package, "me/model", token="t")
    assert hub.files == {}


@pytest.fixture(scope="module")
def demo(run: Path) -> Iterator[DemoServer]:
    with create_demo(run) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def ask(demo: DemoServer, method: str, path: str, body: bytes | None = None, **headers: str) -> tuple[int, bytes]:
    """The status and the content of an answer; a header of None is not sent."""
    connection = http.client.HTTPConnection("127.0.0.1", demo.server_port, timeout=30)
    connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
    with connection.getresponse() as answer:
        content = answer.status, answer.read()
    connection.close()
    return content


def test_the_page_predicts_as_the_model(demo: DemoServer, run: Path) -> None:
    for name in list_images(run.parent / "data" / "val")[0]:
        path = run.parent / "data" / "val" / name
        status, answer = ask(demo, "POST", "/predict", path.read_bytes())
        [expected] = load_classifier(run).predict(path) if name.endswith("0.jpg") else [None]
        assert status == 200
        found = json.loads(answer)["predictions"]
        if expected is not None:
            assert [label for label, _ in found] == list(expected.labels)
            assert [score for _, score in found] == pytest.approx(expected.scores, abs=1e-6)


def test_the_page_is_for_this_machine_and_gives_no_file(demo: DemoServer, run: Path) -> None:
    assert demo.server_address[0] == "127.0.0.1"
    own = f"127.0.0.1:{demo.server_port}"
    image = next((run.parent / "data").rglob("*.png")).read_bytes()
    for path in ("/etc/passwd", "/../README.md", "//etc/passwd", "/predict", "/%2e%2e/", "/?x"):
        assert ask(demo, "GET", path)[0] == 404
    assert ask(demo, "POST", "/", image)[0] == 404
    for headers in ({"Host": "evil.example"}, {"Host": own, "Origin": "http://evil.example"}, {"Origin": "null"}):
        assert ask(demo, "POST", "/predict", image, **headers)[0] == 403
    assert ask(demo, "GET", "/", Host="evil.example:80")[0] == 403
    assert ask(demo, "POST", "/predict", image, Host=own, Origin=f"http://{own}")[0] == 200
    assert ask(demo, "POST", "/predict", b"", Content_Length=str(MAX_BYTES + 1))[0] == 413
    assert ask(demo, "POST", "/predict", b"", Content_Length="9" * 5000)[0] == 413
    assert ask(demo, "POST", "/predict", b"", Content_Length="-1")[0] == 411
    assert ask(demo, "PUT", "/predict", image)[0] == 501
    for content in (b"", b"no image", image[: len(image) // 2]):
        status, answer = ask(demo, "POST", "/predict", content)
        assert (status, list(json.loads(answer))) == (200, ["error"])


def test_a_port_that_cannot_be_used_is_one_sentence(demo: DemoServer, run: Path) -> None:
    with refused(OSError, "Expected port to be free", demo.server_port):
        create_demo(run, port=demo.server_port)
    with refused(ValueError, "Expected port to be from 0 to 65535", 70000):
        create_demo(run, port=70000)


def test_a_title_is_text_on_the_page(run: Path) -> None:
    with DemoServer(load_classifier(run), "</script><script>alert(1)</script>", 0) as server:
        page = server.page().decode()
    assert page.count("<script") == page.count("</script>") == 1
    assert not re.search("NONCE|ABOUT", page)


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs Debian's chromium")
def test_a_browser_shows_predictions_without_errors_and_runs_no_name(
    demo: DemoServer, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = list(next((run.parent / "data").rglob("*.png")).read_bytes())
    before = "document.title = [shown, table].map(each => getComputedStyle(each).display);"
    late = f"predict(new File([new Uint8Array({pixels})], 'a.png', {{type: 'image/png'}}));</script>"
    page = demo.page().replace(b"</script>", f"{before} {late}".encode())
    monkeypatch.setattr(demo, "page", lambda: page)
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--dump-dom"]
    result = subprocess.run(
        [*command, f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=5000", demo.url],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    rows = re.findall(r"<tr><td>(.*?)</td>", result.stdout, re.DOTALL)
    assert sorted(unescape(row) for row in rows) == sorted(EVIL.values())
    assert "<title>none,none</title>" in result.stdout
    assert result.stdout.count("<script") == 1
    assert "CONSOLE" not in result.stderr
