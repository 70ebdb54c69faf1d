"""A photo of a listing -> what later steps need to know, and its pixels in the cache. Local ones need no Beam."""

import dataclasses
import functools
import json
import os
import pathlib
import pickle
from concurrent import futures

from beam_jobs import build_output, progress
from carbrand import errors, files
from carbrand.data import cache, catalogue, images, local_files, paths, sources

_MAX_THREADS = 8  # more would wait for Python's lock, and each may hold a decoded photo of 240 MB


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


def check_ahead(listing_paths: tuple[str, ...], settings: build_output.Settings) -> None:
    """Checks all photos of a listing in threads of this process; `check_slice` then gives what they found.

    For few photos: no worker process takes its time to start, and what outlives a kill is done first, before Beam is
    loaded.

    Raises:
        CarbrandError: as `check`.
    """
    pathlib.Path(settings.ahead_dir).mkdir(parents=True)
    places = [place for path in listing_paths for place in sources.slices_of_chunk(path, settings.photos_per_pack)]
    with futures.ThreadPoolExecutor(min(len(os.sched_getaffinity(0)), _MAX_THREADS)) as pool:
        results = pool.map(functools.partial(check_slice, settings=settings), places)
        for place, found in zip(places, results, strict=True):
            _path_ahead(place, settings).write_bytes(pickle.dumps(found, pickle.HIGHEST_PROTOCOL))


def check_slice(place: tuple[str, int, int], settings: build_output.Settings) -> list[Checked]:
    """What `check` says of each photo of a slice of the listing, now or `check_ahead`."""
    ahead = _path_ahead(place, settings)
    if ahead.exists():
        return pickle.loads(ahead.read_bytes())
    return [check(photo, settings) for photo in sources.read_slice(place)]


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
    return usable(name, photo, sha256, key, entry, column_group(photo, choices.group_by) or sha256)


def usable(
    name: str, photo: sources.Photo, sha256: str, key: str, entry: images.NormalisedImage, group: str
) -> Checked:
    """What is known of a photo whose pixels are in the cache."""
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


def old_cache_key(fingerprint: str, sha256: str) -> str:
    """Names a photo of the dataset with this fingerprint: another version may have normalised it otherwise."""
    return files.sha256(f"{fingerprint}:{sha256}".encode())


def count_one(settings: build_output.Settings, what: bytes) -> None:
    """Tells the progress bar of one more photo."""
    descriptor = os.open(settings.progress_path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(descriptor, what)
    finally:
        os.close(descriptor)


def _path_ahead(place: tuple[str, int, int], settings: build_output.Settings) -> pathlib.Path:
    path, offset, _ = place
    return pathlib.Path(settings.ahead_dir, f"{pathlib.Path(path).stem}-{offset}.pickle")


def _read(photo: sources.Photo, settings: build_output.Settings) -> bytes:
    """The file, but no more of it than `images.normalise` needs to see that it is too large."""
    if paths.is_remote(photo.uri):
        from beam_jobs import remote  # loads Beam

        return remote.read(photo.uri, images.MAX_FILE_BYTES + 1)
    return local_files.read(str(sources.local_path(photo.uri, settings.spool_dir)), images.MAX_FILE_BYTES + 1)


def _normalise(content: bytes, choices: build_output.Choices) -> cache.Entry:
    try:
        return images.normalise(content, resize_short_px=choices.resize_short_px, jpeg_quality=choices.jpeg_quality)
    except images.Rejected as rejected:
        return cache.Rejection(rejected.reason, rejected.detail)
