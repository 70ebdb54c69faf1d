"""The record codec: one table of features, from which the writer's `encode` and the reader's `decode` both come.

Records are `tf.train.Example` messages in TFRecord files. They are encoded without TensorFlow, which takes seconds and
half a gigabyte to import in every Beam worker, and without protobuf, whose order of map keys varies between processes.
"""

import os
import struct
from collections.abc import Iterator
from typing import TYPE_CHECKING, BinaryIO

import google_crc32c
import numpy as np

from carbrand import errors

if TYPE_CHECKING:
    import tensorflow as tf

FORMAT_VERSION = 2

# Feature name -> kind of its one value: bytes (tf.string) or int (tf.int64). Names as in Model Garden and TFDS.
FEATURES: dict[str, type[bytes] | type[int]] = {
    "image/class/label": int,  # 0-based index into the manifest's brands
    "image/class/text": bytes,  # the brand
    "image/encoded": bytes,  # JPEG, RGB or grey, upright
    "image/filename": bytes,  # of the source file, relative to the source's root, with '/'
    "image/group": bytes,  # photos of one group are all in one split; see manifest.py
    "image/hash/perceptual": bytes,  # near_duplicates.signature of the upright photo, in hexadecimal
    "image/height": int,  # pixels, as stored
    "image/key/sha256": bytes,  # of the source file's bytes, in hexadecimal
    "image/model": bytes,  # as the source writes it; b"" if it does not
    "image/source/height": int,  # pixels, upright, before shrinking
    "image/source/label": bytes,  # the brand as the source writes it
    "image/source/width": int,  # pixels, upright, before shrinking
    "image/width": int,  # pixels, as stored
}

# One row per record, in dataset order: `offset` is where the record's frame starts in its shard file, `length` is that
# of its payload, both in bytes.
INDEX_DTYPE = np.dtype([("shard", "<u4"), ("offset", "<u8"), ("length", "<u4"), ("label", "<i4")])

FRAME_BYTES = 16  # that a frame adds to its payload: 8 length, 4 CRC of the length, 4 CRC of the payload

_LENGTH_DELIMITED = 2  # the protobuf wire type of bytes, messages and packed integers


def encode(record: dict[str, bytes | int]) -> bytes:
    """The serialized `tf.train.Example` of `record`, with sorted keys: equal records give equal bytes.

    Raises:
        ValueError: if the keys of `record` are not those of `FEATURES`, or a value has another kind.
    """
    if record.keys() != FEATURES.keys():
        raise ValueError(f"a record has the features {sorted(FEATURES)}. Received: {sorted(record)}")
    entries = b"".join(_field(1, _map_entry(name, record[name])) for name in _KEYS)
    return _field(1, entries)


def decode(serialized: "tf.Tensor") -> dict[str, "tf.Tensor"]:
    """The features of one serialized record (a scalar string tensor), as scalar tensors: tf.string and tf.int64."""
    # Here and not at the top: Beam workers and the server import this module and must not load TensorFlow.
    import tensorflow as tf

    dtypes = {bytes: tf.string, int: tf.int64}
    return tf.io.parse_single_example(
        serialized, {name: tf.io.FixedLenFeature([], dtypes[kind]) for name, kind in FEATURES.items()}
    )


def parse(serialized: bytes) -> dict[str, bytes | int]:
    """`decode` without TensorFlow: the record that `encode` turned into `serialized`.

    Raises:
        ValueError: if `serialized` is not the encoding of a record with the features of `FEATURES`.
    """
    try:
        ((_, features),) = _fields(serialized)
        record = dict(_map_entry_of(content) for _, content in _fields(features))
    except (IndexError, UnicodeDecodeError) as error:
        raise ValueError("not a serialized tf.train.Example") from error
    if {name: type(value) for name, value in record.items()} != FEATURES:
        raise ValueError(f"a record has the features {sorted(FEATURES)}. Received: {sorted(record)}")
    return record


def parse_bytes(serialized: bytes, name: str) -> memoryview:
    """One feature of kind bytes of a sound record, not copied: in a tenth of the time that `parse` takes."""
    key = _KEYS[name]
    content = memoryview(serialized)
    _, position = _read_varint(serialized, 1)  # into the only field, the features
    while True:
        length, position = _read_varint(serialized, position + 1)
        if serialized.startswith(key, position):
            break
        position += length
    position += len(key)
    for _ in range(3):  # into Feature, BytesList and its value
        length, position = _read_varint(serialized, position + 1)
    return content[position : position + length]


def frame(payload: bytes) -> bytes:
    """`payload` as one TFRecord: length, masked CRC32C of the length, payload, masked CRC32C of the payload."""
    header = struct.pack("<Q", len(payload))
    return b"".join((header, _masked_crc32c(header), payload, _masked_crc32c(payload)))


