"""Describe the findings of an audit: a sentence for each kind of fault, the worst first."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from timm_accel.messages import counted

if TYPE_CHECKING:
    from timm_accel.audit.report import Audit, Group, Split

_TINY_CLASS = 10  # images, at least
_IMBALANCED = 10  # times the smallest class
_SHIFTED = 0.5  # of the model's standard deviation


def findings(audit: "Audit") -> list[str]:
    """Return the sentences, the worst first.

    Args:
        audit: The audit.
    """
    equal, near = audit.duplicates, audit.near_duplicates
    return [
        *_unreadable(audit),
        *_other_classes(audit.splits),
        *_groups(
            [group for group in equal if _splits(group) > 1],
            "equal images",
            "are in several splits, so that evaluation measures what was trained on",
        ),
        *_groups(
            [group for group in equal if _splits(group) == 1 and _labels(group) > 1],
            "equal images",
            "have different labels, of which one at most is right",
        ),
        *_groups(
            [group for group in near if _splits(group) > 1],
            "near-duplicates",
            "are in several splits, so that evaluation may measure what was trained on",
        ),
        *_groups(
            [group for group in near if _splits(group) == 1 and _labels(group) > 1],
            "near-duplicates",
            "have different labels, of which some may be wrong",
        ),
        *_suspects(audit),
        *_wide_modes(audit.splits),
        *_scales(audit.splits),
        *_empty_classes(audit.splits),
        *_unread_files(audit.splits),
        *_tiny_classes(audit.splits),
        *_turned(audit.splits),
        *_groups([group for group in equal if _is_plain(group)], "equal images", "count more than once"),
        *_groups([group for group in near if _is_plain(group)], "near-duplicates", "count more than once"),
        *_imbalance(audit.splits),
        *_colors(audit),
    ]


def _splits(group: "Group") -> int:
    return len({image.split for image in group})


def _labels(group: "Group") -> int:
    return len({image.label for image in group})


def _is_plain(group: "Group") -> bool:
    return _splits(group) == _labels(group) == 1


def _unreadable(audit: "Audit") -> Iterator[str]:
    for name, split in audit.splits.items():
        if files := [file for file in audit.unreadable if file.split == name]:
            yield (
                f"{name}: {len(files)} of {counted(split.num_files, 'file')} cannot be read, such as "
                f"{files[0].path!r} ({files[0].error}): repair or remove."
            )


def _other_classes(splits: dict[str, "Split"]) -> Iterator[str]:
    (first, reference), *others = splits.items()
    names = list(reference.class_sizes)
    for name, split in others:
        missing = [one for one in names if one not in split.class_sizes]
        extra = [one for one in split.class_sizes if one not in names]
        parts = [f"lacks {_list(missing)}"] * bool(missing) + [f"has {_list(extra)} besides"] * bool(extra)
        if parts:
            yield f"{name}: {' and '.join(parts)}, so that its labels are not those of {first}."
        elif names != list(split.class_sizes):
            yield f"{name}: numbers its classes differently from {first}."


def _groups(groups: "list[Group]", kind: str, what: str) -> Iterator[str]:
    if groups:
        contrary = sum(_labels(group) > 1 for group in groups) if "label" not in what else 0
        first = groups[0]
        other = next((one for one in first if one.split != first[0].split), None)
        other = other or next((one for one in first if one.label != first[0].label), first[1])
        yield (
            f"{sum(map(len, groups)):,} {kind} in {counted(len(groups), 'group')} {what}"
            f"{f', {contrary:,} of the groups with different labels' if contrary else ''}, such as "
            f"{first[0].path!r} and {other.path!r}."
        )


def _scales(splits: dict[str, "Split"]) -> Iterator[str]:
    for name, split in splits.items():
        if split.is_prepared and split.wide_pixels is not None and split.wide_pixels.problem:
            yield f"{name}: {split.wide_pixels.problem}"


def _wide_modes(splits: dict[str, "Split"]) -> Iterator[str]:
    from timm_accel.data.transforms.pixel_range import WIDE_MODES

    for name, split in splits.items():
        wide = {mode: count for mode, count in split.modes.items() if mode in WIDE_MODES}
        if wide and not split.is_prepared:
            count = sum(wide.values())
            yield (
                f"{name}: {counted(count, 'image')} of mode {_list(wide)} turn{'s' * (count == 1)} white, since this "
                "dataset clips all above 255: give it PrepareImage."
            )


def _empty_classes(splits: dict[str, "Split"]) -> Iterator[str]:
    for name, split in splits.items():
        empty = sorted({one for one, size in split.class_sizes.items() if size == 0} | set(split.empty_folders))
        if empty:
            yield f"{name}: {_list(empty)} hold{'s' * (len(empty) == 1)} no readable image."


def _unread_files(splits: dict[str, "Split"]) -> Iterator[str]:
    for name, split in splits.items():
        if split.unread_files:
            endings = ", ".join(f"{ending} {count}" for ending, count in split.unread_files.items())
            count = sum(split.unread_files.values())
            are, their, them = ("is", "its", "it") if count == 1 else ("are", "their", "them")
            yield (
                f"{name}: {counted(count, 'file')} {are} ignored for {their} extension ({endings}): convert {them} to "
                "PNG or JPEG."
            )


def _tiny_classes(splits: dict[str, "Split"]) -> Iterator[str]:
    for name, split in splits.items():
        tiny = [f"{one} {size}" for one, size in split.class_sizes.items() if 0 < size < _TINY_CLASS]
        if tiny:
            yield f"{name}: {counted(len(tiny), 'class')} of fewer than {_TINY_CLASS} images: {_list(tiny)}."


def _turned(splits: dict[str, "Split"]) -> Iterator[str]:
    for name, split in splits.items():
        if split.num_turned and not split.is_prepared:
            lie = "lies on its side" if split.num_turned == 1 else "lie on their side"
            yield (
                f"{name}: {counted(split.num_turned, 'image')} {lie}, since this dataset ignores EXIF: "
                "give it PrepareImage."
            )


def _suspects(audit: "Audit") -> Iterator[str]:
    kinds = {"label": "whose label is likely wrong", "outlier": "of no class", "ambiguous": "between two classes"}
    for kind, words in kinds.items():
        found = [each for each in audit.suspects if each.kind == kind]
        shown = [
            each.path + (f" ({each.label}, or {each.suggestion}?)" if each.suggestion != each.label else "")
            for each in found
        ]
        if found:
            yield f"Predictions find {counted(len(found), 'image')} {words}: {_list(shown)}."


def _imbalance(splits: dict[str, "Split"]) -> Iterator[str]:
    for name, split in splits.items():
        sizes = sorted((size, one) for one, size in split.class_sizes.items() if size)
        if sizes and sizes[-1][0] > _IMBALANCED * sizes[0][0]:
            (low, smallest), (high, largest) = sizes[0], sizes[-1]
            yield f"{name}: {largest} has {high / low:.0f} times as many images as {smallest}, {high} to {low}."


def _colors(audit: "Audit") -> Iterator[str]:
    name = "train" if "train" in audit.splits else next(iter(audit.splits))
    split = audit.splits[name]
    if split.mean is None or split.std is None or audit.model_mean is None or audit.model_std is None:
        return
    shift = max(abs(a - b) / s for a, b, s in zip(split.mean, audit.model_mean, audit.model_std, strict=True))
    scales = [a / b for a, b in zip(split.std, audit.model_std, strict=True)]
    if shift > _SHIFTED or min(scales) < 0.5 or max(scales) > 2:
        yield (
            f"{name}: mean {_numbers(split.mean)} and std {_numbers(split.std)} are far from the model's "
            f"{_numbers(audit.model_mean)} and {_numbers(audit.model_std)}, which go with "
            "pretrained weights: without them, take those of the data."
        )


def _list(names: "list[str] | dict[str, int]") -> str:
    shown = ", ".join(list(names)[:5])
    return f"{shown} and {len(names) - 5} more" if len(names) > 5 else shown


def _numbers(numbers: tuple[float, ...]) -> str:
    return "(" + ", ".join(f"{number:.2f}" for number in numbers) + ")"
