"""Photos of a listing, or of a dataset to append to -> what later steps need to know, and pixels in the cache."""

import dataclasses
import itertools
import json
import pathlib
from collections.abc import Iterator
from typing import Any

from beam_jobs import build_output, checking, packed, progress, runners
from beam_jobs.checking import Checked
from carbrand import errors, files
from carbrand.data import cache, catalogue, images, manifest, records, sources

beam = runners.beam  # not imported here: runners keeps it quiet


@dataclasses.dataclass(frozen=True)
class OldShard:
    """A shard of the dataset that is appended to: where it is, and what tells it from others."""

    folder: str
    split: str
    name: str
    catalogue_sha256: str
    fingerprint: str  # of the dataset


class CheckPhotos(beam.PTransform):
    """PBegin -> PCollection[Pack[Checked]]: the photos of a listing, each read, checked and normalised."""

    def __init__(self, listing_paths: tuple[str, ...], settings: build_output.Settings) -> None:
        """Sets the files of the listing, on a disk that all workers share."""
        super().__init__()
        self._paths = listing_paths
        self._settings = settings

    def expand(self, begin: beam.Pipeline) -> beam.PCollection:
        """The steps."""
        return (
            begin
            | "Listing" >> beam.Create(self._paths)  # path
            | "Slices"
            >> beam.FlatMap(sources.slices_of_chunk, self._settings.photos_per_pack)  # (path, place, number of photos)
            | "SpreadOverWorkers" >> beam.Reshuffle()  # (path, place, number of photos)
            | "Check" >> beam.Map(_check_pack, self._settings)  # Pack[Checked]
        )


class ReadOldPhotos(beam.PTransform):
    """PBegin -> two of PCollection[Pack[Checked]]: a dataset's photos, their pixels in the cache, and its conflicts."""

    def __init__(self, folder: str, dataset: manifest.Manifest, settings: build_output.Settings) -> None:
        """Sets the dataset, on a disk that all workers share."""
        super().__init__()
        self._folder = folder
        self._shards = [
            OldShard(folder, split, shard.name, dataset.files[catalogue.name_of(shard.name)], dataset.fingerprint)
            for split, part in dataset.splits.items()
            for shard in part.shards
        ]
        self._settings = settings

    def expand(self, begin: beam.Pipeline) -> Any:
        """The steps."""
        kept = (
            begin
            | "OldShards" >> beam.Create(self._shards)  # OldShard
            | "SpreadShards" >> beam.Reshuffle()  # OldShard
            | "ReadOld" >> beam.FlatMap(_old_packs, self._settings)  # Pack[Checked]
        )
        conflicts = (
            begin
            | "OldFolder" >> beam.Create([self._folder])  # path
            | "ReadConflicts" >> beam.FlatMap(_conflict_packs, self._settings.photos_per_pack)  # Pack[Checked]
        )
        return kept, conflicts


def read_old(shard: OldShard, settings: build_output.Settings) -> Iterator[Checked]:
    """The photos of a shard; their JPEGs go to the cache.

    Raises:
        DataError: if the shard or its catalogue is missing or damaged.
    """
    path = pathlib.Path(shard.folder, shard.name)
    catalogue_path = path.with_name(catalogue.name_of(shard.name))
    damaged = errors.DataError(
        f"{path}: is not what was written, or its catalogue is not. `carbrand verify {shard.folder}` says what differs."
    )
    if not path.exists() or not catalogue_path.exists():
        raise damaged
    if files.sha256_of_file(catalogue_path) != shard.catalogue_sha256:
        raise damaged
    with path.open("rb") as file:
        payloads = records.read_all(file, where=str(path))
        for row, payload in itertools.zip_longest(catalogue.read(catalogue_path), payloads):
            record = records.parse(payload) if row and payload else {}
            encoded = record.get("image/encoded")
            if not isinstance(encoded, bytes) or record["image/key/sha256"] != row.sha256.encode():
                raise damaged
            entry = images.NormalisedImage(
                encoded=encoded,
                height=row.height,
                width=row.width,
                original_height=row.original_height,
                original_width=row.original_width,
                perceptual_hash=row.perceptual_hash,
                mean_rgb=row.mean_rgb,
            )
            key = checking.old_cache_key(shard.fingerprint, row.sha256)
            if cache.load(settings.cache_dir, key) is None:
                cache.store(settings.cache_dir, key, entry)
            checking.count_one(settings, progress.CHECKED)
            checked = checking.usable(row.name, _photo_of(row), row.sha256, key, entry, row.group)
            yield dataclasses.replace(checked, old_split=shard.split)


def read_old_conflicts(folder: str) -> Iterator[Checked]:
    """The photos that were kept out of a dataset for being under several brands: so are exact copies of them."""
    for row in files.read_jsonl(pathlib.Path(folder, manifest.CONFLICTS)):
        photo = sources.Photo(row["uri"], row["brand"], row["brand"])
        yield Checked(row["name"], photo, row["sha256"], "", is_conflict=True)


def _check_pack(place: tuple[str, int, int], settings: build_output.Settings) -> packed.Pack:
    return packed.Pack(checking.check_slice(place, settings))


def _old_packs(shard: OldShard, settings: build_output.Settings) -> Iterator[packed.Pack]:
    return packed.packs(read_old(shard, settings), settings.photos_per_pack)


def _conflict_packs(folder: str, photos_per_pack: int) -> Iterator[packed.Pack]:
    return packed.packs(read_old_conflicts(folder), photos_per_pack)


def _photo_of(row: catalogue.Row) -> sources.Photo:
    extra = json.dumps(row.extra, sort_keys=True, ensure_ascii=False) if row.extra else ""
    return sources.Photo(row.uri, row.brand, row.label, row.model, row.source_group, row.source_split, extra)
