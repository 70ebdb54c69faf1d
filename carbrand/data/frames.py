"""Frames of TFRecord files that may be damaged: what is wrong with one, and where the next one starts."""

import mmap
import os
import pathlib
import struct
from collections.abc import Iterator

from carbrand.data import records

HEADER_BYTES = 12  # of a frame, before the payload: length and its checksum


def damage_of(frame: bytes, length: int) -> str:
    """What is wrong with the frame of a payload of `length` bytes, or ""."""
    if len(frame) != records.FRAME_BYTES + length:
        return f"the file ends after {len(frame)} of its {records.FRAME_BYTES + length} bytes"
    expected = records.frame(frame[HEADER_BYTES:-4])
    if frame == expected:
        return ""
    if frame[:8] != expected[:8]:
        return f"it begins with the length {struct.unpack('<Q', frame[:8])[0]} instead of {length}"
    if frame[8:HEADER_BYTES] != expected[8:HEADER_BYTES]:
        return "the checksum of its length is damaged"
    return "its content and its checksum do not match"


def find_all(path: pathlib.Path) -> Iterator[tuple[int, int]]:
    """Where each record of a shard starts, and its length, both in bytes, from the lengths that stand in the shard.

    Where a length is damaged, the record counts as reaching to the next one that is sound.
    """
    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_size < records.FRAME_BYTES:
            return
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            offset = 0
            while offset + records.FRAME_BYTES <= len(content):
                length = _length_at(content, offset)
                if length is None:
                    length = _next_frame(content, offset + records.FRAME_BYTES) - offset - records.FRAME_BYTES
                yield offset, length
                offset += records.FRAME_BYTES + length


def _length_at(content: mmap.mmap, offset: int) -> int | None:
    """The length of the record that starts at `offset`, or None if that length is damaged."""
    header = content[offset : offset + HEADER_BYTES]
    (length,) = struct.unpack("<Q", header[:8])
    if offset + records.FRAME_BYTES + length > len(content):
        return None
    payload = content[offset + HEADER_BYTES : offset + HEADER_BYTES + length]
    return length if records.frame(payload)[:HEADER_BYTES] == header else None


def _next_frame(content: mmap.mmap, start: int) -> int:
    """Where the first record with a sound length starts at or after `start`, or the end of the file."""
    zeros = content.find(bytes(4), start + 4)  # the upper half of a length below 4 GiB
    while zeros >= 0:
        if zeros - 4 + records.FRAME_BYTES <= len(content) and _length_at(content, zeros - 4) is not None:
            return zeros - 4
        zeros = content.find(bytes(4), zeros + 1)
    return len(content)
