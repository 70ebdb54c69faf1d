"""Labelled photos from a folder, a pattern, a manifest or a TFDS dataset -> a stream of photos -> a listing on disk.

A listing may name 100 million photos, so no step here holds more than one chunk of it. Whatever the source, the same
photos with the same labels give the same listing, up to the order.
"""

import collections
import dataclasses
import hashlib
import itertools
import json
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import BinaryIO, Protocol

from carbrand import errors, files
from carbrand.data import brands, folders, paths, tables, tfds_source
from carbrand.data import columns as photo_columns
from carbrand.data.columns import Fields

TFDS_PREFIX = "tfds:"
# Rows of the first chunks and of the last: a small source is to give every worker a chunk, a large one few files.
_FIRST_CHUNK_ROWS, _MAX_CHUNK_ROWS = 100, 5_000
_CHUNKS_PER_SIZE = 8


@dataclasses.dataclass(frozen=True)
class Photo:
    """A labelled photo that may or may not be readable.

    Attributes:
        uri: where to open it: an absolute path, a remote one such as gs://bucket/1.jpg, or tfds:…, see `local_path`.
        brand: normalised, see `brands.Names`.
        label: the brand as the source writes it.
        model: as the source writes it, or as --brand_from finds it in the label; '' if unknown.
        group: photos of one group belong in one split; '' if none.
        split: that the source demands: 'train', 'validation' or 'test'; '' if none.
        extra: all other columns of the source, as a JSON object with sorted keys; '' if none.
    """

    uri: str
    brand: str
    label: str
    model: str = ""
    group: str = ""
    split: str = ""
    extra: str = ""


class Files(Protocol):
    """Where files are listed and opened: `local_files`, or `beam_jobs.remote` for buckets too."""

    def match(self, pattern: str) -> Iterator[tuple[str, int]]:
        """URI and size in bytes of every file that fits, in no order; see `paths.Pattern`."""

    def open(self, uri: str) -> BinaryIO:
        """The file's bytes as they are stored."""


@dataclasses.dataclass(frozen=True)
class Listing:
    """All photos of a source, in chunks on disk.

    Attributes:
        paths: of the chunks; see `read_chunk`.
        root: the longest folder that all URIs have in common; where they are of one brand, the folder that holds the
            brand's; see `name_of`.
        brand_counts: photos by brand, sorted by brand.
        labels: brand -> its labels as the source writes them, sorted.
        given_splits: that the source names, sorted.
        has_groups: whether the source names any group.
        fingerprint: of the photos, by their names below `root`, whatever their order; 64 hexadecimal digits.
    """

    paths: tuple[str, ...]
    num_photos: int
    root: str
    brand_counts: dict[str, int]
    labels: dict[str, tuple[str, ...]]
    given_splits: tuple[str, ...]
    has_groups: bool
    fingerprint: str


def read(
    source: str,
    *,
    brand_names: brands.Names,
    columns: Mapping[str, str] = {},
    paths_from: str = "",
    files: Files,
    spool_dir: pathlib.Path,
) -> Iterator[Photo]:
    """The photos of `source`, in no order.

    Args:
        source: a folder with one folder of photos per brand, here or remote (below that, folders are models); a pattern
            with wildcards, before the first of which lies such a folder; a manifest (.csv, .tsv, .jsonl, .ndjson or
            .parquet) with the columns `path` or `uri`, `brand` and, as may be, `model`, `group` and `split`; or
            tfds:NAME[:VERSION] or tfds:FOLDER, a TFDS dataset that lies prepared on disk.
        brand_names: how to read a brand out of a label.
        columns: our column -> what the manifest or dataset calls it.
        paths_from: the folder to which paths in a manifest are relative; by default the manifest's own.
        files: lists and opens files.
        spool_dir: for the photos of a TFDS dataset, which are no files; see `local_path`.

    Raises:
        ConfigError: if an argument cannot work, or a package for the source is missing.
        DataError: if the source does not exist, holds no photo, or cannot be read as described.
    """
    photo_columns.check(columns)
    is_empty = True
    for fields in _read(source, columns, paths_from, files, spool_dir):
        is_empty = False
        yield _photo(fields, brand_names)
    if is_empty:
        raise errors.DataError(
            f"{source}: no photos. Put the photos of each brand in a folder named after the brand, or name a manifest."
        )


