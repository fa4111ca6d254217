"""Feature extractors: each function returns a module that takes images ``(B, C, H, W)``.

All except `feature_pyramid`, which creates a model, copy the given model in evaluation mode and do not change it.
"""

import warnings
from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any

import timm
from timm.models import GraphExtractNet, get_graph_node_names
from torch import Tensor, nn

from timm_accel.messages import nearest, one_line
from timm_accel.models.building import check_model_name


class _Pooled(nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model.forward_head(self.model.forward_features(images), pre_logits=True)


class _Unpooled(nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model.forward_features(images)


class _Intermediate(nn.Module):
    def __init__(self, model: Any, indices: list[int] | int | None, norm: bool) -> None:
        super().__init__()
        self.model, self.indices, self.norm = model, indices, norm

    def forward(self, images: Tensor) -> list[Tensor]:
        return self.model.forward_intermediates(
            images, indices=self.indices, norm=self.norm, output_fmt="NCHW", intermediates_only=True
        )


def pooled_features(model: nn.Module) -> nn.Module:
    """Return the features that a timm model classifies by, one vector for each image, ``(B, num_features)``.

    Args:
        model: A timm classifier, or a model created with ``num_classes=0``.

    Raises:
        TypeError: The model has no `forward_features` and `forward_head`.
    """
    _check_methods(model, "forward_features", "forward_head")
    return _Pooled(deepcopy(model)).eval()


def unpooled_features(model: nn.Module) -> nn.Module:
    """Return the last features before the pooling, in the shape of the family.

    That is ``(B, C, H, W)`` for most, ``(B, H, W, C)`` for some, ``(B, tokens, C)`` for transformers.

    Args:
        model: A model of timm.

    Raises:
        TypeError: The model has no `forward_features`.
    """
    _check_methods(model, "forward_features")
    return _Unpooled(deepcopy(model)).eval()


def intermediate_features(
    model: nn.Module, indices: Sequence[int] | int | None = None, *, norm: bool = False
) -> nn.Module:
    """Return the maps of several depths of a model, transformers included: a list of ``(B, C, H, W)``.

    Args:
        model: A model of timm that has `forward_intermediates`, as most families do.
        indices: Which of the model's blocks or stages, counted from the end when negative. An integer n is for the
            last n; None is for all.
        norm: Whether the model's last norm is applied to each map.

    Raises:
        TypeError: The model has no `forward_intermediates`.
        ValueError: There is no such block.

    Source: ``forward_intermediates`` of timm's models.
    """
    _check_methods(model, "forward_intermediates")
    count = len(getattr(model, "feature_info", ()))
    asked = [indices] if isinstance(indices, int) else list(indices or ())
    limit = count + 1 if isinstance(indices, int) else count
    if count and (wrong := [index for index in asked if not -count <= index < limit or indices == 0]):
        raise ValueError(
            f"Expected indices to be among the {count} of the model, but got {wrong[0]}. "
            "Look at timm_accel.features.describe_features(model)."
        )
    chosen = indices if isinstance(indices, int) or indices is None else list(indices)
    return _Intermediate(deepcopy(model), chosen, norm).eval()


def feature_pyramid(
    name: str,
    *,
    out_indices: Sequence[int] | None = None,
    output_stride: int | None = None,
    pretrained: bool = False,
    **model_args: Any,
) -> nn.Module:
    """Create a backbone for detection or segmentation, with a list of maps ``(B, C, H, W)`` as output.

    Args:
        name: A model of ``timm.list_models()``, or ``local-dir:`` and a folder of weights.
        out_indices: Which levels, from 0; None for all that the family has.
        output_stride: The largest reduction, 8, 16 or 32, above which convolutions are dilated; None for the model's
            default.
        pretrained: Whether to load timm's weights, or those of the folder.
        **model_args: Further arguments of ``timm.create_model``.

    Raises:
        ValueError: The model is unknown, or has no such levels or stride.

    Source: ``timm.create_model(features_only=True)``.
    """
    if ":" not in name:
        check_model_name(name)
    options = {"out_indices": None if out_indices is None else tuple(out_indices), "output_stride": output_stride}
    options = {key: value for key, value in options.items() if value is not None}
    try:
        return timm.create_model(name, pretrained=pretrained, features_only=True, **options, **model_args).eval()
    except (AssertionError, IndexError, KeyError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(
            f"Expected arguments that {name} can give features by, but got {options or 'its default levels'} "
            f"({one_line(error)}). Try fewer levels, no output_stride, or timm_accel.features.intermediate_features."
        ) from error


def node_names(model: nn.Module) -> list[str]:
    """Return the names of all nodes that `node_features` can read, in the order in which they are computed.

    Args:
        model: Any module that torch.fx can trace.

    Raises:
        ValueError: The module cannot be traced.

    Source: ``timm.models.get_graph_node_names``.
    """
    return _traced(lambda: get_graph_node_names(deepcopy(model).eval())[1], model)


def node_features(model: nn.Module, nodes: Sequence[str]) -> nn.Module:
    """Return a module that computes named nodes of a model's graph, as a dictionary of tensors.

    Args:
        model: Any module that torch.fx can trace.
        nodes: Some of `node_names`; the name of a module stands for its last node.

    Raises:
        ValueError: The model cannot be traced, or has no such node.

    Source: ``timm.models.GraphExtractNet``, torchvision's feature extraction with timm's leaf modules.
    """
    known = {name[:end] for name in node_names(model) for end in _ends(name)}
    for node in nodes:
        if node not in known:
            raise ValueError(f"Expected nodes to be in the model's graph, but got {node!r}. {nearest(node, known)}")
    return _traced(lambda: GraphExtractNet(deepcopy(model).eval(), list(nodes), return_dict=True).eval(), model)


def _ends(name: str) -> list[int]:
    """Return where the names of the enclosing modules end in the name of a node."""
    return [*(place for place, letter in enumerate(name) if letter == "."), len(name)]


def _traced(trace: Callable[[], Any], model: nn.Module) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "NOTE: The nodes obtained by tracing the model in train mode")
            return trace()
    except Exception as error:  # tracing runs the model's code on proxies
        raise ValueError(
            f"Expected model to be one that torch.fx can trace, but got {type(model).__name__} ({one_line(error)}). "
            "Use timm_accel.features.intermediate_features."
        ) from error


def _check_methods(model: nn.Module, *names: str) -> None:
    if missing := [name for name in names if not hasattr(model, name)]:
        raise TypeError(
            f"Expected model to be one of timm with {missing[0]}, but got {type(model).__name__}. Use "
            "timm_accel.features.node_features, which takes any module."
        )
