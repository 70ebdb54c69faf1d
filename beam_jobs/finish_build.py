"""The end of a build: what the pipeline reported -> counts, gates, the page to look at, and at last the manifest."""

import collections
import dataclasses
import heapq
import itertools
import os
import pathlib
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

import carbrand
from beam_jobs import build_output, checking, report
from carbrand import errors, files
from carbrand.data import (
    brands,
    cache,
    catalogue,
    images,
    ledger,
    manifest,
    page,
    paths,
    records,
    sources,
    verify,
    verify_shard,
)

_SHOWN = 20  # of the names in one line of the summary
_REPORTS = {
    "rejected": manifest.REJECTS,
    "duplicate": manifest.DUPLICATES,
    "conflict": manifest.CONFLICTS,
    "moved": manifest.MOVED,
}


@dataclasses.dataclass(frozen=True)
class Previous:
    """The dataset that is appended to."""

    folder: str
    dataset: manifest.Manifest


@dataclasses.dataclass(frozen=True)
class Finished:
    """A complete dataset, and what people should hear about it besides what its manifest says."""

    dataset: manifest.Manifest
    num_moved: int  # photos that are not in the split that they had, or that the source gives
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
        _check_leaks(settings, splits)
    except errors.CarbrandError:
        build_output.remove_old_output(settings)
        raise
    built = _manifest(settings, listing, previous, splits, counts, shards)
    files.write_text(pathlib.Path(settings.output_dir, manifest.PAGE), _page(settings, previous, built))
    if previous:
        # Into its place at once: what is known of an older dataset there stays. Rows of no dataset harm nobody.
        place = pathlib.Path(settings.work_dir).parent
        ledger.carry(previous.folder, previous.dataset.fingerprint, place, built.fingerprint)
    built = manifest.write(settings.output_dir, built)
    num_moved = sum(1 for _ in report.read(settings.report_dir, "moved"))
    build_output.put_into_place(settings)
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
    pairs = [f"{first}, {second}" for first, second in built.near_misses]
    lines += [f"Are these one brand? {_some(pairs, '; ')}. See --aliases."] if pairs else []
    for name, part in built.splits.items():
        missing = [brand for brand, count in zip(built.brands, part.brand_counts, strict=True) if not count]
        if missing and built.fractions[manifest.SPLITS.index(name)]:
            lines += [f"No photo in {name}: {_some(missing, ', ')}."]
    if finished.num_crossing:
        lines += [f"{finished.num_crossing} copies lie in other splits of the source than the photo that was kept."]
    if finished.num_moved:
        lines += [
            f"{finished.num_moved} photos left the split that they had, to join their groups; see {manifest.MOVED}."
        ]
    return "\n".join([*lines, f"Wrote {output_dir}, fingerprint {built.fingerprint[:12]}; look at {manifest.PAGE}"])


def _some(words: list[str], separator: str) -> str:
    return separator.join(words[:_SHOWN]) + (f" and {len(words) - _SHOWN} more" if len(words) > _SHOWN else "")


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
            elif kind in counts:
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
    """Joins the parts of a split's index into one file, part by part."""
    rows = [row for row in shards if row["split"] == name]
    brand_counts = np.zeros(len(settings.brands), np.int64)
    with files.atomic_writer(pathlib.Path(settings.output_dir, manifest.index_name(name))) as file:
        num_records = sum(row["shard"]["records"] for row in rows)
        np.lib.format.write_array_header_1_0(file, manifest.index_header(num_records))
        for row in rows:
            part = np.load(pathlib.Path(settings.index_dir, manifest.index_part(name, row["number"])))
            brand_counts += np.bincount(part["label"], minlength=len(settings.brands))
            file.write(part.tobytes())
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
                for name in (manifest.REJECTS, manifest.CONFLICTS)
                for row in files.read_jsonl(pathlib.Path(settings.output_dir, name))
                if row["brand"] == brand
            )
            raise errors.DataError(
                f"{brand}: no photo of this brand can be used ({_by_reason(reasons)}); see {manifest.REJECTS} and "
                f"{manifest.CONFLICTS} in {settings.output_dir}. Add photos, or take the brand out of the source."
            )
    if not splits["train"].num_examples:
        raise errors.DataError(
            f"{settings.output_dir}: no photo is left to train on: all groups lie in the other splits. Correct the "
            "source's split column, choose another --group_by or --seed, or add photos."
        )


def _check_rejects(settings: build_output.Settings, counts: dict[str, Any], max_reject_fraction: float) -> None:
    rejected = sum(counts["rejected"].values())
    if rejected > max_reject_fraction * counts["seen"]:
        raise errors.GateError(
            f"{rejected} of {counts['seen']} files are rejected ({_by_reason(counts['rejected'])}), more than "
            f"--max_reject_fraction={max_reject_fraction:g}; see {settings.output_dir}/{manifest.REJECTS}. "
            "Remove them, or raise --max_reject_fraction."
        )


