"""Recipes: published numbers as published, all faults at once, and each one trains."""

import ast
import inspect
import json
import runpy
from collections.abc import Callable, Iterator
from dataclasses import fields
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import write_images
from refusal import refused
from timm.layers import DropPath
from timm.optim import Lamb
from tiny_runs import parse_recipe
from torchvision.transforms import ColorJitter

from timm_accel import LoopTrainer, Recipe, TimmMixupTrainer, callbacks, create_classifier, create_datasets, mixins
from timm_accel.commands.main import main
from timm_accel.losses import create_loss
from timm_accel.models import open_classifier
from timm_accel.optim import create_optimizer
from timm_accel.recipes import Run, build_run, named_recipe, recipe_names
from timm_accel.recipes import recipe as recipe_module
from timm_accel.schedules import check_fits, simulate_schedule
from timm_accel.training.identity import FOLLOWS_RUN

# ResNet strikes back, arXiv 2110.00476, table 2; DeiT, arXiv 2012.12877, table 9
PUBLISHED: dict[str, dict[str, Any]] = {
    "a1": {"image_size": 224, "num_epochs": 600, "lr": 5e-3, "weight_decay": 0.01, "smoothing": 0.1, "mixup": 0.2,
           "drop_path_rate": 0.05, "num_repeats": 3, "auto_augment": "rand-m7-mstd0.5-inc1"},
    "a2": {"image_size": 224, "num_epochs": 300, "lr": 5e-3, "weight_decay": 0.02, "smoothing": 0.0, "mixup": 0.1,
           "drop_path_rate": 0.05, "num_repeats": 3, "auto_augment": "rand-m7-mstd0.5-inc1"},
    "a3": {"image_size": 160, "num_epochs": 100, "lr": 8e-3, "weight_decay": 0.02, "smoothing": 0.0, "mixup": 0.1,
           "drop_path_rate": 0.0, "num_repeats": 1, "eval_image_size": 224, "auto_augment": "rand-m6-mstd0.5-inc1"},
    "deit_small": {"num_epochs": 300, "lr": 5e-4, "base_batch_size": 512, "weight_decay": 0.05, "smoothing": 0.1,
                   "mixup": 0.8, "cutmix": 1.0, "drop_path_rate": 0.1, "num_repeats": 3, "re_prob": 0.25,
                   "auto_augment": "rand-m9-mstd0.5-inc1", "warmup_epochs": 5},
}  # fmt: skip
RSB = {"opt": "lamb", "base_batch_size": 2048, "cutmix": 1.0, "warmup_epochs": 5,
       "crop_pct": 0.95, "loss": "bce", "sched": "cosine", "clip_grad": None, "re_prob": 0.0}  # fmt: skip

OWN_DEFAULTS = {"run_dir", "image_size", "drop_path_rate", "smoothing", "lr", "base_batch_size", "weight_decay",
                 "patience"}  # fmt: skip


def function_of(owner: Callable[..., Any]) -> Any:
    return inspect.unwrap(owner.__init__ if isinstance(owner, type) else owner)


def options_with_a_default_where_they_are_used() -> Iterator[tuple[str, Any, str, Any]]:
    """The name in the recipe, the function, the name there, and the default there."""
    renamed = {"keep": "keep_states", "keep_when_done": "keep_states_when_done"}
    renamed |= {f"every_{unit}": f"save_every_{unit}" for unit in ("n_epochs", "n_updates", "minutes")}
    used_by = [LoopTrainer, create_classifier, create_datasets, create_loss, create_optimizer]
    for module in (mixins, callbacks):
        used_by += [getattr(module, name) for name in module.__all__ if isinstance(getattr(module, name), type)]
    for owner in used_by:
        for option in inspect.signature(function_of(owner)).parameters.values():
            name = renamed.get(option.name, option.name)
            if name in Recipe.__annotations__ and option.default is not option.empty:
                yield name, function_of(owner), option.name, option.default


def set_default(monkeypatch: pytest.MonkeyPatch, function: Any, name: str, value: Any) -> None:
    parameters = [each for each in inspect.signature(function).parameters.values() if each.default is not each.empty]
    defaults = {each.name: each.default for each in parameters if each.kind is each.POSITIONAL_OR_KEYWORD}
    if name in defaults:
        monkeypatch.setattr(function, "__defaults__", tuple((defaults | {name: value}).values()))
    else:
        monkeypatch.setitem(function.__kwdefaults__, name, value)


def test_a_default_is_that_of_where_the_option_is_used_and_changes_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    article = TimmMixupTrainer.default_scheduler_args or {}
    names = article.keys() & Recipe.__annotations__.keys() - {"warmup_epochs"}  # follows the run, and is tested below
    expected = {name: f"new {name}" for name in names}
    monkeypatch.setattr(TimmMixupTrainer, "default_scheduler_args", {**article, **expected})
    for name, function, option, default in list(options_with_a_default_where_they_are_used()):
        if name in OWN_DEFAULTS:
            assert default != Recipe.__dataclass_fields__[name].default
        elif default:
            expected[name] = f"new {name}"
            set_default(monkeypatch, function, option, expected[name])
        else:  # None, False or 0: off, which a recipe may say itself
            expected[name] = default
    changed = {field.name: field.default for field in fields(runpy.run_path(recipe_module.__file__)["Recipe"])}
    assert {name: changed[name] for name in expected} == expected
    assert {"ema_decay", "keep_states", "auto_augment", "min_lr", "distill_alpha", "clip_grad", "seed"} < set(expected)


