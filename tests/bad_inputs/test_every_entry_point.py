"""Bad inputs at every entry point: each is refused in one sentence, quickly, and nothing is written."""

import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import write_images
from PIL import Image
from refusal import contents
from tiny_runs import fit, make_trainer, parse_recipe, tiny_data, tiny_model
from torch import nn
from trained_runs import trained_run

from timm_accel import Recipe, create_classifier, create_datasets, evaluate_classifier, load_classifier, plots
from timm_accel.audit import audit
from timm_accel.callbacks import EarlyStoppingCallback, SaveBestCallback, SaveStateCallback, TimeLimitCallback
from timm_accel.data import LabeledImages, ManifestReader, Source
from timm_accel.export import export, open_exported
from timm_accel.features import extract_embeddings
from timm_accel.losses import create_loss
from timm_accel.lr_finder import find_lr
from timm_accel.messages import own_sentence
from timm_accel.model_soup import average_weights
from timm_accel.models import open_classifier
from timm_accel.models.integrity import INTEGRITY
from timm_accel.optim import create_optimizer
from timm_accel.predict import Classifier, fit_temperature, write_predictions
from timm_accel.recipes import build_run
from timm_accel.report import WriteReportCallback, report
from timm_accel.schedules import simulate_schedule
from timm_accel.sharing import create_demo, export_package, push_to_hub
from timm_accel.trainers import TimmMixupTrainer

MEAN = STD = (0.5, 0.5, 0.5)
MAX_SECONDS = 20.0  # a hang is what it looks for; most take milliseconds
_FOLDER = tempfile.TemporaryDirectory()


@dataclass
class World:
    """What the cases share, made once, and an empty folder for each."""

    run: Path
    data: Path
    image: Path
    pipe: Path
    classifier: Classifier
    model: nn.Module
    out: Path

    def file(self, name: str, content: str | bytes) -> Path:
        path = self.out / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    def manifest(self, *rows: str, header: str = "path,label") -> Path:
        return self.file("set.csv", "\n".join([header, *rows]) + "\n")

    def best(self, part: str | None = None, **entries: Any) -> Path:
        """A copy of the best weights with other entries in ``config.json``, or in its ``pretrained_cfg``."""
        folder = self.out / "best"
        shutil.copytree(self.run / "best", folder, copy_function=os.link)
        config = json.loads((folder / "config.json").read_text())
        config.pop(INTEGRITY)  # as if the entries had been saved so
        (config if part is None else config[part]).update(entries)
        (folder / "config.json").unlink()
        (folder / "config.json").write_text(json.dumps(config))
        return folder

    def shards(self, info: Any) -> str:
        self.file("shards/_info.json", info if isinstance(info, str) else json.dumps(info))
        return f"wds/{self.out / 'shards'}"

    def train(self, **options: Any) -> Any:
        """Train in own code: options of `train` begin with ``t_``."""
        arguments = {name.removeprefix("t_"): options.pop(name) for name in list(options) if name.startswith("t_")}
        return fit(make_trainer(**options), **arguments)

    def recipe(self, **options: Any) -> Any:
        settings: dict[str, Any] = {"data_dir": str(self.data), "model": "test_resnet", "image_size": 32}
        settings |= {"pretrained": False, "run_dir": str(self.out / "run"), "num_workers": 0, "num_epochs": 1}
        return build_run(Recipe(**settings | options)).train()

    def script(self, *arguments: str) -> Any:
        return build_run(parse_recipe(list(arguments))).train()


@cache
def _shared() -> dict[str, Any]:
    folder = Path(_FOLDER.name)
    data = folder / "data"
    for split in ("train", "val"):
        write_images(data / split, {"cat": 3, "dog": 3, "owl": 3}, size=8)
    os.mkfifo(folder / "pipe.png")
    run = trained_run().run
    model, _ = create_classifier("test_resnet", 3, image_size=32)
    return {
        "run": run,
        "data": data,
        "image": data / "train" / "cat" / "000.png",
        "pipe": folder / "pipe.png",
        "classifier": load_classifier(run),
        "model": model,
    }


Case = Callable[[World], Any]
HUGE = 300_000_000

