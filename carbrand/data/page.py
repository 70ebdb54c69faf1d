"""A records folder -> one HTML page to look at before training: counts, samples, copies, and what was left out.

The page needs no network and no script, and is equal for equal datasets. Lists are streamed, never held as a whole.
"""

import collections
import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from carbrand import files, templates
from carbrand.data import images, manifest, records

PREVIEW_SIDE_PX = 160
MAX_SAMPLES = 300  # in all; at about 4 kB each
MAX_SAMPLES_PER_BRAND = 6
MAX_EXAMPLES = 5  # of each kind of thing that was left out
MAX_CLUSTERS = 30  # of copies; the largest
MAX_CONFLICTS = 12  # photos under several brands
MAX_SHOWN_OF_CLUSTER = 5  # copies
MAX_COUNTED_CLUSTERS = 200_000  # held in memory at a time; small ones are forgotten first
INDEX_BLOCK = 1_000_000  # rows read at a time

ImageOf = Callable[[str], bytes | None]
JsonRow = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Part:
    """A segment of a bar: its name, the number it stands for, and its share of the bar's full width, 0 to 1."""

    name: str
    count: int
    share: float


@dataclasses.dataclass(frozen=True)
class Brand:
    """A line of the table of brands: one part per split; the largest brand fills the whole width."""

    name: str
    labels: list[str]
    parts: list[Part]
    total: int


@dataclasses.dataclass(frozen=True)
class Cluster:
    """Copies of one photo: rows of duplicates.jsonl, or of conflicts.jsonl; `total` counts those not shown too."""

    rows: list[JsonRow]
    total: int


def render(folder: str | os.PathLike[str], built: manifest.Manifest, image_of: ImageOf) -> str:
    """The page of the dataset in `folder`.

    Args:
        folder: holds all shards, indexes and lists.
        built: its manifest.
        image_of: the JPEG of a photo by the SHA-256 of its file, or None if it is gone; for photos that were left out.
    """
    folder = pathlib.Path(folder)
    brands = brand_lines(built)
    duplicates = folder / manifest.DUPLICATES
    filters = {"number": "{:,}".format, "mebibytes": lambda num_bytes: f"{num_bytes / 2**20:,.1f} MiB"}
    return templates.load("carbrand.data", "dataset.html", filters).render(
        built=built,
        outcome=outcome(built),
        splits=split_parts(built),
        brands=brands,
        samples=_samples(folder, built, [brand.name for brand in brands]),
        short_sides=_short_sides(built),
        rejects=reject_examples(folder / manifest.REJECTS),
        clusters=largest_clusters(duplicates),
        conflicts=conflict_clusters(folder / manifest.CONFLICTS),
        crossing=crossing_pairs(duplicates),
        thumbnail=functools.partial(_thumbnail_of, image_of),
    )


def outcome(built: manifest.Manifest) -> list[Part]:
    """What became of all files seen; the counts sum up to those."""
    counts = built.counts
    parts = {name: counts[name] for name in ("kept", "duplicate", "conflict")}
    parts["rejected"] = sum(counts["rejected"].values())
    return [Part(name, count, count / max(counts["seen"], 1)) for name, count in parts.items()]


def split_parts(built: manifest.Manifest) -> list[Part]:
    """The splits with their share of all photos."""
    total = sum(split.num_examples for split in built.splits.values())
    return [Part(name, split.num_examples, split.num_examples / max(total, 1)) for name, split in built.splits.items()]


def brand_lines(built: manifest.Manifest) -> list[Brand]:
    """The brands, most photos first, then in label order."""
    counts = np.array([split.brand_counts for split in built.splits.values()]).T
    most = max(int(counts.sum(axis=1).max()), 1)
    lines = []
    for brand, row in zip(built.brands, counts.tolist(), strict=True):
        parts = [Part(split, count, count / most) for split, count in zip(built.splits, row, strict=True)]
        lines.append(Brand(brand, built.labels.get(brand, []), parts, sum(row)))
    return sorted(lines, key=lambda line: -line.total)


def reject_examples(path: pathlib.Path) -> dict[str, list[JsonRow]]:
    """The first rejected files by reason."""
    examples: dict[str, list[JsonRow]] = {}
    for row in files.read_jsonl(path):
        of_reason = examples.setdefault(row["reason"], [])
        if len(of_reason) < MAX_EXAMPLES:
            of_reason.append(row)
    return dict(sorted(examples.items()))


def largest_clusters(path: pathlib.Path) -> list[Cluster]:
    """The photos with the most copies, with the first copies of each; of equals, the first by name.

    Where there are more clusters than `MAX_COUNTED_CLUSTERS`, counts may be too low, and small ones missing.
    """
    counts: collections.Counter[str] = collections.Counter()
    for row in files.read_jsonl(path):
        counts[_kept(row)] += 1
        if len(counts) > MAX_COUNTED_CLUSTERS:
            counts = _without_smallest(counts)
    return _clusters(path, _kept, dict(counts.most_common(MAX_CLUSTERS)))