def sentences() -> dict[str, str]:
    """What stands beneath the fields of `Recipe`, by their names."""
    (body,) = (each.body for each in ast.parse(inspect.getsource(recipe_module)).body
               if isinstance(each, ast.ClassDef) and each.name == "Recipe")  # fmt: skip
    return {
        field.target.id: inspect.cleandoc(below.value.value)
        for field, below in pairwise(body)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
    }


def test_help_shows_the_sentence_on_every_option_its_type_and_default_in_80_columns(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["train", "--help"]) == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80
    shown = "".join(text.split())
    assert sentences().keys() == Recipe.__annotations__.keys()
    for sentence in sentences().values():
        assert sentence.endswith(".")
        assert f"{''.join(sentence.split())}(type:" in shown
    assert "Passesoverthetrainingimages.(type:int,default:40)" in shown
    assert "Nonefollowsthelengthoftherun.(type:float|null,default:null)" in shown
    assert "--head{linear,mlp}" in shown


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_recipe_has_the_published_numbers(name: str) -> None:
    recipe = named_recipe(name).recipe()
    expected = PUBLISHED[name] | (RSB if name.startswith("a") else {})
    assert {option: getattr(recipe, option) for option in expected} == expected


@pytest.mark.filterwarnings("ignore:ema_decay=.* averages over about:UserWarning")  # the published one, in 9 updates
@pytest.mark.parametrize("num_epochs", [1, 2, 3])
@pytest.mark.parametrize("name", recipe_names())
def test_a_named_recipe_says_where_it_is_from_builds_and_trains_short_runs(
    name: str, num_epochs: int, tmp_path: Path
) -> None:
    named = named_recipe(name)
    assert all((named.about, named.source, named.published))
    for split, count in (("train", 5), ("val", 2)):
        write_images(tmp_path / "data" / split, dict.fromkeys(("cat", "dog", "owl"), count))
    recipe = named.recipe(
        data_dir=str(tmp_path / "data"),
        run_dir=str(tmp_path / "run"),
        model="test_resnet",
        model_args=None,
        pretrained=False,
        image_size=32,
        eval_image_size=40 if named.options.get("eval_image_size") else None,
        num_epochs=num_epochs,
        batch_size=4,
        num_workers=0,
    )
    assert type(recipe.scale) is type(recipe.ratio) is tuple
    run = build_run(recipe)
    repeated = recipe.num_repeats > 1
    assert len(run.train_arguments["train_dataloader_kwargs"].get("sampler", range(15))) == 15
    assert ("sampler" in run.train_arguments["train_dataloader_kwargs"]) is repeated
    trainer = run.train()
    assert trainer.num_updates == num_epochs * (15 // 4)  # the last, shorter batch is dropped
    assert trainer.run_history.get_latest_metric("train_loss_epoch") > 0
    own = None if "warmup_fraction" in trainer.scheduler_args else num_epochs // 2
    assert trainer.scheduler_args.get("warmup_epochs") == recipe.resolved().warmup_epochs == own
    written = yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())
    as_tuples = {name: tuple(written[name]) for name in ("scale", "ratio")}
    assert Recipe(**{**written, **as_tuples}).diff(recipe.resolved()) == {}
    assert Recipe(**written) == recipe.resolved()


def test_the_learning_rate_is_scaled_from_the_batch_size_that_it_is_for(image_folder: Path, tmp_path: Path) -> None:
    def optimizer(**changes: Any) -> Any:
        recipe = named_recipe("a3").recipe(
            data_dir=str(image_folder), run_dir=str(tmp_path / str(len(list(tmp_path.iterdir())))), model="test_resnet",
            image_size=32, eval_image_size=32, batch_size=8, gradient_accumulation_steps=2, **changes)  # fmt: skip
        return build_run(recipe).trainer.optimizer

    assert isinstance(optimizer(), Lamb)
    rates = {scaling: optimizer(lr_scaling=scaling).param_groups[0]["lr"] for scaling in ("linear", "sqrt", None)}
    assert rates["linear"] == pytest.approx(8e-3 * 16 / 2048)
    assert rates["sqrt"] == rates[None] == pytest.approx(8e-3 * (16 / 2048) ** 0.5)
    assert optimizer(base_batch_size=None).param_groups[0]["lr"] == 8e-3


def test_options_reach_model_data_and_trainer(image_folder: Path, tmp_path: Path) -> None:
    recipe = Recipe(
        data_dir=str(image_folder), run_dir=str(tmp_path), model="test_resnet", head="mlp", image_size=32, num_epochs=4,
        loss="ce", class_weights="auto", mixup=0, cutmix=0, re_prob=0.5, re_mode="pixel", freeze_epochs=1, opt="adamw",
        warmup_epochs=1, resolutions=(24, 32))  # fmt: skip
    trainer = build_run(recipe).trainer
    train_set = build_run(recipe).train_arguments["train_dataset"]
    assert type(trainer.model.get_classifier()).__name__ == "MlpHead"
    assert (train_set.device_transform.re_prob, train_set.device_transform.re_mode) == (0.5, "pixel")
    assert trainer.freeze_schedule == {0: -1, 1: 0}
    assert trainer.resolutions == [(24, 24), (32, 32)]
    weights = 1 / torch.tensor([7.0, 6.0, 6.0])
    assert torch.allclose(trainer.loss_func.weight, weights / weights.mean())


