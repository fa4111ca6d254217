"""What a recipe says reaches the run that is built from it, option by option."""

from collections.abc import Callable, Iterable
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import pytest
import timm
import torch
from conftest import write_images
from timm.data.auto_augment import RandAugment
from timm.data.transforms import RandomResizedCropAndInterpolation
from timm.layers import DropPath
from timm.loss import BinaryCrossEntropy
from torch import nn
from torchvision.transforms import ColorJitter, RandomHorizontalFlip, RandomVerticalFlip

from timm_accel import Recipe, create_classifier
from timm_accel.callbacks import EarlyStoppingCallback, SaveStateCallback, TimeLimitCallback, TrackerCallback
from timm_accel.data.readers.memory_cache import MemoryCache
from timm_accel.data.transforms.drafted_crop import DraftedCrop
from timm_accel.losses import KINDS
from timm_accel.mixins import distillation
from timm_accel.models import save_classifier
from timm_accel.models.trial import output_shape
from timm_accel.recipes import Run, build_run, building, named_recipe, recipe_names

CLASSES = {"cat": 4, "dog": 4, "owl": 4}


def train_set(run: Run) -> Any:
    return run.train_arguments["train_dataset"]


def eval_set(run: Run) -> Any:
    return run.train_arguments["eval_dataset"]


def only(kind: type, among: Iterable[Any]) -> Any:
    (found,) = (each for each in among if isinstance(each, kind))
    return found


def only_one(values: set[Any]) -> Any:
    (value,) = values
    return value


def transform(run: Run, kind: type) -> Any:
    return only(kind, train_set(run).transform.transforms)


def callback(run: Run, kind: type) -> Any:
    return only(kind, run.trainer.callback_handler)


def group(run: Run, name: str) -> Any:
    return max(group[name] for group in run.trainer.optimizer.param_groups)


def are_channels_last(run: Run) -> bool:
    filters = [each for each in run.trainer.model.parameters() if each.ndim == 4 and each.shape[2] > 1]
    return all(each.is_contiguous(memory_format=torch.channels_last) for each in filters)


def lr_scales(run: Run) -> list[float]:
    return sorted({group.get("lr_scale", 1.0) for group in run.trainer.optimizer.param_groups})


def by_name(run: Run, weights: torch.Tensor) -> dict[str, float]:
    return dict(zip(train_set(run).class_names, weights.tolist(), strict=True))


def workers(run: Run) -> int:
    (number,) = {run.train_arguments[f"{part}_dataloader_kwargs"]["num_workers"] for part in ("train", "eval")}
    return number


