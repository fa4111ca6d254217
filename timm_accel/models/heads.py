"""Custom heads, which replace the single linear classifier of most timm models."""

from collections.abc import Callable
from typing import Any, Literal

from torch import nn

from timm_accel.messages import nearest

HeadFn = Callable[[int, int], nn.Module]
Head = Literal["linear", "mlp"] | HeadFn | nn.Module


class MlpHead(nn.Sequential):
    """Classify features with one hidden layer between two batch norms: ``(B, in_features)`` to ``(B, num_classes)``.

    Args:
        in_features: The width of the features.
        num_classes: The width of the output.
    """

    def __init__(self, in_features: int, num_classes: int) -> None:
        super().__init__(
            nn.BatchNorm1d(in_features),
            nn.Linear(in_features, 256, bias=False),
            nn.ReLU(),
            nn.BatchNorm1d(256),
            nn.Dropout(0.4),
            nn.Linear(256, num_classes, bias=False),
        )


def classifier_names(model: Any) -> tuple[str, ...]:
    """Return the names of the modules that a timm model classifies with: one for most, two for distilled ones."""
    names = model.pretrained_cfg.get("classifier") or ()
    return (names,) if isinstance(names, str) else tuple(names)


def attach_head(model: nn.Module, head: Head, num_classes: int) -> None:
    """Replace a timm model's classifier by a head.

    Args:
        model: A timm model with a classifier.
        head: ``"linear"`` keeps timm's classifier; ``"mlp"`` is `MlpHead`; or a function of
            ``(in_features, num_classes)``, or a module that takes ``(B, in_features)``.
        num_classes: The width of the output.

    Raises:
        TypeError: The head is none of these, or the function returns no module.
        ValueError: The head's name is unknown, or the model's classifier is not one ``nn.Linear``.
    """
    if isinstance(head, str) and head == "linear":
        return
    name, in_features = _one_linear(model)
    model.set_submodule(name, _build(head, in_features, num_classes))


def init_small_classifier(model: nn.Module) -> None:
    """Initialize timm's linear classifiers with small weights, so that training starts near equal probabilities.

    EfficientNet and related families scale the weights by the number of classes (timm 1.0.31). For two classes the
    standard deviation is 0.41, the first loss on pretrained features is about 2.2 instead of 0.7, and the first updates
    damage the features. Here the standard deviation is 0.02, as in timm's transformers.

    Args:
        model: A timm model.

    Source: ``timm.models.vision_transformer.init_weights_vit_timm``.
    """
    for name in classifier_names(model):
        for module in model.get_submodule(name).modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)


def check_head(head: Head, num_classes: int) -> None:
    """Raise when `attach_head` cannot take a head, or when there are no classes for it."""
    if isinstance(head, str):
        if head not in ("linear", "mlp"):
            raise ValueError(
                f"Expected head to be 'linear', 'mlp', a function of (in_features, num_classes) or a module, but got "
                f"{head!r}. {nearest(head, ['linear', 'mlp'])}"
            )
    elif not callable(head):  # modules are callable too
        raise TypeError(
            "Expected head to be 'linear', 'mlp', a function of (in_features, num_classes) or a module, but got "
            f"{type(head).__name__}. Leave it out for timm's head."
        )
    if num_classes == 0 and head != "linear":
        raise ValueError(
            f"Expected head to be 'linear' with num_classes=0, since features have none, but got {head!r}. "
            "Leave it out."
        )


def _one_linear(model: Any) -> tuple[str, int]:
    names = classifier_names(model)
    modules = [model.get_submodule(name) for name in names]
    if len(modules) == 1 and isinstance(modules[0], nn.Linear):
        return names[0], modules[0].in_features
    kinds = " and ".join(f"{type(module).__name__} ({name})" for name, module in zip(names, modules, strict=True))
    raise ValueError(
        f"Expected head to be 'linear' for {model.pretrained_cfg['architecture']}, since its classifier is not one "
        f"nn.Linear but {kinds or 'unknown'}, but got another. Leave out head to keep timm's."
    )


def _build(head: Head, in_features: int, num_classes: int) -> nn.Module:
    if isinstance(head, nn.Module):
        return head
    built = MlpHead(in_features, num_classes) if isinstance(head, str) else head(in_features, num_classes)
    if not isinstance(built, nn.Module):
        raise TypeError(
            f"Expected head to return a module for (in_features, num_classes) = ({in_features}, {num_classes}), "
            f"but got {type(built).__name__}. Return an nn.Module."
        )
    return built
