"""What is wrong with a recipe: each option by itself, and what does not go together; all of it at once."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, get_args

from timm.optim import list_optimizers

from timm_accel.data.transforms.create import check_policy
from timm_accel.data.transforms.device_transform import ERASING_MODES
from timm_accel.messages import nearest
from timm_accel.mixins.gradient_clipping import CLIP_MODES
from timm_accel.models import check_model_name
from timm_accel.recipes.contradictions import CONTRADICTIONS
from timm_accel.schedules.arguments import SCHEDULERS

if TYPE_CHECKING:
    from timm_accel.recipes.recipe import Recipe


def check_recipe(recipe: "Recipe") -> None:
    """Raise when a recipe has faults, and name all of them.

    Whether options contradict each other is asked where each of them is right by itself.

    Args:
        recipe: The recipe.

    Raises:
        ValueError: It has faults.
    """
    wrong = dict(_wrong_names(recipe)) | dict(_wrong_values(recipe))
    asked = [rule for options, rule in CONTRADICTIONS.items() if not wrong.keys() & set(options)]
    raise_faults([*wrong.values(), *(fault for rule in asked for fault in rule(recipe))])


def raise_faults(faults: Sequence[str]) -> None:
    """Raise a `ValueError` that lists the faults of a recipe, if there are any.

    Args:
        faults: A sentence on each.
    """
    if len(faults) == 1:
        raise ValueError(faults[0])
    if faults:
        listed = " ".join(f"({number}) {fault}" for number, fault in enumerate(faults, 1))
        raise ValueError(f"Expected a recipe without faults, but got {len(faults)}: {listed}")


def _wrong_names(recipe: "Recipe") -> Iterator[tuple[str, str]]:
    checks: dict[str, Callable[[Any], None]] = {"model": check_model_name}
    if recipe.auto_augment is not None:
        checks["auto_augment"] = check_policy
    for name, check in checks.items():
        try:
            check(getattr(recipe, name))
        except ValueError as error:
            yield name, str(error)
    for name, words in _known_names(recipe).items():
        value = getattr(recipe, name)
        if (value.lower() if name == "opt" and isinstance(value, str) else value) not in words:
            names = [word for word in words if word is not None]
            which = "a name that timm knows" if name in ("opt", "sched", "clip_mode") else f"one of {', '.join(names)}"
            yield name, f"Expected {name} to be {which}, but got {value!r}. {nearest(str(value), names)}"


def _known_names(recipe: "Recipe") -> dict[str, Iterable[Any]]:
    optimizers = list_optimizers()
    annotations = type(recipe).__annotations__
    return {
        "opt": [*optimizers, *(f"lookahead_{name}" for name in optimizers)],
        "sched": SCHEDULERS,
        "clip_mode": CLIP_MODES,
        **{name: get_args(annotations[name]) for name in ("head", "loss", "distill_kind")},
        "re_mode": ERASING_MODES,
        "lr_scaling": ("linear", "sqrt", None),
        "cache": ("memory", None),
    }


def _wrong_values(recipe: "Recipe") -> Iterator[tuple[str, str]]:
    for names, condition, words in _CONDITIONS:
        for name in names.split():
            value = getattr(recipe, name)
            try:
                right = condition(value)
            except (TypeError, IndexError):  # a value of another kind
                right = False
            if not right:
                default = getattr(type(recipe), name)
                yield name, f"Expected {name} to be {words}, but got {value!r}. The default is {default!r}."


def _are_weights(value: Any) -> bool:
    if value is None or value == "auto":
        return True
    numbers = value.values() if isinstance(value, dict) else value
    return len(value) > 0 and all(isinstance(number, int | float) and number > 0 for number in numbers)


_CONDITIONS: list[tuple[str, Callable[[Any], bool], str]] = [
    (
        "image_size num_epochs batch_size gradient_accumulation_steps num_repeats save_every_n_epochs keep_states",
        lambda value: isinstance(value, int) and value >= 1,
        "a whole number of at least 1",
    ),
    ("save_every_n_updates eval_image_size base_batch_size", lambda value: value is None or value >= 1, "at least 1"),
    ("lr clip_grad save_every_minutes max_minutes", lambda value: value is None or value > 0, "positive"),
    ("distill_temperature", lambda value: value > 0, "positive"),
    ("weight_decay min_lr warmup_lr warmup_epochs mixup cutmix freeze_epochs", lambda value: value >= 0, "at least 0"),
    ("mixup_off_epoch num_workers", lambda value: value is None or value >= 0, "at least 0"),
    ("color_jitter hflip vflip re_prob", lambda value: 0 <= value <= 1, "between 0 and 1"),
    ("layer_decay_min_scale distill_alpha", lambda value: 0 <= value <= 1, "between 0 and 1"),
    ("layer_decay crop_pct", lambda value: value is None or 0 < value <= 1, "above 0 and up to 1"),
    ("smoothing drop_path_rate ema_decay", lambda value: 0 <= value < 1, "from 0 to below 1"),
    ("bce_target_thresh", lambda value: value is None or 0 <= value < 1, "from 0 to below 1"),
    ("scale", lambda value: 0 < value[0] <= value[1] <= 1, "two rising shares of up to 1"),
    ("ratio", lambda value: 0 < value[0] <= value[1], "two rising, positive numbers"),
    ("resolutions", lambda value: value is None or (len(value) >= 2 and min(value) >= 1), "two sizes or more"),
    ("class_weights pos_weights", _are_weights, "auto, positive numbers, or positive numbers by the names of classes"),
    (
        "model_args opt_args sched_args",
        lambda value: isinstance(value, dict | None),
        "values by the names of arguments",
    ),
    ("scheduler_metric", lambda value: isinstance(value, str) and value != "", "the name of a metric"),
]
"""Options, what is true of their values, and how that is said."""