def test_a_multi_label_manifest_trains_by_a_recipe(tmp_path: Path) -> None:
    write_images(tmp_path / "images", {"x": 12})
    rows = [f"images/x/{n:03d}.png,{'cat;dog' if n % 2 else 'owl'}" for n in range(12)]
    (tmp_path / "set.csv").write_text("\n".join(["path,label", *rows]))
    recipe = Recipe(
        data_dir=str(tmp_path / "set.csv"), run_dir=str(tmp_path / "run"), model="test_resnet", image_size=32,
        num_epochs=2, batch_size=4, warmup_epochs=1, num_workers=0, smoothing=0.0, mixup=0.0, cutmix=0.0,
        ema_decay=0.0)  # fmt: skip
    trainer = build_run(recipe).train()
    assert 0 < trainer.run_history.get_latest_metric("map") <= 1
    assert json.loads((tmp_path / "run" / "best" / "config.json").read_text())["multi_label"] is True


def test_further_arguments_reach_optimizer_and_schedule(image_folder: Path, tmp_path: Path) -> None:
    recipe = Recipe(
        data_dir=str(image_folder), run_dir=str(tmp_path), model="test_resnet", image_size=32, num_epochs=4, opt="sgd",
        warmup_epochs=1, channels_last=True, opt_args={"momentum": 0.5}, sched_args={"cooldown_epochs": 1})  # fmt: skip
    trainer = build_run(recipe).trainer
    assert trainer.optimizer.param_groups[0]["momentum"] == 0.5
    assert trainer.scheduler_args["cooldown_epochs"] == 1
    assert next(each for each in trainer.model.parameters() if each.ndim == 4).is_contiguous(
        memory_format=torch.channels_last
    )


def test_arguments_of_the_model_and_augmentation_reach_what_they_are_for(image_folder: Path, tmp_path: Path) -> None:
    recipe = Recipe(
        data_dir=str(image_folder), run_dir=str(tmp_path), model="test_resnet", image_size=32, num_epochs=1,
        batch_size=4, warmup_epochs=0, num_workers=0, ema_decay=0.0, hflip=0.25, vflip=0.75,
        auto_augment=None, color_jitter=0.125,
        model_args={"channels": [8, 16, 24, 40], "in_chans": 3})  # fmt: skip
    run = build_run(recipe)
    assert run.trainer.model.num_features == 40
    flips = {type(each).__name__: each.p for each in run.train_arguments["train_dataset"].transform.transforms
             if hasattr(each, "p")}  # fmt: skip
    assert (flips["RandomHorizontalFlip"], flips["RandomVerticalFlip"]) == (0.25, 0.75)
    (jitter,) = (each for each in run.train_arguments["train_dataset"].transform.transforms
                 if isinstance(each, ColorJitter))  # fmt: skip
    assert jitter.contrast == (0.875, 1.125)
    run.train()
    rebuilt, _ = open_classifier(tmp_path / "best")
    assert rebuilt.num_features == 40


def test_an_argument_of_the_model_that_is_an_option_too_is_refused_as_is_one_that_it_lacks(tmp_path: Path) -> None:
    with refused(ValueError, "but got 2", "model_args without 'num_classes'", "follow from the data",
                 "model_args without 'drop_path_rate', but got 0.1", "option drop_path_rate"):  # fmt: skip
        Recipe(model_args={"drop_path_rate": 0.1, "num_classes": 3})
    with refused(ValueError, "Expected vflip to be between 0 and 1", "1.5"):
        Recipe(vflip=1.5)
    with refused(TypeError, "arguments that test_resnet takes", "'chanels'"):
        build_run(Recipe(run_dir=str(tmp_path), model="test_resnet", model_args={"chanels": [8]}))


def test_the_sizes_of_a3_need_a_model_that_takes_both(image_folder: Path, tmp_path: Path) -> None:
    recipe = named_recipe("a3").recipe(data_dir=str(image_folder), run_dir=str(tmp_path), model="vit_tiny_patch16_224")
    with refused(ValueError, "eval_image_size to be a size that vit_tiny_patch16_224 takes as well as 160", "got 224"):
        build_run(recipe)


def test_no_drop_path_is_none_whatever_the_model_has_by_default(image_folder: Path, tmp_path: Path) -> None:
    def rates(folder: str, rate: float) -> set[float]:
        recipe = Recipe(data_dir=str(image_folder), run_dir=str(tmp_path / folder), model="swin_s3_tiny_224",
                        drop_path_rate=rate, num_epochs=3)  # fmt: skip
        model = build_run(recipe).trainer.model
        return {each.drop_prob for each in model.modules() if isinstance(each, DropPath)}

    assert rates("none", 0.0) <= {0.0}
    assert max(rates("some", 0.2)) == pytest.approx(0.2)


