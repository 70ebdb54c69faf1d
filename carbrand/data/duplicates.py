"""Copies of one photo -> which of them to keep, and which group they belong to.

Exact copies have equal bytes. Near copies (resized, re-encoded, mirrored, cropped) are found by `near_duplicates`.
"""

import dataclasses
from collections.abc import Iterable
from typing import Any

from carbrand import checks
from carbrand.data import manifest

NEAR_DUPLICATES = ("keep_one", "keep_group", "off")
CONFLICTS = ("keep_out", "keep")


@dataclasses.dataclass(frozen=True)
class Copy:
    """One of several files that show the same photo.

    Attributes:
        name: in the source.
        brand: normalised.
        sha256: of the file: equal for exact copies.
        num_pixels: of the file; more is better.
        split: as the source gives it, or "".
        is_old: it is part of the dataset that is appended to: that decision stands.
        is_conflict: it was kept out of that dataset, being under several brands: so are its copies.
        tie: decides between copies that are equal in all else.
        source: whatever the caller wants to find again.
    """

    name: str
    brand: str
    sha256: str
    num_pixels: int
    split: str
    is_old: bool = False
    is_conflict: bool = False
    tie: tuple[str, ...] = ()
    source: Any = dataclasses.field(default=None, compare=False)


@dataclasses.dataclass(frozen=True)
class Policy:
    """What to do with near duplicates, and with one photo under several brands."""

    near_duplicates: str = "keep_one"
    conflicts: str = "keep_out"

    def __post_init__(self) -> None:
        checks.choice("--near_duplicates", self.near_duplicates, NEAR_DUPLICATES)
        checks.choice("--conflicts", self.conflicts, CONFLICTS)

    @property
    def keeps_several(self) -> bool:
        """Whether several copies of one photo may be kept, in one group."""
        return self.near_duplicates == "keep_group" or self.conflicts == "keep"


@dataclasses.dataclass(frozen=True)
class Resolution:
    """The outcome for all copies of one photo, which are either kept, left out for a kept one, or in conflict.

    `brands` are all those under which it was seen, sorted.
    """

    kept: list[Copy]
    left_out: list[tuple[Copy, Copy]]  # (copy, the one kept in its place)
    conflicts: list[Copy]
    brands: list[str]


def resolve(copies: Iterable[Copy], policy: Policy) -> Resolution:
    """Which of the copies of one photo to keep, whatever their order; the lists are sorted.

    A photo under two brands has no right label: then none is kept, unless the policy is to keep it. Copies that are
    already part of a dataset stay; new ones of another brand are conflicts.
    """
    ordered = sorted(copies, key=_preference)
    all_brands = sorted({copy.brand for copy in ordered})
    is_conflict = any(copy.is_conflict for copy in ordered)
    ordered = [copy for copy in ordered if not copy.is_conflict]
    old_brands = {copy.brand for copy in ordered if copy.is_old}
    brands = old_brands or {copy.brand for copy in ordered}
    if policy.conflicts == "keep":
        allowed = {copy.brand for copy in ordered}
    else:
        allowed = brands if old_brands or (len(brands) == 1 and not is_conflict) else set()
    kept: list[Copy] = []
    left_out = []
    for copy in ordered:
        if copy.brand not in allowed:
            continue
        standing_for = [
            other
            for other in kept
            if other.brand == copy.brand and (policy.near_duplicates == "keep_one" or other.sha256 == copy.sha256)
        ]
        if copy.is_old or not standing_for:
            kept.append(copy)
        else:
            left_out.append((copy, standing_for[0]))
    return Resolution(kept, left_out, [copy for copy in ordered if copy.brand not in allowed], all_brands)


def _preference(copy: Copy) -> tuple:
    """Old ones first, then those that the source holds out, then large ones; the rest makes the order total."""
    held_out = -manifest.SPLITS.index(copy.split) if copy.split else 1
    return (not copy.is_old, held_out, -copy.num_pixels, copy.sha256, copy.name, copy.brand, copy.tie)


def components(links: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Each node of an undirected graph -> the smallest node that it is connected with."""
    parents: dict[str, str] = {}

    def root_of(node: str) -> str:
        parents.setdefault(node, node)
        while parents[node] != node:
            parents[node] = parents[parents[node]]
            node = parents[node]
        return node

    for first, second in links:
        smaller, larger = sorted((root_of(first), root_of(second)))
        parents[larger] = smaller
    return {node: root_of(node) for node in parents}
