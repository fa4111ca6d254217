"""Build timm models and try them, also their kinds of pooling; an error names the argument that is wrong."""

from typing import Any

import timm
from torch import nn

from timm_accel.messages import nearest, one_line
from timm_accel.models.heads import Head
from timm_accel.models.trial import REFUSALS, create_on_meta, output_shape

POOLINGS = ("avg", "max", "avgmax", "catavgmax", "fastavg", "fastmax", "token", "map", "prr", "soft")


def check_model_name(name: Any) -> None:
    """Raise a `ValueError` with similar names when timm has no such model, or the model has no such tag."""
    architecture = str(name).split(".")[0]
    known, unknown = timm.list_models(), architecture
    if timm.is_model(architecture):
        try:
            timm.get_pretrained_cfg(name)  # raises for an unknown tag
            return
        except RuntimeError:
            known, unknown = timm.list_pretrained(f"{architecture}.*"), name
    raise ValueError(
        f"Expected model to be a name of timm, but got {name!r}. {nearest(unknown, known)} "
        "timm.list_models() lists all."
    )


def build(name: str, options: dict[str, Any]) -> nn.Module:
    """Create a timm model without weights.

    Args:
        name: A model of ``timm.list_models()``.
        options: Arguments of ``timm.create_model``.

    Raises:
        TypeError: The model lacks an argument.
        ValueError: The model lacks a kind of pooling, or cannot take an image size.
    """
    try:
        return timm.create_model(name, **options)
    except TypeError as error:
        raise TypeError(
            f"Expected arguments that {name} takes, but got {options!r} ({error}). Leave out those that it lacks."
        ) from error
    except REFUSALS as error:
        raise _refusal(name, options, error) from error


def _refusal(name: str, options: dict[str, Any], error: Exception) -> ValueError:
    """Return the error for the argument without which the model can be built."""
    if "global_pool" in options and _can_build(name, options, without="global_pool"):
        return _refusal_of_pooling(name, options, error)
    if "img_size" in options and _can_build(name, options, without="img_size"):
        return _refusal_of_size(name, options["img_size"], error)
    return ValueError(
        f"Expected arguments that {name} can be built with, but got {options!r} ({one_line(error)}). "
        "Leave out some of them."
    )


def _can_build(name: str, options: dict[str, Any], without: str) -> bool:
    others = {key: value for key, value in options.items() if key != without}
    try:
        create_on_meta(name, **others)
    except (TypeError, *REFUSALS):
        return False
    return True


def try_out(model: nn.Module, name: str, options: dict[str, Any], input_size: Any, head: Head) -> None:
    """Try a new model on two black images.

    Args:
        model: The model with its head.
        name: The name of the model.
        options: The arguments that it was built with.
        input_size: ``(C, H, W)`` of an image.
        head: The head as the user asked for it.

    Raises:
        ValueError: The model cannot take such images, or its output is not ``(B, num_classes)``.
    """
    num_classes = options["num_classes"]
    try:
        shape = output_shape(model, input_size)
    except Exception as error:  # any error of the model's layers or of a custom head
        raise _blame(name, options, input_size, head, error) from error
    if num_classes and shape != (2, num_classes):
        if head == "linear":
            raise _refusal_of_pooling(name, options, ValueError(f"2 images give an output of {shape}"))
        raise ValueError(
            f"Expected head to return (B, num_classes), {(2, num_classes)} for 2 images, but got {shape}. Let its last "
            "layer have num_classes outputs."
        )


def _blame(name: str, options: dict[str, Any], input_size: Any, head: Head, error: Exception) -> Exception:
    """Return the error for the head if the model runs without it, otherwise for the pooling or the size."""
    plain: Any = create_on_meta(name, **options)
    try:
        output_shape(plain, input_size)
    except Exception:
        if "global_pool" in options and options["global_pool"] not in pooling_kinds(name):
            return _refusal_of_pooling(name, options, error)
        return _refusal_of_size(name, tuple(input_size[1:]), error)
    width = plain.get_submodule(plain.pretrained_cfg["classifier"]).in_features if head != "linear" else "?"
    return ValueError(
        f"Expected head to take features (B, {width}), but it raised {type(error).__name__} ({one_line(error)}). "
        "Use the first argument as its input width, or leave it out for timm's head."
    )


def _refusal_of_pooling(name: str, options: dict[str, Any], error: Exception) -> ValueError:
    kinds = pooling_kinds(name)
    return ValueError(
        f"Expected global_pool to be one that {name} has, but got {options.get('global_pool')!r} ({one_line(error)}). "
        f"{'It has ' + ', '.join(map(repr, kinds)) + '.' if kinds else 'Leave it out: there is no choice.'}"
    )


def _refusal_of_size(name: str, size: Any, error: Exception) -> ValueError:
    return ValueError(
        f"Expected image_size to be one that {name} can take, but got {size} ({one_line(error)}). "
        f"Its default is {tuple(timm.get_pretrained_cfg(name).input_size[1:])}."
    )


def check_pooling(global_pool: str | None, num_classes: int) -> None:
    """Raise a `ValueError` for a kind of pooling that no family has, or for no pooling before a head."""
    if global_pool == "" and num_classes:
        raise ValueError(
            f"Expected global_pool to be other than '' with num_classes={num_classes}, since a head takes vectors, but "
            "got ''. Pass num_classes=0 for feature maps."
        )
    if global_pool and global_pool not in (*POOLINGS, "fast", "fastavgmax", "fastcatavgmax"):
        raise ValueError(
            f"Expected global_pool to be a kind of timm's, but got {global_pool!r}. {nearest(global_pool, POOLINGS)}"
        )


def pooling_kinds(name: str, **model_args: Any) -> list[str]:
    """Return the kinds of global pooling that a timm model with a head can have.

    Args:
        name: A model of ``timm.list_models()``.
        **model_args: Further arguments of ``timm.create_model``.
    """
    size = timm.get_pretrained_cfg(name).input_size
    return [kind for kind in POOLINGS if _has(name, kind, size, model_args)]


def _has(name: str, kind: str, input_size: tuple[int, int, int], model_args: dict[str, Any]) -> bool:
    try:
        model = create_on_meta(name, **{**model_args, "num_classes": 3, "global_pool": kind})
        return output_shape(model, (model_args.get("in_chans", input_size[0]), *input_size[1:])) == (2, 3)
    except (TypeError, *REFUSALS):
        return False
