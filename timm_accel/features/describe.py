"""Describe the feature levels of a model as a table."""

from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class FeatureLevel:
    """One level of a model.

    Args:
        index: Its index for `feature_pyramid` and `intermediate_features`.
        name: The module whose output it is.
        reduction: Pixels of the input for one pixel of the map, in each direction.
        channels: The channels of the map.
    """

    index: int
    name: str
    reduction: int
    channels: int


class FeatureTable(list[FeatureLevel]):
    """The levels of a model, which print as a table."""

    def __str__(self) -> str:
        rows = [("index", "name", "reduction", "channels")]
        rows += [(str(level.index), level.name, str(level.reduction), str(level.channels)) for level in self]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        index, name, *numbers = widths
        return "\n".join(
            f"{row[0]:>{index}}  {row[1]:<{name}}  {row[2]:>{numbers[0]}}  {row[3]:>{numbers[1]}}" for row in rows
        )


def describe_features(model: nn.Module) -> FeatureTable:
    """Return the levels of a timm model or of a feature pyramid, the highest resolution first.

    Args:
        model: A timm model, or the result of `feature_pyramid`.

    Raises:
        TypeError: The model does not describe its levels.

    Source: ``feature_info`` of timm's models.
    """
    info = getattr(model, "feature_info", None)
    if not info:
        raise TypeError(
            f"Expected model to be one of timm that describes its levels, but got {type(model).__name__}. Use "
            "timm_accel.features.node_names."
        )
    levels = info.get_dicts() if hasattr(info, "get_dicts") else info
    return FeatureTable(
        FeatureLevel(level.get("index", number), level["module"], level["reduction"], level["num_chs"])
        for number, level in enumerate(levels)
    )
