"""The end of a build: what the pipeline reported -> counts, gates, the page to look at, and at last the manifest."""

import collections
import dataclasses
import heapq
import os
import pathlib
import shutil
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

import carbrand
from beam_jobs import build_output, report, sharded_writer
from carbrand import errors, files
from carbrand.data import brands, cache, catalogue, images, manifest, page, records, sources

REJECTS, DUPLICATES, CONFLICTS, PAGE = "rejects.jsonl", "duplicates.jsonl", "conflicts.jsonl", "dataset.html"

_REPORTS = {"rejected": REJECTS, "duplicate": DUPLICATES, "conflict": CONFLICTS}


@dataclasses.dataclass(frozen=True)
class Previous:
    """The dataset that is appended to."""

    folder: str
    dataset: manifest.Manifest


@dataclasses.dataclass(frozen=True)
class Finished:
    """A complete dataset, and what people should hear about it besides what its manifest says."""

    dataset: manifest.Manifest
    num_moved: int  # old photos that had to change their split
    num_crossing: int  # copies that the source puts into different splits


def run(
    settings: build_output.Settings,
    listing: sources.Listing,
    previous: Previous | None,
    max_reject_fraction: float,
) -> Finished:
    """Makes the output complete, or raises what speaks against it.

    Raises:
        BuildError: if the counts do not add up.
        DataError: if no photo of some brand can be used.
        GateError: if too many files are rejected, or a group lies in several splits.
    """
    counts, crossing = _write_reports(settings, previous)
    shards = sorted(report.read(settings.report_dir, "shard"), key=lambda row: row["number"])
    splits = {name: _join_split(settings, name, shards) for name in manifest.SPLITS}
    counts["kept"] = sum(part.num_examples for part in splits.values())
    counts["seen"] = listing.num_photos + (previous.dataset.counts["seen"] if previous else 0)
    try:
        _check_sum(counts)
        _check_brands(settings, splits)
        _check_rejects(settings, counts, max_reject_fraction)
        _check_leaks(settings)
    except errors.CarbrandError:
        build_output.remove_old_output(settings)
        raise
    built = _manifest(settings, listing, previous, splits, counts, shards)
    files.write_text(pathlib.Path(settings.output_dir, PAGE), _page(settings, built))
    built = manifest.write(settings.output_dir, built)
    num_moved = sum(1 for _ in report.read(settings.report_dir, "moved"))
    shutil.rmtree(settings.work_dir)
    return Finished(built, num_moved, crossing)


def summary(finished: Finished, output_dir: str) -> str:
    """What was built, in a few lines for people."""
    built, counts = finished.dataset, finished.dataset.counts
    lines = [
        f"{counts['seen']} files: {counts['kept']} kept, {counts['duplicate']} duplicates, "
        f"{counts['conflict']} under several brands, {sum(counts['rejected'].values())} rejected"
        + (f" ({_by_reason(counts['rejected'])})" if counts["rejected"] else "")
    ]
    lines += [f"{'':20}" + "".join(f"{name:>12}" for name in built.splits)]
    for label, brand in enumerate(built.brands):
        lines += [f"{brand:20}" + "".join(f"{part.brand_counts[label]:12}" for part in built.splits.values())]
    lines += [f"{'all':20}" + "".join(f"{part.num_examples:12}" for part in built.splits.values())]
    lines += [f"{'shards':20}" + "".join(f"{len(part.shards):12}" for part in built.splits.values())]
    lines += [f"Are these one brand? {first}, {second}. See --aliases." for first, second in built.near_misses]
    lines += [
        f"{brand}: no photo in train, so that it cannot be learned."
        for brand, count in zip(built.brands, built.splits["train"].brand_counts, strict=True)
        if not count
    ]
    if finished.num_crossing:
        lines += [f"{finished.num_crossing} copies lie in other splits of the source than the photo that was kept."]
    if finished.num_moved:
        lines += [f"{finished.num_moved} photos changed their split: new photos joined their groups."]
    return "\n".join([*lines, f"Wrote {output_dir}, fingerprint {built.fingerprint[:12]}; look at {PAGE}"])


