"""Measure the accuracy of two recipes: fine-tuning on solar cells, and a small model from scratch on Fashion-MNIST.

    python benchmarks/accuracy.py elpv --data_dir elpv --weights tf_efficientnet_lite0.pth
    python benchmarks/accuracy.py fashion --data_dir fashion_mnist

`accelerate launch --cpu --num_processes 1 --mixed_precision bf16` instead of `python` is faster on a CPU that supports
bfloat16.

`elpv` trains with the recipe fine_tune, and once from random weights with the same budget. `fashion` alternates between
the recipe fast_cpu and the article's script (its two crashes fixed), with the same model, image size, batch size and
number of epochs, and measures the time to an accuracy of 0.92. Both report the last epoch, and the best epoch, which is
chosen on the same images.
"""

import argparse
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from article_script import ArticleTrainer
from timm.loss import BinaryCrossEntropy
from timm.optim import create_optimizer_v2
from torch import nn

from timm_accel import create_classifier, create_datasets, evaluate_classifier
from timm_accel.callbacks import Callback
from timm_accel.predict.opening import classifier_of
from timm_accel.recipes import build_run, named_recipe

TARGET = 0.92


class Clock(Callback):
    """Record the seconds at the end of each epoch since this callback was created, so that preparation counts too."""

    def __init__(self) -> None:
        self.started, self.seconds = time.perf_counter(), list[float]()

    def on_training_run_epoch_end(self, trainer: Any, **kwargs: Any) -> None:
        self.seconds.append(time.perf_counter() - self.started)


def report(name: str, trainer: Any, clock: Clock, found: dict[str, float]) -> dict[str, float]:
    """Print and return the results of a run, together with those in `found`."""
    metrics = trainer.run_history
    found = {"seconds": clock.seconds[-1]} | found
    for key in ("accuracy", "ema_model_accuracy"):
        if key in metrics.get_metric_names():
            values = [float(value) for value in metrics.get_metric_values(key)]
            found |= {f"last {key}": values[-1], f"best {key}": max(values)}
            reached = [
                seconds for seconds, value in zip(clock.seconds[-len(values) :], values, strict=True) if value >= TARGET
            ]
            found[f"{key} to {TARGET}, s"] = reached[0] if reached else float("inf")
    print(f"{name}: " + ", ".join(f"{key} {value:.4g}" for key, value in found.items()), flush=True)
    return found


def with_flips(model: nn.Module, eval_set: Any) -> float:
    """Return the accuracy of the mean of the probabilities over an image and its flips."""
    classifier = classifier_of(model)
    classifier = replace(classifier, data_config=classifier.data_config | eval_set.data_config)
    return evaluate_classifier(classifier, eval_set, tta=("hflip", "vflip")).metrics["accuracy"]


def by_recipe(name: str, flips: bool = False, **changes: Any) -> dict[str, float]:
    """Train with a recipe and report; with `flips` also report the last models with flips as test-time augmentation."""
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        run = build_run(named_recipe(name).recipe(run_dir=folder, **changes))
        run.trainer.callback_handler.add_callback(clock)
        trainer = run.train()
        models = {"": trainer.unwrapped_model, "ema_model_": trainer.ema_model.module} if flips else {}
        mirrored = {
            f"last {prefix}accuracy with flips": with_flips(model, trainer.eval_dataset)
            for prefix, model in models.items()
        }
        return report(f"{name} {changes.get('seed')}", trainer, clock, mirrored)


def by_article(data_dir: Path, seed: int, **recipe: Any) -> dict[str, float]:
    """Train with the article's script, with its optimizer, loss, schedule and augmentation."""
    clock = Clock()
    torch.manual_seed(seed)
    size, epochs = recipe["image_size"], recipe["num_epochs"]
    model, config = create_classifier(recipe["model"], 10, image_size=size, drop_path_rate=0.05, **recipe["model_args"])
    train_set, eval_set = create_datasets(
        size, config["mean"], config["std"], data_dir / "train", data_dir / "val", crop_pct=config["crop_pct"]
    )
    trainer = ArticleTrainer(
        model=model,
        optimizer=create_optimizer_v2(model, opt="lookahead_AdamW", lr=5e-3, weight_decay=0.01),
        loss_func=BinaryCrossEntropy(smoothing=0.1, target_threshold=0.2),
        eval_loss_fn=nn.CrossEntropyLoss(),
        mixup_args=dict(mixup_alpha=0.2, cutmix_alpha=1.0, label_smoothing=0.1, num_classes=10),
        num_class=10,
        callbacks=[clock],
    )
    trainer.train(
        per_device_batch_size=recipe["batch_size"],
        train_dataset=train_set,
        eval_dataset=eval_set,
        num_epochs=epochs,
        create_scheduler_fn=trainer.create_scheduler,
    )
    return report(f"article {seed}", trainer, clock, {})


def summary(name: str, runs: list[dict[str, float]]) -> None:
    """Print the medians."""
    medians = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
    print(f"{name}, median of {len(runs)}: " + ", ".join(f"{key} {value:.4g}" for key, value in medians.items()))


def elpv(options: argparse.Namespace) -> None:
    """Fine-tune pretrained weights, and train from random weights."""
    shared = {
        "data_dir": options.data_dir,
        "num_epochs": options.num_epochs or named_recipe("fine_tune").options["num_epochs"],
    }
    tuned = {**shared, "flips": True, "weights": options.weights, "pretrained": False}
    summary("fine_tune", [by_recipe("fine_tune", seed=seed, **tuned) for seed in options.seeds])
    if options.scratch:
        scratch = {**shared, "flips": True, "pretrained": False, "freeze_epochs": 0, "warmup_epochs": 1}
        summary("from random weights", [by_recipe("fine_tune", seed=0, **scratch)])


def fashion(options: argparse.Namespace) -> None:
    """Alternate between the fast recipe and the article's script."""
    recipe = named_recipe("fast_cpu").options
    budget = {name: recipe[name] for name in ("model", "model_args", "image_size", "batch_size")}
    budget["num_epochs"] = options.num_epochs or recipe["num_epochs"]
    ours, article = [], []
    for seed in options.seeds:
        ours.append(by_recipe("fast_cpu", data_dir=options.data_dir, seed=seed, num_epochs=budget["num_epochs"]))
        if options.article:
            article.append(by_article(Path(options.data_dir), seed, **budget))
    summary("fast_cpu", ours)
    if article:
        summary("article", article)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("set", choices=("elpv", "fashion"))
    parser.add_argument("--data_dir", required=True)
    parser.add_argument("--weights", help="For elpv: a file of pretrained weights.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--num_epochs", type=int)
    parser.add_argument("--scratch", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--article", action=argparse.BooleanOptionalAction, default=True)
    arguments = parser.parse_args()
    {"elpv": elpv, "fashion": fashion}[arguments.set](arguments)
