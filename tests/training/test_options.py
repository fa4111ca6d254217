"""The options of a trainer show themselves, and a misspelled one is named."""

import inspect
import pydoc
from typing import Any

import pytest
import torch
from refusal import refused
from tiny_runs import fit, make_trainer

from timm_accel import LoopTrainer, TimmMixupTrainer, TimmTrainer, mixins
from timm_accel.mixins import GradientClippingMixin, LookaheadMixin, ModelEmaMixin

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
    ("misspelled", "nearest"), [("per_device_batchsize", "'per_device_batch_size'"), ("resume", "'resume_from'")]
)
def test_a_misspelled_option_of_train_is_named_too(misspelled: str, nearest: str) -> None:
    with refused(TypeError, "options of train()", repr(misspelled), nearest):
        fit(make_trainer(), **{misspelled: 1})
