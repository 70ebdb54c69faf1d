"""The output folder of a build: what lies where while it runs, and what it takes for it to be complete."""

import collections
import contextlib
import dataclasses
import json
import pathlib
import shutil
from collections.abc import Iterator
from typing import Any

import numpy as np

import carbrand
from beam_jobs import sharded_writer
from carbrand import errors, files
from carbrand.data import manifest, records, sources

WORK_FOLDER = ".build"  # in the output folder, until the build is complete
REPORT = "report.json"
PROGRESS = "progress"
REJECTS, DUPLICATES, CONFLICTS = "rejects.jsonl", "duplicates.jsonl", "conflicts.jsonl"


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the steps of a build need to know; see `build_dataset.run`."""

    output_dir: str
    cache_dir: str
    brands: tuple[str, ...]
    num_shards: int | None
    fractions: tuple[float, float, float]
    seed: int
    resize_short_px: int | None
    jpeg_quality: int

    @property
    def work_dir(self) -> str:
        """For everything that a complete dataset does not need."""
        return str(pathlib.Path(self.output_dir, WORK_FOLDER))

    @property
    def index_dir(self) -> str:
        """For the parts of the index, one file per shard."""
        return str(pathlib.Path(self.work_dir, "index"))


@contextlib.contextmanager
def locked(settings: Settings) -> Iterator[None]:
    """Makes the work folder, and keeps a second build out of it; the lock ends with this process at the latest."""
    pathlib.Path(settings.work_dir).mkdir(parents=True, exist_ok=True)
    with files.locked(
        pathlib.Path(settings.work_dir, "lock"), f"--output={settings.output_dir}: another build is writing here."
    ):
        yield


def remove_old_output(settings: Settings) -> None:
    """Removes what an earlier build left, except the cache; the manifest first, so that nothing half looks complete."""
    output = pathlib.Path(settings.output_dir)
    (output / manifest.FILE_NAME).unlink(missing_ok=True)
    for pattern in ("carbrand-*.tfrecord-*", "index-*.npy", ".carbrand-*.tmp", ".index-*.tmp"):
        for path in output.glob(pattern):
            path.unlink()
    shutil.rmtree(settings.index_dir, ignore_errors=True)
    for name in (REPORT, PROGRESS):
        pathlib.Path(settings.work_dir, name).unlink(missing_ok=True)


def finish(settings: Settings, num_seen: int, max_reject_fraction: float, command: str) -> manifest.Manifest:
    """Makes the output complete, or raises what speaks against it."""
    report = collections.defaultdict(list, json.loads(pathlib.Path(settings.work_dir, REPORT).read_text()))
    for name, kind in ((REJECTS, "rejected"), (DUPLICATES, "duplicate"), (CONFLICTS, "conflict")):
        files.write_jsonl(pathlib.Path(settings.output_dir, name), sorted(report[kind], key=lambda row: row["name"]))
    built_splits = {name: _join_split(settings, name, report["shard"]) for name in manifest.SPLITS}
    counts = _counts(report, num_seen, built_splits)
    try:
        _check_sum(counts)
        _check_brands(settings, built_splits, report)
        _check_rejects(settings, counts, max_reject_fraction)
    except errors.CarbrandError:
        remove_old_output(settings)
        raise
    built = manifest.Manifest(
        format_version=records.FORMAT_VERSION,
        carbrand_version=carbrand.__version__,
        brands=settings.brands,
        splits=built_splits,
        resize_short_px=settings.resize_short_px,
        jpeg_quality=settings.jpeg_quality,
        seed=settings.seed,
        fractions=settings.fractions,
        counts=counts,
        fingerprint=manifest.fingerprint_of(settings.brands, built_splits),
        command=command,
    )
    manifest.write(settings.output_dir, built)
    shutil.rmtree(settings.work_dir)
    return built


def summary(built: manifest.Manifest, output_dir: str) -> str:
    """What was built, in a few lines for people."""
    counts = built.counts
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
    return "\n".join([*lines, f"Wrote {output_dir}, fingerprint {built.fingerprint[:12]}"])


def _join_split(settings: Settings, name: str, rows: list[dict[str, Any]]) -> manifest.Split:
    """Joins the parts of a split's index into one file."""
    ordered = sorted((row for row in rows if row["split"] == name), key=lambda row: row["number"])
    parts = [
        np.load(pathlib.Path(settings.index_dir, sharded_writer.index_part(name, row["number"]))) for row in ordered
    ]
    index = np.concatenate([np.zeros(0, records.INDEX_DTYPE), *parts])
    files.write_bytes(pathlib.Path(settings.output_dir, manifest.index_name(name)), manifest.index_bytes(index))
    brand_counts = np.bincount(index["label"], minlength=len(settings.brands))
    return manifest.Split(tuple(manifest.Shard(**row["shard"]) for row in ordered), tuple(brand_counts.tolist()))


def _counts(report: dict[str, list], num_seen: int, built_splits: dict[str, manifest.Split]) -> dict[str, Any]:
    reasons = collections.Counter(row["reason"] for row in report["rejected"])
    return {
        "seen": num_seen,
        "kept": sum(part.num_examples for part in built_splits.values()),
        "duplicate": len(report["duplicate"]),
        "conflict": len(report["conflict"]),
        "rejected": dict(sorted(reasons.items())),
    }


def _check_sum(counts: dict[str, Any]) -> None:
    accounted = counts["kept"] + counts["duplicate"] + counts["conflict"] + sum(counts["rejected"].values())
    if accounted != counts["seen"]:
        raise errors.BuildError(
            f"the pipeline lost photos: {counts['seen']} files seen, {accounted} accounted for ({counts}). "
            "Build with --workers 1, and report this."
        )


def _check_brands(settings: Settings, built_splits: dict[str, manifest.Split], report: dict[str, list]) -> None:
    kept = np.sum([part.brand_counts for part in built_splits.values()], axis=0)
    for brand, count in zip(settings.brands, kept, strict=True):
        if count == 0:
            reasons = collections.Counter(
                row.get("reason", "the same photo under several brands")
                for row in report["rejected"] + report["conflict"]
                if sources.normalise_brand(row["name"].partition("/")[0]) == brand
            )
            raise errors.DataError(
                f"{brand}: no photo of this brand can be used ({_by_reason(reasons)}); see {REJECTS} and {CONFLICTS} "
                f"in {settings.output_dir}. Add photos, or remove its folder."
            )


def _check_rejects(settings: Settings, counts: dict[str, Any], max_reject_fraction: float) -> None:
    rejected = sum(counts["rejected"].values())
    if rejected > max_reject_fraction * counts["seen"]:
        raise errors.GateError(
            f"{rejected} of {counts['seen']} files are rejected ({_by_reason(counts['rejected'])}), more than "
            f"--max_reject_fraction={max_reject_fraction:g}; see {settings.output_dir}/{REJECTS}. "
            "Remove them, or raise --max_reject_fraction."
        )


def _by_reason(reasons: dict[str, int]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in collections.Counter(reasons).most_common(3))
