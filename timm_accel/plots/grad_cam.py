"""Which places of an image raise the logit of a class: Grad-CAM, by captum (extra ``attribution``).

A map of features is weighted by the mean gradient of each channel. It is the last map of at least 4 × 4 cells that timm
describes in ``feature_info``. In a model with prefix tokens it is the input of the last block, since after that block
only the class token reaches the logits.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import ceil
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from timm_accel.messages import missing_extra
from timm_accel.models.finite import check_finite
from timm_accel.plots.predictions import BATCH_SIZE
from timm_accel.predict import Classifier

MIN_CELLS = 4  # in each direction; a coarser map shows no place


Cells = tuple[int, int]


def grad_cam(classifier: Classifier, images: Tensor, classes: Tensor) -> Tensor:
    """Return what raises the logit of a class, ``(B, H, W)``, from 0 to 1, the highest value of each image.

    The model, its modes and its gradients do not change. An image where nothing raises the logit is 0 everywhere.

    Args:
        classifier: A classifier with a torch model.
        images: ``(B, C, H, W)``, ``uint8``, from its `transform`.
        classes: The number of a class for each image, ``(B,)``.

    Raises:
        ModuleNotFoundError: The extra ``attribution`` is not installed.
        ValueError: The classifier has no torch model, the model has no map, or a gradient is NaN or infinite.

    Source: ``captum.attr.LayerGradCam``, arXiv 1610.02391.
    """
    try:
        from captum.attr import LayerGradCam
    except ModuleNotFoundError as error:
        raise missing_extra("attribution", "maps of attribution", error.name) from error
    model, size = model_of(classifier), (int(images.shape[-2]), int(images.shape[-1]))
    layer, to_map, back = _last_map(model, size)
    tap = nn.Identity()  # captum hooks it, so that it sees a map whatever the layout of the layer

    def through_tap(module: nn.Module, args: Any, output: Any) -> Tensor:
        seen = tap(to_map(output).detach().requires_grad_())
        return back(seen.clone(), output)

    with evaluation_mode(model), torch.enable_grad():
        hook = layer.register_forward_hook(through_tap)
        try:
            method = LayerGradCam(classifier.run, tap)
            parts = zip(images.split(BATCH_SIZE), classes.to(classifier.device).split(BATCH_SIZE), strict=True)
            maps = torch.cat([method.attribute(*part, relu_attributions=True).detach().float() for part in parts])
        finally:
            hook.remove()
    check_finite(maps, f"the gradients of {classifier.source}")
    maps = interpolate(maps, size, mode="bilinear", align_corners=False)[:, 0].cpu()
    highest = maps.amax(dim=(1, 2), keepdim=True)
    return maps / highest.where(highest > 0, torch.ones_like(highest))


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Switch a model to evaluation; afterwards each module has its mode again."""
    modes = {module: module.training for module in model.modules()}
    try:
        model.eval()
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def model_of(classifier: Classifier) -> nn.Module:
    """Return the torch module of a classifier.

    Raises:
        ValueError: It has none.
    """
    if classifier.model is None:
        raise ValueError(
            f"Expected the classifier to have a torch model, since Grad-CAM needs its gradients, but got "
            f"{classifier.source!r}, an exported file or a function. Load the run that it was exported from."
        )
    return classifier.model


def _last_map(model: nn.Module, size: Cells) -> tuple[nn.Module, Callable[..., Tensor], Callable[..., Tensor]]:
    """Return the module whose output is the map, and the functions from its output to ``(B, C, H, W)`` and back."""
    info: Any = getattr(model, "feature_info", None) or []
    levels = info.get_dicts() if hasattr(info, "get_dicts") else list(info)
    prefix = getattr(model, "num_prefix_tokens", 0)
    for level in reversed(levels[:-1] if prefix else levels):
        cells = (ceil(size[0] / level["reduction"]), ceil(size[1] / level["reduction"]))
        if min(cells) >= MIN_CELLS:
            module = dict(model.named_modules()).get(level["module"])
            if module is None or isinstance(module, nn.ModuleList):
                break  # timm 1.0.31 names modules of some models that are not there, or are never called
            return module, *_layout(model, level["num_chs"], cells)
    raise _no_map(model, f"none for {size[0]} × {size[1]} pixels")


def _layout(model: nn.Module, channels: int, cells: Cells) -> tuple[Callable[..., Tensor], Callable[..., Tensor]]:
    """Return the functions for outputs ``(B, C, H, W)``, ``(B, H, W, C)`` or ``(B, N, C)`` with prefix tokens first."""
    num_cells = cells[0] * cells[1]

    def to_map(output: Any) -> Tensor:
        shape = tuple(output.shape) if isinstance(output, Tensor) else ()
        if len(shape) == 4 and shape[1] == channels:
            return output
        if len(shape) == 4 and shape[3] == channels:
            return output.permute(0, 3, 1, 2)
        if len(shape) == 3 and shape[2] == channels and shape[1] >= num_cells:
            return output[:, -num_cells:].transpose(1, 2).unflatten(2, cells)
        raise _no_map(model, f"an output {shape or type(output).__name__}")

    def back(maps: Tensor, output: Tensor) -> Tensor:
        if output.ndim == 3:
            return torch.cat([output[:, :-num_cells], maps.flatten(2).transpose(1, 2)], dim=1)
        return maps if output.shape[1] == channels else maps.permute(0, 2, 3, 1)

    return to_map, back


def _no_map(model: nn.Module, got: str) -> ValueError:
    return ValueError(
        f"Expected the model to have a map of at least {MIN_CELLS} × {MIN_CELLS} cells among the levels that timm "
        f"describes, since Grad-CAM shows such a map, but got {type(model).__name__} with {got}. Use larger images or "
        "a model of another family."
    )
