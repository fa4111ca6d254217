"""The command ``evaluate``: measure a trained model on labeled images."""

from typing import Any

from timm_accel.commands.output.columns import Row, print_facts, print_rows, print_text
from timm_accel.commands.output.files import check_out, say_in_progress
from timm_accel.data.splits.splitting import split_name
from timm_accel.distributed.shares import share_of_process
from timm_accel.predict import Classifier, Evaluation, evaluate_classifier, load_classifier
from timm_accel.predict import fit_temperature as fit_temperature_of
from timm_accel.text_files import write_csv


def evaluate(
    model: str,
    data: str,
    *,
    eval_split: str | None = "val",
    fit_temperature: str | None = None,
    tta: list[str] | None = None,
    batch_size: int = 64,
    num_workers: int = 0,
    device: str | None = None,
    out: str | None = None,
) -> int:
    """Measure a trained model on labeled images.

    The processes of a launch share the images, and rank 0 prints and writes. Classes are matched by name. Images that
    cannot be read are left out and listed; more than 1 % of them, and more than 10, are an error.

    Args:
        model: A run, a folder of weights, a state of a run, or an .onnx, .pt2, .pt or .torchscript file.
        data: Any dataset that train takes: a folder with train/CLASS/ and val/CLASS/, one without splits, a tar, a
            manifest, torch/NAME, ….
        eval_split: The split to evaluate on; None for all images of a folder, tar or manifest without splits.
        fit_temperature: Another split, on which the temperature of the probabilities is fitted first. It is written
            into the config.json of the weights; None leaves the temperature as it is.
        tta: Test-time augmentation: some of hflip, vflip and five_crop; None for none.
        batch_size: Images at a time.
        num_workers: Loader processes.
        device: The device to compute on; None for the GPU if there is one.
        out: Also write this file: .json has all numbers, .csv has a row for each class.

    Returns:
        1 if an image could not be read, otherwise 0.
    """
    share = share_of_process(True)
    share.of_first(lambda: check_out(out, (".csv", ".json")))
    _check_splits(eval_split, fit_temperature)
    classifier = share.agreed(lambda: load_classifier(model, device=device))
    loading: dict[str, Any] = {"batch_size": batch_size, "num_workers": num_workers, "progress": True, "share": True}
    if fit_temperature is not None:
        fit_temperature_of(classifier, data, eval_split=fit_temperature, **loading)
    found = evaluate_classifier(classifier, data, eval_split=eval_split, tta=tta or (), **loading)
    if share.is_first:
        say_in_progress(model)
        if fit_temperature is not None:
            _print_temperature(classifier, fit_temperature)
        _print(found)
        if out is not None:
            _write(found, out)
    share.leave()
    return int(bool(found.unreadable))


def _check_splits(eval_split: str | None, fitted: str | None) -> None:
    if fitted is not None and (eval_split is None or split_name(eval_split) == split_name(fitted)):
        raise ValueError(
            "Expected fit_temperature to be another split than eval_split, since the calibration would be measured on "
            f"the images that it was fitted to, but got {fitted!r} and {eval_split!r}. Evaluate on another split."
        )


def _print_temperature(classifier: Classifier, split: str) -> None:
    kept = "for this evaluation only, since an exported file stays as it is"
    if classifier.folder is not None:
        kept = f"written into {classifier.folder}/config.json"
    print_text(f"temperature {classifier.temperature:.4f}, fitted on {split}, {kept}")


def _print(found: Evaluation) -> None:
    total = found.num_images + len(found.unreadable)
    print_facts(
        {
            "images": f"{found.num_images} of {total}" if found.unreadable else total,
            "classes": len(found.classes),
            "not in the data": _some(found.missing_classes),
            "cannot be read": _some(found.unreadable),
            **{name: f"{value:.4f}" for name, value in found.metrics.items()},
        }
    )
    print()
    rows = [
        Row(each.name, [*(f"{number:.3f}" for number in (each.precision, each.recall, each.f1)), str(each.support)])
        for each in found.classes
    ]
    print_rows([Row("class", ["precision", "recall", "f1", "support"]), *rows], right=True)
    if found.most_confused:
        pairs = [f"{each.label} as {each.prediction} ({each.count})" for each in found.most_confused[:5]]
        print()
        print_facts({"most confused": ", ".join(pairs)})


def _some(names: list[str]) -> str | None:
    return f"{len(names)}: {', '.join(names[:5])}{', …' if len(names) > 5 else ''}" if names else None


def _write(found: Evaluation, out: str) -> None:
    if out.lower().endswith(".json"):
        found.to_json(out)
        return
    rows = [[each.name, each.precision, each.recall, each.f1, each.support] for each in found.classes]
    write_csv(out, [["class", "precision", "recall", "f1", "support"], *rows])
