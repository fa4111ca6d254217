"""Find groups of images that have equal pixels, or that look the same."""

from collections.abc import Hashable, Iterator, Sequence

import numpy as np

_MAX_DIFFERENT_BITS = 3  # of 64; then at least one of four parts of 16 bits is equal
_MIN_CORRELATION = 0.98  # of the thumbnails
_PAIRS_AT_A_TIME, _PAIRS_TO_CORRELATE = 2**22, 2**14  # 30 MB each


def equal_groups(keys: Sequence[Hashable]) -> list[list[int]]:
    """Return the groups of two or more indices with equal keys, each in ascending order.

    Args:
        keys: The key of each image.
    """
    groups: dict[Hashable, list[int]] = {}
    for number, key in enumerate(keys):
        groups.setdefault(key, []).append(number)
    return [group for group in groups.values() if len(group) > 1]


def near_groups(hashes: Sequence[int], thumbnails: Sequence[bytes], equal: Sequence[Sequence[int]]) -> list[list[int]]:
    """Return the groups of images that look the same but are not all equal, as indices in ascending order.

    Only hashes with an equal part are compared, not all pairs: with 64 bits in four parts, and at most three different
    bits, no pair is missed. The work grows with the square of the largest number of images that share a part.

    Args:
        hashes: The 64-bit hash of each image.
        thumbnails: The grayscale thumbnail of each image, all of one size. One without contrast is near no other.
        equal: Groups of equal images; one of each group is compared, and all of them are in its near group.
    """
    copies = {number for group in equal for number in group[1:]}
    compared = np.array([number for number in range(len(hashes)) if number not in copies], dtype=np.int64)
    codes = np.array([hashes[number] for number in compared], dtype=np.uint64)
    parents = list(range(len(hashes)))
    for first, second in _pairs(codes):
        one, other = compared[first], compared[second]
        alike = _correlation(thumbnails, one, other) >= _MIN_CORRELATION
        for pair in zip(one[alike].tolist(), other[alike].tolist(), strict=True):
            low, high = sorted(_root(parents, number) for number in pair)
            parents[high] = low
    with_copies = {group[0]: group for group in equal}
    groups = equal_groups([_root(parents, number) for number in range(len(parents))])
    return [sorted(copy for number in group for copy in with_copies.get(number, [number])) for group in groups]


def _pairs(codes: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the pairs that differ in few bits; a pair may occur more than once."""
    parts = codes.astype(">u8").view(">u2").reshape(-1, 4)
    for part in parts.T:
        order = np.argsort(part, kind="stable")
        for bucket in np.split(order, np.flatnonzero(np.diff(part[order])) + 1):
            if len(bucket) > 1:
                yield from _pairs_within(codes, bucket)


def _pairs_within(codes: np.ndarray, bucket: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    bits = np.unpackbits(codes[bucket].view(np.uint8).reshape(-1, 8), axis=1)
    signs = bits.astype(np.float32) * 2 - 1
    rows = max(1, _PAIRS_AT_A_TIME // len(bucket))
    for start in range(0, len(bucket), rows):
        balance = signs[start : start + rows] @ signs.T  # equal bits minus different bits
        first, second = np.nonzero(balance >= 64 - 2 * _MAX_DIFFERENT_BITS)
        first += start
        later = first < second
        first, second = bucket[first[later]], bucket[second[later]]
        for begin in range(0, len(first), _PAIRS_TO_CORRELATE):
            piece = slice(begin, begin + _PAIRS_TO_CORRELATE)
            yield first[piece], second[piece]


def _correlation(thumbnails: Sequence[bytes], first: np.ndarray, second: np.ndarray) -> np.ndarray:
    sides = []
    for numbers in (first, second):
        pixels = np.frombuffer(b"".join(thumbnails[number] for number in numbers), dtype=np.uint8)
        pixels = pixels.reshape(len(numbers), -1).astype(np.float64)
        pixels -= pixels.mean(1, keepdims=True)
        sides.append(pixels / np.linalg.norm(pixels, axis=1, keepdims=True).clip(1e-9))
    return (sides[0] * sides[1]).sum(1)


def _root(parents: list[int], number: int) -> int:
    while parents[number] != number:
        parents[number] = number = parents[parents[number]]
    return number
