"""A PTransform that writes records as exactly N shards per split, in one global order, the same bytes in every run.

Beside each shard it writes its part of the catalogue and of the index.

The order is that of a hash of (seed, key). A record's rank in it is found in two steps, so that no worker ever holds
more than one bucket or one shard of metadata: how many records come in the buckets before, and its place in its own.
"""

import dataclasses
import hashlib
import pathlib
from collections.abc import Callable, Iterable, Iterator
from typing import IO, Any

import numpy as np

from beam_jobs import build_output, packed, runners
from carbrand import files
from carbrand.data import catalogue, manifest, records

beam = runners.beam  # not imported here: runners keeps it quiet

BUCKETS = 1024  # per split; a million records make buckets of about 1,000


@dataclasses.dataclass(frozen=True)
class Record:
    """What is known of one record; its payload stays on disk until it is written.

    Attributes:
        split: it goes to.
        key: unique; the order of the records follows from it.
        label: 0-based.
        num_bytes: of the payload, about; decides on the number of shards.
        source: whatever `encode` needs to make the payload.
    """

    split: str
    key: str
    label: int
    num_bytes: int
    source: object


@dataclasses.dataclass(frozen=True)
class WrittenShard:
    """One finished shard file; its index rows stand in the file `manifest.index_part(split, number)`."""

    split: str
    number: int
    shard: manifest.Shard
    catalogue_sha256: str
    sums: dict[str, Any]  # catalogue.Sums of its records


@dataclasses.dataclass(frozen=True)
class _BucketSize:
    split: str
    bucket: int
    num_records: int
    num_bytes: int


@dataclasses.dataclass(frozen=True)
class _Plan:
    """Of one bucket: how many records come before it in its split, which has so many records and shards."""

    first_rank: int
    num_records: int
    num_shards: int


@dataclasses.dataclass(frozen=True)
class _Placed:
    """A record with its rank in its split."""

    rank: int
    record: Record


class WriteShards(beam.PTransform):
    """PCollection[Pack[Record]] -> PCollection[WrittenShard].

    Writing is idempotent: a runner may do a shard twice, or in two workers at once.
    """

    def __init__(
        self,
        output_dir: str,
        index_dir: str,
        encode: Callable[[Record], tuple[bytes, catalogue.Row]],
        *,
        shuffle_dir: str,
        num_parts: int,
        seed: int,
        sizing: build_output.Sizing,
    ) -> None:
        """Sets where and how to write.

        Args:
            output_dir: for the shards and the catalogue; on a disk that all workers share.
            index_dir: for the parts of the index, one file per shard.
            encode: makes the payload of a record, and its row of the catalogue; picklable.
            shuffle_dir: for records that wait, on a disk that all workers share.
            num_parts: into how many packs all records are grouped.
            seed: of the order.
            sizing: how many shards to make.
        """
        super().__init__()
        self._output_dir = output_dir
        self._index_dir = index_dir
        self._encode = encode
        self._shuffle_dir = shuffle_dir
        self._num_parts = num_parts
        self._seed = seed
        self._sizing = sizing

    def expand(self, pcoll: beam.PCollection) -> beam.PCollection:
        """The steps; elements are packs of what is noted."""
        records_by_bucket = pcoll | "Bucket" >> packed.Map(_with_bucket, self._seed)  # (bucket name, Record)
        plans = (
            records_by_bucket
            | "SizeOfRecord" >> packed.Map(_num_bytes)  # (bucket name, bytes)
            | "GroupBucket" >> self._group_by_key()  # (bucket name, [bytes])
            | "SizeOfBucket" >> packed.Map(_bucket_size)  # ("", _BucketSize)
            | "GroupSizes" >> packed.GroupApart(self._shuffle_dir)  # all together, no pack: ("", [_BucketSize])
            | "Plan" >> beam.Map(_plan, self._sizing)  # (bucket name, _Plan)
        )
        return (
            (records_by_bucket, plans)
            | "JoinPlans" >> self._group_by_key(_part_of_bucket)  # (bucket name, [Record | _Plan])
            | "Place" >> packed.FlatMap(_place, self._seed)  # (shard name, _Placed)
            | "GroupShard" >> packed.GroupApart(self._shuffle_dir)  # a shard alone, no pack: (shard name, [_Placed])
            | "WriteShard" >> beam.Map(_write_shard, self._output_dir, self._index_dir, self._encode)  # WrittenShard
        )

    def _group_by_key(self, part_of: Callable[[str, int], int] | None = None) -> packed.GroupByKey:
        return packed.GroupByKey(self._shuffle_dir, self._num_parts, part_of)


def _order(record: Record, seed: int) -> bytes:
    return hashlib.sha256(f"order:{seed}:{record.key}".encode()).digest()


