"""Copies of one photo -> the copy to keep, or none where the copies carry different brands."""

import dataclasses
from collections.abc import Iterable


@dataclasses.dataclass(frozen=True)
class Copy:
    """One of several files with equal pixels: the SHA-256 of its bytes, its name in the source folder, its brand."""

    sha256: str
    name: str
    brand: str


def choose(copies: Iterable[Copy]) -> tuple[Copy | None, list[Copy], list[Copy]]:
    """Which of the copies of one photo to keep, whatever their order.

    Returns:
        The copy kept, its duplicates, and its conflicts; the lists are sorted. A photo under two brands has no right
        label: then none is kept, and all copies are conflicts.
    """
    ordered = sorted(copies, key=lambda copy: (copy.sha256, copy.name))
    if len({copy.brand for copy in ordered}) > 1:
        return None, [], ordered
    return ordered[0], ordered[1:], []