CASES: dict[str, dict[str, Case]] = {
    "the command line": {
        "an unknown option": lambda w: w.script("--num_epoch", "3"),
        "a number that is a word": lambda w: w.script("--num_epochs", "three"),
        "a missing value": lambda w: w.script("--lr"),
        "an unknown recipe": lambda w: w.script("--recipe", "a33"),
        "a config that is missing": lambda w: w.script("--config", str(w.out / "none.yaml")),
        "a config that is a list": lambda w: w.script("--config", str(w.file("a.yaml", "[1, 2]"))),
        "a config of another file": lambda w: w.script("--config", str(w.image)),
        "a config that is a folder": lambda w: w.script("--config", str(w.data)),
        "a data_dir that is missing": lambda w: w.script(
            "--data_dir", str(w.out / "none"), "--run_dir", str(w.out / "r")
        ),
        "a data_dir that is a pipe": lambda w: w.script("--data_dir", str(w.pipe), "--run_dir", str(w.out / "r")),
        "an unknown choice": lambda w: w.script("--loss", "mse"),
    },
    "a recipe": {
        "no epochs": lambda w: w.recipe(num_epochs=0),
        "epochs of NaN": lambda w: w.recipe(num_epochs=float("nan")),
        "a batch size of 0": lambda w: w.recipe(batch_size=0),
        "a learning rate below 0": lambda w: w.recipe(lr=-1.0),
        "a learning rate of NaN": lambda w: w.recipe(lr=float("nan")),
        "an unknown model": lambda w: w.recipe(model="test_resnett"),
        "an unknown optimizer": lambda w: w.recipe(opt="adamww"),
        "an unknown schedule": lambda w: w.recipe(sched="cosinus"),
        "an unknown policy": lambda w: w.recipe(auto_augment="rand-m9-foo"),
        "an image size of 0": lambda w: w.recipe(image_size=0),
        "a crop of 0": lambda w: w.recipe(crop_pct=0.0),
        "an unknown data_identity": lambda w: w.recipe(data_identity="md5"),
        "two contradicting options": lambda w: w.recipe(class_weights=[1.0, 2.0, 3.0], loss="bce", mixup=0.2),
        "class weights of another number": lambda w: w.recipe(class_weights=[1.0, 2.0], loss="ce"),
        "a folder that holds a file": lambda w: w.recipe(run_dir=str(w.file("file", "text"))),
        "a state that is missing": lambda w: w.recipe(resume=str(w.out / "none")),
        "an unknown eval_split": lambda w: w.recipe(eval_split="tets"),
        "a group without parentheses": lambda w: w.recipe(data_dir=str(w.data / "train"), group=r"\d+"),
        "a class_map beside a folder": lambda w: w.recipe(class_map="names.txt"),
        "weights that are missing": lambda w: w.recipe(weights=str(w.out / "none.safetensors")),
        "a teacher that is missing": lambda w: w.recipe(distill_teacher=str(w.out / "none")),
        "a pixel_range that falls": lambda w: w.recipe(pixel_range=(255.0, 0.0)),
        "a clip_grad below 0": lambda w: w.recipe(clip_grad=-1.0),
        "an EMA decay of 2": lambda w: w.recipe(ema_decay=2.0),
    },
    "a trainer": {
        "an unknown option": lambda w: make_trainer(TimmMixupTrainer, ema_decai=0.9),
        "an EMA decay of text": lambda w: make_trainer(TimmMixupTrainer, ema_decay="0.9"),
        "a run_dir that is a file": lambda w: w.train(run_dir=w.file("f", ""), callbacks=[SaveStateCallback]),
        "a state callback without a folder": lambda w: make_trainer(callbacks=[SaveStateCallback]),
        "an unknown data_identity": lambda w: SaveStateCallback(data_identity="sha"),
        "states every 0 epochs": lambda w: SaveStateCallback(every_n_epochs=0),
        "states every NaN minutes": lambda w: SaveStateCallback(every_minutes=float("nan")),
        "a keep of text": lambda w: SaveStateCallback(keep="3"),  # type: ignore[arg-type]
        "a patience of 0": lambda w: EarlyStoppingCallback(patience=0),
        "a limit of 0 minutes": lambda w: TimeLimitCallback(0),
        "a metric of the EMA": lambda w: SaveBestCallback("ema_model_accuracy"),
        "no epochs": lambda w: w.train(t_num_epochs=0),
        "epochs of text": lambda w: w.train(t_num_epochs="2"),
        "epochs that are true": lambda w: w.train(t_num_epochs=True),
        "a batch size of 0": lambda w: w.train(t_per_device_batch_size=0),
        "accumulation of 0": lambda w: w.train(t_gradient_accumulation_steps=0),
        "an empty dataset": lambda w: w.train(t_train_dataset=tiny_data(0)),
        "labels above the classes": lambda w: w.train(kind=TimmMixupTrainer, model=tiny_model(2), num_class=2),
        "an unknown argument": lambda w: w.train(t_batch_size=3),
        "a scheduler that is text": lambda w: w.train(t_create_scheduler_fn="cosine"),
        "a state that is missing": lambda w: w.train(t_resume_from=w.out / "none"),
        "a state that is a number": lambda w: w.train(t_resume_from=3),
        "auto without a folder": lambda w: w.train(t_resume_from="auto"),
        "an evaluation of batch size 0": lambda w: make_trainer().evaluate(tiny_data(), 0),
        "an evaluation of a named batch size 0": lambda w: make_trainer().evaluate(
            tiny_data(), per_device_batch_size=0
        ),
        "an evaluation of batch size 1.5": lambda w: make_trainer().evaluate(tiny_data(), per_device_batch_size=1.5),
        "an LR range that falls": lambda w: find_lr(make_trainer(), tiny_data(), min_lr=1.0, max_lr=0.1),
        "an LR range of no updates": lambda w: find_lr(make_trainer(), tiny_data(), num_updates=0),
    },
    "datasets": {
        "a missing folder": lambda w: create_datasets(32, MEAN, STD, data=w.out / "none"),
        "an empty folder": lambda w: create_datasets(32, MEAN, STD, data=w.file("a/b.txt", "").parent),
        "a pipe": lambda w: create_datasets(32, MEAN, STD, data=w.pipe),
        "a device": lambda w: create_datasets(32, MEAN, STD, data="/dev/zero"),
        "a number": lambda w: create_datasets(32, MEAN, STD, data=3),
        "neither data nor paths": lambda w: create_datasets(32, MEAN, STD),
        "an image size of text": lambda w: create_datasets("32", MEAN, STD, data=w.data),  # type: ignore[arg-type]
        "an image size below 0": lambda w: create_datasets(-1, MEAN, STD, data=w.data),
        "a mean of pixels": lambda w: create_datasets(32, (124.0, 116.0, 104.0), STD, data=w.data),
        "a std of 0": lambda w: create_datasets(32, MEAN, (0.5, 0.0, 0.5), data=w.data),
        "a mean of NaN": lambda w: create_datasets(32, (float("nan"),) * 3, STD, data=w.data),
        "an unknown cache": lambda w: create_datasets(32, MEAN, STD, data=w.data, cache="disk"),
        "an unknown on_error": lambda w: create_datasets(32, MEAN, STD, data=w.data, on_error="ignore"),
        "a crop_pct of 0": lambda w: create_datasets(32, MEAN, STD, data=w.data, crop_pct=0),
        "a crop_pct of NaN": lambda w: create_datasets(32, MEAN, STD, data=w.data, crop_pct=float("nan")),
        "an unknown crop_mode": lambda w: create_datasets(32, MEAN, STD, data=w.data, crop_mode="middle"),
        "an unknown interpolation": lambda w: create_datasets(32, MEAN, STD, data=w.data, eval_interpolation="cubic"),
        "an unknown training interpolation": lambda w: create_datasets(32, MEAN, STD, data=w.data, interpolation="x"),
        "a wrong fraction": lambda w: Source(w.data / "train", val_fraction=1.5).open("train"),
        "a compressed tar": lambda w: Source(w.file("a.tar.gz", "")).open("train"),
        "a broken tar": lambda w: Source(w.file("a.tar", b"x" * 2000)).open("train"),
        "a split file that is a pipe": lambda w: Source(w.data / "train", split_file=w.pipe).open("train"),
        "a stream that is missing": lambda w: Source(f"wds/{w.out / 'none'}").open("train"),
        "an unknown torch dataset": lambda w: Source("torch/cifar11").open("train"),
    },
    "manifests": {
        "a pipe in it": lambda w: ManifestReader(w.manifest(f"{w.pipe},cat", f"{w.image},dog")),
        "a device in it": lambda w: ManifestReader(w.manifest("/dev/zero,cat", f"{w.image},dog")),
        "a link to a device in it": lambda w: ManifestReader(_linked(w, "/dev/null")),
        "a link to a pipe in it": lambda w: ManifestReader(_linked(w, w.pipe)),
        "a missing file in it": lambda w: ManifestReader(w.manifest("none.png,cat")),
        "no rows": lambda w: ManifestReader(w.manifest()),
        "another column": lambda w: ManifestReader(w.manifest("a,b", header="file,label")),
        "an empty label": lambda w: ManifestReader(w.manifest(f"{w.image},", f"{w.image},cat")),
        "bytes that are no text": lambda w: ManifestReader(w.file("a.csv", b"path,label\n\xff,cat\n")),
        "a parquet file that is none": lambda w: ManifestReader(w.file("a.parquet", "text")),
        "a misspelled split": lambda w: ManifestReader(
            w.manifest(f"{w.image},cat,trian", header="path,label,split"), split="train"
        ),
        "a manifest that is a pipe": lambda w: ManifestReader(_pipe(w, "a.csv")),
    },
    "shards": {
        "an absolute path": lambda w: Source(w.shards(_info(str(w.image)))).open("train"),
        "a path above the folder": lambda w: Source(w.shards(_info("../../a.tar"))).open("train"),
        "a path that goes up within": lambda w: Source(w.shards(_info("a/../../b.tar"))).open("train"),
        "a command": lambda w: Source(w.shards(_info("pipe:cat /etc/hostname"))).open("train"),
        "a shard that is missing": lambda w: Source(w.shards(_info("none.tar"))).open("train"),
        "a shard that is a number": lambda w: Source(w.shards(_info(3))).open("train"),
        "a list in place of splits": lambda w: Source(w.shards({"splits": [1]})).open("train"),
        "a list in place of the object": lambda w: Source(w.shards([1])).open("train"),
        "a split without shards": lambda w: Source(w.shards({"splits": {"train": {}}})).open("train"),
        "a description that is no JSON": lambda w: Source(w.shards("{")).open("train"),
        "a label of 300,000,000": lambda w: Source(_tar(w, b"300000000")).open("train"),
        "a label of text": lambda w: Source(_tar(w, b"cat")).open("train"),
        "no label": lambda w: Source(_tar(w, b"")).open("train"),
    },
    "labels of datasets": {
        "of 300,000,000 in a list": lambda w: Source([(_gray(), 0), (_gray(), HUGE)]).open("train"),
        "of 300,000,000 in a multi-label list": lambda w: Source([(_gray(), [0]), (_gray(), [1, HUGE])]).open("train"),
        "of 300,000,000 in Hugging Face's": lambda w: Source(_hugging_face(HUGE)).open("train"),
        "below 0": lambda w: Source([(_gray(), 0), (_gray(), -5)]).open("train"),
        "with a fraction": lambda w: Source([(_gray(), 0), (_gray(), 0.5)]).open("train"),
    },
    "saved weights": {
        f"{name} of {value!r}"[:60]: (
            lambda w, name=name, value=value, part=part: load_classifier(w.best(part, **{name: value}))
        )
        for part, name, values in (
            (None, "temperature", (0, -1, float("nan"), float("inf"), "1.0", True, [1])),
            (None, "label_names", ("cat", ["cat", "dog"], ["cat", "cat", "owl"], [0, 1, 2], {"cat": 0}, 3)),
            (None, "multi_label", ("no", 1)),
            (None, "num_classes", (-1, "3", 2.5, HUGE)),
            (None, "architecture", ("resnett", 5, "../x")),
            (None, "head", ("lineer", 3)),
            (None, "pixel_range", ((1, 0), "x", (0, float("nan")))),
            (None, "pretrained_cfg", ([1], "x", 3)),
            ("pretrained_cfg", "interpolation", ("cubic", 3)),
            ("pretrained_cfg", "crop_mode", ("middle", 3)),
            ("pretrained_cfg", "crop_pct", (0, -1, "0.9", float("nan"), 50)),
            ("pretrained_cfg", "mean", ([0.5, 0.5], [124, 116, 104], "x", 0.5)),
            ("pretrained_cfg", "std", ([0.5, 0, 0.5], [0.5], [float("nan")] * 3)),
            ("pretrained_cfg", "input_size", ([3, 32], [3, 0, 32], "x", [3, 32, 10**9], [3, 32.5, 32], [0, 32, 32])),
        )
        for value in values
    },
    "opening": {
        "a missing path": lambda w: load_classifier(w.out / "none"),
        "an empty folder": lambda w: load_classifier(w.out),
        "a pipe": lambda w: load_classifier(w.pipe),
        "a device": lambda w: load_classifier("/dev/zero"),
        "an image": lambda w: load_classifier(w.image),
        "unknown weights": lambda w: load_classifier(w.run, weights="best_emma"),
        "an unknown device": lambda w: load_classifier(w.run, device="gpu"),
        "a number": lambda w: load_classifier(3),  # type: ignore[arg-type]
        "a config that is a list": lambda w: open_classifier(w.file("b/config.json", "[]").parent),
        "weights that are text": lambda w: load_classifier(_with_weights(w, b"text")),
        "weights that are empty": lambda w: load_classifier(_with_weights(w, b"")),
        "an exported file that is text": lambda w: open_exported(w.file("m.onnx", "text")),
        "a TorchScript file that is text": lambda w: open_exported(w.file("m.pt", "text")),
        "an exported file of another suffix": lambda w: open_exported(w.file("m.bin", "text")),
        "an exported temperature of 0": lambda w: open_exported(_exported(w, temperature=0)),
        "an exported label twice": lambda w: open_exported(_exported(w, class_names=["a", "a", "b"])),
        "an exported unknown interpolation": lambda w: open_exported(_exported(w, interpolation="cubic")),
        "an exported broken input_size": lambda w: open_exported(_exported(w, input_size=[3, 0, 32])),
        "an exported unknown entry": lambda w: open_exported(_exported(w, more=1)),
        "an exported entry of null": lambda w: open_exported(_exported(w, mean=None)),
    },
    "predicting": {
        "a missing path": lambda w: w.classifier.predict(str(w.out / "none.png")),
        "an empty folder": lambda w: w.classifier.predict(w.out),
        "a URL": lambda w: w.classifier.predict("https://example.com/cat.png"),
        "a number": lambda w: w.classifier.predict(3),
        "a mapping": lambda w: w.classifier.predict({"image": w.image}),
        "a float array": lambda w: w.classifier.predict(np.zeros((8, 8, 3))),
        "a flat array": lambda w: w.classifier.predict(np.zeros(8, dtype=np.uint8)),
        "a top_k of 0": lambda w: w.classifier.predict(w.image, top_k=0),
        "a batch size of 0": lambda w: w.classifier.predict(w.image, batch_size=0),
        "workers below 0": lambda w: w.classifier.predict(w.image, num_workers=-1),
        "an unknown augmentation": lambda w: w.classifier.predict(w.image, tta=("rotate",)),
        "a table of another kind": lambda w: write_predictions(w.classifier.predict(w.image), w.out / "a.xls"),
        "a table that is a folder": lambda w: write_predictions(w.classifier.predict(w.image), w.data),
    },
    "evaluating": {
        "missing data": lambda w: evaluate_classifier(w.classifier, w.out / "none"),
        "a number": lambda w: evaluate_classifier(3, w.data),  # type: ignore[arg-type]
        "an unknown split": lambda w: evaluate_classifier(w.classifier, w.data, eval_split="tets"),
        "a batch size of 0": lambda w: evaluate_classifier(w.classifier, w.data, batch_size=0),
        "a batch size of text": lambda w: evaluate_classifier(w.classifier, w.data, batch_size="8"),  # type: ignore[arg-type]
        "workers below 0": lambda w: evaluate_classifier(w.classifier, w.data, num_workers=-1),
        "an unknown augmentation": lambda w: evaluate_classifier(w.classifier, w.data, tta=("zoom",)),
        "other classes": lambda w: evaluate_classifier(
            w.classifier, write_images(w.out, {"ant": 1, "bee": 1}), eval_split=None
        ),
        "a temperature of a batch size of 0": lambda w: fit_temperature(w.classifier, w.data, batch_size=0),
        "a temperature of missing data": lambda w: fit_temperature(w.classifier, w.out / "none"),
    },
    "exporting": {
        "a missing run": lambda w: export(w.out / "none", w.out / "m.onnx"),
        "an unknown suffix": lambda w: export(w.run, w.out / "m.bin"),
        "a folder": lambda w: export(w.run, w.data),
        "an unknown option": lambda w: export(w.run, w.out / "m.onnx", sofmax=True),
        "a temperature of 0": lambda w: export(w.best(temperature=0), w.out / "m.onnx"),
        "a temperature that is text": lambda w: export(w.best(temperature="1"), w.out / "m.pt"),
    },
    "reporting": {
        "a run that is missing": lambda w: report(w.out / "none"),
        "a folder that is no run": lambda w: report(w.data),
        "no runs": lambda w: report([]),
        "a run twice": lambda w: report([w.run, w.run / ".." / w.run.name]),
        "a page below a file": lambda w: report(w.run, w.image / "page.html"),
        "a page that is a folder": lambda w: report(w.run, w.data),
        "a batch size of 0": lambda w: report(w.run, w.out / "page.html", batch_size=0),
        "workers below 0": lambda w: report(w.run, w.out / "page.html", num_workers=-1),
        "a history that is no text": lambda w: report(w.file("log/history.csv", b"\xff\x00").parent),
        "a history without epochs": lambda w: report(w.file("log/history.csv", "a,b\n1,2\n").parent),
        "a history of text": lambda w: report(w.file("log/history.csv", "epoch,lr\none,two\n").parent),
        "a recipe that is no YAML": lambda w: report(_run_with(w, "recipe.yaml", "a: [1,")),
        "a recipe that is no text": lambda w: report(_run_with(w, "recipe.yaml", b"\xff\xfe\x00")),
        "a config that is no JSON": lambda w: report(_run_with(w, "best/config.json", "{")),
        "a config that is a list": lambda w: report(_run_with(w, "best/config.json", "[1]")),
        "runs of other tasks": lambda w: report([w.run, _run_with(w, "best/config.json", '{"multi_label": true}')]),
        "runs without a history": lambda w: report([w.run, _run_with(w, "history.csv", "")]),
        "a callback without a folder": lambda w: make_trainer(callbacks=[WriteReportCallback]),
    },
    "packaging": {
        "a run that is missing": lambda w: export_package(w.out / "none", w.out / "p"),
        "a run without weights": lambda w: export_package(w.data, w.out / "p"),
        "an image": lambda w: export_package(w.image, w.out / "p"),
        "a folder that exists": lambda w: export_package(w.run, w.data),
        "a folder below a file": lambda w: export_package(w.run, w.image / "p"),
        "a license of words": lambda w: export_package(w.run, w.out / "p", license="my own"),
        "weights that are cut": lambda w: export_package(_with_weights(w, b"\x10"), w.out / "p"),
        "an unknown architecture": lambda w: export_package(w.best(architecture="resnettt"), w.out / "p"),
        "a repository of three names": lambda w: push_to_hub(w.run, "a/b/c", token="t"),
        "a repository without a name": lambda w: push_to_hub(w.run, "", token="t"),
        "an upload of nothing": lambda w: push_to_hub(w.out / "none", "me/model", token="t"),
        "an upload with a license of words": lambda w: push_to_hub(w.run, "me/model", license="my own", token="t"),
    },
    "a demo": {
        "of nothing": lambda w: create_demo(w.out / "none"),
        "of an image": lambda w: create_demo(w.image),
        "of a folder of images": lambda w: create_demo(w.data),
        "at a port below 0": lambda w: create_demo(w.run, port=-1),
        "at a port that is too high": lambda w: create_demo(w.run, port=65536),
        "at a port of text": lambda w: create_demo(w.run, port="80"),  # type: ignore[arg-type]
        "at a port that is true": lambda w: create_demo(w.run, port=True),
        "at a port with a fraction": lambda w: create_demo(w.run, port=80.5),  # type: ignore[arg-type]
        "of weights that are cut": lambda w: create_demo(_with_weights(w, b"\x10")),
    },
    "averaging": {
        "one folder": lambda w: average_weights([w.run / "best"], out=w.out / "soup"),
        "text": lambda w: average_weights(str(w.run), out=w.out / "soup"),
        "a missing folder": lambda w: average_weights([w.run, w.out / "none"], out=w.out / "soup"),
        "an unknown method": lambda w: average_weights([w.run, w.run], out=w.out / "soup", method="gready"),
        "a count of 0": lambda w: average_weights([w.run, w.run], out=w.out / "soup", count=0),
        "an unknown metric": lambda w: average_weights([w.run, w.run], out=w.out / "soup", metric="acc", count=2),
        "an existing folder": lambda w: average_weights([w.run, w.run], out=w.data),
        "another temperature": lambda w: average_weights([w.run, w.best(temperature=-1)], out=w.out / "soup"),
        "a number": lambda w: average_weights(3, out=w.out / "soup"),  # type: ignore[arg-type]
    },
    "embeddings": {
        "no dataset": lambda w: extract_embeddings(w.model, 3),
        "an empty dataset": lambda w: extract_embeddings(w.model, []),
        "a batch size of 0": lambda w: extract_embeddings(w.model, tiny_data(), batch_size=0),
        "workers of text": lambda w: extract_embeddings(w.model, tiny_data(), num_workers="2"),  # type: ignore[arg-type]
        "a file of another kind": lambda w: extract_embeddings(w.model, tiny_data(), w.out / "e.txt"),
    },
    "auditing": {
        "a missing folder": lambda w: audit(w.out / "none", progress=False),
        "a number": lambda w: audit(3),
        "no datasets": lambda w: audit({}),
        "a dataset without files": lambda w: audit({"train": tiny_data()}),
        "a missing manifest": lambda w: audit({"train": str(w.out / "none.csv")}),
        "workers below 0": lambda w: audit(w.data, num_workers=-1),
        "a config without a mean": lambda w: audit(w.data, model_config={"std": STD}),
        "a pixel_range of text": lambda w: audit(w.data, pixel_range="x"),  # type: ignore[arg-type]
        "a pipe": lambda w: audit(w.pipe),
    },
    "building": {
        "an unknown model": lambda w: create_classifier("resnet5000", 3),
        "classes below 0": lambda w: create_classifier("test_resnet", -1),
        "classes of text": lambda w: create_classifier("test_resnet", "3"),  # type: ignore[arg-type]
        "an unknown head": lambda w: create_classifier("test_resnet", 3, head="mpl"),  # type: ignore[arg-type]
        "an unknown pooling": lambda w: create_classifier("test_resnet", 3, global_pool="median"),
        "an unknown argument": lambda w: create_classifier("test_resnet", 3, deepth=3),
        "weights of another kind": lambda w: create_classifier("test_resnet", 3, weights=w.image),
        "weights of a bad config": lambda w: create_classifier("test_resnet", 3, weights=w.best(temperature="hot")),
        "freezing of too many stages": lambda w: create_classifier("test_resnet", 3, freeze=99),
        "an unknown optimizer": lambda w: create_optimizer(w.model, "adamww", 0.1),
        "a learning rate of NaN": lambda w: create_optimizer(w.model, "adamw", float("nan")),
        "two learning rates": lambda w: create_optimizer(w.model, "adamw", 0.1, base_lr=0.1),
        "an unknown loss": lambda w: create_loss("mse"),
        "a smoothing of 2": lambda w: create_loss("ce", smoothing=2.0),
        "an unknown schedule": lambda w: simulate_schedule(
            {"sched": "cosinus"}, updates_per_epoch=3, num_epochs=2, lr=0.1
        ),
        "a schedule of no updates": lambda w: simulate_schedule(
            {"sched": "cosine"}, updates_per_epoch=0, num_epochs=2, lr=0.1
        ),
    },
    "plotting": {
        "a batch of one image": lambda w: plots.plot_batch(torch.zeros(3, 8, 8), torch.tensor(0)),
        "labels of another number": lambda w: plots.plot_batch(torch.zeros(2, 3, 8, 8), torch.tensor([0])),
        "a count of 0": lambda w: plots.plot_transform(str(w.image), "rand-m9", count=0),
        "an unknown policy": lambda w: plots.plot_transform(str(w.image), "rnad-m9"),
        "a pipe": lambda w: plots.plot_transform(str(w.pipe), "rand-m9"),
        "a device": lambda w: plots.plot_transform("/dev/zero", "rand-m9"),
        "no feature maps": lambda w: plots.plot_feature_maps([]),
        "no schedules": lambda w: plots.plot_schedule({}),
    },
}


