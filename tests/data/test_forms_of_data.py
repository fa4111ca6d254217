"""Every form of data in docs/data.md trains by the script, by a recipe in Python, and by the builders."""

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import write_images
from refusal import contents, refused
from stream_sources import WITHOUT_TENSORFLOW, hfids_images, hfids_parquet, tfds, wds
from test_sources import folder, folders_of_tars, manifest, mnist, one_tar, tar_of_each_split, undivided, undivided_tar
from tiny_runs import parse_recipe
from torch.utils.data import WeightedRandomSampler

from timm_accel import Recipe, TimmMixupTrainer, create_classifier, create_datasets
from timm_accel.data import Source, StreamedImages
from timm_accel.losses import create_loss
from timm_accel.optim import create_optimizer
from timm_accel.recipes import build_run

TINY = {"model": "test_resnet", "image_size": 32, "batch_size": 4, "num_epochs": 1, "auto_augment": None}


def parquet_manifest(root: Path) -> Any:
    import pyarrow
    from pyarrow import parquet

    rows = list(csv.DictReader(manifest(root).open(newline="")))
    parquet.write_table(pyarrow.Table.from_pylist(rows), root / "set.parquet")
    return root / "set.parquet"


def torch_set(root: Path) -> Any:
    return mnist(root, 24)


def hfds(root: Path) -> Any:
    return Source(f"hfds/{folder(root)}", root=root / "cache")


FORMS = [folder, undivided, one_tar, undivided_tar, tar_of_each_split, folders_of_tars, manifest, parquet_manifest,
         torch_set, hfds, wds, hfids_images, hfids_parquet,
         pytest.param(tfds, marks=pytest.mark.skipif(WITHOUT_TENSORFLOW, reason="needs the extra tfds"))]  # fmt: skip


def where(made: Any) -> dict[str, str]:
    """The options of a recipe for a source."""
    source = made if isinstance(made, Source) else Source(made)
    root = {} if source.root is None else {"data_root": str(source.root)}
    return {"data_dir": str(source.data)} | root


def by_script(made: Any, run_dir: Path) -> Any:
    options = TINY | where(made) | {"run_dir": run_dir, "auto_augment": "null"}
    return build_run(parse_recipe([f"--{name}={value}" for name, value in options.items()])).train()


def by_recipe(made: Any, run_dir: Path) -> Any:
    return build_run(Recipe(**TINY, **where(made), run_dir=str(run_dir), num_workers=0)).train()


def by_builders(made: Any, run_dir: Path) -> Any:
    torch.manual_seed(42)
    train_set, eval_set = create_datasets(32, (0.5,) * 3, (0.5,) * 3, data=made, auto_augment=None)
    num_classes = len(train_set.class_names)
    model, _ = create_classifier("test_resnet", num_classes, image_size=32)
    loss, eval_loss = create_loss("bce", dataset=train_set, soft_targets=True)
    trainer = TimmMixupTrainer(
        model=model,
        optimizer=create_optimizer(model, "sgd", lr=0.01),
        loss_func=loss,
        eval_loss_fn=eval_loss,
        num_class=num_classes,
        mixup_args={"mixup_alpha": 0.2},
    )
    loading = {f"{part}_dataloader_kwargs": {"num_workers": 0} for part in ("train", "eval")}
    trainer.train(train_set, num_epochs=1, eval_dataset=eval_set, per_device_batch_size=4, **loading)
    return trainer