def _check_leaks(settings: build_output.Settings, splits: dict[str, manifest.Split]) -> None:
    """The leakage gate: no photo may stand twice in the finished shards, and no group in two splits."""
    leaks = list(report.read(settings.report_dir, "leak"))
    if not leaks:
        return
    first = leaks[0]
    rows = [_row_at(settings, splits, **place) for place in first["places"]]
    where = " and ".join(f"{row.name} in {place['split']}" for row, place in zip(rows, first["places"], strict=True))
    if not first["is_group"]:
        raise errors.BuildError(f"the pipeline doubled photos: {where}. Build with --workers 1, and report this.")
    raise errors.GateError(
        f"groups lie in several splits ({len(leaks)} times), for example {rows[0].group}: {where}. The source's own "
        "splits tear them apart: correct its split column, choose --near_duplicates keep_one, or another --group_by."
    )


def _row_at(
    settings: build_output.Settings, splits: dict[str, manifest.Split], split: str, shard: int, record: int
) -> catalogue.Row:
    path = pathlib.Path(settings.output_dir, catalogue.name_of(splits[split].shards[shard].name))
    return next(itertools.islice(catalogue.read(path), record, None))


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
        ancestors=(old.fingerprint, *old.ancestors) if old else (),
        brands=settings.brands,
        labels=labels,
        aliases=settings.aliases,
        near_misses=[list(pair) for pair in brands.near_misses(dict(zip(settings.brands, brand_counts, strict=True)))],
        splits=splits,
        **dataclasses.asdict(settings.choices),
        given_splits=settings.given_splits,
        counts=counts,
        statistics=catalogue.statistics([row["sums"] for row in shards]),
        source=_source(listing),
        files={catalogue.name_of(row["shard"]["name"]): row["catalogue_sha256"] for row in shards},
        fingerprint=manifest.fingerprint_of(settings.brands, splits),
        command=_command(settings, previous),
    )


def _page(settings: build_output.Settings, previous: Previous | None, built: manifest.Manifest) -> str:
    # What lies in the cache from other builds must not show: equal builds have equal pages.
    names = (row["sha256"] for kind in ("duplicate", "conflict") for row in report.read(settings.report_dir, kind))
    new = {int(name[:16], 16) for name in names} if previous else set()

    def image_of(sha256: str) -> bytes | None:
        keys = [images.cache_key(sha256, resize_short_px=built.resize_short_px, jpeg_quality=built.jpeg_quality)]
        if previous:
            keys = keys if int(sha256[:16], 16) in new else []
            keys.append(checking.old_cache_key(previous.dataset.fingerprint, sha256))
        entries = (cache.load(settings.cache_dir, key) for key in keys)
        return next((entry.encoded for entry in entries if isinstance(entry, images.NormalisedImage)), None)

    return page.render(settings.output_dir, built, image_of)


def already_complete(
    settings: build_output.Settings, listing: sources.Listing, previous: Previous | None, max_reject_fraction: float
) -> manifest.Manifest:
    """The dataset that an earlier build with the same arguments has completed.

    Raises:
        ConfigError: if the one that is there was built from other photos, or otherwise.
        GateError: if more than `max_reject_fraction` of its files were rejected.
    """
    files.remove_tree(settings.work_dir)
    built = manifest.load(settings.output_dir)
    expected = (_source(listing), _command(settings, previous), previous.dataset.fingerprint if previous else "")
    if (built.source, built.command, built.previous) != expected:
        raise errors.ConfigError(
            f"--output={settings.output_dir}: already holds a complete dataset. Choose another folder, or add "
            "--overwrite."
        )
    _check_rejects(settings, built.counts, max_reject_fraction)
    print(
        f"{settings.output_dir}: is complete already, by the names and brands of its photos; to build it again, add "
        "--overwrite."
    )
    return built


def _source(listing: sources.Listing) -> dict[str, str]:
    return {"root": paths.shown(listing.root), "fingerprint": listing.fingerprint}


def _command(settings: build_output.Settings, previous: Previous | None) -> str:
    append = " --append" if previous else ""
    return f"carbrand build{append} {settings.choices.command}{settings.sizing.command}"


def load_previous(folder: str | os.PathLike[str]) -> Previous:
    """The dataset in `folder`, to append to.

    Raises:
        DataError: if it is damaged, as far as that shows without reading the shards.
    """
    built = manifest.load(folder)
    verify.check_quickly(folder, max_hash_bytes=0)
    problems = verify.check_folder(pathlib.Path(folder), built)
    for name in manifest.REPORTS:
        problems += verify_shard.check_file(pathlib.Path(folder), name, built.files.get(name))
    for problem in problems:
        raise errors.DataError(f"{folder}: {problem}. Restore it; `carbrand verify {folder}` says all that differs.")
    return Previous(str(pathlib.Path(folder).absolute()), built)
