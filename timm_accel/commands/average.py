"""The command ``average``: make a model soup of several runs."""

from functools import partial
from typing import Any, Literal

from torch import nn

from timm_accel.commands.output.columns import print_facts
from timm_accel.commands.output.files import say_in_progress
from timm_accel.model_soup import average_weights
from timm_accel.models import read_config
from timm_accel.predict import evaluate_classifier


def average(
    folders: list[str],
    *,
    out: str,
    method: Literal["uniform", "greedy"] = "uniform",
    metric: str | None = None,
    count: int | None = None,
    data: str | None = None,
    eval_split: str | None = "val",
    batch_size: int = 64,
    num_workers: int = 0,
    device: str | None = None,
) -> None:
    """Average the weights of several runs of one model, and write the soup as a folder of weights.

    Args:
        folders: Two or more runs (best_ema, or else best), folders of weights, or states of a run.
        out: A new folder.
        method: uniform averages all chosen weights. greedy starts from the best by its accuracy, or mAP, on data, and
            keeps each of the others with which the soup gets no worse.
        metric: The recorded metric that count chooses by; None for that of the first folder.
        count: How many weights uniform chooses, the best by metric; None for all.
        data: The images for greedy, neither trained nor tested on: any dataset that train takes.
        eval_split: The split of data; None for all images of a folder, tar or manifest without splits.
        batch_size: Images at a time.
        num_workers: Loader processes.
        device: The device to compute on; None for the GPU if there is one.
    """
    _check(method, data, metric, count)
    score = partial(
        _score, data=data, eval_split=eval_split, batch_size=batch_size, num_workers=num_workers, device=device
    )
    evaluate = None if data is None else score
    soup = average_weights(folders, out=out, metric=metric, count=count, method=method, evaluate=evaluate)
    for folder in folders:
        say_in_progress(folder)
    chosen = read_config(soup)["averaged"]
    print_facts(
        {
            "soup": soup,
            "averaged": f"{len(chosen['folders'])} of {len(folders)} folders, {method}",
            "chosen by": chosen.get("metric"),
            "folders": " ".join(chosen["folders"]),
        }
    )


def _check(method: str, data: str | None, metric: str | None, count: int | None) -> None:
    if (data is not None) != (method == "greedy"):
        raise ValueError(
            f"Expected data with method greedy, and only with it, since it compares soups by their accuracy, but got "
            f"{data!r} with {method!r}. {'Leave data out' if data else 'Name held-out images by data'}, or choose the "
            "other method."
        )
    for name, value in (("count", count), ("metric", metric)):
        if value is not None and method == "greedy":
            raise ValueError(
                f"Expected no {name} with method greedy, since it tries all folders, but got {value!r}. Leave it out."
            )
    if metric is not None and count is None:
        raise ValueError(
            f"Expected count beside metric, since it chooses by that, but got {metric!r} alone. Pass count."
        )


def _score(model: nn.Module, *, data: Any, **options: Any) -> float:
    """Return the accuracy, or the mAP of a multi-label model."""
    metrics = evaluate_classifier(model, data, **options).metrics
    return metrics["accuracy"] if "accuracy" in metrics else metrics["map"]