def _write_reports(settings: build_output.Settings, previous: Previous | None) -> tuple[dict[str, Any], int]:
    """Writes the lists of what was left out; their counts, and how many copies cross the source's splits."""
    counts: dict[str, Any] = {"duplicate": 0, "conflict": 0}
    reasons: collections.Counter[str] = collections.Counter()
    crossing = 0

    def counted(kind: str, rows: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        nonlocal crossing
        for row in rows:
            if kind == "rejected":
                reasons[row["reason"]] += 1
            else:
                counts[kind] += row.get("dropped", True)
            crossing += len({row.get("split"), row.get("kept_split")} - {"", None}) == 2
            yield row

    for kind, name in _REPORTS.items():
        rows = report.read(settings.report_dir, kind)
        if previous:
            rows = heapq.merge(files.read_jsonl(pathlib.Path(previous.folder, name)), rows, key=report.order)
        files.write_jsonl(pathlib.Path(settings.output_dir, name), counted(kind, rows))
    return counts | {"rejected": dict(sorted(reasons.items()))}, crossing


def _join_split(settings: build_output.Settings, name: str, shards: list[dict[str, Any]]) -> manifest.Split:
    """Joins the parts of a split's index into one file."""
    rows = [row for row in shards if row["split"] == name]
    parts = [np.load(pathlib.Path(settings.index_dir, sharded_writer.index_part(name, row["number"]))) for row in rows]
    index = np.concatenate([np.zeros(0, records.INDEX_DTYPE), *parts])
    files.write_bytes(pathlib.Path(settings.output_dir, manifest.index_name(name)), manifest.index_bytes(index))
    brand_counts = np.bincount(index["label"], minlength=len(settings.brands))
    return manifest.Split(tuple(manifest.Shard(**row["shard"]) for row in rows), tuple(brand_counts.tolist()))


def _check_sum(counts: dict[str, Any]) -> None:
    accounted = counts["kept"] + counts["duplicate"] + counts["conflict"] + sum(counts["rejected"].values())
    if accounted != counts["seen"]:
        raise errors.BuildError(
            f"the pipeline lost photos: {counts['seen']} files seen, {accounted} accounted for ({counts}). "
            "Build with --workers 1, and report this."
        )


def _check_brands(settings: build_output.Settings, splits: dict[str, manifest.Split]) -> None:
    kept = np.sum([part.brand_counts for part in splits.values()], axis=0)
    for brand, count in zip(settings.brands, kept, strict=True):
        if count == 0:
            reasons = collections.Counter(
                row.get("reason", "the same photo under several brands")
                for name in (REJECTS, CONFLICTS)
                for row in files.read_jsonl(pathlib.Path(settings.output_dir, name))
                if row["brand"] == brand
            )
            raise errors.DataError(
                f"{brand}: no photo of this brand can be used ({_by_reason(reasons)}); see {REJECTS} and {CONFLICTS} "
                f"in {settings.output_dir}. Add photos, or remove its folder."
            )


def _check_rejects(settings: build_output.Settings, counts: dict[str, Any], max_reject_fraction: float) -> None:
    rejected = sum(counts["rejected"].values())
    if rejected > max_reject_fraction * counts["seen"]:
        raise errors.GateError(
            f"{rejected} of {counts['seen']} files are rejected ({_by_reason(counts['rejected'])}), more than "
            f"--max_reject_fraction={max_reject_fraction:g}; see {settings.output_dir}/{REJECTS}. "
            "Remove them, or raise --max_reject_fraction."
        )


def _check_leaks(settings: build_output.Settings) -> None:
    """The leakage gate: what the finished shards hold of one group must lie in one split."""
    leaks = list(report.read(settings.report_dir, "leak"))
    if leaks:
        first = leaks[0]
        raise errors.GateError(
            f"{len(leaks)} groups lie in several splits, for example {first['name']} in "
            f"{' and '.join(first['splits'])}: the source's own splits tear them apart. Correct its split column, "
            "choose --near_duplicates keep_one, or choose another --group_by."
        )


def _by_reason(reasons: dict[str, int]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in collections.Counter(reasons).most_common(3))


def _manifest(
    settings: build_output.Settings,
    listing: sources.Listing,
    previous: Previous | None,
    splits: dict[str, manifest.Split],
    counts: dict[str, Any],
    shards: list[dict[str, Any]],
) -> manifest.Manifest:
    old = previous.dataset if previous else None
    labels = {
        brand: sorted({*listing.labels.get(brand, ()), *(old.labels.get(brand, ()) if old else ())})
        for brand in settings.brands
    }
    brand_counts = np.sum([part.brand_counts for part in splits.values()], axis=0).tolist()
    return manifest.Manifest(
        format_version=records.FORMAT_VERSION,
        carbrand_version=carbrand.__version__,
        version=old.version + 1 if old else 1,
        previous=old.fingerprint if old else "",
        brands=settings.brands,
        labels=labels,
        near_misses=[list(pair) for pair in brands.near_misses(dict(zip(settings.brands, brand_counts, strict=True)))],
        splits=splits,
        **dataclasses.asdict(settings.choices),
        counts=counts,
        statistics=catalogue.statistics([row["sums"] for row in shards]),
        source={"root": listing.root, "fingerprint": listing.fingerprint},
        files={catalogue.name_of(row["shard"]["name"]): row["catalogue_sha256"] for row in shards},
        fingerprint=manifest.fingerprint_of(settings.brands, splits),
        command=f"carbrand build{' --append' if old else ''} {settings.choices.command}",
    )


def _page(settings: build_output.Settings, built: manifest.Manifest) -> str:
    def image_of(sha256: str) -> bytes | None:
        key = images.cache_key(sha256, resize_short_px=built.resize_short_px, jpeg_quality=built.jpeg_quality)
        entry = cache.load(settings.cache_dir, key)
        return entry.encoded if isinstance(entry, images.NormalisedImage) else None

    return page.render(settings.output_dir, built, image_of)


def load_previous(folder: str | os.PathLike[str]) -> Previous:
    """The dataset in `folder`, to append to."""
    return Previous(str(pathlib.Path(folder).absolute()), manifest.load(folder))