def local_path(uri: str, spool_dir: pathlib.Path) -> pathlib.Path:
    """Where on this machine the bytes of a photo that is not remote are; those of tfds: URIs are in `spool_dir`."""
    if uri.startswith(TFDS_PREFIX):
        return tfds_source.spooled_path(uri, spool_dir)
    return pathlib.Path(uri)


def write_listing(photos: Iterable[Photo], folder: pathlib.Path, *, known_brands: Sequence[str] = ()) -> Listing:
    """Writes `photos` to chunk files in `folder`, in place of those of an earlier listing.

    Args:
        photos: in any order.
        folder: made if need be.
        known_brands: of a dataset that the photos will be added to.

    Raises:
        DataError: if there are fewer than two brands, or one has a name without letters and digits.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.glob("chunk-*.jsonl"):
        path.unlink()
    tally = _Tally()
    chunks = tuple(_write_chunks(tally.count(photos), folder))
    root = _root(tally)
    _check_brands(root, {*tally.brand_counts, *known_brands})
    return Listing(
        paths=chunks,
        num_photos=tally.brand_counts.total(),
        root=root,
        brand_counts=dict(sorted(tally.brand_counts.items())),
        labels={brand: tuple(sorted(labels)) for brand, labels in sorted(tally.labels.items())},
        given_splits=tuple(sorted(tally.splits)),
        has_groups=tally.has_groups,
        fingerprint=_fingerprint(chunks, root),
    )


def read_chunk(path: str) -> Iterator[Photo]:
    """The photos of one of `Listing.paths`."""
    with pathlib.Path(path).open("rb") as file:
        yield from map(_parse, file)


def slices_of_chunk(path: str, num_photos: int) -> Iterator[tuple[str, int, int]]:
    """One of `Listing.paths`, in slices of so many photos, for `read_slice`."""
    with pathlib.Path(path).open("rb") as file:
        offset = 0
        while lines := list(itertools.islice(file, num_photos)):
            yield path, offset, len(lines)
            offset += sum(map(len, lines))


def read_slice(place: tuple[str, int, int]) -> Iterator[Photo]:
    """The photos of one of the slices that `slices_of_chunk` finds."""
    path, offset, num_photos = place
    with pathlib.Path(path).open("rb") as file:
        file.seek(offset)
        yield from map(_parse, itertools.islice(file, num_photos))


def name_of(uri: str, root: str) -> str:
    r"""`uri` relative to `root`, with '/'; bytes that are no UTF-8 are shown as \xNN."""
    return paths.shown(uri.removeprefix(paths.prefix_of(root)))


class _Tally:
    """What is known of a listing only at its end, gathered while its photos pass by."""

    def __init__(self) -> None:
        self.prefix = ""  # of all URIs so far, up to and with a '/'
        self.brand_counts: collections.Counter[str] = collections.Counter()
        self.labels: dict[str, set[str]] = collections.defaultdict(set)
        self.splits: set[str] = set()
        self.has_groups = False

    def count(self, photos: Iterable[Photo]) -> Iterator[Photo]:
        for photo in photos:
            if photo.brand not in self.brand_counts:
                _check_brand(photo)
            self.prefix = _common_prefix(self.prefix if self.brand_counts else photo.uri, photo.uri)
            self.brand_counts[photo.brand] += 1
            self.labels[photo.brand].add(photo.label)
            self.has_groups = self.has_groups or bool(photo.group)
            if photo.split:
                self.splits.add(photo.split)
            yield photo


def _root(tally: _Tally) -> str:
    """The longest folder that all URIs have in common; if they are of one brand, the folder that holds the brand's."""
    prefix = tally.prefix
    if len(tally.brand_counts) == 1:
        (labels,) = tally.labels.values()
        parts = prefix.split("/")
        prefix = "/".join([*parts[: next((n for n, part in enumerate(parts) if part in labels), -1)], ""])
    return prefix if _is_top(prefix) else prefix.rstrip("/")