def _info(shard: Any) -> dict[str, Any]:
    return {
        "splits": {"train": {"num_samples": 2, "filenames": [shard]}, "val": {"num_samples": 2, "filenames": [shard]}}
    }


def _linked(w: World, target: str | Path) -> Path:
    (w.out / "link.png").symlink_to(target)
    return w.manifest("link.png,cat", f"{w.image},dog")


def _pipe(w: World, name: str) -> Path:
    os.mkfifo(w.out / name)
    return w.out / name


def _gray() -> Image.Image:
    return Image.new("L", (8, 8))


def _hugging_face(label: int) -> Any:
    datasets = pytest.importorskip("datasets")
    return datasets.Dataset.from_dict({"image": [b"a", b"b"], "label": [0, label]})


def _tar(w: World, label: bytes) -> str:
    import io
    import tarfile

    (w.out / "shards").mkdir()
    for split in ("train", "val"):
        with tarfile.open(w.out / "shards" / f"{split}-0.tar", "w") as tar:
            for name, content in (("0.png", w.image.read_bytes()), ("0.cls", label)):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return f"wds/{w.out / 'shards'}"


def _with_weights(w: World, content: bytes) -> Path:
    folder = w.best()
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").write_bytes(content)
    return folder


def _run_with(w: World, name: str, content: str | bytes) -> Path:
    """A run with another content of a file."""
    folder = w.out / "changed"
    (folder / "best").mkdir(parents=True)
    (folder / "history.csv").write_text("epoch,accuracy\n1,0.5\n")
    (folder / "best" / "config.json").write_text("{}")
    return w.file(f"changed/{name}", content).parents[name.count("/")]