@pytest.mark.parametrize("name", ["vgg11", "dla34", "ghostnet_050", "efficientvit_b0"])
def test_a_family_without_stochastic_depth_trains_by_default(
    name: str, image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options: dict[str, Any] = {"data_dir": str(image_folder), "model": name, "num_epochs": 3, "image_size": 96}
    run = build_run(Recipe(**options, run_dir=str(tmp_path / "left_out")))
    assert run.recipe.drop_path_rate == 0
    assert f"drop_path_rate is 0, since {name} has no stochastic depth." in " ".join(capsys.readouterr().out.split())
    with refused(TypeError, f"arguments that {name} takes", "'drop_path_rate': 0.3", "Leave out"):
        build_run(Recipe(**options, run_dir=str(tmp_path / "asked_for"), drop_path_rate=0.3))


@pytest.mark.parametrize(("num_epochs", "warmup"), [(1, 0), (2, 1), (3, 1), (4, 2), (5, 2), (6, 3), (40, 3)])
def test_the_default_warmup_is_that_of_the_article_or_half_of_a_shorter_run(num_epochs: int, warmup: int) -> None:
    recipe = Recipe(num_epochs=num_epochs)
    assert recipe.scheduler_args()["warmup_epochs"] == recipe.resolved().warmup_epochs == warmup
    assert recipe.resolved().diff(recipe) == {"warmup_epochs": (warmup, None)}
    assert recipe.resolved().resolved() == recipe.resolved()


def test_the_default_warmup_leaves_room_for_cooldown_and_decay() -> None:
    prefixed = {"warmup_prefix": True, "cooldown_epochs": 5}
    assert Recipe(num_epochs=8, sched_args=prefixed).scheduler_args()["warmup_epochs"] == 1  # half of 3
    wsd = Recipe(num_epochs=6, sched="wsd", sched_args={"decay_epochs": 5})
    assert wsd.scheduler_args()["warmup_epochs"] == 1
    assert Recipe(sched_args={"warmup_fraction": 0.25}).resolved().warmup_epochs is None
    assert Recipe(sched_args={"warmup_epochs": 7}).resolved().warmup_epochs is None


def test_a_given_warmup_is_kept_or_refused() -> None:
    assert Recipe(num_epochs=4, warmup_epochs=3).scheduler_args()["warmup_epochs"] == 3
    with refused(ValueError, "warmup to be no longer than the run, 2 epochs", "got 3 epochs", "Lower warmup_epochs"):
        Recipe(num_epochs=2, warmup_epochs=3)
    with refused(ValueError, "warmup to be no longer than the run, 2 epochs", "Lower warmup_epochs"):
        named_recipe("a1").recipe(num_epochs=2, warmup_epochs=5)


def test_a_named_recipe_with_faults_tells_of_no_warm_up(capsys: pytest.CaptureFixture[str]) -> None:
    with refused(ValueError, "opt to be a name"):
        named_recipe("a3").recipe(num_epochs=2, opt="adamv")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("num_epochs", [1, 2, 3])
@pytest.mark.parametrize("name", recipe_names())
def test_every_named_recipe_has_a_schedule_for_one_to_three_epochs(
    name: str, num_epochs: int, capsys: pytest.CaptureFixture[str]
) -> None:
    typed = parse_recipe(["--recipe", name, "--num_epochs", str(num_epochs)])
    own = named_recipe(name).options.get("warmup_epochs")
    said = capsys.readouterr().out
    assert typed == named_recipe(name).recipe(num_epochs=num_epochs)
    share = typed.scheduler_args().get("warmup_fraction")
    assert typed.resolved().warmup_epochs == (num_epochs // 2 if share is None else None)
    assert (f"The warm-up of the recipe {name} is {num_epochs // 2} instead of {own} epochs" in said) is (
        own not in (None, num_epochs // 2)
    )
    scaling = (typed.batch_size / (typed.base_batch_size or typed.batch_size)) ** (1 if name == "deit_small" else 0.5)
    rates = simulate_schedule(typed, updates_per_epoch=4).learning_rates
    assert rates.shape == (4 * num_epochs, 1)
    warms_up = num_epochs > 1 if share is None else round(share * 4 * num_epochs) > 0
    assert rates[0] == pytest.approx(typed.warmup_lr if warms_up else typed.lr * scaling)
    assert rates.max() <= typed.lr * scaling + 1e-12
    assert rates.min() >= min(typed.min_lr, typed.warmup_lr)


def test_a_typed_warmup_is_kept_or_refused(tmp_path: Path) -> None:
    assert parse_recipe(["--num_epochs", "2"]).resolved().warmup_epochs == 1
    assert parse_recipe(["--recipe", "a1", "--num_epochs", "6", "--warmup_epochs", "5"]).warmup_epochs == 5
    (tmp_path / "mine.yaml").write_text("recipe: a3\nwarmup_epochs: 4\n")
    for typed in (["--warmup_epochs=3"], ["--recipe", "a1", "--warmup_epochs", "5"],
                  ["--config", str(tmp_path / "mine.yaml")]):  # fmt: skip
        with refused(ValueError, "warmup to be no longer than the run, 2 epochs", "Lower warmup_epochs"):
            parse_recipe(["--num_epochs", "2", *typed])


def test_the_warmup_of_the_run_is_in_its_folder_and_it_may_resume_longer(image_folder: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"data_dir": str(image_folder), "run_dir": str(tmp_path), "model": "test_resnet",
                               "image_size": 32, "batch_size": 4, "num_workers": 0, "ema_decay": 0.0}  # fmt: skip
    run = build_run(Recipe(num_epochs=2, **options))
    updates = run.train().num_updates
    written = yaml.safe_load((tmp_path / "recipe.yaml").read_text())
    assert written["warmup_epochs"] == run.trainer.scheduler_args["warmup_epochs"] == 1
    longer = build_run(Recipe(num_epochs=4, resume="auto", **options))
    assert longer.trainer.scheduler_args["warmup_epochs"] == 2
    assert longer.train().num_updates == 2 * updates
    assert build_run(Recipe(**written | {"num_epochs": 5, "resume": "auto"})).train().num_updates == 2.5 * updates


@pytest.fixture
def short_run(image_folder: Path, tmp_path: Path) -> Callable[..., Run]:
    """Builds a run of the recipe a2 from what is typed, on 19 images."""
    options = {"data_dir": image_folder, "run_dir": tmp_path, "model": "test_resnet", "image_size": 32,
               "batch_size": 4, "num_workers": 0}  # fmt: skip

    def build(**typed: Any) -> Run:
        given = [f"--{name}={value}" for name, value in (options | typed).items()]
        return build_run(parse_recipe(["--recipe", "a2", *given]))

    return build


@pytest.mark.parametrize(("first", "then", "warmup"), [(1, 2, 1), (2, 4, 2), (3, 10, 5), (12, 5, 2)])
def test_a_named_recipe_with_a_shortened_warmup_may_resume_with_another_length(
    first: int, then: int, warmup: int, short_run: Callable[..., Run]
) -> None:
    with pytest.raises(SystemExit):
        short_run(num_epochs=first, max_minutes=1e-9).train()  # stops after the first update
    resumed = short_run(num_epochs=then, resume="auto")
    assert resumed.recipe.warmup_epochs == resumed.trainer.scheduler_args["warmup_epochs"] == warmup
    assert resumed.train().num_updates == then * (19 // 4)


def test_a_typed_warmup_is_tied_to_the_state_of_a_named_recipe(short_run: Callable[..., Run]) -> None:
    with pytest.raises(SystemExit):
        short_run(num_epochs=12, warmup_epochs=2, max_minutes=1e-9).train()
    with refused(ValueError, "one of another run: recipe.warmup_epochs (2 in the state, 5 now)"):
        short_run(num_epochs=12, resume="auto").train()
    with refused(ValueError, "one of another run: recipe.warmup_epochs (2 in the state, 1 now)"):
        short_run(num_epochs=2, warmup_epochs=1, resume="auto").train()


def test_a_warmup_that_was_typed_is_not_replaced_by_the_default_without_a_word(
    image_folder: Path, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"data_dir": str(image_folder), "run_dir": str(tmp_path), "model": "test_resnet",
                               "image_size": 32, "batch_size": 4, "num_workers": 0, "num_epochs": 4}  # fmt: skip
    with pytest.raises(SystemExit):
        build_run(Recipe(warmup_epochs=1, max_minutes=1e-9, **options)).train()
    with refused(ValueError, "one of another run: recipe.warmup_epochs (1 in the state, 2 now)"):
        build_run(Recipe(resume="auto", **options)).train()
    assert build_run(Recipe(resume="auto", warmup_epochs=1, **options)).train().num_updates == 4 * (19 // 4)


def test_a_warmup_may_be_given_in_updates_or_as_a_fraction() -> None:
    for given in ({"warmup_updates": 7, "step_on_epochs": False}, {"warmup_fraction": 0.25}):
        args = Recipe(num_epochs=2, sched_args=given).scheduler_args()
        assert "warmup_epochs" not in args
        assert args.items() >= given.items()
        check_fits(args, num_epochs=4, updates_per_epoch=10)


def test_a_start_that_failed_leaves_no_recipe_for_the_next(image_folder: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"data_dir": str(image_folder), "run_dir": str(tmp_path), "model": "test_resnet",
                               "image_size": 32, "num_epochs": 1, "warmup_epochs": 0, "num_workers": 0,
                               "ema_decay": 0.0}  # fmt: skip
    with pytest.raises(ValueError, match="last batch to be even"):
        build_run(Recipe(batch_size=64, **options)).train()
    build_run(Recipe(batch_size=4, **options)).train()
    assert yaml.safe_load((tmp_path / "recipe.yaml").read_text())["batch_size"] == 4


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_is_named_on_the_command_line(name: str) -> None:
    recipe = parse_recipe(["--recipe", name, "--data_dir", "x", "--lr", "0.001"])
    assert recipe.diff(named_recipe(name).recipe(data_dir="x", lr=0.001)) == {}


@pytest.mark.parametrize(
    ("written", "weights"),
    [("auto", "auto"), ("[1, 2.5]", [1.0, 2.5]), ("{cat: 2.5}", {"cat": 2.5}), ("null", None)],
)
def test_weights_of_classes_are_read_from_the_command_line(written: str, weights: Any) -> None:
    recipe = parse_recipe(["--data_dir", "x", "--class_weights", written, "--pos_weights", written])
    assert (recipe.class_weights, recipe.pos_weights) == (weights, weights)


def test_a_recipe_may_be_named_in_the_file_of_options(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("recipe: a3\ndata_dir: x\nlr: 0.001\n")
    recipe = parse_recipe(["--config", str(tmp_path / "mine.yaml"), "--batch_size", "64"])
    assert (recipe.opt, recipe.image_size, recipe.lr, recipe.batch_size) == ("lamb", 160, 0.001, 64)


def test_two_recipes_differ_where_they_differ() -> None:
    a2, a3 = (named_recipe(name).recipe() for name in ("a2", "a3"))
    assert a2.diff(a2) == {}
    assert a2.diff(a3) == {
        "image_size": (224, 160),
        "eval_image_size": (None, 224),
        "num_epochs": (300, 100),
        "lr": (5e-3, 8e-3),
        "drop_path_rate": (0.05, 0.0),
        "auto_augment": ("rand-m7-mstd0.5-inc1", "rand-m6-mstd0.5-inc1"),
        "num_repeats": (3, 1),
    }


def test_all_faults_are_listed_at_once() -> None:
    with refused(ValueError, "without faults, but got 3", "(1) Expected opt", "'adamw'", "(2) Expected lr to be",
                 "(3) Expected hflip to be between 0 and 1"):  # fmt: skip
        Recipe(opt="adamww", lr=-1, hflip=2)
    with refused(ValueError, "but got 3", "(1) Expected model to be a name of timm", "(2) Expected lr to be",
                 "(3) Expected auto_augment to begin with"):  # fmt: skip
        Recipe(model="resnt50", lr=-1, auto_augment="rnd-m7")
    with refused(ValueError, "but got 6", "batch_size to be even", "warmup to be no longer than the run, 2 epochs",
                 "opt_args to be options", "pretrained or weights", "draft or cache",
                 "loss to be one of ce, bce, asl with class_weights"):  # fmt: skip
        Recipe(
            batch_size=3,
            num_epochs=2,
            warmup_epochs=3,
            opt_args={"momentun": 0.9},
            pretrained=True,
            weights="x.pth",
            draft=True,
            cache="memory",
            loss="poly",
            class_weights="auto",
        )


def test_a_contradiction_is_named_beside_a_wrong_value_of_another_option() -> None:
    with refused(ValueError, "but got 2", "(1) Expected hflip", "(2) Expected pretrained or weights"):
        Recipe(hflip=2, pretrained=True, weights="x")
    with refused(ValueError, "Expected warmup_epochs to be an integer of at least 0, but got 'many'"):
        Recipe(warmup_epochs="many")  # alone: the schedule that it is part of is not looked at
    with refused(ValueError, "but got 3", "sched_args", "'cycle_limt'", "sched_args", "'warmup'", "cooldown", "got 99"):
        Recipe(sched_args={"cycle_limt": 1, "warmup": 1, "cooldown_epochs": 99})
    with refused(ValueError, "but got 3", "cycle_limit", "cycle_mul", "step_on_epochs to be True"):
        Recipe(sched="plateau", sched_args={"cycle_limit": 0, "cycle_mul": "two", "step_on_epochs": False})


def test_an_optimizer_that_cannot_run_here_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with refused(ValueError, "but got 2", "(1) Expected lr", "(2) Expected opt to be an optimizer that runs here",
                 "'fusedadam'", "needs a CUDA GPU"):  # fmt: skip
        Recipe(opt="fusedadam", lr=-1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with refused(ValueError, "'bitsandbytes' to be installed"):
        Recipe(opt="bnbadam8bit")


def test_lengths_in_updates_are_left_to_the_start_of_training() -> None:
    recipe = Recipe(num_epochs=2, sched_args={"warmup_updates": 20, "step_on_epochs": False})
    check_fits(recipe.scheduler_args(), num_epochs=2, updates_per_epoch=10)
    with refused(ValueError, "warmup to be no longer than the run, 2 epochs", "got 4 epochs"):
        check_fits(recipe.scheduler_args(), num_epochs=2, updates_per_epoch=5)
    with refused(ValueError, "schedule to end within the run, 2 epochs", "leave 0,"):
        Recipe(num_epochs=2, sched_args={"warmup_fraction": 0.5, "cooldown_fraction": 0.5, "warmup_prefix": True,
                                         "step_on_epochs": False})  # fmt: skip


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"loss": "bec"}, ("loss to be one of bce, ce", "got 'bec'")),
        ({"re_mode": "noise"}, ("re_mode to be one of const, rand, pixel", "got 'noise'")),
        ({"cache": "disk"}, ("cache to be one of memory", "got 'disk'")),
        ({"head": "mpl"}, ("head to be one of linear, mlp", "'mlp'")),
        ({"data_dir": Path("x")}, ("data_dir to be str | None", "got PosixPath('x')", "default is None")),
        ({"model": 50}, ("model to be a name of timm", "got 50", "default is 'resnet50d'")),
        ({"auto_augment": 7}, ("auto_augment to be an augmentation policy of timm", "got 7")),
        ({"pretrained": "yes"}, ("pretrained to be bool", "got 'yes'", "default is False")),
        ({"seed": 1.5}, ("seed to be int", "got 1.5", "default is 42")),
        ({"num_epochs": True}, ("num_epochs to be an integer of at least 1", "got True")),
        ({"freeze_epochs": 0.5}, ("freeze_epochs to be an integer of at least 0", "got 0.5")),
        ({"eval_image_size": 0}, ("eval_image_size to be an integer of at least 1", "got 0")),
        ({"lr": True}, ("lr to be positive", "got True")),
        ({"hflip": -0.1}, ("hflip to be between 0 and 1", "got -0.1")),
        ({"layer_decay": 0}, ("layer_decay to be above 0 and up to 1", "got 0")),
        ({"smoothing": -0.1}, ("smoothing to be from 0 to below 1", "got -0.1")),
        ({"opt": 3}, ("opt to be a name that timm knows", "got 3")),
        ({"head": None}, ("head to be one of linear, mlp", "got None")),
        ({"lr_scaling": "root"}, ("lr_scaling to be one of linear, sqrt", "got 'root'")),
        ({"scale": (0.1, 0.5, 1.0)}, ("scale to be two rising shares of up to 1", "got (0.1, 0.5, 1.0)")),
        ({"scale": (0.1, "all")}, ("scale to be two rising shares", "got (0.1, 'all')")),
        ({"scale": [0.5]}, ("scale to be two rising shares", "got [0.5]")),
        ({"scale": (0.5, 1.1)}, ("scale to be two rising shares", "got (0.5, 1.1)")),
        ({"scale": (0, 1)}, ("scale to be two rising shares", "got (0, 1)")),
        ({"ratio": (0, 1)}, ("ratio to be two rising, positive numbers", "got (0, 1)")),
        ({"ratio": (2.0, 1.0)}, ("ratio to be two rising, positive numbers", "got (2.0, 1.0)")),
        ({"resolutions": (8, 9.5)}, ("resolutions to be two sizes or more", "got (8, 9.5)")),
        ({"resolutions": (0, 8)}, ("resolutions to be two sizes or more", "got (0, 8)")),
        ({"model_args": {3: 1}}, ("model_args to be values by the names of arguments", "got {3: 1}")),
        ({"class_weights": {"cat": "much"}}, ("class_weights to be auto", "got {'cat': 'much'}", "default is None")),
        ({"class_weights": {1: 1.0}}, ("class_weights to be auto", "got {1: 1.0}")),
        ({"class_weights": ["much"]}, ("class_weights to be auto", "got ['much']")),
        ({"class_weights": []}, ("class_weights to be auto", "got []")),
        ({"crop_pct": 1.5}, ("crop_pct", "above 0 and up to 1", "got 1.5")),
        ({"resolutions": (8,)}, ("resolutions", "two sizes or more", "got (8,)")),
        ({"freeze_epochs": 50}, ("freeze_epochs to be at most num_epochs, 40", "got 50")),
        ({"resolutions": (8, 16), "gradient_accumulation_steps": 2}, ("gradient_accumulation_steps to be 1", "got 2")),
        ({"resolutions": (8, 16), "draft": True}, ("draft or resolutions", "got both")),
        ({"auto_augment": "rnd-m7"}, ("auto_augment to begin with", "got 'rnd-m7'")),
        ({"layer_decay": 1.5}, ("layer_decay to be above 0 and up to 1", "got 1.5")),
        ({"layer_decay_min_scale": -1}, ("layer_decay_min_scale to be between 0 and 1", "got -1")),
        ({"bce_target_thresh": 1}, ("bce_target_thresh to be from 0 to below 1", "got 1")),
        ({"scheduler_metric": ""}, ("scheduler_metric to be the name of a metric", "got ''")),
        ({"class_weights": "equal"}, ("class_weights to be auto, positive numbers", "got 'equal'")),
        ({"class_weights": [1, -1]}, ("class_weights to be auto, positive numbers", "got [1, -1]")),
        ({"pos_weights": {"cat": 0}}, ("pos_weights to be auto, positive numbers", "got {'cat': 0}")),
        ({"loss": "ce", "pos_weights": "auto"}, ("loss to be one of bce, asl with pos_weights", "got 'ce'")),
        ({"loss": "zlpr", "cutmix": 0, "smoothing": 0}, ("mixup to be 0 with the loss 'zlpr'", "got 0.2")),
        ({"loss": "twoway", "mixup": 0, "cutmix": 0}, ("smoothing to be 0 with the loss 'twoway'", "got 0.1")),
        ({"distill_kind": "logits"}, ("distill_kind to be one of logit, token, feature", "'logit'")),
        ({"distill_temperature": 0}, ("distill_temperature to be positive", "got 0")),
        ({"on_error": "skp"}, ("on_error to be one of raise, skip", "got 'skp'", "'skip'")),
        ({"drop_last": "no"}, ("drop_last to be bool | None", "got 'no'", "default is None")),
        ({"mixed_precision": "bf6"}, ("mixed_precision to be one of no, fp16, bf16", "got 'bf6'", "mean 'bf16'")),
        ({"torch_compile": "max"}, ("torch_compile to be bool or one of default", "got 'max'", "'max-autotune'")),
        ({"patience": 0}, ("patience to be an integer of at least 1", "got 0")),
        ({"patience": 2, "min_delta": -1}, ("min_delta to be at least 0", "got -1")),
        ({"min_delta": 0.1}, ("patience to be a number of epochs with min_delta", "got None")),
        ({"distill_hard": True}, ("distill_kind to be 'token' with distill_hard", "got 'logit'")),
        ({"opt": "sgd", "opt_args": {"momentm": 0.9}}, ("opt_args to be options", "of 'sgd'", "'momentum'")),
        ({"opt": "lamb", "opt_args": {"fused": True}}, ("opt_args to be options", "of 'lamb'", "got 'fused'")),
        ({"opt": "lookahead_nadam", "opt_args": {"fused": True}}, ("of 'lookahead_nadam'", "got 'fused'")),
        ({"opt_args": {"fused": True, "foreach": True}}, ("opt_args to be options with fused or foreach", "got both")),
        ({"opt_args": {"fused": True, "differentiable": True}}, ("fused or differentiable", "Leave one of them out")),
        ({"opt_args": {"weight_decay": 0.1}}, ("opt_args without 'weight_decay'", "option weight_decay")),
        ({"opt_args": [0.9]}, ("opt_args to be values by the names of arguments", "got [0.9]")),
        ({"sched_args": {"cycle_limt": 1}}, ("sched_args to be arguments of timm's", "'cycle_limit'")),
        ({"sched_args": {"cooldown_epochs": 99}}, ("cooldown to be no longer than the run, 40 epochs", "got 99")),
        ({"sched_args": {"cooldown_epochs": "ten"}}, ("cooldown_epochs to be a number from 0 on", "got 'ten'")),
        ({"sched_args": {"sched": "cosin"}}, ("sched_args['sched']", "'cosine'")),
        ({"sched_args": {"num_epochs": 50}}, ("end within the run, 40 epochs", "sched_args['num_epochs']")),
        ({"sched_args": {"decay_epochs": "ten"}}, ("decay_epochs to be a number", "got 'ten'", "default is None")),
        ({"sched": "plateau", "sched_args": {"step_on_epochs": False}}, ("step_on_epochs to be True", "got False")),
        ({"sched": "constant", "warmup_epochs": 50}, ("warmup to be no longer than the run, 40 epochs", "got 50")),
        ({"sched": "step"}, ("decay_epochs to begin within the run, 40 epochs", "got 90")),
        ({"sched": "multistep", "sched_args": {"decay_milestones": []}}, ("decay_milestones to be a list", "got []")),
    ],
)
def test_a_fault_is_one_sentence(options: dict[str, Any], words: tuple[str, ...]) -> None:
    with refused(ValueError, *words):
        Recipe(**options)
    with pytest.raises(ValueError, match=r"^Expected (?!a recipe without faults)"):
        Recipe(**options)


def test_a_value_of_a_type_that_does_as_well_is_taken() -> None:
    lists = Recipe(scale=[0.5, 1], ratio=[1, 2], resolutions=[8, 16], class_weights=[1, 2], loss="ce", lr=1)
    assert (lists.scale, lists.ratio, lists.resolutions) == ((0.5, 1), (1, 2), (8, 16))  # YAML has lists alone
    assert lists.class_weights == [1, 2]
    assert Recipe(class_weights=(1, 2.5), loss="ce").class_weights == (1, 2.5)
    assert Recipe(bce_target_thresh=None, layer_decay=1, hflip=0, vflip=1, smoothing=0).bce_target_thresh is None
    assert Recipe(opt="AdamW", scale=(1.0, 1.0), opt_args={"betas": (0.9, 0.99)}).opt == "AdamW"


def test_a_state_is_tied_to_all_options_but_where_when_and_how_long() -> None:
    free = {"data_dir", "run_dir", "num_epochs", "batch_size", "gradient_accumulation_steps", "num_workers", "resume",
            "cache", "save_every_n_epochs", "save_every_n_updates", "save_every_minutes", "keep_states",
            "keep_states_when_done",
            "max_minutes", "on_error", "patience", "min_delta", "mixed_precision", "torch_compile", "data_root",
            "download", "trackers", "evaluate_every_n_epochs", "train_accuracy", "data_identity", "fast"}  # fmt: skip
    key = Recipe(hflip=0.25, resolutions=(8, 16), warmup_epochs=2).resume_key()
    assert key["warmup_epochs"] == 2
    assert Recipe(num_epochs=2).resume_key()["warmup_epochs"] == {FOLLOWS_RUN: 1}
    assert key.keys() == Recipe.__annotations__.keys() - free
    assert (key["hflip"], key["ema_decay"], key["resolutions"]) == (0.25, None, (8, 16))
    assert key["channels_last"] is False  # as None is; states of earlier versions have it


def test_unknown_names_suggest_the_nearest() -> None:
    with refused(ValueError, "the name of a recipe", "got 'a33'", "'a3'"):
        named_recipe("a33")
    with refused(ValueError, "options of Recipe", "got 'num_epoch'", "'num_epochs'"):
        named_recipe("a3").recipe(num_epoch=3)
    with refused(ValueError, "but got 2", "got 'num_epoch'", "'num_epochs'", "got 'batch'", "'batch_size'"):
        named_recipe("a3").recipe(num_epoch=3, batch=8)


@pytest.mark.parametrize("option", ["mixed_precision: no", "opt: on", "model: yes", "data_dir: off"])
def test_a_bare_word_that_is_a_boolean_in_yaml_is_explained(option: str, tmp_path: Path) -> None:
    name, word = option.split(": ")
    (tmp_path / "mine.yaml").write_text(option)
    got = str(yaml.safe_load(word))
    with refused(ValueError, f"Expected {name} to be", f"got {got!r}", "Put yes, no, on and off in quotes"):
        parse_recipe(["--config", str(tmp_path / "mine.yaml")])
    (tmp_path / "mine.yaml").write_text(f"{name}: '{word}'")
    if name == "mixed_precision":
        assert parse_recipe(["--config", str(tmp_path / "mine.yaml")]).mixed_precision == "no"


@pytest.mark.parametrize(
    ("content", "got"),
    [
        (b"", "an empty file"),
        (b"\n# nothing\n", "an empty file"),
        (b"[1, 2]", "a list"),
        (b"word", "a text"),
        (b"\xff\xfe", "codec can't decode"),
        (b"42", "a number"),
        (b"root:x:0:secret\n", "a text"),
        (b"root:x:0:secret:\n", "a name that is none of an option"),
        (b"root:x: secret\nb: c: secret", "line 2, column 5"),
        (b"[secret\n", "another file, by its line"),
    ],
)
def test_a_config_file_without_options_is_refused(content: bytes, got: str, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_bytes(content)
    with refused(ValueError, "Expected the file of --config to be YAML", "name: value", got, "--help") as caught:
        parse_recipe(["--config", str(tmp_path / "mine.yaml")])
    assert "secret" not in str(caught.value)
    assert caught.value.__suppress_context__  # it has the content of the file, which may be any
