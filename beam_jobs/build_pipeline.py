"""The steps of a build, from the listing to the finished shards.

Only metadata passes between the steps. Pixels wait in a cache on disk, from which a build that was stopped goes on, so
all workers need to share that disk. What the pipeline found reaches the process that started it in files, not in
metrics.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Iterable, Iterator

import numpy as np

from beam_jobs import (
    assign_splits,
    build_output,
    check_photos,
    checking,
    find_copies,
    finish_build,
    packed,
    progress,
    report,
    runners,
    sharded_writer,
    write_rows,
)
from carbrand.data import catalogue, leakage, manifest, paths, records

beam = runners.beam  # not imported here: runners keeps it quiet

LEAK_BUCKETS = 256  # of the leakage gate; 54 bytes per photo are held while one of them is checked


def build(
    listing_paths: tuple[str, ...],
    previous: finish_build.Previous | None,
    settings: build_output.Settings,
    pipeline: beam.Pipeline,
) -> None:
    """Applies the steps of the build to `pipeline`, whose elements are packs of what is noted.

    One leaf, and tags nowhere: some runners drop the others.
    """
    new = pipeline | "CheckPhotos" >> check_photos.CheckPhotos(listing_paths, settings)  # Checked
    checked = (new,)
    if previous:
        read_old = check_photos.ReadOldPhotos(previous.folder, previous.dataset, settings)
        checked += pipeline | "OldPhotos" >> read_old  # Checked, twice
    photos = checked | "FindCopies" >> find_copies.FindCopies(settings)  # Resolution
    old_folder = previous.folder if previous else None
    placed = photos | "AssignSplits" >> assign_splits.AssignSplits(settings, old_folder)  # Placed
    shards = (
        placed
        | "Record" >> packed.Map(_record, settings)  # sharded_writer.Record
        | "WriteShards"
        >> sharded_writer.WriteShards(
            settings.output_dir,
            settings.index_dir,
            functools.partial(encode, settings),
            shuffle_dir=settings.shuffle_dir,
            num_parts=settings.num_parts,
            seed=settings.choices.seed,
            sizing=settings.sizing,
        )  # a shard alone, no pack: sharded_writer.WrittenShard
    )
    leaks = (
        shards
        | "KeysOfShard" >> beam.Map(_keys_of_shard, settings)  # (bucket, leakage.KEY_DTYPE as bytes)
        | "GroupKeys" >> packed.GroupBytes(settings.shuffle_dir)  # a bucket alone, no pack: (bucket, [Slice])
        | "LeakRows" >> beam.Map(_leak_rows)  # report.Row
    )
    _ = (
        new | "RejectRows" >> packed.FlatMap(_reject_rows),  # report.Row
        photos | "CopyRows" >> packed.FlatMap(find_copies.rows_of),  # report.Row
        placed | "MovedRows" >> packed.FlatMap(assign_splits.rows_of, settings.split_rule),  # report.Row
        shards | "ShardRows" >> beam.Map(_shard_row),  # report.Row
        leaks,
    ) | "WriteRows" >> write_rows.WriteRows(settings.report_dir, settings.shuffle_dir)  # None


def encode(settings: build_output.Settings, record: sharded_writer.Record) -> tuple[bytes, catalogue.Row]:
    """The payload of `record`, with its pixels from the cache, and its row of the catalogue.

    Raises:
        BuildError: if the cache entry is gone.
    """
    checked = record.source
    assert isinstance(checked, checking.Checked)
    entry = checking.cached_image(settings.cache_dir, checked.cache_key, checked.name)
    row = checking.row_of(checked, entry)
    payload = records.encode(
        {
            "image/class/label": record.label,
            "image/class/text": row.brand.encode(),
            "image/encoded": entry.encoded,
            "image/filename": row.name.encode(),
            "image/group": row.group.encode(),
            "image/hash/perceptual": row.perceptual_hash.encode(),
            "image/height": row.height,
            "image/key/sha256": row.sha256.encode(),
            "image/model": row.model.encode(),
            "image/source/height": row.original_height,
            "image/source/label": row.label.encode(),
            "image/source/width": row.original_width,
            "image/width": row.width,
        }
    )
    checking.count_one(settings, progress.WRITTEN)
    return payload, row


def _record(placed: assign_splits.Placed, settings: build_output.Settings) -> sharded_writer.Record:
    checked = placed.checked
    brand = checked.photo.brand
    return sharded_writer.Record(
        placed.split, f"{checked.sha256}/{brand}", settings.brands.index(brand), checked.num_bytes, checked
    )


def _reject_rows(checked: checking.Checked) -> Iterator[report.Row]:
    if checked.rejection is not None:
        yield report.row(
            "rejected",
            {
                "name": checked.name,
                "uri": paths.shown(checked.photo.uri),
                "brand": checked.photo.brand,
                "reason": checked.rejection.reason,
                "detail": checked.rejection.detail,
            },
        )


def _shard_row(written: sharded_writer.WrittenShard) -> packed.Pack:
    return packed.Pack([report.row("shard", {"name": written.shard.name, **dataclasses.asdict(written)})])


def _keys_of_shard(written: sharded_writer.WrittenShard, settings: build_output.Settings) -> packed.Pack:
    """What the finished file says, not what the steps before meant to write."""
    shard, may_recur = written.shard, settings.choices.conflicts == "keep"
    keys = leakage.Keys(written.split, written.number, shard.records, photos_may_recur=may_recur)
    path = pathlib.Path(settings.output_dir, shard.name)
    with path.open("rb") as file:
        for number, payload in enumerate(records.read_all(file, where=str(path))):
            sha256, group = (records.parse_bytes(payload, name) for name in ("image/key/sha256", "image/group"))
            keys.add(number, sha256=bytes(sha256), group=bytes(group))
    return packed.Pack(leakage.by_bucket(keys.array(), LEAK_BUCKETS))


def _leak_rows(element: tuple[int, Iterable[packed.Slice]]) -> packed.Pack:
    keys = np.frombuffer(packed.join(element[1]), leakage.KEY_DTYPE)
    return packed.Pack(report.row("leak", _leak_row(pair)) for pair in leakage.find(keys))


def _leak_row(pair: np.ndarray) -> dict[str, object]:
    places = [
        {"split": manifest.SPLITS[key["split"]], "shard": int(key["shard"]), "record": int(key["record"])}
        for key in pair[::-1]
    ]
    return {"name": str(places), "is_group": bool(pair[0]["is_group"]), "places": places}
