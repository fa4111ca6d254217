"""What each rank finds out for `test_shared_images.py`: results and errors of shared images, and what it read."""

import json
import os
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
import torchmetrics.functional.classification  # noqa: F401 - here and below, so that the ranks need not
import webdataset  # noqa: F401
from refusal import sentence
from torch.utils.data import TensorDataset

from timm_accel.commands.main import main as command
from timm_accel.data import Source
from timm_accel.data.readers import folder_index
from timm_accel.distributed.processes import on_each_host, process_state
from timm_accel.distributed.shares import share_of_process
from timm_accel.features import extract_embeddings
from timm_accel.models import open_classifier
from timm_accel.predict import Classifier, Scores, evaluate_classifier, fit_temperature, load_classifier, score_images
from timm_accel.recipes import Recipe, build_run

FOLDER = Path(sys.argv[1])
DATA, TAR, MANIFEST, UNSPLIT = (str(FOLDER / f"data{end}") for end in ("", "_tar/val.tar", ".csv", "_unsplit"))
MODEL, MULTI_LABEL = FOLDER / "model", FOLDER / "multi_label"
RESULTS: dict[str, Any] = {}
touched: list[tuple[str, str]] = []  # what was done, and the path


def watch(event: str, arguments: tuple[Any, ...]) -> None:
    """Note what this process opens and lists below the folder of the images."""
    if event in ("open", "os.listdir", "os.scandir") and str(arguments[0]).startswith(DATA):
        is_positioned = event == "open" and arguments[1] is None  # by os.open, for `os.pread` of an image in a tar
        touched.append(("pread" if is_positioned else event, os.path.relpath(str(arguments[0]), DATA)))


def images_opened(work: Callable[[], Any]) -> list[str]:
    touched.clear()
    work()
    return [path for event, path in touched if event == "open" and path.endswith(".png")]


def listings(work: Callable[[], Any]) -> int:
    """Return how many folders and tars this process lists in a work."""
    touched.clear()
    work()
    return sum(
        event.startswith("os.") or (event == "open" and path.endswith((".tar", ".csv"))) for event, path in touched
    )


def fields(scores: Scores) -> list[Any]:
    return [scores.paths, scores.targets, scores.probabilities, scores.unreadable, scores.missing_classes]


def embeddings(model: Any, count: int, file: Path | None = None) -> list[torch.Tensor]:
    images = torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    made = extract_embeddings(model, TensorDataset(images, torch.arange(count)), file, batch_size=2)
    return [torch.from_numpy(made.features), torch.from_numpy(made.labels)]


def results(classifier: Classifier) -> dict[str, Any]:
    """All that must be the same on any number of processes, to the last bit."""
    multi, model = load_classifier(MULTI_LABEL), open_classifier(MODEL)[0]
    shared: dict[str, Any] = {"share": True, "batch_size": 2}
    files = sorted((FOLDER / "data/val").rglob("*.png"))
    found: dict[str, Any] = {
        f"predict {name}": [
            [each.path, each.labels, each.scores, each.error]
            for each in classifier.predict(images, 2, progress=False, **shared | options)
        ]
        for name, images, options in [
            ("a folder", FOLDER / "data/val", {"tta": ("hflip",)}),
            ("with workers", FOLDER / "data/val", {"num_workers": 2}),
            ("one image", files[0], {}),
            ("no image", [], {}),
            ("a generator", (file.read_bytes() for file in files[:5]), {}),
            ("in one batch", files, {"batch_size": 64}),
        ]
    }
    stream = Source(f"wds/{FOLDER}/wds", class_map={"cat": 0, "dog": 1, "owl": 2})
    for name, data in {"folder": DATA, "tar": TAR, "stream": stream}.items():
        for workers in (0,) if name == "tar" else (0, 2):
            options = shared | {"eval_split": None if name == "tar" else "val", "num_workers": workers}
            found[f"{name} {workers}"] = fields(score_images(classifier, data, **options))
    found["views"] = fields(score_images(classifier, DATA, tta=("hflip", "vflip"), **shared))
    found["multi-label"] = fields(score_images(multi, MANIFEST, **shared))
    found["metrics"] = evaluate_classifier(str(MODEL), DATA, **shared).metrics
    found["multi-label metrics"] = evaluate_classifier(multi, MANIFEST, **shared).metrics
    found["embeddings"] = embeddings(model, 7, FOLDER / f"embeddings{os.environ['WORLD_SIZE']}.npz")
    found["one embedding"] = embeddings(model, 1)
    return found