def _common_prefix(prefix: str, uri: str) -> str:
    """The longest start of `prefix`, up to a '/', with which `uri` begins."""
    while not (prefix.endswith("/") and uri.startswith(prefix)) and prefix:
        prefix = prefix[: prefix.rstrip("/").rfind("/") + 1]
    return prefix


def _is_top(prefix: str) -> bool:
    return prefix == "/" or prefix.endswith("://")


def _check_brand(photo: Photo) -> None:
    if not any(letter.isalnum() for letter in photo.brand):
        raise errors.DataError(
            f"{photo.uri}: the name of its brand, {photo.label!r}, has no letters or digits. Name the brand."
        )


def _check_brands(root: str, found: set[str]) -> None:
    if len(found) < 2:
        only = f"only {next(iter(found))!r}" if found else "none"
        raise errors.DataError(
            f"{root or 'the photos'}: a classifier needs at least two brands, found {only}. Put the photos of each "
            "brand in a folder named after the brand, or name the brands in a manifest."
        )


def _write_chunks(photos: Iterator[Photo], folder: pathlib.Path) -> Iterator[str]:
    for number in itertools.count():
        num_rows = min(_FIRST_CHUNK_ROWS * 2 ** (number // _CHUNKS_PER_SIZE), _MAX_CHUNK_ROWS)
        rows = [json.dumps(vars(photo)) for photo in itertools.islice(photos, num_rows)]
        if not rows:
            return
        path = folder / f"chunk-{number:06d}.jsonl"
        files.write_text(path, "\n".join([*rows, ""]))
        yield str(path)


def _fingerprint(chunks: Iterable[str], root: str) -> str:
    """The sum of the photos' hashes: equal in any order, and two equal photos do not cancel out as under XOR."""
    total = 0
    for path in chunks:
        for photo in read_chunk(path):
            row = [name_of(photo.uri, root), *list(vars(photo).values())[1:]]
            total += int.from_bytes(hashlib.sha256(json.dumps(row).encode()).digest(), "big")
    return f"{total % 2**256:064x}"


def _parse(line: bytes) -> Photo:
    return Photo(**json.loads(line))


def _read(
    source: str, columns: Mapping[str, str], paths_from: str, files: Files, spool_dir: pathlib.Path
) -> Iterator[Fields]:
    if source.startswith(TFDS_PREFIX):
        rows = tfds_source.read(source.removeprefix(TFDS_PREFIX), columns, spool_dir)
        return photo_columns.read(rows, columns, source)
    source = _absolute(source)
    if tables.is_table(source) and not os.path.isdir(source):  # noqa: PTH112  source may be remote
        return _read_tables(source, columns, _absolute(paths_from), files)
    if paths_from:
        raise errors.ConfigError(f"{source}: is no manifest, whose paths --paths_from could mean. Leave it out.")
    if columns:
        raise errors.ConfigError(f"{source}: has no columns; only a manifest or TFDS dataset has. Leave --column out.")
    if not paths.is_remote(source):
        return folders.read_local(source)
    pattern = source if paths.has_wildcard(source) else f"{source.rstrip('/')}/**"
    return folders.read(paths.parse_pattern(pattern).root, (uri for uri, _ in files.match(pattern)))


def _absolute(place: str) -> str:
    """`place`, if it is a path on this machine, from the root on, without resolving links; '' stays."""
    if not place or paths.is_remote(place):
        return place
    return os.path.abspath(os.path.expanduser(place))  # noqa: PTH100, PTH111


def _read_tables(source: str, columns: Mapping[str, str], paths_from: str, files: Files) -> Iterator[Fields]:
    """Of one manifest, or of all that fit a pattern."""
    is_pattern = paths.has_wildcard(source) and not os.path.exists(source)  # noqa: PTH110  source may be remote
    for uri in sorted(uri for uri, _ in files.match(source)) if is_pattern else [source]:
        with files.open(uri) as file:
            folder = paths_from or uri.rpartition("/")[0] or "/"
            yield from photo_columns.read(tables.read(uri, file), columns, uri, folder)


def _photo(fields: Fields, names: brands.Names) -> Photo:
    brand, model = names.brand_and_model(fields.label)
    return Photo(fields.uri, brand, fields.label, model or fields.model, fields.group, fields.split, fields.extra)
