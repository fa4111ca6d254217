"""The command ``predict``: classify images with a trained model."""

from collections.abc import Sequence

from timm_accel.commands.output.columns import Row, print_rows
from timm_accel.commands.output.files import check_out, say_in_progress
from timm_accel.distributed.shares import share_of_process
from timm_accel.predict import Prediction, exit_code, load_classifier, write_predictions


def predict(
    model: str,
    images: list[str],
    *,
    top_k: int = 3,
    out: str | None = None,
    tta: list[str] | None = None,
    threshold: float = 0.5,
    batch_size: int = 64,
    num_workers: int = 0,
    device: str | None = None,
) -> int:
    """Classify images with a trained model.

    The processes of a launch share the images, and rank 0 prints and writes. Each image has a line with its most
    probable classes. Images that cannot be read have their error instead, and the others are still classified.

    Args:
        model: A run, a folder of weights, a state of a run, or an .onnx, .pt2, .pt or .torchscript file.
        images: Files and folders.
        top_k: The number of classes of each image, at most.
        out: Also write this .csv, .json or .parquet file.
        tta: Test-time augmentation: some of hflip, vflip and five_crop; None for none.
        threshold: The minimum probability of a class; for multi-label models only.
        batch_size: Images at a time.
        num_workers: Loader processes.
        device: The device to compute on; None for the GPU if there is one.

    Returns:
        1 if an image could not be read, otherwise 0.
    """
    share = share_of_process(True)
    share.of_first(lambda: check_out(out, (".csv", ".json", ".parquet")))
    paths: str | list[str] = images[0] if len(images) == 1 else images  # a single path must exist
    classifier = share.agreed(lambda: load_classifier(model, device=device))
    predictions = classifier.predict(
        paths,
        top_k,
        batch_size=batch_size,
        num_workers=num_workers,
        tta=tta or (),
        threshold=threshold,
        share=True,
    )
    if share.is_first:
        say_in_progress(model)
        _print(predictions)
        if out is not None:
            write_predictions(predictions, out)
    share.leave()
    return exit_code(predictions)


def _print(predictions: Sequence[Prediction]) -> None:
    """Print each path with its classes and their probabilities, or with the reason why there are none."""
    rows = []
    for each in predictions:
        cells = [f"{label} {score:.3f}" for label, score in zip(each.labels, each.scores, strict=True)]
        rows.append(Row(each.path or "", cells, each.error or ""))
    print_rows(rows)
