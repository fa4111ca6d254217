"""Measure the accuracy of recipes: fine-tuning on solar cells, and a small model from scratch on Fashion-MNIST.

    python -m benchmarks accuracy elpv --data_dir elpv --weights tf_efficientnet_lite0.pth
    python -m benchmarks accuracy fashion --data_dir fashion_mnist

`elpv` trains with the recipe fine_tune, and once from random weights with the same budget. `fashion` trains in turn
with the recipe fast_cpu, with its options as they were `before`, and with the article's script (its two crashes fixed),
which has the model, the image size, the batch size and the number of epochs of `before`. It measures the time to an
accuracy of 0.92 and of 0.945: seconds, and processor seconds of the process and its loader workers. Preparation counts,
and the model or the EMA model is enough.

`--mixed_precision no` is for processors without bfloat16 instructions. `--kept FILE` keeps the figures of each run of
`elpv` when it ends; runs in the file are not trained again, so that a benchmark that was cut continues.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import torch
from timm.loss import BinaryCrossEntropy
from timm.optim import create_optimizer_v2
from torch import nn

from benchmarks.article_script import ArticleTrainer
from benchmarks.tables import Table
from timm_accel import create_classifier, create_datasets, evaluate_classifier
from timm_accel.callbacks import Callback
from timm_accel.predict.opening import classifier_of
from timm_accel.recipes import build_run, named_recipe

TARGETS = (0.92, 0.945)
SHORT = 2  # epochs of the recipe fast_cpu that are enough for the first
BEFORE: dict[str, Any] = {  # the options of fast_cpu that were others, until 2026-11-27
    "model_args": {"channels": [32, 64, 128, 256]},
    "image_size": 56,
    "num_epochs": 7,
    "batch_size": 128,
    "opt": "adamw",
    "lr": 0.005,
    "sched_args": {"step_on_epochs": False},
    "warmup_epochs": 1,
    "warmup_lr": 0.0005,
    "re_prob": 0.0,
    "ema_decay": 0.998,
}
Figures = dict[str, float]


def processor_seconds() -> float:
    """Return the processor time of this process, and of its children whether they live or not."""
    process = psutil.Process()
    own = process.cpu_times()
    times = [own, *(child.cpu_times() for child in process.children(recursive=True))]
    return sum(each.user + each.system for each in times) + own.children_user + own.children_system


class Clock(Callback):
    """Record the seconds at the end of each epoch since this callback was created, so that preparation counts too."""

    def __init__(self) -> None:
        self.started = time.perf_counter(), processor_seconds()
        self.seconds, self.processor = list[float](), list[float]()

    def on_training_run_epoch_end(self, trainer: Any, **kwargs: Any) -> None:
        self.seconds.append(time.perf_counter() - self.started[0])
        self.processor.append(processor_seconds() - self.started[1])


def report(name: str, trainer: Any, clock: Clock, found: Figures) -> Figures:
    """Print and return the results of a run, together with those in `found`."""
    metrics = trainer.run_history
    found = {"s": clock.seconds[-1], "processor s": clock.processor[-1]} | found
    for key in ("accuracy", "ema_model_accuracy"):
        if key in metrics.get_metric_names():
            values = [float(value) for value in metrics.get_metric_values(key)]
            found[key] = values[-1]
            print(f"{name}, {key} of each epoch: " + " ".join(f"{value:.4f}" for value in values), flush=True)
            for target in TARGETS:
                reached = next((number for number, value in enumerate(values, 1) if value >= target), None)
                for unit, spent in (("s", clock.seconds), ("processor s", clock.processor)):
                    at = float("inf") if reached is None else spent[len(spent) - len(values) + reached - 1]
                    found[f"{key} to {target}, {unit}"] = at
    for cost in (f"to {target}, {unit}" for target in TARGETS for unit in ("s", "processor s")):
        found[cost] = min(value for key, value in found.items() if key.endswith(f"accuracy {cost}"))
    print(f"{name}: " + ", ".join(f"{key} {value:.4g}" for key, value in found.items()), flush=True)
    return found


def with_flips(model: nn.Module, eval_set: Any) -> float:
    """Return the accuracy of the mean of the probabilities over an image and its flips."""
    classifier = classifier_of(model)
    classifier = replace(classifier, data_config=classifier.data_config | eval_set.data_config)
    return evaluate_classifier(classifier, eval_set, tta=("hflip", "vflip")).metrics["accuracy"]


def by_recipe(title: str, recipe: str, flips: bool = False, **changes: Any) -> Figures:
    """Train with a recipe and report; with `flips` also report the last models with flips as test-time augmentation."""
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        run = build_run(named_recipe(recipe).recipe(run_dir=folder, **changes))
        run.trainer.callback_handler.add_callback(clock)
        trainer = run.train()
        models = {"": trainer.unwrapped_model, "ema_model_": trainer.ema_model.module} if flips else {}
        mirrored = {
            f"{prefix}accuracy with flips": with_flips(model, trainer.eval_dataset) for prefix, model in models.items()
        }
        return report(f"{title}, seed {changes.get('seed')}", trainer, clock, mirrored)


def by_article(data_dir: Path, seed: int, **recipe: Any) -> Figures:
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
    return report(f"article, seed {seed}", trainer, clock, {})


def kept(file: Path | None, title: str, **changes: Any) -> Figures:
    """Return the figures of a run of fine_tune from a file, or train it and add them to the file."""
    figures = json.loads(file.read_text()) if file is not None and file.exists() else {}
    name = f"{title}, seed {changes['seed']}"
    if name not in figures:
        figures[name] = by_recipe(title, "fine_tune", **changes)
        if file is not None:
            file.write_text(json.dumps(figures, indent=1))
    return figures[name]


def elpv(options: argparse.Namespace, shared: dict[str, Any]) -> list[Table]:
    """Fine-tune pretrained weights, and train from random weights; evaluate once, at the end."""
    shared = {**shared, "flips": True, "pretrained": False, "fast": True, "evaluate_every_n_epochs": 1_000}
    tuned = {"weights": options.weights, **shared}
    runs = {"fine_tune": [kept(options.kept, "fine_tune", seed=seed, **tuned) for seed in options.seeds]}
    if options.scratch:
        scratch = {**shared, "seed": options.seeds[0], "freeze_epochs": 0, "warmup_epochs": 1}
        runs["from random weights"] = [kept(options.kept, "from random weights", **scratch)]
    keys = ["accuracy", "accuracy with flips", "ema_model_accuracy", "ema_model_accuracy with flips", "s"]
    return [table("solar cells", runs, options.seeds, keys)]


def fashion(options: argparse.Namespace, shared: dict[str, Any]) -> list[Table]:
    """Take turns: the recipe, its options before, and the article's script."""
    before = named_recipe("fast_cpu").options | BEFORE | shared

    def article(seed: int) -> Figures:
        names = ("model", "model_args", "image_size", "batch_size", "num_epochs")
        return by_article(Path(options.data_dir), seed, **{name: before[name] for name in names})

    ways: dict[str, Callable[[int], Figures]] = {
        "fast_cpu": lambda seed: by_recipe("fast_cpu", "fast_cpu", seed=seed, **shared),
        "short": lambda seed: by_recipe("short", "fast_cpu", seed=seed, **shared | {"num_epochs": SHORT}),
        "before": lambda seed: by_recipe("before", "fast_cpu", seed=seed, **BEFORE | shared),
        "article": article,
    }
    runs: dict[str, list[Figures]] = {way: [] for way in options.ways}
    for number, seed in enumerate(options.seeds):
        for way in options.ways[:: 1 if number % 2 == 0 else -1]:
            runs[way].append(ways[way](seed))
    reached = [f"to {target}, {unit}" for target in TARGETS for unit in ("s", "processor s")]
    keys = ["accuracy", "ema_model_accuracy", *reached, "s", "processor s"]
    return [table("time to an accuracy", runs, options.seeds, keys)]


