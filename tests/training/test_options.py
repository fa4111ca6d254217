"""The options of a trainer show themselves, and a misspelled one is named."""

import inspect
import pydoc
from typing import Any

import pytest
import torch
from refusal import refused
from tiny_runs import fit, make_trainer, tiny_data

from timm_accel import LoopTrainer, TimmMixupTrainer, TimmTrainer, mixins
from timm_accel.mixins import GradientClippingMixin, LookaheadMixin, ModelEmaMixin
from timm_accel.upstream import Trainer

MIXINS = [getattr(mixins, name) for name in mixins.__all__]
KEYWORD_ONLY = inspect.Parameter.KEYWORD_ONLY


def own_options(kind: type) -> dict[str, inspect.Parameter]:
    if "__init__" not in vars(kind):
        return {}
    parameters = inspect.signature(vars(kind)["__init__"]).parameters
    return {name: each for name, each in parameters.items() if each.kind is KEYWORD_ONLY}


@pytest.mark.parametrize("trainer", [TimmTrainer, TimmMixupTrainer])
def test_the_signature_lists_every_option_of_every_mixin_with_type_and_default(trainer: type) -> None:
    shown = inspect.signature(trainer).parameters
    assert list(shown)[:5] == ["model", "loss_func", "optimizer", "callbacks", "run_history"]
    options = {name: each for kind in [*MIXINS, LoopTrainer] if kind in trainer.__mro__ for name, each in
               own_options(kind).items()}  # fmt: skip
    assert len(options) > 20
    for name, option in options.items():
        assert (shown[name].default, shown[name].annotation) == (option.default, option.annotation), name
    assert not any(each.kind in (each.VAR_KEYWORD, each.VAR_POSITIONAL) for each in shown.values())


@pytest.mark.parametrize("mixin", MIXINS)
def test_a_mixin_alone_shows_its_options_and_those_of_the_loop(mixin: type) -> None:
    assert set(inspect.signature(mixin).parameters) == {
        *inspect.signature(LoopTrainer).parameters,
        *own_options(mixin),
    }


def test_help_shows_the_options() -> None:
    text = pydoc.plain(pydoc.render_doc(TimmMixupTrainer))
    header = text[: text.index("Method resolution order")]
    for option in ("ema_decay: float | None = None", "clip_grad:", "dist_bn:", "seed: int = 42"):
        assert option in header


def test_a_composed_trainer_shows_the_options_of_its_own_mixins_and_no_others() -> None:
    class Lean(ModelEmaMixin, LookaheadMixin):
        """Two techniques."""

    shown = inspect.signature(Lean).parameters
    assert shown["ema_decay"].default is None
    assert "clip_grad" not in shown


def test_options_of_a_users_class_are_shown_where_its_init_passes_on_the_rest() -> None:
    class Passes(GradientClippingMixin):
        def __init__(self, strength: float, *args: Any, clip_mode: str = "agc", **kwargs: Any) -> None:
            super().__init__(*args, clip_mode=clip_mode, **kwargs)

    shown = inspect.signature(Passes).parameters
    assert list(shown)[:2] == ["strength", "model"]
    assert shown["clip_mode"].default == "agc"  # what the user's class says, not the mixin
    assert shown["clip_grad"].default is None

    class Keywords(LoopTrainer):
        def __init__(self, strength: float = 1.0, **kwargs: Any) -> None:
            super().__init__(**kwargs)

    shown = inspect.signature(Keywords).parameters
    assert shown["model"].kind is KEYWORD_ONLY  # nothing but strength can be given by position

    class Closed(ModelEmaMixin):
        def __init__(self, model: Any) -> None:
            super().__init__(model, torch.nn.CrossEntropyLoss(), torch.optim.SGD(model.parameters()))

    assert list(inspect.signature(Closed).parameters) == ["model"]


def test_a_positional_option_with_a_default_before_the_model_still_gives_a_signature() -> None:
    class Before(LoopTrainer):
        def __init__(self, name: str = "run", *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)

    shown = inspect.signature(Before).parameters
    assert next(iter(shown)) == "name"
    assert shown["model"].kind is KEYWORD_ONLY


