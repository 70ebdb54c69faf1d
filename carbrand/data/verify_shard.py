"""One shard of a records folder, with its catalogue -> every problem in it, by record, and what the leakage gate needs.

Read once from beginning to end, a record at a time. A damaged record does not hide those after it.
"""

import dataclasses
import hashlib
import itertools
import os
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from typing import BinaryIO

import numpy as np

from carbrand import files
from carbrand.data import catalogue, frames, leakage, manifest, records

_FEATURE_OF_FIELD = {
    "sha256": "image/key/sha256",
    "name": "image/filename",
    "brand": "image/class/text",
    "label": "image/source/label",
    "model": "image/model",
    "group": "image/group",
    "perceptual_hash": "image/hash/perceptual",
    "height": "image/height",
    "width": "image/width",
    "original_height": "image/source/height",
    "original_width": "image/source/width",
}


@dataclasses.dataclass(frozen=True)
class Problem:
    """Something in a records folder that is not as it was written.

    Attributes:
        file: its name in the folder.
        what: is wrong, without a full stop.
        record: its number in the file, from 0, or None: the whole file.
        offset: where the record starts in the file, in bytes, or None.
        photo: the record's photo, or "" if it is not known.
    """

    file: str
    what: str
    record: int | None = None
    offset: int | None = None
    photo: str = ""

    def __str__(self) -> str:
        record = "" if self.record is None else f" record {self.record}"
        offset = "" if self.offset is None else f" at byte {self.offset}"
        photo = f" ({self.photo})" if self.photo else ""
        return f"{self.file}:{record}{offset}{photo}{':' * bool(record)} {self.what}"


@dataclasses.dataclass(frozen=True)
class Scan:
    """What one shard holds: its problems, and the keys of its sound records, [n] of `leakage.KEY_DTYPE`."""

    problems: list[Problem]
    keys: np.ndarray


def check_file(folder: pathlib.Path, name: str, sha256: str | None) -> list[Problem]:
    """What is wrong with a file that has to have this SHA-256, as a whole."""
    try:
        found = files.sha256_of_file(folder / name)
    except OSError as error:
        return [unreadable(name, error)]
    if sha256 is None:
        return [Problem(name, "has no hash in the manifest")]
    return [] if found == sha256 else [Problem(name, f"its SHA-256 is {found[:12]}…, not {sha256[:12]}…")]


def unreadable(name: str, error: OSError) -> Problem:
    """The problem that a file is missing, or cannot be read."""
    is_missing = isinstance(error, FileNotFoundError)
    return Problem(name, "is missing" if is_missing else f"cannot be read ({error.strerror})")


def scan(folder: pathlib.Path, built: manifest.Manifest, split: str, number: int) -> Scan:
    """Reads one shard, against its rows of the index and of the catalogue as far as those are sound themselves."""
    shard = built.splits[split].shards[number]
    reader = _Reader(folder, built, split, number)
    problems = _check_catalogue(folder, built, shard)
    rows: Iterable[catalogue.Row | None] = itertools.repeat(None)
    if not problems:
        rows = catalogue.read(folder / catalogue.name_of(shard.name))
    try:
        problems += reader.read(rows)
    except OSError as error:
        problems.append(unreadable(shard.name, error))
    return Scan(problems, reader.keys.array())


def index_rows(
    folder: pathlib.Path, built: manifest.Manifest, split: str, number: int, first: int | None = None
) -> np.ndarray | None:
    """The rows of one shard in the index of its split, or None if they are damaged.

    Args:
        folder: of records.
        built: its manifest.
        split: of the shard.
        number: of the shard.
        first: how many records the shards before it hold, if that is known.
    """
    part = built.splits[split]
    shard = part.shards[number]
    if first is None:
        first = sum(before.records for before in part.shards[:number])
    path = folder / manifest.index_name(split)
    row_bytes = records.INDEX_DTYPE.itemsize
    try:
        # The .npy header is not parsed: it has its share in the file's hash.
        offset = path.stat().st_size - (part.num_examples - first) * row_bytes
        rows = np.fromfile(path, records.INDEX_DTYPE, count=shard.records, offset=offset)
    except (OSError, ValueError):
        return None
    frame_bytes = rows["length"].astype(np.uint64) + np.uint64(records.FRAME_BYTES)
    ends = np.cumsum(frame_bytes)
    is_sound = (
        len(rows) == shard.records
        and (rows["shard"] == number).all()
        and (rows["offset"] == ends - frame_bytes).all()
        and ends[-1] == shard.bytes
    )
    return rows if is_sound else None


def contradiction_in(record: dict[str, bytes | int], brands: Sequence[str]) -> str:
    """What in a record can be true of no record, or ""."""
    label, encoded = record["image/class/label"], record["image/encoded"]
    assert isinstance(label, int)
    assert isinstance(encoded, bytes)
    if not 0 <= label < len(brands):
        return f"has the label {label}, which lies outside 0 to {len(brands) - 1}"
    if record["image/class/text"] != brands[label].encode():
        return f"has the label {label}, which is {brands[label]!r}, and the brand {_shown(record['image/class/text'])}"
    return "" if encoded.startswith(b"\xff\xd8\xff") else f"holds no JPEG: it starts with {encoded[:8]!r}"


