"""The command ``models``: search timm's models."""

from typing import NoReturn

import timm

from timm_accel.commands.output.columns import Row, print_rows
from timm_accel.messages import counted, nearest
from timm_accel.models import search_models


def models(
    name: str = "*", *, tag: str | None = None, max_parameters: str | None = None, max_mb: float | None = None
) -> None:
    """Print timm's models that fit, the smallest first.

    A line has the number of parameters, the size of the weights in float32, the image size, and the tags of pretrained
    weights. NAME.TAG, such as resnet18.a1_in1k, is what train --model takes with --pretrained.

    Args:
        name: A name or a part of it, or a pattern with * and ?.
        tag: The same for the tag of pretrained weights.
        max_parameters: The largest number of parameters, such as 12M or 12e6.
        max_mb: The largest size of the weights in float32, in MB.
    """
    limits = [None if max_parameters is None else _number(max_parameters), _parameters_of(max_mb)]
    given = [limit for limit in limits if limit is not None]
    found = search_models(name, tag=tag, max_parameters=min(given, default=None), progress=True)
    if not found:
        _refuse(name, tag, bool(given))
    rows = [
        Row(
            model.name,
            [
                f"{model.num_parameters / 1e6:.1f} M",
                f"{model.num_parameters * _BYTES / 1e6:.1f} MB",
                "x".join(map(str, model.input_size[1:])),
            ],
            ", ".join(model.tags),
        )
        for model in found
    ]
    print_rows([Row("model", ["parameters", "size", "image"], "tags"), *rows], right=True)
    print(counted(len(found), "model"))


_UNITS = {"k": 1e3, "m": 1e6, "b": 1e9, "g": 1e9}
_BYTES = 4  # of a float32


def _number(text: str) -> float:
    """Return a number of parameters: 12e6, 12000000 or 12M."""
    unit = _UNITS.get(text[-1:].lower(), 1)
    try:
        return float(text if unit == 1 else text[:-1]) * unit
    except ValueError:
        raise ValueError(
            f"Expected max_parameters to be a number of parameters, such as 12M or 12e6, but got {text!r}. Correct it."
        ) from None


def _parameters_of(max_mb: float | None) -> float | None:
    if max_mb is None:
        return None
    if not max_mb > 0:
        raise ValueError(f"Expected max_mb to be positive, but got {max_mb!r}. Leave it out for no limit.")
    return max_mb * 1e6 / _BYTES


def _refuse(name: str, tag: str | None, limited: bool) -> NoReturn:
    """Raise with a remedy: the limits, the tag or the name."""
    fits = {model.name for model in search_models(name)}
    if not fits:
        remedy = nearest(name, timm.list_models())
    elif tag is not None:
        tags = {each.partition(".")[2] for each in timm.list_pretrained() if each.partition(".")[0] in fits}
        remedy = nearest(tag, tags) if tags else "None of them has pretrained weights. Leave out tag."
    else:
        remedy = "Raise the limit."
    asked = f"{name!r}{'' if tag is None else f' with the tag {tag!r}'}{' within the limit' if limited else ''}"
    raise ValueError(f"Expected names and limits that a model of timm fits, but got none for {asked}. {remedy}")