def _with_bucket(record: Record, seed: int) -> tuple[str, Record]:
    bucket = int.from_bytes(_order(record, seed)[:4], "big") * BUCKETS >> 32
    return f"{record.split}/{bucket:04d}", record


def _part_of_bucket(name: str, num_parts: int) -> int:
    """Neighbours come together, so that the ranks of one part lie together too."""
    return int(name.partition("/")[2]) * num_parts // BUCKETS


def _num_bytes(element: tuple[str, Record]) -> tuple[str, int]:
    return element[0], element[1].num_bytes


def _bucket_size(element: tuple[str, Iterable[int]]) -> tuple[str, _BucketSize]:
    """All of them get one key: there are at most `BUCKETS` per split."""
    split, _, bucket = element[0].partition("/")
    sizes = list(element[1])
    return "", _BucketSize(split, int(bucket), len(sizes), sum(sizes))


def _plan(element: tuple[str, Iterable[_BucketSize]], sizing: build_output.Sizing) -> packed.Pack:
    buckets = sorted(element[1], key=lambda size: (size.split, size.bucket))
    sizes: dict[str, int] = {}
    num_bytes: dict[str, int] = {}
    first_ranks = []
    for bucket in buckets:
        first_ranks.append(sizes.get(bucket.split, 0))
        sizes[bucket.split] = sizes.get(bucket.split, 0) + bucket.num_records
        num_bytes[bucket.split] = num_bytes.get(bucket.split, 0) + bucket.num_bytes
    num_shards = sizing.num_shards(sizes, num_bytes)
    return packed.Pack(
        (f"{bucket.split}/{bucket.bucket:04d}", _Plan(first_rank, sizes[bucket.split], num_shards[bucket.split]))
        for bucket, first_rank in zip(buckets, first_ranks, strict=True)
    )


def _place(element: tuple[str, Iterable[Record | _Plan]], seed: int) -> Iterator[tuple[str, _Placed]]:
    joined = list(element[1])
    plan = next(part for part in joined if isinstance(part, _Plan))
    bucket = [part for part in joined if isinstance(part, Record)]
    bucket.sort(key=lambda record: (_order(record, seed), record.key))
    for rank, record in enumerate(bucket, start=plan.first_rank):
        shard = rank * plan.num_shards // plan.num_records
        yield f"{record.split}/{shard}/{plan.num_shards}", _Placed(rank, record)


def _write_shard(
    element: tuple[str, packed.Rows],
    output_dir: str,
    index_dir: str,
    encode: Callable[[Record], tuple[bytes, catalogue.Row]],
) -> WrittenShard:
    split, number, num_shards = element[0].split("/")
    name = files.shard_name(split, int(number), int(num_shards))
    catalogue_path = pathlib.Path(output_dir, catalogue.name_of(name))
    sums = catalogue.Sums()
    with files.atomic_writer(pathlib.Path(output_dir, name)) as file:
        frames = _Frames(file, int(number))
        catalogue_sha256 = catalogue.write(catalogue_path, frames.write_all(_by_rank(element[1]), encode, sums))
    index_path = pathlib.Path(index_dir, manifest.index_part(split, int(number)))
    files.write_bytes(index_path, manifest.index_bytes(frames.index()))
    shard = manifest.Shard(name, len(frames.index()), frames.num_bytes, frames.digest.hexdigest())
    return WrittenShard(split, int(number), shard, catalogue_sha256, sums.as_json())


def _by_rank(placed: packed.Rows) -> Iterator[_Placed]:
    """Sorted; only one pack is held at a time, since the ranks of each lie together."""
    last = -1
    for pack in sorted(placed.packs(), key=lambda pack: min(item.rank for item in pack)):
        for item in sorted(pack, key=lambda item: item.rank):
            assert item.rank > last
            last = item.rank
            yield item


class _Frames:
    """A shard file while it is written."""

    def __init__(self, file: IO[bytes], number: int) -> None:
        self.num_bytes = 0
        self.digest = hashlib.sha256()
        self._file = file
        self._number = number
        self._rows: list[tuple[int, int, int, int]] = []

    def write_all(
        self,
        placed: Iterable[_Placed],
        encode: Callable[[Record], tuple[bytes, catalogue.Row]],
        sums: catalogue.Sums,
    ) -> Iterator[catalogue.Row]:
        """Writes the records one by one, and yields the row of the catalogue for each."""
        for item in placed:
            payload, row = encode(item.record)
            frame = records.frame(payload)
            self._file.write(frame)
            self.digest.update(frame)
            self._rows.append((self._number, self.num_bytes, len(payload), item.record.label))
            self.num_bytes += len(frame)
            sums.add(row)
            yield row

    def index(self) -> np.ndarray:
        """What the index says of the records so far, [N] of `records.INDEX_DTYPE`."""
        return np.array(self._rows, records.INDEX_DTYPE)