def mismatch_of(record: dict[str, bytes | int], row: catalogue.Row) -> str:
    """In what a record and its row of the catalogue differ, or ""."""
    encoded = record["image/encoded"]
    assert isinstance(encoded, bytes)
    for field, feature in _FEATURE_OF_FIELD.items():
        value = getattr(row, field)
        if record[feature] != (value.encode() if isinstance(value, str) else value):
            return f"has the {field} {_shown(record[feature])}, the catalogue has {value!r}"
    return "" if row.bytes == len(encoded) else f"its JPEG has {len(encoded)} bytes, the catalogue has {row.bytes}"


def _check_catalogue(folder: pathlib.Path, built: manifest.Manifest, shard: manifest.Shard) -> list[Problem]:
    name = catalogue.name_of(shard.name)
    problems = check_file(folder, name, built.files.get(name))
    if problems:
        return problems
    try:
        num_rows = sum(1 for _ in catalogue.read(folder / name))
    except (ValueError, TypeError, KeyError) as error:
        return [Problem(name, f"holds a row that is none of a catalogue ({error})")]
    return [] if num_rows == shard.records else [Problem(name, f"has {num_rows} rows for {shard.records} records")]


@dataclasses.dataclass(frozen=True)
class _Place:
    """Of a record in its shard; see `Problem`."""

    record: int
    offset: int
    photo: str

    def problem(self, file: str, what: str) -> Problem:
        return Problem(file, what, self.record, self.offset, self.photo)


class _Reader:
    """Reads one shard from beginning to end, and collects what it finds."""

    def __init__(self, folder: pathlib.Path, built: manifest.Manifest, split: str, number: int) -> None:
        self._split = split
        self._built = built
        self._shard = built.splits[split].shards[number]
        self._path = folder / self._shard.name
        self._index = index_rows(folder, built, split, number)
        self._first = sum(before.records for before in built.splits[split].shards[:number])
        self._digest = hashlib.sha256()
        self._mismatches: list[Problem] = []
        self.keys = leakage.Keys(split, number, self._shard.records, photos_may_recur=built.conflicts == "keep")

    def read(self, rows: Iterable[catalogue.Row | None]) -> list[Problem]:
        """The problems of the shard; `rows` are its photos as the catalogue has them, or None for each."""
        with self._path.open("rb") as file:
            problems = [*self._check_size(file), *self._check_records(file, rows), *self._check_end(file)]
        if self._digest.hexdigest() == self._shard.sha256:  # then it is the catalogue that is wrong
            in_catalogue = catalogue.name_of(self._shard.name)
            return problems + [dataclasses.replace(item, file=in_catalogue, offset=None) for item in self._mismatches]
        problems += self._mismatches
        what = "its SHA-256 is not the manifest's, although every record is whole: it is of another build"
        return problems or [Problem(self._shard.name, what)]

    def _check_size(self, file: BinaryIO) -> Iterator[Problem]:
        size = os.fstat(file.fileno()).st_size
        if size != self._shard.bytes:
            yield Problem(self._shard.name, f"has {size} bytes instead of {self._shard.bytes}")

    def _check_records(self, file: BinaryIO, rows: Iterable[catalogue.Row | None]) -> Iterator[Problem]:
        num_read = 0
        spans = itertools.islice(self._spans(), self._shard.records)
        for number, ((offset, length), row) in enumerate(zip(spans, rows, strict=False)):
            frame = file.read(records.FRAME_BYTES + length)
            if not frame:
                break
            num_read += 1
            self._digest.update(frame)
            yield from self._check_frame(frame, length, row, _Place(number, offset, row.name if row else ""))
        if num_read < self._shard.records:
            yield Problem(self._shard.name, f"records {num_read} to {self._shard.records - 1} are missing")

    def _spans(self) -> Iterable[tuple[int, int]]:
        if self._index is None:
            return frames.find_all(self._path)
        return zip(self._index["offset"].tolist(), self._index["length"].tolist(), strict=True)

    def _check_frame(self, frame: bytes, length: int, row: catalogue.Row | None, place: _Place) -> Iterator[Problem]:
        damage = frames.damage_of(frame, length)
        if damage:
            yield place.problem(self._shard.name, damage)
            return
        try:
            record = records.parse(frame[frames.HEADER_BYTES : -4])
        except ValueError as error:
            yield place.problem(self._shard.name, f"cannot be understood ({error})")
            return
        yield from self._check_content(record, row, place)

    def _check_content(
        self, record: dict[str, bytes | int], row: catalogue.Row | None, place: _Place
    ) -> Iterator[Problem]:
        self._add_keys(record, place.record)
        contradiction = contradiction_in(record, self._built.brands)
        mismatch = mismatch_of(record, row) if row else ""
        label = record["image/class/label"]
        if contradiction:
            yield place.problem(self._shard.name, contradiction)
        elif mismatch:
            self._mismatches.append(place.problem(self._shard.name, mismatch))
        elif self._index is not None and self._index["label"][place.record] != label:
            what = f"has the label {self._index['label'][place.record]}, its record has {_shown(label)}"
            yield Problem(manifest.index_name(self._split), what, self._first + place.record)

    def _add_keys(self, record: dict[str, bytes | int], number: int) -> None:
        sha256, group = record["image/key/sha256"], record["image/group"]
        assert isinstance(sha256, bytes)
        assert isinstance(group, bytes)
        self.keys.add(number, sha256=sha256, group=group)

    def _check_end(self, file: BinaryIO) -> Iterator[Problem]:
        num_bytes = 0
        while content := file.read(2**20):
            num_bytes += len(content)
            self._digest.update(content)
        if num_bytes:
            yield Problem(self._shard.name, f"{num_bytes} bytes follow its last record")


def _shown(value: bytes | int) -> str:
    return repr(value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else value)