# For each option a value that is not the default, and how the run shows it
MIXED: dict[str, tuple[Any, Callable[[Run], Any]]] = {
    "model": ("test_resnet", lambda run: run.trainer.model.pretrained_cfg["architecture"]),
    "head": ("mlp", lambda run: type(run.trainer.model.get_classifier()).__name__.lower().removesuffix("head")),
    "model_args": ({"channels": [8, 16, 16, 24]}, lambda run: {"channels": [
        run.trainer.model.get_submodule(f"layer{number}.0.conv1").out_channels for number in (1, 2, 3, 4)]}),
    "image_size": (32, lambda run: train_set(run)[0][0].shape[1]),
    "eval_image_size": (40, lambda run: eval_set(run)[0][0].shape[1]),
    "num_epochs": (7, lambda run: run.train_arguments["num_epochs"]),
    "batch_size": (6, lambda run: run.train_arguments["per_device_batch_size"]),
    "lr": (0.003, lambda run: group(run, "lr")),
    "opt": ("adamax", lambda run: type(run.trainer.optimizer).__name__.lower()),
    "opt_args": ({"betas": (0.8, 0.95)}, lambda run: {"betas": group(run, "betas")}),
    "weight_decay": (0.03, lambda run: group(run, "weight_decay")),
    "layer_decay": (0.5, lambda run: lr_scales(run)[-2]),
    "layer_decay_min_scale": (0.3, lambda run: lr_scales(run)[0]),
    "drop_path_rate": (0.25, lambda run: max(each.drop_prob for each in run.trainer.model.modules()
                                             if isinstance(each, DropPath))),
    "channels_last": (True, are_channels_last),
    "grad_checkpointing": (True, lambda run: run.trainer.model.grad_checkpointing),
    "sched": ("poly", lambda run: run.trainer.scheduler_args["sched"]),
    "sched_args": ({"cooldown_epochs": 1}, lambda run: {"cooldown_epochs":
                                                        run.trainer.scheduler_args["cooldown_epochs"]}),
    "min_lr": (1e-5, lambda run: run.trainer.scheduler_args["min_lr"]),
    "warmup_epochs": (2, lambda run: run.trainer.scheduler_args["warmup_epochs"]),
    "warmup_lr": (1e-3, lambda run: run.trainer.scheduler_args["warmup_lr"]),
    "scheduler_metric": ("accuracy", lambda run: run.trainer.scheduler_metric),
    "mixup": (0.3, lambda run: run.trainer.mixup_fn.mixup_alpha),
    "cutmix": (0.7, lambda run: run.trainer.mixup_fn.cutmix_alpha),
    "mixup_mode": ("elem", lambda run: run.trainer.mixup_fn.mode),
    "mixup_prob": (0.75, lambda run: run.trainer.mixup_fn.mix_prob),
    "mixup_switch_prob": (0.25, lambda run: run.trainer.mixup_fn.switch_prob),
    "mixup_off_epoch": (3, lambda run: run.trainer.mixup_off_epoch),
    "smoothing": (0.2, lambda run: run.trainer.mixup_fn.label_smoothing),
    "pos_weights": ({"cat": 3.0, "dog": 1.0, "owl": 2.0}, lambda run: by_name(run, run.trainer.loss_func.pos_weight)),
    "bce_target_thresh": (0.4, lambda run: run.trainer.loss_func.target_threshold),
    "auto_augment": ("rand-m5-n3", lambda run: f"rand-m{transform(run, RandAugment).ops[0].magnitude}"
                                               f"-n{transform(run, RandAugment).num_layers}"),
    "scale": ((0.3, 0.9), lambda run: transform(run, RandomResizedCropAndInterpolation).scale),
    "ratio": ((0.8, 1.25), lambda run: transform(run, RandomResizedCropAndInterpolation).ratio),
    "hflip": (0.25, lambda run: transform(run, RandomHorizontalFlip).p),
    "vflip": (0.75, lambda run: transform(run, RandomVerticalFlip).p),
    "re_prob": (0.5, lambda run: train_set(run).device_transform.re_prob),
    "re_mode": ("pixel", lambda run: train_set(run).device_transform.re_mode),
    "crop_mode": ("border", lambda run: eval_set(run).data_config["crop_mode"]),
    "crop_pct": (0.8, lambda run: eval_set(run).data_config["crop_pct"]),
    "resolutions": ((24, 32), lambda run: tuple(height for height, _ in run.trainer.resolutions)),
    "cache": ("memory", lambda run: "memory" if isinstance(train_set(run).reader, MemoryCache) else None),
    "ema_decay": (0.9, lambda run: run.trainer.ema_decay),
    "distill_kind": ("feature", lambda run: run.trainer.distill_kind),
    "clip_grad": (0.6, lambda run: run.trainer.clip_grad),
    "clip_mode": ("agc", lambda run: run.trainer.clip_mode),
    "dist_bn": ("broadcast", lambda run: run.trainer.dist_bn),
    "sync_bn": (True, lambda run: run.trainer.sync_bn),
    "seed": (5, lambda run: run.trainer.seed),
    "num_workers": (1, workers),
    "resume": ("auto", lambda run: run.train_arguments["resume_from"]),
    "save_every_n_epochs": (2, lambda run: callback(run, SaveStateCallback).every_n_epochs),
    "save_every_n_updates": (9, lambda run: callback(run, SaveStateCallback).every_n_updates),
    "save_every_minutes": (11.0, lambda run: callback(run, SaveStateCallback).every_minutes),
    "keep_states": (4, lambda run: callback(run, SaveStateCallback).keep),
    "data_identity": ("contents", lambda run: callback(run, SaveStateCallback).data_identity),
    "keep_states_when_done": (2, lambda run: callback(run, SaveStateCallback).keep_when_done),
    "max_minutes": (60.0, lambda run: callback(run, TimeLimitCallback).max_minutes),
    "on_error": ("raise", lambda run: only_one({train_set(run).on_error, eval_set(run).on_error})),
    "pixel_range": ((0.0, 4095.0), lambda run: only_one({train_set(run).prepare.pixel_range,
                                                         eval_set(run).data_config["pixel_range"]})),
    "drop_last": (False, lambda run: run.train_arguments["train_dataloader_kwargs"]["drop_last"]),
    "mixed_precision": ("bf16", lambda run: run.trainer.accelerator.mixed_precision),
    "torch_compile": (True, lambda run: run.trainer.accelerator.state.dynamo_plugin.backend == "INDUCTOR"),
    "patience": (3, lambda run: callback(run, EarlyStoppingCallback).patience),
    "evaluate_every_n_epochs": (3, lambda run: run.trainer.evaluate_every_n_epochs),
    "train_accuracy": (True, lambda run: run.trainer.train_accuracy),
    "trackers": (("tensorboard",), lambda run: callback(run, TrackerCallback).trackers),
    "min_delta": (0.125, lambda run: callback(run, EarlyStoppingCallback).min_delta),
}  # fmt: skip
HARD: dict[str, tuple[Any, Callable[[Run], Any]]] = {
    "model": ("deit_tiny_distilled_patch16_224", lambda run: run.trainer.model.pretrained_cfg["architecture"]),
    "model_args": ({"embed_dim": 24, "depth": 1, "num_heads": 2}, lambda run: {
        "embed_dim": run.trainer.model.embed_dim, "depth": len(run.trainer.model.blocks),
        "num_heads": run.trainer.model.blocks[0].attn.num_heads}),
    "image_size": (32, lambda run: run.trainer.model.patch_embed.img_size[0]),
    "channels_last": (False, are_channels_last),
    "gradient_accumulation_steps": (2, lambda run: run.train_arguments["gradient_accumulation_steps"]),
    "freeze_epochs": (2, lambda run: max(run.trainer.freeze_schedule)),
    "loss": ("ce", lambda run: {nn.CrossEntropyLoss: "ce"}[type(run.trainer.loss_func)]),
    "mixup": (0.0, lambda run: 0.0 if run.trainer.mixup_fn is None else 1.0),
    "cutmix": (0.0, lambda run: 0.0 if run.trainer.mixup_fn is None else 1.0),
    "smoothing": (0.2, lambda run: run.trainer.loss_func.label_smoothing),
    "class_weights": ({"cat": 1.0, "dog": 2.0, "owl": 3.0}, lambda run: by_name(run, run.trainer.loss_func.weight)),
    "auto_augment": (None, lambda run: next((each for each in train_set(run).transform.transforms
                                             if isinstance(each, RandAugment)), None)),
    "color_jitter": (0.125, lambda run: transform(run, ColorJitter).contrast[1] - 1),
    "num_repeats": (3, lambda run: run.train_arguments["train_dataloader_kwargs"]["sampler"].num_repeats),
    "draft": (True, lambda run: isinstance(train_set(run).prepare, DraftedCrop)),
    "distill_kind": ("token", lambda run: run.trainer.distill_kind),
    "distill_alpha": (0.75, lambda run: run.trainer.distill_alpha),
    "distill_temperature": (3.0, lambda run: run.trainer.distill_temperature),
    "distill_hard": (True, lambda run: run.trainer.distill_hard),
    "mixed_precision": ("no", lambda run: run.trainer.accelerator.mixed_precision),
    "torch_compile": ("max-autotune", lambda run: run.trainer.accelerator.state.dynamo_plugin.mode),
    "on_error": ("skip", lambda run: only_one({train_set(run).on_error, eval_set(run).on_error})),
    "drop_last": (True, lambda run: run.train_arguments["train_dataloader_kwargs"]["drop_last"]),
}  # fmt: skip
ELSEWHERE = {  # in separate tests, below and in test_recipes.py
    *("data_dir", "run_dir", "pretrained", "weights", "base_batch_size", "lr_scaling", "distill_teacher"),
    *("data_root", "download", "val_fraction", "group", "class_map", "eval_split", "sampler"),
    *("exclude", "folds", "fold"),
    "fast",  # in test_fast.py
    "lora",  # in test_lora_runs.py
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``data``, and a ``teacher`` of its classes."""
    folder = tmp_path_factory.mktemp("building")
    for split in ("train", "val"):
        write_images(folder / "data" / split, CLASSES)
    teacher, data_config = create_classifier("test_resnet", 3, image_size=32)
    save_classifier(teacher, folder / "teacher", list(CLASSES), data_config)
    return folder


def build(folder: Path, run_dir: Path, **options: Any) -> Run:
    small = {"model": "test_resnet", "image_size": 32, "data_dir": str(folder / "data"), "run_dir": str(run_dir)}
    return build_run(Recipe(**(small | options)))


def test_every_option_is_in_a_table_or_has_a_test_of_its_own() -> None:
    assert {*MIXED, *HARD} | ELSEWHERE == {field.name for field in fields(Recipe)}
    assert not {*MIXED, *HARD} & ELSEWHERE


@pytest.mark.parametrize("table", [MIXED, HARD], ids=["mixed", "hard"])
def test_every_option_reaches_the_run(table: dict[str, Any], folder: Path, tmp_path: Path) -> None:
    values = {name: value for name, (value, _) in table.items()}
    run = build(folder, tmp_path, distill_teacher=str(folder / "teacher"), **values)
    shown = {name: reading(run) for name, (_, reading) in table.items()}
    assert shown == {name: pytest.approx(value) if type(value) is float else value for name, value in values.items()}
    assert run.trainer.run_dir == tmp_path
    assert type(run.trainer.eval_loss_fn) is nn.CrossEntropyLoss
    if table is MIXED:
        assert type(run.trainer.loss_func) is BinaryCrossEntropy
        assert run.trainer.loss_func.smoothing == 0  # the mixed targets are smoothed already
        assert run.trainer.recipe["scale"] == [0.3, 0.9]
        assert "distill_projection" in run.trainer.components()  # between the widths of teacher and student


def test_without_a_teacher_nothing_is_distilled(folder: Path, tmp_path: Path) -> None:
    run = build(folder, tmp_path, distill_kind="feature", model_args={"channels": [8, 16, 16, 24]})
    assert "distill_projection" not in run.trainer.components()


def test_nothing_stops_early_and_the_trainer_decides_on_the_last_batch_unless_asked(
    folder: Path, tmp_path: Path
) -> None:
    run = build(folder, tmp_path)
    assert not [each for each in run.trainer.callback_handler if isinstance(each, EarlyStoppingCallback)]
    assert "drop_last" not in run.train_arguments["train_dataloader_kwargs"]
    assert (train_set(run).on_error, eval_set(run).on_error) == ("skip", "skip")


@pytest.mark.parametrize(("drop_last", "updates"), [(None, 2), (True, 2), (False, 3)])
def test_the_last_shorter_batch_is_trained_on_where_it_is_kept(
    drop_last: bool | None, updates: int, folder: Path, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"mixup": 0.0, "cutmix": 0.0, "num_workers": 0, "num_epochs": 1, "warmup_epochs": 0}
    run = build(folder, tmp_path, batch_size=5, drop_last=drop_last, **options)
    assert run.train().num_updates == updates  # of 12 images


def test_a_run_without_a_better_accuracy_stops_early(folder: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"batch_size": 6, "num_workers": 0, "num_epochs": 6, "warmup_epochs": 0, "ema_decay": 0.0}
    run = build(folder, tmp_path, patience=2, min_delta=1.0, **options)
    stopping = callback(run, EarlyStoppingCallback)
    assert (stopping.watch_metric, stopping.greater_is_better) == ("accuracy", True)
    assert run.train().num_updates == (1 + 2) * 2  # no accuracy is better than the first one by 1


def test_images_are_made_as_the_model_wants_them(folder: Path, tmp_path: Path) -> None:
    run = build(folder, tmp_path, model="deit_tiny_patch16_224", model_args={"embed_dim": 24, "depth": 1})
    own = timm.get_pretrained_cfg("deit_tiny_patch16_224")
    config = eval_set(run).data_config
    assert {name: config[name] for name in ("mean", "std", "crop_pct", "interpolation", "crop_mode")} == {
        name: getattr(own, name) for name in ("mean", "std", "crop_pct", "interpolation", "crop_mode")
    }


def test_the_weights_are_those_of_the_folder_and_else_those_of_the_seed(folder: Path, tmp_path: Path) -> None:
    def first_layer(name: str, **options: Any) -> torch.Tensor:
        return next(build(folder, tmp_path / name, **options).trainer.model.parameters()).detach()

    teacher, _ = create_classifier("test_resnet", 3, weights=folder / "teacher")
    assert torch.equal(first_layer("given", weights=str(folder / "teacher")), next(teacher.parameters()))
    first = first_layer("first", seed=1)
    torch.manual_seed(7)
    assert torch.equal(first_layer("again", seed=1), first)
    assert not torch.equal(first_layer("other", seed=2), first)


@pytest.mark.parametrize(
    ("names", "classes"),
    [(["cat", "dog", "owl"], "same"), (["dog", "cat", "owl"], "reordered"), (["elk", "fox", "owl"], "others")],
)
def test_a_head_of_weights_is_kept_for_the_same_classes_alone(
    names: list[str], classes: str, folder: Path, tmp_path: Path
) -> None:
    first, _ = create_classifier("test_resnet", 3)
    save_classifier(first, tmp_path / "first", names)
    model = build(folder, tmp_path / "run", model="test_resnet", weights=str(tmp_path / "first")).trainer.model
    assert model.weights_report.classes == classes
    assert torch.equal(model.fc.weight, first.fc.weight) == (classes == "same")


@pytest.mark.parametrize("pretrained", [True, False])
def test_the_weights_of_timm_are_asked_for(
    pretrained: bool, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def without_download(*args: Any, pretrained: bool, **options: Any) -> Any:
        asked.append(pretrained)
        return create_classifier(*args, **options)

    monkeypatch.setattr(building, "create_classifier", without_download)
    build(folder, tmp_path, pretrained=pretrained)
    assert asked == [pretrained]


def test_the_new_classifier_and_the_projection_come_from_the_seed(folder: Path, tmp_path: Path) -> None:
    def made(name: str, seed: int, moved: int) -> dict[str, torch.Tensor]:
        torch.manual_seed(moved)
        distill = {"distill_teacher": str(folder / "teacher"), "distill_kind": "feature", "model": "test_efficientnet"}
        trainer = build(folder, tmp_path / name, seed=seed, pretrained=False, **distill).trainer
        projection = trainer.components()["distill_projection"].state_dict()
        return {"head": trainer.model.get_classifier().weight, "projection": projection["weight"]}

    first, second, other = made("first", 7, 1), made("second", 7, 2), made("other", 8, 1)
    for name in first:
        assert torch.equal(first[name], second[name])
        assert not torch.equal(first[name], other[name])


def test_the_global_batch_counts_images_accumulation_and_processes(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = SimpleNamespace(num_processes=3)
    monkeypatch.setattr(building, "process_state", lambda: state)
    for name in ("on_each_host", "on_main_process"):  # the other processes are not there
        monkeypatch.setattr(building, name, lambda state, work: work())
    options = {"opt": "sgd", "lr": 0.1, "batch_size": 4, "gradient_accumulation_steps": 2, "base_batch_size": 64}
    assert group(build(folder, tmp_path, **options), "lr") == pytest.approx(0.1 * 4 * 2 * 3 / 64)


@pytest.mark.parametrize("name", recipe_names())
def test_a_named_recipe_builds_its_own_model_for_its_sizes(
    name: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def by_shapes(*args: Any, pretrained: bool, **options: Any) -> Any:
        with torch.device("meta"):
            return create_classifier(*args, **options)

    monkeypatch.setattr(building, "create_classifier", by_shapes)
    recipe = named_recipe(name).recipe(data_dir=str(folder / "data"), run_dir=str(tmp_path))
    model = build_run(recipe).trainer.model
    assert model.pretrained_cfg["architecture"] == recipe.model
    if name == "fast_cpu":
        assert [each["num_chs"] for each in model.feature_info[1:]] == recipe.model_args["channels"]
    for size in {recipe.image_size, recipe.eval_image_size or recipe.image_size}:
        assert output_shape(model, (3, size, size)) == (2, len(CLASSES))


def test_a_recipe_has_every_kind_of_loss_and_of_distillation() -> None:
    assert set(get_args(Recipe.__annotations__["loss"])) == set(KINDS)
    assert set(get_args(Recipe.__annotations__["distill_kind"])) == set(distillation.KINDS)


@pytest.mark.parametrize(
    ("several", "loss", "kind"),
    [
        (False, "ce", "CrossEntropyLoss"),
        (False, "asl", "AsymmetricLossSingleLabel"),
        (False, "poly", "PolyCrossEntropy"),
        (True, "bce", "BinaryCrossEntropy"),
        (True, "asl", "AsymmetricLossMultiLabel"),
        (True, "poly", "PolyBinaryCrossEntropy"),
        (True, "twoway", "TwoWayLoss"),
        (True, "zlpr", "ZlprLoss"),
        (True, "db", "DistributionBalancedLoss"),
    ],
)
def test_every_kind_of_loss_is_built(several: bool, loss: str, kind: str, folder: Path, tmp_path: Path) -> None:
    data = folder / "data"
    if several:
        images = sorted(path.relative_to(folder) for path in data.glob("train/*/*.png"))
        rows = [f"{path},{path.parent.name}{';blue' if number % 2 else ''}" for number, path in enumerate(images)]
        data = folder / "set.csv"
        data.write_text("\n".join(["path,label", *rows]))
    run = build(folder, tmp_path, data_dir=str(data), loss=loss, mixup=0.0, cutmix=0.0, smoothing=0.0)
    assert type(run.trainer.loss_func).__name__ == kind
    assert type(run.trainer.eval_loss_fn) is (BinaryCrossEntropy if several else nn.CrossEntropyLoss)
    assert getattr(run.trainer.loss_func, "target_threshold", None) is None  # multi-label targets are 0 and 1


def test_checkpointing_leaves_the_bits_and_the_state_of_a_model_without_batch_norm_as_they_are(
    folder: Path, tmp_path: Path
) -> None:
    options: dict[str, Any] = {
        "model": "test_vit", "model_args": {"img_size": 32}, "drop_path_rate": 0.5, "batch_size": 6, "num_workers": 0,
        "num_epochs": 1, "warmup_epochs": 0,
    }  # fmt: skip
    plain, checkpointed = (
        build(folder, tmp_path / str(asked), grad_checkpointing=asked, **options) for asked in (False, True)
    )
    for run in (plain, checkpointed):
        run.train()
        assert "grad_checkpointing" not in run.trainer.recipe
    weights = checkpointed.trainer.model.state_dict()
    assert all(torch.equal(weights[name], each) for name, each in plain.trainer.model.state_dict().items())


def test_a_state_is_tied_to_checkpointing_where_batch_norm_counts_each_batch_twice(
    folder: Path, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"batch_size": 12, "num_workers": 0, "num_epochs": 1, "warmup_epochs": 0, "mixup": 0.0}
    run = build(folder, tmp_path, grad_checkpointing=True, **options)
    assert run.trainer.recipe["grad_checkpointing"] is True
    run.train()
    counted = {int(each) for name, each in run.trainer.model.named_buffers() if name.endswith("num_batches_tracked")}
    assert counted == {1, 2}  # of the stem and of the blocks
