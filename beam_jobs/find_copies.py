"""Checked photos -> for each photo that stands behind one or several files, which files to keep, and in which group.

Exact copies meet by the hash of their bytes. Near copies meet in buckets of similar signatures and are confirmed on
their pixels, so that no two photos are compared without a reason.
"""

import collections
import functools
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from beam_jobs import build_output, checking, packed, progress, report, runners
from beam_jobs.checking import Checked
from carbrand.data import duplicates, images, near_duplicates, paths, sources

beam = runners.beam  # not imported here: runners keeps it quiet

MAX_CONFIRMED = 30  # candidates of one photo: thousands of shots in one pose would take hours; the most alike are tried

BUCKET_DTYPE = np.dtype([("bucket", "<u4"), ("name", "u1", 32), ("signature", "u1", near_duplicates.SIGNATURE_BYTES)])

Files = tuple[Checked, ...]  # with equal bytes, in a fixed order; named by the cache key of the first


class FindCopies(beam.PTransform):
    """Several PCollection[Pack[Checked]] -> PCollection[Pack[duplicates.Resolution]]; its copies hold a Checked."""

    def __init__(self, settings: build_output.Settings) -> None:
        """Sets the policy, and the cache with the pixels."""
        super().__init__()
        self._policy = settings.choices.policy
        self._settings = settings

    def expand(self, checked: Any) -> beam.PCollection:
        """The steps; elements are packs of what is noted."""
        with_hash = [part | f"WithHash{n}" >> packed.FlatMap(_with_hash) for n, part in enumerate(checked)]
        same_bytes = (
            tuple(with_hash)  # (hash of the file, Checked)
            | "GroupHash" >> self._group_by_key()  # (hash of the file, [Checked])
            | "ExactCopies" >> packed.FlatMap(_exact_copies)  # (name, Files)
        )
        same_photo = (
            same_bytes | "OneByOne" >> packed.Map(_one_by_one)  # [Files]
            if self._policy.near_duplicates == "off"
            else self._join_near_copies(same_bytes)
        )
        return same_photo | "Resolve" >> packed.Map(_resolve, self._policy)  # Resolution

    def _group_by_key(self) -> packed.GroupByKey:
        return packed.GroupByKey(self._settings.shuffle_dir, self._settings.num_parts)

    def _join_near_copies(self, same_bytes: beam.PCollection) -> beam.PCollection:
        """PCollection[Pack[(name, Files)]] -> PCollection[Pack[[Files]]]."""
        folder = self._settings.shuffle_dir
        clusters = (
            same_bytes
            | "Buckets" >> beam.Map(_buckets, self._settings.num_parts)  # (part, BUCKET_DTYPE as bytes)
            | "GroupPart" >> packed.GroupBytes(folder)  # a part alone, no pack: (part, [Slice])
            | "Candidates" >> beam.Map(_candidates)  # (name, name)
            | "GroupCandidates" >> self._group_by_key()  # (name, [name])
            | "Confirm" >> packed.FlatMap(_confirm, self._settings)  # (name, name)
            | "LinksTogether" >> packed.Map(with_one_key)  # ("", (name, name))
            | "GroupLinks" >> packed.GroupApart(folder)  # all together, no pack: ("", (name, name))
            | "Clusters" >> beam.Map(connect)  # (name, cluster)
        )
        return (
            (same_bytes, clusters)
            | "JoinClusters" >> self._group_by_key()  # (name, [Files, cluster])
            | "WithCluster" >> packed.Map(_with_cluster)  # (cluster, Files)
            | "GroupCluster" >> self._group_by_key()  # (cluster, [Files])
            | "NearCopies" >> packed.Map(_near_copies)  # [Files]
        )


def rows_of(resolution: duplicates.Resolution) -> Iterator[report.Row]:
    """What the report says of one photo: every copy but the first, and every conflict."""
    for copy, kept in resolution.left_out:
        yield _duplicate_row(copy, kept, dropped=True)
    for copy in resolution.kept[1:]:
        if not copy.is_old:
            yield _duplicate_row(copy, resolution.kept[0], dropped=False)
    for copy in resolution.conflicts:
        other_brands = [brand for brand in resolution.brands if brand != copy.brand]
        photo = min(conflict.sha256 for conflict in resolution.conflicts)  # the same for all copies
        yield report.row("conflict", _row(copy) | {"photo": photo, "other_brands": other_brands})


def with_one_key(value: Any) -> tuple[str, Any]:
    """Brings all elements together in one group; only for few of them."""
    return "", value


def connect(element: tuple[str, Iterable[tuple[str, str]]]) -> packed.Pack:
    """("", links) -> each linked name with that of its cluster."""
    return packed.Pack(sorted(duplicates.components(element[1]).items()))


