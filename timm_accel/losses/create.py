"""Create the loss for training and the plain loss for evaluation, and check both against the dataset."""

from inspect import signature
from typing import Any

from timm.loss import LOSS_TYPES, MULTI_LABEL_LOSS_TYPES, BinaryCrossEntropy, create_classification_loss
from torch import nn

from timm_accel.data.classes import is_multi_label
from timm_accel.losses.class_weights import Weights, class_counts, resolve_weights
from timm_accel.messages import nearest

KINDS = tuple(kind for kind in LOSS_TYPES if kind != "jsd")
"""The kinds of `create_loss`, which are those of timm's factory."""
HARD_LABEL_KINDS = ("twoway", "zlpr")  # these take only labels of 0 and 1
_SINGLE_LABEL = ("ce", "bce", "asl", "poly")
_OPTIONS = [name for name in signature(create_classification_loss).parameters if name.split("_")[0] in KINDS]


def create_loss(
    kind: str | None = None,
    *,
    dataset: Any = None,
    multi_label: bool = False,
    class_weights: Weights | None = None,
    pos_weights: Weights | None = None,
    smoothing: float = 0.0,
    soft_targets: bool = False,
    **options: Any,
) -> tuple[nn.Module, nn.Module]:
    """Create the training loss of timm's factory, and a plain loss for evaluation.

    The plain loss is cross-entropy, or binary cross-entropy for a multi-label dataset, without weights, smoothing or
    threshold, so that runs with different losses can be compared.

    With ``class_weights``, cross-entropy is torch's, which has two formulas: for hard labels it divides by the sum of
    the weights of the batch's labels, for soft ones (Mixup, ``(B, num_classes)``) by the number of images. So a label
    gives other values as an integer and as one-hot: 1.439 and 2.303 where its class weighs 1.6. The formula of soft
    labels keeps the scale of the weights, that of hard labels only their proportions. If the weights are 1 on average,
    as with ``"auto"``, the learning rate need not change.

    Args:
        kind: ``ce``, ``bce``, ``asl`` or ``poly``; for multi-label datasets ``bce``, ``asl``, ``poly``, ``twoway``,
            ``zlpr`` or ``db``, which counts the classes of `dataset`. None is ``bce`` for multi-label, else ``ce``.
        dataset: The training dataset: it tells whether it is multi-label, and has names and counts of the classes.
        multi_label: Whether the targets are multi-label, where `dataset` cannot tell.
        class_weights: The weight of each class, for ``ce``, ``bce`` and multi-label ``asl``: a list in the order of the
            labels, numbers by name, or ``"auto"`` for the inverse of the numbers of images, with mean 1.
        pos_weights: The weight of the images with a class against those without it, for ``bce`` and multi-label
            ``asl``; ``"auto"`` is the number of images without it over the number with it.
        smoothing: Label smoothing of hard and multi-label targets; Mixup has already smoothed its soft targets.
        soft_targets: Whether Mixup or CutMix creates the targets.
        **options: Further arguments of timm's factory for this kind: ``bce_target_thresh``, ``asl_gamma_neg``, ….

    Returns:
        The losses for ``loss_func`` and ``eval_loss_fn`` of a trainer.

    Raises:
        TypeError: `dataset` has no counts or names of its classes but needs them, or weights are of another kind.
        ValueError: The kind is unknown or does not fit the targets, an option belongs to another kind, or weights are
            given to a kind that cannot take them, have another number of classes, or name an unknown class.

    Source: ``timm.loss.create_classification_loss``, ``timm.loss.compute_class_weights``.
    """
    multi_label = multi_label or is_multi_label(dataset)
    kind = kind or ("bce" if multi_label else "ce")
    _check_kind(kind, multi_label)
    _check_targets(kind, multi_label, smoothing, soft_targets)
    _check_options(kind, options)
    _check_weights(kind, multi_label, class_weights is not None, pos_weights is not None)
    weights = {}
    if class_weights is not None:
        weights["class_weight"] = resolve_weights("class_weights", class_weights, dataset, "inv_freq")
    if pos_weights is not None:
        weights["pos_weight"] = resolve_weights("pos_weights", pos_weights, dataset, "neg_pos")
    plain: nn.Module = BinaryCrossEntropy(smoothing=0.0) if multi_label else nn.CrossEntropyLoss()
    if kind == "ce" and weights:  # timm 1.0.31 raises for them
        weighted = nn.CrossEntropyLoss(weights["class_weight"], label_smoothing=0.0 if soft_targets else smoothing)
        return weighted, plain
    if kind == "db" and "class_counts" not in options:
        options["class_counts"], options["num_samples"] = class_counts("kind='db'", dataset)
    try:
        loss = create_classification_loss(kind, multi_label, smoothing, soft_targets, **weights, **options)
    except (ValueError, AssertionError) as error:
        raise ValueError(
            f"Expected options that {kind!r} takes here, but got {options!r} ({error}). Leave some of them out."
        ) from error
    return loss, plain


def _check_kind(kind: str, multi_label: bool) -> None:
    known = MULTI_LABEL_LOSS_TYPES if multi_label else _SINGLE_LABEL
    if kind == "jsd":
        raise ValueError(
            "Expected kind to be a loss of single images, since jsd compares several augmented copies of each, which "
            f"timm_accel's loaders do not make, but got 'jsd'. Choose one of {', '.join(known)}."
        )
    if kind not in KINDS:
        raise ValueError(f"Expected kind to be a loss of timm, but got {kind!r}. {nearest(kind, KINDS)}")
    if kind not in known:
        why = "the dataset is multi-label" if multi_label else "each image has one label"
        raise ValueError(
            f"Expected kind to be one of {', '.join(known)}, since {why}, but got {kind!r}. Choose one of them."
        )


def _check_targets(kind: str, multi_label: bool, smoothing: float, soft_targets: bool) -> None:
    if not (isinstance(smoothing, int | float) and 0 <= smoothing < 1):
        raise ValueError(f"Expected smoothing to be from 0 to below 1, but got {smoothing!r}. A usual value is 0.1.")
    hard = kind in HARD_LABEL_KINDS or (kind == "asl" and not multi_label)
    if soft_targets and hard:
        raise ValueError(
            f"Expected soft_targets to be False, since {kind} takes only hard labels, but got True. Train without "
            "Mixup and CutMix, or choose another kind."
        )
    if smoothing and kind in HARD_LABEL_KINDS:
        raise ValueError(f"Expected smoothing to be 0, since {kind} has none, but got {smoothing}. Leave it out.")


def _check_options(kind: str, options: dict[str, Any]) -> None:
    of_kind = [name for name in _OPTIONS if name.startswith(f"{kind}_")]
    of_kind += ["class_counts", "num_samples"] if kind == "db" else []
    for name in options:
        if name not in of_kind:
            raise ValueError(
                f"Expected options of the loss {kind!r}, but got {name!r}. "
                f"{nearest(name, of_kind) if of_kind else 'It has none.'}"
            )


def _check_weights(kind: str, multi_label: bool, of_classes: bool, of_positives: bool) -> None:
    binary = kind == "bce" or (kind == "asl" and multi_label)
    for argument, given, can in (
        ("class_weights", of_classes, binary or kind == "ce"),
        ("pos_weights", of_positives, binary),
    ):
        if given and not can:
            remedy = "use class_weights" if kind == "ce" else "choose bce"
            raise ValueError(
                f"Expected {argument} to be None, since the loss {kind!r} cannot take any, but got some. Leave them "
                f"out, or {remedy}."
            )
