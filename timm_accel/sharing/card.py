"""The model card of a package: README.md with a YAML header, as the Hugging Face hub shows it."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader

from timm_accel.predict import Classifier, Prediction
from timm_accel.report.history import EMA, read_history
from timm_accel.text_files import escaped

_MARKS = re.compile(r"[\\`*~\[\]|$&<>@:]|(?<![^\W_])_|_(?![^\W_])")  # all that is no text in a line of Markdown
_TIMES = ("epoch", "lr", "images_per_second", "data_wait", "peak_memory_gb")


@dataclass(frozen=True)
class Example:
    """The example image of a package, and what the model predicts for it."""

    file: str
    prediction: Prediction


def metrics_of(weights: Path, config: Mapping[str, Any]) -> dict[str, float]:
    """Return the evaluation metrics of the epoch that the weights are of; that which chose them if it is all there is.

    Args:
        weights: A folder of weights in a run.
        config: Its ``config.json``.
    """
    best = config.get("best")
    if not isinstance(best, dict) or not isinstance(best.get("metric"), str):
        return {}
    of_ema = best["metric"].startswith(EMA)
    points = read_history(weights.parent).points
    at_epoch = {name: dict(pairs).get(best.get("epoch", 0)) for name, pairs in points.items()}
    found = {name: value for name, value in at_epoch.items() if name not in _TIMES and not name.startswith("train_")}
    chosen = {name.removeprefix(EMA): value for name, value in found.items() if name.startswith(EMA) == of_ema}
    metrics = chosen | {best["metric"].removeprefix(EMA): best.get("value")}
    return {name: float(value) for name, value in metrics.items() if isinstance(value, float) and isfinite(value)}


def write_card(
    path: Path,
    title: str,
    classifier: Classifier,
    config: Mapping[str, Any],
    metrics: Mapping[str, float],
    example: Example | None,
    license: str,
) -> None:
    """Write the card.

    Args:
        path: The file.
        title: The name of the package.
        classifier: The model of the package.
        config: Its ``config.json``.
        metrics: The metrics of its weights.
        example: An image, and what is predicted for it; None for none.
        license: The license, as the hub spells it.
    """
    environment = Environment(  # no HTML, so that it escapes Markdown itself
        loader=PackageLoader("timm_accel.sharing"),
        autoescape=False,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["text"] = markdown_text
    text = environment.get_template("README.md.j2").render(
        header=_header(title, metrics, license),
        title=title,
        classifier=classifier,
        config=config,
        temperature=config.get("temperature", 1.0),
        metrics=metrics,
        example=example,
    )
    path.write_text(text, encoding="utf-8")


def markdown_text(value: Any) -> str:
    r"""Return a value as text within a line of Markdown: nothing in it is a mark, a tag or a new line.

    >>> markdown_text("<b>*\n|")
    '&#60;b&#62;&#42;\\\\u000a&#124;'
    """
    return _MARKS.sub(lambda found: f"&#{ord(found[0])};", _one_line(value))


def _one_line(value: Any) -> str:
    return escaped(str(value)).replace("\n", "\\u000a")


def _header(title: str, metrics: Mapping[str, float], license: str) -> str:
    header: dict[str, Any] = {
        "library_name": "timm",
        "license": license,
        "pipeline_tag": "image-classification",
        "tags": ["image-classification", "timm"],
    }
    if metrics:
        header["model-index"] = [
            {
                "name": _one_line(title),
                "results": [
                    {
                        "task": {"type": "image-classification"},
                        "dataset": {"type": "imagefolder", "name": "evaluation images of the run"},
                        "metrics": [
                            {"type": _one_line(name), "value": round(value, 6)} for name, value in metrics.items()
                        ],
                    }
                ],
            }
        ]
    return yaml.safe_dump(header, sort_keys=False, allow_unicode=True, width=10_000)
