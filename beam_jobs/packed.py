"""Rows through Beam in packs: each step takes many rows at once, and rows wait for their group in files.

A row that travels alone costs Beam about 50 µs and several kB at each step, all of them in the memory of one process
where Beam's local runner is used. A pack costs as much as one row; and of groups only the names of files pass through
Beam, on a disk that all workers share. Groups take several inputs, in a tuple, for the same reason: before Beam's
Flatten the local runner holds all rows. (Their type is Any here: of a tuple Beam would warn.)
"""

import collections
import dataclasses
import hashlib
import itertools
import os
import pathlib
import pickle
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from beam_jobs import local_worker, runners

beam = runners.beam  # not imported here: runners keeps it quiet


class Pack(list):
    """Rows on their way from step to step. A class of its own: Beam would encode each element of a plain list."""


@dataclasses.dataclass(frozen=True)
class Slice:
    """Some bytes of a file."""

    path: str
    offset: int
    length: int

    def read(self) -> bytes:
        """The bytes."""
        with open(self.path, "rb", buffering=0) as file:  # noqa: PTH123  the fastest way, taken very often
            return os.pread(file.fileno(), self.length, self.offset)


@dataclasses.dataclass(frozen=True)
class Rows:
    """Rows in files: may be read as often as need be, and only those of one pack are held at a time."""

    slices: tuple[Slice, ...]

    def __iter__(self) -> Iterator[Any]:
        for part in self.slices:
            yield from pickle.loads(part.read())

    def packs(self) -> list["Rows"]:
        """The same rows in parts, one for each pack that they came in."""
        return [Rows((part,)) for part in self.slices]


def packs(rows: Iterable[Any], size: int) -> Iterator[Pack]:
    """`rows` in packs of `size`, the last one smaller."""
    rows = iter(rows)
    while pack := Pack(itertools.islice(rows, size)):
        yield pack


def join(slices: Iterable[Slice]) -> bytes:
    """All bytes of a group of `GroupBytes`, in no order."""
    return b"".join(part.read() for part in slices)


def Map(function: Callable[..., Any], *arguments: Any) -> beam.ParDo:
    """PCollection[Pack[A]] -> PCollection[Pack[B]]: `function(row, *arguments)` for each row."""
    return beam.Map(_map, function, *arguments)


def FlatMap(function: Callable[..., Iterable[Any]], *arguments: Any) -> beam.ParDo:
    """PCollection[Pack[A]] -> PCollection[Pack[B]]: all that `function(row, *arguments)` yields for each row."""
    return beam.Map(_flat_map, function, *arguments)


class GroupBytes(beam.PTransform):
    """PCollection[Pack[(key, bytes)]] -> PCollection[(key, [Slice])]: a key is a string or a whole number."""

    def __init__(self, folder: str) -> None:
        """Sets the folder for the files, on a disk that all workers share."""
        super().__init__()
        self._folder = folder

    def expand(self, packs: beam.PCollection) -> beam.PCollection:
        """The steps."""
        return packs | beam.FlatMap(_write, self._folder) | beam.GroupByKey()


class GroupApart(beam.PTransform):
    """PCollection[Pack[(key, value)]], or several -> PCollection[(key, Rows)]: for few keys, or groups of any size."""

    def __init__(self, folder: str) -> None:
        """Sets the folder for the files, on a disk that all workers share."""
        super().__init__()
        self._folder = folder

    def expand(self, packs: Any) -> beam.PCollection:
        """The steps."""
        return _of_all(packs, _write_by_key, self._folder) | beam.GroupByKey() | beam.Map(_with_rows)


class GroupByKey(beam.PTransform):
    """PCollection[Pack[(key, value)]], or several -> PCollection[Pack[(key, [value])]]: small groups, by strings."""

    def __init__(self, folder: str, num_parts: int, part_of: Callable[[str, int], int] | None = None) -> None:
        """Sets the folder for the files, on a disk that all workers share, and what packs come out.

        Args:
            folder: for the files.
            num_parts: packs that come out, at most.
            part_of: in which of them (key, num_parts) goes; by default as its hash wants.
        """
        super().__init__()
        self._folder = folder
        self._num_parts = num_parts
        self._part_of = part_of or _hashed

    def expand(self, packs: Any) -> beam.PCollection:
        """The steps."""
        return (
            _of_all(packs, _write_by_part, self._folder, self._num_parts, self._part_of)
            | beam.GroupByKey()
            | beam.Map(_groups)
        )


def _of_all(packs: Any, write: Callable[..., Iterable[Any]], *arguments: Any) -> beam.PCollection:
    """What `write` yields for each pack of all inputs."""
    if isinstance(packs, beam.PCollection):
        return packs | beam.FlatMap(write, *arguments)
    return [part | f"Input{n}" >> beam.FlatMap(write, *arguments) for n, part in enumerate(packs)] | beam.Flatten()


def _map(pack: Pack, function: Callable[..., Any], *arguments: Any) -> Pack:
    return Pack(function(row, *arguments) for row in pack)


def _flat_map(pack: Pack, function: Callable[..., Iterable[Any]], *arguments: Any) -> Pack:
    return Pack(found for row in pack for found in function(row, *arguments))


def _write(pack: Pack, folder: str) -> Iterator[tuple[Any, Slice]]:
    """(key, bytes) -> (key, where they are): in one file, named by its content: a step may run twice."""
    if not pack:
        return
    content = b"".join(value for _, value in pack)
    name = hashlib.sha256(content).hexdigest()
    path = pathlib.Path(folder, name[:1], name)
    _write_once(path, content)
    offset = 0
    for key, value in pack:
        yield key, Slice(str(path), offset, len(value))
        offset += len(value)


def _write_once(path: pathlib.Path, content: bytes) -> None:
    # No fsync: what is written here does not outlive the pipeline.
    temporary = path.with_name(f"{path.name}.{os.urandom(8).hex()}.tmp")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary.write_bytes(content)
    os.replace(temporary, path)


def _write_by_key(pack: Pack, folder: str) -> Iterator[tuple[Any, Slice]]:
    values = collections.defaultdict(list)
    for key, value in pack:
        values[key].append(value)
    return _write(Pack((key, pickle.dumps(found, pickle.HIGHEST_PROTOCOL)) for key, found in values.items()), folder)


def _write_by_part(
    pack: Pack, folder: str, num_parts: int, part_of: Callable[[str, int], int]
) -> Iterator[tuple[int, Slice]]:
    return _write_by_key(Pack((part_of(row[0], num_parts), row) for row in pack), folder)


def _hashed(key: str, num_parts: int) -> int:
    return zlib.crc32(key.encode()) % num_parts


def _with_rows(element: tuple[Any, Iterable[Slice]]) -> tuple[Any, Any]:
    local_worker.give_back_memory()
    # Not Iterable, which Beam would encode row by row, nor Rows, which it would not take for an iterable.
    return element[0], Rows(tuple(element[1]))


def _groups(element: tuple[int, Iterable[Slice]]) -> Pack:
    local_worker.give_back_memory()
    groups = collections.defaultdict(list)
    for key, value in Rows(tuple(element[1])):
        groups[key].append(value)
    return Pack(groups.items())