def conflict_clusters(path: pathlib.Path) -> list[Cluster]:
    """The first photos that stand under several brands."""
    counts: collections.Counter[str] = collections.Counter()
    for row in files.read_jsonl(path):
        if _photo(row) in counts or len(counts) < MAX_CONFLICTS:
            counts[_photo(row)] += 1
    return _clusters(path, _photo, counts)


def crossing_pairs(path: pathlib.Path) -> dict[tuple[str, str], Cluster]:
    """The copies that the source puts into other splits than the photo kept, by (its split, that of the one kept)."""
    examples: dict[tuple[str, str], list[JsonRow]] = {}
    counts: collections.Counter[tuple[str, str]] = collections.Counter()
    for row in files.read_jsonl(path):
        pair = (row["split"], row["kept_split"])
        if all(pair) and pair[0] != pair[1]:
            counts[pair] += 1
            if counts[pair] <= MAX_EXAMPLES:
                examples.setdefault(pair, []).append(row)
    return {pair: Cluster(examples[pair], counts[pair]) for pair in sorted(examples)}


def first_of_each_brand(index_path: pathlib.Path, labels: Sequence[int], per_brand: int) -> dict[int, list[np.void]]:
    """The first index rows of each of `labels`; no more of the index is read than that needs."""
    index = np.load(index_path, mmap_mode="r", allow_pickle=False)
    found: dict[int, list[np.void]] = {label: [] for label in labels}
    for start in range(0, len(index), INDEX_BLOCK):
        block = np.array(index[start : start + INDEX_BLOCK])
        for label, rows in found.items():
            rows += list(block[np.flatnonzero(block["label"] == label)[: per_brand - len(rows)]])
        if all(len(rows) == per_brand for rows in found.values()):
            break
    return found


def _without_smallest(counts: collections.Counter[str]) -> collections.Counter[str]:
    least = min(counts.values())
    return collections.Counter({name: count for name, count in counts.items() if count > least})


def _kept(row: JsonRow) -> str:
    return str(row["kept_sha256"])


def _photo(row: JsonRow) -> str:
    return str(row.get("photo") or row["group"])  # older versions of carbrand named the group only


def _clusters(path: pathlib.Path, name_of: Callable[[JsonRow], str], totals: dict[str, int]) -> list[Cluster]:
    """Largest first."""
    rows: dict[str, list[JsonRow]] = {name: [] for name in totals}
    for row in files.read_jsonl(path):
        of_cluster = rows.get(name_of(row))
        if of_cluster is not None and len(of_cluster) < MAX_SHOWN_OF_CLUSTER:
            of_cluster.append(row)
    clusters = [Cluster(rows[name], total) for name, total in totals.items()]
    return sorted(clusters, key=lambda cluster: (-cluster.total, cluster.rows[0]["name"]))


def _short_sides(built: manifest.Manifest) -> list[Part]:
    histogram = built.statistics["original_short_side_histogram"]
    most = max(1, *histogram.values())
    return [Part(name, count, count / most) for name, count in histogram.items()]


def _samples(folder: pathlib.Path, built: manifest.Manifest, brands: Sequence[str]) -> dict[str, list[tuple[str, str]]]:
    """Brand -> (data URI, name) of its first photos in train, in the order of `brands`."""
    shown = brands[:MAX_SAMPLES]
    per_brand = min(MAX_SAMPLES_PER_BRAND, MAX_SAMPLES // len(shown))
    labels = [built.brands.index(brand) for brand in shown]
    rows = first_of_each_brand(folder / manifest.index_name("train"), labels, per_brand)
    shards = built.splits["train"].shards
    return {
        built.brands[label]: [_sample(folder / shards[row["shard"]].name, row) for row in found]
        for label, found in rows.items()
    }


def _sample(shard_path: pathlib.Path, row: np.void) -> tuple[str, str]:
    with shard_path.open("rb") as file:
        payload = records.read(file.fileno(), int(row["offset"]), int(row["length"]), where=str(shard_path))
    record = records.parse(payload)
    encoded, name = record["image/encoded"], record["image/filename"]
    assert isinstance(encoded, bytes)
    assert isinstance(name, bytes)
    return _preview(encoded), name.decode()


def _thumbnail_of(image_of: ImageOf, sha256: str) -> str:
    """The photo's data URI, or ""."""
    encoded = image_of(sha256)
    return "" if encoded is None else _preview(encoded)


def _preview(encoded: bytes) -> str:
    return templates.data_uri(images.preview(encoded, PREVIEW_SIDE_PX))