def _exported(w: World, **entries: Any) -> Path:
    import zipfile

    source, path = trained_run().path("model.pt"), w.out / "m.pt"
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if name.endswith("timm_accel.json"):
                content = json.dumps(json.loads(content) | entries).encode()
            new.writestr(name, content)
    return path


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(**_shared(), out=tmp_path)


def test_the_list_is_long() -> None:
    assert sum(map(len, CASES.values())) >= 120


@pytest.mark.parametrize(
    ("entry", "name"), [pytest.param(entry, name, id=f"{entry}: {name}") for entry in CASES for name in CASES[entry]]
)
@pytest.mark.filterwarnings("ignore")
def test_a_bad_input_is_refused_in_one_sentence(entry: str, name: str, world: World) -> None:
    began = time.monotonic()
    with pytest.raises(Exception) as caught:  # noqa: PT011 - the sentence is checked below
        CASES[entry][name](world)
    assert time.monotonic() - began < MAX_SECONDS
    sentence = own_sentence(caught.value)
    assert sentence is not None, repr(caught.value)
    assert "Expected" in sentence
    assert "but" in sentence
    assert sentence.rstrip().endswith((".", "?"))
    run = world.out / "run"
    assert not run.is_dir() or contents(run).keys() <= {"recipe.yaml"}


def test_what_is_refused_leaves_nothing_behind(world: World) -> None:
    write_images(world.out / "more" / "train", {"cat": 2, "dog": 2})
    before = contents(world.out)
    for refused in (
        lambda: export(world.run, world.out / "m.bin"),
        lambda: average_weights([world.run, world.run], out=world.out / "soup", count=0),
        lambda: extract_embeddings(world.model, tiny_data(), world.out / "e.npz", batch_size=0),
        lambda: LabeledImages(ManifestReader(world.out / "none.csv")),
        lambda: Source(world.out / "more" / "train", split_file=world.out / "split.csv", val_fraction=2.0).open(
            "train"
        ),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match="Expected"):
            refused()
    assert contents(world.out) == before
