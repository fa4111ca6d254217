"""The class names of a data set, wherever it keeps them."""

from typing import Any


def in_label_order(class_to_idx: dict[str, int]) -> list[str]:
    """Return the names in the order of their labels."""
    return sorted(class_to_idx, key=class_to_idx.__getitem__)


def class_names(dataset: Any) -> list[str] | None:
    """Return the names in the order of their labels, or None when the data set has none.

    Looks at ``class_names`` (ours), ``reader.class_to_idx`` (timm's) and ``classes`` (torchvision's).
    """
    if (names := getattr(dataset, "class_names", None)) is not None:
        return list(names)
    if class_to_idx := getattr(getattr(dataset, "reader", None), "class_to_idx", None):
        return in_label_order(class_to_idx)
    names = getattr(dataset, "classes", None)
    return None if names is None else [str(name) for name in names]
