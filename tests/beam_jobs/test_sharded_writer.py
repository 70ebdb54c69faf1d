import dataclasses
import random

import apache_beam as beam
import numpy as np
import pytest

from beam_jobs import packed, runners, sharded_writer
from beam_jobs.build_output import Sizing
from beam_jobs.sharded_writer import Record
from carbrand import files
from carbrand.data import catalogue, manifest, records

MIB = 2**20


def payload_of(record):
    return f"{record.key}:{record.source}".encode()


def encode(record):
    row = catalogue.Row(record.key, "", "", "", "", "", "", "", "", "", 1, 2, 3, 4, (5, 6, 7), 8, {})
    return payload_of(record), row


def make_records(train=500, test=7):
    sizes = {"train": train, "test": test}
    return [Record(split, f"{split}{n}", n % 3, 1000, "x" * (n % 5)) for split in sizes for n in range(sizes[split])]


def write(folder, items, *, num_train_shards, seed=0):
    _write(folder, items, encode, seed=seed, sizing=Sizing(num_train_shards))
    return {path.name: path.read_bytes() for path in sorted((folder / "out").glob("*.tfrecord-*"))}


def _write(folder, items, encode, **how):
    out, index, shuffle = (str(folder / name) for name in ("out", "index", "shuffle"))

    def build(pipeline):
        writer = sharded_writer.WriteShards(out, index, encode, shuffle_dir=shuffle, num_parts=3, **how)
        _ = pipeline | beam.Create(list(packed.packs(items, 50))) | beam.Reshuffle() | writer

    runners.run(build, runners.make_options(1, workers=1, beam_args=()), folder=str(folder))


def payloads(content):
    """The payloads of a shard, by TFRecord's layout."""
    found, offset = [], 0
    while offset < len(content):
        length = int.from_bytes(content[offset : offset + 8], "little")
        found.append(content[offset + 12 : offset + 12 + length])
        offset += length + 16
    return found


def test_each_record_is_written_once_in_shards_of_equal_size(tmp_path):
    items = make_records()
    shards = write(tmp_path, items, num_train_shards=7)
    assert sorted(shards) == [
        "carbrand-test.tfrecord-00000-of-00001",
        *(files.shard_name("train", n, 7) for n in range(7)),
    ]
    found = [payload for content in shards.values() for payload in payloads(content)]
    assert sorted(found) == sorted(map(payload_of, items))
    sizes = [len(payloads(shards[files.shard_name("train", n, 7)])) for n in range(7)]
    assert sorted(sizes) == [71, 71, 71, 71, 72, 72, 72]


def test_the_bytes_do_not_depend_on_the_order_of_the_input(tmp_path):
    items = make_records()
    shuffled = random.Random(0).sample(items, len(items))
    first = write(tmp_path / "a", items, num_train_shards=3)
    assert write(tmp_path / "b", shuffled, num_train_shards=3) == first


def test_the_order_is_the_same_for_every_number_of_shards(tmp_path):
    one = write(tmp_path / "a", make_records(test=0), num_train_shards=1)
    five = write(tmp_path / "b", make_records(test=0), num_train_shards=5)
    assert b"".join(five.values()) == b"".join(one.values())


def test_another_seed_gives_another_order_of_the_same_records(tmp_path):
    one, other = (write(tmp_path / str(seed), make_records(), num_train_shards=1, seed=seed) for seed in (0, 1))
    name = files.shard_name("train", 0, 1)
    assert payloads(one[name]) != payloads(other[name])
    assert sorted(payloads(one[name])) == sorted(payloads(other[name]))


def test_the_order_mixes_the_labels(tmp_path):
    write(tmp_path, make_records(), num_train_shards=1)
    labels = np.load(tmp_path / "index" / "train-00000.npy")["label"]
    assert np.bincount(labels[:100]).min() > 15


def test_the_index_finds_each_record(tmp_path):
    items = {payload_of(record): record for record in make_records()}
    write(tmp_path, list(items.values()), num_train_shards=4)
    index = np.load(tmp_path / "index" / manifest.index_part("train", 2))
    with (tmp_path / "out" / files.shard_name("train", 2, 4)).open("rb") as shard:
        for row in index:
            payload = records.read(shard.fileno(), int(row["offset"]), int(row["length"]))
            assert items[payload].label == row["label"]
    assert len(index) == 125
    assert set(index["shard"]) == {2}


def test_the_catalogue_has_one_row_per_record_in_the_same_order(tmp_path):
    shards = write(tmp_path, make_records(), num_train_shards=3)
    for name, content in shards.items():
        rows = catalogue.read(tmp_path / "out" / catalogue.name_of(name))
        keys = [payload.decode().partition(":")[0] for payload in payloads(content)]
        assert [row.name for row in rows] == keys


def test_writing_again_changes_nothing(tmp_path):
    first = write(tmp_path, make_records(), num_train_shards=2)
    assert write(tmp_path, make_records(), num_train_shards=2) == first


def test_a_failed_payload_leaves_no_shard(tmp_path):
    items = [*make_records(train=3, test=0)]
    items[1] = dataclasses.replace(items[1], key=None, source=None)
    (tmp_path / "out").mkdir()
    with pytest.raises(Exception, match="encode"):
        _write(tmp_path, items, _no_payload, seed=0, sizing=Sizing(1))
    assert list((tmp_path / "out").iterdir()) == []


def _no_payload(record):
    raise ValueError(f"cannot encode {record.key}")


@pytest.mark.parametrize(
    ("sizes", "num_bytes", "asked", "expected"),
    [
        ({"train": 80, "test": 10}, {"train": 10, "test": 10}, 8, {"train": 8, "test": 1}),
        ({"train": 800, "test": 399}, {"train": 1, "test": 1}, 16, {"train": 16, "test": 8}),
        ({"train": 3, "test": 1}, {"train": 1, "test": 1}, 8, {"train": 3, "test": 1}),
    ],
)
def test_the_number_of_shards_asked_for(sizes, num_bytes, asked, expected):
    assert Sizing(asked).num_shards(sizes, num_bytes) == expected


def test_the_number_of_shards_by_size_and_by_readers():
    sizes, num_bytes = {"train": 10**4, "test": 10**3}, {"train": 1300 * MIB, "test": 130 * MIB}
    assert Sizing().num_shards(sizes, num_bytes) == {"train": 10, "test": 1}
    assert Sizing(num_readers=8).num_shards(sizes, num_bytes) == {"train": 16, "test": 1}
    assert Sizing(shard_bytes=13 * MIB).num_shards(sizes, num_bytes) == {"train": 100, "test": 10}
    assert Sizing().num_shards({"train": 10}, {"train": 5}) == {"train": 2}
    assert Sizing().num_shards({"test": 10}, {"test": 5}) == {"test": 1}
