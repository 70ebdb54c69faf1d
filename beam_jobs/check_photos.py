"""Photos of a listing, or of a dataset to append to -> what later steps need to know, and pixels in the cache."""

import dataclasses
import itertools
import json
import os
import pathlib
from collections.abc import Iterator
from typing import Any

from beam_jobs import build_output, packed, progress, remote, runners
from carbrand import errors, files
from carbrand.data import cache, catalogue, images, manifest, paths, records, sources

beam = runners.beam  # not imported here: runners keeps it quiet


@dataclasses.dataclass(frozen=True)
class Checked:
    """A photo after checking: where its pixels are, or why it is rejected.

    Attributes:
        name: relative to the source's root.
        photo: as the source lists it.
        sha256: of the file.
        cache_key: of its entry in the cache.
        rejection: why it cannot be used; then what follows is empty.
        group: of photos that must stay in one split; the hash if it stands alone.
        signature: see `near_duplicates.signature`, in hexadecimal.
        num_pixels: of the file.
        num_bytes: of the JPEG in the cache.
        old_split: in the dataset that is appended to, or "" for a new photo.
        is_conflict: it was kept out of that dataset, being under several brands.
    """

    name: str
    photo: sources.Photo
    sha256: str
    cache_key: str
    rejection: cache.Rejection | None = None
    group: str = ""
    signature: str = ""
    num_pixels: int = 0
    num_bytes: int = 0
    old_split: str = ""
    is_conflict: bool = False


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
            | "Check" >> beam.Map(check_slice, self._settings)  # Pack[Checked]
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


def check_slice(place: tuple[str, int, int], settings: build_output.Settings) -> packed.Pack:
    """`check` for the photos of a slice of the listing."""
    return packed.Pack(check(photo, settings) for photo in sources.read_slice(place))


def check(photo: sources.Photo, settings: build_output.Settings) -> Checked:
    """Reads, checks and normalises one photo, or finds the outcome in the cache; the pixels stay in the cache.

    Raises:
        DataError: if there is no permission to read the file.
        BuildError: if it cannot be read now: that says nothing about the photo, so it is not rejected.
    """
    name = sources.name_of(photo.uri, settings.root)
    try:
        content = _read(photo, settings)
    except errors.NotFoundError:  # a table may name what is no longer there
        count_one(settings, progress.REJECTED)
        return Checked(name, photo, "", "", cache.Rejection("not_found", "no regular file of this name"))
    sha256 = files.sha256(content)
    choices = settings.choices
    key = images.cache_key(sha256, resize_short_px=choices.resize_short_px, jpeg_quality=choices.jpeg_quality)
    entry = cache.load(settings.cache_dir, key)
    if entry is None:
        entry = _normalise(content, choices)
        cache.store(settings.cache_dir, key, entry)
    if isinstance(entry, cache.Rejection):
        count_one(settings, progress.REJECTED)
        return Checked(name, photo, sha256, key, entry)
    count_one(settings, progress.CHECKED)
    return _usable(name, photo, sha256, key, entry, column_group(photo, choices.group_by) or sha256)


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
            key = old_cache_key(shard.fingerprint, row.sha256)
            if cache.load(settings.cache_dir, key) is None:
                cache.store(settings.cache_dir, key, entry)
            count_one(settings, progress.CHECKED)
            checked = _usable(row.name, _photo_of(row), row.sha256, key, entry, row.group)
            yield dataclasses.replace(checked, old_split=shard.split)


def read_old_conflicts(folder: str) -> Iterator[Checked]:
    """The photos that were kept out of a dataset for being under several brands: so are exact copies of them."""
    for row in files.read_jsonl(pathlib.Path(folder, manifest.CONFLICTS)):
        photo = sources.Photo(row["uri"], row["brand"], row["brand"])
        yield Checked(row["name"], photo, row["sha256"], "", is_conflict=True)


def old_cache_key(fingerprint: str, sha256: str) -> str:
    """Names a photo of the dataset with this fingerprint: another version may have normalised it otherwise."""
    return files.sha256(f"{fingerprint}:{sha256}".encode())


def row_of(checked: Checked, entry: images.NormalisedImage) -> catalogue.Row:
    """What the catalogue says of a kept photo."""
    photo = checked.photo
    return catalogue.Row(
        name=checked.name,
        uri=paths.shown(photo.uri),
        brand=photo.brand,
        label=photo.label,
        model=photo.model,
        group=checked.group,
        source_group=photo.group,
        source_split=photo.split,
        sha256=checked.sha256,
        perceptual_hash=entry.perceptual_hash,
        height=entry.height,
        width=entry.width,
        original_height=entry.original_height,
        original_width=entry.original_width,
        mean_rgb=entry.mean_rgb,
        bytes=len(entry.encoded),
        extra=json.loads(photo.extra or "{}"),
    )


def column_group(photo: sources.Photo, group_by: str) -> str:
    """The group that the source's column puts `photo` into, or "" for none."""
    if group_by == "group" and photo.group:
        return f"group:{photo.group}"
    if group_by == "model" and photo.model:
        return f"model:{photo.brand}/{photo.model}"
    return ""


def cached_image(cache_dir: str, key: str, name: str) -> images.NormalisedImage:
    """The pixels of a usable photo; `name` is for errors.

    Raises:
        BuildError: if its cache entry is gone or damaged.
    """
    entry = cache.load(cache_dir, key)
    if not isinstance(entry, images.NormalisedImage):
        raise errors.BuildError(
            f"{cache_dir}: the cached copy of {name} is gone or damaged. Run the same command again."
        )
    return entry


def count_one(settings: build_output.Settings, what: bytes) -> None:
    """Tells the progress bar of one more photo."""
    descriptor = os.open(settings.progress_path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(descriptor, what)
    finally:
        os.close(descriptor)


def _old_packs(shard: OldShard, settings: build_output.Settings) -> Iterator[packed.Pack]:
    return packed.packs(read_old(shard, settings), settings.photos_per_pack)


def _conflict_packs(folder: str, photos_per_pack: int) -> Iterator[packed.Pack]:
    return packed.packs(read_old_conflicts(folder), photos_per_pack)


def _read(photo: sources.Photo, settings: build_output.Settings) -> bytes:
    """The file, but no more of it than `images.normalise` needs to see that it is too large."""
    is_remote = remote.is_remote(photo.uri)
    uri = photo.uri if is_remote else str(sources.local_path(photo.uri, settings.spool_dir))
    return remote.read(uri, images.MAX_FILE_BYTES + 1)


def _normalise(content: bytes, choices: build_output.Choices) -> cache.Entry:
    try:
        return images.normalise(content, resize_short_px=choices.resize_short_px, jpeg_quality=choices.jpeg_quality)
    except images.Rejected as rejected:
        return cache.Rejection(rejected.reason, rejected.detail)


def _photo_of(row: catalogue.Row) -> sources.Photo:
    extra = json.dumps(row.extra, sort_keys=True, ensure_ascii=False) if row.extra else ""
    return sources.Photo(row.uri, row.brand, row.label, row.model, row.source_group, row.source_split, extra)


def _usable(
    name: str, photo: sources.Photo, sha256: str, key: str, entry: images.NormalisedImage, group: str
) -> Checked:
    return Checked(
        name,
        photo,
        sha256,
        key,
        group=group,
        signature=entry.perceptual_hash,
        num_pixels=entry.original_height * entry.original_width,
        num_bytes=len(entry.encoded),
    )