def table(name: str, runs: dict[str, list[Figures]], seeds: list[int], keys: list[str]) -> Table:
    """Return a row for each run, and one of the medians of each way."""
    rows = []
    for way, each in runs.items():
        named = {f"{way}, seed {seed}": run for seed, run in zip(seeds, each, strict=False)}
        named[f"{way}, median"] = {key: statistics.median(run[key] for run in each) for key in keys}
        cells = {
            title: [f"{run[key]:.4g}".replace("inf", "not reached") for key in keys] for title, run in named.items()
        }
        rows += [[title, *row] for title, row in cells.items()]
    return Table(name, ["", *(key.replace("ema_model_accuracy", "EMA model") for key in keys)], rows)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    parser.add_argument("set", choices=("elpv", "fashion"))
    parser.add_argument("--data_dir", required=True)
    parser.add_argument("--weights", help="for elpv: a file of pretrained weights")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--num_epochs", type=int, help="for all recipes; None for their own")
    parser.add_argument("--image_size", type=int, help="for all recipes; None for their own")
    parser.add_argument("--num_workers", type=int, help="loader workers; None for one per core")
    parser.add_argument("--mixed_precision", choices=("bf16", "no"), default="bf16")
    parser.add_argument("--scratch", action=argparse.BooleanOptionalAction, default=True, help="for elpv")
    parser.add_argument("--kept", type=Path, help="for elpv: a JSON file of the figures of finished runs")
    ways = ["fast_cpu", "short", "before", "article"]
    parser.add_argument("--ways", nargs="+", choices=ways, default=ways[:3], help="for fashion: which to train")


def main(arguments: argparse.Namespace) -> list[Table]:
    """Train, and return the figures of the last epoch, and the time."""
    names = ("data_dir", "num_epochs", "image_size", "num_workers", "mixed_precision")
    shared = {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}
    return {"elpv": elpv, "fashion": fashion}[arguments.set](arguments, shared)
