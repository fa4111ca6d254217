"""Find the kinds of global pooling of a timm model, by building it on torch's meta device."""

from typing import Any

import timm

from timm_accel.messages import nearest
from timm_accel.models.trial import REFUSALS, create_on_meta, output_shape

POOLINGS = ("avg", "max", "avgmax", "catavgmax", "fastavg", "fastmax", "token", "map", "prr", "soft")


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