@pytest.mark.parametrize(
    ("trainer", "misspelled", "nearest"),
    [
        (TimmMixupTrainer, "ema_deacy", "'ema_decay'"),
        (TimmTrainer, "clip_gard", "'clip_grad'"),
        (LoopTrainer, "run_folder", "'run_dir'"),
        (TimmTrainer, "num_clases", "'num_classes'"),
    ],
)
def test_a_misspelled_option_is_one_sentence_with_the_nearest_name(
    trainer: type, misspelled: str, nearest: str
) -> None:
    with refused(TypeError, f"options of {trainer.__name__}", repr(misspelled), nearest):
        make_trainer(trainer, **{misspelled: 1})


def test_an_option_of_a_mixin_that_is_not_there_is_refused() -> None:
    class Lean(LookaheadMixin):
        """One technique."""

    with refused(TypeError, "options of Lean", "'ema_decay'"):
        make_trainer(Lean, ema_decay=0.5)


@pytest.mark.parametrize(
    ("misspelled", "nearest"),
    [
        ("per_device_batchsize", "'per_device_batch_size'"),
        ("resume", "'resume_from'"),
        ("batch_size", "'per_device_batch_size'"),
    ],
)
def test_a_misspelled_option_of_train_is_named_too(misspelled: str, nearest: str) -> None:
    with refused(TypeError, "options of train()", repr(misspelled), nearest):
        fit(make_trainer(), **{misspelled: 1})


@pytest.mark.parametrize("misspelled", ["num_epoch", "epochs", "n_epochs"])
def test_a_misspelled_number_of_epochs_is_named_although_the_right_one_is_missing(misspelled: str) -> None:
    with refused(TypeError, "options of train()", repr(misspelled), "'num_epochs'"):
        make_trainer().train(tiny_data(), **{misspelled: 2})


@pytest.mark.parametrize(
    ("option", "remedy"),
    [
        ("drop_last", "option of the loader. Pass it as {'drop_last': …} in train_dataloader_kwargs"),
        ("num_workers", "option of the loader. Pass it as {'num_workers': …} in train_dataloader_kwargs"),
        ("seed", "option of ModelEmaMixin(). Pass it there"),
        ("ema_decay", "option of ModelEmaMixin(). Pass it there"),
    ],
)
def test_an_option_of_the_loader_or_the_trainer_that_train_gets_is_told_where_it_belongs(
    option: str, remedy: str
) -> None:
    with refused(TypeError, "options of train()", repr(option), remedy):
        fit(make_trainer(ModelEmaMixin), **{option: 0})


def test_a_wrong_option_of_evaluate_is_named_too() -> None:
    with refused(TypeError, "options of evaluate()", "'per_device_batchsize'", "'per_device_batch_size'"):
        make_trainer().evaluate(tiny_data(), per_device_batchsize=2)
    with refused(TypeError, "options of evaluate()", "'shuffle'", "Pass it as {'shuffle': …} in dataloader_kwargs"):
        make_trainer().evaluate(tiny_data(), shuffle=True)


@pytest.mark.parametrize(
    ("by_position", "named"),
    [
        ((0,), "per_device_batch_size"),
        ((2.5,), "per_device_batch_size"),
        ((4, 0), "max_num_train_steps"),
        ((4, None, 0), "gradient_accumulation_steps"),
    ],
)
def test_an_argument_by_position_is_checked_as_one_by_name(by_position: tuple[Any, ...], named: str) -> None:
    with refused(ValueError, f"Expected {named} to be an integer of at least 1", f"got {by_position[-1]}"):
        make_trainer().train(tiny_data(), 1, None, *by_position)
    trainer = make_trainer()
    trainer.train(tiny_data(), 1, None, 4, None, 2, train_dataloader_kwargs={"num_workers": 0})
    assert trainer.num_updates == 2  # 16 images, 4 at a time, 2 times


@pytest.mark.parametrize("method", ["__init__", "train", "evaluate", "calculate_train_batch_loss"])
@pytest.mark.parametrize("trainer", [TimmMixupTrainer, TimmTrainer, LoopTrainer])
def test_help_on_a_method_is_ours_where_upstreams_text_would_be_wrong(trainer: type, method: str) -> None:
    shown = inspect.getdoc(getattr(trainer, method))
    assert shown == inspect.cleandoc(vars(LoopTrainer)[method].__doc__)
    assert shown != inspect.getdoc(getattr(Trainer, method))
    assert ":param" not in shown