class StrangeError(Exception):
    """An error that cannot be made from its message."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__(f"{first} and {second}")


def errors(classifier: Classifier, rank: int, last: int) -> dict[str, str]:
    """What each process raises where only the last one, which has the fewest batches, meets the fault."""
    faulty = rank == last

    def broken(images: Any) -> Any:
        if faulty:
            raise StrangeError("this", "that")
        return torch.zeros(len(images), 3)

    def not_finite(images: Any) -> Any:
        return torch.full((len(images), 3), float("nan") if faulty else 0.0)

    def strange(run: Any) -> Classifier:
        return replace(classifier, run=run)

    shared: dict[str, Any] = {"share": True, "batch_size": 2}
    some = TensorDataset(torch.rand(7 - faulty, 3, 32, 32), torch.arange(7 - faulty))
    model = open_classifier(MODEL)[0]
    return {
        "no model": sentence(lambda: evaluate_classifier(FOLDER / ("none" if faulty else "model"), DATA, **shared)),
        "no data": sentence(lambda: evaluate_classifier(classifier, FOLDER / "none", **shared)),
        "no images to predict": sentence(lambda: strange(broken).predict(FOLDER / "none", share=True)),
        "a strange error": sentence(lambda: evaluate_classifier(strange(broken), DATA, **shared)),
        "outputs": sentence(lambda: evaluate_classifier(strange(not_finite), DATA, **shared)),
        "predicted outputs": sentence(
            lambda: strange(not_finite).predict(FOLDER / "data/val", progress=False, **shared)
        ),
        "other data": sentence(lambda: extract_embeddings(model, some, batch_size=2)),
        "a class of errors": sentence(lambda: fit_temperature(strange(broken), DATA, **shared)),
    }


def unreadable_here(classifier: Classifier, rank: int, last: int) -> list[Any]:
    """Scores where only the last process cannot read its files."""
    opener = folder_index.open_regular

    def failing(path: str) -> Any:
        if rank == last:
            raise OSError("a broken disk")
        return opener(path)

    folder_index.open_regular = failing  # type: ignore[assignment]
    try:
        scores = score_images(classifier, DATA, share=True, batch_size=2)
        return [len(scores), [os.path.basename(path) for path in scores.unreadable]]
    except ValueError as error:
        return [str(error)]
    finally:
        folder_index.open_regular = opener


def main() -> None:
    sys.addaudithook(watch)
    share = share_of_process(True)
    rank, last = share.rank, share.num_processes - 1
    classifier = load_classifier(MODEL)
    RESULTS["same"] = results(classifier)
    RESULTS["predicted"] = images_opened(lambda: classifier.predict(f"{DATA}/val", batch_size=2, share=True))
    RESULTS["scored"] = images_opened(lambda: score_images(classifier, DATA, batch_size=2, share=True))
    RESULTS["alone"] = evaluate_classifier(classifier, DATA, batch_size=2).metrics if rank == last else {}
    RESULTS["errors"] = errors(classifier, rank, last)
    RESULTS["unreadable here"] = unreadable_here(classifier, rank, last)
    RESULTS["listings"] = {
        "to evaluate": listings(lambda: score_images(classifier, DATA, share=True)),
        "in a tar": listings(lambda: score_images(classifier, TAR, eval_split=None, share=True)),
        "of a manifest": listings(lambda: score_images(load_classifier(MULTI_LABEL), MANIFEST, share=True)),
    }
    recipe = Recipe(data_dir=UNSPLIT, run_dir=str(FOLDER / f"run{last}"), model="test_resnet", image_size=32)
    RESULTS["listings"]["to train"] = listings(lambda: build_run(recipe))
    RESULTS["unpicklable"] = on_each_host(process_state(), lambda: lambda: rank)() if last else rank
    fitted = load_classifier(FOLDER / f"model{share.num_processes}")
    fitted.run = lambda images: images.float().mean((2, 3)) / 255  # its images are as bright as their class
    RESULTS["same"]["temperature"] = fit_temperature(fitted, DATA, share=True, batch_size=2)
    RESULTS["temperature"] = load_classifier(FOLDER / f"model{share.num_processes}").temperature
    torch.save(RESULTS, FOLDER / f"{share.num_processes}_{rank}.pt")
    with redirect_stdout(StringIO()) as printed:
        code = command(["evaluate", str(MODEL), DATA, "--out", str(FOLDER / f"evaluation{last + 1}.json")])
    with redirect_stdout(StringIO()) as audited:
        listed = listings(lambda: command(["audit", UNSPLIT, "--num_workers", "0"]))
    (FOLDER / f"audit_{last + 1}_{rank}.json").write_text(json.dumps([listed, audited.getvalue()]))
    (FOLDER / f"printed_{last + 1}_{rank}.txt").write_text(f"{code}\n{printed.getvalue()}")
