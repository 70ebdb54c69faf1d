import os
import random

import google_crc32c
import numpy as np
import pytest

from carbrand import errors
from carbrand.data import records


def random_record(seed):
    rng = random.Random(seed)
    integers = (0, 1, 127, 128, 2**31, 2**63 - 1, -1, -(2**63), rng.randrange(10**6))
    return {
        name: rng.choice(integers) if kind is int else rng.randbytes(rng.choice((0, 1, 127, 128, 20_000)))
        for name, kind in records.FEATURES.items()
    }


@pytest.mark.parametrize("seed", range(50))
def test_encode_is_what_protobuf_reads(seed):
    import tensorflow as tf

    record = random_record(seed)
    features = tf.train.Example.FromString(records.encode(record)).features.feature
    values = {name: list(value.int64_list.value) or list(value.bytes_list.value) for name, value in features.items()}
    assert values == {name: [value] for name, value in record.items()}


def test_decode_gives_back_what_was_encoded():
    import tensorflow as tf

    record = random_record(7)
    decoded = records.decode(tf.constant(records.encode(record)))
    assert {name: tensor.numpy() for name, tensor in decoded.items()} == record
    assert all(tensor.shape == () for tensor in decoded.values())


@pytest.mark.parametrize("seed", range(50))
def test_parse_gives_back_what_was_encoded(seed):
    record = random_record(seed)
    assert records.parse(records.encode(record)) == record


@pytest.mark.parametrize("seed", range(50))
def test_single_features_are_parsed_as_all_are(seed):
    record = random_record(seed)
    serialized = records.encode(record)
    for name, kind in records.FEATURES.items():
        if kind is bytes:
            assert records.parse_bytes(serialized, name) == record[name]


def test_what_is_no_record_is_not_parsed():
    whole = records.encode(random_record(1))
    for content in (b"", b"\x0a", whole[:-1], whole + b"\x0a\x00", whole[2:], b"\xff" * 30):
        with pytest.raises(ValueError):  # noqa: PT011
            records.parse(content)


def test_parse_reads_what_protobuf_writes():
    import tensorflow as tf

    record = random_record(2)
    message = tf.train.Example.FromString(records.encode(record))
    assert records.parse(message.SerializeToString()) == record


def test_all_records_of_a_shard_are_read_in_order(shard):
    with shard[0].open("rb") as file:
        assert list(records.read_all(file, where="x")) == [b"first", b"second"]


@pytest.mark.parametrize("byte", [0, 9, 13, 18, 22])
def test_reading_all_records_stops_at_a_flipped_byte(shard, byte):
    path, _ = shard
    content = bytearray(path.read_bytes())
    content[byte] ^= 1
    path.write_bytes(content)
    with path.open("rb") as file, pytest.raises(errors.DataError, match="cars/x: damaged record at byte"):
        list(records.read_all(file, where="cars/x"))


def test_encoding_does_not_depend_on_the_order_of_the_keys():
    record = random_record(3)
    assert records.encode(record) == records.encode(dict(reversed(record.items())))


def test_a_missing_feature_raises():
    record = random_record(0)
    del record["image/width"]
    with pytest.raises(ValueError, match="a record has the features"):
        records.encode(record)


def test_a_value_of_another_kind_raises():
    record = random_record(0) | {"image/class/text": "bmw"}
    with pytest.raises(ValueError, match=r"image/class/text is of kind bytes. Received: str"):
        records.encode(record)


def test_tensorflow_reads_the_frames(tmp_path):
    import tensorflow as tf

    payloads = [b"", b"a", bytes(1000)]
    path = tmp_path / "shard"
    path.write_bytes(b"".join(records.frame(payload) for payload in payloads))
    assert [item.numpy() for item in tf.data.TFRecordDataset(str(path))] == payloads


@pytest.fixture
def shard(tmp_path):
    path = tmp_path / "shard"
    path.write_bytes(records.frame(b"first") + records.frame(b"second"))
    descriptor = os.open(path, os.O_RDONLY)
    yield path, descriptor
    os.close(descriptor)


def test_read_returns_one_payload(shard):
    assert records.read(shard[1], 5 + records.FRAME_BYTES, 6) == b"second"


@pytest.mark.parametrize(
    ("byte", "what"),
    [(0, "no record of 5 bytes starts here"), (9, "no record of 5 bytes"), (13, "checksum"), (18, "checksum")],
)
def test_a_flipped_byte_raises(shard, byte, what):
    path, descriptor = shard
    content = bytearray(path.read_bytes())
    content[byte] ^= 1
    path.write_bytes(content)
    with pytest.raises(errors.DataError, match=rf"^cars/x: damaged record at byte 0: .*{what}"):
        records.read(descriptor, 0, 5, where="cars/x")


def test_another_length_than_the_stored_one_raises(shard):
    with pytest.raises(errors.DataError, match="no record of 4 bytes starts here"):
        records.read(shard[1], 0, 4)


def test_a_shard_that_ends_too_early_raises(shard):
    os.truncate(shard[0], 5 + records.FRAME_BYTES + 16)
    with pytest.raises(errors.DataError, match="the file ends after 16 of 22 bytes"):
        records.read(shard[1], 5 + records.FRAME_BYTES, 6)


def test_a_slow_checksum_is_refused(monkeypatch):
    monkeypatch.setattr(google_crc32c, "implementation", "python")
    with pytest.raises(errors.ConfigError, match="without its C extension"):
        records.frame(b"")


def test_an_index_row_takes_20_bytes():
    assert np.zeros(3, records.INDEX_DTYPE).nbytes == 60
