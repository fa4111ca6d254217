"""Classify images.

    python examples/predict.py runs/first photos cat.jpg --top_k 3 --out predictions.csv

The model is a run, a folder of weights, or an exported file. The exit code is 1 if an image is unreadable; the other
images are still classified.
"""

import sys
from argparse import ArgumentParser
from collections.abc import Sequence

from timm_accel import load_classifier
from timm_accel.messages import own_sentence
from timm_accel.predict import Prediction, exit_code, write_predictions
from timm_accel.text_files import escaped


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a line for each image, and return the exit code."""
    parser = ArgumentParser(description="Classify images.", allow_abbrev=False)
    parser.add_argument("model", help="A run, its best weights, or an .onnx, .pt2, .pt or .torchscript file.")
    parser.add_argument("images", nargs="+", help="Files and folders.")
    parser.add_argument("--top_k", type=int, default=3, help="Number of predictions to print per image.")
    parser.add_argument("--out", help="Also write this .csv, .json or .parquet file.")
    options = parser.parse_args(arguments)
    predictions = load_classifier(options.model).predict(options.images, options.top_k)
    print_table(predictions)
    if options.out is not None:
        write_predictions(predictions, options.out)
    return exit_code(predictions)


def print_table(predictions: Sequence[Prediction]) -> None:
    """Print each path with its classes and their probabilities, or with the reason why there are none."""
    width = max(len(str(prediction.path)) for prediction in predictions)
    for prediction in predictions:
        pairs = zip(prediction.labels, prediction.scores, strict=True)
        said = "  ".join(f"{label} {score:.3f}" for label, score in pairs)
        print(escaped(f"{prediction.path!s:<{width}}  {said if prediction.error is None else prediction.error}"))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Exception as error:
        if (sentence := own_sentence(error)) is None:
            raise  # not a user error
        sys.exit(f"predict.py: {sentence}")