def read(file_descriptor: int, offset: int, length: int, *, where: str = "record") -> bytes:
    """The payload of the record whose frame starts at `offset`, at one positioned read: safe from many threads.

    Args:
        file_descriptor: of a shard, open for reading.
        offset: of the frame in the file, in bytes.
        length: of the payload, in bytes.
        where: names the record in errors, for example the shard's path.

    Raises:
        DataError: if the file ends too early, or a length or checksum differs from the stored one.
    """
    content = os.pread(file_descriptor, FRAME_BYTES + length, offset)
    return unframe(content, length, offset=offset, where=where)


def unframe(content: bytes, length: int, *, offset: int, where: str = "record") -> bytes:
    """The payload of a frame that was read from `offset` on; the arguments and errors are those of `read`."""
    header, payload = content[:8], content[12 : 12 + length]
    if len(content) != FRAME_BYTES + length:
        raise _damaged(where, offset, f"the file ends after {len(content)} of {FRAME_BYTES + length} bytes")
    if content[8:12] != _masked_crc32c(header) or struct.unpack("<Q", header)[0] != length:
        raise _damaged(where, offset, f"no record of {length} bytes starts here")
    if content[12 + length :] != _masked_crc32c(payload):
        raise _damaged(where, offset, "its checksum does not match")
    return payload


def read_all(file: BinaryIO, *, where: str) -> Iterator[bytes]:
    """The payloads of a shard that is open for reading, one by one, in order.

    Raises:
        DataError: if the file ends within a record, or a checksum differs from the stored one.
    """
    offset = 0
    while header := os.pread(file.fileno(), 8, offset):
        length = struct.unpack("<Q", header)[0] if len(header) == 8 else 0
        if header + os.pread(file.fileno(), 4, offset + 8) != header + _masked_crc32c(header):
            raise _damaged(where, offset, "no record starts here")
        yield read(file.fileno(), offset, length, where=where)
        offset += FRAME_BYTES + length


def _damaged(where: str, offset: int, what: str) -> errors.DataError:
    return errors.DataError(f"{where}: damaged record at byte {offset}: {what}. Restore the file, or build again.")


def _masked_crc32c(content: bytes) -> bytes:
    if google_crc32c.implementation != "c":  # The Python one takes 5 ms per record instead of 3 µs.
        raise errors.ConfigError(
            "google-crc32c is installed without its C extension, which makes records 1,000 times slower. "
            "Run: pip install --force-reinstall google-crc32c"
        )
    crc = google_crc32c.value(content)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def _map_entry(name: str, value: bytes | int) -> bytes:
    """One entry of `Features.feature`: name -> Feature with a BytesList or an Int64List of one value."""
    if type(value) is not FEATURES[name]:
        raise ValueError(f"feature {name} is of kind {FEATURES[name].__name__}. Received: {type(value).__name__}")
    if isinstance(value, bytes):
        feature = _field(1, _field(1, value))
    else:
        feature = _field(3, _field(1, _varint(value & 0xFFFFFFFFFFFFFFFF)))  # negative numbers in two's complement
    return _KEYS[name] + _field(2, feature)


def _field(number: int, content: bytes) -> bytes:
    return b"".join((_varint(number << 3 | _LENGTH_DELIMITED), _varint(len(content)), content))


def _map_entry_of(content: bytes) -> tuple[str, bytes | int]:
    """The inverse of `_map_entry`."""
    (_, name), (_, feature) = _fields(content)
    ((kind, values),) = _fields(feature)
    ((_, value),) = _fields(values)
    if kind == 3:
        number, _ = _read_varint(value, 0)
        return name.decode(), number - (1 << 64) if number >> 63 else number
    return name.decode(), value


def _fields(content: bytes) -> Iterator[tuple[int, bytes]]:
    """The fields of a message, all of them length-delimited: number and content."""
    position = 0
    while position < len(content):
        tag, position = _read_varint(content, position)
        length, position = _read_varint(content, position)
        if tag & 7 != _LENGTH_DELIMITED or position + length > len(content):
            raise ValueError(f"no length-delimited field ends at byte {position}")
        yield tag >> 3, content[position : position + length]
        position += length


def _read_varint(content: bytes, position: int) -> tuple[int, int]:
    """The number that starts at `position`, and the position after it."""
    value = shift = 0
    while True:
        byte = content[position]
        value |= (byte & 0x7F) << shift
        position += 1
        if byte < 0x80:
            return value, position
        shift += 7


def _varint(value: int) -> bytes:
    return _SHORT_VARINTS[value] if value < len(_SHORT_VARINTS) else bytes(_groups_of_seven_bits(value))


def _groups_of_seven_bits(value: int) -> Iterator[int]:
    while value > 0x7F:
        yield value & 0x7F | 0x80
        value >>= 7
    yield value


_SHORT_VARINTS = [bytes([value]) for value in range(0x80)]  # nearly all: tags, and lengths of names and numbers
_KEYS = {name: _field(1, name.encode()) for name in sorted(FEATURES)}  # the first field of each map entry, in order
