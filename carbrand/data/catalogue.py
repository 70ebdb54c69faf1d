"""The catalogue: what is known of each photo of a records folder but its pixels, one JSONL file per shard.

A file has one row per record of its shard, in the same order; what stands only here and not in the records is what
depends on where the photos were: equal photos from any place give equal shards.
"""

import bisect
import collections
import dataclasses
import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from carbrand import files

_MEASURES = ("height", "width", "original_height", "original_width", "bytes")
_SHORT_SIDES_PX = (128, 256, 512, 1024, 2048)  # edges of the histogram
_RANGES = (
    f"<{_SHORT_SIDES_PX[0]}",
    *(f"{low}-{high - 1}" for low, high in itertools.pairwise(_SHORT_SIDES_PX)),
    f">={_SHORT_SIDES_PX[-1]}",
)


@dataclasses.dataclass(frozen=True)
class Row:
    """One kept photo.

    Attributes:
        name: of the file, relative to the source's root, with '/'.
        uri: where it was read.
        brand: normalised.
        label: the brand as the source writes it.
        model: as the source writes it, or "".
        group: all photos of a group are in one split.
        source_group: the group as the source writes it, or "".
        source_split: the split as the source writes it, or "".
        sha256: of the file.
        perceptual_hash: in hexadecimal; see `near_duplicates.signature`.
        height: in pixels, as stored; `width` too.
        original_height: in pixels, upright, before shrinking; `original_width` too.
        mean_rgb: of the stored pixels, 0 to 255.
        bytes: of the stored JPEG.
        extra: the source's other columns.
    """

    name: str
    uri: str
    brand: str
    label: str
    model: str
    group: str
    source_group: str
    source_split: str
    sha256: str
    perceptual_hash: str
    height: int
    width: int
    original_height: int
    original_width: int
    mean_rgb: tuple[int, int, int]
    bytes: int
    extra: dict[str, Any]


def name_of(shard_name: str) -> str:
    """The name of the catalogue file of a shard: carbrand-train.tfrecord-… -> photos-train-….jsonl."""
    split, _, number = shard_name.removeprefix("carbrand-").partition(".tfrecord-")
    return f"photos-{split}-{number}.jsonl"


def write(path: str | os.PathLike[str], rows: Iterable[Row]) -> str:
    """Writes one catalogue file atomically, and returns its SHA-256."""
    return files.write_jsonl(path, map(vars, rows))


def read(path: str | os.PathLike[str]) -> Iterator[Row]:
    """The rows of one catalogue file, one by one."""
    for row in files.read_jsonl(path):
        yield Row(**{**row, "mean_rgb": tuple(row["mean_rgb"])})


class Sums:
    """What `statistics` needs to know of some of the rows, gathered while they pass by."""

    def __init__(self) -> None:
        self._count = 0
        self._measures = {name: [float("inf"), 0, 0] for name in _MEASURES}
        self._rgb = [0, 0, 0]
        self._short_sides: collections.Counter[str] = collections.Counter()

    def add(self, row: Row) -> None:
        """Counts one more row."""
        self._count += 1
        for name, (least, total, most) in self._measures.items():
            value = getattr(row, name)
            self._measures[name] = [min(least, value), total + value, max(most, value)]
        self._rgb = [total + value for total, value in zip(self._rgb, row.mean_rgb, strict=True)]
        short_side = min(row.original_height, row.original_width)
        self._short_sides[_RANGES[bisect.bisect_right(_SHORT_SIDES_PX, short_side)]] += 1

    def as_json(self) -> dict[str, Any]:
        """All of it, for `statistics`."""
        return {
            "count": self._count,
            "measures": self._measures,
            "rgb": self._rgb,
            "short_sides": dict(self._short_sides),
        }


def statistics(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The statistics of all rows, from the `Sums` of their parts.

    Returns:
        For "height", "width", "original_height", "original_width" (pixels) and "bytes" each the "min", "mean" and
        "max"; "mean_rgb", 0 to 255; and "original_short_side_histogram", photos by range of pixels.
    """
    count = sum(part["count"] for part in parts)
    short_sides = sum((collections.Counter(part["short_sides"]) for part in parts), collections.Counter())
    result: dict[str, Any] = {}
    for name in _MEASURES:
        least, total, most = zip(*(part["measures"][name] for part in parts), strict=True)
        result[name] = {"min": min(least), "mean": round(sum(total) / count, 2), "max": max(most)}
    rgb = [sum(part["rgb"][channel] for part in parts) for channel in range(3)]
    result["mean_rgb"] = [round(total / count, 2) for total in rgb]
    result["original_short_side_histogram"] = {name: short_sides[name] for name in _RANGES}
    return result