def _with_hash(checked: Checked) -> Iterator[tuple[str, Checked]]:
    if checked.rejection is None:
        yield checked.sha256, checked


def _exact_copies(element: tuple[str, Iterable[Checked]]) -> Iterator[tuple[str, Files]]:
    # Old ones first: their pixels lie in the cache under a name of their own; those of old conflicts do not.
    ordered = sorted(element[1], key=lambda one: (one.is_conflict, not one.old_split, one.name, _values(one.photo)))
    if not ordered[0].is_conflict:
        yield ordered[0].cache_key, tuple(ordered)


def _one_by_one(element: tuple[str, Files]) -> list[Files]:
    return [element[1]]


def _buckets(pack: packed.Pack, num_parts: int) -> packed.Pack:
    """Packs the entries of all buckets of the photos in `pack` by part: one row for each would cost as all else."""
    parts = collections.defaultdict(list)
    for name, copies in pack:
        signature = bytes.fromhex(copies[0].signature)
        for key in near_duplicates.bucket_keys(signature):
            bucket = int.from_bytes(key, "little")
            parts[bucket % num_parts].append(key + bytes.fromhex(name) + signature)
    return packed.Pack((part, b"".join(entries)) for part, entries in parts.items())


def _candidates(element: tuple[int, Iterable[packed.Slice]]) -> packed.Pack:
    entries = np.frombuffer(packed.join(element[1]), BUCKET_DTYPE)
    entries = entries[np.argsort(entries["bucket"])]
    found: set[tuple[str, str]] = set()
    for members in np.split(entries, np.flatnonzero(np.diff(entries["bucket"])) + 1):
        if len(members) > 1:
            found.update(
                near_duplicates.candidate_pairs(
                    (member["name"].tobytes().hex(), member["signature"].tobytes()) for member in members
                )
            )
    return packed.Pack(sorted(found))


def _confirm(element: tuple[str, Iterable[str]], settings: build_output.Settings) -> Iterator[tuple[str, str]]:
    name, others = element
    thumbnail = _thumbnail(settings.cache_dir, name)
    candidates = [(other, _thumbnail(settings.cache_dir, other)) for other in sorted(set(others))]
    if len(candidates) > MAX_CONFIRMED:
        candidates.sort(key=lambda one: -near_duplicates.coarse_similarity(thumbnail, one[1]))
    for other, other_thumbnail in candidates[:MAX_CONFIRMED]:
        if near_duplicates.are_copies(thumbnail, other_thumbnail):
            yield name, other
    checking.count_one(settings, progress.COMPARED)


@functools.lru_cache(maxsize=1024)  # 4 MB: photos of one studio are asked for again and again
def _thumbnail(cache_dir: str, key: str) -> np.ndarray:
    encoded = checking.cached_image(cache_dir, key, key).encoded
    return images.grey_thumbnail(encoded, near_duplicates.THUMBNAIL_PX)


def _with_cluster(element: tuple[str, Iterable[Files | str]]) -> tuple[str, Files]:
    """A photo without copies is a cluster of its own."""
    name, parts = element
    (copies,) = [part for part in parts if not isinstance(part, str)]
    return next((part for part in parts if isinstance(part, str)), name), copies


def _near_copies(element: tuple[str, Iterable[Files]]) -> list[Files]:
    return list(element[1])


def _resolve(same_photo: list[Files], policy: duplicates.Policy) -> duplicates.Resolution:
    return duplicates.resolve((_copy(checked) for copies in same_photo for checked in copies), policy)


def _copy(checked: Checked) -> duplicates.Copy:
    return duplicates.Copy(
        name=checked.name,
        brand=checked.photo.brand,
        sha256=checked.sha256,
        num_pixels=checked.num_pixels,
        split=checked.photo.split,
        is_old=bool(checked.old_split),
        is_conflict=checked.is_conflict,
        tie=_values(checked.photo),
        source=checked,
    )


def _values(photo: sources.Photo) -> tuple[str, ...]:
    return tuple(vars(photo).values())  # dataclasses.astuple, which copies each, takes ten times as long


def _row(copy: duplicates.Copy) -> dict[str, Any]:
    checked = copy.source
    return {
        "name": copy.name,
        "uri": paths.shown(checked.photo.uri),
        "brand": copy.brand,
        "sha256": copy.sha256,
        "group": checked.group,
    }


def _duplicate_row(copy: duplicates.Copy, kept: duplicates.Copy, *, dropped: bool) -> report.Row:
    row = _row(copy) | {
        "kind": "exact" if copy.sha256 == kept.sha256 else "near",
        "kept": kept.name,
        "kept_sha256": kept.sha256,
        "split": copy.split,
        "kept_split": kept.split,
        "dropped": dropped,
    }
    return report.row("duplicate", row)
