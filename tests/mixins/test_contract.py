"""The rules that every mixin keeps, over all of them."""

import ast
import inspect
import random
from functools import cache
from itertools import combinations
from pathlib import Path

import pytest
import torch
from timm.loss import SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2
from tiny_runs import fit, make_trainer, same_weights, tiny_data, tiny_model

import timm_accel.mixins as mixins
from timm_accel import LoopTrainer, TimmMixupTrainer, TimmTrainer
from timm_accel.upstream import Trainer

MIXINS = [getattr(mixins, name) for name in mixins.__all__]
# overrides that replace what they override, as their class docstrings say
REPLACING = {
    ("EvalLossMixin", "evaluation_loss"),
    ("TimmSchedulerMixin", "scheduler_step"),
    ("TimmSchedulerMixin", "create_scheduler"),
}
OPTIONS = {
    "MixupMixin": {"mixup_args": {"num_classes": 3, "cutmix_alpha": 1.0}},
    "ModelEmaMixin": {"ema_decay": 0.5},
    "TimmSchedulerMixin": {"scheduler_args": {"sched": "cosine", "warmup_epochs": 1, "step_on_epochs": False}},
    "EvalLossMixin": {"eval_loss_fn": torch.nn.CrossEntropyLoss()},
    "ClassificationMetricsMixin": {"num_classes": 3},
    "GradientClippingMixin": {"clip_grad": 0.1},
}


@cache
def class_source(mixin: type) -> ast.ClassDef:
    (node,) = ast.parse(inspect.getsource(mixin)).body
    assert isinstance(node, ast.ClassDef)
    return node


def methods(mixin: type) -> list[ast.FunctionDef]:
    return [node for node in class_source(mixin).body if isinstance(node, ast.FunctionDef)]


@pytest.mark.parametrize("mixin", MIXINS)
def test_a_mixin_subclasses_the_loop_trainer_alone(mixin: type) -> None:
    assert mixin.__bases__ == (LoopTrainer,)


@pytest.mark.parametrize("mixin", MIXINS)
@pytest.mark.parametrize("first", [LoopTrainer, Trainer])
def test_a_trainer_before_a_mixin_is_a_type_error(mixin: type, first: type) -> None:
    with pytest.raises(TypeError, match="consistent method resolution"):
        type("Wrong", (first, mixin), {})


@pytest.mark.parametrize("mixin", MIXINS)
def test_options_are_keyword_only_and_super_comes_after_they_are_stored(mixin: type) -> None:
    if "__init__" not in vars(mixin):
        return
    kinds = {p.kind for p in list(inspect.signature(mixin.__init__).parameters.values())[1:]}
    assert kinds == {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.VAR_KEYWORD}


@pytest.mark.parametrize("mixin", MIXINS)
def test_every_override_calls_super_exactly_once(mixin: type) -> None:
    checked = 0
    for method in methods(mixin):
        if not hasattr(LoopTrainer, method.name) or (mixin.__name__, method.name) in REPLACING:
            continue
        calls = [
            node
            for node in ast.walk(method)
            if isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Call)
            and getattr(node.value.func, "id", None) == "super"
        ]
        assert [call.attr for call in calls] == [method.name], method.name
        checked += 1
    assert checked


@cache
def private_of_upstream() -> set[str]:
    source = inspect.getsource(Trainer)
    names = {node.attr for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Attribute)}
    return {name for name in names if name.startswith("_") and not name.startswith("__")}


@pytest.mark.parametrize("mixin", MIXINS)
def test_no_mixin_touches_what_is_private_to_upstream_or_the_loop(mixin: type) -> None:
    private = private_of_upstream() | {name for name in dir(LoopTrainer) if name.startswith("_")}
    used = {
        node.attr
        for node in ast.walk(class_source(mixin))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self"
    }
    assert not {name for name in used & private if not name.startswith("__")}


def test_no_two_mixins_use_the_same_private_name() -> None:
    @cache
    def private(mixin: type) -> set[str]:
        names = {
            node.attr
            for node in ast.walk(class_source(mixin))
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self"
        }
        return {name for name in names | set(vars(mixin)) if name.startswith("_") and not name.startswith("__")}

    for first, second in combinations(MIXINS, 2):
        assert not private(first) & private(second), (first, second)


def test_no_mixin_imports_another() -> None:
    for path in Path(mixins.__file__).parent.glob("*.py"):
        if path.name != "__init__.py":
            assert "timm_accel.mixins" not in path.read_text()


@pytest.mark.parametrize("mixin", MIXINS)
def test_a_mixin_works_alone(mixin: type) -> None:
    loss = SoftTargetCrossEntropy() if mixin.__name__ == "MixupMixin" else torch.nn.CrossEntropyLoss()
    model = tiny_model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    evaluated = None if mixin.__name__ == "MixupMixin" else tiny_data(5)  # soft targets need EvalLossMixin
    trainer = make_trainer(mixin, model, loss_func=loss, **OPTIONS.get(mixin.__name__, {}))
    fit(trainer, eval_dataset=evaluated)
    assert trainer.num_updates == 8
    assert all(not torch.equal(before[name], tensor) for name, tensor in model.state_dict().items() if "weight" in name)


@pytest.mark.parametrize("mixin", MIXINS)
def test_a_mixin_that_is_not_asked_for_changes_no_bit_of_the_model(mixin: type) -> None:
    options = {"ema_decay": 0.5} if mixin.__name__ == "ModelEmaMixin" else {}
    plain, inert = fit(make_trainer()), fit(make_trainer(mixin, **options))
    assert same_weights(plain.model, inert.model)
    assert plain.run_history._metrics["train_loss_epoch"] == inert.run_history._metrics["train_loss_epoch"]


def composed(order: list[type]) -> LoopTrainer:
    """Train with these mixins in this order; those that are not there take no options."""
    names = {mixin.__name__ for mixin in order}
    options = {key: value for name in names for key, value in OPTIONS.get(name, {}).items()}
    model = tiny_model()
    trainer = make_trainer(
        type("Composed", tuple(order), {}),
        model,
        optimizer=create_optimizer_v2(model, "lookahead_sgd", lr=0.05),
        loss_func=SoftTargetCrossEntropy() if "MixupMixin" in names else torch.nn.CrossEntropyLoss(),
        **options,
    )
    evaluated = "EvalLossMixin" in names or "MixupMixin" not in names
    return fit(trainer, tiny_data(12), tiny_data(7) if evaluated else None)


def test_any_subset_in_any_order_gives_the_same_bits() -> None:
    choose = random.Random(0)
    for _ in range(50):
        subset = choose.sample(MIXINS, choose.randint(2, len(MIXINS)))
        first = composed(sorted(subset, key=lambda mixin: mixin.__name__))
        again = composed(subset)
        assert same_weights(again.model, first.model), subset
        assert again.learning_rate == first.learning_rate
        assert again.run_history._metrics == first.run_history._metrics, subset
        if mixins.ModelEmaMixin in subset:
            assert same_weights(again.ema_model.module, first.ema_model.module), subset


def test_the_ready_made_trainers_are_lists_of_mixins() -> None:
    assert set(TimmTrainer.__bases__) == set(MIXINS) - {mixins.MixupMixin, mixins.ModelEmaMixin}
    assert TimmMixupTrainer.__bases__ == (mixins.MixupMixin, mixins.ModelEmaMixin, TimmTrainer)
    assert not methods(TimmTrainer)