@pytest.mark.filterwarnings("ignore:The training images are a stream")
@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
@pytest.mark.parametrize("way", [by_script, by_recipe, by_builders])
@pytest.mark.parametrize("make", FORMS)
def test_every_form_of_data_trains(make: Any, way: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    trainer = way(make(tmp_path), tmp_path / "run")
    images = 16 if isinstance(trainer.train_dataset, StreamedImages) else 24
    assert trainer.num_updates == images / 4
    names = trainer.train_dataset.class_names
    assert len(names) == (10 if make is torch_set else 3)
    assert names == trainer.eval_dataset.class_names
    assert 0 <= trainer.run_history.get_latest_metric("accuracy") <= 1
    assert trainer.eval_dataset.data_config["input_size"] == (3, 32, 32)
    divides = make in (undivided, undivided_tar) and way is not by_builders
    assert (tmp_path / "run" / "split.csv").exists() == divides


def small(tmp_path: Path, name: str = "run", **options: Any) -> Any:
    return build_run(Recipe(**(TINY | {"run_dir": str(tmp_path / name)} | options)))


def sizes(run: Any) -> tuple[int, int]:
    return tuple(len(run.train_arguments[f"{part}_dataset"]) for part in ("train", "eval"))


@pytest.mark.parametrize(("share", "expected"), [(0.1, (27, 3)), (0.5, (15, 15)), (0.2, (24, 6))])
def test_the_share_for_evaluation_is_an_option(share: float, expected: tuple[int, int], tmp_path: Path) -> None:
    images = write_images(tmp_path / "set", {"cat": 10, "dog": 10, "owl": 10})
    assert sizes(small(tmp_path, data_dir=str(images), val_fraction=share)) == expected


def test_the_group_in_a_path_is_an_option(tmp_path: Path) -> None:
    images = write_images(tmp_path / "set", {"cat": 30, "dog": 30})
    run = small(tmp_path, data_dir=str(images), group=r"0(\d)\d\.png")
    sides = [{run.train_arguments[f"{part}_dataset"].filename(n)[-6] for n in range(sizes(run)[part == "eval"])}
             for part in ("train", "eval")]  # fmt: skip
    assert sides[0] | sides[1] == {"0", "1", "2"}
    assert not sides[0] & sides[1]


@pytest.mark.parametrize("group", ["no_group", r"(a)(b)", r"(patient\d+"])
def test_a_group_that_is_none_is_refused_at_once(group: str, tmp_path: Path) -> None:
    with refused(ValueError, "group to be a regular expression", f"got {group!r}", "Such as"):
        Recipe(data_dir=str(tmp_path), group=group)
    images = write_images(tmp_path / "set", {"cat": 4, "dog": 4})
    with refused(ValueError, "group to be a regular expression", f"got {group!r}", "Such as"):
        Source(images, group=group).open("train")


def test_the_split_to_evaluate_on_and_the_class_names_of_a_stream_are_options(tmp_path: Path) -> None:
    images = folder(tmp_path)
    write_images(images / "test", {"cat": 3, "dog": 3, "owl": 3})
    assert sizes(small(tmp_path, data_dir=str(images), eval_split="test")) == (24, 9)

    named = small(tmp_path, "named", data_dir=wds(tmp_path), class_map={"cat": 0, "dog": 1, "owl": 2})
    assert named.train_arguments["train_dataset"].class_names == ["cat", "dog", "owl"]
    (tmp_path / "names.txt").write_text("owl\ndog\ncat\n")
    filed = small(tmp_path, "filed", data_dir=wds(tmp_path / "b"), class_map=str(tmp_path / "names.txt"))
    assert filed.train_arguments["train_dataset"].class_names == ["owl", "dog", "cat"]


def test_a_balanced_sampler_is_an_option(tmp_path: Path) -> None:
    images = write_images(tmp_path / "set", {"cat": 40, "dog": 5})
    run = small(tmp_path, data_dir=str(images), sampler="balanced")
    sampler = run.train_arguments["train_dataloader_kwargs"]["sampler"]
    assert isinstance(sampler, WeightedRandomSampler)
    weights, labels = sampler.weights.numpy(), run.train_arguments["train_dataset"].labels
    assert weights[labels == 0].sum() == pytest.approx(weights[labels == 1].sum())
    with refused(ValueError, "sampler or num_repeats", "got both"):
        Recipe(sampler="balanced", num_repeats=2)


@pytest.mark.parametrize(
    ("option", "value"),
    [("val_fraction", 0.3), ("group", "(a)"), ("sampler", "balanced"), ("num_repeats", 2), ("cache", "memory")],
)
def test_what_a_stream_cannot_have_is_refused_before_training(option: str, value: Any, tmp_path: Path) -> None:
    with refused(ValueError, option.replace("cache", "no cache"), "stream", "Leave"):
        small(tmp_path, data_dir=wds(tmp_path), **{option: value})
    assert contents(tmp_path / "run") == {}


@pytest.mark.filterwarnings("ignore:The training images are a stream")
@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
@pytest.mark.parametrize("shards", [1, 2])
def test_the_default_workers_of_a_stream_are_at_most_its_shards(
    shards: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("timm_accel.training.preparation.available_cpus", lambda: 3)
    data = wds(tmp_path, shards)
    trainer = small(tmp_path, data_dir=data).train()
    assert trainer._train_dl_kwargs["num_workers"] == shards
    with refused(ValueError, "shards for each loader worker", f"got {shards}", "num_workers"):
        small(tmp_path, "many", data_dir=data, num_workers=3).train()
