"""Whether the images of a data set have several labels each."""

from typing import Any

from timm.data import MultiLabelTarget


def has_several_labels(dataset: Any) -> bool:
    """Whether the targets of a data set are ``(num_classes,)`` of 0 and 1, by timm's `MultiLabelTarget` in it.

    Args:
        dataset: Any data set, wrapped by a trainer or not; None has none.
    """
    return isinstance(getattr(dataset, "target_transform", None), MultiLabelTarget)
